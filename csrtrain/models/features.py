"""Features of whole images from frozen backbones: what a quality head is fitted to.

Each backbone sees the image at each of its scales; representations are L2-normalised where the backbone's contract says
so, and stand side by side: backbone by backbone, scale by scale (CONTRIQUE, arXiv 2110.13266, section III-D; two
backbones as in Re-IQA, arXiv 2304.00451).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrtrain.models.backbone import Backbone, freeze

TILE = 1024
"""Side of the tiles of a large image, pixels; a multiple of the strides of all usual backbones, at half scale too."""
_LEAST = 32  # px: shorter sides are continued by reflection, because a deep network has nothing left of them


class Contract(NamedTuple):
    """How a backbone is to be used.

    scales: of the image, 1 is as it is.
    l2: whether each representation is divided by its length.
    """

    scales: tuple[float, ...] = (1.0, 0.5)
    l2: bool = True


class FrozenFeatures(nn.Module):
    """Frozen backbones and their contracts; images of any size to (B,F).

    An image of more than `TILE` x `TILE` pixels goes in tiles, and the mean of their representations, weighted by area,
    is taken before the length is (our choice): memory does not grow with the image.

    Args:
        backbones: of the same number of channels.
        contracts: one each.
    """

    def __init__(self, backbones: Sequence[Backbone], contracts: Sequence[Contract]) -> None:
        super().__init__()
        if not backbones or len(backbones) != len(contracts):
            raise ValueError(
                f"Expected a contract for each backbone, got {len(backbones)} and {len(contracts)}. Name both."
            )
        channels = sorted({backbone.channels for backbone in backbones})
        if len(channels) > 1:
            raise ValueError(f"Expected backbones of the same channels, got {channels}. Use others.")
        self.backbones = nn.ModuleList(freeze(backbone) for backbone in backbones)
        self.contracts = tuple(contracts)
        self.to(memory_format=torch.channels_last)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        first: Backbone = self.backbones[0]  # type: ignore[assignment]
        return first.channels

    @property
    def sizes(self) -> list[int]:
        """Width of each part of the features, in their order."""
        return [b.representation_dim for b, c in self._parts() for _ in c.scales]

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) uint8, or float in [0,1] -> (B,F) float32.

        Raises:
            ValueError: other shapes, channels or types.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"Expected images (B,{self.channels},H,W), got {tuple(images.shape)}. Give one channel count."
            )
        sums: list[Tensor] = []
        total = 0.0
        for tile in _tiles(images):
            area = tile.shape[2] * tile.shape[3] / (images.shape[2] * images.shape[3])
            parts = [area * h for h in self._of_tile(_floats(tile))]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            total += area
        assert math.isclose(total, 1.0)
        norms = [contract.l2 for _, contract in self._parts() for _ in contract.scales]
        return torch.cat([F.normalize(h, dim=1) if l2 else h for h, l2 in zip(sums, norms, strict=True)], dim=1)

    def _of_tile(self, x: Tensor) -> list[Tensor]:
        """Representations (B,D) of each backbone at each scale, in float32."""
        x, found = _at_least(x, _LEAST), []
        for backbone, contract in self._parts():
            for scale in contract.scales:
                scaled = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)
                scaled = _at_least(scaled, _LEAST).contiguous(memory_format=torch.channels_last)
                found.append(backbone.representation(scaled).float())
        return found

    def _parts(self) -> Iterator[tuple[Backbone, Contract]]:
        for backbone, contract in zip(self.backbones, self.contracts, strict=True):
            assert isinstance(backbone, Backbone)
            yield backbone, contract


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _tiles(images: Tensor) -> Iterator[Tensor]:
    """The images whole, or in a grid of nearly equal tiles of at most `TILE` a side where they are larger."""
    height, width = images.shape[2:]
    if height * width <= TILE * TILE:
        yield images
        return
    for top, bottom in _cuts(height):
        for left, right in _cuts(width):
            yield images[:, :, top:bottom, left:right]


def _cuts(size: int) -> Iterator[tuple[int, int]]:
    parts = -(-size // TILE)
    edges = [round(size * k / parts) for k in range(parts + 1)]
    yield from zip(edges[:-1], edges[1:], strict=True)


def _at_least(x: Tensor, side: int) -> Tensor:
    """Continue short sides by reflection."""
    while min(x.shape[2:]) < side:
        missing = [max(0, side - n) for n in x.shape[2:]]
        rows, columns = (min(m, n - 1) if n > 1 else 0 for m, n in zip(missing, x.shape[2:], strict=True))
        if rows == columns == 0:  # a side of one pixel: nothing to reflect
            return F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate")
        x = F.pad(x, (0, columns, 0, rows), mode="reflect")
    return x
