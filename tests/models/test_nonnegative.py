import numpy as np
import pytest
from scipy.optimize import nnls

from csrtrain.models import nonnegative


def problem(n=50, dim=20, seed=0):
    rng = np.random.default_rng(seed)
    d = rng.uniform(0, 1, (n, dim)) * np.geomspace(1, 1e-2, dim)
    y = d @ rng.normal(1, 2, dim).clip(0) + 0.1 * rng.normal(size=n)
    return d, y, np.arange(n) % 5


def stacked(d, y, alpha):
    """The same as one plain problem: rows for the pull towards the common weight."""
    near = max(0, (d.sum(1) @ y) / (d.sum(1) @ d.sum(1)))
    root = np.sqrt(alpha * np.square(d).sum() / d.shape[1]) * np.eye(d.shape[1])
    return nnls(np.vstack([d, root]), np.concatenate([y, root.sum(1) * near]))[0]


@pytest.mark.parametrize("shape", [(50, 20), (15, 40)])
def test_all_fits_are_those_of_the_stacked_problem(shape):
    d, y, folds = problem(*shape)
    found = nonnegative.fit(d, y, folds)
    for k, alpha in enumerate(nonnegative.ALPHAS):
        np.testing.assert_allclose(found.weights[k], stacked(d, y, alpha), rtol=1e-7, atol=1e-9)
        for fold in range(5):
            expected = d[folds == fold] @ stacked(d[folds != fold], y[folds != fold], alpha)
            np.testing.assert_allclose(found.held_out[k, folds == fold], expected, rtol=1e-7, atol=1e-9)
    assert (found.weights >= 0).all() and (found.weights[0] == 0).any() and not found.biases.any()


def test_a_strong_pull_leaves_all_weights_alike_and_alpha_has_no_unit():
    d, y, folds = problem()
    (alike,) = nonnegative.fit(d, y, folds, (1e9,)).weights
    np.testing.assert_allclose(alike, nonnegative.common_weight(d, y), rtol=1e-6)
    np.testing.assert_allclose(
        nonnegative.fit(1e-4 * d, 7 * y, folds, (0.1,)).weights, 7e4 * nonnegative.fit(d, y, folds, (0.1,)).weights
    )
    assert nonnegative.common_weight(d, -y) == 0  # better the further apart: no weight


def test_errors():
    d, y, folds = problem()
    with pytest.raises(ValueError, match="Expected alphas above 0"):
        nonnegative.fit(d, y, folds, (0.0,))
    with pytest.raises(ValueError, match="Expected at least 2 folds, got 1"):
        nonnegative.fit(d, y, 0 * folds)
