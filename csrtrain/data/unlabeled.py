"""Images for pretraining: data set, order of batches, and the data module that can stop and go on at any step."""

import csv
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvf
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from csrtrain import draws
from csrtrain.batches import ImageBatch, LabelledBatch
from csrtrain.data import decode
from csrtrain.data.index import Index, build_index
from csrtrain.distributed import rank, world_size

Modality = Literal["natural", "medical", "mri", "ct", "xray", "fundus", "histology", "ultrasound"]

_CROP_TRIES = 8
_REPLACEMENT_TRIES = 16
_EMPTY_STD = 0.01  # standard deviation (of a range of 1) below which a crop shows air or a border; our choice


class BatchKey(NamedTuple):
    """What a worker needs to make one batch: epoch, number of the batch, positions in the epoch's order, indices."""

    epoch: int
    number: int
    positions: NDArray[np.int64]
    indices: NDArray[np.int64]


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


def _is_empty(image: Tensor) -> bool:
    scale = 255.0 if image.dtype == torch.uint8 else 1.0
    return bool(image.float().std() < _EMPTY_STD * scale)


class UnlabeledImages(Dataset[ImageBatch]):
    """Decoded square images, one batch at a time.

    Args:
        index: addresses of the images.
        channels: 1, 3 or n.
        load_size: side of the square that leaves the worker, pixels.
        window: intensity window for DICOM and NIfTI, see `csrtrain.data.decode`.
        slice_axis: axis along which NIfTI volumes are cut.
        seed: the run's seed.
        max_broken: how many broken files may be replaced; 0 raises on the first.
        max_megapixels: larger images are refused.
    """

    def __init__(
        self,
        index: Index,
        channels: int,
        load_size: int,
        window: decode.Window,
        slice_axis: int,
        seed: int,
        max_broken: int,
        max_megapixels: float,
    ) -> None:
        self.index = index
        self.channels = channels
        self.load_size = load_size
        self.window = window
        self.slice_axis = slice_axis
        self.seed = seed
        self.max_broken = max_broken
        self.max_megapixels = max_megapixels

    def __getitem__(self, key: BatchKey) -> ImageBatch:
        offsets = draws.uniform(self.seed, key.epoch, key.positions, draws.CROP_STREAM, _CROP_TRIES)
        broken: list[tuple[int, str]] = []
        images = [
            self._crop(self._read(int(i), key.epoch, int(p), broken), o)
            for i, p, o in zip(key.indices, key.positions, offsets, strict=True)
        ]
        if len({image.dtype for image in images}) > 1:  # 8-bit and deeper files in one batch
            images = [tvf.to_dtype(image, torch.float32, scale=True) for image in images]
        return ImageBatch(
            torch.stack(images), key.positions, key.indices, self.seed, key.epoch, key.number, tuple(broken)
        )

    def _load(self, i: int) -> Tensor:
        address = self.index[i]
        image = decode.read(address, window=self.window, slice_axis=self.slice_axis, max_megapixels=self.max_megapixels)
        try:
            return decode.to_channels(image, self.channels)
        except ValueError as error:
            raise decode.DecodeError(f"{address}: {error}") from error

    def _read(self, i: int, epoch: int, position: int, broken: list[tuple[int, str]]) -> Tensor:
        """Decode image i, or a substitute that is a function of (seed, epoch, position)."""
        position_array = np.array([position], dtype=np.int64)
        spare = draws.uniform(self.seed, epoch, position_array, draws.REPLACEMENT_STREAM, _REPLACEMENT_TRIES)[0]
        for attempt in range(_REPLACEMENT_TRIES):
            try:
                return self._load(i)
            except decode.DecodeError as error:
                if self.max_broken == 0:
                    raise
                broken.append((i, str(error)))
                i = int(spare[attempt] * len(self.index))
        raise decode.DecodeError(
            f"Expected a readable image, got {_REPLACEMENT_TRIES} broken files in a row, last {broken[-1][1]}. "
            "Run csrtrain check-data on the folder."
        )

    def _crop(self, image: Tensor, offsets: NDArray[np.float64]) -> Tensor:
        for offset in offsets:
            crop = square(image, self.load_size, float(offset))
            if image.shape[-1] == image.shape[-2] or not _is_empty(crop):
                break
        return crop


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Labelled images, centre square, for the probe. Rows keep the order of the CSV file."""

    def __init__(self, images: UnlabeledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.index)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return square(self.images._load(i), self.images.load_size, 0.5), i


def _as_is(batch: Any) -> Any:
    """In place of PyTorch's conversion, which would make tensors of the positions."""
    return batch


def _collate_labelled(rows: list[tuple[Tensor, int]]) -> LabelledBatch:
    images = [tvf.to_dtype(image, torch.float32, scale=True) for image, _ in rows]
    return LabelledBatch(torch.stack(images), torch.tensor([i for _, i in rows]))


class Labels(NamedTuple):
    """Labels of the probe.

    values: (N,) class indices (int64) or ratings (float64).
    groups: (N,) int64; rows of one group never judge each other.
    is_class: whether `values` are classes.
    """

    values: NDArray[Any]
    groups: NDArray[np.int64]
    is_class: bool


def read_labels(path: str, label_column: str, group_column: str | None) -> Labels:
    """Labels and groups of a CSV file; numbers with more than 20 different values are ratings, all else classes."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected a CSV file in UTF-8, got {path} ({error}). Save it as UTF-8.") from None
    for column in (label_column, group_column):
        if column is not None and column not in (reader.fieldnames or []):
            raise ValueError(
                f"Expected column {column!r} in {path}, got {', '.join(reader.fieldnames or [])}. "
                "Set data.label_column or data.group_column."
            )
    texts = [row[label_column] for row in rows]
    blank = [i + 1 for i, row in enumerate(rows) if not row[label_column] or (group_column and not row[group_column])]
    if blank or not rows:
        raise ValueError(f"Expected a label and a group in every row of {path}, got none in rows {blank[:5]}. Fill in.")
    groups = [row[group_column] for row in rows] if group_column else [str(i) for i in range(len(rows))]
    group_ids = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        numbers = None
    if numbers is not None and len(np.unique(numbers)) > 20:
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0]) + 1
            raise ValueError(f"Expected finite ratings in {path}, got {texts[row - 1]} in row {row}. Correct it.")
        return Labels(numbers, group_ids, False)
    return Labels(np.unique(texts, return_inverse=True)[1].astype(np.int64), group_ids, True)


class EpochBatches(Sampler[BatchKey]):
    """The batches of one epoch for this rank, from where the data module stands.

    The order is a function of (seed, epoch); a global batch is a run of positions in it; rank r
    takes the r-th part.
    """

    def __init__(self, data: "UnlabeledData") -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.batches_per_epoch

    def __iter__(self) -> Iterator[BatchKey]:
        data = self.data
        epoch, first = data.epoch, data.batch
        order = draws.epoch_order(data.seed, epoch, len(data.index), data.repeats)
        local = data.batch_size // world_size()
        for number in range(first, len(self)):
            start = number * data.batch_size + rank() * local
            positions = np.arange(start, start + local, dtype=np.int64)
            yield BatchKey(epoch, number, positions, order[positions])


class UnlabeledData(LightningDataModule):
    """A folder of images, a list or a CSV column, as batches for pretraining.

    Its state is the position in the stream of batches: (epoch, batches trained). The loader itself has none, so a run
    can be stopped and resumed at any optimiser step.

    Args:
        root: folder (searched recursively), text file with one path per line, CSV file, or `samples:medical` /
            `samples:natural`, the few real images that ship inside installed packages.
        channels: 1, 3 or n; grey images are repeated for 3, colour images become luma for 1.
        modality: which views suit the images.
        load_size: the short side of an image is resized to this many pixels, and a square is cut.
        batch_size: images per step over all devices together; the ranks share them evenly.
        min_epoch_length: fewer images than this are shown several times per epoch, each time in other views.
        workers: loader processes per device.
        column: column of paths when `root` is a CSV file.
        window: intensity window of DICOM and NIfTI: `header` (DICOM: the file's own; NIfTI: see the documentation of
            decode), `full`, or [centre, width] in the file's units.
        slice_axis: axis along which NIfTI volumes are cut.
        max_broken: files that may be broken, per device, before the run stops; they are replaced deterministically.
        max_megapixels: larger images are refused before they are decoded.
        labels: CSV file with an image and a label per row, for a kNN probe beside the training; never trained on.
        image_column, label_column, group_column: its columns; rows of one group never judge each other.
        cache_dir: where the index of paths is kept; by default the user's cache directory.
        seed: linked to `seed_everything` on the command line.
    """

    def __init__(
        self,
        root: str,
        channels: int = 3,
        modality: Modality = "natural",
        load_size: int = 256,
        batch_size: int = 256,
        min_epoch_length: int = 1,
        workers: int = 2,
        column: str | None = None,
        window: decode.Window = "header",
        slice_axis: int = 2,
        max_broken: int = 0,
        max_megapixels: float = 100.0,
        labels: str | None = None,
        image_column: str = "image",
        label_column: str = "class",
        group_column: str | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if workers < 0:
            raise ValueError(f"Expected data.workers >= 0, got {workers}. Correct the config.")
        for name, value in (
            ("batch_size", batch_size),
            ("min_epoch_length", min_epoch_length),
            ("load_size", load_size),
        ):
            if value < 1:
                raise ValueError(f"Expected data.{name} >= 1, got {value}. Correct the config.")
        self.root = root
        self.channels = channels
        self.modality = modality
        self.load_size = load_size
        self.batch_size = batch_size
        self.min_epoch_length = min_epoch_length
        self.workers = workers
        self.column = column
        self.window = window
        self.slice_axis = slice_axis
        self.max_broken = max_broken
        self.max_megapixels = max_megapixels
        self.labels_path = os.path.expanduser(labels) if labels else None
        self.image_column = image_column
        self.label_column = label_column
        self.group_column = group_column
        self.cache_dir = cache_dir
        self.seed = int(seed)
        self.epoch = 0
        self.batch = 0
        self.broken: dict[int, str] = {}
        self.labels: Labels | None = None

    def prepare_data(self) -> None:
        """List the files once per node; `setup` of every rank finds the list in the cache."""
        build_index(self.root, column=self.column, slice_axis=self.slice_axis, cache_dir=self.cache_dir)

    def setup(self, stage: str | None = None) -> None:
        """Index the images and check that an epoch holds at least one batch for every rank."""
        self.index = build_index(self.root, column=self.column, slice_axis=self.slice_axis, cache_dir=self.cache_dir)
        self.repeats = max(1, self.min_epoch_length // len(self.index))
        self.epoch_length = len(self.index) * self.repeats
        self.batches_per_epoch = self.epoch_length // self.batch_size
        if self.batch_size % world_size():
            raise ValueError(
                f"Expected data.batch_size to be a multiple of the {world_size()} devices, got {self.batch_size}. "
                "Change data.batch_size or trainer.devices."
            )
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"Expected at least one batch of {self.batch_size}, got {self.epoch_length} images per epoch in "
                f"{self.root}. Lower data.batch_size or raise data.min_epoch_length."
            )
        if self.labels_path:
            self.labels = read_labels(self.labels_path, self.label_column, self.group_column)
            self.labelled_index = build_index(
                self.labels_path, column=self.image_column, slice_axis=self.slice_axis, cache_dir=self.cache_dir
            )
            if len(self.labelled_index) != len(self.labels.values):
                raise ValueError(
                    f"Expected one image per row of {self.labels_path}, got {len(self.labelled_index)} images for "
                    f"{len(self.labels.values)} rows. Name slices of volumes as path#k."
                )

    def _images(self, index: Index) -> UnlabeledImages:
        return UnlabeledImages(
            index,
            self.channels,
            self.load_size,
            self.window,
            self.slice_axis,
            self.seed,
            self.max_broken,
            self.max_megapixels,
        )

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        """Batches from the stored position on; a new iterator of the same loader goes on where training stands."""
        return DataLoader(
            self._images(self.index),
            batch_size=None,
            sampler=EpochBatches(self),
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
        )

    def first_batch(self, images: int) -> ImageBatch:
        """The first images of epoch 0, loaded in this process, to look at."""
        positions = np.arange(min(images, self.epoch_length), dtype=np.int64)
        indices = draws.epoch_order(self.seed, 0, len(self.index), self.repeats)[positions]
        return self._images(self.index)[BatchKey(0, 0, positions, indices)]

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]] | list[Any]:
        """The labelled images, every world_size-th for this rank, none twice; nothing without `labels`."""
        if self.labels is None:
            return []
        rows = range(rank(), len(self.labelled_index), world_size())
        return DataLoader(
            LabelledImages(self._images(self.labelled_index)),
            batch_size=max(1, self.batch_size // world_size()),
            sampler=list(rows),
            num_workers=self.workers,
            collate_fn=_collate_labelled,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Count the batch: Lightning moves a batch just before it trains on it, not when it is fetched."""
        if isinstance(batch, ImageBatch):
            self._count_broken(batch)
            self.epoch, self.batch = batch.epoch, batch.number + 1
            batches = self.trainer.num_training_batches if self.trainer else self.batches_per_epoch
            if self.batch >= batches:
                self.epoch, self.batch = batch.epoch + 1, 0
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _count_broken(self, batch: ImageBatch) -> None:
        for i, reason in batch.broken:
            if i not in self.broken:
                self.broken[i] = reason
                rank_zero_warn(f"Replaced a broken file ({len(self.broken)} of at most {self.max_broken}): {reason}")
        if len(self.broken) > self.max_broken:
            names = "\n".join(self.broken.values())
            raise decode.DecodeError(
                f"Expected at most {self.max_broken} broken files (data.max_broken), got {len(self.broken)}. Mend or "
                f"remove them, or raise the limit:\n{names}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream of batches."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "digest": self.index.digest,
            "broken": {str(i): reason for i, reason in self.broken.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored position; refused when the images are not the same."""
        if state_dict["digest"] != self.index.digest:
            raise ValueError(
                f"Expected the images that the run began with, got another list of files in {self.root}. "
                "Restore them, or start anew with --fresh."
            )
        self.epoch, self.batch = state_dict["epoch"], state_dict["batch"]
        self.broken = {int(i): reason for i, reason in state_dict["broken"].items()}

    def describe(self) -> dict[str, Any]:
        """What a bundle says about its training data: no names, no paths."""
        return {
            "digest": self.index.digest,
            "images": len(self.index),
            "modality": self.modality,
            "channels": self.channels,
            "load_size": self.load_size,
            "window": self.window if isinstance(self.window, str) else list(self.window),
            "smoke_run": self.root.startswith("samples:"),
        }
