import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from csrtrain.data import decode
from csrtrain.data.decode import DecodeError


def png(height=5, width=7):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def saved(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "got"),
    [
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", r"PostScript \(EPS\) disguised as \.png"),
        ("a.jpg", b"%PDF-1.7\n" + bytes(100), r"a PDF document disguised as \.jpg"),
        ("a.jpg", b"<!DOCTYPE html><html>404</html>", r"a web page disguised as \.jpg"),
        ("a.tif", b"PK\x03\x04" + bytes(100), r"a ZIP archive disguised as \.tif"),
        ("a.bmp", b"image,mos\n" * 20, r"text disguised as \.bmp"),
        ("a.dcm", b"version https://git-lfs.github.com/spec/v1\n", r"a Git LFS pointer, not the file itself disguised"),
        ("a.png", bytes(1000), r"something else disguised as \.png"),
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(100), "HEIC or AVIF"),
    ],
)
def test_disguised_files_are_refused(tmp_path, name, content, got):
    match = rf"{name}: Expected JPEG, .* or NIfTI by its content, got {got}.*\. Convert or remove the file\."
    with pytest.raises(DecodeError, match=match):
        decode.read(saved(tmp_path, name, content))


def test_content_counts_not_the_name(tmp_path):
    path = saved(tmp_path, "really_a_png.jpg", png())
    assert decode.kind_of(path) == "PNG"
    assert decode.read(path).shape == (3, 5, 7)


def test_what_is_no_file(tmp_path):
    with pytest.raises(DecodeError, match=r"empty\.jpg: Expected an image, got an empty file \(0 bytes\)"):
        decode.read(saved(tmp_path, "empty.jpg", b""))
    with pytest.raises(DecodeError, match=r"missing\.jpg: Expected a file, got nothing at this path"):
        decode.read(str(tmp_path / "missing.jpg"))
    with pytest.raises(DecodeError, match="Expected a file, got a folder. Name an image file"):
        decode.read(str(tmp_path))
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    with pytest.raises(DecodeError, match="Expected a file, got a device or pipe"):
        decode.read(str(pipe))


def test_a_file_far_larger_than_the_cap_is_not_read(tmp_path):
    path = tmp_path / "a.jpg"
    with open(path, "wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(2**27)
    with pytest.raises(DecodeError, match="Expected at most 1 megapixels, got a file of 134217728 bytes"):
        decode.read(str(path), max_megapixels=1.0)


def test_frame_numbers(tmp_path):
    path = saved(tmp_path, "a.png", png())
    assert decode.count_frames(path) == 1
    assert torch.equal(decode.read(f"{path}#0"), decode.read(path))
    with pytest.raises(DecodeError, match=r"a\.png#1: Expected frame 0 of a file with one frame, got frame 1"):
        decode.read(f"{path}#1")


def test_addresses(tmp_path):
    named = saved(tmp_path, "scan#12", png())
    assert decode.split(named) == (named, None)
    assert decode.split("/data/a.nii#12") == ("/data/a.nii", 12)
    assert decode.split("/data/a#b.png") == ("/data/a#b.png", None)
    assert decode.split("/data/a.png") == ("/data/a.png", None)
    assert decode.read(named).shape == (3, 5, 7)


def test_supported_files(tmp_path):
    for name in ("a.JPG", "b.tiff", "c.nii.gz", "d.DCM", "e.j2k"):
        assert decode.is_supported(str(tmp_path / name))
    for name in ("a.csv", "b.txt", "c.gz", "d.npy", "README"):
        assert not decode.is_supported(saved(tmp_path, name, b"something"))
    dicom = bytes(128) + b"DICM"
    assert decode.is_supported(saved(tmp_path, "IM0001", dicom))
    assert decode.is_supported(saved(tmp_path, "1.2.840.10008", dicom))
    assert not decode.is_supported(saved(tmp_path, "notes.md", dicom))


def test_results_can_be_written_to(tmp_path):
    image = decode.read(saved(tmp_path, "a.png", png()))
    image[:] = 0
    assert image.sum() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_channels(dtype):
    color = torch.randint(0, 256, (3, 6, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    want = torch.from_numpy(np.array(Image.fromarray(color.permute(1, 2, 0).numpy()).convert("L")))[None]
    if dtype == torch.float32:
        torch.testing.assert_close(decode.to_channels(color / 255, 1), want / 255, atol=0.51 / 255, rtol=0)
    else:
        assert torch.equal(decode.to_channels(color, 1), want)
    grey = color[:1].to(dtype)
    assert torch.equal(decode.to_channels(grey, 3), torch.cat([grey] * 3))
    assert decode.to_channels(color, 3) is color
    with pytest.raises(ValueError, match="Expected 3 channels, got 5. Set data.channels to 5"):
        decode.to_channels(torch.zeros(5, 6, 5), 3)
