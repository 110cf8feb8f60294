import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from csrtrain.metrics.bootstrap import group_weights
from csrtrain.metrics.preference import jnd_average_precision, jnd_draws, two_afc


def test_two_afc_is_the_share_that_chose_as_the_metric():
    rng = np.random.default_rng(0)
    d0, d1, judge = rng.integers(0, 4, 200).astype(float), rng.integers(0, 4, 200).astype(float), rng.random(200)
    expected = []
    for a, b, j in zip(d0, d1, judge, strict=True):
        expected.append(j if b < a else 1 - j if a < b else 0.5)
    np.testing.assert_array_equal(two_afc(d0, d1, judge), expected)


def test_two_afc_does_not_depend_on_which_stands_first():
    rng = np.random.default_rng(1)
    d0, d1, judge = rng.random(50), rng.random(50), rng.random(50)
    np.testing.assert_allclose(two_afc(d0, d1, judge), two_afc(d1, d0, 1 - judge))


def literal_average_precision(distances, same):
    """Precision and recall after each pair, precision made falling by a loop from the end, area by rectangles."""
    pairs = sorted(zip(distances, same, strict=True))
    points = [(0.0, 0.0)]
    for k in range(1, len(pairs) + 1):
        seen = sum(s for _, s in pairs[:k])
        points.append((seen / sum(same), seen / k))
    best, area = 0.0, 0.0
    for (recall, precision), (before, _) in zip(points[:0:-1], points[-2::-1], strict=True):
        best = max(best, precision)
        area += best * (recall - before)
    return area


def test_jnd_average_precision_equals_a_literal_one():
    rng = np.random.default_rng(2)
    for _ in range(5):
        distances, same = rng.random(40), rng.integers(0, 4, 40) / 3
        assert jnd_average_precision(distances, same) == pytest.approx(literal_average_precision(distances, same))


def test_jnd_average_precision_bounds_that_of_scikit_learn():
    """Which does not make precision fall, and so is at most as large; equal where it falls by itself."""
    rng = np.random.default_rng(3)
    distances, same = rng.random(60), rng.integers(0, 2, 60)
    assert jnd_average_precision(distances, same) >= average_precision_score(same, -distances)
    assert jnd_average_precision(np.arange(4.0), np.array([1, 1, 0, 0])) == 1
    assert jnd_average_precision(np.zeros(4), np.array([1, 0, 0, 1])) == 0.5  # equal distances say nothing


def test_jnd_of_weights_equals_that_of_repeated_rows():
    rng = np.random.default_rng(4)
    distances, same = rng.integers(0, 15, 40).astype(float), rng.integers(0, 4, 40) / 3  # with ties
    weights = group_weights(np.arange(40) // 2, draws=50)
    for value, weight in zip(jnd_draws(distances, same, weights), weights.astype(int), strict=True):
        rows = np.repeat(np.arange(40), weight)
        assert value == pytest.approx(jnd_average_precision(distances[rows], same[rows]))
    assert np.isnan(jnd_draws(distances, np.zeros(40), weights)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], [0.5]), r"one value \(N,\) per row in d0, d1, judge, got"),
        (([[1.0], [2.0]], [[1.0], [2.0]], [0.5, 0.5]), "Flatten"),
        (([], [], []), "Flatten"),
        (([np.nan], [1.0], [0.5]), "finite d0, got 1 others"),
        (([1.0], [1.0], [2.0]), r"shares in \[0,1\], got 2"),
        (([1.0], [1.0], [np.nan]), "finite judge"),
    ],
)
def test_wrong_triplets(arguments, message):
    with pytest.raises(ValueError, match=message):
        two_afc(*map(np.array, arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 0.0]), "one value"),
        (([[1.0], [2.0]], [1.0, 0.0]), "Flatten"),
        (([np.inf, np.inf], [1.0, 0.0]), "finite distances, got 2 others"),
        (([1.0], [3.0]), r"shares in \[0,1\]"),
        (([1.0], [0.0]), "some above 0"),
    ],
)
def test_wrong_pairs(arguments, message):
    with pytest.raises(ValueError, match=message):
        jnd_average_precision(*map(np.array, arguments))
