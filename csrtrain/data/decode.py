"""One image file -> tensor.

An address is a path, or `path#k` for frame k (from 0) of a file with several: multi-frame DICOM, NIfTI (slices along
one axis), multi-page TIFF. What a file is, is told by its content, never by its name.

8-bit files become uint8; deeper ones float32 in [0,1], never clipped to 8 bits. How values get there is written in
`csrtrain.data.dicom`, `csrtrain.data.nifti` and `csrtrain.data.raster`. Alpha is dropped, EXIF orientation applied, and
of an animated GIF, WebP or PNG the first frame is read (our choices). Decode is at full resolution.
"""

import gzip
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor

from csrtrain.data import dicom, nifti, raster
from csrtrain.data.intensity import Array, DecodeError, NoImageError, Window

__all__ = [
    "DecodeError",
    "EXTENSIONS",
    "NoImageError",
    "Window",
    "count_frames",
    "is_supported",
    "kind_of",
    "read",
    "split",
    "to_channels",
]

for _library in ("imagecodecs", "nibabel.global", "pydicom", "tifffile"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)  # a line per odd file and epoch, without its name

_T = TypeVar("_T")

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jph", ".jhc", ".dcm", ".dicom", ".ima", ".nii", ".nii.gz"),
)
_MULTI_FRAME = ("DICOM", "NIfTI", "TIFF")
_DICOM_NAMES = (".dcm", ".dicom", ".ima")
_SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("DICOM", re.compile(rb".{128}DICM", re.DOTALL)),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51")),
    ("WebP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM.{4}\0{4}", re.DOTALL)),
    ("NIfTI", re.compile(rb"(\x5c\x01\0\0|\0\0\x01\x5c).{340}n\+1\0|(\x1c\x02\0\0|\0\0\x02\x1c)n\+2\0", re.DOTALL)),
)
_DISGUISES = (
    ("a PDF document", re.compile(rb"%PDF")),
    ("PostScript (EPS)", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("a web page", re.compile(rb"\s*(<!doctype html|<html|<head)", re.IGNORECASE)),
    ("SVG or XML", re.compile(rb"\s*<(\?xml|svg)", re.IGNORECASE)),
    ("a ZIP archive", re.compile(rb"PK\x03\x04")),
    ("a Photoshop document", re.compile(rb"8BPS")),
    ("HEIC or AVIF", re.compile(rb".{4}ftyp(hei|hev|mif|avi)", re.DOTALL)),
    ("half of a NIfTI pair (.hdr and .img)", re.compile(rb".{344}ni1\0", re.DOTALL)),
    ("a Git LFS pointer, not the file itself", re.compile(rb"version https://git-lfs")),
    ("text", re.compile(rb"[\t\n\r\x20-\x7e]{16,}\Z")),
)
_HEAD = 548


def split(address: str) -> tuple[str, int | None]:
    """`path#k` -> (path, k); a path without a frame number -> (path, None)."""
    path, mark, number = address.rpartition("#")
    if mark and number.isascii() and number.isdigit() and not os.path.exists(address):
        return path, int(number)
    return address, None


def is_supported(path: str) -> bool:
    """Whether a folder listing takes this file: by its extension, or by the DICOM mark when it has none.

    DICOM files often have no extension, or one that is only a part of a UID (`...1.2.840`).
    """
    name = os.path.basename(path).lower()
    if name.endswith(EXTENSIONS):
        return True
    extension = os.path.splitext(name)[1]
    if extension and not extension[1:].isdigit():
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def kind_of(path: str) -> str:
    """What a file is, by its content: JPEG, PNG, TIFF, JPEG 2000, WebP, GIF, BMP, DICOM or NIfTI.

    Raises:
        DecodeError: it is missing, empty, or none of these.
    """
    return _guarded(path, lambda: _look(path))


def count_frames(path: str, slice_axis: int = 2) -> int:
    """Number of frames in a file, read from its header: 1 for all but DICOM, NIfTI and TIFF.

    Args:
        path: a file.
        slice_axis: axis of the stored array along which NIfTI volumes are cut, 0 to 2.

    Raises:
        DecodeError: the header cannot be read.
    """
    return _guarded(path, lambda: _count(path, slice_axis))


def read(address: str, *, window: Window = "header", slice_axis: int = 2, max_megapixels: float = 100.0) -> Tensor:
    """Decode one image at full resolution.

    Args:
        address: path or `path#k`.
        window: intensity window of DICOM, NIfTI and, (centre, width) only, of TIFF deeper than 8 bits; see the modules.
        slice_axis: axis of the stored array along which NIfTI volumes are cut, 0 to 2.
        max_megapixels: larger frames are refused by their header, before they are decoded.

    Returns:
        (C,H,W) uint8 for 8-bit files, float32 in [0,1] for deeper ones. C is 1 or 3, or n for TIFF with n channels.

    Raises:
        DecodeError: names the file and the reason: missing, empty, truncated, damaged, disguised as another format, too
            large, of an unsupported kind, values that are not finite, no such frame.
    """
    return _guarded(address, lambda: _to_tensor(_decode(address, window, slice_axis, max_megapixels)))


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Match the number of channels: grey is repeated to 3, RGB becomes luma (ITU-R BT.601, as in Pillow) for 1.

    Args:
        image: (C,H,W) uint8 or float32 in [0,1].
        channels: wanted C.

    Raises:
        ValueError: any other mismatch.
    """
    have = image.shape[0]
    if have == channels:
        return image
    if (have, channels) == (1, 3):
        return image.expand(3, -1, -1).contiguous()
    if (have, channels) == (3, 1):
        if image.dtype == torch.uint8:
            red, green, blue = image.to(torch.int32)
            luma = torch.bitwise_right_shift(19595 * red + 38470 * green + 7471 * blue + 32768, 16)
            return luma.to(torch.uint8)[None]
        return (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])[None]
    raise ValueError(f"Expected {channels} channels, got {have}. Set data.channels to {have} or convert the image.")


def _guarded(address: str, work: Callable[[], _T]) -> _T:
    """Run a decoder. Whatever the libraries raise on a bad file becomes a DecodeError that names it.

    Their warnings are dropped, as their log is: what makes an image wrong is an error here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except DecodeError as error:
        raise type(error)(f"{address}: {error}") from error
    except FileNotFoundError as error:
        raise DecodeError(f"{address}: Expected a file, got nothing at this path. Correct the path.") from error
    except PermissionError as error:
        raise DecodeError(f"{address}: Expected a readable file, got no permission. Change its permissions.") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DecodeError(
            f"{address}: Expected a whole image, got data that cannot be decoded ({reason}). Copy the file again or "
            "remove it."
        ) from error


def _open(path: str) -> tuple[str, os.stat_result, BinaryIO]:
    """Kind, status and the open file, at its start."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise DecodeError(f"Expected a file, got {what}. Name an image file.")
    if status.st_size == 0:
        raise DecodeError("Expected an image, got an empty file (0 bytes). Copy it again or remove it.")
    file = open(path, "rb")
    try:
        return _kind(path, file), status, file
    except BaseException:
        file.close()
        raise


def _look(path: str) -> str:
    kind, _, file = _open(path)
    file.close()
    return kind


def _kind(path: str, file: BinaryIO) -> str:
    head = file.read(_HEAD)
    file.seek(0)
    if head[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=file) as unpacked:
            head = unpacked.read(_HEAD)
        file.seek(0)
        kinds = [name for name, signature in _SIGNATURES if name == "NIfTI" and signature.match(head)]
    else:
        kinds = [name for name, signature in _SIGNATURES if signature.match(head)]
    if kinds:
        return kinds[0]
    # Old DICOM files begin with their first element: group 0002 or 0008, in either byte order.
    if path.lower().endswith(_DICOM_NAMES) and head[:2] in (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08"):
        return "DICOM"
    got = next((name for name, signature in _DISGUISES if signature.match(head)), "something else")
    extension = os.path.splitext(path)[1]
    disguise = f" disguised as {extension}" if is_supported(path) and extension else ""
    raise DecodeError(
        f"Expected JPEG, PNG, TIFF, JPEG 2000, WebP, GIF, BMP, DICOM or NIfTI by its content, got "
        f"{got}{disguise}. Convert or remove the file."
    )


def _count(path: str, slice_axis: int) -> int:
    kind, status, file = _open(path)
    file.close()
    return _frames(kind, path, status, slice_axis)


def _frames(kind: str, path: str, status: os.stat_result, slice_axis: int) -> int:
    if kind == "NIfTI":
        return nifti.frames(path, slice_axis)
    if kind == "TIFF":
        return raster.tiff_frames(path, status.st_mtime_ns, status.st_size)
    return dicom.frames(path) if kind == "DICOM" else 1


def _decode(address: str, window: Window, slice_axis: int, max_megapixels: float) -> Array:
    path, frame = split(address)
    kind, status, file = _open(path)
    with file:
        if kind not in _MULTI_FRAME:
            if frame:
                raise DecodeError(f"Expected frame 0 of a file with one frame, got frame {frame}. Correct the address.")
            return _decode_bytes(kind, file, status.st_size, max_megapixels)
    frames = _frames(kind, path, status, slice_axis)
    if frame is None and frames > 1:
        raise DecodeError(f"Expected a frame number, got a file with {frames} frames. Name one as path#k, k from 0.")
    if frame is not None and frame >= frames:
        raise DecodeError(f"Expected a frame from 0 to {frames - 1}, got {frame}. Correct the address.")
    stamp = (path, status.st_mtime_ns, status.st_size)
    if kind == "NIfTI":
        return nifti.decode_nifti(*stamp, frame or 0, slice_axis, window, max_megapixels)
    if kind == "TIFF":
        return raster.decode_tiff(*stamp, frame or 0, window, max_megapixels)
    return dicom.decode_dicom(path, frame or 0, window, max_megapixels)


def _decode_bytes(kind: str, file: BinaryIO, size: int, max_megapixels: float) -> Array:
    if size > 16e6 * max_megapixels + 2**26:
        raise DecodeError(f"Expected at most {max_megapixels:g} megapixels, got a file of {size} bytes. Remove it.")
    data = file.read()
    if kind == "JPEG":
        return raster.decode_jpeg(data, max_megapixels)
    if kind == "PNG":
        return raster.decode_png(data, max_megapixels)
    if kind == "JPEG 2000":
        return raster.decode_jpeg2000(data, max_megapixels)
    return raster.decode_pillow(data, kind, max_megapixels)


def _to_tensor(image: Array) -> Tensor:
    """(H,W,C) -> (C,H,W). The tensor owns writable memory; its layout may be channels-last."""
    if not image.flags.writeable or any(stride < 0 for stride in image.strides) or not image.dtype.isnative:
        image = image.astype(image.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(image).movedim(-1, 0)
