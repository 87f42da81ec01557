"""Stopping a run from outside so that it can be resumed: SIGTERM, SIGUSR1 as Slurm sends it, and
Ctrl-C (SIGINT). SIGTERM and Ctrl-C stop it at once when they come again."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# EX_TEMPFAIL of sysexits.h: the same command can succeed when it is repeated.
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130  # by Ctrl-C, as in a shell

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Processes get the same signal twice: from the terminal or Slurm, and from torchrun. After these
# seconds it counts as another one.
_SECONDS_OF_TORCHRUN = 5.0
_SECONDS_OF_SLURM = 10.0
_STOPPING = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n"


class StopSignals:
    """Records that a signal came instead of ending the process. A context manager.

    Before and after it, signals have their usual effect, also in calls that do not return to
    Python. In a thread, which gets no signals, it changes nothing.

    Attributes:
        received: Name of the last signal, or None.
        armed: Whether steps run, after which a checkpoint can be written. Before, Ctrl-C stops at
            once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.armed = False
        self._since = 0.0

    def __enter__(self) -> "StopSignals":
        self._before: dict[int, Any] = {}
        if _in_main_thread():
            self._before = {number: signal.signal(number, self._record) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, which cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def steps(self) -> Iterator[None]:
        """A block in which steps run."""
        self.armed = True
        try:
            yield
        finally:
            self.armed = False

    @property
    def exit_status(self) -> int:
        """Exit status of a stopped run."""
        return EXIT_INTERRUPTED if self.received == "SIGINT" else EXIT_STOPPED

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and not self.armed:
            raise KeyboardInterrupt
        if self.received is not None:
            self._repeated(number, time.monotonic() - self._since)
            return
        self.received, self._since = signal.Signals(number).name, time.monotonic()
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            os.write(2, _STOPPING)  # print could be in the middle of a line

    def _repeated(self, number: int, seconds: float) -> None:
        """Stops at once, if the step or the checkpoint takes too long for somebody."""
        if number == signal.SIGINT:
            if seconds >= (_SECONDS_OF_TORCHRUN if "TORCHELASTIC_RUN_ID" in os.environ else 0.0):
                raise KeyboardInterrupt
        elif number == signal.SIGTERM and seconds >= _SECONDS_OF_SLURM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """A block with a long call that does not return to Python: Ctrl-C ends the process there."""
    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Stopped(Exception):
    """A signal came, and a checkpoint was written."""
