"""The two views of CONTRIQUE: a distorted image at full scale and at half scale, in random colour spaces."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csrtrain import draws
from csrtrain.augment import geometry
from csrtrain.augment.bank import SMALLEST, DistortionBank, DrawnDistortions
from csrtrain.augment.color_spaces import SPACES_OF_COLOR, SPACES_OF_GREY, to_color_space
from csrtrain.precision import full_precision


class DrawnScales(NamedTuple):
    """What a batch of B samples gets.

    distortions: see `DrawnDistortions`.
    crops: (2,B,7) float32, of the full-scale and the half-scale view; see `geometry.crop`.
    spaces: (2,B) int64, colour spaces; see `color_spaces.to_color_space`.
    """

    distortions: DrawnDistortions
    crops: Tensor
    spaces: Tensor


class TwoScaleViews(nn.Module):
    """Distort, then cut a square at full scale and one of the half-scale image (Madhusudana et al., arXiv 2110.13266,
    section III-C; the resize is antialiased bilinear, as PIL's is that the released code calls).

    Where the paper distorts whole images beforehand, a square of at least twice the views' size is distorted here, the
    half-scale view shows all of it, and the full-scale view a random quarter.

    Args:
        bank: the distortions.
        size: side of the views, pixels.
        channels: 1 or 3 for colour spaces; with other counts the images stay as they are.
        color_spaces: put each view into a random colour space.
        flip: chance that a view is flipped left to right.
        count, continuous, per_class: see `DistortionBank.draw`.

    Attributes:
        authentic_parts: see `DistortionBank.draw`; for the method to set, which knows its data.
    """

    def __init__(
        self,
        bank: DistortionBank,
        size: int,
        channels: int,
        color_spaces: bool = True,
        flip: float = 0.5,
        count: int = 1,
        continuous: bool = False,
        per_class: int = 1,
    ) -> None:
        super().__init__()
        if 2 * size < SMALLEST:
            raise ValueError(f"Expected views of at least {SMALLEST // 2} px, got {size}. Raise model.size.")
        bank.check_count(count)
        self.bank = bank
        self.size = size
        self.spaces: tuple[int, ...] = {1: SPACES_OF_GREY, 3: SPACES_OF_COLOR}.get(channels, ()) if color_spaces else ()
        self.flip = flip
        self.count = count
        self.continuous = continuous
        self.per_class = per_class
        self.authentic_parts = 0

    def draw(
        self,
        seed: int,
        epoch: int,
        positions: NDArray[np.int64],
        authentic: NDArray[np.bool_],
        height: int,
        width: int,
    ) -> DrawnScales:
        """Parameters of both views, a function of (seed, epoch, position, view).

        Args:
            seed, epoch, positions: see `csrtrain.draws.uniform`; positions (B,).
            authentic: (B,) bool, images that are not distorted.
            height, width: of the images, pixels.
        """
        if min(height, width) < 2 * self.size:
            raise ValueError(
                f"Expected images of at least {2 * self.size} px, twice model.size, got {height} x {width}. Set "
                f"data.load_size to {2 * self.size}."
            )
        distortions = self.bank.draw(
            seed, epoch, positions, authentic, self.count, self.continuous, self.per_class, self.authentic_parts
        )
        crops, spaces = [], []
        for view, stream in enumerate((draws.SCALE_STREAM, draws.SCALE_STREAM + 1)):
            u = draws.uniform(seed, epoch, positions, stream, 4)
            side = self.size * (1 + view)
            top, left = np.floor(u[:, 0] * (height - side + 1)), np.floor(u[:, 1] * (width - side + 1))
            sides, none = np.full(len(u), side), np.zeros(len(u))
            crops.append(np.stack([top, left, sides, sides, u[:, 2] < self.flip, none, none], axis=-1))
            if self.spaces:
                spaces.append(np.array(self.spaces)[np.floor(u[:, 3] * len(self.spaces)).astype(np.int64)])
        return DrawnScales(
            distortions,
            torch.from_numpy(np.stack(crops).astype(np.float32)),
            torch.from_numpy(np.stack(spaces)) if spaces else torch.empty((2, 0), dtype=torch.int64),
        )

    def forward(self, images: Tensor, drawn: DrawnScales) -> tuple[Tensor, Tensor]:
        """Make the views, in float32 also under autocast, with no host read of a device tensor.

        Args:
            images: (B,C,H,W) uint8, or float32 in [0,1], on the device of the drawn tensors.

        Returns:
            full scale and half scale, (B,C,size,size) float32 in [0,1] each.
        """
        with torch.no_grad(), full_precision(images.device):
            x = self.bank(images, drawn.distortions)
            full, half = (self._view(x, drawn, view) for view in (0, 1))
            return full, half

    def _view(self, x: Tensor, drawn: DrawnScales, view: int) -> Tensor:
        x = geometry.crop(x, drawn.crops[view], self.size)
        return to_color_space(x, drawn.spaces[view]) if self.spaces else x
