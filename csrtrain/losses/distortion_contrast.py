"""The loss of CONTRIQUE: many positives per anchor."""

from typing import Any

import torch
from torch import Tensor

from csrtrain.distributed import gather, rank, world_size
from csrtrain.losses.chunked import BITS, check, first_derivative, log_sums, normalised, pulls
from csrtrain.precision import full_precision


def distortion_contrast(
    z: Tensor, class_ids: Tensor, temperature: float = 0.1, *, legacy_gradient_scale: bool = False
) -> Tensor:
    """Contrast between classes of distortion: supervised contrastive loss, the mean over positives outside the log.

    Madhusudana et al., "Image quality assessment using contrastive learning", arXiv 2110.13266, equations 1 and 2.

    Each local projection a is an anchor, its positives P(a) are all other projections of all ranks with its class id:

        loss_a = log sum_{k != a} exp(s_ak) - mean_{b in P(a)} s_ab,    s_ab = cos(z_a, z_b) / temperature

    Anchors without a positive are left out of the mean. With DDP's mean over ranks, loss and gradient equal those of
    one process on the whole batch. Computed in float32 (float64 for float64 input), also under autocast. No second
    derivative.

    Args:
        z: (N,d) projections of all views and patches; any scale; the same N on every rank.
        class_ids: (N,) integers; equal ids attract each other, on all ranks.
        temperature: of the softmax, > 0.
        legacy_gradient_scale: divide the gradient by the number of ranks, as the released code of CONTRIQUE does
            (its gather passes only the local part of the gradient on); the published rate of 0.6 belongs to that.

    Returns:
        Scalar, the mean over the anchors that have positives; 0 when none has.

    Raises:
        ValueError: shapes differ, ids are no integers, the temperature is not positive, or z has one row in all.
    """
    check(temperature, z=z)
    if class_ids.shape != z.shape[:1] or class_ids.is_floating_point() or class_ids.dtype == torch.bool:
        raise ValueError(
            f"Expected class_ids as {len(z)} integers, got {tuple(class_ids.shape)} {class_ids.dtype}. Pass one a row."
        )
    if len(z) * world_size() < 2:
        raise ValueError(f"Expected at least 2 projections in the global batch, got {len(z)}. Raise data.batch_size.")
    with full_precision(z.device):
        loss: Tensor = _DistortionContrast.apply(normalised(z), class_ids, temperature, legacy_gradient_scale)
        return loss


class _DistortionContrast(torch.autograd.Function):
    """(N,d) normalised projections of this rank and their ids -> mean over its anchors, see `nt_xent._NTXent`.

    The mean logit of an anchor's positives needs no mask: it is the product of the anchor with the sum of its class,
    less itself. Positives are mutual and as many for every member of a class, so that term's gradient of all anchors
    at z_i is twice the anchor's own.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, class_ids: Tensor, temperature: float, legacy: bool) -> Tensor:
        columns, bits = gather(z), BITS / temperature
        own_class, sums, counts = _classes(columns, gather(class_ids), len(z))
        positives = counts[own_class] - 1  # (N,)
        mean_positive = (sums[own_class] - z) / positives.clamp(min=1)[:, None]  # (N,d)
        lse = log_sums(z, columns, bits)
        losses = (lse.double() - (z * mean_positive).sum(1).double() * bits) / BITS
        anchors = torch.where(counts > 1, counts, 0).sum().clamp(min=1)  # of all ranks
        scale = world_size() / anchors  # DDP divides by the ranks
        loss = torch.where(positives > 0, losses, 0.0).sum() * scale
        if ctx.needs_input_grad[0]:
            lse = torch.where(positives > 0, lse, torch.inf)
            mean_positive = torch.where(positives[:, None] > 0, mean_positive, 0.0)
            grad = pulls(z, columns, bits, lse).sub_(mean_positive, alpha=2)
            ctx.save_for_backward(grad.mul_(scale / (temperature * (world_size() if legacy else 1))))
        return loss.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return first_derivative(ctx.saved_tensors[0], grads[0]), None, None, None


def _classes(columns: Tensor, class_ids: Tensor, local: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class of each local row (N,), sum (M,d) and size (M,) of each class; classes are numbered on the device.

    There are at most as many classes as rows; the numbers that no class has keep size 0, and nothing is read back.
    """
    ordered, order = class_ids.sort()
    number = torch.zeros_like(ordered)
    number[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    numbers = torch.empty_like(number).scatter_(0, order, number)  # (M,)
    sums = torch.zeros_like(columns).index_add_(0, numbers, columns)
    counts = torch.zeros_like(numbers).scatter_add_(0, numbers, torch.ones_like(numbers))
    return numbers[rank() * local : (rank() + 1) * local], sums, counts
