"""Images for pretraining: data set, order of batches, and the data module that can stop and go on at any step."""

import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from csrtrain import draws
from csrtrain.batches import ImageBatch
from csrtrain.data import decode
from csrtrain.data.images import (
    BatchKey,
    CropMode,
    LabelledImages,
    Sources,
    UnlabeledImages,
    WorkerTransform,
    collate_labelled,
)
from csrtrain.data.index import Index, build_index
from csrtrain.data.labels import Labels, read_labels
from csrtrain.data.workers import as_is, loader_workers
from csrtrain.distributed import rank, world_size

Modality = Literal["natural", "medical", "mri", "ct", "xray", "fundus", "histology", "ultrasound"]


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
        order = data.order(epoch)
        local = data.batch_size // world_size()
        for number in range(first, len(self)):
            start = number * data.batch_size + rank() * local
            positions = np.arange(start, start + local, dtype=np.int64)
            yield BatchKey(epoch, number, positions, order[positions])


class UnlabeledData(LightningDataModule):
    """Folders of images, lists or CSV columns, as batches for pretraining.

    Its state is the position in the stream of batches: (epoch, batches trained). The loader itself has none, so a run
    can be stopped and resumed at any optimiser step.

    Args:
        root: folder (searched recursively), text file with one path per line, CSV file, or `samples:medical` /
            `samples:natural`, the few real images that ship inside installed packages. For CONTRIQUE the pristine
            images, which are distorted.
        authentic: the same for images as captured, which are not; without `root` there are only these.
        authentic_fraction: their share of every batch and epoch, in steps of 0.001, when both are named. An epoch shows
            the images of `root` once, and as many authentic ones as belong to them.
        channels: 1, 3 or n; grey images are repeated for 3, colour images become luma for 1.
        modality: which views suit the images.
        load_size: side of the square that is cut from an image, pixels.
        crop: `resized`: the short side of the image is resized to `load_size` before; `native`: the square is cut at
            full resolution, for what learns quality (twice the size of the views for CONTRIQUE).
        batch_size: images per step over all devices together; the ranks share them evenly.
        min_epoch_length: fewer images than this are shown several times per epoch, each time in other views: as often
            as it takes to reach it, authentic ones included.
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
        root: str | None,
        authentic: str | None = None,
        authentic_fraction: float = 0.5,
        channels: int = 3,
        modality: Modality = "natural",
        load_size: int = 256,
        crop: CropMode = "resized",
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
        if root is None and authentic is None:
            raise ValueError("Expected data.root, data.authentic or both, got neither. Name a folder of images.")
        # NaN fails the first comparison; round cannot take it.
        mixes = 0 < authentic_fraction < 1 and 0 < round(authentic_fraction * draws.PARTS) < draws.PARTS
        if root is not None and authentic is not None and not mixes:
            raise ValueError(
                f"Expected data.authentic_fraction from 0.001 to 0.999, got {authentic_fraction}. Correct it, or name "
                "only one of data.root and data.authentic."
            )
        self.root = root
        self.authentic = authentic
        self.authentic_fraction = authentic_fraction
        self.channels = channels
        self.modality = modality
        self.load_size = load_size
        self.crop = crop
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
        self.padded: set[int] = set()
        self.transform: WorkerTransform | None = None  # what the method wants done in the workers
        self.labels: Labels | None = None

    @property
    def title(self) -> str:
        """The sources, for people."""
        return " and ".join(root for root in (self.root, self.authentic) if root is not None)

    @property
    def is_smoke_run(self) -> bool:
        """Whether there are no other images than the embedded samples."""
        return all(root is None or root.startswith("samples:") for root in (self.root, self.authentic))

    def prepare_data(self) -> None:
        """List the files once per node; `setup` of every rank finds the list in the cache."""
        self._index(self.root)
        self._index(self.authentic)

    def _index(self, root: str | None) -> Index | None:
        if root is None:
            return None
        return build_index(root, column=self.column, slice_axis=self.slice_axis, cache_dir=self.cache_dir)

    def setup(self, stage: str | None = None) -> None:
        """Index the images and check that an epoch holds at least one batch for every rank."""
        self.sources = Sources(self._index(self.root), self._index(self.authentic))
        mixed = self.root is not None and self.authentic is not None
        self.authentic_parts = round(self.authentic_fraction * draws.PARTS) if mixed else 0
        main = self.sources.pristine or len(self.sources)
        pristine_parts = draws.PARTS - self.authentic_parts
        self.repeats = -(-self.min_epoch_length * pristine_parts // (main * draws.PARTS))  # rounded up
        self.epoch_length = main * self.repeats * draws.PARTS // pristine_parts
        self.batches_per_epoch = self.epoch_length // self.batch_size
        if self.batch_size % world_size():
            raise ValueError(
                f"Expected data.batch_size to be a multiple of the {world_size()} devices, got {self.batch_size}. "
                "Change data.batch_size or trainer.devices."
            )
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"Expected at least one batch of {self.batch_size}, got {self.epoch_length} images per epoch in "
                f"{self.title}. Lower data.batch_size or raise data.min_epoch_length."
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
            if len(self.labelled_index) < world_size():
                raise ValueError(
                    f"Expected a labelled image for each of the {world_size()} devices in {self.labels_path}, got "
                    f"{len(self.labelled_index)}. Add some, or leave data.labels out."
                )

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(epoch_length,) index of the image at each position, a function of (seed, epoch).

        Authentic images are spread evenly: any run of positions has their share, within one.
        """
        main = draws.epoch_order(self.seed, epoch, self.sources.pristine or len(self.sources), self.repeats)
        if not self.authentic_parts:
            return main
        ranks = draws.pristine_rank(np.arange(self.epoch_length + 1, dtype=np.int64), self.authentic_parts)
        is_authentic = ranks[1:] == ranks[:-1]
        wanted, count = self.epoch_length - int(ranks[-1]), len(self.sources) - self.sources.pristine
        authentic = draws.epoch_order(self.seed, epoch, count, max(1, -(-wanted // count)), source=1)
        order = np.empty(self.epoch_length, dtype=np.int64)
        order[is_authentic] = self.sources.pristine + authentic[:wanted]
        order[~is_authentic] = main[: self.epoch_length - wanted]
        return order

    def _images(self, sources: Sources, transform: WorkerTransform | None = None) -> UnlabeledImages:
        return UnlabeledImages(
            sources,
            self.channels,
            self.load_size,
            self.crop,
            self.window,
            self.slice_axis,
            self.seed,
            self.max_broken,
            self.max_megapixels,
            transform,
        )

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        """Batches from the stored position on; a new iterator of the same loader goes on where training stands."""
        return DataLoader(
            self._images(self.sources, self.transform),
            batch_size=None,
            sampler=EpochBatches(self),
            collate_fn=as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            **loader_workers(self.workers),
        )

    def first_batch(self, images: int, epoch: int) -> ImageBatch:
        """The first images of epoch 0, loaded in this process as for an epoch, to look at."""
        positions = np.arange(min(images, self.epoch_length), dtype=np.int64)
        key = BatchKey(epoch, 0, positions, self.order(0)[positions])
        return self._images(self.sources, self.transform)[key]

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]] | list[Any]:
        """The labelled images, every world_size-th for this rank, none twice; nothing without `labels`."""
        if self.labels is None:
            return []
        rows = range(rank(), len(self.labelled_index), world_size())
        return DataLoader(
            LabelledImages(self._images(Sources(self.labelled_index))),
            batch_size=max(1, self.batch_size // world_size()),
            sampler=list(rows),
            collate_fn=collate_labelled,
            **loader_workers(self.workers),
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Count the batch: Lightning moves a batch just before it trains on it, not when it is fetched."""
        if isinstance(batch, ImageBatch):
            self._count_broken(batch)
            self._count_padded(batch)
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

    def _count_padded(self, batch: ImageBatch) -> None:
        if batch.padded and not self.padded:
            rank_zero_warn(
                f"{self.sources[batch.padded[0]]} is smaller than data.load_size, {self.load_size} px, and is "
                "continued by its reflection. Such images are counted; see the end of the run."
            )
        self.padded.update(batch.padded)

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream of batches."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "digest": self.sources.digest,
            "broken": {str(i): reason for i, reason in self.broken.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored position; refused when the images are not the same."""
        if state_dict["digest"] != self.sources.digest:
            raise ValueError(
                f"Expected the images that the run began with, got another list of files in {self.title}. "
                "Restore them, or start anew with --fresh."
            )
        self.epoch, self.batch = state_dict["epoch"], state_dict["batch"]
        self.broken = {int(i): reason for i, reason in state_dict["broken"].items()}

    def describe(self) -> dict[str, Any]:
        """What a bundle says about its training data: no names, no paths."""
        return {
            "digest": self.sources.digest,
            "images": len(self.sources),
            "modality": self.modality,
            "channels": self.channels,
            "load_size": self.load_size,
            "crop": self.crop,
            "window": self.window if isinstance(self.window, str) else list(self.window),
            "smoke_run": self.is_smoke_run,
        }
