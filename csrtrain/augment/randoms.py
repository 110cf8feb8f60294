"""Random numbers of a sample on the device, functions of its seed alone: not of the batch, the rank or other samples.

Counter-based, in integer arithmetic: equal on every device up to the rounding of log and cos, with no generator state
and no host read. `normal_images` is for the distortions: on a CPU, where a generator is many times faster than the hash
uncompiled, it seeds one per sample, so CPU and GPU draw different noise (so does impulse noise for its places).
"""

import math
from typing import TypeVar

import numpy as np
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor

_WORD = 0xFFFFFFFF
_Words = TypeVar("_Words", Tensor, NDArray[np.int64])


def _quantiles() -> Tensor:
    """(65536,) float32: standard normal, of variance 1."""
    found = scipy.special.ndtri((np.arange(2**16) + 0.5) / 2**16)
    return torch.from_numpy((found / np.sqrt(np.mean(found**2))).astype(np.float32))


_QUANTILES = _quantiles()


def _mix(x: _Words) -> _Words:
    """A bijection of 32-bit words (in int64) that scatters neighbours: C. Wellons' "lowbias32" (2018).

    Multipliers are below 2**31 in magnitude, so that no product leaves 64 bits; x * (m - 2**32) = x * m mod 2**32.
    """
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * (0x846CA68B - 0x100000000)) & _WORD
    return x ^ (x >> 16)


def _word(counter: _Words, low: _Words, high: _Words) -> _Words:
    """A random word of (counter, two words of the seed)."""
    return _mix(_mix(_mix(counter ^ low) ^ high) + counter & _WORD)


def _uniform(counter: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Uniform float32 in (0,1); 23 bits, because half a step more rounds to 1."""
    return ((_word(counter, low, high) >> 9).to(torch.float32) + 0.5) * 2.0**-23


def normal_pair(seeds: Tensor, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two independent standard normal images per seed, by Box-Muller from (seed, channel, row, column).

    Args:
        seeds: (n,) int64 in [0, 2**63).

    Returns:
        two (n,channels,height,width) float32.
    """
    low, high = (seeds & _WORD)[:, None, None, None], (seeds >> 32)[:, None, None, None]
    pixel = torch.arange(channels * height * width, device=seeds.device).view(1, channels, height, width)
    radius = torch.sqrt(-2 * torch.log(_uniform(2 * pixel, low, high)))
    angle = 2 * math.pi * _uniform(2 * pixel + 1, low, high)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def uniforms(seeds: Tensor, k: int) -> Tensor:
    """k uniform numbers in (0,1) per seed: (n,) int64 -> (n,k) float32; the first of k are those of a smaller k.

    Independent of the images below with the same seed.
    """
    if seeds.device.type == "cpu":  # the same by NumPy, whose calls cost a third; no synchronisation on a CPU
        words = seeds.numpy()[:, None]
        word = _word(np.arange(0x40000000, 0x40000000 + k)[None], words & _WORD, words >> 32)
        return torch.from_numpy((word >> 9).astype(np.float32)).add_(0.5).mul_(2.0**-23)
    counter = torch.arange(k, device=seeds.device)[None] + 0x40000000
    return _uniform(counter, (seeds & _WORD)[:, None], (seeds >> 32)[:, None])


def other_seeds(seeds: Tensor, k: int) -> Tensor:
    """Seeds (n,) for a further image of the same sample, k = 1, 2, ..."""
    return (seeds + (k * 0x1E3779B97F4A7C15 & 0x7FFFFFFFFFFFFFFF)) & 0x7FFFFFFFFFFFFFFF


def normal_images(seeds: Tensor, channels: int, height: int, width: int) -> Tensor:
    """A standard normal image per seed: (n,) int64 -> (n,channels,height,width) float32.

    On a CPU every value is one of 65,536, the middles of as many equally likely parts of the distribution, up to 4.3.
    """
    if seeds.device.type != "cpu":
        return normal_pair(seeds, channels, height, width)[0]
    out = torch.empty((len(seeds), channels, height, width))
    for image, seed in zip(out, seeds.numpy().tolist(), strict=True):  # numpy: no synchronisation on a CPU
        words = np.random.SFC64(seed).random_raw(-(-image.numel() // 4)).view(np.uint16)[: image.numel()]
        torch.index_select(_QUANTILES, 0, torch.from_numpy(words.astype(np.int32)), out=image.view(-1))
    return out


def normal_scans(seeds: Tensor, x: Tensor) -> Tensor:
    """A standard normal image per seed in the shape of x (n,C,H,W); three equal channels get the same in each.

    They are one grey signal shown in colour, whose noise has none.
    """
    noise = normal_images(seeds, *x.shape[1:])
    if x.shape[1] != 3:
        return noise
    grey = (x == x[:, :1]).flatten(1).all(1)
    return torch.where(grey[:, None, None, None], noise[:, :1], noise)


def uniform_images(seeds: Tensor, channels: int, height: int, width: int) -> Tensor:
    """A uniform image in (0,1) per seed: (n,) int64 -> (n,channels,height,width) float32."""
    pixel = torch.arange(channels * height * width, device=seeds.device).view(1, channels, height, width)
    return _uniform(pixel, (seeds & _WORD)[:, None, None, None], (seeds >> 32)[:, None, None, None])
