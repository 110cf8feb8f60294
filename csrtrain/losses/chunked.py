"""What the contrastive losses share: block size, checked and normalised input.

Both compute their gradient by hand, block by block of logits, so that nothing of the size rows x columns is kept.
Logits are in bits (multiplied by log2 e), because exp2 is several times faster than exp and as exact.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from csrtrain.distributed import gather, rank

ELEMENTS = 2**21  # logits per block: stays near the cache, yet large enough for the matrix product
BITS = 1 / math.log(2)  # bits per nat


def block_length(other: int) -> int:
    """How many rows (or columns) of `other` logits each make a block."""
    return max(1, ELEMENTS // other)


def normalised(z: Tensor) -> Tensor:
    """(B,d) -> L2-normalised rows in float32; float64 stays."""
    return torch.nn.functional.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)


def first_derivative(gradient: Tensor, outer: Tensor) -> Tensor:
    """Backward pass of a loss that computed its gradient together with its value.

    Raises:
        RuntimeError: a graph of it is asked for; it would lack the curvature of the softmax.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("Expected create_graph=False, got True. Contrastive losses have no second derivative here.")
    return gradient * outer


def check_temperature(temperature: float) -> None:
    """Raise a ValueError unless it is positive."""
    if not temperature > 0:
        raise ValueError(f"Expected temperature > 0, got {temperature}. Correct model.temperature.")


def check(temperature: float, **tensors: Tensor) -> None:
    """Shapes and temperature of a contrastive loss.

    Raises:
        ValueError: a tensor is not (rows, d) with the d of the others, or the temperature is not positive.
    """
    check_temperature(temperature)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[-1] for shape in shapes.values()}) != 1:
        raise ValueError(f"Expected projections (rows, d) with one d, got {shapes}. Pass the heads' outputs.")


def log_sums(z: Tensor, columns: Tensor, bits: float) -> Tensor:
    """(N,) log2 of the sum of 2^logit over the columns except itself."""
    lse = z.new_full((len(z),), -torch.inf)
    for rows, first, logits, spare in _blocks(z, columns, bits):
        lse[rows] = torch.logaddexp2(lse[rows], _logsumexp2(logits, 1, spare))
        if columns is z and rows.stop < len(z):
            below, spare = logits[:, rows.stop - first :], spare[:, rows.stop - first :]
            lse[rows.stop :] = torch.logaddexp2(lse[rows.stop :], _logsumexp2(below, 0, spare))
    return lse


def pulls(z: Tensor, columns: Tensor, bits: float, lse: Tensor) -> Tensor:
    """(N,d) sum over j of (p_ij + p_ji) z_j, with p_ij = exp(s_ij - lse_i); an anchor whose lse is inf is left out."""
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
