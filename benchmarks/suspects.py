"""The detection of wrong labels: the score of alr_fast compared with cleanlab, on injected noise.

    python -m benchmarks.suspects --suite digits
    python -m benchmarks.suspects --suite cifar10-small --data-root DIR

For each kind and rate of noise ALR is trained once; the score is computed from its label bank and
history (`alr_fast.labels.suspicion`). The input of cleanlab is the labels and

- the same final probabilities, the rows of that bank; and
- out-of-sample probabilities, as its documentation recommends: five models are trained with cross
  entropy, each on four fifths of the samples, and predict the rest. Recipe and epochs are the same.

cleanlab ranks the samples in five ways: `get_label_quality_scores` with each of its three scores,
and `find_label_issues` with two orders of the samples that it returns, followed by the others in
the order of the same score. The table shows the best of the five in each cell, selected by the true
labels, in favour of cleanlab. Average precision and AUROC measure finding the samples whose label
was changed; seconds are those of training, with --jobs parallel processes, and of scoring.

Estimated noise rate: `alr_fast.labels.scored.ScoredLabels.noise_rate`; for cleanlab the share that
`find_label_issues` returns. The error of the transition matrix is `transition_error`.

The command resumes where it was interrupted. Rows are written to benchmarks/results, from which
`python -m benchmarks.report` generates a table.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from alr_fast.labels.scored import ScoredLabels
from alr_fast.training.run_paths import actual_path
from alr_fast.utils.files import replacing
from benchmarks.harness.command import (
    data_words,
    new_grid_parser,
    parallel_jobs,
    parse,
    suite_folder,
)
from benchmarks.harness.environment import environment
from benchmarks.harness.grid import Cell
from benchmarks.harness.results import FOLDER, ResultFile, as_results
from benchmarks.tables.markdown import show
from benchmarks.tables.suspects import OWN, SCORE, suspects_cells

FOLDS = 5
NOISES = tuple(
    f"{kind}-{rate}" for kind in ("symmetric", "asymmetric", "instance") for rate in (0.2, 0.4)
)


@dataclass(frozen=True)
class Suite:
    """A data set and a recipe."""

    options: tuple[str, ...]  # words of the command line
    seeds: tuple[int, ...]  # of the tables; the weights of the score were chosen with others
    needs_root: bool = True  # whether it needs --data-root


# With so few images the model needs a longer warm-up to be better than its labels.
_CIFAR = ("--recipe", "cifar10-small", "--alr.warmup_epochs", "6")
SUITES = {
    "digits": Suite(("--recipe", "digits"), seeds=(0, 1, 2), needs_root=False),
    "cifar10-small": Suite(
        (*_CIFAR, "--data.limit", "5000", "--data.test_limit", "1000", "--optim.epochs", "12"),
        seeds=(1,),
    ),
    "cifar10": Suite(
        (*_CIFAR, "--data.limit", "20000", "--data.test_limit", "2000", "--optim.epochs", "20"),
        seeds=(0,),  # the weights of the score were chosen on this one
    ),
}


@dataclass(frozen=True)
class Task:
    """One training: of ALR, or of cross entropy without one fold of the samples."""

    noise: str  # kind and rate
    seed: int  # of weights, batches, noise and folds
    fold: int | None  # the fold that is predicted; None for ALR

    @property
    def key(self) -> str:
        """Name of the task, unique in a suite."""
        part = "alr" if self.fold is None else f"fold{self.fold}"
        return f"{self.noise}-{self.seed}-{part}"

    def words(self, options: Sequence[str]) -> list[str]:
        """Words for `alr_fast.train.main`."""
        method = "alr" if self.fold is None else "ce"
        return Cell(method, self.noise, self.seed, (method,), tuple(options)).command()


def train(
    task: Task, options: Sequence[str], folder: Path, device: str, threads: int
) -> dict[str, np.ndarray]:
    """The results of a task, read from its file in the folder if it was finished before.

    Returns:
        ``seconds`` of training and evaluation; ``rows`` [M, K] of the bank or predicted
        probabilities, ``ids`` [M], ``given`` [M] and ``clean`` [M] labels; for ALR also the other
        tensors in the file of its bank.
    """
    file = folder / f"{task.key}.npz"
    words = task.words(options)
    if file.exists():
        with np.load(file) as saved:
            if saved["words"].tolist() == words:
                return dict(saved)
    torch.set_num_threads(threads)
    place = ["--device", device, "--runs", str(folder / task.key)]
    with contextlib.redirect_stdout(io.StringIO()):
        begin = time.perf_counter()
        found = _refine(words + place) if task.fold is None else _predict(task, words + place)
        found["seconds"] = np.array(time.perf_counter() - begin)
    found["words"] = np.array(words)
    with replacing(file) as fresh, fresh.open("wb") as opened:
        np.savez(opened, **found)
    return found


def _refine(words: list[str]) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    from alr_fast.bank.file import GIVEN_SHARE
    from alr_fast.train import main

    if status := main([*words, "--log.show", "quiet", "--log.to", "csv"]):
        raise RuntimeError(f"training ended with status {status}: {' '.join(words)}")
    runs = Path(words[words.index("--runs") + 1])
    with safe_open(actual_path(runs / "latest" / "alr_bank.safetensors"), "numpy") as file:
        bank = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        share = file.metadata().get(GIVEN_SHARE, "nan")  # not after a single epoch
        bank["given_share"] = np.array(float(share))
    return {**bank, "given": bank.pop("given_labels"), "clean": bank.pop("clean_labels")}


def _predict(task: Task, words: list[str]) -> dict[str, np.ndarray]:
    """Trains with cross entropy on all samples except a fold, and predicts that fold."""
    from sklearn.model_selection import StratifiedKFold

    from alr_fast.errors import naming_options
    from alr_fast.losses import CrossEntropyLoss
    from alr_fast.training.config.command_line import parse
    from alr_fast.training.distributed import process_group
    from alr_fast.training.loaders import make_loaders, make_transform
    from alr_fast.training.models import build_model
    from alr_fast.training.run_data import inject_noise, leave_out, load_data, with_labels
    from alr_fast.training.teacher import predict
    from alr_fast.training.trainer import Trainer
    from alr_fast.utils.console import Console

    config, console = parse(words), Console("quiet")
    data = load_data(config.data, config.data_root, log=console.log)
    noise = inject_noise(config.noise, config.data, data, console.track)
    whole = leave_out(with_labels(data, noise.labels))
    index = whole.train.index
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=task.seed)
    rest, part = list(folds.split(index.sample_ids, index.labels))[task.fold]
    data = replace(whole, train=whole.train.take(rest), validation=whole.train.take(part))
    transform = make_transform(config.data, data.train)
    with naming_options(device="device"), process_group(config.device) as world:
        loaders = make_loaders(
            config, data, transform, world=world, log=console.log, track=console.track
        )
        torch.manual_seed(config.seed)
        model = build_model(
            config.model.name,
            num_classes=index.num_classes,
            input_shape=data.train.input_shape(transform.size),
        ).to(world.device, memory_format=torch.channels_last)
        trainer = Trainer(model, CrossEntropyLoss(reduction="sum"), config, loaders.train, world)
        for _ in range(config.optim.epochs):
            trainer.begin_epoch()
            for batch in loaders.train:
                trainer.train_step(batch)
            trainer.end_epoch()
        rows = predict(model.eval(), loaders.validation, trainer.autocast, dtype=torch.float32)
    return {
        "rows": rows.cpu().numpy(),
        "ids": index.sample_ids[part],
        "given": index.labels[part],
        "clean": index.clean_labels[part],
    }


def own_labels(found: dict[str, np.ndarray]) -> ScoredLabels:
    """The samples with the score of alr_fast, from the results of ALR."""
    rows, given, share = found["rows"], found["given"], float(found["given_share"])
    return ScoredLabels(
        sample_ids=np.arange(len(given)),
        labels=given,
        class_names=tuple(map(str, range(rows.shape[1]))),
        history={name: found[name] for name in ("given_loss", "changes")},
        read=lambda some: rows[some].astype(np.float32),
        given_share=None if np.isnan(share) else share,
    )


def own_scores(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The score of alr_fast, and its components; higher for more suspicious samples."""
    from alr_fast.labels.suspicion import row_figures

    rows, given, loss = found["rows"], found["given"], found["given_loss"]
    labels = own_labels(found)
    figures = row_figures(rows, given)
    return {
        SCORE: labels.scores,
        "without history": labels.noise.log_odds(rows, given, np.full_like(loss, np.nan)),
        "without pattern": replace(labels.noise, pattern=None).log_odds(rows, given, loss),
        "bank: given probability": -figures["given_probability"],
        "bank: margin": -figures["margin"],
        "history: loss": loss,
    }


def own_noise(found: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Noise rate and transition matrix [true, given] as alr_fast estimates them; NaN if it does
    not."""
    labels = own_labels(found)
    matrix = labels.transition
    if matrix is None:
        matrix = np.full((labels.num_classes, labels.num_classes), np.nan)
    return labels.noise_rate, matrix


def cleanlab_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Five rankings of cleanlab; higher for more suspicious samples."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    scores = {}
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        quality = get_label_quality_scores(labels, probabilities, method=method)
        scores[method] = -quality
        if method == "confidence_weighted_entropy":
            continue
        issues = find_label_issues(labels, probabilities, return_indices_ranked_by=method, n_jobs=1)
        # The other samples follow, by the same score.
        others = np.setdiff1d(np.argsort(quality, kind="stable"), issues, assume_unique=True)
        order = np.concatenate([issues, others])
        rank = np.empty(len(order))
        rank[order] = np.arange(len(order))
        scores[f"find_label_issues, {method}"] = -rank
    return scores


def cleanlab_noise(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, np.ndarray]:
    """Noise rate and transition matrix [true, given] as cleanlab estimates them."""
    from cleanlab.count import compute_confident_joint, estimate_latent
    from cleanlab.filter import find_label_issues

    joint = compute_confident_joint(labels, probabilities)
    _, noise_matrix, _ = estimate_latent(joint, labels)
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    return float(issues.mean()), noise_matrix.T


def measure(
    noise: str, seed: int, refined: dict[str, np.ndarray], folds: list[dict[str, np.ndarray]]
) -> list[dict]:
    """The rows of one noise and seed.

    Args:
        noise: Kind and rate.
        seed: The seed.
        refined: Results of ALR, see `train`.
        folds: Results of cross entropy for each fold.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    from alr_fast.noise.transition import known_transition, transition_error

    given, clean = refined["given"], refined["clean"]
    wrong = given != clean
    truth = known_transition(clean, given, refined["rows"].shape[1])
    order = np.argsort(np.concatenate([fold["ids"] for fold in folds]))
    outside = np.concatenate([fold["rows"] for fold in folds])[order]
    assert (np.concatenate([fold["given"] for fold in folds])[order] == given).all()
    bank = refined["rows"].astype(np.float64)
    bank /= bank.sum(1, keepdims=True)
    refining = float(refined["seconds"])
    crossing = sum(float(fold["seconds"]) for fold in folds)
    # Source, seconds of training, function of the scores, function of the noise; both functions
    # have the same arguments.
    sources = (
        (OWN, refining, own_scores, own_noise, (refined,)),
        ("cleanlab, same probabilities", refining, cleanlab_scores, cleanlab_noise, (given, bank)),
        ("cleanlab, cross-validated", crossing, cleanlab_scores, cleanlab_noise, (given, outside)),
    )
    rows = []
    for source, seconds, score, estimate, arguments in sources:
        begin = time.perf_counter()
        scores = score(*arguments)
        scoring = time.perf_counter() - begin
        rate, matrix = estimate(*arguments)
        rows += [
            {
                "source": source,
                "score": name,
                "noise": noise,
                "seed": seed,
                "samples": len(given),
                "average_precision": float(average_precision_score(wrong, values)),
                "auroc": float(roc_auc_score(wrong, values)),
                "training_seconds": seconds,
                "scoring_seconds": scoring,
                "noise_rate": float(wrong.mean()),
                "noise_rate_estimate": rate,
                "transition_error": transition_error(matrix, truth),
            }
            for name, values in scores.items()
        ]
    return rows


def run(
    folder: Path,
    *,
    noises: Sequence[str],
    seeds: Sequence[int],
    options: Sequence[str],
    device: str,
    jobs: int,
    threads: int,
) -> list[dict]:
    """Runs the trainings that have not been finished, then scores.

    Args:
        folder: Folder of the results.
        noises: Kinds and rates.
        seeds: Seeds of each.
        options: Words of the command line, the same for all trainings.
        device: See `alr_fast.training.config.schema.Config.device`.
        jobs: Number of parallel trainings.
        threads: Threads of each on the CPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [Task(*cell) for cell in product(noises, seeds, (None, *range(FOLDS)))]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {
            task: pool.submit(train, task, options, folder, device, threads) for task in tasks
        }
        found = {}
        for number, (task, future) in enumerate(futures.items(), start=1):
            found[task] = future.result()
            print(f"{number} of {len(tasks)}: {task.key}", flush=True)
    rows = []
    for noise, seed in product(noises, seeds):
        folds = [found[Task(noise, seed, fold)] for fold in range(FOLDS)]
        rows += measure(noise, seed, found[Task(noise, seed, None)], folds)
    facts = environment("cuda" if device.startswith("cuda") else "cpu")
    return [{**row, "jobs": jobs, "environment": facts} for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_grid_parser(__doc__, SUITES, "runs/suspects", gpu_jobs=6)
    parser.add_argument("--noise", nargs="+", metavar="NOISE", choices=NOISES,
                        help=f"only these, of {', '.join(NOISES)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="these seeds")
    arguments = parse(parser, argv, SUITES)
    suite = SUITES[arguments.suite]
    options = [*suite.options, *data_words(arguments)]
    if arguments.epochs:
        options += ["--optim.epochs", str(arguments.epochs)]
    jobs, threads = parallel_jobs(arguments)
    rows = run(
        suite_folder(arguments),
        noises=arguments.noise or NOISES,
        seeds=arguments.seeds or suite.seeds,
        options=options,
        device=arguments.device,
        jobs=jobs,
        threads=threads,
    )
    rows = as_results(rows, f"suspects_{arguments.suite}")
    show(f"{arguments.suite}: finding wrong labels", *suspects_cells(rows))
    whole = not (arguments.noise or arguments.seeds or arguments.epochs)
    ResultFile(FOLDER if whole else None, arguments.json).finish(rows)


if __name__ == "__main__":
    main()
