"""Pairs of images to compare, each distinct pair once: for heads on what differs between two images.

Rows of a table share images and even pairs: a reference stands beside many distorted versions, and people compare the
same images again and again. So a pass does not go row by row, but over distinct pairs, whose differences serve every
row that has them, and takes together pairs that share images. A pair has no direction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvf
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from csrtrain.data import decode
from csrtrain.data.whole import WholeImages
from csrtrain.data.workers import as_is, loader_workers
from csrtrain.distributed import rank, world_size

_PIXELS = 2**22  # of the images that go through a backbone at once, unless two are more
_WAITING = 4  # batches' worth of images that may wait for others of their shape

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Comparisons:
    """Which images are compared.

    Attributes:
        addresses: (M,) distinct images, in the order in which rows name them.
        pairs: (P,2) distinct pairs of them, the reference first.
        of_rows: (N,K) the pairs of each row of the table: K is 1 for ratings, 2 for triplets.
    """

    addresses: list[str]
    pairs: Integers
    of_rows: Integers

    def shares(self, most: int) -> list[Integers]:
        """Pairs in shares of at most `most` images, or two, few of which are in several shares.

        The images are dealt to blocks of `most` / 2 in the order in which rows name them, and a share is the pairs
        between two blocks. Triplets that share nothing cost little more than their three images, the versions of one
        reference little more than one image each, and all pairs of n images 2 n^2 / `most`.
        """
        blocks = np.sort(self.pairs // max(1, most // 2), axis=1)
        order = np.lexsort((blocks[:, 1], blocks[:, 0]))
        changes = np.diff(blocks[order], axis=0).any(1)
        return np.split(order, np.flatnonzero(changes) + 1)


def compare(references: Sequence[str], *others: Sequence[str]) -> Comparisons:
    """The distinct pairs of tables of N references and N images for each of them, once or several times."""
    place: dict[str, int] = {}
    named = [place.setdefault(name, len(place)) for row in zip(references, *others, strict=True) for name in row]
    images = np.array(named, dtype=np.int64).reshape(len(references), -1)
    rows = np.stack([np.stack([images[:, 0], column], 1) for column in images.T[1:]], 1)  # (N,K,2)
    ends = np.sort(rows.reshape(-1, 2), axis=1)
    _, first, numbers = np.unique(ends, axis=0, return_index=True, return_inverse=True)
    return Comparisons(list(place), rows.reshape(-1, 2)[first], numbers.reshape(rows.shape[:2]))


class PairBatch(NamedTuple):
    """Images of one shape, and which of them are compared.

    pairs: (P,) numbers of the pairs.
    left, right: (P,) the images of each, by their place.
    images: (n,C,H,W) uint8, or float32 in [0,1]; None where nothing could be read.
    broken: of pairs that could not be read, the number and what is wrong, with the names of files.
    """

    pairs: list[int]
    left: list[int]
    right: list[int]
    images: Tensor | None
    broken: list[tuple[int, str]]

    def parts(self) -> Iterator["PairBatch"]:
        """The same pairs, in parts whose images have at most 2**22 pixels together, or are two."""
        assert self.images is not None
        if self.images[:, 0].numel() <= _PIXELS or len(self.pairs) == 1:
            yield self
            return
        middle = len(self.pairs) // 2
        for rows in (slice(0, middle), slice(middle, None)):
            ends = np.array([self.left[rows], self.right[rows]])
            used, places = np.unique(ends, return_inverse=True)
            left, right = places.reshape(ends.shape)
            part = PairBatch(self.pairs[rows], left.tolist(), right.tolist(), self.images[used.tolist()], [])
            yield from part.parts()


class _Shares(Dataset[PairBatch]):
    """A share of the pairs at a time; -1 is none, for ranks that have fewer."""

    def __init__(self, comparisons: Comparisons, most: int, images: WholeImages) -> None:
        self.pairs = comparisons.pairs
        self.shares = comparisons.shares(most)
        self.images = images

    def __getitem__(self, i: int) -> PairBatch:
        chosen = self.shares[i].tolist() if i >= 0 else []
        found: dict[int, tuple[Tensor | None, str]] = {}
        left: list[int] = []
        right: list[int] = []
        kept: list[int] = []
        broken: list[tuple[int, str]] = []
        place: dict[int, int] = {}
        for pair in chosen:
            ends: list[int] = self.pairs[pair].tolist()
            for end in ends:
                if end not in found:
                    found[end] = self._read(end)
            (x, x_reason), (y, y_reason) = (found[end] for end in ends)
            if x is None or y is None:
                broken.append((pair, x_reason or y_reason))
            elif x.shape != y.shape:
                broken.append((pair, self._other_sizes(ends, x, y)))
            else:
                kept.append(pair)
                left.append(place.setdefault(ends[0], len(place)))
                right.append(place.setdefault(ends[1], len(place)))
        images = [image for end in place if (image := found[end][0]) is not None]
        if len({image.dtype for image in images}) > 1:  # 8 bits beside more
            images = [tvf.to_dtype(image, torch.float32, scale=True) for image in images]
        return PairBatch(kept, left, right, torch.stack(images) if images else None, broken)

    def _read(self, i: int) -> tuple[Tensor | None, str]:
        """(C,H,W), or what is wrong."""
        found = self.images.read(self.images.addresses[i])
        return (None, found) if isinstance(found, str) else (found, "")

    def _other_sizes(self, ends: list[int], x: Tensor, y: Tensor) -> str:
        first, second = (
            f"{self.images.addresses[end]} ({image.shape[2]} x {image.shape[1]})"
            for end, image in zip(ends, (x, y), strict=True)
        )
        return f"Expected two images of one size, got {first} and {second}. Resize or leave out one."


def pair_loader(
    comparisons: Comparisons,
    channels: int,
    batch_size: int,
    workers: int,
    window: decode.Window = "header",
    slice_axis: int = 2,
    max_megapixels: float = 200.0,
    size: int | None = None,
) -> DataLoader[PairBatch]:
    """Every pair once over all ranks, in as many steps on each.

    Args:
        channels: 1, 3 or n.
        batch_size: most images of a step; two at least.
        workers: loader processes.
        window, slice_axis, max_megapixels: see `csrtrain.data.decode.read`.
        size: resize to a square of so many pixels, antialiased; None leaves images as they are.
    """
    images = WholeImages(comparisons.addresses, channels, window, slice_axis, max_megapixels, size)
    shares = _Shares(comparisons, batch_size, images)
    own = list(range(rank(), len(shares.shares), world_size()))
    own += [-1] * (-(-len(shares.shares) // world_size()) - len(own))
    return DataLoader(
        shares,
        batch_size=None,
        sampler=own,
        collate_fn=as_is,
        pin_memory=torch.cuda.is_available(),
        **loader_workers(workers),
    )


class PairGroups:
    """What the loader gives, gathered to batches of equal shape and depth; few wait.

    Args:
        batch_size: images from which a batch is ready.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: dict[tuple[torch.Size, torch.dtype], list[PairBatch]] = {}

    def add(self, found: PairBatch) -> Iterator[PairBatch]:
        """Take a step of the loader; what is ready then."""
        if found.images is None:
            return
        key = (found.images.shape[1:], found.images.dtype)
        group = self._waiting.setdefault(key, [])
        group.append(found)
        if _count(group) >= min(self.batch_size, max(1, _PIXELS // key[0][1:].numel())):
            yield from _joined(self._waiting.pop(key)).parts()
        elif sum(map(_count, self._waiting.values())) >= _WAITING * self.batch_size:
            largest = max(self._waiting, key=lambda key: _count(self._waiting[key]))
            yield from _joined(self._waiting.pop(largest)).parts()

    def rest(self) -> Iterator[PairBatch]:
        """What still waits."""
        while self._waiting:
            yield from _joined(self._waiting.popitem()[1]).parts()


def _count(group: list[PairBatch]) -> int:
    return sum(len(found.images) for found in group if found.images is not None)


def _joined(group: list[PairBatch]) -> PairBatch:
    pairs: list[int] = []
    left: list[int] = []
    right: list[int] = []
    images: list[Tensor] = []
    start = 0
    for found in group:
        assert found.images is not None
        pairs += found.pairs
        left += [start + place for place in found.left]
        right += [start + place for place in found.right]
        images.append(found.images)
        start += len(found.images)
    return PairBatch(pairs, left, right, torch.cat(images), [])
