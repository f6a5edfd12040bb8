"""Work on items in threads, a few items ahead of whoever takes the results; these keep their order.

For work that lets the interpreter go (a library in another language, a process): what is left to
Python takes turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PER_THREAD = 2
"""Items under way per thread: one that is worked on, and one behind it."""


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], threads: int
) -> Generator[tuple[Item, Result]]:
    """(item, work(item)) of each, in order. `threads` below 2 do it here, when it is asked for.

    Items are taken in the caller's thread, at most `PER_THREAD` for a thread ahead of the results.
    What `items` or `work` raise comes at its place. Whoever stops asking should close the iterator:
    then no work begins any more, and what runs is left to its end.
    """
    if threads < 2:
        for item in items:
            yield item, work(item)
        return
    under_way: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        rest = iter(items)
        failed: Exception | None = None
        while failed is None:
            try:
                item = next(rest)
            except StopIteration:
                break
            except Exception as error:  # of the reader: what came before it is still to be told
                failed = error
                break
            under_way.append((item, pool.submit(work, item)))
            if len(under_way) >= PER_THREAD * threads:
                item, future = under_way.popleft()
                yield item, future.result()
        while under_way:
            item, future = under_way.popleft()
            yield item, future.result()
        if failed is not None:
            raise failed
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
