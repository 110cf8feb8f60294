import math

import numpy as np
import pytest
from scipy import stats

from csrtrain.metrics import correlation


@pytest.fixture
def rated():
    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 20, 60).astype(float)  # with ties
    return ratings + rng.normal(0, 5, 60), ratings


def test_equal_to_scipy(rated):
    scores, ratings = rated
    found = correlation.agreement(scores, ratings)
    assert found["srcc"] == pytest.approx(stats.spearmanr(scores, ratings).statistic, abs=1e-12)
    assert found["krcc"] == pytest.approx(stats.kendalltau(scores, ratings).statistic, abs=1e-12)
    assert found["plcc"] == pytest.approx(stats.pearsonr(scores, ratings).statistic, abs=1e-12)
    assert found["rmse"] == pytest.approx(math.sqrt(((scores - ratings) ** 2).mean()), abs=1e-12)


def test_invariant_to_a_rising_curve_and_to_the_order(rated):
    scores, ratings = rated
    order = np.random.default_rng(1).permutation(60)
    curved = np.exp(scores / 9)
    for name in ("srcc", "krcc"):
        measure = getattr(correlation, name)
        assert measure(curved[order], ratings[order]) == pytest.approx(measure(scores, ratings), abs=1e-12)
        assert measure(-scores, ratings) == pytest.approx(-measure(scores, ratings), abs=1e-12)


@pytest.mark.parametrize("name", ["srcc", "krcc", "plcc"])
def test_undefined(name):
    measure = getattr(correlation, name)
    assert math.isnan(measure(np.ones(5), np.arange(5.0))) and math.isnan(measure(np.ones(1), np.ones(1)))


def test_intervals_draw_groups(rated):
    scores, ratings = rated
    each, pairs = np.arange(60), np.arange(60) // 30
    low, high = correlation.srcc_interval(scores, ratings, each)
    assert low < correlation.srcc(scores, ratings) < high
    # A bootstrap of two groups can only draw four samples.
    assert len(set(correlation.srcc_draws(scores, ratings, pairs).round(12))) <= 4
    doubled = correlation.srcc_interval(np.tile(scores, 2), np.tile(ratings, 2), np.tile(each, 2))
    assert np.allclose(doubled, (low, high), atol=1e-12)  # copies in one group add no certainty
