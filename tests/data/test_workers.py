"""Loader workers of one process and of two gloo ranks: where they come from, what they outlast, when they end."""

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from csrtrain.data.workers import loader_workers

STOPS = (signal.SIGTERM, signal.SIGUSR1)


class Processes(Dataset):
    """Who loads each sample: its process and that one's parent."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        time.sleep(0.05)
        return os.getpid(), os.getppid()


def load(signalled):
    """The samples of two workers; after the first, those who load and `signalled` of their parents are sent signals."""
    found = []
    for sample in DataLoader(Processes(), batch_size=None, **loader_workers(2)):
        found.append(sample)
        if len(found) == 4:
            for process in {pid for pid, _ in found} | ({parent for _, parent in found} if signalled else set()):
                for number in STOPS:
                    os.kill(process, number)
    return found


def rank_process(folder, rank):
    """Load on one of two ranks, say by whom, and be killed while the workers load on."""
    os.chdir(folder)
    Path("random.py").write_text("raise RuntimeError('not the module of that name')")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = load(signalled=True)
    workers = iter(DataLoader(Processes(), batch_size=None, **loader_workers(2)))
    found += [next(workers), next(workers)]
    Path(folder, f"{rank}.part").write_text("\n".join(f"{pid} {parent}" for pid, parent in found))
    Path(folder, f"{rank}.part").rename(Path(folder, f"{rank}.txt"))
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def state(process):
    """Its letter in the process table, '' when it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_without_workers_this_process_loads():
    assert {pid for pid, _ in DataLoader(Processes(), batch_size=None, **loader_workers(0))} == {os.getpid()}


def test_workers_of_one_process_are_its_children_and_outlast_what_asks_it_to_stop():
    found = load(signalled=False)
    assert len(found) == 12 and len({pid for pid, _ in found}) == 2
    assert {parent for _, parent in found} == {os.getpid()}


@pytest.mark.ddp
def test_ranks_do_not_fork_and_their_workers_outlast_signals_and_end_with_them(tmp_path):
    context = get_context("spawn")
    ranks = [context.Process(target=rank_process, args=(tmp_path, rank)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [-signal.SIGKILL] * 2
    rows = [[tuple(map(int, line.split())) for line in (tmp_path / f"{i}.txt").read_text().split("\n")] for i in (0, 1)]
    for process, found in zip(ranks, rows, strict=True):
        assert len(found) == 14
        assert len({pid for pid, _ in found[:12]}) == 2  # none was replaced
        parents = {parent for _, parent in found}
        assert len(parents) == 1 and process.pid not in parents
    assert {parent for _, parent in rows[0]} != {parent for _, parent in rows[1]}
    others = {process for found in rows for row in found for process in row}
    deadline = time.monotonic() + 20
    while left := [process for process in others if state(process) not in ("", "Z")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
