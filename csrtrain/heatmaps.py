"""Where an image is bad, or differs from its reference: an array and a picture of each."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvf
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from csrtrain.files import write_atomically

_LONGEST = 1024  # px: side of a drawn heat-map
_LONGEST_NAME = 200  # characters of a file name
_OPAQUE = 0.55  # of the colours over the image


def file_names(addresses: Sequence[str]) -> list[str]:
    """A different file name for each address, from the part of the path that differs."""
    if not addresses:
        return []
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(address)) for address in addresses])
    taken: dict[str, int] = {}
    names = []
    for address in addresses:
        name = re.sub(r"[^\w.-]+", "_", os.path.relpath(os.path.abspath(address), folder))[-_LONGEST_NAME:]
        taken[name.lower()] = taken.get(name.lower(), 0) + 1
        names.append(name if taken[name.lower()] == 1 else f"{name}-{taken[name.lower()]}")
    return names


def write_scores(path: Path, image: Tensor, contributions: Tensor) -> None:
    """`path.npy` and `path.png` of one image (C,H,W) and its map (h,w), whose sum is the score."""
    local = contributions * contributions.numel() / 100  # whose mean is the score
    _write_map(path, image, contributions, local, "RdYlGn")


def write_distances(path: Path, image: Tensor, local: Tensor, most: float) -> None:
    """`path.npy` and `path.png` of one image (C,H,W) and its distance map (H,W).

    The colour is that of the root of the distance, which shows small ones too, from 0 to `most`.
    """
    _write_map(path, image, local, (local / most).clamp(min=0).sqrt(), "magma")


def _write_map(path: Path, image: Tensor, values: Tensor, shown: Tensor, colors: str) -> None:
    """`path.npy` of values (h,w), and `path.png` of what is shown of them, 0 to 1, over a grey image (C,H,W)."""
    buffer = io.BytesIO()
    np.save(buffer, values.numpy())
    write_atomically(path.with_name(f"{path.name}.npy"), buffer.getvalue())
    height, width = image.shape[1:]
    scale = min(1.0, _LONGEST / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # Made small as it is: as float32 an image of 100 megapixels would take more memory than its score.
    small = tvf.resize(image[None], list(size), tvf.InterpolationMode.BILINEAR, antialias=True)
    grey = tvf.to_dtype(small, torch.float32, scale=True).mean(1)[0]
    local = F.interpolate(shown[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    colored = colormaps[colors](local.clamp(0, 1).numpy())[..., :3]
    mixed = _OPAQUE * colored + (1 - _OPAQUE) * grey[..., None].numpy()
    buffer = io.BytesIO()
    Image.fromarray((255 * mixed).round().clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    write_atomically(path.with_name(f"{path.name}.png"), buffer.getvalue())
