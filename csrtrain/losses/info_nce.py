"""InfoNCE against a queue, the loss of MoCo."""

from typing import Any

import torch
from torch import Tensor

from csrtrain.losses.chunked import BITS, block_length, check, first_derivative, normalised
from csrtrain.precision import full_precision


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """Contrast each query's own key with the keys of a queue (He et al., arXiv 1911.05722, equation 1).

    Computed in float32 (float64 for float64 queries), also under autocast. No gradient reaches key or queue, and there
    is no second derivative. The mean over ranks equals the loss of one process on the whole batch.

    Args:
        query: (B,d) projections, any scale.
        key: (B,d) projections of the momentum network, same order.
        queue: (K,d) older keys, L2-normalised as `csrtrain.models.momentum.Queue` keeps them.
        temperature: of the softmax, > 0.

    Returns:
        Scalar, the mean over the local queries.

    Raises:
        ValueError: shapes differ, the temperature is not positive, or there is no query or no key in the queue.
    """
    check(temperature, query=query, key=key, queue=queue)
    if query.shape != key.shape:
        raise ValueError(f"Expected a key for each query, got {len(key)} for {len(query)}. Pass matching views.")
    if len(query) == 0:
        raise ValueError("Expected at least 1 query, got 0. Raise data.batch_size.")
    if len(queue) == 0:
        raise ValueError("Expected a queue with keys, got an empty one. Raise model.queue_size.")
    with full_precision(query.device):
        query = normalised(query)
        loss: Tensor = _InfoNCE.apply(
            query, normalised(key.detach()).to(query.dtype), queue.detach().to(query.dtype), temperature
        )
        return loss


class _InfoNCE(torch.autograd.Function):
    """(B,d) normalised queries and keys, (K,d) queue -> mean over queries.

    One pass over blocks of the queue with a running softmax (Milakov & Gimelshein, arXiv 1805.02867): the highest
    logit so far, the sum of exponentials, and the sum of keys weighted by them, which is what the gradient needs. The
    query's own key is the first block.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
        n, bits = len(query), BITS / temperature
        length = min(block_length(n), len(queue))
        buffer = query.new_empty(n * length)
        scaled = query * bits
        positive = top = (scaled * key).sum(1)
        mass, pull = torch.ones_like(top), key.clone()
        for block in torch.split(queue, length):
            logits = torch.mm(scaled, block.T, out=buffer[: n * len(block)].view(n, len(block)))
            higher = torch.maximum(top, logits.amax(1))
            shrink, top = (top - higher).exp2_(), higher
            weights = logits.sub_(top[:, None]).exp2_()
            mass.mul_(shrink).add_(weights.sum(1))
            if ctx.needs_input_grad[0]:
                pull.mul_(shrink[:, None]).addmm_(weights, block)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(pull.div_(mass[:, None]).sub_(key).div_(n * temperature))
        return ((top.double() - positive.double() + mass.double().log2()).mean() / BITS).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return first_derivative(ctx.saved_tensors[0], grads[0]), None, None, None
