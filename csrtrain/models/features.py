"""Features of whole images from frozen backbones: what a quality head is fitted to.

Each backbone sees the image at each of its scales; representations are L2-normalised where the backbone's contract says
so, and stand side by side: backbone by backbone, scale by scale (CONTRIQUE, arXiv 2110.13266, section III-D; two
backbones as in Re-IQA, arXiv 2304.00451). The means of several stages in place of the representation are ours.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from csrtrain.models.backbone import Backbone, check_scales, check_stages, freeze

TILE = 1024
"""Side of the tiles of a large image, pixels; a multiple of the strides of all usual backbones, at half scale too."""
_CELL = 32  # px: side of a place of a heat-map
_LEAST = 32  # px: shorter sides are continued by reflection, because a deep network has nothing left of them


class Contract(NamedTuple):
    """How a backbone is to be used.

    scales: of the image, 1 is as it is.
    l2: whether each representation is divided by its length.
    crops: side in pixels of five squares, the centre and the corners, that are used instead of the whole image at each
        scale (ARNIQA, arXiv 2310.14918); the mean of their representations is taken after the length, so that a linear
        head gives the mean of their five scores. A shorter image is continued by reflection (ours; there by zeros).
    stages: of the `feature_maps`, counted from 0, whose means over places are used instead of the representation, each
        divided by its own length.
    """

    scales: tuple[float, ...] = (1.0, 0.5)
    l2: bool = True
    crops: int | None = None
    stages: tuple[int, ...] | None = None

    @classmethod
    def declared_by(cls, backbone: Backbone) -> "Contract":
        """As the bundle of a backbone says; without one the default."""
        if backbone.header is None:
            return cls()
        declared = backbone.header.features
        return cls(tuple(float(scale) for scale in declared["scales"]), bool(declared["l2"]))


class Piece(NamedTuple):
    """A part of an image: its first and last row and column, and its weight in the mean."""

    top: int
    bottom: int
    left: int
    right: int
    share: float


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
        for backbone, contract in zip(backbones, contracts, strict=True):
            check_scales(contract.scales)
            if (contract.crops or _LEAST) < _LEAST:
                raise ValueError(f"Expected crops of {_LEAST} px or more, got {contract.crops}. Correct it.")
            if contract.stages is not None:
                check_stages(contract.stages, len(backbone.stage_channels))
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
        return [size for backbone, contract, _ in self.parts() for size in _sizes(backbone, contract)]

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) uint8, or float in [0,1] -> (B,F) float32.

        Raises:
            ValueError: other shapes, channels or types.
        """
        self._check(images)
        found = []
        for backbone, contract, scale in self.parts():
            sizes = _sizes(backbone, contract)
            h = [images.new_zeros((len(images), size), dtype=torch.float32) for size in sizes]
            for piece in _pieces(images, contract, scale):
                parts = pooled_features(backbone, contract, _cut(images, piece, contract, scale))
                for k, part in enumerate(parts):
                    h[k] = h[k] + piece.share * (F.normalize(part, dim=1) if contract.l2 and contract.crops else part)
            found += [F.normalize(one, dim=1) for one in h] if contract.l2 and not contract.crops else h
        return torch.cat(found, dim=1)

    def decompose(self, images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The features, and what each place of the images adds to their product with `weight`, exactly.

        A representation is the mean of the vectors of the last feature map, and both the mean and the division by the
        length of the mean distribute over them: place p of n adds w . f_p / (n |h|). So with the means of other stages.

        Args:
            images: as for `forward`.
            weight: (F,) of a linear head.

        Returns:
            (B,F) as `forward` gives them, under autocast averaged in float32 instead, and (B,h,w) float32, a place per
            32 x 32 pixels, that sum to the product.

        Raises:
            ValueError: an architecture whose representation is not the mean of a feature map.
        """
        self._check(images)
        height, width = images.shape[2:]
        rows, columns = -(-height // _CELL), -(-width // _CELL)
        total = torch.zeros((len(images), rows, columns), device=images.device)
        weights, found = iter(torch.split(weight.float(), self.sizes)), []
        for backbone, contract, scale in self.parts():
            own = list(itertools.islice(weights, len(_sizes(backbone, contract))))
            parts = [torch.zeros_like(total) for _ in own]
            h = [total.new_zeros((len(images), len(w))) for w in own]
            for piece in _pieces(images, contract, scale):
                maps = _maps(backbone, contract, _cut(images, piece, contract, scale))
                for k, (f, w) in enumerate(zip(maps, own, strict=True)):  # f: (B,D,r,c)
                    with torch.autocast(images.device.type, enabled=False):
                        f = f.float()
                        mean = f.mean((2, 3))
                        length = _length(mean) if contract.l2 and contract.crops else torch.ones_like(mean[:, :1])
                        local = torch.einsum("bdrc,d->brc", f, w) * (piece.share / f[0, 0].numel()) / length[:, :, None]
                        down = _overlap(piece.top, piece.bottom, f.shape[2], height, rows).to(local)
                        right = _overlap(piece.left, piece.right, f.shape[3], width, columns).to(local)
                        parts[k] = parts[k] + down.T @ local @ right
                        h[k] = h[k] + piece.share * mean / length
            for part, one in zip(parts, h, strict=True):
                length = _length(one) if contract.l2 and not contract.crops else torch.ones_like(one[:, :1])
                total = total + part / length[:, :, None]
                found.append(one / length)
        return torch.cat(found, dim=1), total

    def folded(self) -> "FrozenFeatures":
        """A copy for inference alone: batch-norms become part of the convolutions before them, a tenth faster."""
        copied = copy.deepcopy(self)
        for backbone in copied.backbones:
            _fold_norms(backbone)
        return copied.to(memory_format=torch.channels_last)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels or 0 in images.shape[2:]:
            raise ValueError(
                f"Expected images (B,{self.channels},H,W), got {tuple(images.shape)}. Give a batch of such images: "
                "image[None] of one, csrtrain.data.decode.to_channels for other channels."
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"Expected uint8, or floats in [0,1], got {images.dtype}. Convert the images.")

    def parts(self) -> Iterator[tuple[Backbone, Contract, float]]:
        """Backbone, contract and scale of each part of the features."""
        for backbone, contract in zip(self.backbones, self.contracts, strict=True):
            assert isinstance(backbone, Backbone)
            for scale in contract.scales:
                yield backbone, contract, scale


def _sizes(backbone: Backbone, contract: Contract) -> list[int]:
    """Widths of what a backbone gives at one scale."""
    if contract.stages is None:
        return [backbone.representation_dim]
    channels = backbone.stage_channels
    return [channels[stage] for stage in contract.stages]


def _maps(backbone: Backbone, contract: Contract, x: Tensor) -> list[Tensor]:
    """(B,D,h,w) each, whose means `pooled_features` gives."""
    if contract.stages is None:
        return [backbone.pooled_map(x)]
    maps = backbone.feature_maps(x)
    return [maps[stage] for stage in contract.stages]


def pooled_features(backbone: Backbone, contract: Contract, x: Tensor) -> list[Tensor]:
    """(B,D) float32 each: the representation, or the means of the stages."""
    if contract.stages is None:
        return [backbone.representation(x).float()]
    return [f.mean((2, 3), dtype=torch.float32) for f in _maps(backbone, contract, x)]


def _length(h: Tensor) -> Tensor:
    """(B,D) -> (B,1), as `F.normalize` divides by it."""
    length: Tensor = torch.linalg.vector_norm(h, dim=1, keepdim=True)
    return length.clamp(min=1e-12)


def _fold_norms(network: nn.Module) -> None:
    """In place, where a batch-norm is known to follow a convolution: timm's conv1 and bn1, and in sequences."""
    for module in list(network.modules()):
        pairs = [(f"conv{k}", f"bn{k}") for k in (1, 2, 3)]
        if isinstance(module, nn.Sequential):
            pairs = list(itertools.pairwise(name for name, _ in module.named_children()))
        for first, second in pairs:
            conv, norm = getattr(module, first, None), getattr(module, second, None)
            # Not of a subclass: timm's batch-norm with an activation in it.
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and conv.out_channels == norm.num_features:
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())


def _pieces(images: Tensor, contract: Contract, scale: float) -> Iterator[Piece]:
    """The whole image, or nearly equal tiles of at most `TILE` a side where it is larger, or five squares."""
    height, width = images.shape[2:]
    if contract.crops:
        side = round(contract.crops / scale)
        h, w = min(side, height), min(side, width)
        for y, x in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)):
            top, left = int(y * (height - h)), int(x * (width - w))
            yield Piece(top, top + h, left, left + w, 1 / 5)
    else:
        yield from tiles(height, width)


def tiles(height: int, width: int) -> Iterator[Piece]:
    """An image as one piece, or in nearly equal tiles of at most `TILE` a side where it has more pixels than one."""
    if height * width <= TILE * TILE:
        yield Piece(0, height, 0, width, 1.0)
        return
    for top, bottom in _cuts(height):
        for left, right in _cuts(width):
            yield Piece(top, bottom, left, right, (bottom - top) * (right - left) / (height * width))


def _cuts(size: int) -> Iterator[tuple[int, int]]:
    parts = -(-size // TILE)
    edges = [round(size * k / parts) for k in range(parts + 1)]
    yield from zip(edges[:-1], edges[1:], strict=True)


def _cut(images: Tensor, piece: Piece, contract: Contract, scale: float) -> Tensor:
    """A piece at a scale, float32."""
    x = images[:, :, piece.top : piece.bottom, piece.left : piece.right]
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    x = _at_least(x, _LEAST if contract.crops is None else round(contract.crops / scale))
    return _at_least(at_scale(x, scale), _LEAST).contiguous(memory_format=torch.channels_last)


def at_scale(x: Tensor, scale: float) -> Tensor:
    """(B,C,H,W) floats at a scale, bilinear, antialiased; of the same type."""
    if scale == 1:
        return x
    found: Tensor = F.interpolate(x.float(), scale_factor=scale, mode="bilinear", antialias=True)  # not in bf16 or fp16
    return found.to(x.dtype)


def _overlap(start: int, end: int, cells: int, size: int, parts: int) -> Tensor:
    """(cells,parts): how much of each of `cells` equal cells of [start,end) lies in each equal part of [0,size)."""
    edges = torch.linspace(start, end, cells + 1, dtype=torch.float64)
    limits = torch.linspace(0, size, parts + 1, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], limits[:-1])
    high = torch.minimum(edges[1:, None], limits[1:])
    return (high - low).clamp(min=0) / (edges[1:] - edges[:-1])[:, None]


def _at_least(x: Tensor, side: int) -> Tensor:
    """Continue short sides by reflection."""
    while min(x.shape[2:]) < side:
        missing = [max(0, side - n) for n in x.shape[2:]]
        rows, columns = (min(m, n - 1) if n > 1 else 0 for m, n in zip(missing, x.shape[2:], strict=True))
        if rows == columns == 0:  # a side of one pixel: nothing to reflect
            return F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate")
        x = F.pad(x, (0, columns, 0, rows), mode="reflect")
    return x
