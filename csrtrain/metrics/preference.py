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
        ValueError: shapes differ, a value is not finite, or a share is outside [0,1].
    """
    d0, d1, judge = (np.asarray(values, dtype=np.float64) for values in (d0, d1, judge))
    _check_rows(d0=d0, d1=d1, judge=judge)
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
        ValueError: shapes differ, a value is not finite, a share is outside [0,1], or all people saw every difference.
    """
    distances, same = np.asarray(distances, dtype=np.float64), np.asarray(same, dtype=np.float64)
    _check_rows(distances=distances, same=same)
    if not ((same >= 0) & (same <= 1)).all() or same.sum() == 0:
        raise ValueError(f"Expected shares in [0,1], some above 0, got {same.min():g} to {same.max():g}. Check them.")
    order = np.argsort(distances, kind="stable")
    last = np.flatnonzero(np.diff(distances[order], append=np.inf))  # of each run of equal distances
    found = np.cumsum(same[order])[last]
    precision, recall = found / (last + 1), found / same.sum()
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def jnd_draws(distances: Array, same: Array, weights: Array) -> Array:
    """(draws,) `jnd_average_precision` of rows that count several times.

    Args:
        distances, same: (N,) as there.
        weights: (draws,N), see `csrtrain.metrics.bootstrap.group_weights`; NaN where nobody missed a difference.
    """
    order = np.argsort(distances, kind="stable")
    last = np.flatnonzero(np.diff(distances[order], append=np.inf))
    drawn = np.cumsum(weights[:, order], axis=1)[:, last]
    found = np.cumsum((weights * same)[:, order], axis=1)[:, last]
    precision = np.divide(found, drawn, out=np.zeros_like(found), where=drawn > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = found[:, -1]
    area = (np.diff(found, axis=1, prepend=0) * precision).sum(1)
    return np.asarray(np.divide(area, total, out=np.full(len(total), np.nan), where=total > 0))


def _check_rows(**columns: Array) -> None:
    shapes = {name: values.shape for name, values in columns.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 or shape[0] == 0 for shape in shapes.values()):
        raise ValueError(f"Expected one value (N,) per row in {', '.join(shapes)}, got {shapes}. Flatten them.")
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise ValueError(f"Expected finite {name}, got {(~np.isfinite(values)).sum()} others. Leave them out.")
