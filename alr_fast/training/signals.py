"""Stopping a run from outside so that it can go on later: SIGTERM, and Slurm's SIGUSR1."""

import signal
from types import FrameType

# sysexits.h calls it "temporary failure": the same command succeeds when it is tried again.
EXIT_STOPPED = 75

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes that a signal came, instead of ending the process. A context manager.

    Attributes:
        received: Name of the last signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


class Stopped(Exception):
    """A signal came, and a checkpoint was written."""
