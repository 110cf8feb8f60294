import numpy as np
import pytest

from csrtrain.data.manifest import read_manifest
from csrtrain.data.splits import (
    check_manifests_apart,
    check_rows,
    native_split,
    random_splits,
    with_copies_together,
)


@pytest.fixture
def rated(tmp_path):
    """A function from rows (name, group, split) to a manifest; each file has its own content."""

    def make(rows, name="m.csv"):
        lines = ["path,mos,group,split"]
        for k, (file, group, split) in enumerate(rows):
            if not (tmp_path / file).exists():
                (tmp_path / file).write_text(f"{file:>20}")
            lines.append(f"{file},{k},{group},{split}")
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return read_manifest(str(tmp_path / name))

    return make


ROWS = [("a.png", "1", "train"), ("b.png", "1", "train"), ("c.png", "2", "val"), ("d.png", "3", "test")]


def test_random_splits_keep_groups_whole():
    groups = np.random.default_rng(0).integers(0, 23, 400)
    found = random_splits(groups, 10)
    for split in found:
        assert not set(groups[split.train]) & set(groups[split.test])
        assert sorted([*split.train, *split.test]) == list(range(400))
        assert len(set(groups[split.test])) == round(0.2 * len(set(groups)))
    assert len({tuple(split.test) for split in found}) == 10
    for split, again in zip(found, random_splits(groups, 10), strict=True):
        np.testing.assert_array_equal(split.test, again.test)
    with pytest.raises(ValueError, match="at least 5 groups of images to split, got 4"):
        random_splits(np.arange(4))


def test_the_split_of_a_manifest(rated):
    split = native_split(rated(ROWS))
    assert split.train.tolist() == [0, 1] and split.test.tolist() == [3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("e.png", "1", "test"), "the same group, reference or file in lines 2, 3, 6"),
        (("e.png", "2", "test"), "lines 4, 6"),  # val is a part too
        (("copy.png", "9", "test"), "the same file content in lines 2, 6"),
    ],
)
def test_what_splits_share_is_refused(rated, tmp_path, row, message):
    rated(ROWS)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    with pytest.raises(ValueError, match=message):
        native_split(rated([*ROWS, row]))


def test_a_file_under_two_names_is_one(rated, tmp_path):
    rated(ROWS)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match="line 6 has the same image as line 2"):
        check_rows(rated([*ROWS, ("link.png", "1", "train")]))
    check_rows(rated(ROWS))


def test_no_split_to_judge_on(rated, tmp_path):
    with pytest.raises(ValueError, match="rows of split test"):
        native_split(rated(ROWS[:3]))
    (tmp_path / "plain.csv").write_text("path,mos\na.png,1\n")
    with pytest.raises(ValueError, match="Expected a column split in"):
        native_split(read_manifest(str(tmp_path / "plain.csv")))


def test_manifests_that_share_an_image(rated, tmp_path):
    first = rated(ROWS)
    check_manifests_apart([first, rated([("x.png", "1", "train")], "n.csv")])
    (tmp_path / "copy.png").write_bytes((tmp_path / "b.png").read_bytes())
    second = rated([("x.png", "1", "train"), ("copy.png", "1", "train")], "n.csv")
    with pytest.raises(ValueError, match="the same file content in lines 3 of m.csv, 3 of n.csv"):
        check_manifests_apart([first, second])


@pytest.fixture
def referenced(tmp_path):
    """A function from rows (name, reference, split) to a manifest; `copy.png` has the content of `r0.png`."""
    for name in ("r0", "r1", "a", "b", "c"):
        (tmp_path / f"{name}.png").write_text(f"{name:>20}")
    (tmp_path / "copy.png").write_bytes((tmp_path / "r0.png").read_bytes())

    def make(rows, name="m.csv"):
        lines = ["path,mos,reference,split", *(f"{file},{k},{r},{split}" for k, (file, r, split) in enumerate(rows))]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return read_manifest(str(tmp_path / name))

    return make


def test_copies_of_references_are_found_too(referenced):
    rows = [("a.png", "r0.png", "train"), ("b.png", "copy.png", "test"), ("c.png", "r1.png", "test")]
    with pytest.raises(ValueError, match="the same file content in lines 2, 3"):
        native_split(referenced(rows))
    with pytest.raises(ValueError, match="the same file content in lines 2 of m.csv, 2 of n.csv"):
        check_manifests_apart([referenced(rows[:1]), referenced(rows[1:], "n.csv")])


def test_copies_are_drawn_together(referenced):
    rows = [("a.png", "r0.png", "train"), ("b.png", "r1.png", "train"), ("copy.png", "", "train"), ("c.png", "", "val")]
    manifest = referenced(rows)
    assert manifest.groups.tolist() == [0, 1, 2, 3]
    assert with_copies_together(manifest).groups.tolist() == [0, 1, 0, 2]
