import os

import nibabel
import numpy as np
import pytest
from PIL import Image

from csrtrain.data.pairs import _stem, pairs_of


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Makes images by name, in a folder that paths are relative to; what they show does not matter."""
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.zeros((8, 8), dtype=np.uint8))

    def make(*names):
        for name in names:
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            if name.endswith(".nii.gz"):
                nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, int(name[-8])), dtype=np.int16), np.eye(4)), name)
            else:
                picture.save(name, "PNG")

    return make


def found(*arguments, **options):
    """Image -> reference, relative, and the rows that are refused."""
    pairs, refused = pairs_of(*arguments, **options)
    return {os.path.relpath(x): os.path.relpath(y) if y else "" for x, y in pairs}, refused


def test_the_same_relative_path_comes_first_then_the_same_stem_beside_it_then_anywhere(at):
    at("x/a.png", "x/s/a.png", "x/s/b.png", "x/c.jpeg")
    at("y/a.png", "y/s/a.png", "y/a.bmp", "y/s/b.bmp", "y/t/b.bmp", "y/t/c.png")
    (pairs, refused) = found(["x"], "y")
    assert refused == {}
    assert pairs == {
        "x/a.png": "y/a.png",
        "x/s/a.png": "y/s/a.png",
        "x/s/b.png": "y/s/b.bmp",
        "x/c.jpeg": "y/t/c.png",
    }


def test_a_file_alone_is_found_by_its_name(at):
    at("x/s/a.png", "y/a.png", "y/t/b.png")
    assert found(["x/s/a.png"], "y")[0] == {"x/s/a.png": "y/a.png"}


def test_a_list_is_relative_to_itself(at):
    at("x/s/a.png", "b.png", "y/s/a.png", "y/t/a.png", "y/b.png")
    with open("x/list.txt", "w") as file:
        file.write("s/a.png\n../b.png\n")
    assert found(["x/list.txt"], "y")[0] == {"x/s/a.png": "y/s/a.png", "b.png": "y/b.png"}


def test_what_has_no_reference_is_refused_alone_and_nothing_is_its_own(at):
    at("x/a.png", "x/b.png", "x/y/a.png")
    pairs, refused = found(["x"], "x/y")
    assert pairs == {"x/a.png": "x/y/a.png", "x/b.png": "", "x/y/a.png": ""}
    assert sorted(refused) == [1, 2]
    assert refused[1].endswith("b.png: Expected its reference in x/y, got none of its name. Add it.")


def test_two_that_fit_are_named(at):
    at("x/s/a.png", "y/t/a.png", "y/u/a.bmp")
    with pytest.raises(ValueError, match=r"Expected one reference of .*x/s/a.png in y, got 2: y/t/a.png, y/u/a.bmp"):
        pairs_of(["x"], "y")


@pytest.mark.parametrize(
    ("image", "reference", "wanted"),
    [
        ("x/v3.nii.gz", "y/v3.nii.gz", ["y/v3.nii.gz#0", "y/v3.nii.gz#1", "y/v3.nii.gz#2"]),
        ("x/v3.nii.gz", "y", ["y/v3.nii.gz#0", "y/v3.nii.gz#1", "y/v3.nii.gz#2"]),
        ("x/v3.nii.gz#1", "y", ["y/v3.nii.gz#1"]),
        ("x/v3.nii.gz#1", "y/v2.nii.gz", None),
        ("x/v3.nii.gz", "y/v2.nii.gz#1", ["y/v2.nii.gz#1"] * 3),
        ("x/v3.nii.gz", "y/a.png", ["y/a.png"] * 3),
        ("x/a.png", "y/v2.nii.gz", None),
        ("x/a.png", "y/v1.nii.gz", ["y/v1.nii.gz"]),
    ],
)
def test_frames_meet_the_frames_of_a_reference_with_as_many(at, image, reference, wanted):
    at("x/v3.nii.gz", "x/a.png", "y/v3.nii.gz", "y/v2.nii.gz", "y/v1.nii.gz", "y/a.png")
    pairs, refused = pairs_of([image], reference)
    if wanted is None:
        (wrong,) = refused.values()
        assert "frames in its reference y/v2.nii.gz, as in the image, got 2" in wrong and wrong.startswith(image)
    else:
        assert [y for _, y in pairs] == wanted and refused == {}


def test_rows_of_a_csv_file(at):
    at("m/v3.nii.gz", "m/r3.nii.gz", "m/r2.nii.gz", "m/a.png", "m/b.png")
    with open("m/p.csv", "w") as file:
        file.write(
            "file,reference,mos\nv3.nii.gz,r3.nii.gz,1\nv3.nii.gz#2,a.png,1\nv3.nii.gz,r2.nii.gz,\na.png,b.png,2\n"
        )
    pairs, refused = pairs_of(["m/p.csv"], column="file")
    volume = [(f"m/v3.nii.gz#{k}", f"m/r3.nii.gz#{k}") for k in range(3)]
    assert pairs[:4] == [*volume, ("m/v3.nii.gz#2", "m/a.png")] and pairs[7:] == [("m/a.png", "m/b.png")]
    assert sorted(refused) == [4, 5, 6] and "Expected 3 frames in its reference m/r2.nii.gz" in refused[4]


def test_broken_files_are_left_to_their_reader(at):
    at("x/v3.nii.gz")
    os.makedirs("y")
    with open("y/v3.nii.gz", "wb") as file:
        file.write(b"no volume")
    pairs, refused = pairs_of(["x"], "y")
    assert [y for _, y in pairs] == ["y/v3.nii.gz"] * 3 and refused == {}


@pytest.mark.parametrize(
    ("file", "stem"),
    [("s/a.nii.gz", "s/a"), ("A.JPG", "A"), ("scan.v2.png", "scan.v2"), ("1.2.840", "1.2.840"), ("1.2.dcm", "1.2")],
)
def test_a_part_of_a_uid_is_no_extension(file, stem):
    assert _stem(file) == stem
