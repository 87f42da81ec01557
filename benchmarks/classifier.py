"""`ALRClassifier` on features: its speed, its accuracy under label noise, and its defaults.

    python -m benchmarks.classifier --suite speed
    python -m benchmarks.classifier --suite digits
    python -m benchmarks.classifier --suite study

- speed: epochs of a linear model on 50,000 x 1,280 features of 10 classes, compared with the bare
  loop of matrix products and SGD (the same batches, gathered by the same permutation, but no loss:
  the logits are taken for their gradient) in turns, and the share of time in the loss; a fit of the
  1,797 digits.
- digits: the classifier with a hidden layer and without, with cross entropy in its place, logistic
  regression on all labels, and cleanlab's `CleanLearning` with logistic regression. Label accuracy
  is that of the refined labels; for cleanlab of its predicted label where it finds an issue; for
  logistic regression that of its predictions. Average precision measures finding the changed
  labels.
- study: settings of the classifier, compared on a fifth of the training samples with their noisy
  labels. Clean labels have no influence; test accuracy is shown for comparison. The seeds differ
  from those of the other suite.

The command resumes where it was interrupted. Rows are written to benchmarks/results, from which
`python -m benchmarks.report` generates a table.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alr_fast import LabelBank
from alr_fast.losses import ALRLoss
from alr_fast.utils.files import open_appending
from benchmarks.harness.averages import percentiles
from benchmarks.harness.command import new_parser, parse
from benchmarks.harness.environment import environment
from benchmarks.harness.grid import split_noise
from benchmarks.harness.results import FOLDER, ResultFile, as_results
from benchmarks.harness.timing import synchronize, take_turns
from benchmarks.tables.classifier import digits_cells, speed_cells, study_cells
from benchmarks.tables.markdown import show

NOISES = ("symmetric-0.2", "symmetric-0.4", "asymmetric-0.4", "instance-0.4")
SEEDS, STUDY_SEEDS = (0, 1, 2, 3, 4), (100, 101)
SAMPLES, FEATURES, CLASSES = 50_000, 1280, 10  # of the speed
SPEED_BATCHES = (256, 512)
TEST_SHARE = HELD_OUT = 0.2

# Settings of the study; each differs from the first in one or two points.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"hidden": 0},
    "lr 0.2": {"lr": 0.2},
    "lr 1": {"lr": 1.0},
    "hidden 256": {"hidden": 256},
    "epochs 30": {"epochs": 30},
    "epochs 100": {"epochs": 100},
    "warm-up 20": {"warmup_epochs": 20},
    "momentum 0.8": {"loss_options": {"momentum": 0.8}},
    "entropy 0.2": {"loss_options": {"entropy_weight": 0.2}},
    "entropy 0.8": {"loss_options": {"entropy_weight": 0.8}},
    "weight decay 1e-3": {"weight_decay": 1e-3},
    "linear, lr 0.1": {"hidden": 0, "lr": 0.1},
    "linear, cross entropy": {"hidden": 0, "method": "ce"},
    "cross entropy": {"method": "ce"},
}


class Noisy:
    """The digits with noise in their training labels, divided into training and test set."""

    def __init__(self, noise: str, seed: int) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        from alr_fast.noise import inject

        pixels, labels = load_digits(return_X_y=True)
        self.train, self.test, self.clean, self.truth = train_test_split(
            pixels, labels, test_size=TEST_SHARE, random_state=seed, stratify=labels
        )
        kind, rate = split_noise(noise)
        self.given = inject(
            self.clean,
            num_classes=10,
            kind=kind,
            rate=rate,
            seed=seed,
            class_names=[str(digit) for digit in range(10)],
            features=self.train if kind == "instance" else None,
        ).labels


Found = tuple[Any, np.ndarray, np.ndarray]  # model, refined labels, scores of suspicion


def own(**settings: Any) -> Callable[[Noisy, int], Found]:
    """Fits `ALRClassifier`."""

    def fit(data: Noisy, seed: int) -> Found:
        from alr_fast import ALRClassifier

        model = ALRClassifier(random_state=seed, **settings).fit(data.train, data.given)
        return model, model.refined_labels_, model.label_issues_.scores

    return fit


def logistic(data: Noisy, seed: int) -> Found:
    """Fits scikit-learn's logistic regression to all labels, with scaled features."""
    model = _logistic().fit(data.train, data.given)
    p = model.predict_proba(data.train)
    return model, p.argmax(1), 1 - p[np.arange(len(p)), data.given]


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def cleaned(data: Noisy, seed: int) -> Found:
    """Fits cleanlab's `CleanLearning` around `logistic`."""
    from cleanlab.classification import CleanLearning

    model = CleanLearning(_logistic(), seed=seed, verbose=False).fit(data.train, data.given)
    issues = model.get_label_issues()
    refined = np.where(issues["is_label_issue"], issues["predicted_label"], data.given)
    return model, refined, 1 - issues["label_quality"].to_numpy()


VARIANTS: dict[str, Callable[[Noisy, int], Found]] = {
    "ALRClassifier": own(),
    "ALRClassifier, linear": own(hidden=0),
    'ALRClassifier, method="ce"': own(method="ce"),
    'ALRClassifier, linear, method="ce"': own(hidden=0, method="ce"),
    "logistic regression, all labels": logistic,
    "CleanLearning, logistic regression": cleaned,
}


def digits_row(variant: str, noise: str, seed: int) -> dict:
    """One fit of the comparison."""
    from sklearn.metrics import average_precision_score

    data = Noisy(noise, seed)
    begin = time.perf_counter()
    model, refined, scores = VARIANTS[variant](data, seed)
    seconds = time.perf_counter() - begin
    return {
        "variant": variant,
        "noise": noise,
        "seed": seed,
        "train_samples": len(data.given),
        "test_accuracy": float((model.predict(data.test) == data.truth).mean()),
        "label_accuracy_before": float((data.given == data.clean).mean()),
        "label_accuracy_after": float((refined == data.clean).mean()),
        "average_precision": float(average_precision_score(data.given != data.clean, scores)),
        "seconds": seconds,
    }


def study_row(variant: str, noise: str, seed: int) -> dict:
    """One fit of the study, on four fifths of the training samples."""
    from sklearn.model_selection import train_test_split

    from alr_fast import ALRClassifier

    data = Noisy(noise, seed)
    part, held_out, given, noisy, clean, _ = train_test_split(
        data.train, data.given, data.clean, test_size=HELD_OUT, random_state=seed
    )
    begin = time.perf_counter()
    model = ALRClassifier(random_state=seed, **SETTINGS[variant]).fit(part, given)
    seconds = time.perf_counter() - begin
    p = np.maximum(model.predict_proba(held_out), 1e-8)
    return {
        "variant": variant,
        "noise": noise,
        "seed": seed,
        "held_out_accuracy": float((p.argmax(1) == noisy).mean()),
        "test_accuracy": model.score(data.test, data.truth),
        "label_accuracy_after": float((model.refined_labels_ == clean).mean()),
        "seconds": seconds,
    }


GRIDS = {
    "digits": (digits_row, tuple(VARIANTS), SEEDS),
    "study": (study_row, tuple(SETTINGS), STUDY_SEEDS),
}


def run_grid(suite: str, folder: Path, noises: Sequence[str], seeds: Sequence[int]) -> list[dict]:
    """Makes the rows of a suite that are not in ``rows.jsonl`` of the folder yet."""
    make, variants, _ = GRIDS[suite]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = {_key(row): row for row in map(json.loads, lines)}
    cells = [(v, noise, seed) for seed in seeds for v in variants for noise in noises]
    for number, cell in enumerate(cells, start=1):
        if cell in rows:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = make(*cell) | {"environment": environment("cpu")}
        with open_appending(file) as opened:
            opened.write(json.dumps(row).encode() + b"\n")
        rows[cell] = row
        print(f"{number} of {len(cells)}: {', '.join(map(str, cell))}", flush=True)
    return [rows[cell] for cell in cells]


def _key(row: dict) -> tuple[str, str, int]:
    return row["variant"], row["noise"], row["seed"]


class Epochs:
    """An epoch of the classifier and one of the bare loop, on the same data in memory."""

    def __init__(self, samples: int, batch_size: int, device: str) -> None:
        rng = np.random.default_rng(0)
        self.samples, self.batch_size, self.device = samples, batch_size, torch.device(device)
        self.y = rng.integers(CLASSES, size=samples)
        self.x = rng.standard_normal((samples, FEATURES), dtype=np.float32)
        self.copy = torch.from_numpy(self.x).to(self.device)

    def classifier(self) -> tuple[float, float]:
        """Seconds of an epoch in the training loop of the classifier, and of the loss in it."""
        from alr_fast.classifier.heads import build_head, head_groups
        from alr_fast.classifier.training import train

        labels = torch.from_numpy(self.y)
        bank = LabelBank.from_labels(labels, num_classes=CLASSES, device=self.device)
        generator = torch.Generator().manual_seed(0)
        norm = float(FEATURES)
        head = build_head(FEATURES, CLASSES, 0, squared_norm=norm, generator=generator)
        head = head.to(self.device)
        criterion = Timed(bank, warmup_epochs=0, unique_index=True)
        optimizer = torch.optim.SGD(
            head_groups(head, 0.5, norm), lr=0.5, momentum=0.9, nesterov=True, fused=True
        )
        self._wait()
        begin = time.perf_counter()
        train(
            head.train(),
            optimizer,
            criterion,
            self,
            labels.to(self.device),
            row_weight=None,
            num_classes=CLASSES,
            epochs=1,
            batch_size=self.batch_size,
            generator=generator,
        )
        self._wait()
        return time.perf_counter() - begin, criterion.seconds

    def __len__(self) -> int:
        return self.samples

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        """As the features of the classifier in memory."""
        return self.copy.index_select(0, rows)

    @torch.no_grad()
    def bare(self) -> tuple[float, float]:
        """Seconds of an epoch of gathering, two matrix products and SGD."""
        weight = torch.zeros(CLASSES, FEATURES, device=self.device)
        bias = torch.zeros(CLASSES, device=self.device)
        self._wait()
        begin = time.perf_counter()
        order = torch.randperm(self.samples).to(self.device)
        for rows in order.split(self.batch_size):
            x = self.copy.index_select(0, rows)
            logits = torch.addmm(bias, x, weight.t())
            weight.sub_(logits.t() @ x, alpha=1e-6)
            bias.sub_(logits.sum(0), alpha=1e-6)
        self._wait()
        return time.perf_counter() - begin, 0.0

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Timed(ALRLoss):
    """ALR from the first epoch; adds up the seconds in `loss_and_grad`."""

    seconds = 0.0

    def loss_and_grad(self, *arguments: Any, **options: Any) -> Any:
        """See `Loss.loss_and_grad`."""
        synchronize(arguments[0].device.type)
        begin = time.perf_counter()
        result = super().loss_and_grad(*arguments, **options)
        synchronize(arguments[0].device.type)
        self.seconds += time.perf_counter() - begin
        return result


def speed_rows(device: str, seconds: float, samples: int = SAMPLES) -> Iterator[dict]:
    """Epochs of both loops in turns, with each batch size; and a fit of the digits."""
    from sklearn.datasets import load_digits

    from alr_fast import ALRClassifier

    facts = environment(device)
    for batch_size in SPEED_BATCHES:
        epochs = Epochs(samples, batch_size, device)
        turns = {"classifier": epochs.classifier, "bare": epochs.bare}
        for turn in turns.values():
            turn()
        found = take_turns(turns, seconds / len(SPEED_BATCHES), at_least=3)
        pairs = list(zip(found["classifier"], found["bare"], strict=True))
        yield {
            "variant": "linear",
            "samples": samples,
            "features": FEATURES,
            "classes": CLASSES,
            "batch_size": batch_size,
            **percentiles((own for (own, _), _ in pairs), "seconds"),
            **percentiles((bare for _, (bare, _) in pairs), "bare_seconds"),
            **percentiles((bare / own for (own, _), (bare, _) in pairs), "relative_speed"),
            "loss_share": statistics.median(loss / own for (own, loss), _ in pairs),
            "epochs": len(pairs),
            "environment": facts,
        }
    pixels, labels = load_digits(return_X_y=True)
    for name, hidden in (("fit of the digits, linear", 0), ("fit of the digits", None)):
        model = ALRClassifier(random_state=0, device=device)
        if hidden is not None:
            model.set_params(hidden=hidden)
        fits = []
        for _ in range(3):
            begin = time.perf_counter()
            model.fit(pixels, labels)
            fits.append(time.perf_counter() - begin)
        yield {"variant": name, "samples": len(labels), **percentiles(fits, "seconds"),
               "environment": facts}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_parser(__doc__, device="cpu", threads="threads on the CPU",
                        seconds=(30, "of the suite speed"))  # fmt: skip
    parser.add_argument("--suite", required=True, choices=("speed", *GRIDS))
    parser.add_argument("--noise", nargs="+", metavar="NOISE", choices=NOISES,
                        help=f"only these, of {', '.join(NOISES)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="these seeds")
    parser.add_argument("--folder", default="runs/classifier", help="folder of unfinished rows")
    parser.add_argument("--tiny", action="store_true", help="few samples, to try the command")
    arguments = parse(parser, argv)
    cells = {"speed": speed_cells, "digits": digits_cells, "study": study_cells}[arguments.suite]
    if arguments.suite == "speed":
        samples = 2_000 if arguments.tiny else SAMPLES
        rows = list(speed_rows(arguments.device, arguments.seconds, samples))
    else:
        seeds = arguments.seeds or GRIDS[arguments.suite][2]
        folder = Path(arguments.folder) / arguments.suite
        rows = run_grid(arguments.suite, folder, arguments.noise or NOISES, seeds)
    rows = as_results(rows, f"classifier_{arguments.suite}")
    show(f"ALRClassifier, {arguments.suite}", *cells(rows))
    whole = not (arguments.noise or arguments.seeds or arguments.tiny)
    ResultFile(FOLDER if whole else None, arguments.json).finish(rows)


if __name__ == "__main__":
    main()
