import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from csrtrain.data import decode
from csrtrain.data.decode import DecodeError

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 41, 58


def smooth(channels, dtype=np.uint8):
    """A picture without noise, so that lossy codecs stay close: (H,W,C)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [(np.sin(x / (7 + c)) * np.cos(y / (5 + c)) + 1) / 2 for c in range(channels)]
    return (np.stack(planes, -1) * np.iinfo(dtype).max).round().astype(dtype)


def noise(channels, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels), dtype=dtype, endpoint=True)


def picture(channels=3):
    pixels = smooth(channels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def read(tmp_path, name, data, **options):
    return decode.read(saved(tmp_path, name, data), **options)


def as_tensor(array):
    array = np.array(array)
    return torch.from_numpy(np.ascontiguousarray(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)))


def equal(got, want):
    want = as_tensor(want)
    return got.dtype == want.dtype and torch.equal(got, want)


# JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "quality": 30}])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_pillow(tmp_path, channels, options):
    data = encode(picture(channels), "JPEG", **options)
    assert equal(read(tmp_path, "a.jpg", data), Image.open(io.BytesIO(data)))


def test_cmyk_jpeg_equals_pillow(tmp_path):
    data = encode(Image.fromarray(smooth(4), mode="CMYK"), "JPEG", quality=95)
    assert equal(read(tmp_path, "a.jpg", data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_ycck_jpeg_equals_pillow(tmp_path):
    data = imagecodecs.jpeg8_encode(smooth(4), level=95, colorspace="CMYK", outcolorspace="YCCK")
    assert equal(read(tmp_path, "a.jpg", data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tail", [b"", b"\xff\xd9", bytes(4096), bytes(4096) + b"\xff\xd9"])
def test_truncated_jpeg_is_an_error(tmp_path, cut, progressive, tail):
    data = encode(Image.fromarray(noise(3)), "JPEG", progressive=progressive)
    with pytest.raises(DecodeError, match=r"a\.jpg: Expected a whole JPEG image, got damaged or missing data"):
        read(tmp_path, "a.jpg", data[: int(cut * len(data))] + tail)


def test_jpeg_with_bytes_after_the_last_block_is_read(tmp_path):
    data = encode(picture(), "JPEG")
    whole = read(tmp_path, "a.jpg", data)
    assert torch.equal(read(tmp_path, "inside.jpg", data[:-2] + bytes(7) + data[-2:]), whole)
    assert torch.equal(read(tmp_path, "behind.jpg", data + b"anything"), whole)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_equals_pillow(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(picture(), kind, exif=exif.tobytes() if kind != "TIFF" else exif, **options)
    want = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert equal(read(tmp_path, "a.bin", data), want)


def test_damaged_exif_is_passed_over(tmp_path):
    data = encode(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\0\x01")
    assert read(tmp_path, "a.jpg", data).shape == (3, HEIGHT, WIDTH)


# PNG


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_8_bit(tmp_path, channels):
    pixels = noise(channels)
    data = imagecodecs.png_encode(pixels if channels > 1 else pixels[..., 0].copy())
    assert equal(read(tmp_path, "a.png", data), pixels[..., : 1 if channels < 3 else 3])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_16_bit_is_not_clipped(tmp_path, channels):
    pixels = noise(channels, np.uint16)
    data = imagecodecs.png_encode(pixels if channels > 1 else pixels[..., 0].copy())
    got = read(tmp_path, "a.png", data)
    assert got.dtype == torch.float32
    want = pixels[..., : 1 if channels < 3 else 3]
    assert torch.equal((got * 65535).round().to(torch.int32), as_tensor(want.astype(np.int32)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_png(tmp_path, bits):
    image = picture().quantize(2**bits)
    assert equal(read(tmp_path, "a.png", encode(image, "PNG", bits=bits)), image.convert("RGB"))


@pytest.mark.parametrize("transparency", [3, bytes(range(64))])
def test_alpha_of_a_palette_is_dropped(tmp_path, transparency):
    image = picture().quantize(64)
    data = encode(image, "PNG", transparency=transparency)
    assert equal(read(tmp_path, "a.png", data), image.convert("RGB"))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_png_below_8_bits(tmp_path, bits):
    values = RNG.integers(0, 2**bits, (HEIGHT, 64), dtype=np.uint8)
    shifts = np.arange(8 // bits)[::-1] * bits
    packed = (values.reshape(HEIGHT, -1, 8 // bits) << shifts).sum(-1).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 64, HEIGHT, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert equal(read(tmp_path, "a.png", data), (values * (255 // (2**bits - 1))).astype(np.uint8))


def test_damaged_png_is_an_error(tmp_path):
    data = bytearray(encode(Image.fromarray(noise(3)), "PNG"))
    for name, damaged in {"cut.png": data[:2000], "flip.png": data[:2000] + b"\0\1\2\3" + data[2004:]}.items():
        with pytest.raises(DecodeError, match=rf"{name}: Expected a whole image, got data that cannot be decoded"):
            read(tmp_path, name, damaged)


# JPEG 2000, BMP, WebP, GIF


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["jp2", "j2k"])
def test_jpeg2000(tmp_path, form, channels, bits):
    pixels = noise(channels, np.uint8 if bits == 8 else np.uint16) >> (16 - bits if bits > 8 else 0)
    pixels = pixels[..., 0].copy() if channels == 1 else pixels
    data = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=form, bitspersample=bits)
    got = read(tmp_path, "a.jp2", data)
    if bits == 8:
        assert equal(got, pixels)
    else:
        assert got.dtype == torch.float32
        assert torch.equal((got * (2**bits - 1)).round().to(torch.int32), as_tensor(pixels.astype(np.int32)))
    with pytest.raises(DecodeError, match="cannot be decoded"):
        read(tmp_path, "cut.jp2", data[: len(data) // 2])


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("BMP", "RGB", {}),
        ("BMP", "L", {}),
        ("BMP", "P", {}),
        ("BMP", "1", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 50}),
        ("GIF", "P", {}),
        ("GIF", "L", {}),
    ],
)
def test_pillow_formats(tmp_path, kind, mode, options):
    image = picture().quantize(100) if mode == "P" else picture().convert(mode)
    data = encode(image, kind, **options)
    opened = Image.open(io.BytesIO(data))
    assert equal(read(tmp_path, "a.bin", data), opened.convert("L" if opened.mode in ("1", "L") else "RGB"))
    with pytest.raises(DecodeError, match="cut.bin: Expected a whole image"):
        read(tmp_path, "cut.bin", data[: 2 * len(data) // 3])


def test_alpha_of_webp_is_dropped(tmp_path):
    data = encode(Image.fromarray(np.dstack([noise(3), np.full((HEIGHT, WIDTH), 9, np.uint8)])), "WEBP", lossless=True)
    assert equal(read(tmp_path, "a.webp", data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_first_frame_of_an_animation(tmp_path, kind):
    first, second = picture(), ImageOps.invert(picture())
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert equal(read(tmp_path, "a.bin", data), Image.open(io.BytesIO(data)).convert("RGB"))


# TIFF


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "lzw"}, {"tile": (16, 16)}])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff_8_and_16_bit(tmp_path, options, byteorder):
    grey, color = noise(1)[..., 0], noise(3, np.uint16)
    assert equal(read(tmp_path, "a.tif", tiff(grey, photometric="minisblack", byteorder=byteorder, **options)), grey)
    got = read(tmp_path, "b.tif", tiff(color, photometric="rgb", byteorder=byteorder, **options))
    assert got.dtype == torch.float32
    assert torch.equal((got * 65535).round().to(torch.int32), as_tensor(color.astype(np.int32)))


def test_tiff_planar_bigtiff_alpha_and_many_channels(tmp_path):
    color = noise(3)
    planar = tiff(np.moveaxis(color, -1, 0), photometric="rgb", planarconfig="separate", bigtiff=True)
    assert equal(read(tmp_path, "planar.tif", planar), color)
    alpha = tiff(noise(4), photometric="rgb", extrasamples=["unassalpha"])
    assert read(tmp_path, "alpha.tif", alpha).shape == (3, HEIGHT, WIDTH)
    five = noise(5)
    assert equal(read(tmp_path, "five.tif", tiff(five, photometric="minisblack", planarconfig="contig")), five)


def test_tiff_photometrics_equal_pillow(tmp_path):
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA"):
        image = Image.fromarray(smooth(4), mode="CMYK") if mode == "CMYK" else picture().convert(mode)
        want = image.convert("L" if mode in ("1", "L", "LA") else "RGB")
        assert equal(read(tmp_path, f"{mode}.tif", encode(image, "TIFF")), want), mode
    inverted = tiff(noise(1)[..., 0], photometric="miniswhite")
    assert equal(read(tmp_path, "w.tif", inverted), 255 - tifffile.imread(io.BytesIO(inverted)))
    with pytest.raises(DecodeError, match="Expected a grey, RGB, CMYK or palette TIFF, got CIELAB. Save it as RGB"):
        read(tmp_path, "lab.tif", encode(picture().convert("LAB"), "TIFF"))


def test_tiff_ranges(tmp_path):
    """Floats in [0,1] stay; other floats, signed and 32-bit integers go from smallest to largest."""
    unit = RNG.random((HEIGHT, WIDTH), dtype=np.float32)
    assert torch.equal(read(tmp_path, "unit.tif", tiff(unit)), torch.from_numpy(unit)[None])
    for dtype in (np.int16, np.int32, np.uint32, np.float32, np.float64):
        values = (RNG.random((HEIGHT, WIDTH)) * 3000 + (0 if dtype == np.uint32 else -1000)).astype(dtype)
        path = saved(tmp_path, f"{np.dtype(dtype)}.tif", tiff(values))
        exact = torch.from_numpy(values.astype(np.float64))[None]
        want = (exact - exact.min()) / (exact.max() - exact.min())
        assert decode.read(path).dtype == torch.float32
        torch.testing.assert_close(decode.read(path).double(), want, atol=1e-7, rtol=0)
        windowed = ((exact - 400) / 200).clip(0, 1)
        torch.testing.assert_close(decode.read(path, window=(500.0, 200.0)).double(), windowed, atol=1e-7, rtol=0)


def test_tiff_pages_without_thumbnails(tmp_path):
    pages = [noise(1)[..., 0] for _ in range(3)]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in pages:
            writer.write(page, photometric="minisblack")
            writer.write(page[::2, ::2], photometric="minisblack", subfiletype=1)
    path = saved(tmp_path, "a.tif", buffer.getvalue())
    assert decode.count_frames(path) == 3
    for k, page in enumerate(pages):
        assert equal(decode.read(f"{path}#{k}"), page)
    with pytest.raises(DecodeError, match="Expected a frame number, got a file with 3 frames"):
        decode.read(path)
    with pytest.raises(DecodeError, match="Expected a frame from 0 to 2, got 3"):
        decode.read(f"{path}#3")


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_truncated_tiff_is_an_error(tmp_path, compression):
    """The directory stands before the pixels here, so it is the pixels that are missing."""
    data = tiff(noise(3), photometric="rgb", compression=compression)
    with pytest.raises(DecodeError, match="Expected a whole TIFF file, got one that ends before its pixel data do"):
        read(tmp_path, "a.tif", data[:-500])


def test_tiff_tiles_that_claim_more_pixels_are_refused(tmp_path):
    data = bytearray(tiff(noise(3), photometric="rgb", compression="jpeg", tile=(16, 16)))
    at = data.rindex(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    with pytest.raises(DecodeError, match="Expected tiles up to 58 x 41, got 60000 x 60000"):
        read(tmp_path, "a.tif", data)
    with pytest.raises(DecodeError, match="Expected TIFF compressed by NONE, LZW, .*, got JPEG2000"):
        read(tmp_path, "b.tif", tiff(noise(3), photometric="rgb", compression="jpeg2000"))


@pytest.mark.parametrize("compression", ["packbits", "lzma", "zstd", "webp", "jpeg"])
def test_tiff_codecs(tmp_path, compression):
    pixels = smooth(3)
    options = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    got = read(tmp_path, "a.tif", tiff(pixels, photometric="rgb", compression=compression, **options))
    if compression == "jpeg":
        assert (got.int() - as_tensor(pixels.astype(np.int32))).abs().float().mean() < 3
    else:
        assert equal(got, pixels)


def test_tiff_with_nan_is_an_error(tmp_path):
    values = np.ones((HEIGHT, WIDTH), dtype=np.float32)
    values[2, 3] = np.nan
    values[4, 5] = np.inf
    with pytest.raises(
        DecodeError, match=r"a\.tif: Expected finite pixel values, got 2 of 2378 that are NaN or infinite"
    ):
        read(tmp_path, "a.tif", tiff(values))


# Size caps: the headers claim more than there is, so that decoding first would fail otherwise or run out of memory


def bombs():
    png = bytearray(encode(picture(), "PNG"))
    png[16:24] = struct.pack(">II", 60000, 60000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(encode(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    bmp = bytearray(encode(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 12000, 12000)
    gif = bytearray(encode(picture(), "GIF"))
    gif[6:10] = struct.pack("<HH", 12000, 12000)
    jp2 = bytearray(imagecodecs.jpeg2k_encode(noise(3), level=0, codecformat="j2k"))
    jp2[8:16] = struct.pack(">II", 60000, 60000)
    flat = np.zeros((10500, 10500), np.uint8)
    return {
        "png": png,
        "jpg": jpeg,
        "bmp": bmp,
        "gif": gif,
        "j2k": jp2,
        "tif": tiff(flat, compression="zlib", photometric="minisblack"),
        "webp": encode(Image.fromarray(flat), "WEBP", lossless=True, method=0),
    }


@pytest.fixture(scope="module")
def bomb_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    return {name: saved(folder, f"bomb.{name}", data) for name, data in bombs().items()}


@pytest.mark.parametrize("name", ["png", "jpg", "bmp", "gif", "j2k", "tif", "webp"])
def test_oversized_images_are_refused_by_their_header(bomb_files, name):
    match = rf"bomb\.{name}: Expected at most 100 megapixels, got \d+ x \d+\. Cut the image"
    with pytest.raises(DecodeError, match=match):
        decode.read(bomb_files[name])


def test_cap_is_a_setting(tmp_path):
    data = encode(picture(), "PNG")
    with pytest.raises(DecodeError, match="at most 0.002 megapixels, got 58 x 41"):
        read(tmp_path, "a.png", data, max_megapixels=0.002)
    assert read(tmp_path, "a.png", data, max_megapixels=0.0024).shape == (3, HEIGHT, WIDTH)
