"""InfoNCE against a queue, the loss of MoCo."""

import torch
from torch import Tensor

from csrtrain.losses.chunked import SoftmaxContrast, check, normalised


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """Contrast each query's own key with the keys of a queue (He et al., arXiv 1911.05722, equation 1).

    Computed in float32 (float64 for float64 input), also under autocast. No gradient reaches the queue.

    Args:
        query: (B,d) projections, any scale.
        key: (B,d) projections of the momentum network, same order.
        queue: (K,d) older keys, L2-normalised as `csrtrain.models.momentum.Queue` keeps them.
        temperature: of the softmax, > 0.

    Returns:
        Scalar, the mean over the local queries.

    Raises:
        ValueError: shapes differ, the temperature is not positive, or the queue is empty.
    """
    check(temperature, query=query, key=key, queue=queue)
    if query.shape != key.shape:
        raise ValueError(f"Expected a key for each query, got {len(key)} for {len(query)}. Pass matching views.")
    if len(queue) == 0:
        raise ValueError("Expected a queue with keys, got an empty one. Raise model.queue_size.")
    with torch.autocast(query.device.type, enabled=False):
        query, key = normalised(query), normalised(key)
        negatives = queue.detach().to(query.dtype)
        loss: Tensor = SoftmaxContrast.apply(query, negatives, None, None, temperature, key)
        return loss
