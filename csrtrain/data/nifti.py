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


class _Volume(NamedTuple):
    voxels: Array  # as stored: a memory map of an uncompressed file, an array of a compressed one
    slope: float
    intercept: float
    calibration: tuple[float, float]


_kept: OrderedDict[_File, _Volume] = OrderedDict()


def _load_header(file: _File) -> Any:
    """The image of nibabel, voxels not yet read; extra axes of length 1 are allowed."""
    image_class = nibabel.Nifti2Image if _is_nifti2(file.path) else nibabel.Nifti1Image
    image = image_class.from_filename(file.path)
    shape = image.shape
    if len(shape) < 2 or math.prod(shape[4:]) != 1:
        raise DecodeError(
            f"Expected a 2-D, 3-D or 4-D NIfTI image, got {len(shape)} axes {tuple(shape)}. It holds no "
            "slices; leave it out."
        )
    if min(shape) < 1:
        raise DecodeError(f"Expected at least one voxel, got a shape of {tuple(shape)}. The header is damaged.")
    return image


def _is_nifti2(path: str) -> bool:
    with nibabel.openers.ImageOpener(path) as file:
        head = bytes(file.read(4))
    return 540 in (int.from_bytes(head, "little"), int.from_bytes(head, "big"))


def _axes(shape: tuple[int, ...], slice_axis: int) -> tuple[int, int, int, int]:
    """(slices, times, height, width) of a volume that is cut along `slice_axis`."""
    x, y, z, t = (*shape[:4], 1, 1)[:4]
    spatial = [x, y, z]
    slices = spatial.pop(slice_axis)
    return slices, t, spatial[1], spatial[0]


def frames(path: str, mtime_ns: int, size: int, slice_axis: int) -> int:
    """Number of slices along `slice_axis`, over all time points. Reads the header only."""
    slices, times, _, _ = _axes(_load_header(_File(path, mtime_ns, size)).shape, slice_axis)
    return slices * times


def _voxels(file: _File, max_megapixels: float) -> _Volume:
    if file in _kept:
        _kept.move_to_end(file)
        return _kept[file]
    image = _load_header(file)
    compressed = file.path.lower().endswith(".gz")
    if compressed and math.prod(image.shape) > _LARGEST_VOLUME * max_megapixels * 1e6:
        raise DecodeError(
            f"Expected at most {_LARGEST_VOLUME * max_megapixels:g} million voxels in a compressed file, got "
            f"{tuple(image.shape)}. Decompress it (gunzip) or raise data.max_megapixels."
        )
    voxels = image.dataobj.get_unscaled()
    header = image.header
    volume = _Volume(
        voxels.reshape((*voxels.shape[:4], 1, 1)[:4]),
        float(image.dataobj.slope),
        float(image.dataobj.inter),
        (float(header["cal_min"]), float(header["cal_max"])),
    )
    _kept[file] = volume
    while len(_kept) > 1 and sum(_bytes_in_memory(v) for v in _kept.values()) > _KEPT_BYTES or len(_kept) > 32:
        _kept.popitem(last=False)
    return volume


def _bytes_in_memory(volume: _Volume) -> int:
    return 0 if isinstance(volume.voxels.base, np.memmap) else volume.voxels.nbytes


@lru_cache(maxsize=4096)
def _percentile_range(file: _File, max_megapixels: float) -> tuple[float, float]:
    voxels = _voxels(file, max_megapixels).voxels
    planes = voxels.shape[2] * voxels.shape[3]
    chosen = np.arange(planes)
    if planes > _SAMPLED_PLANES:
        chosen = np.sort(np.random.default_rng(0).choice(planes, _SAMPLED_PLANES, replace=False))
    sample = np.stack([voxels[:, :, p % voxels.shape[2], p // voxels.shape[2]] for p in chosen])
    finite = sample[np.isfinite(sample)]
    if finite.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(finite, _PERCENTILES)
    return float(low), float(high)


@lru_cache(maxsize=4096)
def _full_range(file: _File, max_megapixels: float) -> tuple[float, float]:
    voxels = _voxels(file, max_megapixels).voxels
    return float(np.nanmin(voxels)), float(np.nanmax(voxels))


def _range(file: _File, volume: _Volume, window: Window, max_megapixels: float) -> tuple[float, float]:
    """(low, high) in the units of the file."""
    if not isinstance(window, str):
        return window_range(window)
    low, high = volume.calibration
    if window == "header" and high > low:
        return low, high
    stored = (_percentile_range if window == "header" else _full_range)(file, max_megapixels)
    low, high = (value * volume.slope + volume.intercept for value in stored)
    return min(low, high), max(low, high)


def decode_nifti(
    path: str, mtime_ns: int, size: int, frame: int, slice_axis: int, window: Window, max_megapixels: float
) -> Array:
    """Slice `frame` of a volume -> float32 (H,W,1) in [0,1]; uint8 (H,W,3) for RGB volumes.

    Frame number = time point * slices + slice.
    """
    file = _File(path, mtime_ns, size)
    shape = _load_header(file).shape
    slices, _, height, width = _axes(shape, slice_axis)
    require_size(height, width, 1, max_megapixels)
    volume = _voxels(file, max_megapixels)
    picture = np.take(volume.voxels[..., frame // slices], frame % slices, axis=slice_axis)
    picture = np.rot90(picture)
    if picture.dtype.names:
        return np.stack([picture[name] for name in ("R", "G", "B")], axis=-1)
    if picture.dtype.kind == "c":
        raise DecodeError("Expected real voxels, got complex ones. Save the magnitude.")
    require_finite(picture)
    low, high = _range(file, volume, window, max_megapixels)
    scaled = picture.astype(np.float64) * volume.slope + volume.intercept
    return to_unit(scaled, low, high)[..., None]
