"""The folder that a run leaves behind.

runs/20260131-235959-digits/
    config.yaml              every option, as resolved: --config takes it
    metrics.csv              a line for each method and epoch
    metrics.png              accuracy and share of right labels per epoch
    METHOD.safetensors       weights of the last epoch
    METHOD_bank.safetensors  label bank of the last epoch, with the sample ids of its rows
    tensorboard/METHOD/      events
    broken.csv               training samples whose files gave no image, if there were any
    summary.json             the results, fractions of 1, and where they come from
runs/latest                  link to the last run that finished
"""

import csv
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alr_fast.bank import LabelBank
from alr_fast.config import Config
from alr_fast.data.broken import BrokenSamples, write_exclusions
from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError


@dataclass(frozen=True)
class EpochRecord:
    """What is known after one epoch of one method; accuracies are fractions of 1.

    Attributes:
        method: Name of the method.
        epoch: Number of the epoch, counted from 1.
        learning_rate: Learning rate that the next step would have.
        train_loss: Mean training loss.
        train_accuracy: Share of training samples predicted as their given label.
        test_loss: Mean cross entropy on the test set.
        test_accuracy: Share of test samples predicted right.
        second_test_accuracy: The same for the second test set, None where there is none.
        label_accuracy: Share of training labels that are right now, None where nobody knows.
        labels_changed: Share of training labels that differ from the given ones now.
        nonfinite_rows: Samples whose logits were not finite.
        broken_samples: Training samples that gave no image so far.
        seconds: Time that the epoch took, evaluation included.
    """

    method: str
    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    second_test_accuracy: float | None
    label_accuracy: float | None
    labels_changed: float
    nonfinite_rows: int
    broken_samples: int
    seconds: float


class RunFolder:
    """Creates a new folder and writes into it while the run goes on.

    Args:
        config: Resolved configuration of the run; `check_runs` has accepted its ``runs``.

    Attributes:
        path: The new folder; it did not exist before.
    """

    def __init__(self, config: Config) -> None:
        self.path = _new_folder(Path(config.runs), config.recipe)
        _write_yaml(self.path / "config.yaml", config.as_dict())
        self._metrics = (self.path / "metrics.csv").open("w", newline="", encoding="utf-8")
        self._csv = csv.writer(self._metrics)
        self._csv.writerow(field.name for field in fields(EpochRecord))
        self._writers: dict[str, Any] = {}

    def log_epoch(self, record: EpochRecord) -> None:
        """Appends one epoch to ``metrics.csv`` and to the TensorBoard events."""
        values = asdict(record)
        self._csv.writerow("" if value is None else value for value in values.values())
        self._metrics.flush()
        writer = self._writer(record.method)
        for name, value in values.items():
            if name not in ("method", "epoch") and value is not None:
                writer.add_scalar(name, value, record.epoch)

    def save_weights(self, method: str, model: nn.Module) -> None:
        """Writes the weights under the model's own names."""
        from safetensors.torch import save_file

        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        save_file(weights, self.path / f"{method}.safetensors")

    def save_bank(self, method: str, bank: LabelBank, train: SampleIndex) -> None:
        """Writes the bank with its sample ids: ``rows[j]`` belongs to the sample ``ids[j]``."""
        from safetensors.torch import save_file

        tensors = {
            "rows": bank.rows.detach().cpu().contiguous(),
            "ids": torch.from_numpy(train.ids),
            "given_labels": torch.from_numpy(train.labels),
        }
        if train.clean_labels is not None:
            # A copy: where the labels are the clean ones, both are the same array.
            tensors["clean_labels"] = torch.tensor(train.clean_labels)
        metadata = {
            "sample_fingerprint": train.sample_fingerprint(),
            "label_fingerprint": train.label_fingerprint(),
            "class_names": json.dumps(train.class_names),
        }
        save_file(tensors, self.path / f"{method}_bank.safetensors", metadata=metadata)

    def save_broken(self, broken: BrokenSamples) -> None:
        """Writes the list of the training samples that gave no image, if there are any."""
        if broken.reasons:
            rows = [(sample, *broken.reasons[sample]) for sample in sorted(broken.reasons)]
            write_exclusions(self.path / "broken.csv", rows)

    def finish(self, summary: dict[str, Any], records: list[EpochRecord]) -> None:
        """Writes plot and summary, then moves ``latest`` to this folder."""
        self.close()
        plot_records(records, self.path / "metrics.png")
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        (self.path / "summary.json").write_text(text, encoding="utf-8")
        _move_link(self.path.parent / "latest", self.path.name)

    def close(self) -> None:
        """Closes the files that are written epoch by epoch."""
        self._metrics.close()
        for writer in self._writers.values():
            writer.close()

    def _writer(self, method: str):
        if method not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[method] = SummaryWriter(str(self.path / "tensorboard" / method))
        return self._writers[method]


def method_summary(history: list[EpochRecord], label_accuracy_before: float | None) -> dict:
    """What ``summary.json`` says about one method.

    Args:
        history: Its epochs, in order; the last one is the result.
        label_accuracy_before: Share of the given labels that are right, None where nobody knows.
    """
    last = history[-1]
    best = max(history, key=lambda record: record.test_accuracy)  # shown, never selected on
    return {
        "test_accuracy_last": last.test_accuracy,
        "test_accuracy_best": best.test_accuracy,
        "best_epoch": best.epoch,
        "label_accuracy_before": label_accuracy_before,
        "label_accuracy_after": last.label_accuracy,
        "labels_changed": last.labels_changed,
        "train_accuracy_last": last.train_accuracy,
        "nonfinite_rows": sum(record.nonfinite_rows for record in history),
        "seconds": sum(record.seconds for record in history),
    }


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What a run was made with, for ``summary.json``."""
    from alr_fast import __version__

    return {
        "alr_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def check_runs(runs: str) -> None:
    """Raises `UserError` where run folders cannot be made, before any time is spent on training."""
    path = Path(runs)
    if path.exists() and not path.is_dir():
        raise UserError(f"--runs {runs}: is not a folder; pass another one")
    latest = path / "latest"
    if latest.exists() and not latest.is_symlink():
        raise UserError(f"{latest}: must be free for the link to the last run; move it away")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--runs {runs}: no permission to write there; pass another folder")


def plot_records(records: list[EpochRecord], path: Path) -> None:
    """Draws test accuracy and the state of the training labels over the epochs as a PNG."""
    from matplotlib.figure import Figure  # without pyplot: needs no display and keeps no state

    known = any(record.label_accuracy is not None for record in records)
    panels = (
        ("test accuracy", "test_accuracy"),
        ("share of right training labels", "label_accuracy")
        if known
        else ("share of changed training labels", "labels_changed"),
    )
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, column) in zip(figure.subplots(1, 2), panels, strict=True):
        for method in dict.fromkeys(record.method for record in records):
            own = [record for record in records if record.method == method]
            axes.plot([r.epoch for r in own], [100 * getattr(r, column) for r in own], label=method)
        axes.set(title=title, xlabel="epoch", ylabel="%")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def _new_folder(runs: Path, recipe: str) -> Path:
    stem = time.strftime("%Y%m%d-%H%M%S") + f"-{recipe}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs {runs}: {error.strerror or error}; pass another folder") from error
    number = 1
    while True:
        path = runs / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()  # fails where it exists: a run never writes into another one's folder
        except FileExistsError:
            number += 1
        else:
            return path


def _move_link(link: Path, target: str) -> None:
    # A rename replaces the old link in one step: at no moment is there none.
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    fresh.symlink_to(target)
    os.replace(fresh, link)


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
