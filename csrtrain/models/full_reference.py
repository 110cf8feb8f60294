"""The full-reference distance: two images compared in the feature maps of a frozen backbone."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrtrain.models.backbone import Backbone, check_scales, check_stages, freeze
from csrtrain.models.features import at_scale
from csrtrain.models.pairs import check_range, check_shapes, out_of_range

_EPSILON = 1e-10  # of a squared length: a vector of zeros stays one, and has a gradient
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Reference(NamedTuple):
    """What a metric keeps of reference images, to compare many others with them.

    images: (B,C,H,W) as given.
    maps: unit feature maps (B,C,h,w), one per stage of each scale.
    autocast: whether they were made under it; its rounding errors are as large as small distances.
    backbone, stages, scales: what made the maps.
    """

    images: Tensor
    maps: list[Tensor]
    autocast: bool
    backbone: Backbone
    stages: tuple[int, ...]
    scales: tuple[float, ...]


class FullReferenceMetric(nn.Module):
    """Pairs of images -> distances: 0 for identical images, lower is closer.

    At every place of every stage the feature vectors are divided by their lengths, and the squared differences are
    weighted per channel, added up, averaged over places, and added over stages: LPIPS (Zhang et al., CVPR 2018,
    eq. 1). With all weights 1 it is the metric of CSR (arXiv 2212.01577), which needs no rating. The 1e-10 that keeps a
    length from 0 stands inside the root, not behind it, so that the gradient of a vector of zeros is finite (ours).
    So are several scales, each with weights of its own: the sum over stages is one over the stages of every scale.

    Args:
        backbone: is frozen.
        stages: of its `feature_maps`, counted from 0; all of them by default.
        scales: of the images, at most 16 from 1/16 to 4; 1 is as they are. Smaller ones are antialiased.

    Raises:
        ValueError: other stages or scales.
    """

    def __init__(
        self, backbone: Backbone, stages: Sequence[int] | None = None, scales: Sequence[float] = (1.0,)
    ) -> None:
        super().__init__()
        self.header: Any = None
        """What the bundle says that `csrtrain.load` read it from (`csrtrain.headers.DistanceHeader`)."""
        known = len(backbone.stage_channels)
        self.stages = tuple(range(known) if stages is None else stages)
        check_stages(self.stages, known)
        self.scales = tuple(float(scale) for scale in scales)
        check_scales(self.scales)
        self.backbone = freeze(backbone)
        self.weights = nn.ParameterDict(
            OrderedDict(  # another mapping would be sorted by name
                (str(stage) if scale == 1 else f"{stage}_{k}", torch.ones(backbone.stage_channels[stage]))
                for k, scale in enumerate(self.scales)
                for stage in self.stages
            )
        )
        self.weights.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # a fifth faster in bf16 on a CPU

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.backbone.channels

    def distance(self, x: Tensor, y: Tensor | Reference) -> Tensor:
        """Distance of each x to its reference y; differentiable in both, float32 also under autocast.

        Args:
            x: (B,C,H,W) in [0,1]; a network's output may overshoot by 0.25, which is not clipped.
            y: the same shape, or (1,C,H,W), or what `reference` made of such images.

        Returns:
            (B,) float32, exactly 0 where x equals y, in any batch. Under bf16 autocast rounding errors are about 1e-4.

        Raises:
            ValueError: other shapes, channels or types, a reference of another backbone (a copy is another), or one
                made under autocast and used without it, or the other way round; on a CPU also other values. On other
                devices values are not looked at, which would wait for them: a distance is NaN there.
        """
        return _distance(self._stages(x, y))

    def distance_map(self, x: Tensor, y: Tensor | Reference) -> Tensor:
        """Where x differs from y: (B,H,W) float32, each stage enlarged bilinearly to the images, as LPIPS does.

        Arguments and errors as for `distance`.
        """
        return _enlarged(self._stages(x, y), x.shape[-2:])

    def explain(self, x: Tensor, y: Tensor | Reference) -> tuple[Tensor, Tensor]:
        """`distance` and `distance_map` in one pass."""
        stages = self._stages(x, y)
        return _distance(stages), _enlarged(stages, x.shape[-2:])

    def forward(self, x: Tensor, y: Tensor | Reference) -> Tensor:
        """As `distance`."""
        return self.distance(x, y)

    def reference(self, y: Tensor) -> Reference:
        """What `distance` needs to know of references (B,C,H,W) in [0,1], to compare many images with them."""
        self._check("references", y)
        under_autocast = torch.is_autocast_enabled(y.device.type)
        return Reference(y, self._unit_maps(y), under_autocast, self.backbone, self.stages, self.scales)

    def channel_differences(self, images: Tensor, left: Sequence[int], right: Sequence[int]) -> Tensor:
        """What the weights are multiplied with: `distance` is this times the weights of all stages, end to end.

        Args:
            images: (n,C,H,W) uint8, or float in [0,1]; each goes through the backbone once.
            left, right: (P,) which of the images are compared, by their place.

        Returns:
            (P,F) float32, per channel of all stages, scale by scale, the mean over places of the squared difference of
            unit vectors, at least 0; exactly 0 for identical images. One pair at a time: memory does not grow with P.

        Raises:
            ValueError: other channels or types, or, on a CPU, values.
        """
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        self._check("images", x)
        maps = self._unit_maps(x)
        with torch.autocast(x.device.type, enabled=False):
            found = [
                torch.cat([(stage[i] - stage[j]).square().mean((1, 2)) for stage in maps]) * (x[i] != x[j]).any()
                for i, j in zip(left, right, strict=True)
            ]
        return torch.stack(found)

    @property
    def all_weights(self) -> Tensor:
        """(F,) the weights of all stages, end to end, scale by scale."""
        return torch.cat([weight.detach() for weight in self.weights.values()])

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Take (F,) weights, at least 0, for all stages, end to end.

        Raises:
            ValueError: another number of weights, or a weight below 0 or not finite.
        """
        sizes = [len(weight) for weight in self.weights.values()]
        if weights.shape != (sum(sizes),) or not bool(((weights >= 0) & torch.isfinite(weights)).all()):
            raise ValueError(
                f"Expected {sum(sizes)} finite weights of at least 0, got {tuple(weights.shape)}, "
                f"{float(weights.min()):g} to {float(weights.max()):g}. Fit others."
            )
        for own, part in zip(self.weights.values(), torch.split(weights, sizes), strict=True):
            own.copy_(part)

    def _stages(self, x: Tensor, y: Tensor | Reference) -> list[Tensor]:
        """(B,h,w) float32 per stage: weighted squared differences."""
        reference = y if isinstance(y, Reference) else None
        images = y.images if isinstance(y, Reference) else y
        self._check("images", x)
        if reference is None:
            self._check("references", images)
        check_shapes(x, images)
        if reference is not None and reference.backbone is not self.backbone:
            raise ValueError("Expected a reference of this metric's backbone, got another's. Make it by `reference`.")
        if reference is not None and (reference.stages, reference.scales) != (self.stages, self.scales):
            raise ValueError(
                f"Expected a reference of stages {list(self.stages)} and scales {list(self.scales)}, got "
                f"{list(reference.stages)} and {list(reference.scales)}. Make it by `reference`."
            )
        if reference is not None and reference.autocast != torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"Expected a reference made {'without' if reference.autocast else 'under'} autocast, as this call is, "
                "got another. Make it again."
            )
        of_x = self._maps(x)
        of_y = self._unit_maps(images) if reference is None else reference.maps
        # Identical images: what is left are rounding errors of other batches, and their gradient.
        differs = (x != images).flatten(1).any(1)[:, None, None]
        if x.device.type != "cpu":
            wrong = (out_of_range(x) | out_of_range(images))[:, None, None]
        with torch.autocast(x.device.type, enabled=False):
            found = []
            for weight, f, v in zip(self.weights.values(), of_x, of_y, strict=True):
                difference = torch.addcmul(v, f, _inverse_lengths(f), value=-1)  # v - f / |f|: one pass over f less
                stage = torch.einsum("bchw,c->bhw", difference.square(), weight.float())
                stage = torch.where(differs, stage, torch.zeros_like(stage))
                if x.device.type != "cpu":
                    stage = stage.masked_fill(wrong, torch.nan)
                found.append(stage)
        return found

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the stages, scale by scale, float32."""
        found = []
        for scale in self.scales:
            x = at_scale(images, scale).contiguous(memory_format=torch.channels_last)
            maps = self.backbone.feature_maps(x)
            found += [maps[stage].float() for stage in self.stages]
        return found

    def _unit_maps(self, images: Tensor) -> list[Tensor]:
        """The same, each vector of length 1."""
        maps = self._maps(images)  # under autocast, if the caller is
        with torch.autocast(images.device.type, enabled=False):
            return [f * _inverse_lengths(f) for f in maps]

    def _check(self, what: str, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels or images.dtype not in _FLOATS:
            raise ValueError(
                f"Expected {what} (B,{self.channels},H,W), float in [0,1], got {tuple(images.shape)} {images.dtype}. "
                "Divide 8-bit values by 255, convert float64, and give the backbone's channels."
            )
        if min(images.shape[2:]) * min(self.scales) < 1:
            raise ValueError(
                f"Expected {what} of at least {math.ceil(1 / min(self.scales))} px a side at scale "
                f"{min(self.scales):g}, got {images.shape[2]}x{images.shape[3]}. Give larger ones, or other scales."
            )
        check_range(what, images)


def _inverse_lengths(f: Tensor) -> Tensor:
    """(B,C,h,w) -> (B,1,h,w)."""
    return torch.rsqrt(torch.linalg.vector_norm(f, dim=1, keepdim=True).square() + _EPSILON)


def _distance(stages: list[Tensor]) -> Tensor:
    return torch.stack([stage.mean((1, 2)) for stage in stages]).sum(0)


def _enlarged(stages: list[Tensor], size: torch.Size) -> Tensor:
    return torch.stack([F.interpolate(stage[:, None], size, mode="bilinear")[:, 0] for stage in stages]).sum(0)
