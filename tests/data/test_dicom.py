import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.tag import Tag

from csrtrain.data import decode
from csrtrain.data.decode import DecodeError, NoImageError
from csrtrain.data.index import addresses_of

RNG = np.random.default_rng(0)


def embedded(name):
    """A file inside the pydicom wheel; nothing is downloaded."""
    return get_testdata_file(name, download=False)


def make(tmp_path, stored, name="a.dcm", syntax=pydicom.uid.ExplicitVRLittleEndian, **elements):
    """Write a grey (H,W) or (N,H,W) or RGB (H,W,3) frame."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "4711"
    stored = np.asarray(stored)
    is_color = stored.shape[-1] == 3
    bits = stored.dtype.itemsize * 8
    dataset.SamplesPerPixel = 3 if is_color else 1
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    if is_color:
        dataset.PlanarConfiguration = 0
    if stored.ndim == 3 and not is_color:
        dataset.NumberOfFrames = len(stored)
    dataset.Rows, dataset.Columns = stored.shape[:2] if is_color else stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(stored.dtype.kind == "i")
    if stored.dtype.kind == "f":
        del dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        setattr(dataset, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", stored.tobytes())
    else:
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    path = tmp_path / name
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


def lut(values, first, bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [len(values), first, bits])
    item.add_new("LUTData", "US", [int(value) for value in values])
    return [item]


def ramp(dtype=np.int16, low=-1000, high=3000):
    return np.linspace(low, high, 30 * 40).reshape(30, 40).astype(dtype)


def close(got, want, atol=1e-6):
    torch.testing.assert_close(got[0].double(), torch.from_numpy(np.asarray(want, dtype=np.float64)), atol=atol, rtol=0)


# Against pydicom's own processing

HEADER_WINDOW = (
    *("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm"),
    *(
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "examples_overlay.dcm",
    ),
    "693_J2KI.dcm",
)


@pytest.mark.parametrize("name", HEADER_WINDOW)
def test_window_of_the_header_equals_pydicom(name):
    dataset = pydicom.dcmread(embedded(name))
    rescaled = apply_modality_lut(dataset.pixel_array, dataset)
    windowed = apply_voi_lut(rescaled, dataset)
    # pydicom's output spans the range that the stored bits can hold after rescaling
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    low, high = apply_modality_lut(ends, dataset)
    close(decode.read(embedded(name)), (windowed - low) / (high - low), atol=1e-5)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_equal_pydicom(tmp_path, function, photometric):
    elements = {"RescaleSlope": 2, "RescaleIntercept": -10, "WindowCenter": [300, 1], "WindowWidth": [900, 5]}
    path = make(tmp_path, ramp(), PhotometricInterpretation=photometric, VOILUTFunction=function, **elements)
    dataset = pydicom.dcmread(path)
    windowed = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = np.array([-(2**15), 2**15 - 1]) * 2.0 - 10
    want = (windowed - low) / (high - low)
    close(decode.read(path), 1 - want if photometric == "MONOCHROME1" else want)


def test_voi_lut_comes_before_the_window(tmp_path):
    table = np.linspace(0, 1023, 4001) ** 2 / 1023
    path = make(tmp_path, ramp(), VOILUTSequence=lut(table, -1000, 10), WindowCenter=1, WindowWidth=2)
    dataset = pydicom.dcmread(path)
    close(decode.read(path), apply_voi_lut(dataset.pixel_array, dataset) / 1023)


def test_modality_lut(tmp_path):
    table = np.arange(0, 2001)[::-1]
    path = make(tmp_path, ramp(), ModalityLUTSequence=lut(table, 0, 16), WindowCenter=1000, WindowWidth=500)
    dataset = pydicom.dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset).astype(float)
    close(decode.read(path), ((values - 999.5) / 499 + 0.5).clip(0, 1))


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_rle.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_gdcm_KY.dcm", "examples_rgb_color.dcm", "ExplVR_BigEnd.dcm"],
)
def test_rgb_stays_8_bit(name):
    # The lossless JPEG, which pydicom reads with another plugin only, is the same picture as the run-length one.
    reference = "SC_rgb_rle.dcm" if name == "SC_rgb_jpeg_gdcm.dcm" else name
    want = pydicom.dcmread(embedded(reference)).pixel_array
    got = decode.read(embedded(name))
    assert got.dtype == torch.uint8
    assert np.array_equal(got.permute(1, 2, 0).numpy(), want)


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
    ],
)
def test_ybr_becomes_rgb(name):
    """pydicom converts when it decodes; the picture is red, green and blue bars, so no channel is constant."""
    got = decode.read(embedded(name))
    assert got.dtype == torch.uint8
    assert np.array_equal(got.permute(1, 2, 0).numpy(), pydicom.pixels.pixel_array(embedded(name)))


def test_rgb_above_8_bits():
    want = pydicom.dcmread(embedded("SC_rgb_rle_16bit.dcm")).pixel_array
    got = decode.read(embedded("SC_rgb_rle_16bit.dcm"))
    assert got.dtype == torch.float32
    assert np.array_equal((got * 65535).round().permute(1, 2, 0).numpy(), want)


def test_palette_equals_pydicom(tmp_path):
    dataset = pydicom.dcmread(embedded("examples_palette.dcm"))
    want = apply_color_lut(dataset.pixel_array, dataset)
    assert want.dtype == np.uint16 and not np.any(want % 256)  # 8-bit colours in the high byte
    got = decode.read(embedded("examples_palette.dcm"))
    assert got.dtype == torch.uint8
    assert np.array_equal(got.permute(1, 2, 0).numpy(), want >> 8)


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian])
def test_palette_of_16_bit_colours_in_both_byte_orders(tmp_path, syntax):
    order = "<" if syntax.is_little_endian else ">"
    tables = RNG.integers(0, 65536, (3, 256))
    elements = {}
    for color, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{color}PaletteColorLookupTableData"] = table.astype(f"{order}u2").tobytes()
    index = RNG.integers(0, 256, (8, 10), dtype=np.uint8)
    path = make(tmp_path, index, syntax=syntax, PhotometricInterpretation="PALETTE COLOR", **elements)
    got = decode.read(path)
    assert got.dtype == torch.float32
    assert np.array_equal((got * 65535).round().numpy(), tables[:, index])


def test_deflated_and_1_bit_files():
    for name, want in (("image_dfl.dcm", 1), ("liver_1frame.dcm", 255)):
        got = decode.read(embedded(name))
        assert got.dtype == torch.uint8
        assert np.array_equal(got[0].numpy(), pydicom.dcmread(embedded(name)).pixel_array * np.uint8(want))


# Ranges without a window in the header


def test_8_bit_without_a_window_stays_as_it_is(tmp_path):
    stored = RNG.integers(3, 99, (8, 10), dtype=np.uint8)
    assert np.array_equal(decode.read(make(tmp_path, stored))[0].numpy(), stored)
    inverted = make(tmp_path, stored, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(decode.read(inverted)[0].numpy(), 255 - stored)
    assert decode.read(make(tmp_path, stored, RescaleSlope=1, RescaleIntercept=0)).dtype == torch.uint8


def test_deeper_without_a_window_spans_the_frame_without_padding(tmp_path):
    stored = ramp()
    close(decode.read(make(tmp_path, stored)), (stored + 1000.0) / 4000)
    padded = stored.copy()
    padded[:5] = -2000
    want = ((padded - stored[5:].min()) / (3000 - stored[5:].min())).clip(0, 1)
    close(decode.read(make(tmp_path, padded, PixelPaddingValue=-2000)), want)


def test_full_and_named_windows(tmp_path):
    stored = ramp()
    path = make(tmp_path, stored, RescaleSlope=2, RescaleIntercept=-10, WindowCenter=0, WindowWidth=10)
    hounsfield = stored * 2.0 - 10
    close(decode.read(path, window="full"), (stored + 2.0**15) / (2**16 - 1))
    close(decode.read(path, window=(40.0, 400.0)), ((hounsfield + 160) / 400).clip(0, 1))
    with pytest.raises(DecodeError, match=r"Expected a window \(centre, width > 0\), got \(40, 0\)"):
        decode.read(path, window=(40.0, 0.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_pixel_data(tmp_path, dtype):
    values = RNG.normal(size=(8, 10)).astype(dtype)
    close(decode.read(make(tmp_path, values)), (values - values.min()) / (values.max() - values.min()))
    values[3, 4] = np.nan
    with pytest.raises(DecodeError, match="Expected finite pixel values, got 1 of 80"):
        decode.read(make(tmp_path, values))


# Frames


def test_frames(tmp_path):
    stored = RNG.integers(0, 4096, (3, 8, 10), dtype=np.uint16)
    path = make(tmp_path, stored, BitsStored=12, HighBit=11)
    assert decode.count_frames(path) == 3
    for k in range(3):
        close(decode.read(f"{path}#{k}", window="full"), stored[k] / 4095)
    with pytest.raises(DecodeError, match="Expected a frame number, got a file with 3 frames. Name one as path#k"):
        decode.read(path)
    with pytest.raises(DecodeError, match="Expected a frame from 0 to 2, got 7"):
        decode.read(f"{path}#7")
    compressed = embedded("examples_ybr_color.dcm")
    want = pydicom.dcmread(compressed).pixel_array
    assert decode.count_frames(compressed) == len(want) == 30
    assert np.array_equal(decode.read(f"{compressed}#11").permute(1, 2, 0).numpy(), want[11])


def test_rescale_and_window_per_frame(tmp_path):
    """Enhanced multi-frame: shared rescale, a window of its own for each frame."""

    def group(name, **elements):
        item, outer = Dataset(), Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(outer, name, [item])
        return outer

    shared = group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=5, RescaleType="US")
    own = [group("FrameVOILUTSequence", WindowCenter=c, WindowWidth=101) for c in (100, 200)]
    stored = RNG.integers(0, 200, (2, 8, 10), dtype=np.uint16)
    path = make(tmp_path, stored, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=own)
    for k, centre in enumerate((100, 200)):
        close(decode.read(f"{path}#{k}"), ((stored[k] * 2.0 + 5 - (centre - 0.5)) / 100 + 0.5).clip(0, 1))


# Odd and broken files


def test_file_without_preamble_and_meta(tmp_path):
    stored = ramp()
    whole = make(tmp_path, stored, syntax=pydicom.uid.ImplicitVRLittleEndian)
    bare = tmp_path / "bare.dcm"
    dataset = pydicom.dcmread(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(bare, Dataset(dataset), implicit_vr=True, little_endian=True)
    assert bare.read_bytes()[:2] == b"\x08\0"
    assert torch.equal(decode.read(str(bare)), decode.read(whole))


def test_sequence_of_unknown_vr_is_no_fault(tmp_path):
    """A sequence kept as UN by a program that did not know its tag; PS3.5 6.2.2 has it in implicit little endian."""
    dataset = pydicom.dcmread(embedded("CT_small.dcm"))
    content = b"\x08\0\0\x01\x06\0\0\x00113691"
    item = b"\xfe\xff\0\xe0" + len(content).to_bytes(4, "little") + content
    tag = Tag("CTDIPhantomTypeCodeSequence")
    dataset[tag] = RawDataElement(tag, "UN", len(item), item, 0, False, True)
    path = str(tmp_path / "a.dcm")
    dataset.save_as(path)
    assert b"\x18\x00\x46\x93UN" in Path(path).read_bytes()
    assert torch.equal(decode.read(path), decode.read(embedded("CT_small.dcm")))


def test_truncated_files_are_errors(tmp_path):
    with pytest.raises(DecodeError, match=r"MR_truncated\.dcm: Expected 8192 bytes of pixel data, got 8130"):
        decode.read(embedded("MR_truncated.dcm"))
    for shape in ((3, 8, 10), (3, 200, 300)):
        path = Path(make(tmp_path, RNG.integers(0, 4096, shape, dtype=np.uint16)))
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(
            DecodeError, match=f"Expected {2 * np.prod(shape)} bytes of pixel data, got {2 * np.prod(shape) - 2}"
        ):
            decode.read(f"{path}#0")
    for name, missing in (("MR_small_RLE.dcm", 500), ("examples_jpeg2k.dcm", 8), ("examples_jpeg2k.dcm", 5000)):
        path = tmp_path / name
        path.write_bytes(Path(embedded(name)).read_bytes()[:-missing])
        with pytest.raises(DecodeError, match=f"{name}: Expected a whole DICOM file, got one that ends before"):
            decode.read(str(path))


def with_codestream(tmp_path, name, change):
    """The embedded file `name` with the codestream of its first frame changed."""
    dataset = pydicom.dcmread(embedded(name))
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([change(frame)])
    path = str(tmp_path / "a.dcm")
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPGExtended.dcm"),  # baseline, lossless, 12-bit
        *("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"),
    ],
)
def test_truncated_codestreams_are_errors(tmp_path, name):
    assert decode.read(with_codestream(tmp_path, name, lambda frame: frame)).isfinite().all()
    for part in (0.3, 0.7):
        with pytest.raises(DecodeError, match=r"a\.dcm: Expected pixel data that decode as .*, got"):
            decode.read(with_codestream(tmp_path, name, lambda frame: frame[: int(part * len(frame))]))  # noqa: B023


@pytest.mark.parametrize(
    ("name", "mark", "at"),
    [
        ("SC_rgb_jpeg_dcmtk.dcm", b"\xff\xc0", 5),
        ("SC_rgb_jpeg_gdcm.dcm", b"\xff\xc3", 5),
        ("MR_small_jp2klossless.dcm", b"\xff\x4f\xff\x51", 8),
    ],
)
def test_codestreams_of_another_size_are_refused_before_they_are_decoded(tmp_path, name, mark, at):
    def enlarge(frame):
        start = frame.index(mark) + at
        return frame[:start] + b"\xea\x60" + frame[start + 2 :]

    with pytest.raises(DecodeError, match=r"got: \d+ x \d+ pixels instead of \d+ x \d+\."):
        decode.read(with_codestream(tmp_path, name, enlarge))


def test_a_box_without_length_is_an_error(tmp_path):
    """pydicom 3.0 searches such a JP2 header without end."""
    assert decode.read(embedded("GDCMJ2K_TextGBR.dcm")).shape == (3, 400, 400)
    path = with_codestream(tmp_path, "GDCMJ2K_TextGBR.dcm", lambda frame: frame[:12] + bytes(8) + frame[20:])
    with pytest.raises(DecodeError, match="got: a damaged JP2 header"):
        decode.read(path)


def test_lossless_jpeg_equals_its_original(tmp_path):
    """Grey 16-bit, signed and not; encoded by libjpeg-turbo."""
    for dtype, bits in ((np.uint16, 16), (np.int16, 16), (np.int16, 12), (np.uint16, 12)):
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype == np.int16 else (0, 2**bits)
        stored = RNG.integers(low, high, (30, 40)).astype(dtype)
        unsigned = stored.astype(np.uint16) & np.uint16(2**bits - 1)
        codestream = imagecodecs.jpeg8_encode(unsigned, lossless=True, bitspersample=bits)
        path = make(tmp_path, stored, BitsStored=bits, HighBit=bits - 1)
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        dataset.PixelData = pydicom.encaps.encapsulate([codestream])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
        close(decode.read(path, window="full"), (stored.astype(float) - low) / (high - 1 - low))


@pytest.mark.parametrize("name", ["rtplan.dcm", "reportsi.dcm", "dicomdirtests/DICOMDIR"])
def test_files_without_pixels(name):
    with pytest.raises(NoImageError, match="Expected a DICOM image, got a file without pixel data"):
        decode.read(embedded(name))


@pytest.mark.parametrize("kept", [98, 980, 2940])
def test_a_file_cut_off_before_its_pixels_is_broken_and_not_passed_over(tmp_path, kept):
    content = Path(embedded("CT_small.dcm")).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[:kept])
    with pytest.raises(DecodeError) as caught:
        decode.read(str(tmp_path / "cut.dcm"))
    assert not isinstance(caught.value, NoImageError)
    assert list(addresses_of(str(tmp_path))) == [str(tmp_path / "cut.dcm")]


def test_unsupported_codec_is_named(tmp_path):
    data = Path(embedded("CT_small.dcm")).read_bytes()
    path = tmp_path / "a.dcm"
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"))
    with pytest.raises(
        DecodeError, match=r"Expected a transfer syntax that can be decoded, got 1\.2\.840\.10008\.9\.9\.9"
    ):
        decode.read(str(path))


def test_oversized_frames_are_refused_by_their_header(tmp_path):
    path = make(tmp_path, ramp(), Rows=65535, Columns=65535)
    with pytest.raises(DecodeError, match="Expected at most 100 megapixels, got 65535 x 65535\\. Cut"):
        decode.read(path)


def test_errors_name_no_patient(tmp_path):
    faults = {"Rows": 0, "BitsStored": 77, "BitsAllocated": 12, "PhotometricInterpretation": "MONOCHROME7"}
    for keyword, value in faults.items():
        with pytest.raises(DecodeError) as caught:
            decode.read(make(tmp_path, ramp(), **{keyword: value}))
        assert "Doe" not in str(caught.value) and "4711" not in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path / "a.dcm"))


def test_warnings_of_pydicom_do_not_leak():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode.read(embedded("MR_small_padded.dcm")).shape == (1, 64, 64)
        with pytest.raises(DecodeError, match="Expected a number as NumberOfFrames"):
            decode.read(embedded("badVR.dcm"))


@pytest.mark.parametrize(
    "element, words",
    [
        ("TransferSyntaxUID", "a transfer syntax that can be decoded, got an unknown one"),
        ("PhotometricInterpretation", r"got: Unknown \(0028,0004\) 'Photometric Interpretation' value '...'"),
        ("RescaleSlope", r"a whole DICOM image, got data that cannot be decoded \(ValueError: .*'...'\)"),
        ("WindowCenter", r"a whole DICOM image, got data that cannot be decoded \(ValueError: .*'...'\)"),
    ],
)
def test_what_stands_in_a_wrong_place_is_not_repeated(tmp_path, element, words):
    """In a damaged file the name of a patient may stand where a description of the pixels is expected."""
    values = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 4, "WindowWidth": 9}
    if element in values:
        values[element] = "77700.15"
    path = Path(make(tmp_path, np.arange(64, dtype=np.uint16).reshape(8, 8), **values))
    old = {"TransferSyntaxUID": b"1.2.840.10008.1.2.1", "PhotometricInterpretation": b"MONOCHROME2"}.get(element)
    old = old or b"77700.15"
    path.write_bytes(path.read_bytes().replace(old, b"Doe^Jane 4711".ljust(len(old))[: len(old)]))
    with pytest.raises(DecodeError, match=words) as caught:
        decode.read(str(path))
    assert not any(word in str(caught.value) for word in ("Doe", "Jane", "4711"))
