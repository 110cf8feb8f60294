"""Colour spaces of whole batches, and the random ones of CONTRIQUE's views.

HSV is kornia's. Lab is ours: on a CPU several times faster than with a `torch.where` per branch, which has no vector
code.
"""

import math

import kornia
import numpy as np
import torch
from torch import Tensor

from csrtrain.augment import geometry
from csrtrain.augment.color import luma

GREY, LAB, HSV, MEAN_SUBTRACTED, UNCHANGED = range(5)
SPACES_OF_COLOR = (GREY, LAB, HSV, MEAN_SUBTRACTED, UNCHANGED)
SPACES_OF_GREY = (MEAN_SUBTRACTED, UNCHANGED)  # of a single channel: the others change nothing

# Full range BT.601, as in JPEG and Pillow, without the offset of 0.5 on Cb and Cr.
YCBCR_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
RGB_FROM_YCBCR = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
_SRGB_KNEE, _LINEAR_KNEE = 0.04045, 0.0031308
_LAB_KNEE, _LAB_SLOPE = 6 / 29, 3 * (6 / 29) ** 2
# Linear sRGB to XYZ over that of the white (IEC 61966-2-1; D65, 2 degrees).
_WHITE_XYZ_FROM_RGB = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
_RGB_FROM_WHITE_XYZ = tuple(map(tuple, np.linalg.inv(_WHITE_XYZ_FROM_RGB).tolist()))
_LAB_FROM_F = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_F_FROM_LAB = ((1 / 116, 1 / 500, 0.0), (1 / 116, 0.0, 0.0), (1 / 116, 0.0, -1 / 200))
_MS_RADIUS, _MS_SIGMA = 3, 7 / 6
_MS_FLOOR = 1e-3  # of a range of 1: what is flatter than that is not blown up to full contrast


def rgb_to_lab(x: Tensor) -> Tensor:
    """(n,3,H,W) sRGB in [0,1] -> CIELAB, white D65: L in [0,100], a and b about -100 to 100.

    IEC 61966-2-1 and CIE 15. Both branches of each curve are computed on clamped values and added.
    """
    low, high = x.clamp(max=_SRGB_KNEE), x.clamp(min=_SRGB_KNEE)
    linear = _power(high.add_(0.055).div_(1.055), 2.4).sub_(((_SRGB_KNEE + 0.055) / 1.055) ** 2.4)
    xyz = _product(linear.add_(low, alpha=1 / 12.92), _WHITE_XYZ_FROM_RGB)
    torch.clamp(xyz, min=_LAB_KNEE**3, out=high)  # memory in use: that of a new tensor costs more than the arithmetic
    f = _power(high, 1 / 3).sub_(_LAB_KNEE**3 / _LAB_SLOPE)
    lab = _product(f.add_(xyz.clamp_(max=_LAB_KNEE**3), alpha=1 / _LAB_SLOPE), _LAB_FROM_F)
    lab[:, 0] -= 16
    return lab


def lab_to_rgb(x: Tensor) -> Tensor:
    """The inverse, not clamped: what lies outside of sRGB leaves [0,1]. Z below 0 counts as 0."""
    f = _product(x, _F_FROM_LAB).add_(16 / 116)
    f[:, 2].clamp_(min=0)
    high = f.clamp(min=_LAB_KNEE)
    xyz = high.pow_(3).sub_(_LAB_SLOPE * _LAB_KNEE).add_(f.clamp_(max=_LAB_KNEE), alpha=_LAB_SLOPE)
    linear = _product(xyz, _RGB_FROM_WHITE_XYZ)
    torch.clamp(linear, min=_LINEAR_KNEE, out=high)
    rgb = _power(high, 1 / 2.4).mul_(1.055).sub_(0.055 + 12.92 * _LINEAR_KNEE)
    return rgb.add_(linear.clamp_(max=_LINEAR_KNEE), alpha=12.92)


def _power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent of positive x, in place, to 1e-6 of the value, in a third of the time of `Tensor.pow` on a CPU."""
    if x.device.type == "cpu":
        np.log(x.numpy(), out=x.numpy())  # three times as fast as torch's
    else:
        x.log_()
    return x.mul_(exponent / math.log(2)).exp2_()


def rgb_to_ycbcr(x: Tensor) -> Tensor:
    """(n,3,H,W) in [0,1] -> Y in [0,1], Cb and Cr in [-0.5,0.5]."""
    return _product(x, YCBCR_FROM_RGB)


def ycbcr_to_rgb(x: Tensor) -> Tensor:
    """The inverse, not clamped."""
    return _product(x, RGB_FROM_YCBCR)


def _product(x: Tensor, matrix: tuple[tuple[float, float, float], ...]) -> Tensor:
    """A 3x3 matrix times the pixels of (n,3,H,W)."""
    return torch.matmul(torch.tensor(matrix, device=x.device), x.flatten(2)).view_as(x)


def _grey(x: Tensor) -> Tensor:
    return luma(x).expand_as(x)


def _lab(x: Tensor) -> Tensor:
    """Scaled as 8-bit Lab is: L / 100, (a + 128) / 255, (b + 128) / 255."""
    lab = rgb_to_lab(x)
    return torch.cat([lab[:, :1] / 100, (lab[:, 1:] + 128) / 255], dim=1).clamp_(0, 1)


def _hsv(x: Tensor) -> Tensor:
    hsv = kornia.color.rgb_to_hsv(x)
    return torch.cat([hsv[:, :1] / (2 * math.pi), hsv[:, 1:]], dim=1).clamp_(0, 1)


def _mean_subtracted(x: Tensor) -> Tensor:
    """Difference to a Gaussian mean of 7 taps, stretched to [0,1] per image and channel."""
    sigma = torch.full((len(x),), _MS_SIGMA, device=x.device)
    x = x - geometry.blur(x, sigma, _MS_RADIUS, compiled=False)
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low + _MS_FLOOR)


_MAKE = {GREY: _grey, LAB: _lab, HSV: _hsv, MEAN_SUBTRACTED: _mean_subtracted}


def to_color_space(x: Tensor, choice: Tensor) -> Tensor:
    """Every image in its own colour space, scaled to [0,1].

    CONTRIQUE (arXiv 2110.13266, section III-C): greyscale, CIELAB, HSV, mean-subtracted, or RGB as it is. Not rounded
    to 8 bits as in the released code (our choice). On a CPU each space is made for those that chose it, elsewhere for
    all, because the number of rows is not known there.

    Args:
        x: (n,C,H,W) in [0,1]; C = 3, or 1 with the spaces of `SPACES_OF_GREY` only.
        choice: (n,) int64 on the device of x, of `SPACES_OF_COLOR`.

    Returns:
        (n,C,H,W) float32 in [0,1].
    """
    if x.device.type == "cpu":
        out, chosen = x.clone(), choice.numpy()  # numpy: a host read of a host tensor is no synchronisation
        for space, make in _MAKE.items():
            rows = torch.from_numpy((chosen == space).nonzero()[0])
            if len(rows):
                out.index_copy_(0, rows, make(x.index_select(0, rows)))
        return out
    out = x
    for space in SPACES_OF_COLOR if x.shape[1] == 3 else SPACES_OF_GREY:
        if space != UNCHANGED:
            out = torch.where(choice[:, None, None, None] == space, _MAKE[space](x), out)
    return out
