"""Labels of the images that a probe beside the training is measured on."""

import csv
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


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
    """Labels and groups of a CSV file; numbers with more than 20 different values are ratings, all else classes."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []  # an empty file has none
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected a CSV file in UTF-8, got {path} ({error}). Save it as UTF-8.") from None
    for column in (label_column, group_column):
        if column is not None and column not in names:
            raise ValueError(
                f"Expected column {column!r} in {path}, got {', '.join(names) or 'an empty file'}. "
                "Set data.label_column or data.group_column."
            )
    texts = [row[label_column] for row in rows]
    blank = [i + 1 for i, row in enumerate(rows) if not row[label_column] or (group_column and not row[group_column])]
    if blank or not rows:
        raise ValueError(f"Expected a label and a group in every row of {path}, got none in rows {blank[:5]}. Fill in.")
    groups = [row[group_column] for row in rows] if group_column else [str(i) for i in range(len(rows))]
    group_ids = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        numbers = None
    if numbers is not None and len(np.unique(numbers)) > 20:
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0]) + 1
            raise ValueError(f"Expected finite ratings in {path}, got {texts[row - 1]} in row {row}. Correct it.")
        return Labels(numbers, group_ids, False)
    return Labels(np.unique(texts, return_inverse=True)[1].astype(np.int64), group_ids, True)
