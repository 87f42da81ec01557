"""Peaks of the memory of a process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SECONDS = 0.005  # between two samples


class MemoryWatch:
    """Samples the anonymous memory of this process in a ``with`` block, relative to its start.

    Mapped files are not included: the kernel can reclaim their pages.

    Attributes:
        peaks: Highest rise in bytes, by phase.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._start = 0
        self._phase: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._start = _anonymous()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the peak of a block under a name."""
        self._phase = name
        self._sample()
        try:
            yield
        finally:
            self._sample()
            self._phase = None

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS):
            self._sample()

    def _sample(self) -> None:
        phase = self._phase
        if phase is not None:
            self.peaks[phase] = max(self.peaks.get(phase, 0), _anonymous() - self._start)


def _anonymous() -> int:
    """Bytes of memory of this process that are not backed by a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon: Linux is needed")
