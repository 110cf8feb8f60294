"""Flags on which all ranks agree, at the same step, without a step that waits for the device."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from csrtrain.distributed import rank, world_size

LAG = 2  # votes that may be under way on a GPU


class Agreement:
    """Votes, one after another; the verdict on each is the largest vote of all ranks.

    On the CPU (gloo) a vote is a reduce of one number, read at once. On a GPU the reduce and the copy into pinned
    memory are queued like any kernel and read `LAG` votes later, when they have long been done: the host never waits,
    and all ranks read the same verdict after the same vote.

    Args:
        lag: votes that may be under way; by default 0 on the CPU and `LAG` on a GPU.
    """

    def __init__(self, lag: int | None = None) -> None:
        self._lag = lag
        self._under_way: deque[tuple[Tensor, Any, Any]] = deque()

    @property
    def is_open(self) -> bool:
        """Whether a verdict is not yet read."""
        return bool(self._under_way)

    def vote(self, value: Tensor, about: Any = None) -> Tensor:
        """Reduce `value`, a 0-dim integer tensor of this rank, in place; `about` comes back with the verdict."""
        if world_size() > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        read, event = value, None
        if value.is_cuda:
            read = torch.empty_like(value, device="cpu", pin_memory=True)
            read.copy_(value, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._under_way.append((read, event, about))
        return value

    def verdicts(self, all_of_them: bool = False) -> Iterator[tuple[int, Any]]:
        """Those that can be read by now, oldest first; all of them waits for the device."""
        while self._under_way:
            read, event, about = self._under_way[0]
            lag = self._lag if self._lag is not None else LAG if event is not None else 0
            if len(self._under_way) <= lag and not all_of_them:
                return
            self._under_way.popleft()
            if event is not None:
                event.synchronize()
            yield int(read), about


def raise_on_all(error: Exception) -> None:
    """End all ranks for a reason that all of them know, and let the first one say it."""
    if rank() == 0:
        raise error
    raise SystemExit(2)


def gathered(value: Any) -> list[Any]:
    """Of each rank its own, in rank order."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found
