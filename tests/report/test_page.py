import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csrtrain import cli, report
from csrtrain.cli import main
from tests.report.conftest import HEAD_METRICS, METRICS, evaluation, head_files

VOID = {"br", "img", "link", "meta"}
# As a name of a folder or a file may be.
HOSTILE = "<script>alert(1)<!--\"'><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Reads a page strictly: what is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def made(tmp_path, *folders, options=()):
    output = tmp_path / "report.html"
    assert main(["report", *map(str, folders), "-o", str(output), *options]) == 0
    return Page(output.read_text())


def check_self_contained(page, raw):
    assert "script" not in page.tags
    for tag, key, value in page.attributes:
        assert not key.startswith("on") and "javascript:" not in value
        assert key not in ("src", "href") or value.startswith(("data:", "#")), (tag, key, value)
    assert not re.search(r"url\(|@import|https?:", raw)
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_the_whole_page(full, tmp_path):
    page = made(tmp_path, *full)
    raw = (tmp_path / "report.html").read_text()
    check_self_contained(page, raw)
    assert len(raw) < 200_000
    for words in (
        "3 runs and 1 evaluation.",
        "Complete: 24 steps, 2 epochs.",
        "Not complete: 2 of 4 epochs",
        "The representation has not collapsed.",
        "val/knn_srcc is 0.750, 0.250 of the untrained backbone.",
        "0.8 best",
        "SRCC 0.500 [0.400, 0.600] on split test",
        "collapsed below 0.1",
        "collapsed below 2",
        "Spectrum: singular values of the projections",
        "Predicted and rated: 3 head",
        "SRCC by number of ratings",
        "mri backbone 0.700 [0.600, 0.800] best",
        "mri BRISQUE SRCC +0.200 [+0.050, +0.350] beats",
        "ratings 1, random splits",
        "A processor @ 2.20GHz",
        "A GPU x 2",
        "b: resumed once.",
        "changed: trainer.max_epochs: 2 to 4",
        "data.init_args.seed 0 1",
        "temperature: 0.1",
    ):
        assert words in page.text, words


def test_no_place_of_the_user_is_on_the_page(full, tmp_path):
    raw = made(tmp_path, *full) and (tmp_path / "report.html").read_text()
    for secret in ("alice", "smith", "/home", str(tmp_path), ".png", Path.home().name + "/"):
        assert secret not in raw, secret
    assert "(path 1)" in raw


def test_seeds_are_summarised_only_where_nothing_else_differs(make_run, tmp_path):
    a, b = make_run("a"), make_run("b", METRICS.replace("4.25", "4.75"), seed=1)
    text = made(tmp_path, a, b).text
    assert "runs 1, 2 (seeds 0, 1)" in text and "train/loss 4.5 ± 0.35 (2)" in text
    (b / "config.yaml").write_text((b / "config.yaml").read_text().replace("temperature: 0.1", "temperature: 0.2"))
    text = made(tmp_path, a, b).text
    assert "differ in their seed alone" not in text and "model.init_args.temperature 0.1 0.2" in text


def test_a_run_alone_and_at_its_beginning(make_run, tmp_path):
    for name, metrics in (("a", None), ("b", "step,train/loss,epoch\n0,1.5,0.0\n"), ("c", METRICS + "24,1.")):
        page = made(tmp_path, make_run(name, metrics))
        check_self_contained(page, (tmp_path / "report.html").read_text())
        assert "1 run." in page.text and "Final values" not in page.text


def test_values_that_are_not_finite_are_said_and_drawn(make_run, tmp_path):
    page = made(
        tmp_path, make_run(metrics="step,train/loss\n" + "".join(f"{k},{'nan' if k > 5 else k}\n" for k in range(9)))
    )
    assert "train/loss is not finite 3 times, first at step 6." in page.text
    assert ("path", "class", "lost") in page.attributes


def test_thousands_of_rows_stay_small(make_run, tmp_path):
    values = np.random.default_rng(0).normal(size=(20_000, 4)).round(6)
    rows = "".join(f"{k},{','.join(map(str, row))}\n" for k, row in enumerate(values))
    scores = "path,split,mos,predicted\n" + "".join(f"x,train,{a},{b}\n" for a, b, _, _ in values)
    files = {**head_files(), "scores.csv": scores}
    folders = [make_run(str(k), "step,train/loss,train/a,train/b,lr\n" + rows) for k in range(3)]
    made(tmp_path, *folders, make_run("head", HEAD_METRICS, **files))
    assert (tmp_path / "report.html").stat().st_size < 400_000


def test_hostile_names_stay_words(make_run, tmp_path):
    quoted = HOSTILE.replace('"', '""')
    config = (make_run("x") / "config.yaml").read_text() + json.dumps({HOSTILE: HOSTILE})[1:-1] + "\n"
    folder = make_run(
        HOSTILE.replace("/", ""),
        f'step,train/loss,"train/{quoted}","val/{quoted}"\n0,1,2,3\n1,2,3,4\n',
        **{
            "config.yaml": config.replace("resnet18", "'</style><script>'"),
            "environment.json": json.dumps({HOSTILE: HOSTILE, "devices": [HOSTILE], "packages": {HOSTILE: HOSTILE}}),
            "scores.csv": f'path,split,"{quoted}",predicted\nx,train,1,2\ny,train,2,3\n',
        },
    )
    results = evaluation()
    results["protocol"] = results["evaluations"][0]["methods"]["mri"]["kind"] = HOSTILE
    results["evaluations"][0]["methods"][HOSTILE] = {
        "measures": {HOSTILE: {"value": 1}},
        "versus": {HOSTILE: {HOSTILE: {}}},
    }
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "results.json").write_text(json.dumps(results))
    page = made(tmp_path, folder, tmp_path / "e")
    check_self_contained(page, (tmp_path / "report.html").read_text())
    assert "img" not in page.tags
    assert "<script>alert(1)" in page.text  # as words


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [[1]], {"a": None}, True, 1e400])
def test_foreign_content_of_json_files_is_no_crash(make_run, tmp_path, value):
    results = evaluation()
    results["manifests"] = results["broken"] = results["protocol"] = value
    results["evaluations"] += [{"methods": value}, {"methods": {"m": value}}]
    results["evaluations"][0]["methods"]["mri"]["measures"]["srcc"] = value
    results["evaluations"][0]["methods"]["mri"]["versus"] = {"c": value}
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "results.json").write_text(json.dumps(results))
    made(tmp_path, make_run(**{"environment.json": json.dumps({"packages": value, "cpu": value})}), tmp_path / "e")


def test_wrong_use_is_said_and_nothing_is_written(make_run, tmp_path, capsys):
    run, output = make_run(), tmp_path / "r.html"
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([tmp_path / "empty", "-o", output], "Expected a run directory with config.yaml or metrics.csv"),
        ([tmp_path / "none", "-o", output], "which is no folder"),
        ([run, run, "-o", output], "twice"),
        ([run, "-o", tmp_path / "r.txt"], "ends in .html"),
        ([run, "-o", tmp_path / "no" / "r.html"], "folder that can be written to"),
    ):
        assert main(["report", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    for arguments in (["report"], ["report", str(run)]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert not output.exists()


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--help"])
    assert stopped.value.code == 0 and "csrtrain report runs/medical_simclr -o report.html" in capsys.readouterr().out


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "smith"
    folder.mkdir()
    for k in range(16):
        pixels = np.random.default_rng(k).integers(0, 256, (70, 70), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"smith_{k}.png")
    return folder


SMALL = ["--model.backbone=test_resnet", "--model.size=32", "--data.batch_size=8", "--data.workers=0"]
SMALL += ["--data.min_epoch_length=16", "--data.modality=mri", "--trainer.max_epochs=1"]


@pytest.mark.parametrize(
    ("config", "titles"), [("medical_simclr", 1), pytest.param("medical_contrique", 2, marks=pytest.mark.slow)]
)
def test_a_real_run_with_and_without_its_images(images, tmp_path, capsys, config, titles):
    run, size = tmp_path / "run", "40" if titles == 1 else "64"
    arguments = [*SMALL, f"--data.load_size={size}", f"--data.root={images}", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert main(["fit", "-c", config, *arguments, f"--trainer.default_root_dir={run}"]) == 0
    page = made(tmp_path, run)
    assert "Complete: 2 steps, 1 epoch." in page.text and "16 images" in page.text and "img" not in page.tags
    assert "smith" not in (tmp_path / "report.html").read_text()
    before = sorted(run.rglob("*"))
    page = made(tmp_path, run, options=["--images"])
    assert page.tags.count("img") == titles and sorted(run.rglob("*")) == before
    assert "smith" not in (tmp_path / "report.html").read_text()
    images.rename(tmp_path / "gone")
    capsys.readouterr()
    assert main(["report", str(run), "--images", "-o", str(tmp_path / "report.html")]) == 1
    assert "no images: run: " in capsys.readouterr().err
    assert "img" not in Page((tmp_path / "report.html").read_text()).tags


def test_the_public_functions(make_run, tmp_path):
    (found,) = report.read([make_run()])
    assert isinstance(found, report.Run) and found.name == "run"
    picture = report.Picture("<views>", b"\x89PNG")
    report.write(tmp_path / "r.html", [found], {"run": [picture]})
    page = Page((tmp_path / "r.html").read_text())
    assert ("img", "src", "data:image/png;base64,iVBORw==") in page.attributes
    assert ("img", "alt", "run: <views>") in page.attributes
    assert "report" in cli._USAGE


def test_files_damaged_in_any_place_give_a_page_or_a_message(full, tmp_path):
    """Bytes cut off, overwritten and doubled in every file of two runs and an evaluation."""
    rng = np.random.default_rng(0)
    pages, messages = 0, 0
    for folder in (full[1], full[2], full[3]):
        for path in sorted(folder.iterdir()):
            whole = path.read_bytes()
            for _ in range(12):
                data = bytearray(whole)
                place, length = (int(n) for n in rng.integers(0, (len(data), 40)))
                match rng.integers(4):
                    case 0:
                        del data[place:]
                    case 1:
                        data[place : place + length] = rng.bytes(length)
                    case 2:
                        data[place:place] = data[place : place + length]
                    case 3:
                        data[place : place + 1] = rng.choice([b"nan", b"-1e999", b"\n", b'"', b"{", b"\0", b"9" * 400])
                path.write_bytes(data)
                try:
                    report.write(tmp_path / "report.html", report.read([folder]))
                except ValueError as error:
                    assert "Expected" in str(error) and ", got " in str(error)
                    messages += 1
                else:
                    Page((tmp_path / "report.html").read_text())
                    pages += 1
            path.write_bytes(whole)
    assert pages > 50 and messages > 5
