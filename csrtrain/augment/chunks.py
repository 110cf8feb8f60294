"""Work on a CPU in chunks of a batch, each done by one thread from start to end.

Threads inside every operation meet at its end. With as many busy processes as cores (loader workers, other ranks) one
of them is often asleep then, and views of thousands of small operations were 25 times slower; chunks meet once.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def for_each_chunk(work: Callable[[slice], None], n: int, size: int) -> None:
    """Call `work` with slices of at most `size` that cover range(n), in as many threads as torch uses."""
    for_each(work, [slice(start, min(start + size, n)) for start in range(0, n, size)])


def for_each(work: Callable[[T], None], items: Sequence[T]) -> None:
    """Call `work` with each item, in as many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads == 1:
        for item in items:
            work(item)
    else:
        list(_pool(os.getpid(), threads).map(work, items))  # raises what `work` raises


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads in which torch's operations run alone; one pool per process, because a fork has no threads."""
    started = threading.Barrier(threads)

    def start(_: int) -> None:
        torch.get_num_threads()  # a thread takes the common number at its first operation
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="csrtrain-views")
    list(pool.map(start, range(threads)))
    torch.set_num_threads(threads)  # what a thread sets is also what later threads begin with
    return pool
