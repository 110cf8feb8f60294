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
    return normal_images(seeds, *x.shape[1:]).mul_(_deviation(variance)).add_(x)


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
    u = uniform_images(seeds, *x.shape[1:])
    half = density[:, None, None, None] / 2
    salt = torch.ge(u, 1 - half, out=torch.empty_like(u))  # 1 or 0 in floats, four times faster on a CPU than a mask
    return u.ge_(half).sub_(salt).mul_(x).add_(salt)


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
    mean, spread = _local_moments(noisy)
    variance = variance[:, None, None, None]
    kept = (spread - variance).clamp_(min=0).div_(torch.maximum(spread, variance, out=spread))
    return noisy.sub_(mean).mul_(kept).add_(mean)


def _local_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window around each pixel, borders reflected."""
    padded = F.pad(x, (_WINDOW // 2,) * 4, mode="reflect")
    mean = _box_mean(padded)
    return mean, _box_mean(padded.square_()).addcmul_(mean, mean, value=-1).clamp_(min=0)


def _box_mean(padded: Tensor) -> Tensor:
    """Mean of windows, as a sum of shifted images: several times faster on a CPU than `avg_pool2d`."""
    for dim in (2, 3):
        size = padded.shape[dim] - _WINDOW + 1
        total = padded.narrow(dim, 0, size).clone()
        for k in range(1, _WINDOW):
            total += padded.narrow(dim, k, size)
        padded = total
    return padded.div_(_WINDOW**2)


def _deviation(variance: Tensor) -> Tensor:
    return variance.sqrt()[:, None, None, None]
