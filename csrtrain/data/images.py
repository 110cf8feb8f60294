"""Decoded images of one size, one batch at a time, as loader workers make them."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, overload

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvf
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from csrtrain import draws
from csrtrain.batches import ImageBatch, LabelledBatch
from csrtrain.data import decode
from csrtrain.data.index import Index

CropMode = Literal["resized", "native"]
WorkerTransform = Callable[[Tensor, int, int, NDArray[np.int64]], Tensor]
"""(images (n,C,S,S), seed, epoch, positions (n,)) -> images, for what only a CPU can do."""

_CROP_TRIES = 8
_REPLACEMENT_TRIES = 16
_EMPTY_STD = 0.01  # standard deviation (of a range of 1) below which a crop shows air or a border; our choice


class BatchKey(NamedTuple):
    """What a worker needs to make one batch: epoch, number of the batch, positions in the epoch's order, indices."""

    epoch: int
    number: int
    positions: NDArray[np.int64]
    indices: NDArray[np.int64]


class Sources(Sequence[str]):
    """Addresses of the pristine images, then those of the authentic ones.

    Args:
        pristine, authentic: either may be missing.

    Attributes:
        pristine: number of pristine images; from there on indices are of authentic ones.
        digest: of both lists.
    """

    def __init__(self, pristine: Index | None, authentic: Index | None = None) -> None:
        self._indexes = [index for index in (pristine, authentic) if index is not None]
        self.pristine = 0 if pristine is None else len(pristine)
        digests = [index.digest for index in self._indexes]
        joined = f"{self.pristine} {' '.join(digests)}".encode()
        self.digest = digests[0] if authentic is None else hashlib.sha256(joined).hexdigest()

    def __len__(self) -> int:
        return sum(map(len, self._indexes))

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return self._indexes[0][i] if i < len(self._indexes[0]) else self._indexes[1][i - self.pristine]


def square(image: Tensor, load_size: int, offset: float) -> Tensor:
    """Cut a square as wide as the short side and resize it to `load_size`, antialiased.

    Args:
        image: (C,H,W) uint8 or float32.
        load_size: pixels.
        offset: in [0,1], where along the long side the square lies; 0.5 is the centre.

    Returns:
        (C,load_size,load_size), same dtype.
    """
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = round(offset * (height - side)), round(offset * (width - side))
    # Cut first: what would be cut off is not resized, however long the image.
    cut = image[:, top : top + side, left : left + side]
    resized: Tensor = tvf.resize(cut, [load_size, load_size], antialias=True)
    return resized


def native(image: Tensor, load_size: int, down: float, right: float) -> Tensor:
    """Cut a square at full resolution; an image that is too small is continued by its reflection.

    Args:
        image: (C,H,W) uint8 or float32.
        load_size: side of the square, pixels.
        down, right: in [0,1], where the square lies; 0.5 is the centre.

    Returns:
        (C,load_size,load_size), same dtype.
    """
    missing = [max(0, load_size - side) for side in image.shape[-2:]]
    if any(missing):  # numpy reflects as often as needed, torch at most once
        before_after = [(n // 2, n - n // 2) for n in missing]
        image = torch.from_numpy(np.pad(image.numpy(), ((0, 0), *before_after), mode="reflect"))
    top, left = (
        round(offset * (side - load_size)) for offset, side in zip((down, right), image.shape[-2:], strict=True)
    )
    return image[:, top : top + load_size, left : left + load_size]


def _is_empty(image: Tensor) -> bool:
    scale = 255.0 if image.dtype == torch.uint8 else 1.0
    return bool(image.float().std() < _EMPTY_STD * scale)


def _is_grey(image: Tensor) -> bool:
    return len(image) == 3 and torch.equal(image[0], image[1]) and torch.equal(image[1], image[2])


class UnlabeledImages(Dataset[ImageBatch]):
    """Decoded square images, one batch at a time.

    Args:
        sources: addresses of the images.
        channels: 1, 3 or n.
        load_size: side of the square that leaves the worker, pixels.
        crop: `resized` or `native`, see `square` and `native`.
        window: intensity window for DICOM and NIfTI, see `csrtrain.data.decode`.
        slice_axis: axis along which NIfTI volumes are cut.
        seed: the run's seed.
        max_broken: how many broken files may be replaced; 0 raises on the first.
        max_megapixels: larger images are refused.
        transform: applied to pristine images before they leave the worker.
    """

    def __init__(
        self,
        sources: Sources,
        channels: int,
        load_size: int,
        crop: CropMode,
        window: decode.Window,
        slice_axis: int,
        seed: int,
        max_broken: int,
        max_megapixels: float,
        transform: WorkerTransform | None = None,
    ) -> None:
        self.sources = sources
        self.channels = channels
        self.load_size = load_size
        self.crop = crop
        self.window = window
        self.slice_axis = slice_axis
        self.seed = seed
        self.max_broken = max_broken
        self.max_megapixels = max_megapixels
        self.transform = transform

    def __getitem__(self, key: BatchKey) -> ImageBatch:
        offsets = draws.uniform(self.seed, key.epoch, key.positions, draws.CROP_STREAM, 2 * _CROP_TRIES)
        broken: list[tuple[int, str]] = []
        padded: list[int] = []
        images = []
        for i, position, offset in zip(key.indices, key.positions, offsets, strict=True):
            image = self._read(int(i), key.epoch, int(position), broken)
            if self.crop == "native" and min(image.shape[-2:]) < self.load_size:
                padded.append(int(i))
            images.append(self._crop(image, offset))
        if len({image.dtype for image in images}) > 1:  # 8-bit and deeper files in one batch
            images = [tvf.to_dtype(image, torch.float32, scale=True) for image in images]
        batch, authentic = torch.stack(images), key.indices >= self.sources.pristine
        if self.transform is not None and not authentic.all():
            rows = np.flatnonzero(~authentic)
            batch[rows] = self.transform(batch[rows], self.seed, key.epoch, key.positions[rows])
        return ImageBatch(
            batch,
            key.positions,
            key.indices,
            self.seed,
            key.epoch,
            key.number,
            authentic,
            broken=tuple(broken),
            padded=tuple(padded),
            grey=np.array([_is_grey(image) for image in images]),
        )

    def load(self, i: int) -> Tensor:
        """Image i, whole, with the wanted channels."""
        address = self.sources[i]
        image = decode.read(address, window=self.window, slice_axis=self.slice_axis, max_megapixels=self.max_megapixels)
        try:
            return decode.to_channels(image, self.channels)
        except ValueError as error:
            raise decode.DecodeError(f"{address}: {error}") from error

    def _read(self, i: int, epoch: int, position: int, broken: list[tuple[int, str]]) -> Tensor:
        """Decode image i, or a substitute of its source that is a function of (seed, epoch, position)."""
        position_array = np.array([position], dtype=np.int64)
        spare = draws.uniform(self.seed, epoch, position_array, draws.REPLACEMENT_STREAM, _REPLACEMENT_TRIES)[0]
        pristine, total = self.sources.pristine, len(self.sources)
        first, count = (0, pristine) if i < pristine else (pristine, total - pristine)
        for attempt in range(_REPLACEMENT_TRIES):
            try:
                return self.load(i)
            except decode.DecodeError as error:
                if self.max_broken == 0:
                    raise
                broken.append((i, str(error)))
                i = first + int(spare[attempt] * count)
        raise decode.DecodeError(
            f"Expected a readable image, got {_REPLACEMENT_TRIES} broken files in a row, last {broken[-1][1]}. "
            "Run csrtrain check-data on the folder."
        )

    def _crop(self, image: Tensor, offsets: NDArray[np.float64]) -> Tensor:
        """The first of a few random squares that is not nearly empty."""
        for k in range(_CROP_TRIES):
            if self.crop == "native":
                crop = native(image, self.load_size, float(offsets[k]), float(offsets[_CROP_TRIES + k]))
                only = max(image.shape[-2:]) <= self.load_size
            else:
                crop = square(image, self.load_size, float(offsets[k]))
                only = image.shape[-1] == image.shape[-2]
            if only or not _is_empty(crop):
                break
        return crop


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Labelled images, centre square, for the probe. Rows keep the order of the CSV file."""

    def __init__(self, images: UnlabeledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.sources)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image, size = self.images.load(i), self.images.load_size
        return (native(image, size, 0.5, 0.5) if self.images.crop == "native" else square(image, size, 0.5)), i


def collate_labelled(rows: list[tuple[Tensor, int]]) -> LabelledBatch:
    """Labelled images of any depth as float32 in [0,1]."""
    images = [tvf.to_dtype(image, torch.float32, scale=True) for image, _ in rows]
    return LabelledBatch(torch.stack(images), torch.tensor([i for _, i in rows]))
