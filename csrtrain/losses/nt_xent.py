"""NT-Xent, the loss of SimCLR."""

import torch
from torch import Tensor

from csrtrain.distributed import gather, rank
from csrtrain.losses.chunked import SoftmaxContrast, check, normalised


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al., arXiv 2002.05709, equation 1).

    Each of the 2B local projections is an anchor; its positive is the other view of its image, its negatives are all
    other projections of all ranks. With DDP's mean over ranks, loss and gradient equal those of one process on the
    whole batch. Computed in float32 (float64 for float64 input), also under autocast.

    Args:
        z0, z1: (B,d) projections of the two views, same order; any scale.
        temperature: of the softmax, > 0.

    Returns:
        Scalar, the mean over the local anchors.

    Raises:
        ValueError: shapes differ, the temperature is not positive, or there is no negative.
    """
    check(temperature, z0=z0, z1=z1)
    if z0.shape != z1.shape:
        raise ValueError(f"Expected as many rows in both views, got {len(z0)} and {len(z1)}. Pass matching views.")
    with torch.autocast(z0.device.type, enabled=False):
        z0, z1 = normalised(z0), normalised(z1)
        all0, all1 = gather(z0), gather(z1)
        b, n = z0.shape[0], all0.shape[0]
        if n < 2:
            raise ValueError("Expected at least 2 images in the global batch, got 1. Raise data.batch_size.")
        own = rank() * b + torch.arange(b, device=z0.device)
        loss: Tensor = SoftmaxContrast.apply(
            torch.cat([z0, z1]),
            torch.cat([all0, all1]),
            torch.cat([own + n, own]),
            torch.cat([own, own + n]),
            temperature,
            None,
        )
        return loss
