"""Compression: JPEG and JPEG2000."""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from imagecodecs import jpeg2k_decode, jpeg8_decode, jpeg8_encode
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from csrtrain.augment.color_spaces import rgb_to_ycbcr, ycbcr_to_rgb

Bytes = NDArray[np.uint8]

_BLOCK = 8
_HALF_IS_UP = 2.0**-10  # more than the rounding of a product
# ITU-T T.81, annex K.1: steps of quality 50, lowest frequencies first, row by row.
_LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


def jpeg(x: Tensor, quality: Tensor, seeds: Tensor) -> Tensor:
    """JPEG at a libjpeg quality, chroma at half resolution. KADIS-700k type 10, quality 43 36 24 7 4.

    On a CPU the real codec (libjpeg-turbo, accurate transform), elsewhere `jpeg_dct`, whose PSNR agrees within 0.05 dB.
    Images of other than three channels are coded channel by channel as grey. The result has 8 bits.

    Args:
        x: (n,C,H,W) in [0,1].
        quality: (n,) 1 to 100, rounded.
        seeds: (n,), unused.
    """
    return _jpeg_codec(x, quality) if x.device.type == "cpu" else jpeg_dct(x, quality)


def _jpeg_codec(x: Tensor, quality: Tensor) -> Tensor:
    images = _to_bytes(x)
    out = np.empty_like(images)
    # numpy: a host read of a host tensor is no synchronisation
    for target, image, q in zip(out, images, quality.round().numpy().astype(int).tolist(), strict=True):
        if image.shape[2] == 3:
            target[:] = jpeg8_decode(jpeg8_encode(image, level=q, subsampling="420"))
        else:
            for k in range(image.shape[2]):
                target[:, :, k] = jpeg8_decode(jpeg8_encode(np.ascontiguousarray(image[:, :, k]), level=q))
    return _to_floats(out)


def _to_bytes(x: Tensor) -> Bytes:
    """(n,C,H,W) in [0,1] -> (n,H,W,C) uint8."""
    bytes_ = (x * 255).round_().numpy().astype(np.uint8)  # twice as fast as torch's conversion and permutation
    return np.stack([bytes_[:, k] for k in range(x.shape[1])], axis=3)


def _to_floats(images: Bytes) -> Tensor:
    return (
        torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    )


def jpeg_dct(x: Tensor, quality: Tensor) -> Tensor:
    """What JPEG loses, without the codec: entropy coding loses nothing, so only coefficients are rounded.

    Cosine transform of 8 x 8 blocks, libjpeg's tables and scaling by quality, chroma averaged 2 x 2 and brought back by
    its triangle filter. Sources: ITU-T T.81, annexes A.3.3 and K.1; libjpeg's manual for quality.

    Args:
        x: (n,C,H,W) in [0,1]; channels as in `jpeg`.
        quality: (n,) 1 to 100, rounded.
    """
    n, channels, height, width = x.shape
    luma_steps, chroma_steps = (_steps(table, quality) for table in (_LUMA_STEPS, _CHROMA_STEPS))
    bytes_ = (x * 255).round_()
    if channels != 3:
        return _coded(_continued(bytes_, _BLOCK), luma_steps)[:, :, :height, :width].div_(255)
    bytes_ = _continued(bytes_, 2 * _BLOCK)
    ycbcr = rgb_to_ycbcr(bytes_).round_()
    ycbcr[:, 1:] += 128
    chroma = _doubled(_coded(_halved(ycbcr[:, 1:]), chroma_steps), (height + 1) // 2, (width + 1) // 2)
    ycbcr[:, :1] = _coded(ycbcr[:, :1], luma_steps)
    torch.sub(chroma, 128, out=ycbcr[:, 1:])
    return ycbcr_to_rgb(ycbcr[:, :, :height, :width]).round_().clamp_(0, 255).div_(255)


def _halved(x: Tensor) -> Tensor:
    """Mean of 2 x 2 pixels, rounded; halves down and up in turn, as in libjpeg."""
    n, channels, height, width = x.shape
    pairs = x.view(n, channels, height // 2, 2, width)
    rows = pairs[:, :, :, 0] + pairs[:, :, :, 1]
    up = torch.tensor([0.25, 0.5], device=x.device).repeat(width // 4)
    return torch.addcmul(up, rows[..., ::2] + rows[..., 1::2], torch.full_like(up, 0.25)).floor_()


def _doubled(x: Tensor, height: int, width: int) -> Tensor:
    """Each pixel to 2 x 2 by libjpeg's triangle, three quarters of the nearer; beyond height and width the border."""
    n, channels, rows, columns = x.shape
    x = F.pad(x[:, :, :height, :width], (1, 1 + columns - width, 1, 1 + rows - height), mode="replicate")
    here = x[:, :, 1:-1]
    lines = torch.stack((torch.lerp(here, x[:, :, :-2], 0.25), torch.lerp(here, x[:, :, 2:], 0.25)), dim=3)
    lines = lines.view(n, channels, 2 * rows, columns + 2)
    here = lines[..., 1:-1]
    out = x.new_empty((n, channels, 2 * rows, columns, 2))
    out[..., 0] = torch.lerp(here, lines[..., :-2], 0.25).add_(8 / 16).floor_()  # multiples of 1/16: halves up
    out[..., 1] = torch.lerp(here, lines[..., 2:], 0.25).add_(7 / 16).floor_()  # and down
    return out.view(n, channels, 2 * rows, 2 * columns)


def _continued(x: Tensor, multiple: int) -> Tensor:
    """Right and lower border repeated up to a multiple of so many pixels."""
    return F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple), mode="replicate")


def _steps(table: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """(n,1,64) quantisation steps at a quality, as libjpeg scales them, in integers from 1 to 255."""
    q = quality.round()
    percent = torch.where(q < 50, (5000 / q).floor(), 200 - 2 * q)
    base = torch.tensor(table, dtype=torch.float32, device=quality.device).flatten()
    return ((base * percent[:, None] + 50) / 100).floor().clamp(1, 255)[:, None]


def _coded(planes: Tensor, steps: Tensor) -> Tensor:
    """Bytes (n,C,H,W), sides multiples of 8, through the transform, rounding to `steps` (n,1,64), and back."""
    n, channels, height, width = planes.shape
    grid = (n, channels * height // _BLOCK, width // _BLOCK)
    blocks = (planes - 128).view(*grid[:2], _BLOCK, grid[2], _BLOCK).transpose(2, 3).reshape(n, -1, _BLOCK**2)
    transform = torch.from_numpy(_TRANSFORM).to(planes.device)
    # Halves are common: libjpeg rounds to eighths first, then to steps away from 0, and pixels upwards.
    eighths = torch.matmul(blocks, 8 * transform.T).round_()
    coefficients = eighths.abs().add_(4 * steps).div_(8 * steps).floor_().mul_(steps).copysign_(eighths)
    blocks = torch.matmul(coefficients, transform).add_(128.5 + _HALF_IS_UP).floor_().clamp_(0, 255)
    return blocks.view(*grid, _BLOCK, _BLOCK).transpose(2, 3).reshape(planes.shape)


def _cosines() -> NDArray[np.float32]:
    """(64,64): the orthonormal two-dimensional cosine transform of a block of 8 x 8."""
    k = np.arange(_BLOCK)
    one = np.cos(math.pi * k[:, None] * (2 * k + 1) / (2 * _BLOCK)) * np.where(k == 0, 0.5**0.5, 1)[:, None] / 2
    return np.kron(one, one).astype(np.float32)


_TRANSFORM = _cosines()


def jpeg2000(x: Tensor, ratio: Tensor, seeds: Tensor) -> Tensor:
    """JPEG2000, irreversible wavelets, at a compression ratio. KADIS-700k type 9, ratios 16 32 45 120 400.

    Needs the codec (OpenJPEG), so images on a CPU: 10 ms of a core at 224 px. Other than three channels are coded one
    by one as grey. The result has 8 bits.

    Args:
        x: (n,C,H,W) in [0,1], on the CPU.
        ratio: (n,) bytes without compression per byte.
        seeds: (n,), unused.
    """
    if x.device.type != "cpu":
        raise ValueError(f"Expected images on the CPU for JPEG2000, got {x.device}. Apply it in the loader's workers.")
    images = _to_bytes(x)
    out = np.empty_like(images)
    for target, image, r in zip(out, images, ratio.numpy().tolist(), strict=True):
        if image.shape[2] == 3:
            target[:] = _jpeg2000(image, r)
        else:
            for k in range(image.shape[2]):
                target[:, :, k] = _jpeg2000(np.ascontiguousarray(image[:, :, k]), r)
    return _to_floats(out)


def _jpeg2000(image: Bytes, ratio: float) -> Bytes:
    file = io.BytesIO()
    mixed = int(image.ndim == 3)  # luma and chroma instead of red, green, blue
    Image.fromarray(image).save(
        file, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, mct=mixed
    )
    # imagecodecs decodes in 1.2 ms, Pillow in 2.0; but it cannot write at a ratio.
    decoded: Bytes = jpeg2k_decode(file.getvalue(), numthreads=1)
    return decoded
