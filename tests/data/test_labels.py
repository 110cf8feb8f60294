import os

import pytest

from benchmarks import harness
from csrtrain.data.labels import read_labels


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "Expected rows of images in .*labels.csv, got no column names"),
        ("image,kind\na.png,1\n", "Expected column 'class' in .*labels.csv, got image, kind"),
        ("image,class\n", "Expected a label and a group in every row"),
        ("image,class\na.png,\n", "got none in rows .1."),
    ],
)
def test_what_is_missing_is_named(tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_labels(str(tmp_path / "labels.csv"), "class", None)


def test_labels_and_groups(tmp_path):
    (tmp_path / "labels.csv").write_text("image,class,patient\na,cat,p2\nb, dog ,p1\nc,cat,p2\n")
    found = read_labels(str(tmp_path / "labels.csv"), "class", "patient")
    assert found.values.tolist() == [0, 1, 0] and found.groups.tolist() == [1, 0, 1] and found.is_class
    (tmp_path / "labels.csv").write_text("class\n" + "".join(f"{i / 2}\n" for i in range(30)))
    found = read_labels(str(tmp_path / "labels.csv"), "class", None)
    assert found.values.tolist() == [i / 2 for i in range(30)] and not found.is_class and len(set(found.groups)) == 30


def test_columns_twice_long_labels_and_pipes(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("class,class\n1,2\n")
    with pytest.raises(ValueError, match="Expected different column names in .*labels.csv, got several class"):
        read_labels(str(path), "class", None)
    path.write_text("class\n" + "x" * 100_000 + "\n" + "a\nb\n" * 5000)  # as an array of text: 4 GB
    assert harness.peak_memory(lambda: read_labels(str(path), "class", None)) < 50 * 2**20
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="a device, pipe or socket for .*pipe.csv"):
        read_labels(str(tmp_path / "pipe.csv"), "class", None)
