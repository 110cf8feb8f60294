"""CONTRIQUE's full-reference regressor: a linear head on how far the representations of two images differ."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from csrtrain.models.features import FrozenFeatures
from csrtrain.models.pairs import check_range, check_shapes, out_of_range


class DifferenceMetric(nn.Module):
    """Pairs of images -> predicted loss of quality in the units of the ratings: 0 for identical images.

    w . |h(x) - h(y)| (CONTRIQUE, arXiv 2110.13266, section III-D). Ours: no intercept, which in the released regressors
    is the score of identical images, so that nothing is lost where nothing differs; and 0 where it is below 0, because
    weights may be negative.

    Args:
        features: frozen backbones and their contracts.
    """

    header: Any = None
    """What the bundle says that `csrtrain.load` read it from (`csrtrain.headers.DistanceHeader`)."""

    def __init__(self, features: FrozenFeatures) -> None:
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.zeros(sum(features.sizes)), requires_grad=False)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.features.channels

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of each x to its reference y.

        Args:
            x: (B,C,H,W) uint8, or float in [0,1]; a network's output may overshoot by 0.25, which is not clipped.
            y: the same shape, or (1,C,H,W).

        Returns:
            (B,) float32, at least 0, exactly 0 where x equals y.

        Raises:
            ValueError: other shapes, channels or types; on a CPU also other values. On other devices a distance is NaN
                there.
        """
        check_shapes(x, y)
        for what, images in (("images", x), ("references", y)):
            check_range(what, images)
        if x.dtype != y.dtype:
            x, y = (z.float() / 255 if z.dtype == torch.uint8 else z for z in (x, y))
        differences = (self.features(x) - self.features(y)).abs()
        differs = (x != y).flatten(1).any(1)  # what is left for identical images are rounding errors of other batches
        with torch.autocast(x.device.type, enabled=False):
            found = (differences.float() @ self.weight).clamp(min=0)
        found = torch.where(differs, found, torch.zeros_like(found))
        if x.device.type != "cpu" and x.is_floating_point():
            found = found.masked_fill(out_of_range(x) | out_of_range(y), torch.nan)
        return found

    def differences(self, images: Tensor, left: Sequence[int], right: Sequence[int]) -> Tensor:
        """What the weights are multiplied with: |h(x) - h(y)| of pairs.

        Args:
            images: (n,C,H,W) uint8, or float in [0,1]; each goes through the backbones once.
            left, right: (P,) which of the images are compared, by their place.

        Returns:
            (P,F) float32, exactly 0 for identical images.

        Raises:
            ValueError: other channels or types.
        """
        h, i, j = self.features(images), list(left), list(right)
        differs = (images[i] != images[j]).flatten(1).any(1)
        with torch.autocast(images.device.type, enabled=False):
            found: Tensor = (h[i] - h[j]).abs() * differs[:, None]
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As `distance`."""
        return self.distance(x, y)

    def folded(self) -> "DifferenceMetric":
        """A copy for inference alone, a tenth faster; see `FrozenFeatures.folded`."""
        copied = copy.deepcopy(self)
        copied.features = self.features.folded()
        return copied.eval()
