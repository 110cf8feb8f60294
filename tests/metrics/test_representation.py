import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier

from csrtrain.metrics import representation as rep


def projections(n=40, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def unit(z):
    z = z.double().numpy()
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_functions_equal_numpy_and_scipy():
    z0, z1 = projections(), projections(seed=1)
    u0, u1 = unit(z0), unit(z1)
    assert float(rep.embedding_std(z0)) == pytest.approx(u0.std(0).mean() * np.sqrt(8), rel=1e-5)
    p = np.linalg.svd(u0, compute_uv=False)
    p /= p.sum()
    assert float(rep.effective_rank(z0)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert float(rep.alignment(z0, z1)) == pytest.approx(((u0 - u1) ** 2).sum(1).mean(), rel=1e-5)
    assert float(rep.uniformity(z0)) == pytest.approx(np.log(np.exp(-2 * pdist(u0) ** 2).mean()), rel=1e-5)


def test_extremes():
    same = torch.ones(30, 8)
    assert float(rep.embedding_std(same)) == pytest.approx(0, abs=1e-6)
    assert float(rep.effective_rank(same)) == pytest.approx(1, abs=1e-6)
    assert float(rep.uniformity(same)) == pytest.approx(0, abs=1e-6)
    axes = torch.cat([torch.eye(8), -torch.eye(8)])
    assert float(rep.effective_rank(axes)) == pytest.approx(8, rel=1e-6)
    many = projections(4000, 8)
    assert float(rep.embedding_std(many)) == pytest.approx(1, abs=0.02)
    assert float(rep.alignment(many, 3 * many)) == pytest.approx(0, abs=1e-10)


def test_projections_that_are_not_finite_give_nan_not_an_error():
    metric = rep.RepresentationStatistics(8)
    metric.update(torch.full((4, 8), torch.nan), torch.ones(4, 8))
    assert torch.isnan(metric.compute()["effective_rank"])


def test_the_accumulating_class_equals_the_functions_over_all_batches():
    z0, z1 = projections(48), projections(48, seed=1)
    metric = rep.RepresentationStatistics(8)
    for start in range(0, 48, 16):
        metric.update(z0[start : start + 16], z1[start : start + 16])
    got = {name: float(value) for name, value in metric.compute().items()}
    both = torch.cat([z0, z1])
    assert got["embedding_std"] == pytest.approx(float(rep.embedding_std(both)), rel=1e-5)
    assert got["effective_rank"] == pytest.approx(float(rep.effective_rank(both)), rel=1e-6)
    assert got["alignment"] == pytest.approx(float(rep.alignment(z0, z1)), rel=1e-5)
    within = np.mean([np.exp(float(rep.uniformity(z0[s : s + 16]))) for s in range(0, 48, 16)])
    assert got["uniformity"] == pytest.approx(np.log(within), rel=1e-5)


def test_group_folds_keep_groups_whole_and_folds_even():
    groups = np.repeat(np.arange(53), 3)
    folds = rep.group_folds(groups, 5, seed=1)
    assert all(len(np.unique(folds[groups == g])) == 1 for g in range(53))
    assert np.ptp(np.bincount(folds)) <= 3
    assert not np.array_equal(folds, rep.group_folds(groups, 5, seed=2))
    with pytest.raises(ValueError, match="at least 5 groups for 5 folds, got 2"):
        rep.group_folds(np.array([0, 1]), 5)


def test_knn_equals_scikit_learn_fold_by_fold():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    h = rng.normal(size=(150, 6)) + np.eye(6)[labels] * 1.5
    folds = rep.group_folds(np.arange(150), 5)
    for k in (1, 7):
        expected = np.empty(150, dtype=bool)
        for fold in range(5):
            train, test = folds != fold, folds == fold
            knn = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
            expected[test] = knn.fit(h[train], labels[train]).predict(h[test]) == labels[test]
        assert np.array_equal(rep.knn_correct(h, labels, folds, k), expected)
        assert rep.knn_accuracy(h, labels, folds, k) == expected.mean()


def test_rows_of_one_group_never_judge_each_other():
    h = np.repeat(np.eye(4), 2, axis=0)  # each row has an exact twin in its own group
    labels, groups = np.repeat([0, 1, 2, 3], 2), np.repeat([0, 1, 2, 3], 2)
    assert rep.knn_accuracy(h, labels, groups, 1) == 0.0
    assert rep.knn_accuracy(h, labels, np.arange(8), 1) == 1.0
    with pytest.raises(ValueError, match="at least two groups"):
        rep.knn_accuracy(h, labels, np.zeros(8, dtype=np.int64), 1)


def test_knn_srcc_finds_a_smooth_rating():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 3, 200)
    h = np.stack([np.cos(angle), np.sin(angle)], 1)
    groups = np.arange(200)
    assert rep.knn_srcc(h, angle, groups, 5) > 0.99
    similarity = h @ h.T
    np.fill_diagonal(similarity, -np.inf)
    predicted = [angle[np.argsort(-row)[:5]].mean() for row in similarity]
    assert rep.knn_srcc(h, angle, groups, 5) == pytest.approx(spearmanr(predicted, angle).statistic, abs=1e-3)


def test_representations_that_are_not_finite_find_nothing():
    h, groups = np.full((12, 3), np.nan), np.arange(12)
    assert rep.knn_accuracy(h, groups % 2, groups) == 0.0
    assert np.isnan(rep.knn_srcc(h, np.arange(12.0), groups))


def test_srcc_of_constant_ratings_is_nan_without_a_warning(recwarn):
    assert np.isnan(rep.knn_srcc(np.eye(6), np.ones(6), np.arange(6), 2))
    assert not recwarn


def test_rows_that_do_not_match_are_refused():
    h, groups = np.eye(6), np.arange(6)
    with pytest.raises(ValueError, match="Expected labels for all 6 representations, got 5"):
        rep.knn_accuracy(h, groups[:5], groups)
    with pytest.raises(ValueError, match="Expected groups for all 6 representations, got 4"):
        rep.knn_srcc(h, groups, groups[:4])


def test_bootstrap_interval_covers_the_truth_and_widens_with_groups():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        a, b = rng.random(200) < 0.7, rng.random(200) < 0.6
        _, low, high = rep.paired_bootstrap(a, b, np.arange(200), draws=400, seed=seed)
        hits += low <= 0.1 <= high
    assert hits >= 52  # 95 % of 60 is 57
    a = np.repeat(rng.random(20) < 0.7, 10)
    b = np.repeat(rng.random(20) < 0.5, 10)
    single, grouped = (rep.paired_bootstrap(a, b, g, draws=400) for g in (np.arange(200), np.repeat(np.arange(20), 10)))
    assert grouped[2] - grouped[1] > 2 * (single[2] - single[1])
    assert single[0] == pytest.approx(a.mean() - b.mean())


def test_cosine_similarity_ignores_length():
    h, labels = unit(projections(60)), np.arange(60) % 3
    assert np.array_equal(
        rep.knn_correct(h, labels, np.arange(60), 5),
        rep.knn_correct(h * np.arange(1, 61)[:, None], labels, np.arange(60), 5),
    )
    assert torch.allclose(F.normalize(torch.as_tensor(h)), torch.as_tensor(h))
