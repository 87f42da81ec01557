"""Work in threads, in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Results of a function for each item, in order; threads compute ahead of the caller.

    `Executor.map` submits all items at once, which may be millions.

    Args:
        function: Runs in threads.
        items: Iterated in the thread of the caller.
        workers: Threads; at least one is started.
        ahead: Items that are submitted while the next result is awaited.
    """
    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        futures: deque[Future[Result]] = deque()
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
