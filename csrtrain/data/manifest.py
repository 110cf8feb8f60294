"""Rated images: a CSV file with a row per image -> checked rows.

Columns: `path` (absolute, or relative to the manifest; an address as `csrtrain.data.decode.read` takes it), `mos`
(higher is better) or `dmos` (lower is better), and if wanted `reference` (the pristine image of a distorted one),
`group` (rows that belong together, of one patient or scene), `split` (train, val, test). Other columns are kept.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from csrtrain.data import decode
from csrtrain.data.rows import column_names, read_rows
from csrtrain.files import is_address, shown

SPLITS = ("train", "val", "test")
RATINGS = ("mos", "dmos", "proxy")
_LISTED = 5
_LONGEST_NAME = 200  # characters of a group, split, type or subset; arrays of names are as wide as the longest
_NAMES = ("group", "split", "type", "subset")


@dataclass(frozen=True)
class Manifest:
    """Rows of a manifest, N of them, in its order.

    Attributes:
        file: the CSV file.
        addresses: (N,) of the images.
        references: (N,) of the pristine images, or None where there is no such column; "" where a row has none.
        ratings: (N,) float64 as they stand in the file.
        rating_name: one of `RATINGS`.
        groups: (N,) int64; rows of one file (slices, several raters), one reference or one group share it.
        splits: (N,) one of `SPLITS`, or None where there is no such column.
        columns: every column of the file, by name, as text.
        lines: (N,) line of the file in which each row ends; the header is line 1.
    """

    file: str
    addresses: list[str]
    references: list[str] | None
    ratings: NDArray[np.float64]
    rating_name: str
    groups: NDArray[np.int64]
    splits: list[str] | None
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.addresses)

    @property
    def higher_is_better(self) -> bool:
        """Direction of the ratings."""
        return self.rating_name != "dmos"

    @property
    def digest(self) -> str:
        """Of all columns."""
        return hashlib.sha256(json.dumps(self.columns, sort_keys=True).encode()).hexdigest()


class Problem(NamedTuple):
    """What is wrong with a row (line of the file, the header is line 1), in words."""

    line: int
    text: str


def read_manifest(
    path: str,
    path_column: str = "path",
    rating_range: tuple[float, float] | None = None,
) -> Manifest:
    """Read and check a manifest.

    Args:
        path: the CSV file, in UTF-8.
        path_column: the column of images, where it has another name.
        rating_range: smallest and largest rating that the scale has; others are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or rows are wrong; the message names the lines.
    """
    manifest, problems = inspect_manifest(path, path_column, rating_range)
    refuse(path, problems, "; csrtrain check-data lists all")
    return manifest


def refuse(path: str, problems: list[Problem], advice: str = "") -> None:
    """Raise what is wrong with rows of a file, by line.

    Raises:
        ValueError: there are problems.
    """
    if problems:
        listed = "; ".join(f"line {problem.line}: {problem.text}" for problem in problems[:_LISTED])
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ValueError(
            f"Expected sound rows in {path}, got {len(problems)} faults: {listed}{more}. Correct them{advice}."
        )


def is_manifest(path: str) -> bool:
    """Whether a CSV file has a column of ratings."""
    return path.lower().endswith(".csv") and os.path.isfile(path) and bool(set(RATINGS) & set(column_names(path)))


def inspect_manifest(
    path: str,
    path_column: str = "path",
    rating_range: tuple[float, float] | None = None,
) -> tuple[Manifest, list[Problem]]:
    """As `read_manifest`, but faults of rows are returned, by line, and their ratings are NaN.

    Raises:
        FileNotFoundError, ValueError: nothing to inspect: no file, no CSV file, a column is missing.
    """
    names, rows = read_rows(path)
    if path_column not in names:
        raise ValueError(
            f"Expected a column {path_column!r} of images in {path}, got {shown(', '.join(names))}. Rename one, or set "
            "data.path_column."
        )
    rated = [name for name in RATINGS if name in names]
    if len(rated) != 1:
        raise ValueError(
            f"Expected one column of ratings, mos (higher is better), dmos (lower is better) or proxy "
            f"(computed), in {path}, got "
            f"{' and '.join(rated) or shown(', '.join(names))}. Keep or rename one."
        )
    folder, lines = os.path.dirname(path), [line for line, _ in rows]
    problems: list[Problem] = []
    addresses = [address_in(folder, row[path_column]) for _, row in rows]
    references = [address_in(folder, row["reference"]) for _, row in rows] if "reference" in names else None
    ratings = np.full(len(rows), np.nan)
    for i, (line, row) in enumerate(rows):
        reference = references[i] if references is not None else ""
        problems += [Problem(line, text) for text in _faults(row, path_column, addresses[i], reference)]
        try:
            ratings[i] = float(row[rated[0]])
        except ValueError:
            problems.append(Problem(line, f"{rated[0]} is no number, but {shown(row[rated[0]])!r}"))
            continue
        fault = _rating_fault(ratings[i], rated[0], rating_range)
        if fault:
            problems.append(Problem(line, fault))
            ratings[i] = np.nan
    problems += _markers(ratings, lines, rated[0], rating_range)
    columns = {name: [row[name] for _, row in rows] for name in names}
    manifest = Manifest(
        path,
        addresses,
        references,
        ratings,
        rated[0],
        _groups(addresses, references, columns.get("group")),
        columns.get("split"),
        columns,
        lines,
    )
    return manifest, sorted(problems)


def address_in(folder: str, text: str) -> str:
    """The address that a manifest in this folder means; "" stays. What no file can be called is no path of a user."""
    if "\0" in text:  # expanduser cannot take it; row_faults finds no such file
        return os.path.join(folder, text)
    return os.path.join(folder, os.path.expanduser(text)) if text else ""


def _faults(row: dict[str, str], path_column: str, address: str, reference: str) -> list[str]:
    return row_faults(row, {path_column: address} | ({"reference": reference} if reference else {}))


def row_faults(row: dict[str, str], addresses: dict[str, str]) -> list[str]:
    """What is wrong with the images of a row, by column, and with its group and split where it has them."""
    faults = []
    for column, address in addresses.items():
        if not address:
            faults.append(f"no {column}")
        elif is_address(row[column]):
            faults.append(f"{shown(row[column])} is an address, and nothing is fetched from a network")
        elif not os.path.isfile(decode.split(address)[0]):
            faults.append(f"no file {shown(row[column])}")
    if "group" in row and not row["group"]:
        faults.append("no group")
    if "split" in row and row["split"] not in SPLITS:
        faults.append(f"split is {shown(row['split'])!r}, none of {', '.join(SPLITS)}")
    faults += [f"{name} has {len(row[name])} characters" for name in _NAMES if len(row.get(name, "")) > _LONGEST_NAME]
    return faults


def _rating_fault(rating: float, name: str, rating_range: tuple[float, float] | None) -> str:
    if not np.isfinite(rating):
        return f"{name} is {rating}"
    if rating_range and not rating_range[0] <= rating <= rating_range[1]:
        return f"{name} {rating:g} is outside of {rating_range[0]:g} to {rating_range[1]:g}"
    return ""


def _markers(
    ratings: NDArray[np.float64], lines: list[int], name: str, rating_range: tuple[float, float] | None
) -> list[Problem]:
    """-1 where no other rating is below 0: a mark for a missing one. Such ratings become NaN."""
    rows = np.flatnonzero(ratings == -1)
    others = ratings[np.isfinite(ratings) & (ratings != -1)]
    if rating_range or not len(rows) or not len(others) or others.min() < 0:
        return []
    ratings[rows] = np.nan
    return [Problem(lines[i], f"{name} is -1, and no other is below 0: a mark for a missing rating?") for i in rows]


def _groups(addresses: list[str], references: list[str] | None, groups: list[str] | None) -> NDArray[np.int64]:
    """(N,) rows that share a file, a reference or a group; a pristine image belongs to those made from it."""
    keys: list[list[tuple[str, str]]] = []
    real = functools.lru_cache(maxsize=4096)(os.path.realpath)  # of folders, which rows share
    for i, address in enumerate(addresses):
        file = decode.split(address)[0]
        if not address or "\0" in address:
            file = ""
        elif os.path.islink(file) or os.path.basename(file) in ("", ".", ".."):
            file = os.path.realpath(file)
        else:
            file = os.path.join(real(os.path.dirname(file)), os.path.basename(file))
        keys.append([("file", file), ("image", address)])
        keys[i] += [("image", references[i])] if references else []
        keys[i] += [("group", groups[i])] if groups else []
    return joined(keys)


def numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """(N,) the same number for the same name, in the order of the sorted names; memory does not grow with their length,
    as that of an array of names does."""
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], dtype=np.int64)


def joined(keys: list[list[tuple[str, str]]]) -> NDArray[np.int64]:
    """(N,) rows that share a key (kind, name), directly or through others, share a number; names of "" join nothing."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, of_row in enumerate(keys):
        for key in of_row:
            if key[1]:
                parent[root(i)] = root(first.setdefault(key, i))
    numbers = np.unique([root(i) for i in range(len(keys))], return_inverse=True)[1]
    return np.asarray(numbers, dtype=np.int64)
