"""Colour: diffusion, shift, quantisation, saturation. All need three channels."""

import math

import torch
from torch import Tensor

from csrtrain.augment.color import luma
from csrtrain.augment.color_spaces import lab_to_rgb, rgb_to_lab
from csrtrain.augment.distortions.blur import smooth
from csrtrain.augment.randoms import uniforms

_DIFFUSION_RADIUS = 40  # 2 sigma of the largest level, 1.5 * 12 + 2 px
_COLORS = 64  # of the largest palette
_SAMPLES = 64  # per side, pixels that the palette is made from
_ROUNDS = 10
_PERCENTILES = (0.05, 0.95)
_FAR = 1e4  # a squared distance that no colour has


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
    return lab_to_rgb(torch.cat([lab[:, :1], factor[:, None, None, None] * diffused], dim=1))


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
    ordered = gradient[:, ::4, ::4].flatten(1).sort(1).values
    low, high = (ordered[:, round(p * (ordered.shape[1] - 1))][:, None, None] for p in _PERCENTILES)
    weight = ((gradient - low) / (high - low).clamp(min=1e-6)).clamp_(0, 1)
    return torch.stack([x[:, 0], torch.lerp(x[:, 1], moved, weight), x[:, 2]], dim=1)


def color_quantization(x: Tensor, colors: Tensor, seeds: Tensor) -> Tensor:
    """Replace every pixel by the nearest colour of a palette made for the image, without dither. KADIS-700k type 6.

    The palette: ten rounds of k-means (Lloyd) on 64 x 64 pixels of the image, begun with as many of them, equally
    spaced in the order of luma. Ours; MATLAB's `rgb2ind` cuts boxes of least variance.

    Args:
        x: (n,3,H,W) in [0,1].
        colors: (n,) size of the palette, rounded, at most 64.
        seeds: (n,), unused.
    """
    pixels = x.flatten(2).transpose(1, 2)  # (n,HW,3)
    height, width = x.shape[2:]
    places = [torch.arange(_SAMPLES, device=x.device) * side // _SAMPLES for side in (height, width)]
    samples = x[:, :, places[0]][..., places[1]].flatten(2).transpose(1, 2)  # (n,P,3)
    palette = _k_means(samples, colors.round())
    nearest = _distances(pixels, palette).argmin(2)  # (n,HW)
    out = palette[0].gather(1, nearest[..., None].expand(-1, -1, 3))
    return out.transpose(1, 2).reshape(x.shape).contiguous()


def _k_means(samples: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Palette (n,64,3), and what to add to the squared distance to each: (n,1,64), large for those not in use."""
    slots = torch.arange(_COLORS, device=samples.device)
    unused = torch.where(slots < colors[:, None], 0.0, _FAR)[:, None]  # (n,1,64)
    order = luma(samples.transpose(1, 2)[..., None])[:, 0, :, 0].argsort(dim=1, stable=True)  # (n,P)
    places = ((slots + 0.5) / colors[:, None] * samples.shape[1]).long().clamp_(max=samples.shape[1] - 1)
    centers = samples.gather(1, order.gather(1, places)[..., None].expand(-1, -1, 3))  # (n,64,3)
    for _ in range(_ROUNDS):
        nearest = _distances(samples, (centers, unused)).argmin(2)  # (n,P)
        member = (nearest[:, None] == slots[:, None]).to(samples.dtype)  # (n,64,P)
        sizes = member.sum(2, keepdim=True)
        centers = torch.where(sizes > 0, member @ samples / sizes.clamp(min=1), centers)
    return centers, unused


def _distances(pixels: Tensor, palette: tuple[Tensor, Tensor]) -> Tensor:
    """(n,P,64) squared distances of pixels (n,P,3) to the colours, less the pixels' own square."""
    centers, unused = palette
    return torch.baddbmm(unused + centers.square().sum(2)[:, None], pixels, centers.transpose(1, 2), alpha=-2)


def saturate_hsv(x: Tensor, factor: Tensor, seeds: Tensor) -> Tensor:
    """Multiply the saturation of HSV; below 0 the hue turns to its opposite. KADIS-700k type 7.

    At constant hue and value, the distance of each channel from the largest is multiplied: v + factor (x - v).

    Args:
        x: (n,3,H,W) in [0,1].
        factor: (n,), signed; 1 changes nothing.
        seeds: (n,), unused.
    """
    value = x.amax(1, keepdim=True)
    return value + factor[:, None, None, None] * (x - value)


def saturate_lab(x: Tensor, factor: Tensor, seeds: Tensor) -> Tensor:
    """Multiply a and b of Lab. KADIS-700k type 8.

    Args:
        x: (n,3,H,W) in [0,1].
        factor: (n,); 1 changes nothing.
        seeds: (n,), unused.
    """
    lab = rgb_to_lab(x)
    return lab_to_rgb(torch.cat([lab[:, :1], factor[:, None, None, None] * lab[:, 1:]], dim=1))
