"""Stopping a run from outside so that it can be resumed: SIGTERM, SIGUSR1 as Slurm sends it, and
Ctrl-C (SIGINT), which stops it at once when it comes again."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# EX_TEMPFAIL of sysexits.h: the same command can succeed when it is repeated.
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130  # by Ctrl-C, as in a shell

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# After a Ctrl-C its processes get the signal from the terminal and from torchrun.
_SECONDS_OF_TORCHRUN = 5.0
_STOPPING = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n"


class StopSignals:
    """Records that a signal came instead of ending the process. A context manager.

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
        self._before = {number: signal.signal(number, self._record) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
        again = self.received is not None
        if number == signal.SIGINT and not self.armed:
            raise KeyboardInterrupt
        if again and number == signal.SIGINT:
            wait = _SECONDS_OF_TORCHRUN if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
            if time.monotonic() - self._since >= wait:
                raise KeyboardInterrupt
            return
        self.received, self._since = signal.Signals(number).name, time.monotonic()
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            os.write(2, _STOPPING)  # print could be in the middle of a line


class Stopped(Exception):
    """A signal came, and a checkpoint was written."""
