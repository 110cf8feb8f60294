"""What the contrastive losses share: block size, precision, checked and normalised input.

Both compute their gradient by hand, block by block of logits, so that nothing of the size rows x columns is kept.
Logits are in bits (multiplied by log2 e), because exp2 is several times faster than exp and as exact.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

ELEMENTS = 2**21  # logits per block: stays near the cache, yet large enough for the matrix product
BITS = 1 / math.log(2)  # bits per nat


def block_length(other: int) -> int:
    """How many rows (or columns) of `other` logits each make a block."""
    return max(1, ELEMENTS // other)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 products without autocast, TF32 or bf16, whatever `torch.set_float32_matmul_precision` says.

    A bf16 product is wrong by up to 0.02 in a logit, TF32 by 0.003.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


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


def check(temperature: float, **tensors: Tensor) -> None:
    """Shapes and temperature of a contrastive loss.

    Raises:
        ValueError: a tensor is not (rows, d) with the d of the others, or the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"Expected temperature > 0, got {temperature}. Correct model.temperature.")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[-1] for shape in shapes.values()}) != 1:
        raise ValueError(f"Expected projections (rows, d) with one d, got {shapes}. Pass the heads' outputs.")
