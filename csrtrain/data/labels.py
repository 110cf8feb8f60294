"""Labels of the images that a probe beside the training is measured on."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from csrtrain.data.manifest import numbered
from csrtrain.data.rows import MOST_ROWS, limit, stream_rows
from csrtrain.files import shown


class Labels(NamedTuple):
    """Labels of the probe.

    values: (N,) class indices (int64) or ratings (float64).
    groups: (N,) int64; rows of one group never judge each other.
    is_class: whether `values` are classes.
    """

    values: NDArray[Any]
    groups: NDArray[np.int64]
    is_class: bool


def read_labels(path: str, label_column: str, group_column: str | None) -> Labels:
    """Labels and groups of a CSV file; numbers with more than 20 different values are ratings, all else classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file, a column is missing, or a cell of them is empty.
    """
    names, lines = stream_rows(path, limit(MOST_ROWS))
    with lines:
        for column in (label_column, group_column):
            if column is not None and column not in names:
                raise ValueError(
                    f"Expected column {column!r} in {path}, got {shown(', '.join(names))}. Set "
                    "data.label_column or data.group_column."
                )
        places = [names.index(column) for column in (label_column, group_column) if column is not None]
        rows = [[cells[place] for place in places] for _, cells in lines]
    blank = [i + 1 for i, row in enumerate(rows) if not all(row)]
    if blank or not rows:
        raise ValueError(f"Expected a label and a group in every row of {path}, got none in rows {blank[:5]}. Fill in.")
    texts = [row[0] for row in rows]
    group_ids = numbered([row[1] if group_column else str(i) for i, row in enumerate(rows)])
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        numbers = None
    if numbers is not None and len(np.unique(numbers)) > 20:
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0]) + 1
            raise ValueError(
                f"Expected finite ratings in {path}, got {shown(texts[row - 1])} in row {row}. Correct it."
            )
        return Labels(numbers, group_ids, False)
    return Labels(numbered(texts), group_ids, True)
