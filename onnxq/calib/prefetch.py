"""Reading ahead in threads: what is decoded while a model runs costs no time of its own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar, cast

S = TypeVar("S")
T = TypeVar("T")

MOST_WORKERS = 4
"""Threads that decode, at the most: from here on the disk or the model is slower."""


def decode_workers() -> int:
    """How many threads decode files: one per core of this process, up to `MOST_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores))


def prefetch(iterator: Iterator[T], depth: int = 8) -> Iterator[T]:
    """Give the items of `iterator`, taken in a thread of its own up to `depth` ahead.

    Order and errors are kept. The thread ends when the iteration ends, fails or is abandoned; a
    generator is closed then.

    Args:
        iterator: Used in the thread only.
        depth: How many finished items may wait.
    """
    end = object()
    try:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnxq-prefetch") as thread:
            waiting = deque(thread.submit(next, iterator, end) for _ in range(depth))
            try:
                while (item := waiting.popleft().result()) is not end:
                    waiting.append(thread.submit(next, iterator, end))
                    yield cast(T, item)
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def in_order(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """Give ``function(item)`` for each item, in their order, computed by several threads a little ahead.

    An error comes in the place of its result; what is behind it is dropped. The threads end when the
    iteration ends, fails or is abandoned.

    Args:
        function: Called in the threads.
        items: Taken in the caller's thread.
        workers: How many threads; with one, nothing is computed ahead and no thread is started.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    rest = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="onnxq-decode") as pool:
        waiting: deque[Future[T]] = deque(pool.submit(function, item) for item in islice(rest, 2 * workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
