"""Contrastive losses beside lightly's `NTXentLoss` and CONTRIQUE's dense formulation: time, peak memory, equality.

    python -m benchmarks losses

Forward and backward pass, float32, 128 dimensions. InfoNCE includes what each side does to its queue: lightly's memory
bank is copied and updated inside the loss, ours is updated by `Queue.enqueue`. Both contrast with the keys from before
the update. The dense formulation of CONTRIQUE's loss is written here from its description: a label matrix, its product
with itself as mask, and the matrix of all similarities.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor

from benchmarks import harness
from csrtrain.losses.distortion_contrast import distortion_contrast
from csrtrain.losses.info_nce import info_nce
from csrtrain.losses.nt_xent import nt_xent
from csrtrain.models.momentum import Queue

ROUNDS = 7
DIM = 128
MIB = 2**20

Step = Callable[[], tuple[Tensor, Tensor]]


def _step(loss: Callable[[Tensor], Tensor], z: Tensor) -> Step:
    """Loss and gradient with respect to all projections that carry one."""

    def step() -> tuple[Tensor, Tensor]:
        leaf = z.detach().requires_grad_()
        value = loss(leaf)
        value.backward()
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    return step


def _product(flops: float) -> Callable[[], object]:
    """As many floating-point operations in the matrix products that the machine does best: large and square."""
    a, b, out = torch.randn(3, 1024, 1024)
    count = round(flops / (2 * 1024**3))

    def products() -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    return products


def _rows(
    what: str, ours: Step, peer: Step, flops: float, floor: float, targets: tuple[float, float]
) -> list[dict[str, object]]:
    """Time, memory and equality of one loss; `floor` is the memory in bytes that no implementation can avoid."""
    (loss, gradient), (peer_loss, peer_gradient) = ours(), peer()
    difference = float((loss - peer_loss).abs())
    largest = float((gradient - peer_gradient).abs().max())
    relative = float((gradient - peer_gradient).norm() / peer_gradient.norm())
    times = harness.interleave({"ours": ours, "peer": peer, "products": _product(flops)}, ROUNDS)
    memory, peer_memory = harness.peak_memory(ours), harness.peak_memory(peer)
    share = times["products"] / times["ours"]
    limit = (
        f"its {flops / 1e9:.1f} GFLOP as bare square products: {times['products'] * 1e3:.0f} ms, {share:.0%} of ours"
    )
    return [
        harness.compared(f"{what}: ms", times["ours"] * 1e3, times["peer"] * 1e3, targets[0], limit),
        harness.compared(
            f"{what}: peak MiB",
            memory / MIB,
            peer_memory / MIB,
            targets[1],
            f"normalised projections and their gradient: {floor / MIB:.1f} MiB",
        ),
        {
            "what": f"{what}: difference of loss, largest of gradient (relative norm)",
            "ours": f"{difference:.1e}, {largest:.1e} ({relative:.1e})",
            "target": "<= 1e-6",
            "verdict": "met" if max(difference, largest) <= 1e-6 else "missed",
        },
    ]


def _class_ids(images: int = 512, classes: int = 126) -> Tensor:
    """Ids of the 8 patches (two views) of as many synthetic images, each of a class, and authentic ones."""
    synthetic = torch.randint(classes, (images,), generator=torch.Generator().manual_seed(1))
    return torch.cat([synthetic, classes + torch.arange(images)]).repeat(2).repeat_interleave(4)


def _dense(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """CONTRIQUE's loss with a label matrix (N,K): the mean over anchors of log-sum-exp less the mean of positives."""
    z = F.normalize(z, dim=1)
    similarity = z @ z.T / temperature
    positives = (labels @ labels.T).fill_diagonal_(0)
    others = torch.ones_like(similarity).fill_diagonal_(0)
    denominator = (similarity.exp() * others).sum(1)
    return (denominator.log() - (positives * similarity).sum(1) / positives.sum(1)).mean()


def run() -> harness.Result:
    """N = 8192 projections; 1,024 queries against 65,536 keys."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8192, DIM, generator=generator)
    theirs = NTXentLoss(temperature=0.1)
    rows = _rows(
        "NT-Xent, N = 8,192",
        _step(lambda leaf: nt_xent(leaf[:4096], leaf[4096:], 0.1), z),
        _step(lambda leaf: theirs(leaf[:4096], leaf[4096:]), z),
        # Two products of the upper triangle for the logits, and one of the whole matrix for the gradient.
        2 * 2 * 8192 * 8192 * DIM,
        2 * 4 * 8192 * DIM,
        (3.0, 15.0),
    )
    query, key = torch.randn(2, 1024, DIM, generator=generator)
    queue = Queue(65536, DIM)
    bank = NTXentLoss(temperature=0.2, memory_bank_size=(65536, DIM))
    bank.memory_bank.bank = queue.rows.clone()

    def with_queue(leaf: Tensor) -> Tensor:
        loss = info_nce(leaf, key, queue.rows, 0.2)
        queue.enqueue(key)
        return loss

    rows += _rows(
        "InfoNCE, 1,024 queries, queue of 65,536",
        _step(with_queue, query),
        _step(lambda leaf: bank(leaf, key), query),
        2 * 2 * 1024 * 65536 * DIM,
        2 * 4 * 1024 * DIM,
        (1.0, 4.0),
    )
    ids = _class_ids()
    labels = F.one_hot(ids).float()
    rows += _rows(
        "Distortion contrast, N = 8,192, peer: dense one-hot",
        _step(lambda leaf: distortion_contrast(leaf, ids, 0.1), z),
        _step(lambda leaf: _dense(leaf, labels, 0.1), z),
        2 * 2 * 8192 * 8192 * DIM,
        2 * 4 * 8192 * DIM,
        (2.5, 20.0),
    )
    notes = [
        f"Forward and backward, float32, d = {DIM}; times: medians of {ROUNDS} interleaved rounds.",
        "Memory: rise of the resident set at its highest in one call.",
        "InfoNCE includes the update of the queue on both sides; lightly also copies its bank in every call.",
        "Distortion contrast: 512 synthetic images of 126 classes and 512 authentic ones, two views of four patches "
        "each; the label matrix of the peer is made beforehand and not counted.",
        "NT-Xent as lightly or one pass over rows computes it takes three full products; the symmetric form takes two.",
    ]
    return harness.Result(
        "losses",
        "Contrastive losses, ours beside lightly and CONTRIQUE's dense form",
        rows,
        notes,
        ("torch", "lightly"),
    )
