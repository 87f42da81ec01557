"""The label bank of a run, sharded: each process has the rows of the samples that it owns."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.bank import LabelBank
from alr_fast.bank.file import GIVEN_SHARE, BankFileWriter
from alr_fast.bank.history import COLUMNS, SampleHistory
from alr_fast.bank.placement import PlacementChoice, check_placement, choose_placement
from alr_fast.data.datasets import Split
from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.label_table import read_probabilities
from alr_fast.errors import naming_options
from alr_fast.training.config.schema import BankConfig, soft_labels, starts_from_given
from alr_fast.training.distributed import World
from alr_fast.training.output.records import Histogram
from alr_fast.training.run import Run
from alr_fast.training.samples import sample_columns, sample_facts
from alr_fast.utils.text import readable

_OPTIONS = {name: f"bank.{name}" for name in ("placement", "folder", "dtype")}


def new_bank(run: Run, *, one_hot: bool) -> LabelBank:
    """The label bank of this process, initialised from its given labels. All processes call this.

    If the run trains on soft labels, the bank starts from them.

    Args:
        run: The run.
        one_hot: False to start at zero.

    Raises:
        SharedError: Too little memory or disk space, or the soft labels cannot be read.
    """
    options, world, index, rows = run.config.bank, run.world, run.index, run.rows
    num_bytes = bank_bytes(options, index, len(rows))
    choice = world.from_main(lambda: bank_placement(options, num_bytes, world))
    with naming_options(**_OPTIONS):
        bank = world.on_all_ranks(
            lambda: LabelBank.from_labels(
                torch.from_numpy(index.labels[rows]),
                index.num_classes,
                dtype=getattr(torch, options.dtype),
                device=world.device,
                sample_fingerprint=index.sample_fingerprint(),
                placement=choice.placement,
                folder=options.folder or run.path,
                one_hot=one_hot,
            )
        )
    bank.owned = True  # its rows are those of this process
    table = soft_labels(run.config)
    bank.from_given = starts_from_given(run.config)
    if table is not None and not one_hot:
        run.console.log("label bank: starts at zero, not from the soft labels")
    elif table is not None:
        with bank.host_access(), naming_options(table="data.label_file"):
            fill = partial(fill_rows, bank.rows, table, index, rows, with_label=True)
            world.on_all_ranks(fill)
    each = " in each process" if world.size > 1 else ""
    run.console.log(f"label bank: {readable(num_bytes)}{each}, {choice.placement} ({choice.why})")
    return bank


def fill_rows(
    target: Tensor,
    table: str,
    index: SampleIndex,
    rows: NDArray[np.int64],
    log: Callable[[str], None] = lambda text: None,
    *,
    with_label: bool = False,
) -> None:
    """Writes the soft labels of the samples that a table lists.

    Args:
        target: [n, K], a row for each sample of this process.
        table: See `alr_fast.data.label_files.label_table`.
        index: All training samples.
        rows: Rows of ``index`` that this process owns, int64 [n].
        log: Takes a line about samples that are not listed.
        with_label: Whether to leave out samples whose given label is not the most probable class:
            a person chose it since.

    Raises:
        UserError: The table cannot be read, or does not fit.
    """
    bank_index = np.full(len(index), -1)
    bank_index[rows] = np.arange(len(rows))
    for listed, probabilities in read_probabilities(table, index, log):
        found = bank_index[listed]
        own = found >= 0
        if with_label:
            own &= probabilities.argmax(1) == index.labels[listed]
        where = torch.from_numpy(found[own]).to(target.device)
        target[where] = torch.from_numpy(probabilities[own]).to(target)


def bank_placement(options: BankConfig, num_bytes: int, world: World) -> PlacementChoice:
    """Where the bank of a process goes.

    Args:
        options: Its options.
        num_bytes: Its size, see `bank_bytes`.
        world: The processes.

    Raises:
        UserError: Wrong placement, or too little memory.
    """
    with naming_options(**_OPTIONS):
        if options.placement == "auto":
            return choose_placement(num_bytes, world.device, processes=world.local_size)
        check_placement(options.placement, world.device)
        return PlacementChoice(options.placement, "asked for")


def bank_bytes(options: BankConfig, index: SampleIndex, samples: int) -> int:
    """Bytes of the bank rows of this many samples."""
    return samples * index.num_classes * getattr(torch, options.dtype).itemsize


@dataclass(frozen=True)
class LabelStatistics:
    """The training labels after an epoch, over all processes.

    Attributes:
        accuracy: Share of correct labels, None if unknown.
        changed: Share of labels that differ from the given ones.
        nonfinite_rows: Samples with non-finite logits since the last call.
        histograms: Distribution of the confidence, if there is a bank.
        refined: Refined labels of the samples of this process, int64 [n], on the CPU.
    """

    accuracy: float | None
    changed: float
    nonfinite_rows: int
    histograms: dict[str, Histogram]
    refined: Tensor


def label_statistics(
    bank: LabelBank | None, index: SampleIndex, rows: NDArray[np.int64], world: World
) -> LabelStatistics:
    """Statistics over all rows of the bank; without a bank, over the given labels.

    Args:
        bank: Bank of this process.
        index: All training samples.
        rows: Rows of ``index`` that this process owns, int64 [n].
        world: The processes.
    """
    given = torch.from_numpy(index.labels[rows])
    labels, nonfinite, histogram = given, 0, None
    if bank is not None:
        labels, nonfinite = bank.refined_labels().cpu(), bank.check()
        histogram = Histogram.of_probabilities(bank.confidence())
    correct = 0
    if index.clean_labels is not None:
        correct = int((labels == torch.from_numpy(index.clean_labels[rows])).sum())
    changed = int((labels != given).sum())
    parts = world.gather((correct, changed, nonfinite, histogram))
    all_correct, all_changed, all_nonfinite, histograms = zip(*parts, strict=True)
    return LabelStatistics(
        accuracy=None if index.clean_labels is None else sum(all_correct) / len(index),
        changed=sum(all_changed) / len(index),
        nonfinite_rows=sum(all_nonfinite),
        histograms={} if histogram is None else {"confidence": reduce(add, histograms)},
        refined=labels,
    )


def common_share(bank: LabelBank, history: SampleHistory | None, world: World) -> float | None:
    """`LabelBank.known_share` of the rows of all processes; all of them call this."""
    shares = set(world.gather(bank.known_share(history)))
    return shares.pop() if len(shares) == 1 else None


def share_facts(given_share: float | None) -> dict[str, str]:
    """`LabelBank.given_share` as metadata of a bank's file."""
    return {} if given_share is None else {GIVEN_SHARE: repr(given_share)}


def export_bank(
    path: Path,
    bank: LabelBank,
    history: SampleHistory,
    split: Split,
    rows: NDArray[np.int64],
    world: World,
) -> None:
    """Writes the rows of all processes into one file, ascending by sample id, in process 0.

    The file has all that `alr_fast.training.open_run` needs: ids, paths and labels, too.

    Args:
        path: The file.
        bank: Bank of this process.
        history: Sample history of this process.
        split: All training samples.
        rows: Rows of ``split`` that this process owns, int64 [n].
        world: The processes.

    Raises:
        SharedError: The file cannot be written.
    """
    parts = world.gather((rows, history.means()))
    share = common_share(bank, history, world)
    with bank.host_access(), ExitStack() as stack:
        # Whatever fails in process 0, the others wait for it only until they hear of it.
        writer = world.on_all_ranks(
            lambda: (
                stack.enter_context(_bank_writer(path, bank, split, parts, share))
                if world.main
                else None
            )
        )
        failure: Exception | None = None
        for some_rows, bank_rows in world.collect_rows(torch.from_numpy(rows), bank.rows):
            try:
                if writer is not None and failure is None:
                    writer.write(some_rows, bank_rows)
            except Exception as error:
                failure = error

        def finish() -> None:
            if failure is not None:
                raise failure
            stack.close()

        world.on_all_ranks(finish)


def _bank_writer(
    path: Path,
    bank: LabelBank,
    split: Split,
    parts: list[tuple[NDArray[np.int64], dict[str, Tensor]]],
    given_share: float | None,
) -> BankFileWriter:
    """The file of `export_bank`, with the rows and histories of all processes in ``parts``."""
    order = torch.from_numpy(np.argsort(np.concatenate([own for own, _ in parts])))
    columns = {name: torch.cat([means[name] for _, means in parts]) for name in COLUMNS}
    return BankFileWriter(
        path,
        num_samples=len(split),
        num_classes=split.index.num_classes,
        dtype=bank.rows.dtype,
        tensors={
            **{name: column[order] for name, column in columns.items()},
            **sample_columns(split.index),
        },
        metadata=sample_facts(split) | share_facts(given_share),
    )
