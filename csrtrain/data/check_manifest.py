"""What `csrtrain check-data M.csv` finds out about rated images, before a head is fitted to the ratings."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from csrtrain.data import decode
from csrtrain.data.check import DataReport, check_images
from csrtrain.data.manifest import Manifest, Problem, inspect_manifest, numbered

NEAR = 20  # bits of 256 in which the difference hashes of near-duplicates differ at most; ours
_REVERSED = -0.2  # rank correlation of ratings and sharpness, or closeness to the reference, below which we ask
_LISTED = 20
_ROWS = 2048
_MOST_MEGAPIXELS = 200.0  # as heads are fitted and images scored by default; pretraining takes 100


@dataclass
class ManifestReport:
    """What was found.

    Attributes:
        manifest: the rows.
        images: what is in the files, references included; see `DataReport`.
        problems: rows that are wrong.
        near: pairs of rows (lines of the file) in different splits whose images look the same.
        split_groups: lines of one group or reference that are in several splits, a list per group.
        duplicate_rows: lines that name the same image, a list per image.
        direction: what makes the direction of the ratings look reversed, "" if nothing does.
    """

    manifest: Manifest
    images: DataReport
    problems: list[Problem]
    near: list[tuple[int, int]] = field(default_factory=list)
    split_groups: list[list[int]] = field(default_factory=list)
    duplicate_rows: list[list[int]] = field(default_factory=list)
    direction: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether a head can be fitted: every row is right and every image can be read."""
        return not self.problems and not self.images.broken


def check_manifest(
    path: str,
    path_column: str = "path",
    rating_range: tuple[float, float] | None = None,
    min_size: int = 64,
    workers: int = 0,
) -> ManifestReport:
    """Check rows, files and splits of a manifest, with a progress bar.

    Args:
        path, path_column, rating_range: see `csrtrain.data.manifest.read_manifest`.
        min_size: images with a side below it are listed, pixels.
        workers: processes beside this one.

    Raises:
        FileNotFoundError, ValueError: nothing to check, see `inspect_manifest`.
    """
    manifest, problems = inspect_manifest(path, path_column, rating_range)
    named = dict.fromkeys([*manifest.addresses, *(manifest.references or [])])
    present = [address for address in named if address and os.path.isfile(decode.split(address)[0])]
    images = check_images(path, present, min_size=min_size, max_megapixels=_MOST_MEGAPIXELS, workers=workers)
    report = ManifestReport(manifest, images, problems)
    place = {address: i for i, address in enumerate(images.addresses)}
    of_row = np.array([place.get(address, -1) for address in manifest.addresses])
    report.duplicate_rows = _same(manifest.addresses, manifest.lines)
    if manifest.splits is not None:
        splits = numbered(manifest.splits)
        report.near = [(manifest.lines[i], manifest.lines[j]) for i, j in _near_pairs(images, of_row, splits)]
        for group in np.unique(manifest.groups[_repeated(manifest.groups)]):
            rows = np.flatnonzero(manifest.groups == group)
            if len(np.unique(splits[rows])) > 1:
                report.split_groups.append([manifest.lines[i] for i in rows])
    report.direction = _direction(report, of_row)
    return report


def _same(names: list[str], lines: list[int]) -> list[list[int]]:
    at: dict[str, list[int]] = {}
    for name, line in zip(names, lines, strict=True):
        if name:
            at.setdefault(name, []).append(line)
    return [found for found in at.values() if len(found) > 1]


def _repeated(groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(np.bincount(groups)[groups] > 1)


def _near_pairs(images: DataReport, of_row: NDArray[np.int64], splits: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Pairs of rows in different splits whose hashes differ in at most `NEAR` bits; nearly empty images left out."""
    empty = set(images.empty)
    whole = np.array(
        [k >= 0 and images.addresses[k] not in images.broken and images.addresses[k] not in empty for k in of_row]
    )
    rows = np.flatnonzero(whole)
    bits = np.unpackbits(images.looks[of_row[rows]], axis=1).astype(np.float32) * 2 - 1  # (n,256) of -1 and 1
    for start in range(0, len(rows), _ROWS):
        different = (256 - bits[start : start + _ROWS] @ bits.T) / 2
        apart = splits[rows[start : start + _ROWS], None] != splits[rows][None]
        for i, j in np.argwhere((different <= NEAR) & apart):
            if start + i < j:
                yield int(rows[start + i]), int(rows[j])


def _direction(report: ManifestReport, of_row: NDArray[np.int64]) -> str:
    """Whether good ratings go with blur, or with images far from their references."""
    manifest, images = report.manifest, report.images
    quality = manifest.ratings if manifest.higher_is_better else -manifest.ratings
    name = manifest.rating_name
    known = np.append(images.sharpness, np.nan)  # -1: no such image
    sharpness = known[of_row]
    if manifest.references is not None:
        place = {address: i for i, address in enumerate(images.addresses)}
        pristine = np.array([place.get(address, -1) for address in manifest.references])
        same = np.array([a == r for a, r in zip(manifest.addresses, manifest.references, strict=True)])
        if same.any() and (~same).any() and np.nanmean(quality[same]) < np.nanmean(quality[~same]):
            return f"by {name} the references are worse than the images made from them"
        sharpness = sharpness / known[pristine]
    sound = np.isfinite(quality) & np.isfinite(sharpness)
    if sound.sum() < 20 or np.ptp(quality[sound]) == 0 or np.ptp(sharpness[sound]) == 0:
        return ""
    srcc = float(spearmanr(quality[sound], sharpness[sound]).statistic)
    return f"by {name} blurred images are better: SRCC with sharpness {srcc:.2f}" if srcc < _REVERSED else ""


def format_manifest_report(report: ManifestReport) -> str:
    """The report in words; what is in the files follows by `csrtrain.data.check.format_report`."""
    manifest = report.manifest
    ratings = manifest.ratings[np.isfinite(manifest.ratings)]
    name = f"{manifest.rating_name}, {'higher' if manifest.higher_is_better else 'lower'} is better"
    lines = [f"{len(manifest)} rows in {manifest.file}, {len(report.problems)} faults in them."]
    if len(ratings):
        lines.append(
            f"Ratings: {name}; {ratings.min():g} to {ratings.max():g}, median {np.median(ratings):g}, "
            f"{len(np.unique(ratings))} different."
        )
    groups = len(np.unique(manifest.groups))
    lines.append(f"Groups: {groups}" + (", so every row stands alone." if groups == len(manifest) else "."))
    if manifest.splits is not None:
        lines.append("Splits: " + ", ".join(f"{k}: {n}" for k, n in sorted(Counter(manifest.splits).items())))
    if report.direction:
        lines.append(f"Hint: {report.direction}. Are the ratings reversed (mos for dmos)?")
    for title, entries in (
        ("Wrong rows", [f"line {problem.line}: {problem.text}" for problem in report.problems]),
        ("Lines that name the same image", [", ".join(map(str, found)) for found in report.duplicate_rows]),
        ("Lines of one group or reference in several splits", [_some(found) for found in report.split_groups]),
        ("Lines in different splits whose images look the same", [f"{i}, {j}" for i, j in report.near]),
    ):
        if entries:
            lines += ["", f"{title} ({len(entries)}):", *(f"  {entry}" for entry in entries[:_LISTED])]
        if len(entries) > _LISTED:
            lines.append(f"  ... and {len(entries) - _LISTED} more")
    return "\n".join(lines)


def _some(lines: list[int]) -> str:
    return ", ".join(map(str, lines[:10])) + (f" and {len(lines) - 10} more" if len(lines) > 10 else "")
