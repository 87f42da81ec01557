"""torch.distributed.checkpoint with errors that all ranks share."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from alr_fast.errors import SharedError, UserError

_T = TypeVar("_T")


def _reason(error: BaseException) -> str:
    """Why something failed, in one line.

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


def _on_all_ranks(step: Callable[[], _T], group: dist.ProcessGroup | None) -> list[_T]:
    """Runs a step on every rank: the results of all ranks, or on all the error of the first.

    Raises:
        SharedError: the step failed on a rank.
    """
    try:
        mine: tuple[bool, Any] = (True, step())
    except Exception as error:
        mine = (False, _reason(error))
    everyone: list[tuple[bool, Any]] = [mine] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    for succeeded, value in everyone:
        if not succeeded:
            raise SharedError(value)
    return [value for _, value in everyone]


def _call_dcp(call: Callable[[], object]) -> None:
    """Calls DCP and raises what went wrong, an interruption first, not the wrapper around it."""
    try:
        call()
        return
    except CheckpointException as error:  # not an Exception
        failures = [failure for failure, _ in error.failures.values()]
    # Outside of the handler, which would overwrite the failure's own context.
    raise min(failures, key=lambda failure: isinstance(failure, Exception))


class _Writer(dcp.FileSystemWriter):
    """DCP's writer, but a failure is kept here, for the caller to look at when DCP is through.

    DCP would catch it, interruptions too, and pickle it for the other ranks. That loses the OSError
    beneath torch.save's error, and with torch 2.11 on Python 3.13 the pickling fails in turn, on
    one rank only, while the others wait.
    """

    failure: BaseException | None = None

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except BaseException as error:
            self.failure = error
            nothing: torch.futures.Future = torch.futures.Future()
            nothing.set_result([])
            return nothing

    def finish(self, metadata: Any, results: Any) -> None:
        try:
            super().finish(metadata, results)
        except BaseException as error:
            self.failure = error

    def raise_failure(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
