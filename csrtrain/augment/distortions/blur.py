"""Gaussian, lens and motion blur, every sample with its own kernel; replicated borders (MATLAB's `imfilter`).

Convolution is by FFT: exact up to 1e-6, a cost that hardly depends on the kernel, and, other than matrix products and
cuDNN's convolutions, no TF32 on a GPU. Only on a CPU are few taps faster as a sum of shifted images, in one compiled
pass for a Gaussian.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from csrtrain.augment.compiled import Kernel, wanted
from csrtrain.augment.randoms import uniforms

# Taps on each side of the largest level: ceil(2 * 5), 8, and ceil((10 - 1) / 2).
GAUSSIAN_RADIUS, DISK_RADIUS, MOTION_RADIUS = 10, 8, 5
# On a CPU more taps than these cost more than a transform (0.6 ms at 224 px, 14 us for a tap).
MOST_TAPS = 36
# On a CPU kernels of so many strengths are kept, for levels that are whole numbers, of which a bank has few: the kernel
# of a disk costs 0.2 ms.
_KEPT = 32
_COMPILED_RADII = (2, 4, GAUSSIAN_RADIUS)  # a radius in between goes as the next, with taps of 0
_NEGLIGIBLE = 2.0**-26  # of a tap: less than the rounding of the sum


def gaussian_blur(x: Tensor, sigma: Tensor, seeds: Tensor) -> Tensor:
    """Gaussian blur, truncated at ceil(2 sigma) pixels on each side like MATLAB's `imgaussfilt`.

    Source: KADIS-700k type 1, sigma 0.1 0.5 1 2 5 (the first is the identity).

    Args:
        x: (n,C,H,W) in [0,1].
        sigma: (n,) pixels, at most 5.
        seeds: (n,), unused.
    """
    return smooth(x, sigma, GAUSSIAN_RADIUS)


def disk_blur(x: Tensor, radius: Tensor, seeds: Tensor) -> Tensor:
    """Blur of a defocused lens: the mean over a disk, where a pixel weighs the area of it that the disk covers.

    Source: KADIS-700k type 2, radius 1 2 4 6 8, `fspecial('disk')`. ARNIQA's kernels have negative taps.

    Args:
        x: (n,C,H,W) in [0,1].
        radius: (n,) pixels, at most 8; below 0.5 the disk lies within one pixel.
        seeds: (n,), unused.
    """
    if x.device.type != "cpu":
        return _convolve_batch(x, disk_kernels(radius, DISK_RADIUS))
    kernels = np.stack([_disk_kernel(r) for r in radius.numpy().tolist()])  # numpy: no synchronisation on a CPU
    return _convolve_each(x, torch.from_numpy(kernels))


@functools.lru_cache(_KEPT)
def _disk_kernel(radius: float) -> NDArray[np.float32]:
    kernel: NDArray[np.float32] = disk_kernels(_strength(radius), DISK_RADIUS)[0].numpy()
    return kernel


def motion_blur(x: Tensor, length: Tensor, seeds: Tensor) -> Tensor:
    """Blur along a straight line of random direction, uniform over the half circle.

    Source: KADIS-700k type 3, length 1 2 4 6 10 (the first is the identity), `fspecial('motion')`.

    Args:
        x: (n,C,H,W) in [0,1].
        length: (n,) pixels, 1 to 10.
        seeds: (n,) of the directions.
    """
    angle = math.pi * uniforms(seeds, 1)[:, 0]
    convolve = _convolve_each if x.device.type == "cpu" else _convolve_batch
    return convolve(x, motion_kernels(length, angle, MOTION_RADIUS))


def _strength(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float32, device="cpu")  # whatever the defaults are: it is kept


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """(n,2*radius+1): Gaussian weights, 0 beyond ceil(2 sigma) pixels; they sum to 1."""
    taps = torch.arange(-radius, radius + 1, device=sigma.device, dtype=torch.float32)
    sigma = sigma[:, None].clamp(min=1e-3)  # 0 is the identity
    kernels = torch.exp(-0.5 * (taps / sigma) ** 2) * (taps.abs() <= torch.ceil(2 * sigma))
    return kernels / kernels.sum(1, keepdim=True)


def disk_kernels(disk_radius: Tensor, radius: int) -> Tensor:
    """(n,2*radius+1,2*radius+1): the area of each pixel within a circle around the central one; they sum to 1.

    The integral of the circle's height over the pixel's columns a to b, the height counted from the lower edge and at
    most 1: a rectangle up to where the circle leaves the upper edge, sqrt(r^2 - x^2) from there to the lower edge.
    """
    taps = torch.arange(-radius, radius + 1, device=disk_radius.device, dtype=torch.float32).abs()
    low, high = (taps - 0.5).clamp(min=0), taps + 0.5  # the central row and column: one half, counted twice
    r = disk_radius.clamp(min=0.5)[:, None, None]
    left, right, lower, upper = low, high, low[:, None], high[:, None]
    leaves_upper = (r * r - upper**2).clamp(min=0).sqrt()
    leaves_lower = (r * r - lower**2).clamp(min=0).sqrt()
    start = torch.clamp(leaves_upper, left, right)
    end = torch.clamp(leaves_lower, left, right)
    area = (start - left) * (upper - lower) + _under_circle(end, r) - _under_circle(start, r) - (end - start) * lower
    halves = 1.0 + (taps == 0)
    area = area.clamp(min=0) * halves * halves[:, None]
    return area / area.sum((1, 2), keepdim=True)


def _under_circle(x: Tensor, r: Tensor) -> Tensor:
    """Integral of sqrt(r^2 - x^2) from 0 to x."""
    x = torch.minimum(x, r)
    return 0.5 * (x * ((r - x) * (r + x)).sqrt() + r * r * torch.asin(x / r))


def motion_kernels(length: Tensor, angle: Tensor, radius: int) -> Tensor:
    """(n,2*radius+1,2*radius+1): max(0, 1 - distance of the pixel's centre to a line segment); they sum to 1.

    The segment has its middle in the kernel's and reaches over the centres of `length` pixels, so over length - 1: the
    definition in MATLAB's manual of `fspecial`.

    Args:
        length: (n,) pixels, at least 1.
        angle: (n,) radians, counter-clockwise from the rows' direction.
    """
    taps = torch.arange(-radius, radius + 1, device=length.device, dtype=torch.float32)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along = taps * cos - taps[:, None] * sin  # rows count downwards
    across = taps * sin + taps[:, None] * cos
    beyond = (along.abs() - (length[:, None, None] - 1) / 2).clamp(min=0)
    kernels = (1 - (beyond**2 + across**2).sqrt()).clamp(min=0)
    return kernels / kernels.sum((1, 2), keepdim=True)


def smooth(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with taps up to min(radius, ceil(2 sigma)) pixels away and replicated borders.

    Args:
        x: (n,C,H,W), any range.
        sigma: (n,) pixels.
        radius: of the largest sigma that can occur; it decides time and memory on a GPU.
    """
    if x.device.type == "cpu" and radius <= GAUSSIAN_RADIUS:
        return _smooth_each(x, sigma, radius)
    if x.device.type == "cpu":
        each = sigma.numpy().tolist()  # numpy: a host read of a host tensor is no synchronisation
        down, right = (torch.from_numpy(np.stack([_band_matrix(s, radius, n) for s in each])) for n in x.shape[2:])
    else:
        down, right = (_band_matrices(gaussian_kernels(sigma, radius), n) for n in x.shape[2:])
    return down[:, None] @ x @ right[:, None].transpose(2, 3)


@functools.lru_cache(_KEPT)
def _band_matrix(sigma: float, radius: int, size: int) -> NDArray[np.float32]:
    matrix: NDArray[np.float32] = _band_matrices(gaussian_kernels(_strength(sigma), radius), size)[0].numpy()
    return matrix


def _band_matrices(kernels: Tensor, size: int) -> Tensor:
    """(n,size,size): the product with one is the convolution of a column with a kernel (n,2r+1), borders replicated."""
    radius = kernels.shape[1] // 2
    places = torch.arange(size, device=kernels.device)
    # Row i is the kernel about i: a window into the kernel between zeros.
    between = F.pad(kernels, (size - 1 - radius, size - 1 - radius))  # (n,2*size-1), negative pads cut
    matrices = between.unfold(1, size, 1).flip(1)
    # What lies beyond a border counts for the pixel on it.
    beyond = F.pad(kernels.cumsum(1), (1, 0))[:, (radius - places).clamp_(min=0)]  # taps further away than the border
    matrices[:, :, 0] += beyond
    matrices[:, :, -1] += beyond.flip(1)
    return matrices


def _smooth_each(x: Tensor, sigma: Tensor, most: int) -> Tensor:
    """`smooth`, sample by sample with no more taps than it needs; on the CPU."""
    each = sigma.numpy().tolist()  # numpy: a host read of a host tensor is no synchronisation
    smoothed = [_smooth_one(image, _gaussian_taps(s, most)) for image, s in zip(x.contiguous(), each, strict=True)]
    return smoothed[0][None] if len(smoothed) == 1 else torch.stack(smoothed)


def _smooth_one(image: Tensor, taps: list[float]) -> Tensor:
    """Separable convolution of (C,H,W)."""
    radius, compiled = len(taps) // 2, wanted(_separable, image)
    room = next(r for r in _COMPILED_RADII if r >= radius) if compiled else radius
    reach = GAUSSIAN_RADIUS if compiled else radius  # always so far, as each shape is compiled anew
    weights = F.pad(torch.tensor(taps), (room - radius, room - radius))
    padded = F.pad(image, (reach,) * 4, mode="replicate")
    return _separable(padded, weights, reach, compiled=compiled, batched=False)


def _separable_convolution(y: Tensor, weights: Tensor, reach: int) -> Tensor:
    """(C,H+2*reach,W+2*reach) to (C,H,W), by the same weights (2r+1,) down and to the right."""
    margin = reach - len(weights) // 2
    for axis in (1, 2):
        size = y.shape[axis] - 2 * reach
        y = functools.reduce(torch.add, [y.narrow(axis, margin + j, size) * weights[j] for j in range(len(weights))])
    return y


def _separable_by_calls(y: Tensor, weights: Tensor, reach: int) -> Tensor:
    margin, (first, *others) = reach - len(weights) // 2, weights.numpy().tolist()
    for axis in (1, 2):
        size = y.shape[axis] - 2 * reach
        z = y.narrow(axis, margin, size) * first
        for j, weight in enumerate(others, 1):
            z.add_(y.narrow(axis, margin + j, size), alpha=weight)
        y = z
    return y


_separable = Kernel(_separable_convolution, uncompiled=_separable_by_calls)


@functools.lru_cache(_KEPT)
def _gaussian_taps(sigma: float, radius: int) -> list[float]:
    """The taps that count."""
    taps: list[float] = gaussian_kernels(_strength(sigma), radius)[0].tolist()
    return [tap for tap in taps if tap > _NEGLIGIBLE]


def _convolve_batch(x: Tensor, kernels: Tensor) -> Tensor:
    radius = kernels.shape[1] // 2
    return _multiply(x, torch.fft.rfft2(kernels, s=_transform_size(x, radius)), radius, _at_once(x))


def _convolve_each(x: Tensor, kernels: Tensor) -> Tensor:
    """The same for point-symmetric kernels, which need no flip, sample by sample; on the CPU."""
    out, radius = torch.empty_like(x), kernels.shape[1] // 2
    height, width = x.shape[2:]
    for k, kernel in enumerate(kernels.numpy()):
        taps = [(row, column, float(kernel[row, column])) for row, column in np.argwhere(kernel).tolist()]
        if len(taps) > MOST_TAPS:
            out[k] = _convolve_batch(x[k : k + 1], kernels[k : k + 1])[0]
            continue
        padded = F.pad(x[k], (radius,) * 4, mode="replicate")
        shifted = [padded[:, row : row + height, column : column + width] for row, column, _ in taps]
        torch.mul(shifted[0], taps[0][2], out=out[k])
        for image, (_, _, weight) in zip(shifted[1:], taps[1:], strict=True):
            out[k].add_(image, alpha=weight)
    return out


def _at_once(x: Tensor) -> int:
    """Samples per transform: on a CPU one after the other, which stays in cache."""
    return 1 if x.device.type == "cpu" else max(len(x), 1)


def _multiply(x: Tensor, responses: Tensor, radius: int, at_once: int) -> Tensor:
    """Convolution by the transforms (n,P,Q//2+1) of kernels that begin in the corner, `at_once` samples at a time."""
    (n, _, height, width), (rows, columns) = x.shape, _transform_size(x, radius)
    out, border = torch.empty_like(x), (radius, columns - width - radius, radius, rows - height - radius)
    for k in range(0, n, at_once):
        spectra = torch.fft.rfft2(F.pad(x[k : k + at_once], border, mode="replicate"))
        y = torch.fft.irfft2(spectra.mul_(responses[k : k + at_once, None]), s=(rows, columns))
        out[k : k + at_once] = y[:, :, 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width]
    return out


def _transform_size(x: Tensor, radius: int) -> tuple[int, int]:
    """Rows and columns of the padded image: at least 2 * radius more, and even products of 2, 3 and 5, which are fast.

    A prime factor such as 61 makes a transform three times slower.
    """
    return _fast_size(x.shape[2] + 2 * radius), _fast_size(x.shape[3] + 2 * radius)


def _fast_size(least: int) -> int:
    size = least + least % 2
    while not _is_fast(size):
        size += 2
    return size


def _is_fast(size: int) -> bool:
    for factor in (2, 3, 5):
        while size % factor == 0:
            size //= factor
    return size == 1
