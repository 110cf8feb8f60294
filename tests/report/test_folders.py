import csv
import json
import os
import time

import numpy as np
import pytest
import torch
import yaml

from csrtrain.report import folders, words
from csrtrain.report.folders import Evaluation, Run
from csrtrain.runs.checkpoints import AtomicCheckpointIO


def read(folder):
    return folders.read(folder, folder.name)


def test_curves_are_the_cells_that_were_written(make_run):
    folder = make_run()
    run = read(folder)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/knn_srcc", "train/effective_rank"):
        literal = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
        assert list(zip(*run.curves[name], strict=True)) == literal
    assert (run.steps, run.epochs, run.method, run.is_head) == (24, 2, "SimCLR", False)
    assert run.config["model.init_args.temperature"] == 0.1
    assert not run.notes and not run.starts and run.environment == {} and run.scores is None


def test_a_line_that_is_being_written_is_left_out(make_run):
    whole = read(make_run("a")).curves["train/loss"]
    text = (make_run("b") / "metrics.csv").read_text()
    for cut in (text + "24,3.1", text + "24,", text + "2"):
        run = read(make_run(f"c{len(cut)}", metrics=cut))
        assert run.curves["train/loss"].values.tolist() == whole.values.tolist() and not run.notes


def test_nan_and_inf_are_values_and_words_are_not(make_run):
    text = "step,train/loss\n0,1.0\n1,nan\n2,inf\n3,-inf\n4,oops\n5,\n6,2.0\n"
    curve = read(make_run(metrics=text)).curves["train/loss"]
    assert curve.steps.tolist() == [0, 1, 2, 3, 6]
    np.testing.assert_array_equal(curve.values, [1, np.nan, np.inf, -np.inf, 2])
    assert curve.finite.tolist() == [1, 2]


def test_of_a_step_that_was_logged_twice_the_later_value_counts(make_run):
    curve = read(make_run(metrics="step,train/loss\n0,1\n1,2\n1,3\n2,4\n")).curves["train/loss"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([0, 1, 2], [1, 3, 4])


def test_a_run_that_has_measured_nothing(make_run):
    for name, text in (("a", None), ("b", ""), ("c", "step,train/loss\n"), ("d", "step,tra")):
        run = read(make_run(name, metrics=text))
        assert (run.curves, run.steps, run.epochs) == ({}, 0, 0)


def test_a_run_of_one_step(make_run):
    run = read(make_run(metrics="step,train/loss,epoch\n0,1.5,0.0\n"))
    assert run.curves["train/loss"].values.tolist() == [1.5] and run.steps == 1


def test_the_checkpoint_tells_the_steps_and_the_data(make_run):
    folder = make_run()
    (folder / "checkpoints").mkdir()
    stored = {
        "global_step": 30,
        "UnlabeledData": {"epoch": 3},
        "callbacks": {"StopOnNonFinite": {"skipped": 2}},
        "csrtrain": {"data": {"images": 65, "smoke_run": True}, "method": "SimCLR"},
        "state_dict": {"w": torch.zeros(3)},
    }
    AtomicCheckpointIO().save_checkpoint(stored, folder / "checkpoints" / "step-000000030.ckpt")
    run = read(folder)
    assert (run.steps, run.epochs, run.skipped, run.data["images"]) == (30, 3, 2, 65) and not run.notes
    assert any(verdict.text.startswith("2 optimiser steps were skipped") for verdict in words.verdicts(run, 0))
    (folder / "checkpoints" / "step-000000040.ckpt").write_bytes(b"half")
    run = read(folder)
    assert run.steps == 30 and "damaged" in run.notes[0]


def test_later_starts_in_their_order(make_run):
    resumed = {
        "config.resume-20260102T030405.yaml": yaml.safe_dump({"trainer": {"max_epochs": 4}}),
        "config.resume-20251231T235959.yaml": yaml.safe_dump({"trainer": {"max_epochs": 3}}),
        "config.resume-x.yaml": "a: 1",
        "environment.resume-20260102T030405.json": json.dumps({"packages": {"torch": "9"}}),
    }
    run = read(make_run(**resumed))
    assert [start.when for start in run.starts] == ["2025-12-31 23:59:59", "2026-01-02 03:04:05"]
    assert run.newest_config == {"trainer.max_epochs": 4}
    assert run.environments[0].content == {"packages.torch": "9"}


def test_files_beside_that_are_broken_are_noted(make_run):
    broken = {
        "environment.json": "{",
        "config.resume-20260102T030405.yaml": "- 1",
        "scores.csv": 'path,predicted\n"a\n',
        "spectrum.csv": "",
    }
    run = read(make_run(**broken))
    assert run.environment == {}
    assert "environment.json could not be read." in run.notes
    assert "The config of a later start could not be read." in run.notes
    assert "spectrum.csv could not be read." in run.notes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "without them"),
        ({".lock": "process 1"}, "training never began in it"),
        ({"notes.txt": "x", "config.json": "{}"}, "a folder that csrtrain evaluate wrote, got"),
        ({"metrics.csv": "a,b\n1,2\n"}, "another table without config.yaml"),
        ({"config.yaml": "- 1\n- 2\n"}, "config of a run in .*, got list"),
        ({"config.yaml": "trainer: 3\n"}, "config of a run in .*, got int"),
        ({"config.yaml": "trainer: {callbacks: 3}\n"}, "Expected a list of callbacks"),
        ({"config.yaml": "a: [1, 2"}, "got a damaged file"),
        ({"config.yaml": "[" * 5000}, "got a damaged file"),
        ({"config.yaml": "!!python/object/apply:os.system ['true']"}, "got a damaged file"),
        ({"results.json": "{"}, "Expected JSON"),
        ({"results.json": "[]"}, "Expected an object"),
        ({"results.json": '{"evaluations": [3]}'}, "without them"),
    ],
)
def test_folders_that_are_no_runs(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(ValueError, match="which is no folder"):
            read(path)


def test_a_config_without_end_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 {x: 1, y: 2, z: 3}"] + [
        f"a{k}: &a{k} {{x: *a{k - 1}, y: *a{k - 1}, z: *a{k - 1}}}" for k in range(1, 40)
    ]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    start = time.process_time()
    with pytest.raises(ValueError, match="without end"):
        read(tmp_path)
    (tmp_path / "config.yaml").write_text("a: &a\n  b: *a\n")
    with pytest.raises(ValueError, match="without end|damaged"):
        read(tmp_path)
    assert time.process_time() - start < 10


def test_pipes_and_folders_in_the_place_of_files_are_passed_over(make_run):
    folder = make_run()
    os.mkfifo(folder / "scores.csv")
    (folder / "environment.json").mkdir()
    assert isinstance(read(folder), Run)


def test_results_of_an_evaluation(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"evaluations": [], "protocol": "whole"}))
    found = read(tmp_path)
    assert isinstance(found, Evaluation) and found.results["protocol"] == "whole"


def test_names_are_no_longer_than_needed(tmp_path):
    def of(*paths):
        for path in paths:
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
        return folders.names([tmp_path / path for path in paths])

    assert of("runs/a", "runs/b") == ["a", "b"]
    assert of("x/a", "y/a", "y/b") == ["x/a", "y/a", "b"]
    assert of("p/x/a", "q/x/a") == ["p/x/a", "q/x/a"]
    with pytest.raises(ValueError, match="twice"):
        of("runs/a", "runs/../runs/a")
