"""The refined labels of a run folder: of a finished run, or of its newest checkpoint."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alr_fast.bank.file import open_rows
from alr_fast.bank.history import COLUMNS, SampleHistory
from alr_fast.bank.placement import allocate_rows, read_in_order
from alr_fast.data.datasets import Split, open_dataset
from alr_fast.data.images import FeatureRows
from alr_fast.errors import UserError, naming_options
from alr_fast.labels.issues import LabelIssues
from alr_fast.training.checkpoint.manifest import Checkpoint, check_files, newest_checkpoint
from alr_fast.training.checkpoint.shards import shard
from alr_fast.training.checkpoint.store import load, saved_tensors
from alr_fast.training.config.schema import Config, DataConfig, NoiseConfig, words
from alr_fast.training.distributed import World, process_group
from alr_fast.training.output.run_folder import (
    BANK,
    CHECKPOINTS,
    CONFIG,
    is_finished,
    read_config,
)
from alr_fast.utils.command import CommandParser
from alr_fast.utils.text import error_text, some_names


def from_bank_file(path: Path, method: str, split: Split) -> LabelIssues:
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
        raise UserError(
            f"{path}: cannot be read as a label bank ({error_text(error)}); train again, or pass "
            "another run"
        ) from error
    part = _matching(path, split, ids, classes, fingerprint)
    index = replace(part.index, labels=given, clean_labels=saved.get("clean_labels"))
    return _issues(method, replace(part, index=index), history, rows)


def _issues(
    method: str,
    split: Split,
    history: dict[str, NDArray[Any]],
    read: Callable[[slice], NDArray[np.float32]],
    *,
    complete: bool = True,
) -> LabelIssues:
    """The samples of a split with their rows of a label bank and their images."""
    index, images = split.index, split.images

    def image(row: int) -> NDArray[np.uint8] | bytes:
        return images.read(row) if images.array is None else images.array[row]

    return LabelIssues(
        sample_ids=index.sample_ids,
        labels=index.labels,
        class_names=index.class_names,
        history=history,
        read=read,
        paths=index.paths,
        clean_labels=index.clean_labels,
        method=method,
        complete=complete,
        images=None if isinstance(images, FeatureRows) else image,
    )


def _matching(
    path: Path, split: Split, sample_ids: NDArray[np.int64], classes: list[str], fingerprint: str
) -> Split:
    """The samples of a split, [M], that belong to the label bank in a file.

    Raises:
        UserError: The data set has other classes or samples than the bank.
    """
    remedy = "pass the data of that run: --data-root DIR"
    if list(split.index.class_names) != classes:
        raise UserError(
            f"{path}: was made with {len(classes)} classes ({some_names(classes)}), the data set "
            f"has {split.index.num_classes} ({some_names(split.index.class_names)}); {remedy}"
        )
    rows = split.index.find_rows(sample_ids)
    part = split.take(rows[rows >= 0])
    if part.index.sample_fingerprint() != fingerprint:  # as always if a sample is missing
        raise UserError(
            f"{path}: its sample fingerprint is not the data's: the data set has other files than "
            f"it had in training, or lists them in another order; {remedy}, as it was then"
        )
    return part


def _read_options(run: Path) -> Config:
    """The options of a run that its samples depend on, and its methods.

    Raises:
        UserError: The configuration does not exist or cannot be read.
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
        return Config(
            data=DataConfig(**options["data"]),
            noise=NoiseConfig(**options["noise"]),
            data_root=options["data_root"],
            methods=list(options["methods"]),
        )
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / CONFIG}: cannot be read ({error}); {remedy}") from error


def _train_split(options: Config) -> Split:
    """All training samples of the data set, with its own labels."""
    with naming_options(root="data-root"):
        dataset = open_dataset(
            options.data.name,
            options.data_root,
            column=options.data.column,
            columns=options.data.columns,
            images=options.data.images,
        )
    return dataset.split(options.data.train_split)


@contextmanager
def open_run(
    run: Path,
    *,
    method: str | None = None,
    data_root: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Iterator[LabelIssues]:
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
    options = _read_options(run)
    if data_root is not None:
        options.data_root = data_root
    methods = words(options.methods)
    if method is not None and method not in methods:
        raise UserError(f"--method {method}: not trained by {run}; it has {', '.join(methods)}")
    saved = [name for name in methods if (run / f"{name}{BANK}").is_file()]
    if method is None and saved:
        method = saved[-1]
    if method is not None and method in saved:
        yield from_bank_file(run / f"{method}{BANK}", method, _train_split(options))
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
    checkpoint: Checkpoint, options: Config, world: World, run: Path, log: Callable[[str], None]
) -> LabelIssues:
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
    split, sample_ids = _train_split(options), ids[order].numpy()
    split = _matching(checkpoint.path, split, sample_ids, facts["classes"], facts["samples"])
    clean = split.index.clean_labels
    if clean is None and options.noise.kind != "none":
        clean = split.index.labels  # noise was injected into them
    index = replace(split.index, labels=given[order].numpy(), clean_labels=clean)
    return _issues(
        method,
        replace(split, index=index),
        {name: column[order].numpy() for name, column in history.means().items()},
        lambda some: rows[order[some]].float().numpy(),
        complete=False,
    )


NEEDED = ("pyarrow", "safetensors", "yaml")  # of the extra train


def add_run_arguments(parser: CommandParser) -> None:
    """Adds the arguments that name a run."""
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder of a run, for example runs/latest"
    )
    parser.add_argument("--method", metavar="METHOD", help="default: the last with a label bank")
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data if it was moved")
