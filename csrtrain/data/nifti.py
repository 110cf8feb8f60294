"""NIfTI-1 and NIfTI-2 volumes -> slices.

Intensities: the header's slope and intercept are applied, then a window, the same for all slices of a file:
- `header`: cal_min and cal_max where the header sets them; else the 0.5 % and 99.5 % percentiles of the volume (our
  choice: robust to the few very bright voxels of vessels or metal). They are estimated on at most 64 planes, drawn
  once and for all by a fixed seed.
- `full`: smallest to largest value of the volume.
- (centre, width) in the units of the file.

A slice is turned as `numpy.rot90` does, so that RAS-oriented volumes show anterior or superior at the top. The axis is
the axis of the array as stored.

Speed: of an uncompressed file only the slice is read. A `.nii.gz` has to be decompressed from its start, so each
process keeps the last ones it read, up to 512 MB. Where volumes are many and large, decompress them beforehand.
"""

import gzip
import math
from collections import OrderedDict
from functools import lru_cache
from typing import Any, NamedTuple

import nibabel
import numpy as np

from csrtrain.data.intensity import Array, DecodeError, Window, require_finite, require_size, to_unit, window_range

_SAMPLED_PLANES = 64
_PERCENTILES = (0.5, 99.5)
_KEPT_BYTES = 512 * 2**20
_LARGEST_VOLUME = 64  # times max_megapixels: cap on voxels of a compressed volume, which is held in memory


class _File(NamedTuple):
    """A file as it was when it was looked at: what is kept in memory about it is dropped when it changes."""

    path: str
    mtime_ns: int
    size: int


class _Header(NamedTuple):
    """What is needed of a header: shape (x,y,z,t), type and position of the voxels, what turns them into values."""

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    calibration: tuple[float, float]


_kept: OrderedDict[_File, Array] = OrderedDict()


def _is_compressed(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _load_header(path: str) -> _Header:
    with gzip.open(path) if _is_compressed(path) else open(path, "rb") as file:
        head = file.read(4)
        file.seek(0)
        is_nifti2 = 540 in (int.from_bytes(head, "little"), int.from_bytes(head, "big"))
        header_class: Any = nibabel.Nifti2Header if is_nifti2 else nibabel.Nifti1Header
        header = header_class.from_fileobj(file)
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 2 or math.prod(shape[4:]) != 1:
        raise DecodeError(
            f"Expected a 2-D, 3-D or 4-D NIfTI image, got {len(shape)} axes {shape}. It holds no slices; leave it out."
        )
    if min(shape) < 1:
        raise DecodeError(f"Expected at least one voxel, got a shape of {shape}. The header is damaged.")
    slope, intercept = header.get_slope_inter()
    x, y, z, t = (*shape[:4], 1, 1)[:4]
    return _Header(
        (x, y, z, t),
        header.get_data_dtype(),
        header.get_data_offset(),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        (float(header["cal_min"]), float(header["cal_max"])),
    )


def _axes(shape: tuple[int, int, int, int], slice_axis: int) -> tuple[int, int, int, int]:
    """(slices, times, height, width) of a volume that is cut along `slice_axis`."""
    if slice_axis not in (0, 1, 2):
        raise DecodeError(f"Expected a slice axis of 0, 1 or 2, got {slice_axis}. Correct data.slice_axis.")
    spatial = list(shape[:3])
    slices = spatial.pop(slice_axis)
    return slices, shape[3], spatial[1], spatial[0]


def frames(path: str, slice_axis: int) -> int:
    """Number of slices along `slice_axis`, over all time points. Reads the header only."""
    slices, times, _, _ = _axes(_load_header(path).shape, slice_axis)
    return slices * times


def _voxels(file: _File, header: _Header, max_megapixels: float) -> Array:
    """Voxels as stored (x,y,z,t): a memory map of an uncompressed file, an array of a compressed one."""
    if not _is_compressed(file.path):
        return np.memmap(file.path, header.dtype, "r", header.offset, header.shape, order="F")
    if file not in _kept:
        _kept[file] = _decompress(file.path, header, max_megapixels)
    _kept.move_to_end(file)
    while len(_kept) > 1 and sum(voxels.nbytes for voxels in _kept.values()) > _KEPT_BYTES:
        _kept.popitem(last=False)
    return _kept[file]


def _decompress(path: str, header: _Header, max_megapixels: float) -> Array:
    """Reads to the end of the stream, where gzip keeps its check sum."""
    count = math.prod(header.shape)
    if count > _LARGEST_VOLUME * max_megapixels * 1e6:
        raise DecodeError(
            f"Expected at most {_LARGEST_VOLUME * max_megapixels:g} million voxels in a compressed file, got "
            f"{header.shape}. Decompress it (gunzip)."
        )
    with gzip.open(path) as file:
        data = file.read(header.offset + count * header.dtype.itemsize)
        file.read(2**20)
    return np.frombuffer(data, header.dtype, count, header.offset).reshape(header.shape, order="F")


@lru_cache(maxsize=4096)
def _percentile_range(file: _File, max_megapixels: float) -> tuple[float, float]:
    voxels = _voxels(file, _load_header(file.path), max_megapixels)
    planes = voxels.shape[2] * voxels.shape[3]
    chosen = np.arange(planes)
    if planes > _SAMPLED_PLANES:
        chosen = np.sort(np.random.default_rng(0).choice(planes, _SAMPLED_PLANES, replace=False))
    sample = np.stack([voxels[:, :, p % voxels.shape[2], p // voxels.shape[2]] for p in chosen])
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, _PERCENTILES) if finite.size else (0.0, 0.0)
    return float(low), float(high)


@lru_cache(maxsize=4096)
def _full_range(file: _File, max_megapixels: float) -> tuple[float, float]:
    voxels = _voxels(file, _load_header(file.path), max_megapixels)
    finite = voxels if voxels.dtype.kind in "iu" else voxels[np.isfinite(voxels)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _range(file: _File, header: _Header, window: Window, max_megapixels: float) -> tuple[float, float]:
    """(low, high) in the units of the file."""
    if not isinstance(window, str):
        return window_range(window)
    low, high = header.calibration
    if window == "header" and high > low:
        return low, high
    stored = (_percentile_range if window == "header" else _full_range)(file, max_megapixels)
    low, high = (value * header.slope + header.intercept for value in stored)
    return min(low, high), max(low, high)


def decode_nifti(
    path: str, mtime_ns: int, size: int, frame: int, slice_axis: int, window: Window, max_megapixels: float
) -> Array:
    """Slice `frame` of a volume -> float32 (H,W,1) in [0,1]; uint8 (H,W,3) for RGB volumes.

    Frame number = time point * slices + slice.
    """
    file, header = _File(path, mtime_ns, size), _load_header(path)
    slices, _, height, width = _axes(header.shape, slice_axis)
    require_size(height, width, 1, max_megapixels)
    voxels = _voxels(file, header, max_megapixels)
    picture = np.rot90(np.take(voxels[..., frame // slices], frame % slices, axis=slice_axis))
    if picture.dtype.names:
        return np.stack([picture[name] for name in ("R", "G", "B")], axis=-1)
    if picture.dtype.kind == "c":
        raise DecodeError("Expected real voxels, got complex ones. Save the magnitude.")
    require_finite(picture)
    scaled = picture.astype(np.float64) * header.slope + header.intercept
    return to_unit(scaled, *_range(file, header, window, max_megapixels))[..., None]
