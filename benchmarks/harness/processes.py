"""Child processes for the cases of a benchmark.

By default a fork server creates them. It imports torch once, so that a process starts in a fraction
of a second and its memory is that of its case.
"""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

# The first DTensor imports torch._dynamo, which takes seconds.
_PRELOAD = ["alr_fast.training.checkpoint.store", "alr_fast.training.trainer", "torch._dynamo"]


class ChildFailed(RuntimeError):
    """A child process failed, died or did not answer in time.

    Attributes:
        reason: The cause in one line.
    """

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(details or reason)
        self.reason = reason


class Child:
    """A process that runs ``function(parent, *arguments)``.

    Args:
        function: A function at the top level of a module. It sends its answers through the
            connection ``parent``; ``parent.recv()`` raises an EOFError after `stop`.
        arguments: Its arguments, which are pickled.
        method: Start method of `multiprocessing`.
    """

    def __init__(self, function: Callable, *arguments: Any, method: str = "forkserver") -> None:
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(_PRELOAD)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(function, theirs, arguments), daemon=True
        )
        self._process.start()
        theirs.close()  # otherwise the end of the process would not close the pipe

    def send(self, value: Any) -> None:
        """Sends a message to the process."""
        self._connection.send(value)

    def receive(self, seconds: float) -> Any:
        """The next answer of the process.

        Raises:
            ChildFailed: It failed or died, or did not answer within this time.
        """
        try:
            if not self._connection.poll(seconds):
                raise ChildFailed(f"a process of the benchmark gave no answer in {seconds:g} s")
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            code = self._process.exitcode
            raise ChildFailed(
                f"a process of the benchmark died (exit code {code}); -9 usually means that it "
                "ran out of memory"
            ) from None
        if isinstance(answer, Failure):
            details = f"a process of the benchmark failed: {answer.traceback}"
            raise ChildFailed(answer.reason, details)
        return answer

    def stop(self) -> None:
        """Ends the process; one that has already finished is only waited for."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Failure(NamedTuple):
    """The answer of a process that failed."""

    reason: str  # in one line
    traceback: str


def serve(function: Callable, connection: Connection, arguments: tuple) -> None:
    """Runs the function of a `Child` and sends its error, if there is one."""
    try:
        function(connection, *arguments)
    except EOFError:
        pass
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        with contextlib.suppress(BrokenPipeError):
            connection.send(Failure(reason, traceback.format_exc()))
