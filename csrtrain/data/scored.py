"""Rated images, whole, each once, alone or beside their references: what heads are fitted to."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from csrtrain.data import decode
from csrtrain.data.comparisons import Comparisons, PairBatch, compare, pair_loader
from csrtrain.data.manifest import Manifest, Problem, read_manifest, refuse
from csrtrain.data.splits import with_copies_together
from csrtrain.data.whole import OwnImages, WholeBatch, WholeImages
from csrtrain.data.workers import as_is, loader_workers
from csrtrain.distributed import rank, world_size


class ScoredData(LightningDataModule):
    """The images of a manifest for one pass, shared among the ranks, none twice.

    How they are read (channels, intensity window) is what the backbones were trained with; the module says it.

    Args:
        manifest: CSV file, see `csrtrain.data.manifest`.
        path_column: its column of images.
        rating_range: lowest and highest rating that the scale has; by default those of the training images. The score
            is 0 at the worse and 100 at the better.
        batch_size: most images that go through the backbones at once, per device; fewer where they are large.
        workers: loader processes per device.
        slice_axis: axis along which NIfTI volumes are cut.
        max_broken: images that may be broken before the fit is refused; they are left out, and named.
        max_megapixels: larger images are refused before they are decoded.
        seed: linked to `seed_everything` on the command line.
    """

    def __init__(
        self,
        manifest: str,
        path_column: str = "path",
        rating_range: list[float] | None = None,
        batch_size: int = 16,
        workers: int = 2,
        slice_axis: int = 2,
        max_broken: int = 0,
        max_megapixels: float = 200.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(
                f"Expected data.batch_size >= 1 and data.workers >= 0, got {batch_size} and {workers}. Correct them."
            )
        if rating_range is not None and (len(rating_range) != 2 or not rating_range[0] < rating_range[1]):
            raise ValueError(f"Expected data.rating_range as [low, high], got {rating_range}. Correct it.")
        self.path = manifest
        self.path_column = path_column
        self.rating_range = (rating_range[0], rating_range[1]) if rating_range else None
        self.batch_size = batch_size
        self.workers = workers
        self.slice_axis = slice_axis
        self.max_broken = max_broken
        self.max_megapixels = max_megapixels
        self.seed = int(seed)
        self.epoch = 0
        self.channels = 3
        self.window: decode.Window = "header"
        self._manifest: Manifest | None = None

    @property
    def rated(self) -> Manifest:
        """The rows; copies of a file, under another name, are one group: no fold parts them."""
        if self._manifest is None:
            self._manifest = with_copies_together(read_manifest(self.path, self.path_column, self.rating_range))
        return self._manifest

    def setup(self, stage: str | None = None) -> None:
        """Read and check the manifest."""
        if not len(self.train_rows):
            raise ValueError(f"Expected rows of split train in {self.path}, got none. Correct its column split.")

    @property
    def train_rows(self) -> NDArray[np.int64]:
        """Rows to fit to: those of split train, all without such a column."""
        splits = self.rated.splits
        return np.array([i for i in range(len(self.rated)) if splits is None or splits[i] == "train"], dtype=np.int64)

    def train_dataloader(self) -> DataLoader[WholeBatch]:
        """Every image once over all ranks, one per step, as many steps on each rank."""
        images = WholeImages(self.rated.addresses, self.channels, self.window, self.slice_axis, self.max_megapixels)
        own = list(range(rank(), len(images), world_size()))
        own += [-1] * (-(-len(images) // world_size()) - len(own))
        return DataLoader(
            OwnImages(images),
            batch_size=None,
            sampler=own,
            collate_fn=as_is,
            pin_memory=torch.cuda.is_available(),
            **loader_workers(self.workers),
        )

    def state_dict(self) -> dict[str, Any]:
        """Whether the pass is done."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self.epoch = state_dict["epoch"]

    def describe(self) -> dict[str, Any]:
        """What a bundle says about the rated images: no names, no paths."""
        return {
            "digest": self.rated.digest,
            "images": len(self.rated),
            "groups": int(len(np.unique(self.rated.groups))),
            "train": len(self.train_rows),
        }


class PairData(ScoredData):
    """The images of a manifest beside their references (column `reference`), for one pass over distinct pairs.

    Arguments as for `ScoredData`; `batch_size` counts images, and a reference goes together with what was made of it.
    The images of a pair must be of one size; `max_broken` counts pairs that are not, too.
    """

    _comparisons: Comparisons | None = None

    @property
    def rated(self) -> Manifest:
        """The rows, each with a reference.

        Raises:
            ValueError: rows have none; the message names the lines.
        """
        if self._manifest is None:
            found = read_manifest(self.path, self.path_column, self.rating_range)
            if found.references is None:
                raise ValueError(
                    f"Expected a column reference of undistorted images in {self.path}, got "
                    f"{', '.join(found.columns)}. Add it, or fit a no-reference head."
                )
            rows = zip(found.lines, found.references, strict=True)
            refuse(self.path, [Problem(line, "no reference") for line, reference in rows if not reference])
            self._manifest = found
        return self._manifest

    @property
    def comparisons(self) -> Comparisons:
        """Each image and its reference."""
        if self._comparisons is None:
            self._comparisons = compare(self.rated.references or [], self.rated.addresses)
        return self._comparisons

    def train_dataloader(self) -> DataLoader[PairBatch]:  # type: ignore[override]  # other batches
        """Every pair once over all ranks, as many steps on each rank."""
        return pair_loader(
            self.comparisons,
            self.channels,
            self.batch_size,
            self.workers,
            self.window,
            self.slice_axis,
            self.max_megapixels,
        )
