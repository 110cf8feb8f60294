"""What `csrtrain check-data` finds out about a folder, a list or a CSV column, before anything is trained on it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from csrtrain.data import decode
from csrtrain.data.index import build_index, spans_nothing
from csrtrain.data.workers import as_is

_LISTED = 20


class _Finding(NamedTuple):
    """One image: kind, (C,H,W), whether it has 8 bits, whether it shows next to nothing, digest of its pixels, bits of
    its difference hash, mean absolute Laplacian of its luma."""

    address: str
    kind: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    is_8bit: bool = True
    is_empty: bool = False
    digest: bytes = b""
    look: NDArray[np.uint8] | None = None
    sharpness: float = np.nan
    reason: str = ""


@dataclass
class DataReport:
    """What was found.

    Attributes:
        root: what was checked.
        images: number of images, frames of multi-frame files counted one by one; broken ones included.
        kinds, channels, depths: images per format, number of channels, bit depth ("8-bit" or "deeper").
        heights, widths: (smallest, median, largest) in pixels.
        broken: address -> reason, for images that cannot be read.
        duplicates: groups of addresses whose decoded pixels are the same.
        small: addresses of images with a side below `min_size`.
        empty: addresses of images that show next to nothing.
        min_size: pixels.
        addresses: (N,) of the images, broken ones included.
        looks: (N,32) uint8, the 256 bits of each image's difference hash; near-duplicates differ in few.
        sharpness: (N,) mean absolute Laplacian of luma in [0,1]; NaN of broken images.
    """

    root: str
    images: int
    min_size: int
    addresses: Sequence[str]
    looks: NDArray[np.uint8]
    sharpness: NDArray[np.float64]
    kinds: Counter[str] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    depths: Counter[str] = field(default_factory=Counter)
    heights: tuple[int, int, int] = (0, 0, 0)
    widths: tuple[int, int, int] = (0, 0, 0)
    broken: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


class _Inspection(Dataset[_Finding]):
    def __init__(self, index: Sequence[str], slice_axis: int, max_megapixels: float) -> None:
        self.index = index
        self.slice_axis = slice_axis
        self.max_megapixels = max_megapixels

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> _Finding:
        address = self.index[i]
        try:
            kind = decode.kind_of(decode.split(address)[0])
            image = decode.read(address, slice_axis=self.slice_axis, max_megapixels=self.max_megapixels)
        except decode.DecodeError as error:
            return _Finding(address, reason=str(error).removeprefix(f"{address}: "))
        pixels = np.ascontiguousarray(image.numpy())
        digest = hashlib.blake2b(pixels.data, digest_size=16, key=str(pixels.shape).encode()).digest()
        channels, height, width = pixels.shape
        luma = decode.to_channels(image, 1).float() / (255 if image.dtype == torch.uint8 else 1)  # (1,H,W)
        return _Finding(
            address,
            kind,
            (channels, height, width),
            image.dtype == torch.uint8,
            spans_nothing(pixels),
            digest,
            _difference_hash(luma),
            _sharpness(luma),
        )


def _difference_hash(luma: Tensor) -> NDArray[np.uint8]:
    """(32,) uint8: of the image as 16 x 17 pixels, whether each is brighter than its neighbour."""
    small = F.adaptive_avg_pool2d(luma, (16, 17))[0]
    return np.packbits((small[:, 1:] > small[:, :-1]).numpy())


def _sharpness(luma: Tensor) -> float:
    if min(luma.shape[1:]) < 3:
        return 0.0
    x = luma[0]
    laplacian = 4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]
    return float(laplacian.abs().mean())


def check_data(
    root: str,
    *,
    column: str | None = None,
    slice_axis: int = 2,
    min_size: int = 64,
    max_megapixels: float = 100.0,
    workers: int = 0,
    cache_dir: str | None = None,
) -> DataReport:
    """Decode every image once and report what is there, with a progress bar.

    Args:
        root, column, slice_axis, cache_dir: as for `csrtrain.data.index.build_index`. Empty frames are kept.
        min_size: images with a side below it are listed, pixels.
        max_megapixels: larger images count as broken.
        workers: processes beside this one.

    Raises:
        FileNotFoundError, ValueError: nothing to check, see `build_index`.
    """
    index = build_index(root, column=column, slice_axis=slice_axis, skip_empty=False, cache_dir=cache_dir)
    return check_images(root, index, slice_axis, min_size, max_megapixels, workers)


def check_images(
    root: str,
    addresses: Sequence[str],
    slice_axis: int = 2,
    min_size: int = 64,
    max_megapixels: float = 100.0,
    workers: int = 0,
) -> DataReport:
    """The same for given addresses; `root` is what the report calls them."""
    loader: Iterable[Any] = DataLoader(
        _Inspection(addresses, slice_axis, max_megapixels), batch_size=None, num_workers=workers, collate_fn=as_is
    )
    count = len(addresses)
    report = DataReport(root, count, min_size, addresses, np.zeros((count, 32), dtype=np.uint8), np.full(count, np.nan))
    sizes = np.zeros((count, 2), dtype=np.int64)
    seen: dict[bytes, int] = {}
    same: dict[bytes, list[str]] = {}
    console = Console(stderr=True)
    bar = track(loader, "Checking images", count, console=console, transient=True, disable=not console.is_terminal)
    for i, found in enumerate(bar):
        _count(report, found)
        sizes[i] = found.shape[1:]
        if found.reason:
            continue
        report.looks[i], report.sharpness[i] = found.look, found.sharpness
        if not found.is_empty:
            first = seen.setdefault(found.digest, i)
            if first != i:
                same.setdefault(found.digest, [addresses[first]]).append(found.address)
    report.duplicates = list(same.values())
    readable = sizes[sizes[:, 0] > 0]
    if len(readable):
        low, middle, high = readable.min(axis=0), np.median(readable, axis=0), readable.max(axis=0)
        report.heights, report.widths = ((int(low[k]), int(middle[k]), int(high[k])) for k in (0, 1))
    return report


def _count(report: DataReport, found: _Finding) -> None:
    if found.reason:
        report.broken[found.address] = found.reason
        return
    channels, height, width = found.shape
    report.kinds[found.kind] += 1
    report.channels[channels] += 1
    report.depths["8-bit" if found.is_8bit else "deeper"] += 1
    if min(height, width) < report.min_size:
        report.small.append(found.address)
    if found.is_empty:
        report.empty.append(found.address)


def format_report(report: DataReport) -> str:
    """The report in words, one finding per paragraph; long lists are cut."""
    readable = report.images - len(report.broken)
    lines = [f"{report.images} images in {report.root}: {readable} can be read, {len(report.broken)} cannot."]
    if readable:
        lines += [
            "Formats: " + _counts(report.kinds),
            "Channels: " + _counts(report.channels),
            "Depth: "
            + _counts({{"8-bit": "8 bits", "deeper": "more than 8 bits"}[k]: n for k, n in report.depths.items()}),
            "Height: {} to {} pixels, median {}".format(*(report.heights[k] for k in (0, 2, 1))),
            "Width: {} to {} pixels, median {}".format(*(report.widths[k] for k in (0, 2, 1))),
        ]
    lines += [f"Hint: {hint}" for hint in _hints(report)]
    listed = (
        ("Cannot be read", _by_file((address, f": {reason}") for address, reason in report.broken.items())),
        ("Same pixels", [" = ".join(group) for group in report.duplicates]),
        (f"A side below {report.min_size} pixels", _by_file((address, "") for address in report.small)),
        ("Next to nothing to see", _by_file((address, "") for address in report.empty)),
    )
    for title, entries in listed:
        if entries:
            lines += ["", f"{title} ({len(entries)}):", *(f"  {entry}" for entry in entries[:_LISTED])]
        if len(entries) > _LISTED:
            lines.append(f"  ... and {len(entries) - _LISTED} more")
    return "\n".join(lines)


def _by_file(entries: Iterable[tuple[str, str]]) -> list[str]:
    """One line per file and remark; frames of a file are counted, not listed."""
    frames: dict[tuple[str, str], list[str]] = {}
    for address, remark in entries:
        frames.setdefault((decode.split(address)[0], remark), []).append(address)
    return [
        f"{of_file[0] if len(of_file) == 1 else f'{path} ({len(of_file)} frames)'}{remark}"
        for (path, remark), of_file in frames.items()
    ]


def _counts(counter: dict[Any, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items(), key=lambda item: -item[1]))


def _hints(report: DataReport) -> list[str]:
    hints = []
    if len(report.channels) > 1:
        hints.append(
            "images differ in the number of channels. data.channels decides: 1 turns colour to grey, 3 repeats grey."
        )
    if len(report.depths) > 1:
        hints.append("images differ in bit depth. Batches that mix them travel as float32, 4 times the bytes of 8-bit.")
    if report.duplicates:
        copies = sum(len(group) - 1 for group in report.duplicates)
        hints.append(f"{copies} images are copies of others. Remove them, or they count twice and may cross a split.")
    if report.broken:
        hints.append(f"training stops at a broken image unless data.max_broken is at least {len(report.broken)}.")
    if report.small:
        hints.append("small images are enlarged to data.load_size, which changes how sharp they look.")
    if report.empty:
        hints.append(
            "images that show next to nothing teach nothing. Of volumes, training leaves such slices out itself."
        )
    return hints
