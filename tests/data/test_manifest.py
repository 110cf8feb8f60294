import numpy as np
import pytest
from PIL import Image

from csrtrain.data.manifest import inspect_manifest, is_manifest, numbered, read_manifest


@pytest.fixture
def write(tmp_path):
    for name in "abcdef":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")

    def write(text):
        path = tmp_path / "ratings.csv"
        path.write_text(text)
        return str(path)

    return write


def test_rows_are_read_in_their_order(write, tmp_path):
    manifest = read_manifest(
        write("path,mos,split,group,camera\na.png,3.5,train,x,K1\n" + f"{tmp_path}/b.png, 1 ,test,y,K2\n")
    )
    assert manifest.addresses == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert manifest.ratings.tolist() == [3.5, 1.0] and manifest.higher_is_better and len(manifest) == 2
    assert manifest.splits == ["train", "test"] and manifest.references is None
    assert manifest.columns["camera"] == ["K1", "K2"] and manifest.lines == [2, 3]


def test_dmos_other_column_names_and_slices(write, tmp_path):
    manifest = read_manifest(write("image,dmos\na.png#3,10\nb.png,20\n"), path_column="image")
    assert not manifest.higher_is_better and manifest.addresses[0] == str(tmp_path / "a.png#3")
    assert manifest.groups.tolist() == [0, 1] and manifest.splits is None


def test_rows_of_one_reference_or_group_are_one_group(write):
    text = "path,reference,mos,group\na.png,e.png,1,1\nb.png,e.png,2,2\nc.png,f.png,3,2\nd.png,,4,3\nf.png,,5,4\n"
    groups = read_manifest(write(text)).groups
    assert (
        groups[0] == groups[1] == groups[2] == groups[4] != groups[3]
    )  # by reference, by group, by being the reference


@pytest.mark.parametrize(
    "text, words",
    [
        ("path,mos\na.png,1\nb.png,nan\n", "1 faults: line 3: mos is nan"),
        ("path,mos\na.png,1\nb.png,good\n", "line 3: mos is no number, but 'good'"),
        ("path,mos\na.png,1\nb.png,\n", "line 3: mos is no number, but ''"),
        ("path,mos\na.png,1\nb.png\n", "line 3: mos is no number"),
        ("path,mos\na.png,1\nb.png,-1\nc.png,2\n", "line 3: mos is -1, and no other is below 0"),
        ("path,mos\na.png,1\nnone.png,2\n", "line 3: no file none.png"),
        ("path,mos\na.png,1\n,2\n", "line 3: no path"),
        ("path,mos,reference\na.png,1,b.png\nb.png,2,none.png\n", "line 3: no file none.png"),
        ("path,mos,split\na.png,1,train\nb.png,2,trian\n", "line 3: split is 'trian', none of train, val, test"),
        ("path,mos,group\na.png,1,1\nb.png,2,\n", "line 3: no group"),
        ("path,mos\n" + "none.png,1\n" * 8, "8 faults: line 2: .*line 6: no file none.png; and 3 more"),
        ("path,score\na.png,1\n", "Expected one column of ratings, mos .*got path, score"),
        ("path,mos,dmos\na.png,1,2\n", "got mos and dmos"),
        (
            "image,mos\na.png,1\n",
            "Expected a column 'path' of images in .*ratings.csv, got image, mos.*data.path_column",
        ),
        ("path,mos\n", "Expected rows of images"),
        ("path,mos,mos\na.png,1,2\n", "Expected different column names"),
        ("", "Expected rows"),
    ],
)
def test_faults_are_named_by_line(write, text, words):
    with pytest.raises(ValueError, match=words):
        read_manifest(write(text))


def test_a_rating_outside_of_the_scale_is_a_fault_and_minus_one_within_is_none(write):
    with pytest.raises(ValueError, match="line 3: mos 7 is outside of 1 to 5"):
        read_manifest(write("path,mos\na.png,1\nb.png,7\n"), rating_range=(1, 5))
    assert read_manifest(write("path,mos\na.png,-3\nb.png,-1\n")).ratings.tolist() == [-3, -1]
    assert read_manifest(write("path,mos\na.png,2\nb.png,-1\n"), rating_range=(-2, 2)).ratings.tolist() == [2, -1]


def test_inspection_goes_on_after_a_fault(write):
    manifest, problems = inspect_manifest(write("path,mos\nnone.png,1\nb.png,x\nc.png,3\n"))
    assert [problem.line for problem in problems] == [2, 3]
    np.testing.assert_array_equal(manifest.ratings, [1, np.nan, 3])


def test_other_files(tmp_path, write):
    assert is_manifest(write("path,dmos\na.png,1\n")) and not is_manifest(write("path,class\na.png,1\n"))
    assert not is_manifest(str(tmp_path)) and not is_manifest(str(tmp_path / "none.csv"))
    with pytest.raises(FileNotFoundError):
        read_manifest(str(tmp_path / "none.csv"))
    (tmp_path / "open.csv").write_text('path,mos\n"' + "a" * 200_000 + ",1\n")
    with pytest.raises(ValueError, match=r"got .*open.csv, whose line 2 is none \(field larger .*Close its quotes"):
        read_manifest(str(tmp_path / "open.csv"))
    with pytest.raises(ValueError, match="no file a{200}\\.\\.\\.\\. Correct") as caught:
        read_manifest(write("path,mos\n" + "a" * 100_000 + ",1\n"))
    assert len(str(caught.value)) < 1000
    (tmp_path / "latin.csv").write_bytes("path,mos\nbää.png,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="Expected a CSV file in UTF-8, got .*latin.csv"):
        read_manifest(str(tmp_path / "latin.csv"))


@pytest.mark.parametrize(
    "cell, words",
    [
        ("a\0b.png", r"no file a\\x00b.png"),
        ("~\0", r"no file ~\\x00"),
        ("https://example.com/a.png", "https://example.com/a.png is an address, and nothing is fetched from a network"),
        ("\x1b[2Jx.png", r"no file \\x1b\[2Jx.png"),
        ("/dev/zero", "no file /dev/zero"),
        (".", r"no file \."),
        ("x" * 5000, "no file x{200}"),
    ],
)
def test_paths_that_are_none(write, cell, words):
    manifest, problems = inspect_manifest(write(f"path,mos,reference\na.png,1,b.png\n{cell},2,{cell}\n"))
    assert [problem.line for problem in problems] == [3, 3] and len(manifest) == 2
    with pytest.raises(ValueError, match=f"ratings.csv, got 2 faults: line 3: {words}"):
        read_manifest(write(f"path,mos,reference\na.png,1,b.png\n{cell},2,{cell}\n"))


def test_long_names_do_not_make_wide_arrays(write):
    long = "g" * 100_000
    with pytest.raises(ValueError, match="line 3: group has 100000 characters; line 3: type has 100000 characters"):
        read_manifest(write(f"path,mos,group,type\na.png,1,x,y\nb.png,2,{long},{long}\n"))
    names = ["b", "a", "b", long]
    np.testing.assert_array_equal(numbered(names), np.unique(names, return_inverse=True)[1])


def test_rows_of_one_file_are_one_group_however_it_is_named(write, tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "folder").symlink_to(tmp_path)
    text = f"path,mos\na.png,1\nlink.png,2\nfolder/a.png,3\n{tmp_path}/./a.png,4\nb.png,5\n"
    assert read_manifest(write(text)).groups.tolist() == [0, 0, 0, 0, 1]
