"""Noise: white, in YCbCr, impulse, multiplicative, and what a denoiser leaves of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from csrtrain.augment.color_spaces import ycbcr_to_rgb
from csrtrain.augment.randoms import normal_images, uniform_images

_WINDOW = 5  # px, of the Wiener filter


def white_noise(x: Tensor, variance: Tensor, seeds: Tensor) -> Tensor:
    """Add independent Gaussian noise to every value. KADIS-700k type 11, `imnoise`.

    Args:
        x: (n,C,H,W) in [0,1].
        variance: (n,) of the noise, for values in [0,1].
        seeds: (n,) of the noise.
    """
    return x + _deviation(variance) * normal_images(seeds, *x.shape[1:])


def white_noise_ycbcr(x: Tensor, variance: Tensor, seeds: Tensor) -> Tensor:
    """Add independent Gaussian noise to Y, Cb and Cr. KADIS-700k type 12.

    Args:
        x: (n,3,H,W) in [0,1].
        variance: (n,) of the noise in each of the three, full-range BT.601.
        seeds: (n,) of the noise.
    """
    # The way to YCbCr is linear and is undone: only the noise has to be turned.
    return x + ycbcr_to_rgb(_deviation(variance) * normal_images(seeds, *x.shape[1:]))


def impulse_noise(x: Tensor, density: Tensor, seeds: Tensor) -> Tensor:
    """Set values of single channels to 0 or 1, as many to either. KADIS-700k type 13, `imnoise` "salt & pepper".

    Args:
        x: (n,C,H,W) in [0,1].
        density: (n,) share of the values that are set.
        seeds: (n,) of their places.
    """
    u = uniform_images(seeds, *x.shape[1:])
    half = density[:, None, None, None] / 2
    return torch.where(u < half, 0.0, torch.where(u >= 1 - half, 1.0, x))


def multiplicative_noise(x: Tensor, variance: Tensor, seeds: Tensor) -> Tensor:
    """x (1 + n) with Gaussian n, independent for every value. KADIS-700k type 14 (`imnoise` "speckle" is uniform).

    Args:
        x: (n,C,H,W) in [0,1].
        variance: (n,) of n.
        seeds: (n,) of n.
    """
    return x * (1 + _deviation(variance) * normal_images(seeds, *x.shape[1:]))


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
    mean, spread = _local_moments(noisy)
    variance = variance[:, None, None, None]
    kept = (spread - variance).clamp_(min=0) / torch.maximum(spread, variance)
    return torch.lerp(mean, noisy, kept)


def _local_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window around each pixel, borders reflected."""
    padded = F.pad(x, (_WINDOW // 2,) * 4, mode="reflect")
    mean = F.avg_pool2d(padded, _WINDOW, stride=1)
    return mean, (F.avg_pool2d(padded * padded, _WINDOW, stride=1) - mean * mean).clamp_(min=0)


def _deviation(variance: Tensor) -> Tensor:
    return variance.sqrt()[:, None, None, None]
