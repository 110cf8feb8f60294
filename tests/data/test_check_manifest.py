import numpy as np
import pytest
from PIL import Image, ImageFilter

from csrtrain.cli import main
from csrtrain.data import decode
from csrtrain.data.check_manifest import check_manifest, format_manifest_report
from csrtrain.data.scored import ScoredData


def picture(seed):
    """Smooth structure and some noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((90, 80), Image.Resampling.BICUBIC)
    noisy = np.asarray(small).astype(float) + rng.normal(0, 8, (80, 90))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    for k in range(6):
        picture(k).save(tmp_path / f"{k}.png")
    picture(0).save(tmp_path / "again.jpg", quality=50)  # looks like 0.png
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    return tmp_path


def test_what_splits_share_is_found(folder):
    rows = ["0.png,1,train,a", "1.png,2,train,b", "2.png,3,train,c", "again.jpg,1.2,test,d", "3.png,2,test,b"]
    (folder / "m.csv").write_text("path,mos,split,group\n" + "\n".join([*rows, "4.png,2,test,e", "4.png,3,test,f"]))
    report = check_manifest(str(folder / "m.csv"))
    assert report.near == [(2, 5)]  # 0.png and its copy; the two rows of 4.png are in one split
    assert report.split_groups == [[3, 6]]
    assert report.duplicate_rows == [[7, 8]]
    assert report.is_sound
    text = format_manifest_report(report)
    for words in ("7 rows", "mos, higher is better; 1 to 3", "test: 4, train: 3", "look the same (1):\n  2, 5", "3, 6"):
        assert words in text


def test_wrong_rows_and_broken_files_are_listed_and_the_exit_code_says_so(folder, capsys):
    (folder / "m.csv").write_text("path,dmos\n0.png,1\nnone.png,2\n1.png,nan\nbroken.png,3\n")
    assert main(["check-data", str(folder / "m.csv"), "--workers", "0"]) == 1
    out = capsys.readouterr().out
    for words in ("dmos, lower is better", "line 3: no file none.png", "line 4: dmos is nan", "broken.png: "):
        assert words in out
    (folder / "m.csv").write_text("path,dmos\n0.png,1\n2.png,2\n")
    assert main(["check-data", str(folder / "m.csv"), "--workers", "0"]) == 0
    assert main(["check-data", str(folder / "m.csv"), "--workers", "0", "--range", "0", "1"]) == 1
    assert "line 3: dmos 2 is outside of 0 to 1" in capsys.readouterr().out


@pytest.mark.parametrize("reversed_", [False, True])
@pytest.mark.parametrize("with_references", [False, True])
def test_a_reversed_direction_is_asked_about(folder, reversed_, with_references):
    rows = []
    for k in range(8):
        for level in range(1, 5):
            picture(k).filter(ImageFilter.GaussianBlur(level)).save(folder / f"{k}_{level}.png")
            picture(k).save(folder / f"{k}.png")
            rows.append(f"{k}_{level}.png,{level if reversed_ else 5 - level}" + f",{k}.png" * with_references)
    (folder / "m.csv").write_text("path,mos" + ",reference" * with_references + "\n" + "\n".join(rows) + "\n")
    report = check_manifest(str(folder / "m.csv"))
    assert bool(report.direction) == reversed_
    assert ("Are the ratings reversed" in format_manifest_report(report)) == reversed_


def test_references_worse_than_what_was_made_from_them(folder):
    (folder / "m.csv").write_text("path,mos,reference\n0.png,1,0.png\n1.png,4,0.png\n2.png,5,0.png\n")
    assert "the references are worse" in check_manifest(str(folder / "m.csv")).direction


def test_images_as_large_as_a_head_is_fitted_to(folder, monkeypatch):
    asked = []
    read = decode.read
    monkeypatch.setattr(decode, "read", lambda address, **options: (asked.append(options), read(address, **options))[1])
    (folder / "m.csv").write_text("path,mos\n0.png,1\n")
    assert check_manifest(str(folder / "m.csv")).is_sound
    assert asked[0]["max_megapixels"] == ScoredData(str(folder / "m.csv")).max_megapixels


def test_nothing_but_missing_files(folder):
    (folder / "m.csv").write_text("path,mos,split\nx.png,1,train\ny.png,2,test\n")
    report = check_manifest(str(folder / "m.csv"))
    assert not report.is_sound and len(report.problems) == 2 and report.images.images == 0
