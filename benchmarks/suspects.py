"""How well wrong labels are found: the score of alr_fast beside cleanlab's, on injected noise.

    python -m benchmarks.suspects --suite digits
    python -m benchmarks.suspects --suite cifar10-small --data-root DIR

For each kind and rate of noise ALR is trained once, and its label bank and history give the score
(`alr_fast.labels.suspicion`). cleanlab gets the labels and

- the same final probabilities, the rows of that bank; and
- those that its documentation recommends, out of sample: five nets are trained with cross entropy,
  each on four fifths of the samples, and predict the rest. Recipe and epochs are the same.

It ranks the samples in five ways: `get_label_quality_scores` with each of its three scores, and
`find_label_issues` with two orders of what it returns, the others following by the same score. The
table shows the best of the five in each cell, chosen by the truth, in its favour. Average precision
and AUROC are of finding the samples whose label was changed; seconds are of training, with as many
processes beside as --jobs says, and of scoring.

Estimated noise rate: the share of labels that differ from the refined ones; for cleanlab the share
that `find_label_issues` returns. The error of the transition matrix is `transition_error`.

The command goes on where it was stopped. Rows go to benchmarks/results, of which
`python -m benchmarks.report` makes a table.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from alr_fast.utils.machine import usable_cores
from benchmarks.harness.environment import environment
from benchmarks.harness.grid import Cell
from benchmarks.harness.results import FOLDER, ResultFile, as_results, as_text
from benchmarks.tables.markdown import show
from benchmarks.tables.suspects import SCORE, suspects_cells

FOLDS = 5
NOISES = tuple(
    f"{kind}-{rate}" for kind in ("symmetric", "asymmetric", "instance") for rate in (0.2, 0.4)
)


@dataclass(frozen=True)
class Suite:
    """A data set and a recipe.

    Attributes:
        options: Words of the command line.
        seeds: Those of the tables; the weights of the score were chosen with others.
        needs_root: Whether it wants ``--data-root``.
    """

    options: tuple[str, ...]
    seeds: tuple[int, ...]
    needs_root: bool = True


# A net that sees so little is better than its labels only after a longer warm-up.
_CIFAR = ("--recipe", "cifar10-small", "--alr.warmup_epochs", "6")
SUITES = {
    "digits": Suite(("--recipe", "digits"), seeds=(0, 1, 2), needs_root=False),
    "cifar10-small": Suite(
        (*_CIFAR, "--data.limit", "5000", "--data.test_limit", "1000", "--optim.epochs", "12"),
        seeds=(1,),
    ),
    "cifar10": Suite(
        (*_CIFAR, "--data.limit", "20000", "--data.test_limit", "2000", "--optim.epochs", "20"),
        seeds=(0,),  # what the weights of the score were chosen on
    ),
}


@dataclass(frozen=True)
class Task:
    """One training: of ALR, or of cross entropy without a part of the samples.

    Attributes:
        noise: Kind and rate.
        seed: Of weights, batches, noise and folds.
        fold: Which part is predicted, None for ALR.
    """

    noise: str
    seed: int
    fold: int | None

    @property
    def key(self) -> str:
        """Its name among the tasks of a suite."""
        part = "alr" if self.fold is None else f"fold{self.fold}"
        return f"{self.noise}-{self.seed}-{part}"

    def words(self, options: Sequence[str]) -> list[str]:
        """Words for `alr_fast.train.main`."""
        method = "alr" if self.fold is None else "ce"
        return Cell(method, self.noise, self.seed, (method,), tuple(options)).command()


def train(
    task: Task, options: Sequence[str], folder: Path, device: str, threads: int
) -> dict[str, np.ndarray]:
    """What a task gives; read from its file where it has been done before.

    Args:
        task: What to train.
        options: Words of the command line, the same for all tasks.
        folder: Takes the file.
        device: See `alr_fast.training.config.schema.Config.device`.
        threads: Threads of the CPU.

    Returns:
        ``seconds`` of training and evaluating; ``rows`` [M, K] of the bank or predicted
        probabilities, ``ids`` [M], ``given`` [M] and ``clean`` [M] labels; of ALR what the file of
        a bank holds besides.
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
    draft = file.with_suffix(".part.npz")
    np.savez(draft, **found)
    draft.rename(file)
    return found


def _refine(words: list[str]) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    from alr_fast.train import main

    if status := main([*words, "--log.show", "quiet", "--log.to", "csv"]):
        raise RuntimeError(f"training ended with status {status}: {' '.join(words)}")
    runs = Path(words[words.index("--runs") + 1])
    bank = load_file(runs / "latest" / "alr_bank.safetensors")
    return {**bank, "given": bank.pop("given_labels"), "clean": bank.pop("clean_labels")}


def _predict(task: Task, words: list[str]) -> dict[str, np.ndarray]:
    """Trains with cross entropy on all but a fold, and predicts that."""
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
            in_channels=data.train.channels,
            image_size=transform.size,
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


# Scores. Each is higher for the more suspicious sample.


def own_scores(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The score of alr_fast, and what it is made of."""
    from alr_fast.labels.suspicion import estimate_noise, row_figures, scores

    rows, given, loss = found["rows"], found["given"], found["given_loss"]
    noise = estimate_noise(lambda: [(rows, given)], rows.shape[1])
    figures = row_figures(rows, given)
    return {
        SCORE: scores(noise.log_odds(rows, given, loss), noise.rate),
        "without history": noise.log_odds(rows, given, np.full_like(loss, np.nan)),
        "without pattern": replace(noise, pattern=None).log_odds(rows, given, loss),
        "bank: given probability": -figures["given_probability"],
        "bank: margin": -figures["margin"],
        "history: loss": loss,
    }


def cleanlab_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Five rankings of cleanlab."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    scores = {}
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        quality = get_label_quality_scores(labels, probabilities, method=method)
        scores[method] = -quality
        if method == "confidence_weighted_entropy":
            continue
        issues = find_label_issues(labels, probabilities, return_indices_ranked_by=method, n_jobs=1)
        # Behind what it returns the others, by the same score.
        order = np.concatenate([issues, np.setdiff1d(np.argsort(quality, kind="stable"), issues,
                                                     assume_unique=True)])  # fmt: skip
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
    """The rows of a cell of the table."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from alr_fast.labels.suspicion import estimate_noise
    from alr_fast.noise.transition import known_transition, transition_error

    given, clean = refined["given"], refined["clean"]
    wrong = given != clean
    classes = refined["rows"].shape[1]
    truth = known_transition(clean, given, classes)
    order = np.argsort(np.concatenate([fold["ids"] for fold in folds]))
    outside = np.concatenate([fold["rows"] for fold in folds])[order]
    assert (np.concatenate([fold["given"] for fold in folds])[order] == given).all()
    bank = refined["rows"].astype(np.float64)
    bank /= bank.sum(1, keepdims=True)
    training = float(refined["seconds"]), sum(float(fold["seconds"]) for fold in folds)
    sources = (
        ("alr_fast", training[0], lambda: own_scores(refined)),
        ("cleanlab, same probabilities", training[0], lambda: cleanlab_scores(given, bank)),
        ("cleanlab, cross-validated", training[1], lambda: cleanlab_scores(given, outside)),
    )
    rows = []
    for source, seconds, score in sources:
        begin = time.perf_counter()
        scores = score()
        scoring = time.perf_counter() - begin
        if source == "alr_fast":
            noise_found = estimate_noise(lambda: [(refined["rows"], given)], classes)
            estimate = noise_found.rate
            matrix = known_transition(noise_found.refined, given, classes)
        else:
            probabilities = outside if "cross" in source else bank
            estimate, matrix = cleanlab_noise(given, probabilities)
        for name, values in scores.items():
            rows.append(
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
                    "noise_rate_estimate": estimate,
                    "transition_error": transition_error(matrix, truth),
                }
            )
    return rows


def run(
    suite: Suite,
    folder: Path,
    *,
    noises: Sequence[str],
    seeds: Sequence[int],
    extra: Sequence[str],
    device: str,
    jobs: int,
) -> list[dict]:
    """Trains what is not there yet, then scores.

    Args:
        suite: What to train.
        folder: Where results are kept.
        noises: Kinds and rates.
        seeds: Of each.
        extra: More words of the command line.
        device: See `alr_fast.training.config.schema.Config.device`.
        jobs: Trainings at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        Task(noise, seed, fold)
        for noise in noises
        for seed in seeds
        for fold in (None, *range(FOLDS))
    ]
    threads = max(usable_cores() // jobs, 1)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        options = (*suite.options, *extra)
        futures = {
            task: pool.submit(train, task, options, folder, device, threads) for task in tasks
        }
        found = {}
        for number, (task, future) in enumerate(futures.items(), start=1):
            found[task] = future.result()
            print(f"{number} of {len(tasks)}: {task.key}", flush=True)
    rows = []
    for noise in noises:
        for seed in seeds:
            folds = [found[Task(noise, seed, fold)] for fold in range(FOLDS)]
            rows += measure(noise, seed, found[Task(noise, seed, None)], folds)
    facts = environment("cuda" if device.startswith("cuda") else "cpu")
    return [{**row, "jobs": jobs, "environment": facts} for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", required=True, choices=SUITES)
    parser.add_argument("--data-root", metavar="DIR", help="the data, for all suites but digits")
    parser.add_argument("--noise", nargs="+", metavar="NOISE", choices=NOISES,
                        help=f"these alone, of {', '.join(NOISES)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="these seeds")
    parser.add_argument("--epochs", type=int, metavar="N", help="other than the suite's, to try")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="trainings at once (default: one a core, 6 on a GPU)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--folder", default="runs/suspects", help="where results are kept")
    parser.add_argument("--json", metavar="FILE", help="write the rows there alone")
    arguments = parser.parse_args(argv)
    suite = SUITES[arguments.suite]
    extra: list[str] = []
    if suite.needs_root != bool(arguments.data_root):
        wanted = "pass --data-root DIR, the folder of its data"
        has = "brings its own data; leave --data-root out"
        parser.error(f"--suite {arguments.suite}: {wanted if suite.needs_root else has}")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such folder")
    if arguments.data_root:
        extra += ["--data-root", str(Path(arguments.data_root).absolute())]
    if arguments.epochs:
        extra += ["--optim.epochs", str(arguments.epochs)]
    on_gpu = arguments.device.startswith("cuda")
    rows = run(
        suite,
        Path(arguments.folder).absolute() / arguments.suite,
        noises=arguments.noise or NOISES,
        seeds=arguments.seeds or suite.seeds,
        extra=extra,
        device=arguments.device,
        jobs=arguments.jobs or (6 if on_gpu else usable_cores()),
    )
    rows = as_results(rows, f"suspects_{arguments.suite}")
    show(f"{arguments.suite}: finding wrong labels", *suspects_cells(rows))
    if arguments.json:
        Path(arguments.json).write_text(as_text(rows), encoding="utf-8")
    elif not (arguments.noise or arguments.seeds or arguments.epochs):
        print(f"rows in {ResultFile(FOLDER, rows[0]['environment']).write(rows)}")


if __name__ == "__main__":
    main()
