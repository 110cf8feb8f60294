"""MoCo's slowly moving copy and its queue of keys."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from csrtrain.distributed import gather


def update_momentum(online: nn.Module, momentum_copy: nn.Module, momentum: float) -> None:
    """copy = momentum * copy + (1 - momentum) * online, for all parameters (arXiv 1911.05722, equation 2).

    Buffers are left alone: the copy keeps the batch statistics of its own forward passes.
    """
    update = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
    update(list(momentum_copy.parameters()), list(online.parameters()), None)


class Queue(nn.Module):
    """The last `size` keys of all ranks, equal on every rank and kept in the checkpoint.

    Args:
        size: keys kept, K. A batch need not divide it: writing wraps around.
        dim: dimension of a key.
        seed: of the random unit vectors that fill it at first.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"Expected a queue of at least 1 key, got {size}. Raise model.queue_size.")
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.pointer = 0

    def get_extra_state(self) -> dict[str, Any]:
        """Where the next key goes; on the host, so that no step reads the device."""
        return {"pointer": self.pointer}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.pointer = int(state["pointer"])

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by the keys (B,d) of all ranks, L2-normalised."""
        keys = F.normalize(gather(keys.to(self.rows.dtype)), dim=1)
        size, count = len(self.rows), len(keys)
        start = (self.pointer + max(0, count - size)) % size
        keys = keys[-size:]  # of more keys than fit, the last stay
        first = min(len(keys), size - start)
        self.rows[start : start + first] = keys[:first]
        self.rows[: len(keys) - first] = keys[first:]
        self.pointer = (self.pointer + count) % size
