"""The label bank of a run: each process has the rows of the samples that it owns."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.bank import LabelBank
from alr_fast.bank.file import BankFileWriter
from alr_fast.bank.history import COLUMNS, SampleHistory
from alr_fast.bank.placement import check_placement, choose_placement
from alr_fast.data.index import SampleIndex
from alr_fast.data.label_table import read_probabilities
from alr_fast.errors import UserError
from alr_fast.training.config.schema import BankConfig
from alr_fast.training.distributed import World
from alr_fast.training.output.records import Histogram
from alr_fast.utils.files import writing
from alr_fast.utils.text import readable


def new_bank(
    options: BankConfig,
    index: SampleIndex,
    rows: NDArray[np.int64],
    world: World,
    *,
    folder: Path,
    log: Callable[[str], None],
    one_hot: bool = True,
    soft_labels: str | None = None,
) -> LabelBank:
    """A bank that starts from the given labels; all processes make theirs.

    Args:
        options: Where it lies and what it is stored in.
        index: All training samples.
        rows: Those of this process, int64 [n].
        world: The processes.
        folder: Where a bank in a file goes, unless the options name another folder.
        log: Takes a line of text.
        one_hot: False for a bank that starts at zero.
        soft_labels: Table whose probabilities it starts from instead of the one-hot labels, where
            they are listed; see `alr_fast.data.label_table`.

    Raises:
        SharedError: It finds no room, or the table cannot be read.
    """
    num_bytes = _num_bytes(options, index, rows)
    placement, why = options.placement, "asked for"
    if placement == "auto":
        choice = world.from_main(
            lambda: choose_placement(num_bytes, world.device, processes=world.local_size)
        )
        placement, why = choice.placement, choice.why
    bank = world.on_all_ranks(
        lambda: LabelBank.from_labels(
            torch.from_numpy(index.labels[rows]),
            index.num_classes,
            dtype=getattr(torch, options.dtype),
            device=world.device,
            sample_fingerprint=index.sample_fingerprint(),
            placement=placement,
            folder=options.folder or folder,
            one_hot=one_hot,
        )
    )
    if soft_labels is not None and not one_hot:
        log("label bank: starts at zero, not from the soft labels")
    elif soft_labels is not None:
        with bank.host_access():
            world.on_all_ranks(
                lambda: fill_rows(bank.rows, soft_labels, index, rows, option="data.label_file")
            )
    each = " in each process" if world.size > 1 else ""
    log(f"label bank: {readable(num_bytes)}{each}, {placement} ({why})")
    return bank


def fill_rows(
    target: Tensor, table: str, index: SampleIndex, rows: NDArray[np.int64], *, option: str
) -> None:
    """Brings the soft labels of a table into rows, where it lists them.

    Args:
        target: [n, K], the rows of this process.
        table: See `alr_fast.data.label_table`.
        index: All training samples.
        rows: Those of this process, int64 [n].
        option: The option that names the table.

    Raises:
        UserError: The table cannot be read, or does not fit.
    """
    place = np.full(len(index), -1)
    place[rows] = np.arange(len(rows))
    for found, p in read_probabilities(table, index, option=option):
        own = place[found] >= 0
        where = torch.from_numpy(place[found][own]).to(target.device)
        target[where] = torch.from_numpy(p[own]).to(target)


def check_room(
    options: BankConfig, index: SampleIndex, rows: NDArray[np.int64], world: World, *, runs: Path
) -> None:
    """Finds out early what `new_bank` would find; asks no other process.

    Args:
        options: See `new_bank`, as for the arguments that follow.
        runs: Where the folder of the run will be.

    Raises:
        UserError: The bank cannot lie there, or finds no room.
    """
    num_bytes = _num_bytes(options, index, rows)
    if options.placement == "auto":
        placement = choose_placement(num_bytes, world.device, processes=world.local_size).placement
    else:
        placement = options.placement
        check_placement(placement, world.device)
    if placement != "file":
        return
    if options.folder is not None and not Path(options.folder).is_dir():
        raise UserError(f"--bank.folder {options.folder}: no such folder; make it, or pass another")
    folder = Path(options.folder or runs).absolute()
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    needed = num_bytes * world.local_size
    if free < needed:
        raise UserError(
            f"--bank.folder {folder}: has room for {readable(free)}, the label bank needs "
            f"{readable(needed)}; pass another folder, or a 16-bit --bank.dtype"
        )


def _num_bytes(options: BankConfig, index: SampleIndex, rows: NDArray[np.int64]) -> int:
    return len(rows) * index.num_classes * getattr(torch, options.dtype).itemsize


@dataclass(frozen=True)
class LabelStatistics:
    """The training labels after an epoch, over all processes.

    Attributes:
        right: Share that is right, None where nobody knows.
        changed: Share that differs from the given one.
        nonfinite_rows: Samples whose logits were not finite since the last time.
        histograms: Of the confidence, where there is a bank.
        refined: Labels of the samples of this process alone, int64 [n], on the CPU.
    """

    right: float | None
    changed: float
    nonfinite_rows: int
    histograms: dict[str, Histogram]
    refined: Tensor


def label_statistics(
    bank: LabelBank | None, index: SampleIndex, rows: NDArray[np.int64], world: World
) -> LabelStatistics:
    """Looks at all rows of the bank; the given labels stand for it where there is none.

    Args:
        bank: Of this process.
        index: All training samples.
        rows: Those of this process, int64 [n].
        world: The processes.
    """
    given = torch.from_numpy(index.labels[rows])
    labels, nonfinite, histograms = given, 0, {}
    if bank is not None:
        labels, nonfinite = bank.refined_labels().cpu(), bank.check()
        histograms["confidence"] = Histogram.of_probabilities(bank.confidence())
    right = 0
    if index.clean_labels is not None:
        right = (labels == torch.from_numpy(index.clean_labels[rows])).sum().item()
    changed = (labels != given).sum().item()
    parts = world.gather((right, changed, nonfinite, histograms))
    rights, changes, counts, drawn = zip(*parts, strict=True)
    first, *others = drawn
    return LabelStatistics(
        None if index.clean_labels is None else sum(rights) / len(index),
        sum(changes) / len(index),
        sum(counts),
        {name: sum((other[name] for other in others), start) for name, start in first.items()},
        labels,
    )


def export_bank(
    path: Path,
    bank: LabelBank,
    history: SampleHistory,
    index: SampleIndex,
    rows: NDArray[np.int64],
    world: World,
) -> None:
    """Writes the rows of all processes into one file, ascending by id; process 0 writes it.

    Args:
        path: The file.
        bank: Of this process.
        history: Of this process.
        index: All training samples.
        rows: Those of this process, int64 [n].
        world: The processes.

    Raises:
        SharedError: The file cannot be written.
    """
    parts = world.gather((rows, history.means()))
    with bank.host_access(), ExitStack() as stack:

        def begin() -> BankFileWriter | None:
            if not world.main:
                return None
            seen = {name: torch.zeros(len(index), dtype=dtype) for name, dtype in COLUMNS.items()}
            for of_rank, columns in parts:
                for name, column in columns.items():
                    seen[name][torch.from_numpy(of_rank)] = column
            return stack.enter_context(_writer(path, bank.rows.dtype, index, seen))

        def end() -> None:
            with writing(path):
                stack.close()

        file = world.on_all_ranks(begin)
        for positions, some in world.collect_rows(torch.from_numpy(rows), bank.rows):
            file.write(positions, some)
        world.on_all_ranks(end)


def _writer(
    path: Path, dtype: torch.dtype, index: SampleIndex, tensors: dict[str, Tensor]
) -> BankFileWriter:
    tensors["ids"] = torch.from_numpy(index.sample_ids)
    tensors["given_labels"] = torch.from_numpy(index.labels)
    if index.clean_labels is not None:
        tensors["clean_labels"] = torch.from_numpy(index.clean_labels)
    return BankFileWriter(
        path,
        num_samples=len(index),
        num_classes=index.num_classes,
        dtype=dtype,
        tensors=tensors,
        metadata={
            "sample_fingerprint": index.sample_fingerprint(),
            "label_fingerprint": index.label_fingerprint(),
            "class_names": json.dumps(index.class_names),
        },
    )
