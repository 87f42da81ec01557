"""Figures of an epoch and of a method: records, summary, plot, histograms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alr_fast.data.index import SampleIndex
from alr_fast.labels.report.model import Panel
from alr_fast.noise import InjectedNoise
from alr_fast.training.class_counts import ClassCounts
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.loaders import Loaders
from alr_fast.training.output.plot import draw_panels
from alr_fast.training.run_data import RunData, label_accuracy
from alr_fast.utils.machine import environment

# Panels of metrics.png, title and column: the first one that was measured is drawn.
ACCURACIES = (
    ("test accuracy", "test_accuracy"),
    ("accuracy on held-out samples", "validation_accuracy"),
    ("accuracy in training, on given labels", "train_accuracy"),
)
LABEL_STATES = (
    ("share of right training labels", "label_accuracy"),
    ("share of changed training labels", "labels_changed"),
)
_WORST = 5  # classes in the summary


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch of one method; accuracies are fractions of 1.

    Attributes:
        method: Name of the method.
        epoch: Number of the epoch, counted from 1.
        learning_rate: Learning rate of the next step.
        train_loss: Mean training loss.
        train_accuracy: Share of training samples predicted as their given label.
        test_loss: Mean cross entropy on the test set, None without one.
        test_accuracy: Share of test samples predicted correctly, None without any.
        second_test_accuracy: The same for the second test set, None without one.
        label_accuracy: Share of current training labels that are correct, None if unknown.
        labels_changed: Share of current training labels that differ from the given ones.
        nonfinite_rows: Samples with non-finite logits.
        skipped_steps: Steps of this epoch skipped because of non-finite gradients.
        broken_samples: Training samples with unreadable images so far.
        samples_per_second: Training samples per second, over all processes, without evaluation.
        seconds: Duration of the epoch, with evaluation.
        validation_accuracy: Share of held-out training samples predicted as their given label,
            None if no samples are held out.
        clean_correct: Share of the training samples with a correct given label that are predicted
            as this label, during training, with crops and flips; None if unknown, as for the next
            two.
        mislabelled_correct: Share of the training samples with a wrong given label that are
            predicted as their true class.
        mislabelled_memorised: Share of the same samples that are predicted as the wrong given
            label.
        warming_up: Whether the epoch belongs to the warm-up of the method; None if it has none.
        test_balanced_accuracy: Mean over the classes of the share of their test samples that are
            predicted correctly, None without test samples.
        test_top5_accuracy: Share of test samples whose class is among the five most probable ones,
            None without any and with up to 20 classes.
        second_test_top5_accuracy: The same for the second test set.
        validation_balanced_accuracy: As ``test_balanced_accuracy``, of the held-out samples.
    """

    method: str
    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    second_test_accuracy: float | None
    label_accuracy: float | None
    labels_changed: float
    nonfinite_rows: int
    skipped_steps: int
    broken_samples: int
    samples_per_second: float
    seconds: float
    validation_accuracy: float | None = None
    clean_correct: float | None = None
    mislabelled_correct: float | None = None
    mislabelled_memorised: float | None = None
    warming_up: bool | None = None
    test_balanced_accuracy: float | None = None
    test_top5_accuracy: float | None = None
    second_test_top5_accuracy: float | None = None
    validation_balanced_accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values: null for a test loss that is NaN or infinite."""
        loss = self.test_loss
        return {**asdict(self), "test_loss": None if loss is None or not isfinite(loss) else loss}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EpochRecord":
        """Inverse of `to_json`, except that the test loss becomes NaN in place of infinity."""
        test_loss = values["test_loss"]
        if test_loss is None and values["test_accuracy"] is not None:
            test_loss = nan
        return cls(**{**values, "test_loss": test_loss})


def method_summary(
    history: list[EpochRecord],
    label_accuracy_before: float | None,
    counts: Mapping[str, ClassCounts] | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the entry of one method in ``summary.json``; null for what was not measured.

    Args:
        history: Its epochs, in order; the last one is the result.
        label_accuracy_before: Share of the given labels that are correct, None if unknown.
        counts: See `run_summary`, of this method.
        class_names: Names of the K classes.
    """
    last = history[-1]
    tested = {r.epoch: r.test_accuracy for r in history if r.test_accuracy is not None}
    best = max(tested, key=lambda epoch: tested[epoch], default=None)  # shown, never selected
    counts = counts or {}
    return {
        "test_accuracy_last": last.test_accuracy,
        "test_accuracy_best": None if best is None else tested[best],
        "best_epoch": best,
        "test_balanced_accuracy_last": last.test_balanced_accuracy,
        "test_top5_accuracy_last": last.test_top5_accuracy,
        "second_test_accuracy_last": last.second_test_accuracy,
        "second_test_top5_accuracy_last": last.second_test_top5_accuracy,
        "validation_accuracy_last": last.validation_accuracy,
        "validation_balanced_accuracy_last": last.validation_balanced_accuracy,
        "class_accuracy_last": {
            name: [
                None if math.isnan(share) else round(share, 6)
                for share in of_set.accuracies.tolist()
            ]
            for name, of_set in counts.items()
        },
        "worst_classes": {
            class_names[k]: share for k, share in _worst_classes(next(iter(counts.values()), None))
        },
        "label_accuracy_before": label_accuracy_before,
        "label_accuracy_after": last.label_accuracy,
        "labels_changed": last.labels_changed,
        "train_accuracy_last": last.train_accuracy,
        "nonfinite_rows": sum(record.nonfinite_rows for record in history),
        "skipped_steps": sum(record.skipped_steps for record in history),
        "samples_per_second": sum(record.samples_per_second for record in history) / len(history),
        "seconds": sum(record.seconds for record in history),
    }


def method_summaries(
    records: list[EpochRecord],
    index: SampleIndex,
    counts: Mapping[str, Mapping[str, ClassCounts]] | None = None,
) -> dict[str, dict[str, Any]]:
    """The results of each method that has completed an epoch, in the order of training.

    Args:
        records: All epochs of all methods.
        index: Samples with the labels to train on.
        counts: See `run_summary`.
    """
    before, names = label_accuracy(index), dict.fromkeys(record.method for record in records)
    return {
        name: method_summary(
            [r for r in records if r.method == name],
            before,
            (counts or {}).get(name),
            index.class_names,
        )
        for name in names
    }


def _worst_classes(counts: ClassCounts | None) -> list[tuple[int, float]]:
    """Number and accuracy of the classes with the lowest accuracies, the lowest first."""
    accuracies = np.empty(0) if counts is None else counts.accuracies
    order = np.argsort(accuracies, kind="stable")[: np.isfinite(accuracies).sum()][:_WORST]
    return [(int(k), round(float(accuracies[k]), 6)) for k in order]


def class_table(index: SampleIndex, counts: Mapping[str, ClassCounts]) -> dict[str, list[Any]]:
    """Columns of ``METHOD_classes.csv``, a row for each class.

    Args:
        index: Samples with the labels to train on.
        counts: Of each test or validation set, by its name.
    """
    given = np.bincount(index.labels, minlength=index.num_classes)
    table: dict[str, list[Any]] = {
        "class": list(range(index.num_classes)),
        "name": list(index.class_names),
        "train_samples": given.tolist(),
    }
    for name, of_set in counts.items():
        shares = of_set.accuracies.tolist()
        table[f"{name}_samples"] = of_set.samples
        table[f"{name}_accuracy"] = ["" if math.isnan(x) else round(x, 6) for x in shares]
    return table


def run_summary(
    config: Config,
    world: World,
    data: RunData,
    noise: InjectedNoise,
    loaders: Loaders,
    records: list[EpochRecord],
    counts: Mapping[str, Mapping[str, ClassCounts]],
    *,
    started: str,
) -> dict[str, Any]:
    """Returns the content of ``summary.json``.

    Args:
        config: Resolved configuration.
        world: The processes.
        data: Samples of the run, with the labels to train on.
        noise: Noise in these labels.
        loaders: Loaders of the run.
        records: All epochs of all methods.
        counts: Of each method and each test or validation set, correct predictions by class in its
            last epoch.
        started: When the run started, ISO 8601.
    """
    index, methods = data.train.index, method_summaries(records, data.train.index, counts)
    return {
        "methods": methods,
        "recipe": config.recipe,
        "seed": config.seed,
        "epochs": config.optim.epochs,
        "seconds": sum(method["seconds"] for method in methods.values()),
        "started": started,
        "noise": {
            "kind": noise.kind,
            "requested_rate": noise.requested_rate,
            "realised_rate": noise.realised_rate,
            "seed": noise.seed,
        },
        "data": {
            "name": data.dataset.layout.name,
            "root": config.data_root,
            "train_samples": len(data.train),
            "test_samples": 0 if data.test is None else len(data.test),
            "validation_samples": 0 if data.validation is None else len(data.validation),
            "loader": loaders.choice.name,
            "excluded_samples": len(data.excluded),
            "broken_samples": len(loaders.train.broken.reasons),
            "broken_test_samples": sum(len(loader.broken.reasons) for loader in loaders.tests),
            "classes": list(index.class_names),
            "sample_fingerprint": index.sample_fingerprint(),
            "label_fingerprint": index.label_fingerprint(),
        },
        "environment": {**environment(world.device, config.precision), "processes": world.size},
    }


def plot_records(records: list[EpochRecord], path: Path) -> None:
    """Draws accuracy and the state of the training labels over the epochs as a PNG.

    The accuracy is that on the test samples, else on those held out for validation, else on the
    training samples with their given labels.
    """
    own = {
        method: [record for record in records if record.method == method]
        for method in dict.fromkeys(record.method for record in records)
    }
    warmup = {method: sum(r.warming_up is True for r in of) for method, of in own.items()}
    panels = []
    rows = [asdict(record) for record in records]
    for title, column in (first_measured(rows, p) for p in (ACCURACIES, LABEL_STATES)):
        series = {
            method: ([r.epoch for r in of], [100 * getattr(r, column) for r in of])
            for method, of in own.items()
        }
        panels.append(Panel(title, "%", series, warmup))
    draw_panels(panels, path)


def first_measured(
    rows: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    """Title and column of the first panel with a value in every epoch; the last one always has.

    Args:
        rows: Fields of records, or lines of ``metrics.csv``.
        panels: Title and column of each.
    """
    return next(
        (title, column)
        for title, column in panels
        if all(row.get(column) not in (None, "") for row in rows)
    )


@dataclass(frozen=True)
class Histogram:
    """Number of values in each bin; the sum over processes is their common histogram.

    Attributes:
        counts: Number of values in each bin.
        edges: Edges of the bins, ascending, one more than bins.
    """

    counts: list[int]
    edges: list[float]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.counts)} bins need one more edge, not {len(self.edges)}")

    def __add__(self, other: "Histogram") -> "Histogram":
        if self.edges != other.edges:
            raise ValueError("histograms with different bins cannot be added")
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Histogram(counts, self.edges)

    @classmethod
    def of_probabilities(cls, values: Tensor, *, bins: int = 20) -> "Histogram":
        """Counts probabilities in bins of equal width; 1 belongs to the last bin.

        Args:
            values: Any shape, floating point, 0 to 1 up to rounding; non-finite values are ignored.
            bins: Number of bins.
        """
        values = values.detach().flatten().double()
        # Not torch.histc, which is not deterministic on CUDA.
        bin_numbers = (values[values.isfinite()] * bins).long().clamp(0, bins - 1)
        counts = torch.bincount(bin_numbers, minlength=bins).tolist()
        return cls(counts, [edge / bins for edge in range(bins + 1)])
