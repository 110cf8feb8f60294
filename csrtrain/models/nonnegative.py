"""Weights of at least 0, without an intercept, near to being all alike: from the channels of a distance to ratings.

Minimises |y - D w|^2 + alpha u |w - s|^2 over w >= 0. s is the one number that fits best when all weights are alike, so
that few ratings leave the distance nearly as it is without any: that is ours, where ridge regression draws to 0. u is
the mean squared length of a column of D, so that alpha has no unit.
"""

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

from csrtrain.models.ridge import RidgeFit

Array = NDArray[np.float64]

ALPHAS = tuple(np.geomspace(1e-4, 1e2, 7).tolist())
"""Default grid; ours."""


def common_weight(differences: Array, y: Array) -> float:
    """The weight s, at least 0, that minimises |y - s d|^2 for d, the sums of rows (N,F)."""
    d = differences.sum(1)
    return max(0.0, float(d @ y) / float(d @ d)) if d.any() else 0.0


def fit(
    differences: NDArray[np.float32],
    y: Array,
    folds: NDArray[np.int64],
    alphas: tuple[float, ...] = ALPHAS,
) -> RidgeFit:
    """Fit all rows, and all without each fold in turn, by scipy's active set, exactly.

    Args:
        differences: (N,F), at least 0.
        y: (N,) loss of quality.
        folds: (N,) fold of each row; rows that belong together must share it.
        alphas: all above 0.

    Returns:
        As `csrtrain.models.ridge.fit`, with biases of 0.

    Raises:
        ValueError: alphas are not positive, or there is one fold only.
    """
    if not alphas or min(alphas) <= 0:
        raise ValueError(f"Expected alphas above 0, got {list(alphas)}. Correct them.")
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise ValueError(f"Expected at least 2 folds, got {len(numbers)}. Use more ratings or groups.")
    d = differences.astype(np.float64)
    weights = _solved(d, y, alphas)
    held_out = np.empty((len(alphas), len(y)))
    for number in numbers:
        out = folds == number
        held_out[:, out] = _solved(d[~out], y[~out], alphas) @ d[out].T
    return RidgeFit(np.array(alphas), held_out, weights, np.zeros(len(alphas)))


def _solved(d: Array, y: Array, alphas: tuple[float, ...]) -> Array:
    """(A,F) weights for each alpha, from the F x F normal equations: rows do not cost."""
    gram, moment, near = d.T @ d, d.T @ y, common_weight(d, y)
    unit = float(np.trace(gram)) / len(gram)
    found = np.zeros((len(alphas), len(gram)))
    if unit > 0:
        for k, alpha in enumerate(alphas):
            root = np.linalg.cholesky(gram + alpha * unit * np.eye(len(gram)))
            target = scipy.linalg.solve_triangular(root, moment + alpha * unit * near, lower=True)
            found[k], _ = scipy.optimize.nnls(root.T, target, maxiter=30 * len(gram))
    return found
