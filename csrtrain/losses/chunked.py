"""Softmax contrast in row chunks with a hand-written gradient: nothing of the size rows x columns is ever kept."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512  # rows per chunk: large enough for the matrix product, small enough to stay in cache


class SoftmaxContrast(torch.autograd.Function):
    """Mean over rows of logsumexp over columns minus the logit of the row's positive.

    forward(rows, columns, positive, excluded, temperature, extra):
        rows: (N,d) L2-normalised anchors.
        columns: (M,d) L2-normalised candidates.
        positive: (N,) index of each row's positive among the columns, or None when `extra` holds the positives.
        excluded: (N,) index of a column that a row leaves out of its denominator (itself), or None.
        extra: (N,d) positives of the rows that are no columns, or None.

    The gradient with respect to rows, columns and extra is computed chunk by chunk in the forward pass, where the
    softmax is at hand. There is no second derivative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        positive: Tensor | None,
        excluded: Tensor | None,
        temperature: float,
        extra: Tensor | None,
    ) -> Tensor:
        n = rows.shape[0]
        needs = ctx.needs_input_grad
        grad_rows = torch.empty_like(rows) if needs[0] else None
        grad_columns = torch.zeros_like(columns) if needs[1] else None
        grad_extra = torch.empty_like(extra) if extra is not None and needs[5] else None
        scale = 1.0 / temperature
        total = rows.new_zeros((), dtype=torch.float64)  # one scalar per chunk: no cost, and no rounding
        buffer = rows.new_empty((min(CHUNK, n), columns.shape[0]))
        for start in range(0, n, CHUNK):
            part = rows[start : start + CHUNK]
            index = torch.arange(part.shape[0], device=rows.device)
            logits = buffer[: part.shape[0]]
            torch.mm(part * scale, columns.T, out=logits)
            if excluded is not None:
                logits[index, excluded[start : start + CHUNK]] = -torch.inf
            if positive is not None:
                target = positive[start : start + CHUNK]
                positive_logit = logits[index, target]
                top = logits.amax(1)
            else:
                assert extra is not None
                positive_logit = (part * extra[start : start + CHUNK]).sum(1) * scale
                top = torch.maximum(logits.amax(1), positive_logit)
            weights = logits.sub_(top[:, None]).exp_()
            mass = weights.sum(1)
            positive_weight = (positive_logit - top).exp_()
            if positive is None:
                mass = mass + positive_weight
            total += (mass.log() + top - positive_logit).sum(dtype=torch.float64)
            if grad_rows is None and grad_columns is None and grad_extra is None:
                continue
            weights.mul_((scale / n / mass)[:, None])
            if positive is not None:
                weights[index, target] -= scale / n
            if grad_rows is not None:
                torch.mm(weights, columns, out=grad_rows[start : start + CHUNK])
            if grad_columns is not None:
                grad_columns.addmm_(weights.T, part)
            if positive is None:
                assert extra is not None
                pull = ((positive_weight / mass - 1.0) * (scale / n))[:, None]
                if grad_rows is not None:
                    grad_rows[start : start + CHUNK] += pull * extra[start : start + CHUNK]
                if grad_extra is not None:
                    grad_extra[start : start + CHUNK] = pull * part
        ctx.save_for_backward(grad_rows, grad_columns, grad_extra)
        return (total / n).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_columns, grad_extra = (None if g is None else g * grads[0] for g in ctx.saved_tensors)
        return grad_rows, grad_columns, None, None, None, grad_extra


def normalised(z: Tensor) -> Tensor:
    """(B,d) -> L2-normalised rows in float32 (float64 stays), whatever autocast says."""
    z = z if z.dtype == torch.float64 else z.float()
    return torch.nn.functional.normalize(z, dim=1)


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
