import numpy as np
import pytest
import torch
from PIL import Image

from csrtrain.data import decode
from csrtrain.data.comparisons import PairBatch, PairGroups, compare
from csrtrain.data.triplets import TripletData, read_jnd, read_triplets


@pytest.fixture
def write(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcdefg":
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")

    def write(text, name="t.csv"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


HEAD = "reference,p0,p1,judge\n"


def test_triplets_are_read_in_their_order(write, tmp_path):
    text = f"reference,p0,p1,judge,split,note\na.png,b.png,c.png,0.25,train,x\n{tmp_path}/d.png,b.png,c.png,1,test,\n"
    found = read_triplets(write(text))
    assert found.references == [str(tmp_path / "a.png"), str(tmp_path / "d.png")] and len(found) == 2
    assert found.p0[0] == str(tmp_path / "b.png") and found.p1[0] == str(tmp_path / "c.png")
    assert found.judge.tolist() == [0.25, 1] and found.splits.tolist() == ["train", "test"]
    assert found.columns["note"] == ["x", ""] and found.groups[0] != found.groups[1]


def test_rows_of_one_reference_or_group_are_one_group(write):
    rows = "a.png,b.png,c.png,0,1\na.png,d.png,c.png,0,2\ne.png,b.png,c.png,0,2\nf.png,b.png,c.png,0,3\n"
    groups = read_triplets(write("reference,p0,p1,judge,group\n" + rows)).groups
    assert groups[0] == groups[1] == groups[2] != groups[3]  # not by p0, which they share
    assert read_triplets(write(HEAD + "a.png,b.png,c.png,0\n")).splits.tolist() == ["train"]


def test_the_digest_is_of_all_columns(write):
    one = read_triplets(write(HEAD + "a.png,b.png,c.png,0\n")).digest
    assert one == read_triplets(write(HEAD + "a.png,b.png,c.png,0\n")).digest
    assert one != read_triplets(write(HEAD + "a.png,b.png,c.png,1\n")).digest


def test_jnd_pairs(write, tmp_path):
    text = "p0,p1,same,subset\na.png,b.png,0.5,blur\na.png,c.png,1,noise\nd.png,c.png,0,noise\n"
    found = read_jnd(write(text))
    assert found.same.tolist() == [0.5, 1, 0] and found.subsets == ["blur", "noise", "noise"] and len(found) == 3
    assert found.p1[2] == str(tmp_path / "c.png") and found.groups[0] == found.groups[1] != found.groups[2]
    assert read_jnd(write("p0,p1,same\na.png,b.png,0.5\n")).subsets == [""]


@pytest.mark.parametrize(
    "rows, words",
    [
        ("a.png,b.png,c.png,x\n", "1 faults: line 2: judge is no number, but 'x'"),
        ("a.png,b.png,c.png,0\na.png,b.png,c.png,1.5\n", "line 3: judge is 1.5, no share of people, 0 to 1"),
        ("a.png,b.png,c.png,nan\n", "line 2: judge is nan, no share"),
        ("a.png,none.png,c.png,1\n", "line 2: no file none.png"),
        (",b.png,c.png,1\n", "line 2: no reference"),
        ("a.png,b.png,,1\n", "line 2: no p1"),
        ("a.png,b.png,c.png\n", "line 2: judge is no number, but ''"),
        ("a.png,b.png,c.png,2\n" * 7, "7 faults: line 2: .*line 6: .*; and 2 more. Correct them"),
    ],
)
def test_faults_are_named_by_line(write, rows, words):
    with pytest.raises(ValueError, match=words):
        read_triplets(write(HEAD + rows))


def test_other_faults(write, tmp_path):
    with pytest.raises(ValueError, match="Expected columns reference, p0, p1, judge in .*t.csv, got p0, p1.*Add refer"):
        read_triplets(write("p0,p1\na.png,b.png\n"))
    with pytest.raises(ValueError, match="Expected columns p0, p1, same in .*t.csv, got p0, p1. Add same"):
        read_jnd(write("p0,p1\na.png,b.png\n"))
    with pytest.raises(ValueError, match="line 2: split is 'trian'.*line 3: no group"):
        read_triplets(
            write("reference,p0,p1,judge,split,group\na.png,b.png,c.png,0,trian,1\na.png,b.png,c.png,0,val,\n")
        )
    with pytest.raises(FileNotFoundError):
        read_triplets(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="Expected rows of split train in .*t.csv"):
        TripletData(write("reference,p0,p1,judge,split\na.png,b.png,c.png,0,val\n")).setup()
    with pytest.raises(ValueError, match="Expected data.batch_size >= 2"):
        TripletData("t.csv", batch_size=1)


def test_distinct_pairs_have_no_direction():
    compared = compare(["a", "a", "b", "c"], ["b", "c", "a", "c"], ["c", "b", "d", "a"])
    pairs = [{compared.addresses[i] for i in pair} for pair in compared.pairs]
    assert sorted(map(sorted, pairs)) == [["a", "b"], ["a", "c"], ["b", "d"], ["c"]]
    rows = [[{"a", "b"}, {"a", "c"}], [{"a", "c"}, {"a", "b"}], [{"a", "b"}, {"b", "d"}], [{"c"}, {"a", "c"}]]
    assert [[pairs[k] for k in row] for row in compared.of_rows] == rows
    shares = compared.shares(2)
    assert sorted(np.concatenate(shares)) == [0, 1, 2, 3] and len(shares) == 4


@pytest.mark.parametrize("most", [2, 7, 50])
@pytest.mark.parametrize("kind", ["apart", "versions", "all"])
def test_shares_hold_few_images_twice(kind, most):
    rows = {
        "apart": [(f"r{k}", f"p{k}", f"q{k}") for k in range(300)],
        "versions": [(f"r{k // 40}", f"{k // 40}-{k % 40}", f"{k // 40}-{(k + 1) % 40}") for k in range(200)],
        "all": [(f"{i}", f"{j}", f"{(j + 1) % 40}") for i in range(40) for j in range(40)],
    }[kind]
    compared = compare(*zip(*rows, strict=True))
    shares = compared.shares(most)
    assert sorted(np.concatenate(shares)) == list(range(len(compared.pairs)))
    sizes = [len(np.unique(compared.pairs[share])) for share in shares]
    assert max(sizes) <= most
    if most == 50:
        assert sum(sizes) <= {"apart": 1.1 * 900, "versions": 1.1 * 205, "all": 2.2 * 40}[kind]


def compared_by(batches):
    """The images of each pair, by its number."""
    return {
        pair: (batch.images[i], batch.images[j])
        for batch in batches
        for pair, i, j in zip(batch.pairs, batch.left, batch.right, strict=True)
    }


ROWS = HEAD + "a.png,b.png,c.png,0\na.png,d.png,b.png,0.5\ne.png,a.png,f.png,1\n"


def test_a_pass_reads_an_image_once_and_gives_every_pair_once(write, tmp_path):
    data = TripletData(write(ROWS), workers=0)
    data.setup()
    found = list(data.train_dataloader())
    assert [len(batch.images) for batch in found] == [6] and not any(batch.broken for batch in found)
    assert sorted(pair for batch in found for pair in batch.pairs) == list(range(5))
    pairs, compared = compared_by(found), data.comparisons
    for row, names in enumerate(["abc", "adb", "eaf"]):
        for k, name in enumerate(names[1:]):
            for image, of in zip(pairs[compared.of_rows[row, k]], (names[0], name), strict=True):
                assert torch.equal(image, decode.read(str(tmp_path / f"{of}.png")))
    assert data.describe()["images"] == 6 and data.describe()["triplets"] == 3


def test_batches_hold_the_same_pairs_whatever_their_size(write):
    data = TripletData(write(ROWS), workers=0, batch_size=4)
    steps = list(data.train_dataloader())
    expected = compared_by(steps)
    for size in (2, 5, 100):
        groups = PairGroups(size)
        batches = [ready for step in steps for ready in groups.add(step)] + list(groups.rest())
        found = compared_by(batches)
        assert found.keys() == expected.keys() and sum(len(batch.pairs) for batch in batches) == 5
        assert all(torch.equal(a, b) for k in expected for a, b in zip(found[k], expected[k], strict=True))


def test_large_images_go_in_parts():
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 1024, 2048)
    batch = PairBatch([7, 8, 9, 3], [0, 0, 0, 4], [1, 2, 3, 2], images, [])
    parts = list(batch.parts())
    assert [len(part.images) for part in parts] == [2, 2, 2, 2]
    values = {k: (float(a.mean()), float(b.mean())) for k, (a, b) in compared_by(parts).items()}
    assert values == {7: (0, 1), 8: (0, 2), 9: (0, 3), 3: (4, 2)}


def test_images_are_resized_as_pillow_does(write, tmp_path):
    Image.open(tmp_path / "b.png").resize((30, 30)).save(tmp_path / "b.png")
    data = TripletData(write(ROWS), size=16, workers=0)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (6, 3, 16, 16) and batch.images.dtype == torch.uint8
    pillow = Image.open(tmp_path / "a.png").resize((16, 16), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
    assert int((batch.images[batch.left[0]].int() - expected.int()).abs().max()) <= 1


def test_other_sizes_and_broken_images_are_named(write, tmp_path):
    Image.open(tmp_path / "b.png").resize((30, 20)).save(tmp_path / "b.png")
    (tmp_path / "e.png").write_bytes((tmp_path / "e.png").read_bytes()[:100])
    data = TripletData(write(ROWS), workers=0)
    (batch,) = data.train_dataloader()
    reasons = [reason for _, reason in batch.broken]
    assert len(batch.pairs) == 2 and len(reasons) == 3 and not set(batch.pairs) & {pair for pair, _ in batch.broken}
    sizes = [reason for reason in reasons if "Expected two images of one size, got" in reason]
    assert len(sizes) == 1 and "a.png (48 x 40)" in sizes[0] and "b.png (30 x 20)" in sizes[0]
    assert sum("e.png" in reason for reason in reasons) == 2


def test_deeper_images_beside_8_bits(write, tmp_path):
    grey = np.random.default_rng(0).integers(0, 2**16, (40, 48)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "b.png")
    data = TripletData(write(HEAD + "a.png,b.png,c.png,0\n"), workers=0)
    data.channels = 1
    (batch,) = data.train_dataloader()
    assert batch.images.dtype == torch.float32 and 0 <= float(batch.images.min()) < float(batch.images.max()) <= 1
    assert any(torch.allclose(image[0] * 65535, torch.from_numpy(grey).float(), atol=0.1) for image in batch.images)
