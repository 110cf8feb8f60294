"""NT-Xent and InfoNCE beside lightly's: time, peak memory, equality."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor

from benchmarks import harness
from csrtrain.losses.info_nce import info_nce
from csrtrain.losses.nt_xent import nt_xent

ROUNDS = 9


def _step(loss: Callable[[Tensor, Tensor], Tensor], z0: Tensor, z1: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    def step() -> tuple[Tensor, Tensor]:
        z = z0.detach().requires_grad_()
        value = loss(z, z1)
        value.backward()
        assert z.grad is not None
        return value.detach(), z.grad

    return step


def _row(
    what: str,
    ours: Callable[[], tuple[Tensor, Tensor]],
    peer: Callable[[], tuple[Tensor, Tensor]],
    flops: float,
    targets: tuple[float, float],
) -> dict[str, object]:
    (loss, gradient), (peer_loss, peer_gradient) = ours(), peer()
    times = harness.interleave({"ours": ours, "lightly": peer, "product": _product(flops)}, ROUNDS)
    memory, peer_memory = harness.peak_memory(ours), harness.peak_memory(peer)
    faster, smaller = times["lightly"] / times["ours"], peer_memory / max(memory, 1)
    return {
        "what": what,
        "ours ms": times["ours"] * 1e3,
        "lightly ms": times["lightly"] * 1e3,
        "times faster": faster,
        "target": targets[0],
        "ours MiB": memory / 2**20,
        "lightly MiB": peer_memory / 2**20,
        "times smaller": smaller,
        "target ": targets[1],
        "loss difference": float((loss - peer_loss).abs()),
        "largest gradient difference": float((gradient - peer_gradient).abs().max()),
        "share of the time that the matrix products alone take": times["product"] / times["ours"],
        "met": faster >= targets[0] and smaller >= targets[1],
    }


def _product(flops: float) -> Callable[[], object]:
    """A matrix product (chunk x 128 x 8192) as often as the floating-point operations ask for: the physical limit."""
    a, b = torch.randn(512, 128), torch.randn(128, 8192)
    count = round(flops / (2 * 512 * 128 * 8192))

    def products() -> None:
        for _ in range(count):
            a @ b

    return products


def run() -> harness.Result:
    """N = 8192 projections of 128 dimensions; 1,024 queries against 65,536 keys."""
    generator = torch.Generator().manual_seed(0)
    z0, z1 = (torch.randn(4096, 128, generator=generator) for _ in range(2))
    both = torch.cat([z0, z1])
    theirs = NTXentLoss(temperature=0.1)
    rows = [
        _row(
            "NT-Xent, N = 8192",
            _step(lambda z, _: nt_xent(z[:4096], z[4096:], 0.1), both, z1),
            _step(lambda z, _: theirs(z[:4096], z[4096:]), both, z1),
            3 * 2 * 8192 * 8192 * 128,
            (3.0, 15.0),
        )
    ]
    bank = NTXentLoss(temperature=0.2, memory_bank_size=(65536, 128))
    keys = F.normalize(torch.randn(65536, 128, generator=generator), dim=1)

    bank.memory_bank.bank = keys.clone()  # lightly keeps (K,d) and replaces a batch of it after each call
    rows.append(
        _row(
            "InfoNCE, 1,024 queries, queue 65,536",
            _step(lambda z, key: info_nce(z, key, keys, 0.2), z0[:1024], z1[:1024]),
            _step(bank, z0[:1024], z1[:1024]),
            2 * 2 * 1024 * 65536 * 128,
            (1.0, 4.0),
        )
    )
    notes = [
        "Forward and backward, float32, median of interleaved calls; memory: rise of the resident set in one call.",
        "lightly's figures for InfoNCE include its copy and update of the bank; ours keeps the queue outside the loss.",
    ]
    return harness.Result("losses", "Contrastive losses, ours beside lightly", rows, notes, ("torch", "lightly"))
