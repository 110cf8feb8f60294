"""Processes that load images: how they start, what they outlast, when they end."""

import os
import signal
import threading
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from typing import Any

from csrtrain.distributed import world_size

_STOPS = (signal.SIGTERM, signal.SIGUSR1)
_SAFE_PATH = "PYTHONSAFEPATH"


def loader_workers(workers: int) -> dict[str, Any]:
    """Arguments of a DataLoader that may run beside other ranks.

    A rank must not fork: a thread of torch.distributed may hold a lock of the interpreter just then, and the worker
    waits for it forever (CPython before 3.12, and any library's lock since). There a server that has no such threads
    forks the workers. It imports once what they need; a script that starts training needs
    `if __name__ == "__main__":`, as with any start method but fork.

    Args:
        workers: number of processes; 0 loads in this one.
    """
    if not workers:
        return {"num_workers": 0}
    if world_size() == 1:
        return {"num_workers": workers, "worker_init_fn": _begin}
    _start_server()
    return {"num_workers": workers, "worker_init_fn": _begin, "multiprocessing_context": get_context("forkserver")}


def as_is(found: Any) -> Any:
    """What a data set gave, where a DataLoader would gather or convert it."""
    return found


def _start_server() -> None:
    """Start the server that forks, unless it runs; signals that ask a run to stop do not reach it and its workers."""
    forkserver.set_forkserver_preload(["csrtrain.data.images", "csrtrain.data.comparisons"])  # of the data sets
    path = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"  # else a file of the working directory would be taken for a module
    try:
        resource_tracker.ensure_running()  # first: it unblocks what it has blocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        del os.environ[_SAFE_PATH]
        os.environ.update({} if path is None else {_SAFE_PATH: path})


def _begin(worker: int) -> None:
    """Ignore what asks a run to stop: the parent saves first, and then ends its workers. End when the parent is gone.

    SLURM sends SIGTERM and SIGUSR1 to all processes of a job; PyTorch's loader processes die of either. Of a parent
    that was killed they learn from their parent in the process table, which may be the server.
    """
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
