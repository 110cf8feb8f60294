import numpy as np
import pytest
from scipy.optimize import curve_fit

from csrtrain.metrics.logistic import fit_logistic


def literal(x, b1, b2, b3, b4):
    return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / np.abs(b4)))


@pytest.fixture
def rated():
    rng = np.random.default_rng(0)
    x = rng.normal(50, 12, 200)
    return x, literal(x, 4.6, 1.3, 48, 6) + rng.normal(0, 0.2, 200)


def test_equal_to_scipy_in_the_units_of_the_data(rated):
    x, y = rated
    curve = fit_logistic(x, y)
    b, _ = curve_fit(literal, x, y, p0=[y.max(), y.min(), x.mean(), x.std()], maxfev=20000)
    assert curve.logistic
    np.testing.assert_allclose(curve.parameters, [*b[:3], abs(b[3])], rtol=1e-4)
    np.testing.assert_allclose(curve(x), literal(x, *b), atol=1e-5)
    assert np.square(curve(x) - y).sum() <= np.square(literal(x, *b) - y).sum() * (1 + 1e-9)


def test_units_do_not_matter(rated):
    x, y = rated
    np.testing.assert_allclose(
        fit_logistic(1e-6 * x - 3, 100 * y)(1e-6 * x - 3), 100 * fit_logistic(x, y)(x), rtol=1e-5
    )


def test_the_curve_rises(rated):
    x, y = rated
    grid = np.linspace(x.min() - 50, x.max() + 50, 500)
    assert (np.diff(fit_logistic(x, y)(grid)) >= 0).all()


def test_a_reversed_metric_is_not_turned_round(rated):
    x, y = rated
    curve = fit_logistic(-x, y)
    assert not curve.logistic and "falls" in curve.reason
    np.testing.assert_allclose(curve.parameters, [0, y.mean()], rtol=1e-9)


@pytest.mark.parametrize("x", [np.zeros(8), np.arange(8.0) // 2])
def test_too_few_different_scores_get_a_line(x):
    curve = fit_logistic(x, np.arange(8.0))
    assert not curve.logistic and "fewer than five" in curve.reason and np.isfinite(curve(x)).all()


def test_a_fit_that_does_not_converge_gets_a_line(rated, monkeypatch):
    monkeypatch.setattr("csrtrain.metrics.logistic._EVALUATIONS", 5)
    curve = fit_logistic(*rated)
    assert not curve.logistic and "converge" in curve.reason
    np.testing.assert_allclose(curve.parameters, np.polyfit(*rated, 1), rtol=1e-9)
