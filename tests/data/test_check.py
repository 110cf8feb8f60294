import io

import imagecodecs
import nibabel
import numpy as np
import pytest
from PIL import Image

from csrtrain.data.check import check_data, format_report

RNG = np.random.default_rng(0)


def pixels(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    first = pixels(100, 120)
    files = {
        "a.png": png(first),
        "b/copy.png": imagecodecs.png_encode(first, level=9),  # other bytes, same pixels
        "c.png": png(pixels(80, 90, 1)),
        "deep.png": imagecodecs.png_encode(RNG.integers(0, 65536, (70, 75, 3), dtype=np.uint16)),
        "flat.png": png(np.full((64, 64, 1), 7, np.uint8)),
        "flat2.png": png(np.full((64, 64, 1), 7, np.uint8)),
        "small.png": png(pixels(20, 300)),
        "broken.jpg": b"\xff\xd8\xff" + bytes(50),
        "empty.tif": b"",
    }
    (tmp_path / "data" / "b").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "data" / name).write_bytes(data)
    volume = nibabel.Nifti1Image(RNG.integers(0, 1000, (64, 66, 3)).astype(np.int16), np.eye(4))
    nibabel.save(volume, tmp_path / "data" / "v.nii")
    return tmp_path / "data"


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_and_findings(folder, tmp_path, workers):
    report = check_data(str(folder), workers=workers, cache_dir=str(tmp_path / "cache"))
    assert report.images == 12
    assert report.kinds == {"PNG": 7, "NIfTI": 3}
    assert report.channels == {3: 4, 1: 6}
    assert report.depths == {"8-bit": 6, "deeper": 4}
    assert report.heights == (20, 66, 100) and report.widths == (64, 69, 300)
    assert list(report.broken) == [str(folder / "broken.jpg"), str(folder / "empty.tif")]
    assert report.broken[str(folder / "empty.tif")].startswith("Expected an image, got an empty file")
    assert report.duplicates == [[str(folder / "a.png"), str(folder / "b" / "copy.png")]]
    assert report.small == [str(folder / "small.png")]
    assert report.empty == [str(folder / "flat.png"), str(folder / "flat2.png")]


def test_report_in_words(folder, tmp_path):
    text = format_report(check_data(str(folder), cache_dir=str(tmp_path / "cache")))
    for words in (
        f"12 images in {folder}: 10 can be read, 2 cannot.",
        "Formats: PNG: 7, NIfTI: 3",
        "Height: 20 to 100 pixels, median 66",
        f"{folder}/empty.tif: Expected an image, got an empty file (0 bytes).",
        f"{folder}/a.png = {folder}/b/copy.png",
        "Hint: images differ in the number of channels.",
        "Hint: 1 images are copies of others.",
        "at least 2.",
    ):
        assert words in text


def test_frames_of_a_file_are_listed_once(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((70, 70, 9), np.float32), np.eye(4)), tmp_path / "v.nii")
    text = format_report(check_data(str(tmp_path), cache_dir=str(tmp_path / "cache")))
    assert f"Next to nothing to see (1):\n  {tmp_path}/v.nii (9 frames)" in text
    assert "Hint" in text and "Cannot be read" not in text


def test_a_sound_folder_and_long_lists(tmp_path):
    for k in range(25):
        (tmp_path / f"{k:02d}.png").write_bytes(png(pixels(40, 40)))
    text = format_report(check_data(str(tmp_path), min_size=32, cache_dir=str(tmp_path / "cache")))
    assert "25 images" in text and "Hint" not in text and "pixels (" not in text
    text = format_report(check_data(str(tmp_path), min_size=41, cache_dir=str(tmp_path / "cache")))
    assert "A side below 41 pixels (25):" in text and "... and 5 more" in text


def test_csv_column(folder, tmp_path):
    (folder / "list.csv").write_text("file\na.png\nc.png\n")
    report = check_data(str(folder / "list.csv"), column="file", cache_dir=str(tmp_path / "cache"))
    assert report.images == 2 and not report.broken
