"""How well distances agree with choices (2AFC) and with seen differences (JND): rows, measures, intervals."""

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from csrtrain.data.manifest import RATINGS
from csrtrain.data.rows import column_names
from csrtrain.data.splits import Split, check_splits, refuse_repeated, same_image
from csrtrain.data.triplets import Triplets, read_jnd, read_triplets
from csrtrain.evaluate.methods import Method
from csrtrain.evaluate.rated import Measured, compared, described_split
from csrtrain.metrics import bootstrap
from csrtrain.metrics.preference import jnd_average_precision, jnd_draws, two_afc

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


class Preferences(NamedTuple):
    """Rows of a CSV file of choices, N of them.

    kind: 2afc (reference, p0, p1, judge) or jnd (p0, p1, same).
    file: its path.
    references, p0, p1: (N,) addresses; for jnd p0 is the reference of p1, and `p0` is empty.
    share: (N,) of people who chose p1, or who saw no difference, in [0,1].
    groups: (N,) rows of one reference or group, directly or through others, share it.
    splits: (N,), or None.
    subsets: (N,), "" where there is no such column.
    digest: of all columns.
    lines: (N,) line of the file.
    """

    kind: Literal["2afc", "jnd"]
    file: str
    references: list[str]
    p0: list[str]
    p1: list[str]
    share: Array
    groups: Rows
    splits: list[str] | None
    subsets: list[str]
    digest: str
    lines: list[int]

    def pairs(self) -> tuple[list[tuple[str, str]], Rows, Rows]:
        """Different pairs (image, reference), and for each row which of them its p0 and its p1 are (-1: none)."""
        place: dict[tuple[str, str], int] = {}
        first = [place.setdefault((image, r), len(place)) for image, r in zip(self.p0, self.references, strict=False)]
        second = [place.setdefault((image, r), len(place)) for image, r in zip(self.p1, self.references, strict=True)]
        return list(place), np.array(first or [-1] * len(self.p1)), np.array(second)


def is_preferences(path: str) -> bool:
    """Whether a CSV file has a column of choices, judge or same."""
    return path.lower().endswith(".csv") and os.path.isfile(path) and bool({"judge", "same"} & set(column_names(path)))


def read_preferences(path: str) -> Preferences:
    """Read and check choices.

    Args:
        path: CSV file with columns reference, p0, p1, judge, or p0, p1, same; and if wanted group, split, subset.

    Raises:
        ValueError: a column is missing, or rows are wrong or there twice; the message names the lines. Or everybody
            saw every difference.
    """
    judged = [name for name in ("judge", "same", *RATINGS) if name in column_names(path)]
    if len(judged) > 1:
        raise ValueError(f"Expected one column of judgements in {path}, got {' and '.join(judged)}. Keep one.")
    read = read_triplets(path) if judged == ["judge"] else read_jnd(path)
    kind: Literal["2afc", "jnd"] = "2afc" if isinstance(read, Triplets) else "jnd"
    references, p0 = (read.references, read.p0) if isinstance(read, Triplets) else (read.p0, [])
    share = read.judge if isinstance(read, Triplets) else read.same
    if kind == "jnd" and not share.any():
        raise ValueError(
            f"Expected pairs in {path} whose difference somebody did not see, got same 0 for all. Check the column."
        )
    keys = [
        (same_image(references[i]), frozenset(same_image(image[i]) for image in (p0, read.p1) if image))
        for i in range(len(read))
    ]
    refuse_repeated(keys, read.lines, path, "triplet" if kind == "2afc" else "pair")
    splits = read.splits.tolist() if "split" in read.columns else None
    return Preferences(
        kind, path, references, p0, read.p1, share, read.groups, splits, read.subsets, read.digest, read.lines
    )


def tested_rows(preferences: Preferences, protocol: str) -> Rows:
    """The rows that are judged: all, or for native those of split test.

    Raises:
        ValueError: another protocol, no split, or a file, its content, a reference or a group in two splits.
    """
    if protocol == "whole":
        return np.arange(len(preferences.share))
    if protocol != "native":
        raise ValueError(
            f"Expected the protocol whole or native for choices, got {protocol}. Nothing is fitted to them."
        )
    if preferences.splits is None or "test" not in preferences.splits:
        raise ValueError(f"Expected rows of split test in {preferences.file}, got none. Use --protocol whole.")
    splits = np.array(preferences.splits)
    images = [
        list(row) for row in zip(*filter(None, (preferences.references, preferences.p0, preferences.p1)), strict=True)
    ]
    check_splits(preferences.groups, splits, images, preferences.lines, preferences.file)
    return np.flatnonzero(splits == "test")


def judge(
    methods: Sequence[Method], preferences: Preferences, first: Rows, second: Rows, rows: Rows, seed: int
) -> dict[str, Any]:
    """2AFC or JND of every method on the same rows, per subset and over all, with intervals and differences.

    Args:
        methods: their values are minus the distances of `preferences.pairs()`.
        first, second: which pairs each row compares, as `pairs` says.
        rows: those that are judged.
    """
    methods = [method for method in methods if method.name != "PSNR"]  # in the order of pixel L2
    groups = preferences.groups[rows]
    weights = bootstrap.group_weights(groups, seed=seed)
    subsets = np.array(preferences.subsets)[rows]
    found: dict[str, dict[str, Measured]] = {}
    parts: dict[str, dict[str, Measured]] = {}
    for method in methods:
        distances = -np.asarray(method.values[:, 0], dtype=np.float64)
        d0, d1, share = distances[first[rows]], distances[second[rows]], preferences.share[rows]
        kinds = {str(kind): np.flatnonzero(subsets == kind) for kind in sorted(set(subsets))}
        if preferences.kind == "2afc":
            agreed = two_afc(d0, d1, share)
            parts[method.name] = {
                kind: Measured([float(agreed[of].mean())], bootstrap.weighted_mean(agreed[of], weights[:, of]))
                for kind, of in kinds.items()
            }
            found[method.name] = {"two_afc": Measured([float(agreed.mean())], bootstrap.weighted_mean(agreed, weights))}
            if len(kinds) > 1:
                found[method.name]["two_afc_subsets"] = _mean(list(parts[method.name].values()))
        else:
            parts[method.name] = {
                kind: Measured(
                    [jnd_average_precision(d1[of], share[of]) if share[of].any() else math.nan],
                    jnd_draws(d1[of], share[of], weights[:, of]),
                )
                for kind, of in kinds.items()
            }
            found[method.name] = {"jnd": _mean(list(parts[method.name].values()))}
    return {
        "methods": {
            method.name: {
                "kind": method.kind,
                "head": method.head,
                "measures": {name: one.described(groups) for name, one in found[method.name].items()},
                "subsets": {
                    kind: one.described(groups[subsets == kind])
                    for kind, one in parts[method.name].items()
                    if len(parts[method.name]) > 1
                },
                "versus": {
                    name: compared(found[method.name], found[name], groups, tuple(found[name]))
                    for name in method.controls
                    if name in found
                },
            }
            for method in methods
        },
        "splits": [described_split(Split(np.empty(0, dtype=np.int64), rows))],
        "test_images": len(rows),
        "test_groups": len(np.unique(groups)),
    }


def _mean(parts: Sequence[Measured]) -> Measured:
    """Unweighted mean over subsets."""
    points = [part.per_split[0] for part in parts if math.isfinite(part.per_split[0])]
    draws = np.stack([part.draws for part in parts])
    known = np.isfinite(draws)
    total = np.where(known, draws, 0).sum(0)
    mean = np.divide(total, known.sum(0), out=np.full(len(total), np.nan), where=known.any(0))
    return Measured([float(np.mean(points)) if points else math.nan], mean)
