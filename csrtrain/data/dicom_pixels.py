"""Pixel data of a DICOM file -> stored values of one frame.

pydicom decodes, except lossless and 12-bit JPEG, which it can only hand to GDCM. GDCM is not used at all: on damaged
data it aborts the process instead of raising an error. What a codestream says of its size is compared with the DICOM
header before it is decoded, and a JPEG that is not whole is refused, where decoders fill it with grey.
"""

import os
import re
from typing import cast

import imagecodecs
import numpy as np
import pydicom
import simplejpeg
from pydicom.datadict import dictionary_description, keyword_dict
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import convert_color_space
from pydicom.pixels.utils import pixel_array

from csrtrain.data.intensity import Array, DecodeError
from csrtrain.data.raster import jpeg_size

_SIZ = b"\xff\x4f\xff\x51"  # JPEG 2000: start of codestream, image and tile size
_LOSSLESS_JPEG = (pydicom.uid.JPEGLossless, pydicom.uid.JPEGLosslessSV1)
_STANDARD = re.compile(r"1\.2\.840\.10008(\.\d{1,3})+")
_ELEMENTS = {dictionary_description(tag) for tag in keyword_dict.values()}
_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def stored_pixels(dataset: Dataset, path: str, frames: int, frame: int) -> Array:
    """Stored values of a frame: (H,W), or (H,W,3) with YBR turned into RGB.

    Args:
        dataset: the header, read with deferred values.
        path: its file.
        frames: number of frames in it.
        frame: which one, from 0.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DecodeError(
            f"Expected a transfer syntax that can be decoded, got {_known(syntax)}. Convert it to an uncompressed one."
        ) from error
    if decoder.is_native:
        _require_bytes(dataset, path, frames)
    try:
        return _decode(dataset, decoder, path, frames, frame)
    except Exception as error:
        reason = without_values(str(error)).rstrip(".")
        raise DecodeError(
            f"Expected pixel data that decode as {syntax.name}, got: {reason}. Copy the file again, or convert it to "
            "an uncompressed transfer syntax."
        ) from error


def without_values(text: str) -> str:
    """What a library says of a file, with what it quotes left out but for names of DICOM elements.

    In a damaged file anything may stand where a description of the pixels is expected, the name of a patient too.
    """
    text = re.sub(r"'([^']*)'|\"([^\"]*)\"", lambda m: m[0] if (m[1] or m[2]) in _ELEMENTS else "'...'", text)
    return " ".join(text.split())


def _known(uid: pydicom.uid.UID) -> str:
    """Its name in the standard; of another the number, when it is one that the standard could have."""
    return uid.name if uid.name != uid or _STANDARD.fullmatch(uid) else "an unknown one"


def _position(element: DataElement | RawDataElement) -> int:
    """Where the value lies in the file."""
    return element.value_tell if isinstance(element, RawDataElement) else cast(int, element.file_tell)


def _require_bytes(dataset: Dataset, path: str, frames: int) -> None:
    """Refuse uncompressed pixel data with bytes missing; of several frames, pydicom checks only the one it reads."""
    values = frames * dataset.Rows * dataset.Columns * int(dataset.get("SamplesPerPixel") or 1)
    expected = values * dataset.BitsAllocated // 8
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        expected = expected * 2 // 3
    element = dataset.get_item(next(keyword for keyword in _KEYWORDS if keyword in dataset))
    got = os.path.getsize(path) - _position(element) if element.value is None else len(cast(bytes, element.value))
    if got < expected:
        raise DecodeError(f"Expected {expected} bytes of pixel data, got {got}. The file is cut short; copy it again.")


def _decode(dataset: Dataset, decoder: Decoder, path: str, frames: int, frame: int) -> Array:
    syntax, plugin = dataset.file_meta.TransferSyntaxUID, ""
    if not decoder.is_native:
        with open(path, "rb") as file:
            file.seek(_position(dataset.get_item("PixelData")))
            codestream = bytes(get_frame(file, frame, number_of_frames=frames))
        _require_whole(dataset, codestream)
        if syntax in _LOSSLESS_JPEG or (syntax == pydicom.uid.JPEGExtended12Bit and dataset.BitsAllocated > 8):
            return _decode_jpeg(dataset, codestream)
        plugin = [name for name in decoder.available_plugins if name != "gdcm"][-1]
    if frames == 1:
        return decoder.as_array(dataset, index=0, decoding_plugin=plugin)[0]
    return np.asarray(pixel_array(path, index=frame, transfer_syntax_uid=syntax, decoding_plugin=plugin))


def _require_whole(dataset: Dataset, codestream: bytes) -> None:
    """Refuse JPEG and JPEG 2000 of another size than the header says, and JPEG that is cut short."""
    size = dataset.Rows, dataset.Columns
    if codestream.startswith(b"\xff\xd8"):  # JPEG, JPEG-LS
        _require_same(jpeg_size(codestream), size)
        if dataset.file_meta.TransferSyntaxUID == pydicom.uid.JPEGBaseline8Bit:
            simplejpeg.decode_jpeg(codestream, "GRAY")  # raises where data are missing
        elif not codestream.rstrip(b"\0\xff").endswith(b"\xd9"):  # the end mark, and padding
            raise ValueError("a codestream without its end")
        return
    _require_boxes(codestream)
    if (start := codestream.find(_SIZ, 0, 4096)) >= 0:
        right, bottom, left, top = np.frombuffer(codestream[start + 8 : start + 24], ">u4").astype(int)
        _require_same((bottom - top, right - left), size)


def _require_boxes(codestream: bytes) -> None:
    """Refuse a JP2 header with a box of no length, in which pydicom would search without end."""
    at = 12 if codestream.startswith(b"\0\0\0\x0cjP  ") else len(codestream)
    while at < len(codestream) and codestream[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(codestream[at : at + 4], "big")
        if length < 8:
            raise ValueError("a damaged JP2 header")
        at += length


def _require_same(got: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    if got != expected:
        found = "no size" if got is None else f"{got[1]} x {got[0]} pixels"
        raise ValueError(f"{found} instead of {expected[1]} x {expected[0]}")


def _decode_jpeg(dataset: Dataset, codestream: bytes) -> Array:
    """Lossless JPEG of 8 to 16 bits, lossy JPEG of 12 bits."""
    pixels: Array = imagecodecs.jpeg8_decode(codestream)
    if dataset.get("PhotometricInterpretation") == "YBR_FULL":
        return np.asarray(convert_color_space(pixels, "YBR_FULL", "RGB"))
    if dataset.get("PixelRepresentation") == 1:
        unused = 8 * pixels.dtype.itemsize - dataset.BitsStored
        return np.asarray(np.right_shift((pixels << unused).astype(f"i{pixels.dtype.itemsize}"), unused))
    return pixels
