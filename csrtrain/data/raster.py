"""Photographs and other rasters -> array: JPEG, PNG, JPEG 2000, TIFF, BMP, WebP, GIF.

Each decoder reads the size in the header first, and refuses an image that is too large before it decodes.

Why these decoders:
- JPEG: simplejpeg (libjpeg-turbo) is as fast as torchvision and reports missing data, where libjpeg only prints a
  warning and fills the rest with grey.
- PNG: imagecodecs keeps 16 bits (Pillow clips 16-bit RGB to 8) and survives corrupt files (torchvision's decoder ends
  the process).
"""

import io
import re
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from PIL import Image, ImageOps

from csrtrain.data.intensity import (
    Array,
    DecodeError,
    Window,
    palette_colors,
    require_finite,
    require_size,
    to_unit,
    window_range,
)

_EXIF_ORIENTATION = 0x0112
_ORIENTED: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def oriented(image: Array, orientation: int) -> Array:
    """Turn (H,W,...) upright; `orientation` as in EXIF and TIFF, 1 to 8, anything else counts as 1."""
    turn = _ORIENTED.get(orientation)
    return image if turn is None else turn(image)


def _exif_orientation(exif: bytes) -> int:
    """Orientation of an EXIF block; 1 when the block is damaged, as in every viewer."""
    try:
        tags = Image.Exif()
        tags.load(exif)
        return int(tags.get(_EXIF_ORIENTATION, 1))
    except Exception:
        return 1


# JPEG

_HARMLESS_BYTES = 64
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of the segments before the image data."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG or JPEG-LS codestream; None when its header does not say."""
    for marker, content in _jpeg_segments(data):
        if marker in _START_OF_FRAME:
            return int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    return None


def _decode_jpeg_pixels(data: bytes, colorspace: str) -> Array:
    try:
        pixels: Array = simplejpeg.decode_jpeg(data, colorspace)
    except ValueError as error:
        # A few bytes between the last block and the next marker: some cameras write them, and nothing is missing.
        extra = re.search(r"(\d+) extraneous bytes", str(error))
        if extra is None or int(extra[1]) > _HARMLESS_BYTES:
            raise DecodeError(
                f"Expected a whole JPEG image, got damaged or missing data ({str(error).strip()}). Copy the file again "
                "or remove it."
            ) from error
        pixels = simplejpeg.decode_jpeg(data, colorspace, strict=False)
    return pixels


def _cmyk_to_rgb(cmyk: Array) -> Array:
    """CMYK -> RGB without a colour profile: R = (255 - C) (255 - K) / 255, rounded as in Pillow."""
    wide = cmyk.astype(np.int32)
    paper = 255 - wide[..., 3:]
    product = wide[..., :3] * paper + 128
    return (paper - ((product >> 8) + product >> 8)).clip(0, 255).astype(np.uint8)


def decode_jpeg(data: bytes, max_megapixels: float) -> Array:
    """JPEG -> uint8 (H,W,1) or (H,W,3), upright. CMYK and YCCK become RGB without a colour profile."""
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    height, width = int(height), int(width)
    require_size(height, width, 3, max_megapixels)
    segments = _jpeg_segments(data)
    exifs = (content for marker, content in segments if marker == 0xE1 and content.startswith(b"Exif\0\0"))
    orientation = next((_exif_orientation(exif) for exif in exifs), 1)
    if colorspace in ("CMYK", "YCCK"):
        pixels = _cmyk_to_rgb(255 - _decode_jpeg_pixels(data, "CMYK"))  # stored inverted, as Adobe began it
    else:
        pixels = _decode_jpeg_pixels(data, "GRAY" if colorspace == "Gray" else "RGB")
    return oriented(pixels, orientation)


# PNG


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + min(length, 65536)]
        at += 12 + length


def decode_png(data: bytes, max_megapixels: float) -> Array:
    """PNG -> uint8 (H,W,C), or float32 in [0,1] when it has 16 bits; C is 1 or 3.

    Alpha is dropped, as Pillow's `convert("RGB")` does, not composited: the stored colours are what is judged. Of an
    animated PNG the default image is read.
    """
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    if kind not in (0, 2, 3, 4, 6):
        raise DecodeError(f"Expected a PNG colour type of 0, 2, 3, 4 or 6, got {kind}. The file is damaged; remove it.")
    require_size(height, width, 4, max_megapixels)
    orientation = next((_exif_orientation(content) for name, content in _png_chunks(data) if name == b"eXIf"), 1)
    pixels: Array = imagecodecs.png_decode(data)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    pixels = oriented(pixels[..., : 1 if kind in (0, 4) else 3], orientation)
    return to_unit(pixels, 0, 65535) if depth == 16 else pixels


# JPEG 2000

_SIZ = b"\xff\x4f\xff\x51"  # start of codestream, image and tile size


def decode_jpeg2000(data: bytes, max_megapixels: float) -> Array:
    """JPEG 2000 (file or codestream) -> uint8 (H,W,C), or float32 in [0,1] when it has more than 8 bits.

    Alpha (a second or fourth component) is dropped.
    """
    start = data.find(_SIZ, 0, 1 << 20)
    header = data[start + 8 : start + 43] if start >= 0 else b""
    if len(header) < 35:
        raise DecodeError("Expected a JPEG 2000 codestream, got a file without one. Copy it again or remove it.")
    right, bottom, left, top = struct.unpack(">4I", header[:16])
    channels, precision = struct.unpack(">HB", header[32:35])
    bits = (precision & 0x7F) + 1
    require_size(bottom - top, right - left, channels, max_megapixels)
    if precision & 0x80:
        raise DecodeError("Expected unsigned JPEG 2000 samples, got signed ones. Convert the file to PNG or TIFF.")
    pixels: Array = imagecodecs.jpeg2k_decode(data)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    pixels = pixels[..., :1] if channels == 2 else pixels[..., :3] if channels == 4 else pixels
    return pixels if bits == 8 else to_unit(pixels, 0, 2**bits - 1)


# BMP, WebP, GIF


def decode_pillow(data: bytes, kind: str, max_megapixels: float) -> Array:
    """BMP, WebP or GIF -> uint8 (H,W,1) or (H,W,3), upright; alpha dropped. Of an animation the first frame is read."""
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        require_size(image.height, image.width, 4, max_megapixels)
        upright = ImageOps.exif_transpose(image)
        grey = upright.mode in ("1", "L", "LA")
        pixels = np.asarray(upright.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


# TIFF


_TIFF_CODECS = (
    *("NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "LZMA", "ZSTD", "WEBP", "JPEG"),
    *("CCITTRLE", "CCITTFAX3", "CCITTFAX4"),
)


@lru_cache(maxsize=1024)
def _tiff_pages(path: str, mtime_ns: int, size: int) -> tuple[int, ...]:
    """Numbers of the pages that are images of their own, without reduced copies (thumbnails, pyramids)."""
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) == 1:
            return (0,)
        tiff.pages.useframes = False
        listed: Any = enumerate(tiff.pages)
        pages = tuple(i for i, page in listed if not page.is_reduced)
        images = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
    if images > len(pages):
        raise DecodeError(
            f"Expected one page per image, got {len(pages)} for {images} images (an ImageJ file above 4 GB). Save it "
            "as BigTIFF."
        )
    return pages


def tiff_frames(path: str, mtime_ns: int, size: int) -> int:
    """Number of images in a TIFF file."""
    return len(_tiff_pages(path, mtime_ns, size))


def _tiff_range(pixels: Array, bits: int, window: Window) -> tuple[float, float]:
    """What becomes 0 and 1 in a TIFF deeper than 8 bits; see `decode_tiff`."""
    if not isinstance(window, str):
        return window_range(window)
    if pixels.dtype.kind == "u" and bits < 32:
        return 0.0, float(2**bits - 1)
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "f" and low >= 0.0 and high <= 1.0:
        return 0.0, 1.0
    return low, high


def decode_tiff(path: str, mtime_ns: int, size: int, frame: int, window: Window, max_megapixels: float) -> Array:
    """One page of a TIFF file -> uint8 (H,W,C), or float32 in [0,1] when it is deeper than 8 bits.

    Unsigned integers below 32 bits are divided by the largest number they can hold. Signed, 32-bit and float values
    have no natural range: floats within [0,1] stay as they are, all else goes from its smallest value (0) to its
    largest (1), page by page (our choice). A window (centre, width) replaces both. Alpha is dropped.
    """
    pages = _tiff_pages(path, mtime_ns, size)
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[pages[frame]]
        require_size(page.imagelength, page.imagewidth, page.samplesperpixel, max_megapixels)
        if page.imagedepth != 1:
            raise DecodeError(
                f"Expected flat TIFF pages, got {page.imagedepth} planes in one. Save one page per plane."
            )
        _require_whole_page(page, tiff.filehandle, size)
        pixels: Array = page.asarray(maxworkers=1)
        colormap = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
    if page.axes.startswith("S"):
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    require_finite(pixels)
    pixels = _tiff_colors(page, pixels, colormap, window)
    tag = page.tags.get("Orientation")
    return oriented(pixels, int(tag.value) if tag is not None else 1)


def _require_whole_page(page: Any, file: Any, size: int) -> None:
    """Refuse a page that ends behind the file, which some codecs fill with grey, and tiles larger than they may be."""
    if page.compression.name not in _TIFF_CODECS:
        raise DecodeError(f"Expected TIFF compressed by {', '.join(_TIFF_CODECS[:9])}, got {page.compression.name}.")
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if any(offset + count > size for offset, count in segments):
        raise DecodeError("Expected a whole TIFF file, got one that ends before its pixel data do. Copy it again.")
    if page.compression == tifffile.COMPRESSION.JPEG:
        height, width = max(page.tilelength, page.imagelength), max(page.tilewidth, page.imagewidth)
        for offset, count in segments:
            file.seek(offset)
            got = jpeg_size(file.read(min(count, 65536)))
            if got is not None and (got[0] > height or got[1] > width):
                raise DecodeError(f"Expected tiles up to {width} x {height}, got {got[1]} x {got[0]}. Remove the file.")


def _tiff_colors(page: Any, pixels: Array, colormap: Array | None, window: Window) -> Array:
    kinds = tifffile.PHOTOMETRIC
    if colormap is not None:
        return palette_colors(np.moveaxis(colormap, 0, -1))[pixels[..., 0]]
    is_jpeg_ycbcr = page.photometric == kinds.YCBCR and page.compression == tifffile.COMPRESSION.JPEG
    if page.photometric not in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB, kinds.SEPARATED) and not is_jpeg_ycbcr:
        raise DecodeError(f"Expected a grey, RGB, CMYK or palette TIFF, got {page.photometric.name}. Save it as RGB.")
    if pixels.dtype.kind == "c":
        raise DecodeError("Expected real pixel values, got complex ones. Save the magnitude.")
    alphas = sum(int(sample) in (1, 2) for sample in page.extrasamples)
    pixels = pixels[..., : pixels.shape[-1] - alphas] if alphas else pixels
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif pixels.dtype.kind != "u" or bits > 8:
        pixels = to_unit(pixels, *_tiff_range(pixels, bits, window))
    elif bits < 8:
        pixels = np.rint(to_unit(pixels, 0, 2**bits - 1) * 255).astype(np.uint8)
    one = np.uint8(255) if pixels.dtype == np.uint8 else np.float32(1)
    if page.photometric == kinds.MINISWHITE:
        return np.asarray(one - pixels)
    if page.photometric == kinds.SEPARATED:
        if pixels.shape[-1] != 4:
            raise DecodeError(f"Expected 4 inks (CMYK), got {pixels.shape[-1]}. Save the TIFF as RGB.")
        if pixels.dtype == np.uint8:
            return _cmyk_to_rgb(pixels)
        return np.asarray((one - pixels[..., :3]) * (one - pixels[..., 3:]))
    return pixels
