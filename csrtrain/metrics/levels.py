"""Whether scores fall as a distortion grows."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


def level_pairs(series: NDArray[np.int64], levels: Array) -> tuple[Rows, Rows]:
    """Pairs of rows of one series (one reference, one type of distortion) at different levels.

    Args:
        series: (N,).
        levels: (N,) higher is more distorted.

    Returns:
        (P,) rows of the lower level, and (P,) rows of the higher one.
    """
    mild: list[Rows] = []
    strong: list[Rows] = []
    order = np.argsort(series, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(series[order])) + 1):
        i, j = np.nonzero(levels[rows, None] < levels[rows])
        mild.append(rows[i])
        strong.append(rows[j])
    return np.concatenate(mild), np.concatenate(strong)


def in_order(scores: Array, mild: Rows, strong: Rows) -> Array:
    """(P,) 1 where the lower level has the higher score, 0.5 where both have the same, else 0."""
    return np.asarray((scores[mild] > scores[strong]) + 0.5 * (scores[mild] == scores[strong]))
