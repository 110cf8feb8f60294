"""Ridge regression in closed form, with the exact prediction of every held-out block for every alpha.

One eigendecomposition serves all alphas and all folds. Least squares, with or without an intercept, has a hat matrix
H(alpha), and leaving a block b of rows out leaves the residuals (I - H_bb)^-1 e_b (Cook & Weisberg, "Residuals and
influence in regression", 1982, section 3.6), which hold for any size of block.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

ALPHAS = tuple(np.geomspace(1e-3, 1e3, 13).tolist())
"""Default grid, for representations of length 1; ours."""


class RidgeFit(NamedTuple):
    """What ridge regression makes of all rows.

    alphas: (A,) as given.
    held_out: (A,N) prediction of each row by a fit without its fold, for each alpha.
    weights: (A,D) of the fit to all rows.
    biases: (A,), 0 without an intercept.
    """

    alphas: Array
    held_out: Array
    weights: Array
    biases: Array

    def best(self, y: Array) -> int:
        """Index of the alpha whose held-out predictions have the smallest mean squared error; the largest of equals."""
        errors = np.square(self.held_out - y).mean(1)
        return int(np.flatnonzero(errors <= errors.min() * (1 + 1e-12))[-1])


def fit(
    h: Array | Tensor,
    y: Array,
    folds: NDArray[np.int64],
    alphas: tuple[float, ...] = ALPHAS,
    intercept: bool = True,
) -> RidgeFit:
    """Minimise |y - h w - b|^2 + alpha |w|^2 in float64, on all rows and without each fold in turn.

    Args:
        h: (N,D) representations.
        y: (N,) ratings.
        folds: (N,) fold of each row; rows that belong together, of one reference or patient, must share it.
        alphas: all above 0.
        intercept: b, which is not penalised; 0 without it.

    Raises:
        ValueError: values are not finite, numbers of rows differ, alphas are not positive, or there is one fold only.
    """
    x = torch.as_tensor(h).to(torch.float64)
    target = torch.as_tensor(np.asarray(y, dtype=np.float64))
    _check(x, target, folds, alphas)
    n, dim = x.shape
    mean, center = x.mean(0) * intercept, target.mean() * intercept
    x, target = x - mean, target - center
    if n > dim:
        values, vectors = torch.linalg.eigh(x.T @ x)
        scores = x @ vectors  # (N,r) in the basis of the eigenvectors
    else:
        values, left = torch.linalg.eigh(x @ x.T)
        scores = left * values.clamp(min=0).sqrt()
    values = values.clamp_(min=0)
    projected = scores.T @ target  # (r,)
    held_out = torch.empty((len(alphas), n), dtype=torch.float64)
    weights = torch.empty((len(alphas), dim), dtype=torch.float64)
    blocks = [torch.from_numpy(np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    for a, alpha in enumerate(alphas):
        residuals = target - scores @ (projected / (values + alpha))
        scaled = scores / (values + alpha).sqrt()
        for rows in blocks:
            part = scaled[rows]
            kept = torch.mm(part, part.T).neg_().sub_(intercept / n)  # -H_bb: of the intercept and of the weights
            kept.diagonal().add_(1)
            outside = torch.linalg.solve(kept, residuals[rows])
            held_out[a, rows] = target[rows] - outside
        if n > dim:
            weights[a] = vectors @ (projected / (values + alpha))
        else:
            weights[a] = x.T @ (left @ ((left.T @ target) / (values + alpha)))
    biases = center - weights @ mean
    return RidgeFit(np.array(alphas), (held_out + center).numpy(), weights.numpy(), biases.numpy())


def _check(x: Tensor, y: Tensor, folds: NDArray[np.int64], alphas: tuple[float, ...]) -> None:
    if x.ndim != 2 or len(x) != len(y) or len(folds) != len(y):
        raise ValueError(
            f"Expected a rating and a fold for each representation (N,D), got {tuple(x.shape)}, {len(y)} ratings and "
            f"{len(folds)} folds. Pass the same rows."
        )
    for name, values in (("representations", x), ("ratings", y)):
        if not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero()[0, 0])
            raise ValueError(f"Expected finite {name}, got others in row {row}. Leave such rows out.")
    if not alphas or min(alphas) <= 0:
        raise ValueError(f"Expected alphas above 0, got {list(alphas)}. Correct them.")
    if len(np.unique(folds)) < 2:
        raise ValueError(f"Expected at least 2 folds, got {len(np.unique(folds))}. Use more ratings or groups.")
