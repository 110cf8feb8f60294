import math

import numpy as np
import pytest
from scipy import stats

from csrtrain.metrics import bootstrap


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 12, 50).astype(float)  # with ties
    scores = (ratings + rng.normal(0, 4, 50)).round()
    return scores, ratings, np.arange(50) // 3


MEASURES = [
    (bootstrap.weighted_srcc, lambda x, y: stats.spearmanr(x, y).statistic),
    (bootstrap.weighted_krcc, lambda x, y: stats.kendalltau(x, y).statistic),
    (bootstrap.weighted_plcc, lambda x, y: stats.pearsonr(x, y).statistic),
    (lambda x, y, w: bootstrap.weighted_mean(x * y, w), lambda x, y: np.mean(x * y)),
]


@pytest.mark.parametrize(("weighted", "literal"), MEASURES, ids=["srcc", "krcc", "plcc", "mean"])
def test_weights_equal_scipy_on_repeated_rows(rows, weighted, literal):
    scores, ratings, groups = rows
    weights = bootstrap.group_weights(groups, draws=200, seed=1)
    found = weighted(scores, ratings, weights)
    for value, weight in zip(found, weights.astype(int), strict=True):
        repeated = np.repeat(np.arange(50), weight)
        assert value == pytest.approx(literal(scores[repeated], ratings[repeated]), abs=1e-12)


def test_the_matrix_of_pairs_goes_in_parts(rows, monkeypatch):
    scores, ratings, groups = rows
    weights = bootstrap.group_weights(groups, draws=20)
    whole = bootstrap.weighted_krcc(scores, ratings, weights)
    monkeypatch.setattr(bootstrap, "_ROWS", 7)
    np.testing.assert_allclose(bootstrap.weighted_krcc(scores, ratings, weights), whole, rtol=1e-12)


def test_groups_are_drawn_whole_and_as_many_as_there_are(rows):
    groups = rows[2]
    weights = bootstrap.group_weights(groups, draws=30)
    for weight in weights:
        assert all(len(set(weight[groups == group])) == 1 for group in np.unique(groups))
    first = np.unique(groups, return_index=True)[1]
    assert (weights[:, first].sum(1) == len(first)).all()
    np.testing.assert_array_equal(weights, bootstrap.group_weights(groups, draws=30))
    assert (weights != bootstrap.group_weights(groups, draws=30, seed=1)).any()


def test_undefined_is_nan(rows):
    scores, ratings, groups = rows
    weights = bootstrap.group_weights(groups, draws=5)
    weights[1] = 0
    weights[2] = np.eye(50)[0] * 50  # one row alone
    for weighted, _ in MEASURES[:3]:
        found = weighted(scores, ratings, weights)
        assert np.isnan(found[[1, 2]]).all() and np.isfinite(found[[0, 3, 4]]).all()
        assert np.isnan(weighted(np.full(50, 0.1), ratings, weights)).all()


def test_intervals_need_five_groups():
    values = np.linspace(0, 1, 1001)
    assert bootstrap.interval(values, np.arange(5)) == pytest.approx((0.025, 0.975))
    assert all(math.isnan(end) for end in bootstrap.interval(values, np.arange(4)))
    assert all(math.isnan(end) for end in bootstrap.interval(values * np.nan, np.arange(9)))


def test_intervals_in_words():
    assert (
        bootstrap.in_words(0.4, 0.6234) == " [0.400, 0.623]" and bootstrap.in_words(-1, 0.5, "+") == " [-1.000, +0.500]"
    )
    assert bootstrap.in_words(*bootstrap.interval(np.zeros(9), np.zeros(3, dtype=np.int64))) == " (no interval)"
