"""NT-Xent, the loss of SimCLR."""

from typing import Any

import torch
from torch import Tensor

from csrtrain.distributed import gather, world_size
from csrtrain.losses.chunked import BITS, check, first_derivative, log_sums, normalised, pulls
from csrtrain.precision import full_precision


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
        lse = log_sums(z, columns, bits)
        loss = (lse.double() - (z * positive).sum(1).double() * bits).mean() / BITS
        if ctx.needs_input_grad[0]:
            grad = pulls(z, columns, bits, lse).sub_(positive, alpha=2)
            ctx.save_for_backward(grad.div_(len(z) * temperature))
        return loss.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return first_derivative(ctx.saved_tensors[0], grads[0]), None
