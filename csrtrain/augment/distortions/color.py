"""Colour: diffusion, shift, quantisation, saturation. All need three channels."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csrtrain.augment.color import luma
from csrtrain.augment.color_spaces import lab_by_calls, lab_of, lab_to_rgb, rgb_by_calls, rgb_of, rgb_to_lab
from csrtrain.augment.compiled import Kernel, per_image, wanted
from csrtrain.augment.distortions.blur import smooth
from csrtrain.augment.randoms import uniforms

_DIFFUSION_RADIUS = 40  # 2 sigma of the largest level, 1.5 * 12 + 2 px
_COLORS = 64  # of the largest palette; a power of 2
_SAMPLES = 32  # per side, pixels that the palette is made from
_ROUNDS = 5
_DISTANCES = 2**17  # of pixels to colours, at once: they fit a CPU's cache
_COLORS_AT_ONCE = 16  # in the compiled kernel: its compilation takes 4 s
_PIXELS = 2**14  # at once elsewhere, of each image
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
    angle = 2 * math.pi * uniforms(seeds, 1)[:, 0]
    down, right = (shift * angle.sin()).round().long(), (shift * angle.cos()).round().long()
    moved = (_move_each if x.device.type == "cpu" else _move_batch)(x[:, 1], down, right)
    gradient = per_image(_edges, x)
    sampled = gradient[:, ::4, ::4].flatten(1)
    low, high = (sampled.kthvalue(1 + round(p * (sampled.shape[1] - 1)), 1).values[:, None, None] for p in _PERCENTILES)
    weight = gradient.sub_(low).mul_(1 / (high - low).clamp(min=1e-6)).clamp_(0, 1)
    out = x.clone(memory_format=torch.contiguous_format)
    out[:, 1].lerp_(moved, weight)
    return out


def _edges_of(x: Tensor) -> Tensor:
    """(...,3,H,W) -> (...,H,W): length of the gradient of luma."""
    y = luma(x).squeeze(-3)
    return torch.hypot(torch.gradient(y, dim=-2)[0], torch.gradient(y, dim=-1)[0])


_edges = Kernel(_edges_of)


def _move_batch(y: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """(n,H,W), each by so many pixels (n,), beyond the border its nearest pixel."""
    _, height, width = y.shape
    rows = (torch.arange(height, device=y.device) - down[:, None]).clamp_(0, height - 1)  # (n,H)
    columns = (torch.arange(width, device=y.device) - right[:, None]).clamp_(0, width - 1)
    moved = y.gather(1, rows[:, :, None].expand(-1, -1, width))
    return moved.gather(2, columns[:, None].expand(-1, height, -1))


def _move_each(y: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """The same, sample by sample; on the CPU."""
    _, height, width = y.shape
    moved = []
    # numpy: a host read of a host tensor is no synchronisation
    for image, by, along in zip(y, down.numpy().tolist(), right.numpy().tolist(), strict=True):
        border = (max(along, 0), max(-along, 0), max(by, 0), max(-by, 0))
        padded = F.pad(image[None], border, mode="replicate")[0]
        moved.append(padded[max(-by, 0) :, max(-along, 0) :][:height, :width])
    return moved[0][None] if len(moved) == 1 else torch.stack(moved)


def color_quantization(x: Tensor, colors: Tensor, seeds: Tensor) -> Tensor:
    """Replace every pixel by the nearest colour of a palette made for the image, without dither. KADIS-700k type 6.

    The palette: five rounds of k-means (Lloyd) on 32 x 32 pixels of the image, begun with as many of them, equally
    spaced in the order of luma. Ours; MATLAB's `rgb2ind` cuts boxes of least variance.

    Args:
        x: (n,3,H,W) float32 in [0,1].
        colors: (n,) size of the palette, 1 to 64, rounded.
        seeds: (n,), unused.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.device.type == "cpu":  # numpy: a host read of a host tensor is no synchronisation
        for image, most, target in zip(x, colors.round().numpy().astype(int).tolist(), out, strict=True):
            palette = _k_means_of_one(_samples(image[None]), most)
            nearest = _nearest_of_one(image, palette)
            for k, channel in enumerate(palette[0]):
                torch.index_select(channel, 0, nearest, out=target[k].view(-1))
    else:
        palette, unused = _k_means(_samples(x), colors.round(), _COLORS)
        nearest = _nearest(_augmented(x.flatten(2)), palette, unused).to(torch.int64)
        torch.gather(palette, 2, nearest[:, None].expand(-1, 3, -1), out=out.view(len(x), 3, -1))
    return out


def _samples(x: Tensor) -> Tensor:
    """(n,3,P): the pixels that the palettes are made from."""
    rows, columns = (torch.arange(_SAMPLES, device=x.device) * side // _SAMPLES for side in x.shape[2:])
    return x.flatten(2).index_select(2, (rows[:, None] * x.shape[3] + columns).flatten())


def _k_means(samples: Tensor, colors: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Palette (n,3,most), and what to add to the squared distance to each: (n,1,most), large for those not in use."""
    n, _, p = samples.shape
    slots = torch.arange(most, dtype=torch.int32, device=samples.device)
    unused = (_FAR * (slots >= colors[:, None]))[:, None]
    order = luma(samples[..., None])[:, 0, :, 0].argsort(dim=1, stable=True)  # (n,P)
    places = ((slots + 0.5) / colors[:, None] * p).long().clamp_(max=p - 1)
    palette = samples.gather(2, order.gather(1, places)[:, None].expand(-1, 3, -1))
    augmented, member = _augmented(samples), samples.new_empty((n, most, p))
    for _ in range(_ROUNDS):
        torch.eq(_nearest(augmented, palette, unused)[:, None], slots[:, None], out=member)
        sizes = member.sum(2)[:, None]
        palette = torch.lerp(palette, samples @ member.mT / sizes.clamp(min=1), sizes.clamp(max=1))
    return palette, unused


def _k_means_of_one(samples: Tensor, most: int) -> Tensor:
    """The palette of one image with all of `most` colours, by NumPy, whose calls cost less; on the CPU."""
    points = np.ascontiguousarray(samples[0].numpy().T)  # (P,3)
    channels = [np.ascontiguousarray(channel) for channel in points.T]
    order = luma(samples[..., None])[0, 0, :, 0].argsort(stable=True).numpy()
    palette = points[order[((np.arange(most) + 0.5) / most * len(points)).astype(np.int64)]]
    for _ in range(_ROUNDS):
        distances = points @ (-2 * palette.T)
        distances += np.square(palette).sum(1)
        member = distances.argmin(1)
        sizes = np.bincount(member, minlength=most)[:, None]
        sums = np.stack([np.bincount(member, channel, most) for channel in channels], axis=1)
        palette = np.where(sizes > 0, sums / np.maximum(sizes, 1), palette).astype(np.float32)
    return torch.from_numpy(palette.T.copy())[None]


def _nearest_of_one(image: Tensor, palette: Tensor) -> Tensor:
    """(H*W,) int32: the colour of (1,3,K) nearest to each pixel of (3,H,W); on the CPU."""
    most = palette.shape[2]
    if wanted(_nearer, image):
        # What is left of the last part is far from every pixel.
        colors = palette.new_full((-(-most // _COLORS_AT_ONCE) * _COLORS_AT_ONCE, 5), _FAR)
        colors[:most, :3] = -2 * palette[0].T
        colors[:most, 3] = palette[0].square().sum(0)
        colors[:, 4] = torch.arange(len(colors))
        found = image.new_zeros((2, *image.shape[1:]))
        found[0] = _FAR
        for start in range(0, len(colors), _COLORS_AT_ONCE):
            found = _nearer(image, found, colors[start : start + _COLORS_AT_ONCE], compiled=True, batched=False)
        if _nearer.failure is None:
            return found[1].to(torch.int32).flatten()
    return _nearest(_augmented(image.flatten(1)[None]), palette, palette.new_zeros((1, 1, most)))[0]


def _nearer_of(image: Tensor, found: Tensor, colors: Tensor) -> Tensor:
    """(2,H,W): the least squared distance to a colour, less the pixel's square, and the number of that colour.

    Args:
        image: (3,H,W).
        found: (2,H,W) the same of earlier colours.
        colors: (K,5) of each its values times -2, their square, and its number.
    """
    (red, green, blue), (least, nearest) = image, found
    for r, g, b, square, number in colors:
        distance = red * r + green * g + blue * b + square
        nearest = torch.where(distance < least, number, nearest)
        least = torch.minimum(distance, least)
    return torch.stack([least, nearest])


_nearer = Kernel(_nearer_of)


def _augmented(pixels: Tensor) -> Tensor:
    """(n,3,P) with ones and squared lengths: (n,5,P), of which one product makes squared distances."""
    out = pixels.new_empty((len(pixels), 5, pixels.shape[2]))
    out[:, :3], out[:, 3] = pixels, 1
    torch.mul(pixels[:, 0], pixels[:, 0], out=out[:, 4])
    for channel in (pixels[:, 1], pixels[:, 2]):
        out[:, 4].addcmul_(channel, channel)
    return out


def _nearest(augmented: Tensor, palette: Tensor, unused: Tensor) -> Tensor:
    """(n,P) int32: the colour of (n,3,K) nearest to each pixel of (n,5,P).

    The number of the colour replaces the lowest bits of its squared distance, so that one minimum finds both: `argmin`
    has no vector code on a CPU. Positive floats are ordered as their bits are; 17 of these tell distances apart.
    """
    n, pixels, most = len(augmented), augmented.shape[2], palette.shape[2]
    lengths = palette.square().sum(1, keepdim=True) + (unused + _ABOVE_0)
    rows = torch.cat([-2 * palette, lengths, torch.ones_like(lengths)], 1).mT  # (n,K,5)
    numbers = torch.arange(most, dtype=torch.int32, device=palette.device)[:, None]
    at_once = min(pixels, _DISTANCES // most if palette.device.type == "cpu" else _PIXELS)
    distances, nearest = palette.new_empty((n, most, at_once)), numbers.new_empty((n, pixels))
    for start in range(0, pixels, at_once):
        part = augmented[:, :, start : start + at_once]
        packed = torch.bmm(rows, part, out=distances[:, :, : part.shape[2]]).view(torch.int32)
        torch.amin(packed.bitwise_and_(-_COLORS).bitwise_or_(numbers), 1, out=nearest[:, start : start + at_once])
    return nearest.bitwise_and_(_COLORS - 1)


def saturate_hsv(x: Tensor, factor: Tensor, seeds: Tensor) -> Tensor:
    """Multiply the saturation of HSV; below 0 the hue turns to its opposite. KADIS-700k type 7.

    At constant hue and value, the distance of each channel from the largest is multiplied: v + factor (x - v).

    Args:
        x: (n,3,H,W) in [0,1].
        factor: (n,), signed; 1 changes nothing.
        seeds: (n,), unused.
    """
    return per_image(_stretch, x, factor[:, None, None, None])


def _stretched(x: Tensor, factor: Tensor) -> Tensor:
    value = x.amax(-3, keepdim=True)
    return (x - value).mul_(factor).add_(value)


_stretch = Kernel(_stretched)


def saturate_lab(x: Tensor, factor: Tensor, seeds: Tensor) -> Tensor:
    """Multiply a and b of Lab. KADIS-700k type 8.

    Args:
        x: (n,3,H,W) in [0,1].
        factor: (n,); 1 changes nothing.
        seeds: (n,), unused.
    """
    return per_image(_saturate, x, factor[:, None, None, None])


def _saturated(x: Tensor, factor: Tensor) -> Tensor:
    lightness, a, b = lab_of(x).unbind(-3)
    factor = factor.squeeze(-3)
    return rgb_of(torch.stack([lightness, factor * a, factor * b], dim=-3))


def _saturated_by_calls(x: Tensor, factor: Tensor) -> Tensor:
    lab = lab_by_calls(x)
    lab[..., 1:, :, :] *= factor
    return rgb_by_calls(lab)


_saturate = Kernel(_saturated, uncompiled=_saturated_by_calls)
