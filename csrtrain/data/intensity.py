"""Intensities: how stored values become [0, 1], and the error of a file that cannot be read."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Window = Literal["header", "full"] | tuple[float, float]
"""`header`: the window that the file names; `full`: everything it holds; or (centre, width) in the file's units."""


class DecodeError(ValueError):
    """An image file that is broken, truncated, disguised, too large or of an unsupported kind."""


class NoImageError(DecodeError):
    """A sound file that holds no image: a DICOM directory, report or plan. Folder listings pass over it."""


def to_unit(values: Array, low: float, high: float) -> Array:
    """Values -> float32 in [0,1]: `low` becomes 0, `high` becomes 1, what lies outside is clipped.

    A range of no width (a constant image) becomes zeros.
    """
    if not high > low:
        return np.zeros(values.shape, dtype=np.float32)
    wide: Array = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    wide -= low
    wide /= high - low
    return np.clip(wide, 0.0, 1.0, out=wide).astype(np.float32, copy=False)


def window_range(window: tuple[float, float]) -> tuple[float, float]:
    """(centre, width) -> (low, high)."""
    centre, width = window
    if not (np.isfinite(centre) and np.isfinite(width) and width > 0):
        raise DecodeError(f"Expected a window (centre, width > 0), got ({centre:g}, {width:g}). Correct data.window.")
    return centre - width / 2, centre + width / 2


def require_finite(values: Array) -> None:
    """Refuse pixel values that are not numbers."""
    if values.dtype.kind not in "fc":
        return
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise DecodeError(
            f"Expected finite pixel values, got {bad} of {values.size} that are NaN or infinite. Replace them in the "
            "file (numpy.nan_to_num) or leave it out."
        )


def require_size(height: int, width: int, channels: int, max_megapixels: float) -> None:
    """Refuse a frame that is empty or larger than the cap; called with the header's numbers, before decoding.

    More than 4 channels count as more pixels, so that the cap is a cap on memory too.
    """
    if height < 1 or width < 1 or channels < 1:
        raise DecodeError(f"Expected at least one pixel, got {width} x {height} x {channels}. Remove the file.")
    if height * width * max(1.0, channels / 4) > max_megapixels * 1e6:
        layers = f" x {channels} channels" if channels > 4 else ""
        raise DecodeError(
            f"Expected at most {max_megapixels:g} megapixels, got {width} x {height}{layers}. Cut the image, remove "
            "the file, or raise max_megapixels (--data.max_megapixels of csrtrain fit)."
        )


def palette_colors(colors: Array) -> Array:
    """16-bit palette entries -> uint8 when they hold 8-bit colours (times 257 or 256), else float32 in [0,1]."""
    for factor in (257, 256):
        if not np.any(colors % factor):
            return (colors // factor).astype(np.uint8)
    return to_unit(colors, 0, 65535)
