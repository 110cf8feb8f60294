"""How a representation looks without labels, and what nearest neighbours make of it with labels."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torchmetrics import Metric


def embedding_std(z: Tensor) -> Tensor:
    """Standard deviation of L2-normalised projections (N,d), mean over dimensions, times sqrt(d).

    1 when they are spread evenly over the sphere, 0 when all are the same (Chen & He, arXiv 2011.10566, section 4.1).
    """
    z = F.normalize(z.float(), dim=1)
    spread: Tensor = z.std(0, correction=0).mean() * math.sqrt(z.shape[1])
    return spread


def effective_rank(z: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of (N,d), from 1 to d.

    RankMe (Garrido et al., arXiv 2210.02885). Taken of L2-normalised projections, not centred.
    """
    unit = F.normalize(z.double(), dim=1)
    return _effective_rank(_singular_shares(unit.T @ unit))


def _singular_shares(second_moment: Tensor) -> Tensor:
    """(d,) singular values of what gave (d,d) `second_moment`, largest first, as shares of their sum; NaN with it."""
    if not bool(torch.isfinite(second_moment).all()):
        return second_moment.new_full((len(second_moment),), torch.nan)
    singular = torch.linalg.eigvalsh(second_moment).clamp_min(0).sqrt().flip(0)
    shares: Tensor = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    return shares


def _effective_rank(shares: Tensor) -> Tensor:
    return torch.exp(-(shares * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum())


def alignment(z0: Tensor, z1: Tensor) -> Tensor:
    """Mean squared distance of L2-normalised positives (N,d); 0 when views agree (Wang & Isola, arXiv 2005.10242)."""
    return (F.normalize(z0.float(), dim=1) - F.normalize(z1.float(), dim=1)).square().sum(1).mean()


def uniformity(z: Tensor) -> Tensor:
    """log of the mean of exp(-2 |x - y|^2) over pairs of L2-normalised (N,d); 0 when collapsed, -4 at best
    (Wang & Isola, arXiv 2005.10242)."""
    return torch.pdist(F.normalize(z.float(), dim=1)).square().mul(-2).exp().mean().log()


class RepresentationStatistics(Metric):
    """The four statistics over an epoch, in O(d^2) memory, without a host read in `update`; summed over ranks.

    Uniformity is estimated from the pairs within each local batch of the first view (our choice).

    Args:
        dim: dimension d of the projections.

    Attributes:
        singular_shares: (d,) of the last `compute`: the singular values of the projections of both views, largest
            first, as shares of their sum. The effective rank is exp of their entropy.
    """

    full_state_update = False
    singular_shares: Tensor
    second_moment: Tensor
    total: Tensor
    distance: Tensor
    potential: Tensor
    rows: Tensor
    pairs: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name, shape in (("second_moment", (dim, dim)), ("total", (dim,)), ("distance", ()), ("potential", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("rows", "pairs"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, z0: Tensor, z1: Tensor) -> None:
        """Add a batch of projections (B,d) of both views."""
        z0, z1 = F.normalize(z0.double(), dim=1), F.normalize(z1.double(), dim=1)
        both = torch.cat([z0, z1])
        self.second_moment += both.T @ both
        self.total += both.sum(0)
        self.distance += (z0 - z1).square().sum()
        self.potential += torch.pdist(z0).square().mul(-2).exp().sum()
        self.rows += len(z0)
        self.pairs += len(z0) * (len(z0) - 1) / 2

    def compute(self) -> dict[str, Tensor]:
        """embedding_std, effective_rank, alignment, uniformity."""
        n = 2 * self.rows
        self.singular_shares = _singular_shares(self.second_moment)
        variance = self.second_moment.diagonal() / n - (self.total / n).square()
        return {
            "embedding_std": variance.clamp_min(0).sqrt().mean() * len(self.total) ** 0.5,
            "effective_rank": _effective_rank(self.singular_shares),
            "alignment": self.distance / self.rows,
            "uniformity": (self.potential / self.pairs).log(),
        }


def group_folds(groups: NDArray[np.int64], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """(N,) fold of each row; whole groups in one fold, groups dealt at random."""
    unique, inverse = np.unique(groups, return_inverse=True)
    if len(unique) < folds:
        raise ValueError(f"Expected at least {folds} groups for {folds} folds, got {len(unique)}. Use fewer folds.")
    order = np.random.default_rng(seed).permutation(len(unique))
    fold_of_group = np.empty(len(unique), dtype=np.int64)
    fold_of_group[order] = np.arange(len(unique)) % folds
    return np.asarray(fold_of_group[inverse], dtype=np.int64)


def _check_rows(h: Tensor | NDArray[Any], **columns: NDArray[Any]) -> None:
    for name, column in columns.items():
        if len(column) != len(h):
            raise ValueError(
                f"Expected {name} for all {len(h)} representations, got {len(column)}. Pass the same rows."
            )


def _neighbours(h: Tensor, apart: NDArray[np.int64], k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For chunks of rows: the k rows of largest cosine that have another value in `apart`, and the cosines."""
    h = F.normalize(torch.as_tensor(h).float(), dim=1)
    part = torch.as_tensor(apart)
    counts = torch.bincount(torch.unique(part, return_inverse=True)[1])
    k = min(k, len(h) - int(counts.max()))
    if k < 1:
        raise ValueError("Expected rows of at least two groups, got one group. Check data.group_column.")
    for start in range(0, len(h), 1024):
        rows = slice(start, start + 1024)
        similarity = h[rows] @ h.T
        similarity[part[rows][:, None] == part[None, :]] = -torch.inf
        top = similarity.topk(k, dim=1)
        yield rows, top.indices, top.values


def knn_correct(
    h: Tensor | NDArray[Any], labels: NDArray[Any], groups: NDArray[np.int64], k: int = 20
) -> NDArray[np.bool_]:
    """(N,) whether the k nearest rows of other groups vote for a row's class.

    Args:
        h: (N,D) representations; cosine similarity.
        labels: (N,) classes.
        groups: (N,) rows of one group never judge each other; pass folds for a k-fold protocol.
        k: neighbours; each votes with exp(cosine / 0.07) (Wu et al., arXiv 1805.01978). Fewer where a row has fewer
            rows of other groups.

    A row whose neighbours cannot be told, because representations are not finite, counts as wrong.

    Raises:
        ValueError: numbers of rows differ, or there is one group only.
    """
    _check_rows(h, labels=labels, groups=groups)
    classes, target = np.unique(labels, return_inverse=True)
    codes = torch.as_tensor(target)
    correct = np.empty(len(codes), dtype=np.bool_)
    for rows, indices, cosines in _neighbours(torch.as_tensor(h), groups, k):
        votes = torch.zeros(len(indices), len(classes))
        votes.scatter_add_(1, codes[indices], (cosines / 0.07).exp())
        correct[rows] = ((votes.argmax(1) == codes[rows]) & cosines.isfinite().all(1)).numpy()
    return correct


def knn_accuracy(h: Tensor | NDArray[Any], labels: NDArray[Any], groups: NDArray[np.int64], k: int = 20) -> float:
    """Share of rows whose class the k nearest rows of other groups find; see `knn_correct`."""
    return float(knn_correct(h, labels, groups, k).mean())


def knn_srcc(h: Tensor | NDArray[Any], values: NDArray[Any], groups: NDArray[np.int64], k: int = 20) -> float:
    """Spearman correlation of ratings (N,) with the mean rating of the k nearest rows of other groups.

    NaN where it is not defined: all ratings or all means alike, or representations that are not finite. Raises as
    `knn_correct` does.
    """
    _check_rows(h, values=values, groups=groups)
    ratings = torch.as_tensor(np.asarray(values, dtype=np.float64))
    means = [
        torch.where(cosines.isfinite().all(1), ratings[indices].mean(1), torch.nan)
        for _, indices, cosines in _neighbours(torch.as_tensor(h), groups, k)
    ]
    predicted = torch.cat(means).numpy()
    if np.ptp(predicted) == 0 or np.ptp(ratings.numpy()) == 0:
        return math.nan
    return float(spearmanr(predicted, ratings.numpy()).statistic)


def paired_bootstrap(
    a: NDArray[Any], b: NDArray[Any], groups: NDArray[np.int64], draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two means on the same rows and its 95 % interval, groups drawn with replacement.

    Args:
        a, b: (N,) a value per row, for example whether it was classified correctly.
        groups: (N,) what is drawn.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        (mean(a) - mean(b), low, high).
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    _, inverse = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(inverse, weights=difference), np.bincount(inverse).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        chosen = rng.integers(0, len(sums), len(sums))
        means[i] = sums[chosen].sum() / sizes[chosen].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
