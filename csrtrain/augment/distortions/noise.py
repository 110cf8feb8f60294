"""Noise: white, in YCbCr, impulse, multiplicative, and what a denoiser leaves of it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csrtrain.augment.color_spaces import ycbcr_to_rgb
from csrtrain.augment.compiled import Kernel, per_image
from csrtrain.augment.randoms import normal_images, uniform_images

_WINDOW = 5  # px, of the Wiener filter


def white_noise(x: Tensor, variance: Tensor, seeds: Tensor) -> Tensor:
    """Add independent Gaussian noise to every value. KADIS-700k type 11, `imnoise`.

    Args:
        x: (n,C,H,W) in [0,1].
        variance: (n,) of the noise, for values in [0,1].
        seeds: (n,) of the noise.
    """
    return torch.addcmul(x, normal_images(seeds, *x.shape[1:]), _deviation(variance))


def white_noise_ycbcr(x: Tensor, variance: Tensor, seeds: Tensor) -> Tensor:
    """Add independent Gaussian noise to Y, Cb and Cr. KADIS-700k type 12.

    Args:
        x: (n,3,H,W) in [0,1].
        variance: (n,) of the noise in each of the three, full-range BT.601.
        seeds: (n,) of the noise.
    """
    # The way to YCbCr is linear and is undone: only the noise has to be turned.
    return ycbcr_to_rgb(normal_images(seeds, *x.shape[1:]).mul_(_deviation(variance))).add_(x)


def impulse_noise(x: Tensor, density: Tensor, seeds: Tensor) -> Tensor:
    """Set values of single channels to 0 or 1, as many to either. KADIS-700k type 13, `imnoise` "salt & pepper".

    Args:
        x: (n,C,H,W) in [0,1].
        density: (n,) share of the values that are set.
        seeds: (n,) of their places.
    """
    return (_set_each if x.device.type == "cpu" else _set_batch)(x, density, seeds)


def _set_batch(x: Tensor, density: Tensor, seeds: Tensor) -> Tensor:
    u = uniform_images(seeds, *x.shape[1:])
    half = density[:, None, None, None] / 2
    salt = torch.ge(u, 1 - half, out=torch.empty_like(u))
    return u.ge_(half).sub_(salt).mul_(x).add_(salt)


def _set_each(x: Tensor, density: Tensor, seeds: Tensor) -> Tensor:
    """The same, sample by sample, with random numbers for the set values alone; on the CPU.

    Gaps between the successes of independent trials are geometric.
    """
    out = x.contiguous().clone()
    # numpy: a host read of a host tensor is no synchronisation
    for values, p, seed in zip(out.flatten(1).numpy(), density.numpy().tolist(), seeds.numpy().tolist(), strict=True):
        random = np.random.Generator(np.random.SFC64(seed))
        at = -1
        while p > 0 and at < values.size:  # mostly once: 6 deviations more than the mean
            gaps = random.geometric(p, int(values.size * p + 6 * (values.size * p) ** 0.5 + 6))
            places = at + gaps.clip(max=values.size + 1).cumsum()  # beyond the end
            at = int(places[-1])
            places = places[: places.searchsorted(values.size)]
            values[places] = random.random(len(places)) < 0.5
    return out


def multiplicative_noise(x: Tensor, variance: Tensor, seeds: Tensor) -> Tensor:
    """x (1 + n) with Gaussian n, independent for every value. KADIS-700k type 14 (`imnoise` "speckle" is uniform).

    Args:
        x: (n,C,H,W) in [0,1].
        variance: (n,) of n.
        seeds: (n,) of n.
    """
    return normal_images(seeds, *x.shape[1:]).mul_(_deviation(variance)).add_(1).mul_(x)


def denoise(x: Tensor, variance: Tensor, seeds: Tensor) -> Tensor:
    """Add white noise, then denoise by the adaptive Wiener filter: blotches where there is detail, blur elsewhere.

    KADIS-700k type 15. Its denoiser, a network of MATLAB, cannot be had; the filter is our choice (Lim,
    "Two-dimensional signal and image processing", 1990, equation 9.44, as in `scipy.signal.wiener` and `wiener2`), with
    5 x 5 windows, reflected borders and the true variance of the noise.

    Args:
        x: (n,C,H,W) in [0,1].
        variance: (n,) of the noise.
        seeds: (n,) of the noise.
    """
    noisy = white_noise(x, variance, seeds).clamp_(0, 1)
    padded = F.pad(noisy, (_WINDOW // 2,) * 4, mode="reflect")
    return per_image(_filter, padded, variance[:, None, None, None])


def _filtered(padded: Tensor, variance: Tensor) -> Tensor:
    """The Wiener filter of (...,C,H+4,W+4) with a known variance of the noise."""
    height, width = padded.shape[-2] - _WINDOW + 1, padded.shape[-1] - _WINDOW + 1
    places = [(row, column) for row in range(_WINDOW) for column in range(_WINDOW)]
    windows = [padded[..., row : row + height, column : column + width] for row, column in places]
    total, squares = windows[0], windows[0].square()
    for window in windows[1:]:
        total, squares = total + window, squares + window.square()
    mean, middle = total / _WINDOW**2, windows[_WINDOW**2 // 2]
    spread = (squares / _WINDOW**2 - mean.square()).clamp(min=0)
    return mean + (spread - variance).clamp(min=0) / torch.maximum(spread, variance) * (middle - mean)


def _filtered_by_calls(padded: Tensor, variance: Tensor) -> Tensor:
    reach = _WINDOW - 1
    middle = padded[..., reach // 2 : -(reach // 2), reach // 2 : -(reach // 2)]
    mean = _box_mean(padded)
    spread = _box_mean(padded.square()).addcmul_(mean, mean, value=-1).clamp_(min=0)
    kept = (spread - variance).clamp_(min=0).div_(torch.maximum(spread, variance, out=spread))
    return torch.sub(middle, mean).mul_(kept).add_(mean)


_filter = Kernel(_filtered, uncompiled=_filtered_by_calls)


def _box_mean(padded: Tensor) -> Tensor:
    """Mean of windows, as sums of shifted images: several times faster on a CPU than `avg_pool2d`."""
    assert _WINDOW == 5  # two pairs and one
    for dim in (-2, -1):
        size = padded.shape[dim] - _WINDOW + 1
        pairs = padded.narrow(dim, 0, size + 2) + padded.narrow(dim, 1, size + 2)
        padded = (pairs.narrow(dim, 0, size) + pairs.narrow(dim, 2, size)).add_(padded.narrow(dim, 4, size))
    return padded.mul_(1 / _WINDOW**2)


def _deviation(variance: Tensor) -> Tensor:
    return variance.sqrt()[:, None, None, None]
