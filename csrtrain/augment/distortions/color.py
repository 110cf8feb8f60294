"""Colour: diffusion, shift, quantisation, saturation. All need three channels."""

import math

import torch
from torch import Tensor

from csrtrain.augment.color import luma
from csrtrain.augment.color_spaces import lab_to_rgb, rgb_to_lab
from csrtrain.augment.distortions.blur import smooth
from csrtrain.augment.randoms import uniforms

_DIFFUSION_RADIUS = 40  # 2 sigma of the largest level, 1.5 * 12 + 2 px
_COLORS = 64  # of the largest palette; a power of 2
_SAMPLES = 32  # per side, pixels that the palette is made from
_ROUNDS = 5
_AT_ONCE = 16384  # pixels, whose distances to the palette fit a CPU's cache
_PERCENTILES = (0.05, 0.95)
_FAR = 30.0  # a squared distance that no colour has
_ABOVE_0 = 1e-5  # more than the rounding errors of a squared distance


def color_diffusion(x: Tensor, factor: Tensor, seeds: Tensor) -> Tensor:
    """Blur a and b of Lab with sigma = 1.5 factor + 2 px and multiply them by the factor. KADIS-700k type 4.

    Sigma and factor as in ARNIQA (arXiv 2310.14918).

    Args:
        x: (n,3,H,W) in [0,1].
        factor: (n,), at most 12.
        seeds: (n,), unused.
    """
    lab = rgb_to_lab(x)
    diffused = smooth(lab[:, 1:].contiguous(), 1.5 * factor + 2, _DIFFUSION_RADIUS)
    torch.mul(diffused, factor[:, None, None, None], out=lab[:, 1:])
    return lab_to_rgb(lab)


def color_shift(x: Tensor, shift: Tensor, seeds: Tensor) -> Tensor:
    """Move the green channel in a random direction, the more the nearer to an edge. KADIS-700k type 5.

    The moved and the original green are blended by the gradient of luma, scaled so that its 5th percentile is 0 and its
    95th is 1 (our choice; of every fourth pixel in either direction).

    Args:
        x: (n,3,H,W) in [0,1].
        shift: (n,) pixels, moved to the nearest whole pixel.
        seeds: (n,) of the directions.
    """
    n, _, height, width = x.shape
    angle = 2 * math.pi * uniforms(seeds, 1)[:, 0]
    down, right = (shift * angle.sin()).round().long(), (shift * angle.cos()).round().long()
    rows = (torch.arange(height, device=x.device) - down[:, None]).clamp_(0, height - 1)  # (n,H)
    columns = (torch.arange(width, device=x.device) - right[:, None]).clamp_(0, width - 1)
    moved = x[:, 1].gather(1, rows[:, :, None].expand(-1, -1, width))
    moved = moved.gather(2, columns[:, None].expand(-1, height, -1))
    y = luma(x)[:, 0]
    gradient = torch.hypot(torch.gradient(y, dim=1)[0], torch.gradient(y, dim=2)[0])
    sampled = gradient[:, ::4, ::4].flatten(1)
    low, high = (sampled.kthvalue(1 + round(p * (sampled.shape[1] - 1)), 1).values[:, None, None] for p in _PERCENTILES)
    weight = ((gradient - low) / (high - low).clamp(min=1e-6)).clamp_(0, 1)
    return torch.stack([x[:, 0], torch.lerp(x[:, 1], moved, weight), x[:, 2]], dim=1)


def color_quantization(x: Tensor, colors: Tensor, seeds: Tensor) -> Tensor:
    """Replace every pixel by the nearest colour of a palette made for the image, without dither. KADIS-700k type 6.

    The palette: five rounds of k-means (Lloyd) on 32 x 32 pixels of the image, begun with as many of them, equally
    spaced in the order of luma. Ours; MATLAB's `rgb2ind` cuts boxes of least variance.

    Args:
        x: (n,3,H,W) float32 in [0,1].
        colors: (n,) size of the palette, 1 to 64, rounded.
        seeds: (n,), unused.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.device.type == "cpu":  # numpy: a host read of a host tensor is no synchronisation
        for k, most in enumerate(colors.round().numpy().astype(int).tolist()):
            _quantize(x[k : k + 1], colors[k : k + 1], most, out[k : k + 1])
    else:
        _quantize(x, colors, _COLORS, out)
    return out


def _quantize(x: Tensor, colors: Tensor, most: int, out: Tensor) -> None:
    """Write x (n,3,H,W) in its `most` or fewer colours into `out`."""
    places = [torch.arange(_SAMPLES, device=x.device) * side // _SAMPLES for side in x.shape[2:]]
    palette, unused = _k_means(x[:, :, places[0]][..., places[1]].flatten(2), colors.round(), most)
    pixels, replaced = x.flatten(2), out.view(*x.shape[:2], -1)
    distances = x.new_empty((len(x), most, _AT_ONCE))
    for start in range(0, pixels.shape[2], _AT_ONCE):
        part = pixels[:, :, start : start + _AT_ONCE]
        nearest = _nearest(part, palette, unused, distances)[:, None].expand(-1, 3, -1).to(torch.int64)
        torch.gather(palette, 2, nearest, out=replaced[:, :, start : start + _AT_ONCE])


def _k_means(samples: Tensor, colors: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Palette (n,3,most), and what to add to the squared distance to each: (n,1,most), large for those not in use."""
    n, _, p = samples.shape
    slots = torch.arange(most, dtype=torch.int32, device=samples.device)
    unused = (_FAR * (slots >= colors[:, None]))[:, None]
    order = luma(samples[..., None])[:, 0, :, 0].argsort(dim=1, stable=True)  # (n,P)
    places = ((slots + 0.5) / colors[:, None] * p).long().clamp_(max=p - 1)
    palette = samples.gather(2, order.gather(1, places)[:, None].expand(-1, 3, -1))
    distances, member = samples.new_empty((n, most, p)), samples.new_empty((n, most, p))
    for _ in range(_ROUNDS):
        torch.eq(_nearest(samples, palette, unused, distances)[:, None], slots[:, None], out=member)
        sizes = member.sum(2)[:, None]
        palette = torch.lerp(palette, samples @ member.mT / sizes.clamp(min=1), sizes.clamp(max=1))
    return palette, unused


def _nearest(pixels: Tensor, palette: Tensor, unused: Tensor, distances: Tensor) -> Tensor:
    """(n,P) int32: the colour of (n,3,K) nearest to each pixel of (n,3,P).

    The number of the colour replaces the lowest bits of its squared distance, so that one minimum finds both: `argmin`
    has no vector code on a CPU. Positive floats are ordered as their bits are; 17 of these tell distances apart.
    `distances` (n,K,P or more) is memory to work in: that of a new tensor costs more than the arithmetic.
    """
    lengths = palette.square().sum(1, keepdim=True) + (unused + _ABOVE_0)
    rows = torch.cat([-2 * palette, lengths, torch.ones_like(lengths)], 1)  # (n,5,K)
    columns = torch.cat([pixels, torch.ones_like(pixels[:, :1]), pixels.square().sum(1, keepdim=True)], 1)  # (n,5,P)
    distances = torch.bmm(rows.mT, columns, out=distances[:, :, : pixels.shape[2]])
    numbers = torch.arange(palette.shape[2], dtype=torch.int32, device=pixels.device)[:, None]
    packed = distances.view(torch.int32).bitwise_and_(-_COLORS).bitwise_or_(numbers)
    return packed.amin(1).bitwise_and_(_COLORS - 1)


def saturate_hsv(x: Tensor, factor: Tensor, seeds: Tensor) -> Tensor:
    """Multiply the saturation of HSV; below 0 the hue turns to its opposite. KADIS-700k type 7.

    At constant hue and value, the distance of each channel from the largest is multiplied: v + factor (x - v).

    Args:
        x: (n,3,H,W) in [0,1].
        factor: (n,), signed; 1 changes nothing.
        seeds: (n,), unused.
    """
    value = x.amax(1, keepdim=True)
    return (x - value).mul_(factor[:, None, None, None]).add_(value)


def saturate_lab(x: Tensor, factor: Tensor, seeds: Tensor) -> Tensor:
    """Multiply a and b of Lab. KADIS-700k type 8.

    Args:
        x: (n,3,H,W) in [0,1].
        factor: (n,); 1 changes nothing.
        seeds: (n,), unused.
    """
    lab = rgb_to_lab(x)
    lab[:, 1:] *= factor[:, None, None, None]
    return lab_to_rgb(lab)
