"""Which rows a head is fitted to and which it is judged on, and what must not be on both sides."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from csrtrain.data import decode
from csrtrain.data.manifest import Manifest, joined

Rows = NDArray[np.int64]

_LISTED = 5


class Split(NamedTuple):
    """Rows (indices) to fit to, and rows to judge on; no group is in both."""

    train: Rows
    test: Rows


def random_splits(groups: NDArray[np.int64], count: int = 10, test_share: float = 0.2, seed: int = 0) -> list[Split]:
    """Splits of whole groups at random, a fifth of the groups for the test.

    CONTRIQUE (arXiv 2110.13266, section IV) takes 70/10/20 by reference, ten times, and chooses the strength of the
    ridge on the 10; here it is chosen by folds inside the 80.

    Raises:
        ValueError: there are fewer than five groups.
    """
    unique, inverse = np.unique(groups, return_inverse=True)
    if len(unique) < 5:
        raise ValueError(f"Expected at least 5 groups of images to split, got {len(unique)}. Rate more scenes.")
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        tested = np.zeros(len(unique), dtype=bool)
        tested[rng.permutation(len(unique))[: max(1, round(test_share * len(unique)))]] = True
        found.append(Split(np.flatnonzero(~tested[inverse]), np.flatnonzero(tested[inverse])))
    return found


def native_split(manifest: Manifest) -> Split:
    """The split that a manifest declares; rows of val are in neither part.

    Raises:
        ValueError: there is none, it has no rows of test, or a group, reference or file is in two parts.
    """
    if manifest.splits is None:
        raise ValueError(f"Expected a column split in {manifest.file}, got none. Add it, or use --protocol splits.")
    splits = np.array(manifest.splits)
    if not (splits == "test").any():
        raise ValueError(f"Expected rows of split test in {manifest.file}, got none. Correct its column split.")
    check_splits(manifest.groups, splits, _images(manifest), manifest.lines, manifest.file)
    return Split(np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test"))


def check_splits(
    groups: Rows, splits: NDArray[np.str_], images: Sequence[Sequence[str]], lines: Sequence[int], file: str
) -> None:
    """Refuse splits (N,) that share a group (N,) or the content of a file.

    Args:
        images: (N,) addresses of the images of each row, its reference too.

    Raises:
        ValueError: they do; the message names the lines.
    """
    leaks = _in_several(groups, splits, lines, "the same group, reference or file")
    if not leaks:
        counts = [len(row) for row in images]
        leaks = _in_several(
            _contents([image for row in images for image in row]),
            np.repeat(splits, counts),
            np.repeat(lines, counts).tolist(),
            "the same file content",
        )
    _refuse(leaks, f"splits of {file} that share nothing", "Move them to one split.")


def with_copies_together(manifest: Manifest) -> Manifest:
    """The manifest with copies of a file (byte by byte), of a reference too, in one group."""
    images = _images(manifest)
    contents = iter(_contents([image for row in images for image in row]).tolist())
    keys = [
        [("group", str(group)), *(("content", str(next(contents))) for _ in row)]
        for group, row in zip(manifest.groups, images, strict=True)
    ]
    return dataclasses.replace(manifest, groups=joined(keys))


def check_rows(manifest: Manifest) -> None:
    """Refuse rows that would be counted twice.

    Raises:
        ValueError: two rows are of the same image; the message names the lines.
    """
    refuse_repeated([same_image(address) for address in manifest.addresses], manifest.lines, manifest.file, "image")


def refuse_repeated(keys: Sequence[object], lines: Sequence[int], file: str, what: str) -> None:
    """Refuse rows of the same key.

    Raises:
        ValueError: there are; the message names the lines.
    """
    first: dict[object, int] = {}
    faults = []
    for key, line in zip(keys, lines, strict=True):
        if first.setdefault(key, line) != line:
            faults.append(f"line {line} has the same {what} as line {first[key]}")
    _refuse(faults, f"every {what} of {file} once", "Keep one row of each; several ratings go into their mean.")


def check_manifests_apart(manifests: Sequence[Manifest]) -> None:
    """Refuse images, and references, that are in two manifests, one of which a head is fitted to.

    Raises:
        ValueError: a file, or its content, is in two; the message names the lines.
    """
    found = [
        (image, part, f"{line} of {os.path.basename(manifest.file)}")
        for part, manifest in enumerate(manifests)
        for line, row in zip(manifest.lines, _images(manifest), strict=True)
        for image in row
    ]
    addresses, parts, names = zip(*found, strict=True)
    leaks = _in_several(_contents(addresses), np.array(parts), names, "the same file content")
    _refuse(leaks, "manifests that share no image", "Leave them out of one.")


def same_image(address: str) -> tuple[str, int | None]:
    """What two addresses of one image have in common: the file itself and the frame."""
    path, frame = decode.split(address)
    return os.path.realpath(path), frame


def _refuse(faults: list[str], expected: str, advice: str) -> None:
    if faults:
        more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise ValueError(f"Expected {expected}, got {'; '.join(faults[:_LISTED])}{more}. {advice}")


def _images(manifest: Manifest) -> list[list[str]]:
    """(N,) the image of each row, and its reference."""
    references = manifest.references or [""] * len(manifest)
    return [[name for name in row if name] for row in zip(manifest.addresses, references, strict=True)]


def _in_several(keys: Rows, parts: NDArray[Any], lines: Sequence[object], what: str) -> list[str]:
    """In words, keys whose rows are in several parts."""
    numbers = np.unique(parts, return_inverse=True)[1]
    pairs = np.unique(np.stack([keys, numbers], 1), axis=0)
    shared = pairs[:, 0][np.flatnonzero(np.diff(pairs[:, 0]) == 0)]
    faults = []
    for key in np.unique(shared):
        named = list(dict.fromkeys(str(lines[row]) for row in np.flatnonzero(keys == key).tolist()))
        faults.append(f"{what} in lines {', '.join(named[:_LISTED])}{', ...' if len(named) > _LISTED else ''}")
    return faults


def _contents(addresses: Sequence[str]) -> NDArray[np.int64]:
    """(N,) a number per content of a file; only files of equal size are read."""
    files = [os.path.realpath(decode.split(address)[0]) for address in addresses]
    sizes = {file: os.path.getsize(file) for file in set(files)}
    counts: dict[int, int] = {}
    for size in sizes.values():
        counts[size] = counts.get(size, 0) + 1
    keys = {}
    for file, size in sizes.items():
        keys[file] = file
        if counts[size] > 1:
            with open(file, "rb") as content:
                keys[file] = hashlib.file_digest(content, "sha256").hexdigest()
    return np.unique([keys[file] for file in files], return_inverse=True)[1].astype(np.int64)
