"""The refined labels of a run folder: of a finished run, or of its newest checkpoint."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alr_fast.bank.file import open_rows
from alr_fast.bank.history import COLUMNS, SampleHistory
from alr_fast.bank.placement import allocate_rows, read_in_order
from alr_fast.data.datasets import Split, open_dataset
from alr_fast.errors import UserError, naming_options
from alr_fast.labels.refined import RefinedLabels
from alr_fast.training.checkpoint.manifest import Checkpoint, check_files, newest_checkpoint
from alr_fast.training.checkpoint.shards import shard
from alr_fast.training.checkpoint.store import load, saved_tensors
from alr_fast.training.config.schema import DataConfig, NoiseConfig
from alr_fast.training.distributed import World, process_group
from alr_fast.training.output.run_folder import (
    BANK,
    CHECKPOINTS,
    CONFIG,
    is_finished,
    read_config,
)
from alr_fast.utils.command import CommandParser
from alr_fast.utils.text import some_names


def from_bank_file(path: Path, method: str, split: Split) -> RefinedLabels:
    """The refined labels of a finished method.

    Args:
        path: METHOD_bank.safetensors, see `alr_fast.training.sharded_bank.export_bank`.
        method: The method.
        split: Samples of the data set; the bank has rows for some or all of them.

    Raises:
        UserError: The file cannot be read, or belongs to other samples.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
            saved = {name: file.get_tensor(name) for name in names - {"rows"}}
            facts = file.metadata()
        rows = open_rows(path)
        classes = json.loads(facts["class_names"])
        ids, given = saved["ids"], saved["given_labels"]
        history = {name: saved[name] for name in COLUMNS}
        fingerprint = facts["sample_fingerprint"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as a label bank ({reason}); train again, or pass another run"
        ) from error
    part = matching(path, split, ids, classes, fingerprint)
    index = replace(part.index, labels=given, clean_labels=saved.get("clean_labels"))
    return RefinedLabels(
        method=method,
        split=replace(part, index=index),
        history=history,
        read=rows,
    )


def matching(
    path: Path,
    split: Split,
    sample_ids: NDArray[np.int64],
    classes: list[str],
    fingerprint: str,
) -> Split:
    """The samples of a split that belong to a label bank.

    Args:
        path: File of the bank, for messages.
        split: Samples of the data set.
        sample_ids: Samples of the bank, int64 [M], ascending.
        classes: Class names of the bank.
        fingerprint: Sample fingerprint of the bank.

    Raises:
        UserError: The data set has other classes or samples.
    """
    remedy = "pass the data of that run: --data-root DIR"
    if list(split.index.class_names) != classes:
        raise UserError(
            f"{path}: was made with {len(classes)} classes ({some_names(classes)}), the data set "
            f"has {split.index.num_classes} ({some_names(split.index.class_names)}); {remedy}"
        )
    part = None
    with contextlib.suppress(KeyError):
        part = split.take(split.index.rows_of(sample_ids))
    if part is None or part.index.sample_fingerprint() != fingerprint:
        raise UserError(
            f"{path}: its sample fingerprint is not the data's: the data set has other files than "
            f"it had in training, or lists them in another order; {remedy}, as it was then"
        )
    return part


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that its samples depend on; see `alr_fast.training.config.schema.Config`.

    Attributes:
        data, noise, data_root, methods: See there.
    """

    data: DataConfig
    noise: NoiseConfig
    data_root: str | None
    methods: list[str]

    def train_split(self) -> Split:
        """All training samples of the data set, with its own labels."""
        with naming_options(root="data-root"):
            dataset = open_dataset(self.data.name, self.data_root)
        return dataset.split(self.data.train_split)


def run_options(run: Path) -> RunOptions:
    """Reads config.yaml of a run.

    Raises:
        UserError: It does not exist or cannot be read.
    """
    if not run.is_dir():
        raise UserError(
            f"{run}: no such folder; pass the folder of a run, runs/latest for instance"
        )
    if not (run / CONFIG).is_file():
        raise UserError(
            f"{run}: not the folder of a run, it has no {CONFIG}; pass one below runs/, or "
            "runs/latest"
        )
    remedy = "use the version of alr_fast that wrote it"
    try:
        options = read_config(run)
        return RunOptions(
            data=DataConfig(**options["data"]),
            noise=NoiseConfig(**options["noise"]),
            data_root=options["data_root"],
            methods=list(options["methods"]),
        )
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / CONFIG}: cannot be read ({error}); {remedy}") from error


@contextlib.contextmanager
def open_run(
    run: Path,
    *,
    method: str | None = None,
    data_root: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Iterator[RefinedLabels]:
    """Opens the refined labels of a run: of its last epoch, or of the newest checkpoint of an
    unfinished run.

    Args:
        run: Folder of the run.
        method: Method with the label bank; None for the last method that keeps one.
        data_root: Folder of the data now, None if it has not been moved.
        log: Takes a line of text.

    Raises:
        UserError: The run has no label bank yet, its files cannot be read, or the data set is not
            the one that it was trained on.
    """
    options = run_options(run)
    if data_root is not None:
        options = replace(options, data_root=data_root)
    if method is not None and method not in options.methods:
        raise UserError(
            f"--method {method}: not trained by {run}; it has {', '.join(options.methods)}"
        )
    saved = [name for name in options.methods if (run / f"{name}{BANK}").is_file()]
    if method is None and saved:
        method = saved[-1]
    if method is not None and method in saved:
        yield from_bank_file(run / f"{method}{BANK}", method, options.train_split())
        return
    checkpoint = None if is_finished(run) else newest_checkpoint(run / CHECKPOINTS)
    if checkpoint is None or method not in (None, checkpoint.progress["method"]):
        what = f"method {method} has" if method else "it has"
        remedy = "train with a method that keeps one, alr for instance"
        if not is_finished(run):
            remedy = "it was not finished and left no checkpoint of one; --resume auto resumes it"
        elif saved:
            remedy = f"the methods that keep one are {', '.join(saved)}"
        raise UserError(f"{run}: {what} no label bank; {remedy}")
    with process_group("cpu") as world:
        yield _from_checkpoint(checkpoint, options, world, run, log)


def _from_checkpoint(
    checkpoint: Checkpoint,
    options: RunOptions,
    world: World,
    run: Path,
    log: Callable[[str], None],
) -> RefinedLabels:
    """The refined labels in a checkpoint, whatever number of processes wrote it.

    The rows, which may be larger than the memory, are copied into an unlinked temporary file in the
    folder of the run.
    """
    check_files(checkpoint)
    method, saved = checkpoint.progress["method"], saved_tensors(checkpoint)
    if "bank.rows" not in saved:
        raise UserError(
            f"{checkpoint.path}: method {method} keeps no label bank; wait for one that does, or "
            "train with alr"
        )
    (size, classes), dtype = saved["bank.rows"]
    ids, given = torch.empty(size, dtype=torch.int64), torch.empty(size, dtype=torch.int64)
    history = SampleHistory(given, torch.device("cpu"))
    rows = allocate_rows(size, classes, dtype=dtype, device="cpu", placement="file", folder=run)
    wanted = {f"history.{name}": t for name, t in history.tensors().items()}
    wanted |= {"bank.ids": ids, "bank.given": given, "bank.rows": rows}
    mesh = world.mesh("cpu")
    with read_in_order(rows):
        load(checkpoint, {name: shard(t, 0, size, mesh) for name, t in wanted.items()})
    epoch, step = (checkpoint.progress["position"][key] for key in ("epoch", "step"))
    log(f"{method}: from {checkpoint.path}, in epoch {epoch + 1} after step {step}")
    # The rows of a checkpoint are in the order of the processes that own them.
    order = torch.argsort(ids)
    facts = checkpoint.progress["data"]
    split = matching(
        checkpoint.path,
        options.train_split(),
        ids[order].numpy(),
        facts["classes"],
        facts["samples"],
    )
    clean = split.index.clean_labels
    if clean is None and options.noise.kind != "none":
        clean = split.index.labels  # noise was injected into them
    index = replace(split.index, labels=given[order].numpy(), clean_labels=clean)
    return RefinedLabels(
        method=method,
        split=replace(split, index=index),
        history={name: column[order].numpy() for name, column in history.means().items()},
        read=lambda some: rows[order[some]].float().numpy(),
        complete=False,
    )


NEEDED = ("pyarrow", "safetensors", "yaml")  # of the extra train


def add_run_arguments(parser: CommandParser) -> None:
    """Adds the arguments that name a run."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, runs/latest say")
    parser.add_argument("--method", metavar="METHOD", help="default: the last with a label bank")
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data if it was moved")
