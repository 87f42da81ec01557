"""torch.distributed.checkpoint (DCP), with errors that all ranks share."""

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.storage import WriteResult

from alr_fast.errors import UserError
from alr_fast.training import distributed
from alr_fast.training.checkpoint.metadata import check_archives

_T = TypeVar("_T")


def on_all_ranks(step: Callable[[], _T], group: dist.ProcessGroup | None = None) -> _T:
    """Runs a step on every rank of a group, by default all, and returns its result on this rank.

    Raises:
        SharedError: The step raised an `Exception` on a rank.
    """

    def explained() -> _T:
        try:
            return step()
        except Exception as error:
            raise UserError(reason(error)) from error

    return distributed.on_all_ranks(explained, lambda value: distributed.gather(value, group))


def reason(error: BaseException) -> str:
    """Returns the cause of a failure in one line.

    torch.save and torch.load hide an error of the disk behind a RuntimeError ("unexpected pos").
    """
    if isinstance(error, UserError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror + (f" ({cause.filename})" if cause.filename else "")
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def save_tensors(tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup) -> None:
    """Writes tensors into a folder; all ranks of the group call this.

    A failure of this rank's writes, interruptions included, is raised after all ranks have written.
    """
    # No copies ahead: copies of GPU tensors need no stream of their own, the disk is slower.
    writer = _Writer(folder, sync_files=True, per_thread_copy_ahead=0)
    writer.fs = _ExistingFolder()
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    _call_dcp(
        lambda: dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group)
    )
    if writer.failure is not None:
        raise writer.failure


def load_tensors(tensors: dict[str, Tensor], folder: Path, metadata: dcp.Metadata) -> None:
    """Reads tensors from a folder, in place; each rank reads independently of the others.

    Args:
        tensors: By name.
        folder: The folder.
        metadata: From `read_metadata`: DCP's own reader would run what the file asks for.
    """
    check_archives(metadata, set(tensors), folder)
    planner = _TensorPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = _Reader(folder, metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no_dist warns that it is intended for a single process
        _call_dcp(lambda: dcp.load(tensors, storage_reader=reader, planner=planner, no_dist=True))


def _call_dcp(call: Callable[[], object]) -> None:
    """Calls DCP and raises the failure itself, an interruption before others, not the wrapper."""
    try:
        call()
        return
    except CheckpointException as error:  # not an Exception
        failures = [failure for failure, _ in error.failures.values()]
    # Outside of the handler, which would overwrite the failure's own context.
    raise min(failures, key=lambda failure: isinstance(failure, Exception))


class _Reader(dcp.FileSystemReader):
    """DCP's reader with metadata that have been read and checked."""

    def __init__(self, folder: Path, metadata: dcp.Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
        return self._metadata


class _TensorPlanner(dcp.DefaultLoadPlanner):
    """DCP's planner without objects, which it would unpickle."""

    def load_bytes(self, read_item: dcp.ReadItem, value: io.BytesIO) -> None:
        raise UserError("the checkpoint contains an object that is not a tensor")


class _ExistingFolder(FileSystem):
    """Files in a folder that exists: if it was moved away since, nothing is made in its place."""

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        pass


class _Writer(dcp.FileSystemWriter):
    """DCP's writer, but it keeps a failure for the caller.

    DCP would catch the failure, interruptions included, and pickle it for the other ranks. That
    loses the OSError beneath torch.save's error. With torch 2.11 on Python 3.13 the pickling fails
    in turn, on one rank only, while the others wait.
    """

    failure: BaseException | None = None

    def write_data(
        self, plan: dcp.SavePlan, planner: dcp.SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except BaseException as error:
            self.failure = error
            nothing: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
            nothing.set_result([])
            return nothing

    def finish(self, metadata: dcp.Metadata, results: list[list[WriteResult]]) -> None:
        try:
            super().finish(metadata, results)
        except BaseException as error:
            self.failure = error
