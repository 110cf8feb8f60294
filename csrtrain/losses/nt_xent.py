"""NT-Xent, the loss of SimCLR."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from csrtrain.distributed import gather, rank, world_size
from csrtrain.losses.chunked import BITS, block_length, check, first_derivative, full_precision, normalised


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al., arXiv 2002.05709, equation 1).

    Each of the 2B local projections is an anchor; its positive is the other view of its image, its negatives are all
    other projections of all ranks. With DDP's mean over ranks, loss and gradient equal those of one process on the
    whole batch. Computed in float32 (float64 for float64 input), also under autocast. No second derivative.

    Args:
        z0, z1: (B,d) projections of the two views, same order; any scale; the same B on every rank.
        temperature: of the softmax, > 0.

    Returns:
        Scalar, the mean over the local anchors.

    Raises:
        ValueError: shapes differ, the temperature is not positive, or there is no negative.
    """
    check(temperature, z0=z0, z1=z1)
    if z0.shape != z1.shape:
        raise ValueError(f"Expected as many rows in both views, got {len(z0)} and {len(z1)}. Pass matching views.")
    if len(z0) * world_size() < 2:
        raise ValueError(f"Expected at least 2 images in the global batch, got {len(z0)}. Raise data.batch_size.")
    with full_precision(z0.device):
        loss: Tensor = _NTXent.apply(torch.cat([normalised(z0), normalised(z1)]), temperature)
        return loss


class _NTXent(torch.autograd.Function):
    """(2B,d) normalised projections of this rank, one view below the other -> mean over its anchors.

    With s_ij the logits and lse_i the log of the sum over j != i of exp(s_ij), the loss of anchor i is
    lse_i - s_i,positive, and the gradient of all anchors' losses at z_i is, times the temperature,
    sum_j (p_ij + p_ji) z_j - 2 z_positive, where p_ij = exp(s_ij - lse_i). So a rank needs the lse of all anchors, but
    no gradient from other ranks, and computes in two passes over blocks of logits: lse first, then the gradient. That
    all ranks weigh their loss alike (DDP's mean) is taken for granted. In one process s is symmetric and only its
    upper triangle is computed: two thirds of the products of one pass that takes gradients of rows and columns.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float) -> Tensor:
        columns, bits = gather(z), BITS / temperature
        positive = z.roll(len(z) // 2, 0)  # the other view of an image is on the same rank
        lse = _log_sums(z, columns, bits)
        loss = (lse.double() - (z * positive).sum(1).double() * bits).mean() / BITS
        if ctx.needs_input_grad[0]:
            grad = _pulls(z, columns, bits, lse).sub_(positive, alpha=2)
            ctx.save_for_backward(grad.div_(len(z) * temperature))
        return loss.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return first_derivative(ctx.saved_tensors[0], grads[0]), None


def _log_sums(z: Tensor, columns: Tensor, bits: float) -> Tensor:
    """(N,) log2 of the sum of 2^logit over the columns except itself."""
    lse = z.new_full((len(z),), -torch.inf)
    for rows, first, logits, spare in _blocks(z, columns, bits):
        lse[rows] = torch.logaddexp2(lse[rows], _logsumexp2(logits, 1, spare))
        if columns is z and rows.stop < len(z):
            below, spare = logits[:, rows.stop - first :], spare[:, rows.stop - first :]
            lse[rows.stop :] = torch.logaddexp2(lse[rows.stop :], _logsumexp2(below, 0, spare))
    return lse


def _pulls(z: Tensor, columns: Tensor, bits: float, lse: Tensor) -> Tensor:
    """(N,d) sum over j of (p_ij + p_ji) z_j."""
    grad, all_lse = torch.zeros_like(z), gather(lse)
    for rows, first, logits, spare in _blocks(z, columns, bits):
        torch.sub(logits, all_lse[first:], out=spare).exp2_()
        weights = spare.add_(logits.sub_(lse[rows, None]).exp2_())
        grad[rows].addmm_(weights, columns[first:])
        if columns is z:
            grad[rows.stop :].addmm_(weights[:, rows.stop - first :].T, z[rows])
    return grad


def _blocks(z: Tensor, columns: Tensor, bits: float) -> Iterator[tuple[slice, int, Tensor, Tensor]]:
    """For blocks of rows: the rows, the first of their columns, their logits in bits, and a spare buffer like those.

    All columns, or in one process those from the diagonal on. The logit of a row with itself is the lowest number:
    its exponential is 0, and unlike -inf it makes no NaN of a block that has nothing else.
    """
    n, m, own = len(z), len(columns), rank() * len(z)
    length = min(block_length(m), n)
    buffers = z.new_empty((2, length * m))
    for start in range(0, n, length):
        rows = slice(start, min(start + length, n))
        first = start if columns is z else 0
        shape = (rows.stop - start, m - first)
        logits, spare = buffers[:, : shape[0] * shape[1]].view(2, *shape)
        logits.addmm_(z[rows], columns[first:].T, beta=0, alpha=bits)
        logits.diagonal(own + start - first).fill_(torch.finfo(z.dtype).min)
        yield rows, first, logits, spare


def _logsumexp2(logits: Tensor, dim: int, spare: Tensor) -> Tensor:
    top = logits.amax(dim, keepdim=True)
    return torch.sub(logits, top, out=spare).exp2_().sum(dim).log2_() + top.squeeze(dim)
