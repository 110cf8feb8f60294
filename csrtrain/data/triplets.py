"""What people said about pairs and triplets of images: CSV files -> checked rows, and a pass over their images.

A triplet has `reference`, `p0`, `p1`, and `judge`, the share of people who chose p1 as closer to the reference. A pair
(just noticeable differences, JND) has `p0`, `p1`, and `same`, the share who saw no difference. Both may have `group`
(rows that belong together), `split` (train, val, test), and `subset` (the kind of distortion, over which LPIPS
averages). Paths are absolute, or relative to the file. Other columns are kept.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from csrtrain.data import decode
from csrtrain.data.comparisons import Comparisons, PairBatch, compare, pair_loader
from csrtrain.data.manifest import Problem, address_in, joined, refuse, row_faults
from csrtrain.data.rows import read_rows
from csrtrain.files import shown

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Triplets:
    """Rows of a file of triplets, N of them, in its order.

    Attributes:
        file: the CSV file.
        references, p0, p1: (N,) addresses of images.
        judge: (N,) float64, share of people who chose p1, in [0,1].
        groups: (N,) int64; rows of one reference or one group share it.
        splits: (N,) one of `csrtrain.data.manifest.SPLITS`; all train where there is no such column.
        subsets: (N,) kind of distortion; "" where there is no such column.
        columns: every column of the file, by name, as text.
        lines: (N,) line of the file in which each row ends; the header is line 1.
    """

    file: str
    references: list[str]
    p0: list[str]
    p1: list[str]
    judge: Array
    groups: NDArray[np.int64]
    splits: NDArray[np.str_]
    subsets: list[str]
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.judge)

    @property
    def digest(self) -> str:
        """Of all columns."""
        return _digest(self.columns)


@dataclass(frozen=True)
class JndPairs:
    """Rows of a file of JND pairs, N of them, in its order.

    Attributes:
        file: the CSV file.
        p0, p1: (N,) addresses of images.
        same: (N,) float64, share of people who saw no difference, in [0,1].
        groups: (N,) int64; rows of one p0 (the undistorted image in BAPPS) or one group share it.
        splits: (N,) one of `csrtrain.data.manifest.SPLITS`; all train where there is no such column.
        subsets: (N,) kind of distortion; "" where there is no such column.
        columns: every column of the file, by name, as text.
        lines: (N,) line of the file in which each row ends; the header is line 1.
    """

    file: str
    p0: list[str]
    p1: list[str]
    same: Array
    groups: NDArray[np.int64]
    splits: NDArray[np.str_]
    subsets: list[str]
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.same)

    @property
    def digest(self) -> str:
        """Of all columns."""
        return _digest(self.columns)


def read_triplets(path: str) -> Triplets:
    """Read and check triplets.

    Args:
        path: CSV file in UTF-8 with columns reference, p0, p1, judge, and if wanted group, split, subset.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or rows are wrong; the message names the lines.
    """
    names = ("reference", "p0", "p1")
    columns, addresses, judge, lines = _read(path, names, "judge")
    groups = _groups(addresses["reference"], columns)
    references, p0, p1 = (addresses[name] for name in names)
    splits, subsets = _splits(columns, len(judge)), columns.get("subset", [""] * len(judge))
    return Triplets(path, references, p0, p1, judge, groups, splits, subsets, columns, lines)


def read_jnd(path: str) -> JndPairs:
    """Read and check JND pairs.

    Args:
        path: CSV file in UTF-8 with columns p0, p1, same, and if wanted group, split, subset.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or rows are wrong; the message names the lines.
    """
    columns, addresses, same, lines = _read(path, ("p0", "p1"), "same")
    p0, p1, groups = addresses["p0"], addresses["p1"], _groups(addresses["p0"], columns)
    splits, subsets = _splits(columns, len(same)), columns.get("subset", [""] * len(same))
    return JndPairs(path, p0, p1, same, groups, splits, subsets, columns, lines)


def _digest(columns: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()


def _read(
    path: str, images: tuple[str, ...], share: str
) -> tuple[dict[str, list[str]], dict[str, list[str]], Array, list[int]]:
    """Columns as text, addresses by column, and of each row the share and the line."""
    names, rows = read_rows(path)
    if missing := [name for name in (*images, share) if name not in names]:
        raise ValueError(
            f"Expected columns {', '.join((*images, share))} in {path}, got {shown(', '.join(names))}. Add "
            f"{missing[0]}."
        )
    folder, problems = os.path.dirname(path), []
    addresses = {name: [address_in(folder, row[name]) for _, row in rows] for name in images}
    shares = np.full(len(rows), np.nan)
    for i, (line, row) in enumerate(rows):
        problems += [Problem(line, text) for text in row_faults(row, {name: addresses[name][i] for name in images})]
        try:
            shares[i] = float(row[share])
        except ValueError:
            problems.append(Problem(line, f"{share} is no number, but {shown(row[share])!r}"))
            continue
        if not 0 <= shares[i] <= 1:
            problems.append(Problem(line, f"{share} is {shares[i]:g}, no share of people, 0 to 1"))
    refuse(path, sorted(problems))
    return {name: [row[name] for _, row in rows] for name in names}, addresses, shares, [line for line, _ in rows]


def _groups(references: list[str], columns: dict[str, list[str]]) -> NDArray[np.int64]:
    named = columns.get("group", [""] * len(references))
    return joined([[("image", r), ("group", g)] for r, g in zip(references, named, strict=True)])


def _splits(columns: dict[str, list[str]], count: int) -> NDArray[np.str_]:
    return np.array(columns.get("split", ["train"] * count), dtype=np.str_)


class TripletData(LightningDataModule):
    """The images of triplets for one pass over distinct pairs (reference, p0) and (reference, p1), none twice.

    Pairs that share images go together, see `csrtrain.data.comparisons`: a set like BAPPS, whose triplets share
    nothing, costs three images per triplet; one that compares versions of a few references, little more than an image
    each.

    Args:
        triplets: CSV file, see `csrtrain.data.triplets`.
        size: resize images to a square of so many pixels, antialiased, as LPIPS does with 64 for training and
            measuring; null leaves them as they are, and the three of a triplet must be of one size.
        batch_size: most images that go through the backbone at once, per device; fewer where they are large.
        workers: loader processes per device.
        slice_axis: axis along which NIfTI volumes are cut.
        max_broken: images that may be broken before the fit is refused; their triplets are left out, and named.
        max_megapixels: larger images are refused before they are decoded.
        seed: linked to `seed_everything` on the command line.
    """

    def __init__(
        self,
        triplets: str,
        size: int | None = None,
        batch_size: int = 50,
        workers: int = 2,
        slice_axis: int = 2,
        max_broken: int = 0,
        max_megapixels: float = 200.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 2 or workers < 0 or (size is not None and size < 1):
            raise ValueError(
                f"Expected data.batch_size >= 2, data.workers >= 0 and data.size >= 1 or null, got {batch_size}, "
                f"{workers} and {size}. Correct them."
            )
        self.path = triplets
        self.size = size
        self.batch_size = batch_size
        self.workers = workers
        self.slice_axis = slice_axis
        self.max_broken = max_broken
        self.max_megapixels = max_megapixels
        self.seed = int(seed)
        self.epoch = 0
        self.channels = 3
        self.window: decode.Window = "header"
        self._triplets: Triplets | None = None
        self._comparisons: Comparisons | None = None

    @property
    def triplets(self) -> Triplets:
        """The rows."""
        if self._triplets is None:
            self._triplets = read_triplets(self.path)
        return self._triplets

    @property
    def comparisons(self) -> Comparisons:
        """The pairs of p0 and p1 with the reference."""
        if self._comparisons is None:
            self._comparisons = compare(self.triplets.references, self.triplets.p0, self.triplets.p1)
        return self._comparisons

    def setup(self, stage: str | None = None) -> None:
        """Read and check the triplets."""
        if not (self.triplets.splits == "train").any():
            raise ValueError(f"Expected rows of split train in {self.path}, got none. Correct its column split.")

    def train_dataloader(self) -> DataLoader[PairBatch]:
        """Every pair once over all ranks, as many steps on each rank."""
        return pair_loader(
            self.comparisons,
            self.channels,
            self.batch_size,
            self.workers,
            self.window,
            self.slice_axis,
            self.max_megapixels,
            self.size,
        )

    def state_dict(self) -> dict[str, Any]:
        """Whether the pass is done."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self.epoch = state_dict["epoch"]

    def describe(self) -> dict[str, Any]:
        """What a bundle says about the triplets: no names, no paths."""
        return {
            "digest": self.triplets.digest,
            "triplets": len(self.triplets),
            "images": len(self.comparisons.addresses),
            "size": self.size,
            "groups": int(len(np.unique(self.triplets.groups))),
            "train": int((self.triplets.splits == "train").sum()),
        }
