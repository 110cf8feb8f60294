import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from csrtrain.models import ridge


def problem(n, dim, groups=None, seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(n, dim)) @ np.diag(np.geomspace(1, 1e-2, dim)) + offset
    y = h @ rng.normal(size=dim) + 0.3 * rng.normal(size=n) + 50
    return h, y, rng.integers(0, groups or 5, n)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("n, dim", [(60, 12), (40, 100), (50, 50)])
@pytest.mark.parametrize("alpha", ridge.ALPHAS)
def test_every_fit_and_every_held_out_prediction_is_scikit_learns(n, dim, alpha, intercept):
    # Without an intercept a large offset would be the conditioning of the problem, in scikit-learn as here.
    h, y, folds = problem(n, dim, offset=3.0 if intercept else 0.3)
    ours = ridge.fit(h, y, folds, (alpha,), intercept)
    whole = Ridge(alpha, fit_intercept=intercept).fit(h, y)
    np.testing.assert_allclose(ours.weights[0], whole.coef_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.biases[0], whole.intercept_, rtol=1e-9)
    for fold in np.unique(folds):
        out = folds == fold
        without = Ridge(alpha, fit_intercept=intercept).fit(h[~out], y[~out])
        np.testing.assert_allclose(ours.held_out[0, out], without.predict(h[out]), rtol=1e-9, atol=1e-9)


def test_folds_may_differ_in_size_and_be_single_rows():
    h, y, _ = problem(30, 5)
    folds = np.array([0] * 17 + [1] * 12 + [2])
    ours = ridge.fit(h, y, folds)
    expected = Ridge(ours.alphas[3]).fit(h[:29], y[:29]).predict(h[29:])
    np.testing.assert_allclose(ours.held_out[3, 29:], expected, rtol=1e-9)


def test_duplicate_rows_and_constant_columns_are_no_harm():
    h, y, folds = problem(40, 8)
    h[:, 2], h[:, 3] = 1.0, h[:, 4]
    h[10:20] = h[:10]
    ours = ridge.fit(h, y, folds, (0.1,))
    np.testing.assert_allclose(ours.weights[0], Ridge(0.1).fit(h, y).coef_, rtol=1e-8, atol=1e-9)


def test_best_is_the_smallest_held_out_error():
    h, y, folds = problem(80, 60)
    ours = ridge.fit(h, y, folds)
    errors = [
        np.mean(
            [
                np.mean((Ridge(alpha).fit(h[folds != f], y[folds != f]).predict(h[folds == f]) - y[folds == f]) ** 2)
                * (folds == f).sum()
                for f in range(5)
            ]
        )
        for alpha in ours.alphas
    ]
    assert ours.best(y) == int(np.argmin(errors))
    flat = ridge.fit(np.ones((10, 3)), np.arange(10.0), np.arange(10) % 2)
    assert flat.best(np.arange(10.0)) == len(ridge.ALPHAS) - 1  # nothing to learn: the strongest penalty


def test_float32_representations_are_fitted_in_float64():
    h, y, folds = problem(50, 10)
    h = h.astype(np.float32)
    ours = ridge.fit(torch.from_numpy(h), y, folds, (1e-3,))
    np.testing.assert_allclose(ours.weights[0], Ridge(1e-3).fit(h.astype(np.float64), y).coef_, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda h, y, f: (h, y[:-1], f), "Expected a rating and a fold for each representation .N,D., got .20, 4."),
        (lambda h, y, f: (np.where(np.arange(20)[:, None] == 7, np.nan, h), y, f), "finite representations.*row 7"),
        (lambda h, y, f: (h, np.where(np.arange(20) == 3, np.inf, y), f), "finite ratings.*row 3"),
        (lambda h, y, f: (h, y, np.zeros(20, dtype=int)), "Expected at least 2 folds, got 1"),
    ],
)
def test_errors(change, words):
    with pytest.raises(ValueError, match=words):
        ridge.fit(*change(*problem(20, 4)))
    with pytest.raises(ValueError, match="Expected alphas above 0"):
        ridge.fit(*problem(20, 4), (0.0, 1.0))
