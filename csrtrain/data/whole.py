"""Whole images of any size in batches of equal shape, decoded by workers: for scores and features, not for training."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from csrtrain.data import decode
from csrtrain.data.index import spans_nothing
from csrtrain.data.workers import as_is

_PIXELS = 2**22  # of a batch, references too: what is larger goes alone
_WAITING = 4  # batches' worth of images that may wait for others of their shape


class WholeBatch(NamedTuple):
    """Images of one shape and depth, or one that could not be read.

    rows: (B,) which of the addresses, or pairs, they are.
    images: (B,C,H,W) uint8, or float32 in [0,1]; of pairs (B,2,C,H,W), each image and its reference; None where
        `reason` says why there is none.
    reason: what is wrong with the file, with its name; of a pair with both names.
    empty: rows that are slices with next to nothing to see (air), see `csrtrain.data.index.spans_nothing`; of pairs
        those with such a reference.
    """

    rows: list[int]
    images: Tensor | None
    reason: str = ""
    empty: tuple[int, ...] = ()


class WholeImages(Dataset[WholeBatch]):
    """One address at a time, as a batch of one; arguments as for `whole_images`, size as for `whole_pairs`."""

    def __init__(
        self,
        addresses: Sequence[str],
        channels: int,
        window: decode.Window,
        slice_axis: int,
        max_megapixels: float,
        size: int | None = None,
    ) -> None:
        self.addresses = addresses
        self.channels = channels
        self.window = window
        self.slice_axis = slice_axis
        self.max_megapixels = max_megapixels
        self.size = size

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, i: int) -> WholeBatch:
        found = self.read(self.addresses[i])
        if isinstance(found, str):
            return WholeBatch([i], None, found)
        return WholeBatch([i], found[None], empty=(i,) if _is_empty_slice(self.addresses[i], found) else ())

    def read(self, address: str) -> Tensor | str:
        """(C,H,W), or what is wrong with the file."""
        try:
            image = decode.read(
                address, window=self.window, slice_axis=self.slice_axis, max_megapixels=self.max_megapixels
            )
            image = decode.to_channels(image, self.channels)
        except decode.DecodeError as error:
            return str(error)
        except ValueError as error:
            return f"{address}: {error}"
        if image.is_floating_point() and not bool(torch.isfinite(image).all()):
            return f"{address}: Expected finite values, got NaN or infinity. Mend the file."
        return image if self.size is None else resized(image, self.size)


def _is_empty_slice(address: str, image: Tensor) -> bool:
    return decode.split(address)[1] is not None and spans_nothing(image.numpy())


def resized(image: Tensor, size: int) -> Tensor:
    """(C,H,W) uint8, or float in [0,1] -> (C,size,size), antialiased."""
    found: Tensor = tvf.resize(image, [size, size], antialias=True)
    return found.clamp(0, 1) if found.is_floating_point() else found


class OwnImages(Dataset[WholeBatch]):
    """The images of one rank, one at a time; -1 is none, for ranks that have fewer."""

    def __init__(self, images: WholeImages) -> None:
        self.images = images

    def __getitem__(self, i: int) -> WholeBatch:
        return self.images[i] if i >= 0 else WholeBatch([], None)


class WholePairs(Dataset[WholeBatch]):
    """One pair at a time, as a batch of one; a reference that many pairs in a row have is decoded once.

    Args:
        pairs: addresses of images and their references.
        images: reads either.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], images: WholeImages) -> None:
        self.pairs = pairs
        self.images = images
        self._last: tuple[str | None, Tensor | str, bool] = (None, "", False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> WholeBatch:
        address, name = self.pairs[i]
        if self._last[0] != name:
            found = self.images.read(name)
            self._last = (name, found, not isinstance(found, str) and _is_empty_slice(name, found))
        image, (_, reference, empty) = self.images.read(address), self._last
        if isinstance(image, str) or isinstance(reference, str):
            wrong = dict.fromkeys(found for found in (image, reference) if isinstance(found, str))
            return WholeBatch([i], None, f"{address} against {name}: {' '.join(wrong)}")
        if image.shape != reference.shape:
            (height, width), (rows, columns) = image.shape[1:], reference.shape[1:]
            return WholeBatch(
                [i],
                None,
                f"{address} against {name}: Expected images of one size, got {width} x {height} px and a reference of "
                f"{columns} x {rows} px. Crop or resize one.",
            )
        if image.dtype != reference.dtype:  # an 8-bit and a deeper file
            image, reference = (tvf.to_dtype(found, torch.float32, scale=True) for found in (image, reference))
        return WholeBatch([i], torch.stack([image, reference])[None], empty=(i,) if empty else ())


def whole_images(
    addresses: Sequence[str],
    channels: int,
    batch_size: int = 16,
    workers: int = 0,
    window: decode.Window = "header",
    slice_axis: int = 2,
    max_megapixels: float = 200.0,
) -> Iterator[WholeBatch]:
    """Every address once, in batches of equal shape; memory does not grow with their number.

    Args:
        addresses: see `csrtrain.data.decode.read`.
        channels: 1, 3 or n.
        batch_size: most images of a batch; fewer where they are large.
        workers: processes beside this one.
        window, slice_axis, max_megapixels: see `csrtrain.data.decode.read`.
    """
    yield from _grouped(WholeImages(addresses, channels, window, slice_axis, max_megapixels), batch_size, workers)


def whole_pairs(
    pairs: Sequence[tuple[str, str]],
    channels: int,
    batch_size: int = 16,
    workers: int = 0,
    window: decode.Window = "header",
    slice_axis: int = 2,
    max_megapixels: float = 200.0,
    size: int | None = None,
) -> Iterator[WholeBatch]:
    """Every pair of an image and its reference once, as `whole_images`; its arguments.

    size: resize both to a square of so many pixels, antialiased; None leaves images as they are.
    """
    images = WholeImages([], channels, window, slice_axis, max_megapixels, size)
    yield from _grouped(WholePairs(pairs, images), batch_size, workers)


def _grouped(images: WholeImages | WholePairs, batch_size: int, workers: int) -> Iterator[WholeBatch]:
    loader: DataLoader[WholeBatch] = DataLoader(images, batch_size=None, num_workers=workers, collate_fn=as_is)
    groups = Groups(batch_size)
    for found in loader:
        if found.images is None:
            yield found
        elif (ready := groups.add(found)) is not None:
            yield ready
    yield from groups.rest()


class Groups:
    """Single images, gathered to batches of equal shape and depth; few wait, and large ones do not.

    Args:
        batch_size: most images of a batch.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: dict[tuple[torch.Size, torch.dtype], list[WholeBatch]] = {}

    def add(self, found: WholeBatch) -> WholeBatch | None:
        """Take an image that could be read; the batch that is ready then, if one is."""
        assert found.images is not None
        key = (found.images.shape, found.images.dtype)
        group = self._waiting.setdefault(key, [])
        group.append(found)
        pixels = found.images[..., 0, :, :].numel()
        if len(group) >= min(self.batch_size, max(1, _PIXELS // pixels)):
            return _joined(self._waiting.pop(key))
        if sum(map(len, self._waiting.values())) >= _WAITING * self.batch_size:
            return _joined(self._waiting.pop(max(self._waiting, key=lambda key: len(self._waiting[key]))))
        return None

    def rest(self) -> Iterator[WholeBatch]:
        """What still waits."""
        while self._waiting:
            yield _joined(self._waiting.popitem()[1])


def _joined(group: list[WholeBatch]) -> WholeBatch:
    images = [found.images for found in group if found.images is not None]
    rows = [row for found in group for row in found.rows]
    return WholeBatch(rows, torch.cat(images), empty=tuple(row for found in group for row in found.empty))
