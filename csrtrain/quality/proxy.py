"""Images distorted here, rated by a full-reference index: to try the whole chain, or where nobody has rated images.

Such a rating is a proxy. It knows the pristine image and no person, and is never called an opinion score.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.distort import LEVELS, rows_for
from csrtrain.augment.settings import Modality
from csrtrain.data import decode
from csrtrain.data.images import native
from csrtrain.data.index import build_index
from csrtrain.data.manifest import Manifest
from csrtrain.data.whole import WholeBatch
from csrtrain.data.workers import as_is
from csrtrain.distributed import rank, world_size
from csrtrain.metrics.representation import group_folds

_CHUNK = 50  # images whose index is computed at once
_FEWEST = 7  # pristine images: five folds of train, and some for test
_LEAST = 176  # px: five scales of MS-SSIM with windows of 11


class ProxyData(LightningDataModule):
    """Squares of pristine images, each as it is and distorted by types of the bank at random levels.

    The rating is MS-SSIM to the pristine one (Wang et al., "Multiscale structural similarity for image quality
    assessment", 2003), 0 to 1.

    A fifth of the pristine images, with all that was made of them, is split test. The images stay in memory.

    Args:
        root: pristine images: folder, list, CSV file, or the embedded `samples:natural` or `samples:medical`.
        modality: whose distortions.
        sources: most pristine images that are taken; fewer files give several squares each.
        types_per_source: distorted versions of each.
        side: of the squares, pixels.
        batch_size: most images that go through the backbones at once, per device.
        seed: linked to `seed_everything` on the command line.
    """

    def __init__(
        self,
        root: str = "samples:natural",
        modality: Modality = "natural",
        sources: int = 24,
        types_per_source: int = 12,
        side: int = 192,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sources < 10 or types_per_source < 1 or batch_size < 1 or side < _LEAST:
            raise ValueError(
                f"Expected data.sources >= 10, types_per_source >= 1, batch_size >= 1 and side >= {_LEAST}, got "
                f"{sources}, {types_per_source}, {batch_size} and {side}. Correct the config."
            )
        self.path = root
        self.modality = modality
        self.sources = sources
        self.types_per_source = types_per_source
        self.side = side
        self.batch_size = batch_size
        self.seed = int(seed)
        self.rating_range = (0.0, 1.0)
        self.max_broken = 0
        self.epoch = 0
        self.channels = 3
        self.window: decode.Window = "header"
        self._images: Tensor = torch.empty(0)
        self._manifest: Manifest | None = None

    @property
    def rated(self) -> Manifest:
        """The rows, made when they are first asked for."""
        if self._manifest is None:
            self._images, names, ratings, sources = self._make()
            out = group_folds(sources, 5, self.seed) == 0
            splits = ["test" if held else "train" for held in out]
            versions = len(names) // self.sources
            pristine = [names[i - i % versions] for i in range(len(names))]
            columns = {"path": names, "proxy": [f"{rating:.10g}" for rating in ratings], "split": splits}
            lines = list(range(2, 2 + len(names)))
            self._manifest = Manifest(self.path, names, pristine, ratings, "proxy", sources, splits, columns, lines)
        return self._manifest

    def _make(self) -> tuple[Tensor, list[str], NDArray[np.float64], NDArray[np.int64]]:
        """Images (N,C,S,S) uint8, names, ratings (N,), number of the pristine image of each (N,)."""
        addresses = list(build_index(self.path))
        if len(addresses) < _FEWEST:
            raise ValueError(
                f"Expected at least {_FEWEST} pristine images in {self.path}, got {len(addresses)}. Add some."
            )
        bank = DistortionBank(rows_for(self.modality, self.channels))
        types = min(self.types_per_source, len(bank.rows))
        rng = np.random.default_rng(self.seed)
        images, names, ratings, numbers = [], [], [], []
        for k in range(self.sources):
            address = addresses[k % len(addresses)]
            loaded = decode.to_channels(decode.read(address, window=self.window), self.channels)
            square = native(loaded, self.side, *rng.uniform(size=2))
            pristine = square.float() / 255 if square.dtype == torch.uint8 else square
            chosen = rng.permutation(len(bank.rows))[:types]
            levels = rng.integers(1, LEVELS + 1, (types, 1)).astype(np.float64)
            drawn = bank.drawn(chosen[:, None], levels, rng.integers(0, 2**62, (types, 1)))
            made = torch.cat([pristine[None], bank(pristine.expand(types, -1, -1, -1).contiguous(), drawn)])
            made = (made * 255).round().to(torch.uint8)
            shown = made.float() / 255
            index = [
                ms_ssim(x, shown[:1].expand_as(x), data_range=1.0, reduction="none") for x in torch.split(shown, _CHUNK)
            ]
            images.append(made)
            ratings.append(torch.cat([v.reshape(-1) for v in index]).double().clamp(0, 1).numpy())
            labels = ["pristine", *(f"{bank.rows[t].name}-{int(v)}" for t, v in zip(chosen, levels[:, 0], strict=True))]
            names += [f"{address}: square {k}, {label}" for label in labels]
            numbers.append(np.full(1 + types, k % len(addresses), dtype=np.int64))
        return torch.cat(images), names, np.concatenate(ratings), np.concatenate(numbers)

    def write(self, folder: str | Path) -> Path:
        """Write the images as PNG files and the manifest `ratings.csv` (path, proxy, group, split) into a new folder.

        Returns:
            Path of the manifest.
        """
        rated, folder = self.rated, Path(folder)
        (folder / "images").mkdir(parents=True)
        with (folder / "ratings.csv").open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["path", "proxy", "group", "split"])
            for k, image in enumerate(self._images):
                pixels = image.permute(1, 2, 0).numpy()
                name = f"images/{rated.groups[k]:03d}-{k:04d}-{rated.addresses[k].rpartition(', ')[2]}.png"
                Image.fromarray(pixels if len(image) == 3 else pixels[:, :, 0]).save(folder / name)
                rows.writerow([name, rated.columns["proxy"][k], rated.groups[k], rated.columns["split"][k]])
        return folder / "ratings.csv"

    @property
    def train_rows(self) -> NDArray[np.int64]:
        """Rows to fit to."""
        return np.flatnonzero(np.array(self.rated.splits) == "train")

    def train_dataloader(self) -> DataLoader[WholeBatch]:
        """Every image once over all ranks, one per step, as many steps on each rank."""
        own: Any = [WholeBatch([i], self._images[i : i + 1]) for i in range(rank(), len(self.rated), world_size())]
        own += [WholeBatch([], None)] * (-(-len(self.rated) // world_size()) - len(own))
        return DataLoader(own, batch_size=None, collate_fn=as_is)

    def state_dict(self) -> dict[str, Any]:
        """Whether the pass is done."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self.epoch = state_dict["epoch"]

    def describe(self) -> dict[str, Any]:
        """What a bundle says about the images: no names, no paths."""
        return {
            "digest": self.rated.digest,
            "images": len(self.rated),
            "groups": int(len(np.unique(self.rated.groups))),
            "train": len(self.train_rows),
            "proxy": "MS-SSIM to the pristine image; no opinion of people",
        }
