import numpy as np

from csrtrain.metrics.levels import in_order, level_pairs


def test_pairs_and_order_equal_a_literal_count():
    rng = np.random.default_rng(0)
    series, levels = rng.integers(0, 6, 40), rng.integers(1, 6, 40).astype(float)
    scores = rng.integers(0, 8, 40).astype(float)  # with ties
    expected = {}
    for i in range(40):
        for j in range(40):
            if series[i] == series[j] and levels[i] < levels[j]:
                expected[i, j] = 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    mild, strong = level_pairs(series, levels)
    found = dict(zip(zip(mild.tolist(), strong.tolist(), strict=True), in_order(scores, mild, strong), strict=True))
    assert found == expected and len(found) > 50


def test_one_level_alone_has_no_pairs():
    mild, strong = level_pairs(np.arange(5), np.ones(5))
    assert len(mild) == len(strong) == 0
