"""Stopping a run from outside so that it can be resumed: SIGTERM, and SIGUSR1 as Slurm sends it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# EX_TEMPFAIL of sysexits.h: the same command can succeed when it is repeated.
EXIT_STOPPED = 75

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Records that a signal came instead of ending the process. A context manager.

    Attributes:
        received: Name of the last signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._record) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


@contextmanager
def interruptible() -> Iterator[None]:
    """A block with a long call that does not return to Python: Ctrl-C ends the process there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Stopped(Exception):
    """A signal came, and a checkpoint was written."""
