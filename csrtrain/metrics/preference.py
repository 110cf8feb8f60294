"""How well distances agree with people: two-alternative forced choice (2AFC), and which differences are seen (JND)."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def two_afc(d0: Array, d1: Array, judge: Array) -> Array:
    """(N,) how far a metric agrees with people on each triplet; the 2AFC score is its mean.

    The share of people who chose as the metric does, 0.5 where the distances are equal: LPIPS (Zhang et al., CVPR
    2018, section 4.1).

    Args:
        d0, d1: (N,) distances of p0 and p1 to the reference.
        judge: (N,) share of people who chose p1, in [0,1].

    Raises:
        ValueError: lengths differ, a distance is NaN, or a share is outside [0,1].
    """
    d0, d1, judge = (np.asarray(values, dtype=np.float64) for values in (d0, d1, judge))
    if not len(d0) == len(d1) == len(judge) > 0:
        raise ValueError(
            f"Expected as many d0, d1 and judge, at least 1, got {len(d0)}, {len(d1)} and {len(judge)}. Give all three."
        )
    if np.isnan(d0).any() or np.isnan(d1).any():
        raise ValueError(f"Expected distances, got NaN in {np.isnan(d0 + d1).sum()} triplets. Leave them out.")
    if not ((judge >= 0) & (judge <= 1)).all():
        raise ValueError(f"Expected shares in [0,1], got {judge.min():g} to {judge.max():g}. Divide by the votes.")
    return np.where(d0 == d1, 0.5, np.where(d1 < d0, judge, 1 - judge))


def jnd_average_precision(distances: Array, same: Array) -> float:
    """Average precision of "people see no difference" when pairs are called so in the order of their distances.

    The area under precision over recall, precision made falling, as LPIPS computes it (Zhang et al., CVPR 2018,
    section 4.1; the procedure of PASCAL VOC 2010). "mAP" there is the mean over kinds of distortion. Pairs of equal
    distance are taken together (ours: LPIPS takes them in the order of the file).

    Args:
        distances: (N,) of the pairs.
        same: (N,) share of people who saw no difference, in [0,1].

    Raises:
        ValueError: lengths differ, a distance is NaN, a share is outside [0,1], or nobody saw no difference.
    """
    distances, same = np.asarray(distances, dtype=np.float64), np.asarray(same, dtype=np.float64)
    if not len(distances) == len(same) > 0:
        raise ValueError(f"Expected as many distances as pairs, got {len(distances)} and {len(same)}. Give both.")
    if np.isnan(distances).any():
        raise ValueError(f"Expected distances, got NaN in {np.isnan(distances).sum()} pairs. Leave them out.")
    if not ((same >= 0) & (same <= 1)).all() or same.sum() == 0:
        raise ValueError(f"Expected shares in [0,1], some above 0, got {same.min():g} to {same.max():g}. Check them.")
    order = np.argsort(distances, kind="stable")
    last = np.flatnonzero(np.diff(distances[order], append=np.inf))  # of each run of equal distances
    found = np.cumsum(same[order])[last]
    precision, recall = found / (last + 1), found / same.sum()
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))
