"""Colour operations on RGB in [0,1], every sample with its own parameters, no clamp left out."""

import math

import numpy as np
import torch
from torch import Tensor

from csrtrain.augment.compiled import Kernel

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL and kornia; torchvision's tensor form has 0.2989

# Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", 2001: optical density of
# haematoxylin, eosin and DAB in R, G, B, as in skimage.color.rgb_from_hed.
Matrix = list[list[float]]
RGB_FROM_HED: Matrix = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]
HED_FROM_RGB: Matrix = np.linalg.inv(np.array(RGB_FROM_HED)).tolist()
_LOG_FLOOR = math.log(1e-6)  # skimage's floor of a transmittance


def luma(x: Tensor) -> Tensor:
    """(...,3,H,W) -> (...,1,H,W), Rec.601; other channel counts: their mean."""
    if x.shape[-3] != 3:
        return x.mean(-3, keepdim=True)
    red, green, blue = (x[..., k : k + 1, :, :] for k in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of (n,3,H,W) by `turns` (n,1,1), in HSV with value and saturation kept.

    The hexcone without its six cases: with hue h in sixths of a turn, value v and chroma c, channel k is
    v - c * clamp(2 - d, 0, 1), d the distance on the circle (of length 6) from h to the hue opposite to it: 3 for
    red, 5 for green, 1 for blue, all plus 6 n.
    """
    r, g, b = x.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    inverse = 1 / torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(value == g, 2 + (b - r) * inverse, 4 + (r - g) * inverse)
    hue = torch.where(value == r, (g - b) * inverse, hue) + 6 * turns
    distances = [hue - opposite for opposite in (3.0, 5.0, 1.0)]
    distances = [(d - 6 * torch.round(d * (1 / 6))).abs() for d in distances]
    return torch.stack([value - chroma * (2 - d).clamp(0, 1) for d in distances], dim=1)


def _jitter(x: Tensor, factors: Tensor) -> Tensor:
    factors = factors[:, :, None, None, None]
    brightness, contrast, saturation, hue, grayscale = factors.unbind(1)  # (n,1,1,1) each
    x = (brightness * x).clamp_(0, 1)
    x = torch.lerp(luma(x).mean((2, 3), keepdim=True), x, contrast).clamp_(0, 1)
    if x.shape[1] != 3:
        return x
    x = torch.lerp(luma(x), x, saturation).clamp_(0, 1)
    x = shift_hue(x, hue[:, 0])
    return torch.where(grayscale > 0, luma(x), x)


def _product(x: Tensor, matrix: Matrix) -> Tensor:
    """Pixels (n,3,H,W), as row vectors, times a 3x3 matrix."""
    columns = zip(*matrix, strict=True)
    return torch.stack([x[:, 0] * a + x[:, 1] * b + x[:, 2] * c for a, b, c in columns], dim=1)


def _stain(x: Tensor, factors: Tensor) -> Tensor:
    factors = factors[:, :, None, None]
    chosen, scale, shift = factors[:, 0:1], factors[:, 1:4], factors[:, 4:7]
    density = x.clamp(min=1e-6).log() / _LOG_FLOOR  # (n,3,H,W), skimage.color.rgb2hed
    hed = _product(density, HED_FROM_RGB).clamp(min=0) * scale + shift
    jittered = (_product(hed, RGB_FROM_HED) * _LOG_FLOOR).exp().clamp(0, 1)  # skimage.color.hed2rgb
    return torch.where(chosen > 0, jittered, x)


jitter = Kernel(_jitter)
"""Brightness, contrast, saturation, hue, then greyscale: x (n,C,H,W), factors (n,5) -> (n,C,H,W).

The first four are torchvision's formulas with its clamp after each step; the identity is (1, 1, 1, 0), greyscale is 0
or 1. The order is fixed, as in the pseudocode of SimCLR (arXiv 2002.05709, appendix A), which leaves shuffling open:
one order is one fused pass for the batch. Other channel counts than 3 have only brightness and contrast.
"""

stain = Kernel(_stain)
"""Scale and shift haematoxylin, eosin and DAB: x (n,3,H,W), factors (n,7) = (chosen, 3 scales, 3 shifts).

Tellez et al., "Whole-slide mitosis detection ... using PHH3 as a reference and ... stain augmentation", IEEE TMI 2018,
in the units of skimage.color.rgb2hed. Samples with chosen = 0 pass unchanged.
"""
