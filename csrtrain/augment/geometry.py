"""Crop, antialiased resize, flip and Gaussian blur, every sample with its own parameters.

Resize is torchvision's antialiased bilinear `resized_crop`, blur its `gaussian_blur` with reflected borders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from csrtrain.augment.compiled import Kernel

# Columns of `crops`.
TOP, LEFT, HEIGHT, WIDTH, FLIP_COLUMNS, FLIP_ROWS, TRANSPOSE = range(7)


def crop(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Crop, resize, flip and transpose.

    On a CPU one call of torch's own resize per sample is 8 times faster than matrix products; on other devices two
    batched products need no parameter on the host.

    Args:
        images: (n,C,H,W) uint8, or float32 in [0,1].
        crops: (n,7) float32: top, left, height, width in pixels; flip columns, flip rows, transpose as 0 or 1.
        size: side of the result.

    Returns:
        (n,C,size,size) float32 in [0,1].
    """
    return crop_each(images, crops, size) if images.device.type == "cpu" else crop_batch(images, crops, size)


def crop_each(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """`crop`, one sample after the other; images and crops are on the CPU."""
    out = torch.empty((len(images), images.shape[1], size, size), dtype=torch.float32)
    # numpy, because a host read of a host tensor is no synchronisation
    for k, (top, left, height, width, *turns) in enumerate(crops.numpy().astype(int).tolist()):
        x = images[k : k + 1, :, top : top + height, left : left + width]
        if axes := [axis for axis, flipped in ((3, turns[0]), (2, turns[1])) if flipped]:
            x = x.flip(axes)
        if turns[2]:
            x = x.transpose(2, 3)
        out[k] = F.interpolate(_unit(x), (size, size), mode="bilinear", antialias=True)[0]
    return out


def crop_batch(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """`crop` as two matrix products per sample, rows * image * columns^T, with no host read."""
    n, channels, height, width = images.shape
    rows = _resize_matrix(crops[:, TOP], crops[:, HEIGHT], crops[:, FLIP_ROWS], height, size)  # (n,S,H)
    columns = _resize_matrix(crops[:, LEFT], crops[:, WIDTH], crops[:, FLIP_COLUMNS], width, size)  # (n,S,W)
    x = _unit(images.transpose(1, 2)).reshape(n, height, channels * width)
    x = torch.bmm(rows, x).view(n, size * channels, width)
    x = torch.bmm(x, columns.transpose(1, 2)).view(n, size, channels, size).transpose(1, 2)
    return torch.where(crops[:, TRANSPOSE, None, None, None] > 0, x.transpose(2, 3), x).contiguous()


def _unit(x: Tensor) -> Tensor:
    return x.to(torch.float32, memory_format=torch.contiguous_format).div_(255) if x.dtype == torch.uint8 else x


def _resize_matrix(start: Tensor, length: Tensor, flipped: Tensor, n: int, size: int) -> Tensor:
    """(n,size,N): weights that resize pixels [start, start + length) of an axis of N pixels to `size`, as in ATen."""
    start, length, flipped = start[:, None, None], length[:, None, None], flipped[:, None, None]
    scale = length / size
    target = torch.arange(size, device=start.device, dtype=torch.float32)[:, None]
    target = torch.where(flipped > 0, size - 1 - target, target)
    source = torch.arange(n, device=start.device, dtype=torch.float32) - start  # relative to the crop
    weights = 1 - ((source - scale * (target + 0.5) + 0.5) / scale.clamp(min=1)).abs()
    weights = torch.where((source >= 0) & (source < length), weights, 0.0).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


def blur_radius(size: int) -> int:
    """Taps on each side: the kernel is about 10 % of the image, as in SimCLR (23 taps at 224 px)."""
    return max(1, size // 20)


def blur(x: Tensor, sigma: Tensor, radius: int, *, compiled: bool) -> Tensor:
    """Gaussian blur of 2 * radius + 1 taps with reflected borders.

    Args:
        x: (n,C,H,W), H and W above `radius`.
        sigma: (n,) pixels, above 0.
    """
    return _convolve(*_pad(x, sigma, radius), compiled=compiled)


def _pad(x: Tensor, sigma: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Images with reflected borders, and kernels (n,2*radius+1)."""
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    return F.pad(x, (radius,) * 4, mode="reflect"), kernels / kernels.sum(1, keepdim=True)


def _convolve_fused(x: Tensor, kernels: Tensor) -> Tensor:
    """Separable convolution of padded x (n,C,H+2r,W+2r) with kernels (n,2r+1), as a sum of shifted images."""
    taps = kernels.shape[1]
    height, width = x.shape[2] - taps + 1, x.shape[3] - taps + 1
    weights = kernels[:, :, None, None, None]
    x = sum((weights[:, k] * x[:, :, :, k : k + width] for k in range(1, taps)), weights[:, 0] * x[:, :, :, :width])
    return sum((weights[:, k] * x[:, :, k : k + height] for k in range(1, taps)), weights[:, 0] * x[:, :, :height])


def _convolve_grouped(x: Tensor, kernels: Tensor) -> Tensor:
    """The same by two grouped convolutions."""
    n, channels, height, width = x.shape
    weights = kernels.repeat_interleave(channels, 0)[:, None, None]  # (n*C,1,1,taps)
    x = F.conv2d(x.reshape(1, n * channels, height, width), weights, groups=n * channels)
    x = F.conv2d(x, weights.transpose(2, 3), groups=n * channels)
    return x.view(n, channels, *x.shape[2:])


_convolve = Kernel(_convolve_fused, _convolve_grouped)
