"""Processes of their own for cases of a benchmark, which a fork server makes.

The server imports torch once, so that a process is there in a fraction of a second, and its memory
is that of its case.
"""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_context = multiprocessing.get_context("forkserver")
# The first DTensor imports torch._dynamo, which takes seconds.
_PRELOAD = ["alr_fast.training.checkpoint.store", "alr_fast.training.trainer", "torch._dynamo"]


class Child:
    """A process that runs ``function(connection, *arguments)``.

    Args:
        function: Of a module that a new process can import; it answers through its connection.
        arguments: Of it, as they can be pickled.
    """

    def __init__(self, function: Callable, *arguments: Any) -> None:
        _context.set_forkserver_preload(_PRELOAD)
        self._connection, theirs = _context.Pipe()
        self._process = _context.Process(
            target=_run, args=(function, theirs, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, value: Any) -> None:
        """Tells it something."""
        self._connection.send(value)

    def receive(self, seconds: float) -> Any:
        """What it answers.

        Raises:
            RuntimeError: It failed, died, or does not answer for so many seconds.
        """
        try:
            if not self._connection.poll(seconds):
                raise RuntimeError(f"a process of the benchmark gave no answer in {seconds:g} s")
            succeeded, value = self._connection.recv()
        except EOFError:
            self._process.join(5)
            code = self._process.exitcode
            raise RuntimeError(
                f"a process of the benchmark died (exit code {code}); -9 is what a process gets "
                "that takes more memory than there is"
            ) from None
        if not succeeded:
            raise RuntimeError(f"a process of the benchmark failed: {value}")
        return value

    def stop(self) -> None:
        """Ends it; one that is through already has ended by itself."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Answers:
    """The end of the connection that a child has."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, value: Any) -> None:
        """Answers."""
        self._connection.send((True, value))

    def receive(self) -> Any:
        """What the parent says.

        Raises:
            EOFError: The parent has stopped this.
        """
        return self._connection.recv()


def _run(function: Callable, connection: Connection, arguments: tuple) -> None:
    try:
        function(Answers(connection), *arguments)
    except EOFError:
        pass
    except BaseException:
        with contextlib.suppress(BrokenPipeError):
            connection.send((False, traceback.format_exc()))
