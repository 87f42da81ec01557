"""Standard output and error of a command, whatever they are connected to."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from typing import Any, TextIO, cast


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """A block whose output cannot end it.

    The reader of a pipe may leave, a terminal be closed, or the disk of a log be full: a training
    then goes on without output. Characters that the encoding lacks are escaped. Streams that were
    closed from the start accept everything.
    """
    before = sys.stdout, sys.stderr
    try:
        sys.stdout = _lasting(sys.stdout, "standard output")
        sys.stderr = _lasting(sys.stderr, "standard error")
        yield
    finally:
        with contextlib.suppress(ValueError):  # closed by somebody else
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None, name: str) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
        with contextlib.suppress(ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")
    return cast(TextIO, _Stream(stream, name))


class _Stream:
    """A text stream that is emptied into nothing once it cannot be written."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            self._abandon()
            print(
                f"warning: {self._name}: {error.strerror or error}; going on without it",
                file=sys.stderr,
            )

    def _abandon(self) -> None:
        # In place of the file itself: what is buffered, and output of other code, goes there, too.
        with contextlib.suppress(OSError, ValueError):
            handle = self._stream.fileno()
            nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nothing, handle)
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
