"""DICOM files -> frames.

Order of what is applied, as in PS3.3 C.11: modality LUT or rescale, then VOI LUT or window, then MONOCHROME1 is
inverted. Enhanced multi-frame files name rescale and window per frame.

Intensities of grey frames, `window`:
- `header`: the VOI LUT of the file, else its first window; a file that names neither: up to 8 bits stored, the stored
  range (the values are meant for display); deeper, the smallest to the largest value of the frame without padding (our
  choice, what viewers do). For CT, where values have a unit, name a window.
- `full`: everything that the stored bits can hold; smallest to largest value for float pixel data.
- (centre, width) in the units of the file (HU for CT).

Nothing of a file but its path, the name of its transfer syntax and numbers that describe its pixels ever enters an
error message: no text, since in a damaged file any text may stand anywhere.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from csrtrain.data.dicom_pixels import stored_pixels, without_values
from csrtrain.data.intensity import (
    Array,
    DecodeError,
    NoImageError,
    Window,
    palette_colors,
    require_finite,
    require_size,
    to_unit,
    window_range,
)

_DEFER = 65536  # bytes; longer values (the pixels) are read when they are used


def _load_header(path: str) -> Dataset:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            dataset = pydicom.dcmread(path, defer_size=_DEFER, force=True)
        except Exception as error:
            raise DecodeError(
                f"Expected a DICOM header, got one that cannot be read ({type(error).__name__}). Copy the file again."
            ) from error
    if any("End of file reached" in str(warning.message) for warning in caught):
        raise DecodeError("Expected a whole DICOM file, got one that ends before its pixel data do. Copy it again.")
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _guess_transfer_syntax(dataset)
    return dataset


def _guess_transfer_syntax(dataset: Dataset) -> pydicom.uid.UID:
    """Of files without a file meta group: native pixels, in the encoding that the header was read with."""
    implicit, little = dataset.original_encoding
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value in (None, "") and default is not None:
        return default
    try:
        return int(cast(Any, value))
    except (TypeError, ValueError) as error:
        raise DecodeError(
            f"Expected a number as {keyword}, got none. It is no image, or damaged; leave it out."
        ) from error


def _require_pixels(dataset: Dataset) -> str:
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            return keyword
    uids = (getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID"), dataset.get("SOPClassUID"))
    names = {str(uid): pydicom.uid.UID(str(uid)).name for uid in uids}
    classes = [name for uid, name in names.items() if name != uid]  # of an unknown one the name is the number
    if classes and not any("Image Storage" in name for name in classes):
        raise NoImageError(f"Expected a DICOM image, got a file without pixel data ({classes[0]}). Leave it out.")
    raise DecodeError("Expected a DICOM image, got a file without pixel data: cut off or damaged. Use another copy.")


@contextmanager
def _told() -> Iterator[None]:
    """What pydicom and Python raise becomes a DecodeError, without the values that they quote."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {without_values(str(error))}"[:300]
        raise DecodeError(
            f"Expected a whole DICOM image, got data that cannot be decoded ({reason}). Copy the file again or "
            "remove it."
        ) from error


@_told()
def frames(path: str) -> int:
    """Number of frames. Reads the header only."""
    dataset = _load_header(path)
    _require_pixels(dataset)
    return max(1, _integer(dataset, "NumberOfFrames", 1))


@_told()
def decode_dicom(path: str, frame: int, window: Window, max_megapixels: float) -> Array:
    """One frame -> (H,W,1) or (H,W,3): uint8 when its pixels are 8-bit values for display, else float32 in [0,1]."""
    dataset = _load_header(path)
    keyword = _require_pixels(dataset)
    frames = max(1, _integer(dataset, "NumberOfFrames", 1))
    samples = _integer(dataset, "SamplesPerPixel", 1)
    require_size(_integer(dataset, "Rows"), _integer(dataset, "Columns"), samples, max_megapixels)
    pixels = stored_pixels(dataset, path, frames, frame)
    require_finite(pixels)
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return _palette(dataset, pixels)
    if samples == 3:
        bits = _integer(dataset, "BitsStored")
        return pixels if bits == 8 else to_unit(pixels, 0, 2**bits - 1)
    if samples != 1:
        raise DecodeError(f"Expected 1 or 3 samples per pixel, got {samples}. Leave the file out.")
    _flatten_functional_groups(dataset, frame)
    return _grey(dataset, pixels, window, is_float=keyword != "PixelData")[..., None]


def _palette(dataset: Dataset, index: Array) -> Array:
    """Palette -> uint8 or float32 (H,W,3)."""
    if not dataset.original_encoding[1]:  # pydicom takes the entries as little-endian
        for color in ("Red", "Green", "Blue"):
            keyword = f"{color}PaletteColorLookupTableData"
            if keyword in dataset:
                setattr(dataset, keyword, np.frombuffer(dataset[keyword].value, "u2").byteswap().tobytes())
    colors: Array = apply_color_lut(index, dataset)[..., :3]
    return colors if colors.dtype == np.uint8 else palette_colors(colors)


def _flatten_functional_groups(dataset: Dataset, frame: int) -> None:
    """Copy rescale and window of an enhanced multi-frame file to the top, where single-frame files have them."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    own = (dataset.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for group in (*shared, *own):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(name) or [])[:1]:
                dataset.update(item)


def _grey(dataset: Dataset, stored: Array, window: Window, is_float: bool) -> Array:
    """Stored values (H,W) -> uint8, or float32 in [0,1]."""
    bits = 0 if is_float else _integer(dataset, "BitsStored")
    signed = not is_float and _integer(dataset, "PixelRepresentation", 0) == 1
    inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    if bits == 1:
        return np.where(stored != inverted, np.uint8(255), np.uint8(0))
    values = _rescaled(dataset, stored)
    for_display = bool(bits) and bits <= 8 and not signed and values is stored
    lut = (dataset.get("VOILUTSequence") or [None])[0] if window == "header" else None
    limits = _window_of_header(dataset) if window == "header" else None
    if lut is not None:
        unit = _look_up(dataset, lut, values)
    elif limits is not None:
        unit = _windowed(values, *limits, str(dataset.get("VOILUTFunction") or "LINEAR").upper())
    elif not isinstance(window, str):
        unit = to_unit(values, *window_range(window))
    elif for_display and bits == 8 and stored.dtype == np.uint8:
        return ~stored if inverted else stored
    elif bits and (window == "full" or for_display):
        ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
        unit = to_unit(values, *sorted(float(end) for end in _rescaled(dataset, ends)))
    else:
        unit = to_unit(values, *_range_without_padding(dataset, stored, values))
    return np.asarray(1 - unit if inverted else unit)


def _rescaled(dataset: Dataset, stored: Array) -> Array:
    """Modality LUT, or slope and intercept; `stored` itself when the file names neither or they change nothing."""
    if sequence := dataset.get("ModalityLUTSequence"):
        item = sequence[0]
        return np.asarray(_look_up(dataset, item, stored) * (2 ** int(item.LUTDescriptor[2]) - 1))
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None or (float(slope), float(intercept)) == (1.0, 0.0):
        return stored
    return np.asarray(stored * np.float64(slope) + np.float64(intercept))


def _look_up(dataset: Dataset, item: Dataset, values: Array) -> Array:
    """Modality or VOI LUT -> float32 in [0,1]. Values outside its domain take its first or last entry."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        table = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * entries else f"{order}u2")[:entries]
    else:
        table = np.asarray(data)[:entries]
    position = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return to_unit(table, 0, 2**bits - 1)[position]


def _window_of_header(dataset: Dataset) -> tuple[float, float] | None:
    """The first window (centre, width) that the file names."""
    numbers = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = dataset.get(keyword)
        value = value[0] if isinstance(value, pydicom.multival.MultiValue) and len(value) else value
        if value in (None, "") or isinstance(value, pydicom.multival.MultiValue):
            return None
        numbers.append(float(cast(Any, value)))
    centre, width = numbers
    return (centre, width) if np.isfinite(centre) and width > 0 else None


def _windowed(values: Array, centre: float, width: float, function: str) -> Array:
    """PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3 (LINEAR_EXACT, SIGMOID), output range 0 to 1."""
    if function == "SIGMOID":
        sigmoid = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width))
        return np.asarray(sigmoid, dtype=np.float32)
    if function == "LINEAR_EXACT":
        return to_unit(values, centre - width / 2, centre + width / 2)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float32)
    return to_unit(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _range_without_padding(dataset: Dataset, stored: Array, values: Array) -> tuple[float, float]:
    """Smallest and largest value, PixelPaddingValue (to PixelPaddingRangeLimit) left out."""
    padding = dataset.get("PixelPaddingValue")
    if isinstance(padding, int):
        limit = dataset.get("PixelPaddingRangeLimit")
        low, high = sorted((padding, limit if isinstance(limit, int) else padding))
        inside = values[(stored < low) | (stored > high)]
        values = inside if inside.size else values
    return float(values.min()), float(values.max())
