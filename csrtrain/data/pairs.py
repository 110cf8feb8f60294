"""Images and their references: which belongs to which.

A reference is one image for all, or found in a folder by name, or named by a row of a CSV file. Frames of a file with
several (`path#k`) meet the frames of a reference with as many.
"""

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

from csrtrain.data import decode
from csrtrain.data.index import Index, addresses_of, may_have_frames
from csrtrain.data.listing import list_folder
from csrtrain.data.manifest import address_in
from csrtrain.data.rows import column_names, read_rows
from csrtrain.files import shown


class Pairs(NamedTuple):
    """Images with their references, in the order in which they were named.

    pairs: addresses of each image and of its reference ("" where there is none).
    refused: row -> what is wrong with it, with the names of both files, where the reference is no file or does not fit.
    """

    pairs: list[tuple[str, str]]
    refused: dict[int, str]


def pairs_of(paths: Sequence[str], reference: str | None = None, column: str = "path", slice_axis: int = 2) -> Pairs:
    """Pair the images that a user names with their references.

    Args:
        paths: images, folders and lists, as for `csrtrain.data.index.addresses_of`, which need `reference`; or CSV
            files that have a column `reference` beside that of the images, a row per pair, which do not.
        reference: one image (or frame `path#k`), which is the reference of all; or a folder, where that of an image has
            the same path relative to the folder that was named, or the same but for the extension, or, as the only
            one, the same name but for the extension. No image is its own reference there.
        column: of images in CSV files.
        slice_axis: axis along which NIfTI volumes are cut.

    Raises:
        FileNotFoundError: a path or `reference` does not exist.
        ValueError: references are missing altogether, named twice, or several of a folder fit an image.
    """
    matcher = _Matcher(slice_axis)
    folder = None
    if reference is not None:
        folder = _Folder(reference) if os.path.isdir(reference) else None
        if folder is None and not os.path.isfile(decode.split(reference)[0]):
            raise FileNotFoundError(
                f"Expected an image or a folder of references, got nothing at {shown(reference)}. Correct the path."
            )
        if reference.lower().endswith((".csv", ".txt", ".lst")):
            raise ValueError(
                f"Expected an image or a folder of references, got the list {reference}. Give a CSV file with columns "
                "path and reference instead of images, and leave --reference out."
            )
    for path in paths:
        if path.lower().endswith(".csv") and os.path.isfile(path) and "reference" in column_names(path):
            if reference is not None:
                raise ValueError(
                    f"Expected references from one place, got --reference {reference} and a column reference in "
                    f"{path}. Leave one out."
                )
            matcher.add_rows(path, column)
        elif reference is None:
            raise ValueError(
                f"Expected references for the images of {shown(path)}, got none. Add --reference with an image or a "
                "folder, or give a CSV file with columns path and reference."
            )
        else:
            matcher.add_images(path, column, folder or reference)
    return Pairs(matcher.pairs, matcher.refused)


class _Folder:
    """The references in a folder, by name."""

    def __init__(self, root: str) -> None:
        self.root = root
        files = list_folder(root).entries
        if not files:
            raise ValueError(f"Expected a folder of references, got {root} without an image. Correct the path.")
        self._paths = set(files)
        self._stems: dict[str, list[str]] = {}
        self._names: dict[str, list[str]] = {}
        for file in files:
            self._stems.setdefault(_stem(file), []).append(file)
            self._names.setdefault(os.path.basename(_stem(file)), []).append(file)

    def of(self, image: str, relative: str) -> str | None:
        """The file of the reference of an image, given its file and where it lies below what the user named."""
        itself, stem = os.path.realpath(image), _stem(relative)
        for fitting in (
            [relative] if relative in self._paths else [],
            self._stems.get(stem, []),
            self._names.get(os.path.basename(stem), []),
        ):
            files = [os.path.join(self.root, file) for file in fitting]
            files = [file for file in files if os.path.realpath(file) != itself]
            if len(files) > 1:
                raise ValueError(
                    f"Expected one reference of {image} in {self.root}, got {len(files)}: {', '.join(files[:5])}. "
                    "Rename or remove the others, or give a CSV file with columns path and reference."
                )
            if files:
                return files[0]
        return None


class _Matcher:
    """Gathers pairs, frame by frame."""

    def __init__(self, slice_axis: int) -> None:
        self.pairs: list[tuple[str, str]] = []
        self.refused: dict[int, str] = {}
        self._slice_axis = slice_axis
        self._count = functools.lru_cache(maxsize=16)(self._frames_in)  # frames of one file follow each other

    def add_images(self, path: str, column: str, references: "_Folder | str") -> None:
        """What `addresses_of` finds at a path, with one reference or those of a folder."""
        addresses = addresses_of(path, column, self._slice_axis)
        base = addresses.root if isinstance(addresses, Index) else os.path.dirname(os.path.abspath(path))
        last, reference = None, references if isinstance(references, str) else None
        for address in addresses:
            file = decode.split(address)[0]
            if isinstance(references, _Folder) and file != last:
                relative = os.path.relpath(file, base)
                outside = relative.split(os.sep)[0] == os.pardir
                reference, last = references.of(file, os.path.basename(file) if outside else relative), file
            if reference is None:
                where = references.root if isinstance(references, _Folder) else references
                self._add(address, "", f"Expected its reference in {where}, got none of its name. Add it.")
            else:
                self._add_frame(address, reference, for_all=isinstance(references, str))

    def add_rows(self, path: str, column: str) -> None:
        """The rows of a CSV file with columns of images and references."""
        names, rows = read_rows(path)
        if column not in names:
            raise ValueError(
                f"Expected a column {column!r} of images in {path}, got {shown(', '.join(names))}. Set --column."
            )
        for line, row in rows:
            image, reference = (address_in(os.path.dirname(path), row[name]) for name in (column, "reference"))
            if not image or not reference:
                what = "reference" if image else column
                wrong = f"Expected a path in each cell of {what!r}, got none in line {line} of {path}. Fill it."
                self._add(image, reference, wrong)
                continue
            file, frame = decode.split(image)
            count = 1 if frame is not None or not may_have_frames(file) else self._count(file)
            for address in [image] if count < 2 else [f"{file}#{k}" for k in range(count)]:
                self._add_frame(address, reference, for_all=frame is not None)

    def _add_frame(self, image: str, reference: str, for_all: bool) -> None:
        """An image with its reference; of a file with several frames that with the same number.

        Args:
            for_all: whether a reference of one frame is that of every frame of an image.
        """
        (file, frame), (of, named) = decode.split(image), decode.split(reference)
        count = 1 if named is not None or (frame is None and not may_have_frames(of)) else self._count(of)
        if count == 1 and (for_all or frame is None or named is not None):
            self._add(image, reference)
            return
        wanted = 1 if frame is None else self._count(file)
        if not count or not wanted:
            self._add(image, reference)
        elif count == wanted:
            self._add(image, f"{reference}#{frame or 0}")
        else:
            self._add(
                image,
                reference,
                f"Expected {wanted} frames in its reference {reference}, as in the image, got {count}. Name one of "
                "them as file#k.",
            )

    def _add(self, image: str, reference: str, wrong: str = "") -> None:
        if wrong:
            self.refused[len(self.pairs)] = f"{image}: {wrong}" if image else wrong
        self.pairs.append((image, reference))

    def _frames_in(self, file: str) -> int:
        """0 for a broken file: whoever reads it says why."""
        try:
            return decode.count_frames(file, self._slice_axis)
        except decode.DecodeError:
            return 0


def _stem(file: str) -> str:
    """Without the extension, of two parts or one; a part of a DICOM UID is none."""
    extensions = [extension for extension in decode.EXTENSIONS if file.lower().endswith(extension)]
    return file[: -max(map(len, extensions))] if extensions else file
