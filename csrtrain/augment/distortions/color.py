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
_AT_ONCE = 4096  # pixels, whose distances to the palette fit a CPU's cache
_STEPS = 2.0**19  # distances of a squared distance of 1
_PERCENTILES = (0.05, 0.95)
_FAR = 30.0  # a squared distance that no colour has


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
        x: (n,3,H,W) in [0,1].
        colors: (n,) size of the palette, rounded, at most 64.
        seeds: (n,), unused.
    """
    places = [torch.arange(_SAMPLES, device=x.device) * side // _SAMPLES for side in x.shape[2:]]
    samples = x[:, :, places[0]][..., places[1]].flatten(2)  # (n,3,P)
    palette, unused = _k_means(samples, colors.round())
    out = torch.empty_like(x)
    pixels, replaced = x.flatten(2), out.view(*x.shape[:2], -1)
    for start in range(0, pixels.shape[2], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        nearest = _nearest(pixels[:, :, part], palette, unused)[:, None].expand(-1, 3, -1)
        torch.gather(palette.transpose(1, 2), 2, nearest, out=replaced[:, :, part])
    return out


def _k_means(samples: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Palette (n,K,3), and what to add to the squared distance to each: (n,K,1), large for those not in use."""
    # numpy: a host read of a host tensor is no synchronisation
    most = int(colors.numpy().max()) if colors.device.type == "cpu" else _COLORS
    slots = torch.arange(most, device=samples.device)
    unused = (_FAR * (slots >= colors[:, None]))[:, :, None]
    order = luma(samples[..., None])[:, 0, :, 0].argsort(dim=1, stable=True)  # (n,P)
    places = ((slots + 0.5) / colors[:, None] * samples.shape[2]).long().clamp_(max=samples.shape[2] - 1)
    pixels = samples.transpose(1, 2).contiguous()  # (n,P,3)
    centers = pixels.gather(1, order.gather(1, places)[..., None].expand(-1, -1, 3))  # (n,K,3)
    member = samples.new_empty((len(samples), most, samples.shape[2]))
    for _ in range(_ROUNDS):
        torch.eq(_nearest(samples, centers, unused)[:, None], slots[:, None], out=member)
        sizes = member.sum(2, keepdim=True)
        centers = torch.lerp(centers, member @ pixels / sizes.clamp(min=1), sizes.clamp(max=1))
    return centers, unused


def _nearest(pixels: Tensor, palette: Tensor, unused: Tensor) -> Tensor:
    """(n,P) int64: the colour of (n,K,3) nearest to each pixel of (n,3,P).

    The number of the colour stands in the low bits of its distance, so that one minimum finds both: `argmin` has no
    vector code on a CPU. Distances are in steps of 2e-6, less the pixel's own square and so at least -3.
    """
    distances = torch.baddbmm(palette.square().sum(2, keepdim=True) + unused + 3, palette, pixels, alpha=-2)
    packed = distances.mul_(_STEPS).to(torch.int32).mul_(_COLORS)
    packed += torch.arange(palette.shape[1], dtype=torch.int32, device=pixels.device)[:, None]
    return packed.amin(1).bitwise_and_(_COLORS - 1).to(torch.int64)


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
