"""The no-reference metric: frozen backbones, a linear head fitted to ratings, and the domain that it was fitted in."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from csrtrain.models.domain import Domain, appearance
from csrtrain.models.features import FrozenFeatures


class RatingScale(NamedTuple):
    """What the ratings mean.

    low, high: the range of the ratings; the score is 0 at its worst end and 100 at its best.
    higher_is_better: true of mos, false of dmos.
    name: of the ratings: mos, dmos or proxy.
    pristine: median score of pristine images, where the ratings have some.
    """

    low: float
    high: float
    higher_is_better: bool = True
    name: str = "mos"
    pristine: float | None = None

    @property
    def slope(self) -> float:
        """Score per unit of rating."""
        return (100.0 if self.higher_is_better else -100.0) / (self.high - self.low)

    @property
    def offset(self) -> float:
        """Score of a rating of 0."""
        return -self.slope * (self.low if self.higher_is_better else self.high)


class Assessment(NamedTuple):
    """What a metric says of B images.

    score: (B,) float32, higher is better, 0 to 100 over the range of the ratings; it may lie beyond.
    rating: (B,) float32, the same in the units and the direction of the ratings.
    out_of_range: (B,) bool, the score is beyond 0 to 100.
    distance: (B,) float32, to the nearest training images; 1 is the limit that 98 % of held-out ones keep.
    out_of_domain: (B,) bool, the distance is beyond the limit: the score means little.
    """

    score: Tensor
    rating: Tensor
    out_of_range: Tensor
    distance: Tensor
    out_of_domain: Tensor


class NoReferenceMetric(nn.Module):
    """Images -> quality scores, 0 to 100, higher is better.

    Args:
        features: frozen backbones and their contracts.
        scale: of the ratings that the head is fitted to.
        anchors: how many training images it keeps to recognise images of another kind.
    """

    header: Any = None
    """What the bundle says that `csrtrain.load` read it from (`csrtrain.headers.MetricHeader`)."""

    def __init__(self, features: FrozenFeatures, scale: RatingScale, anchors: int = 0) -> None:
        super().__init__()
        if not scale.high > scale.low:
            raise ValueError(f"Expected a range of ratings, got {scale.low} to {scale.high}. Name data.rating_range.")
        self.features = features
        self.scale = scale
        self.head = nn.Linear(sum(features.sizes), 1)
        self.domain = Domain(anchors, sum(features.sizes), features.channels)

    def score(self, images: Tensor) -> Tensor:
        """(B,C,H,W) uint8, or float in [0,1], any size -> (B,) float32; differentiable.

        Raises:
            ValueError: no tensor, or other shapes, channels, types, values (not looked at where a gradient is wanted).
        """
        _check_range(images)
        return self.score_of(self.features(images))

    def folded(self) -> "NoReferenceMetric":
        """A copy for inference alone, a tenth faster; see `FrozenFeatures.folded`."""
        copied = copy.deepcopy(self)
        copied.features = self.features.folded()
        return copied.eval()

    def forward(self, images: Tensor) -> Tensor:
        """As `score`."""
        return self.score(images)

    @torch.no_grad()
    def assess(self, images: Tensor) -> Assessment:
        """Score, and whether it can be trusted; images as for `score`."""
        _check_range(images)
        return self._judged(images, self.features(images))

    def _judged(self, images: Tensor, h: Tensor) -> Assessment:
        score = self.score_of(h)
        with torch.autocast(h.device.type, enabled=False):
            distance = self.domain(h, appearance(images))
        return Assessment(score, self._rating(h), (score < 0) | (score > 100), distance, ~(distance <= 1))

    @torch.no_grad()
    def heatmap(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,h,w) float32, what each place of 32 x 32 pixels adds to the score; they sum to it.

        Raises:
            ValueError: images that `score` refuses, or the backbone's representation is not the mean of a feature map.
        """
        return self.explain(images)[1]

    @torch.no_grad()
    def explain(self, images: Tensor) -> tuple[Assessment, Tensor]:
        """`assess` and `heatmap` of (B,C,H,W) in one pass through the backbones; errors as for `heatmap`.

        Under autocast the features are averaged in float32 here, which moves a score by less than 0.1.
        """
        _check_range(images)
        h, contributions = self.features.decompose(images, self.scale.slope * self.head.weight[0])
        constant = self.scale.slope * self.head.bias + self.scale.offset
        return self._judged(images, h), contributions + constant / contributions[0].numel()

    def _rating(self, h: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            rating: Tensor = self.head(h.float())[:, 0]
        return rating

    def score_of(self, h: Tensor) -> Tensor:
        """Features (B,F) -> (B,) scores."""
        return self._rating(h) * self.scale.slope + self.scale.offset


def _check_range(images: Tensor) -> None:
    """What is no tensor, and values that would give a wrong score without a word: 0 to 255 as floats, -1 to 1, NaN."""
    if not isinstance(images, Tensor):
        raise ValueError(
            f"Expected a tensor of images (B,C,H,W), got {type(images).__name__}. Convert it: of an array (B,H,W,C), "
            "torch.from_numpy(array).movedim(-1, 1)."
        )
    if images.is_floating_point() and not images.requires_grad and images.numel():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"Expected values in [0,1], got {low:g} to {high:g}. Divide 8-bit values by 255.")
