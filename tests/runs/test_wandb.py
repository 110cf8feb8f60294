"""Real wandb, offline: what is logged is read back from its files by its own reader."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from csrtrain.cli import main
from csrtrain.runs import wandb_contents
from csrtrain.runs.loggers import Wandb

METHODS = {
    "train/loss",
    "train/learning_rate",
    "train/epoch_loss",
    "train/embedding_std",
    "train/effective_rank",
    "train/alignment",
}
METHODS |= {"train/uniformity", "train/spectrum", "epoch"}


def config_of(records):
    """The config that a start stored, of all records that change it."""
    found = {}
    for record in records:
        if record["type"] == "config":
            found |= record["config"].get("update", {})
    return found


def artifacts(records):
    return [record["artifact"] for record in records if record["type"] == "artifact"]


def test_interrupted_twice_it_is_one_run_without_a_gap_or_a_repeat(
    fit, interrupt, fragments, points, tmp_path, images, rows, documented
):
    """Epochs of 2 steps, each stop one step behind a checkpoint; the first one's file is lost, as kill -9 loses it."""
    labels = f"--data.labels={images / 'labels.csv'}"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert fit(whole, labels, "--trainer.max_epochs=3") == 0
    with interrupt(3):
        fit(stopped, labels, "--trainer.max_epochs=3")
    (first,) = (stopped / "wandb").glob("offline-run-*/*.wandb")
    first.write_bytes(first.read_bytes()[:7])
    with interrupt(5):
        fit(stopped, labels, "--trainer.max_epochs=3")
    assert fit(stopped, labels, "--trainer.max_epochs=3") == 0

    starts = fragments(stopped)
    assert len(starts) == 3
    ids = {record["run"]["run_id"] for records in starts for record in records if record["type"] == "run"}
    assert ids == {(stopped / "wandb_id").read_text()}
    resumes = [record["run"]["resume"] for records in starts for record in records if record["type"] == "run"]
    assert resumes == [True, True]  # "allow"; of the first start nothing is left
    found = points([record for records in starts for record in records])
    steps = [step for step, _, _ in found]
    assert steps == sorted(steps) and set(steps) == set(range(6))
    named = [(step, name) for step, name, _ in found if name != "epoch"]  # the epoch comes with every call
    assert len(named) == len(set(named))
    assert sorted(found, key=repr) == sorted(points(fragments(whole)[0]), key=repr)
    assert {name for _, name, _ in found} == METHODS | {"val/knn_accuracy"} <= documented
    logged = {(int(row["step"]), name) for row in rows(stopped / "metrics.csv") for name, value in row.items() if value}
    assert {(step, name) for step, name in logged if name != "step"} == {
        (step, name) for step, name, _ in found if name != "train/spectrum"
    }


@pytest.mark.slow
def test_what_wandb_was_not_told_before_is_told_at_the_next_start(fit, fragments, points, tmp_path):
    run = tmp_path / "run"
    assert fit(run, "--trainer.max_epochs=1", logger=None) == 0
    assert fit(run, "--trainer.max_epochs=2") == 0
    found = points(fragments(run)[0])
    assert [step for step, name, _ in found if name == "train/loss"] == [0, 1, 2, 3]
    assert [step for step, name, _ in found if name == "train/spectrum"] == [1, 3]


@pytest.mark.slow
def test_a_start_that_failed_before_its_first_checkpoint_is_not_logged_twice(
    fit, interrupt, fragments, points, tmp_path, rows
):
    run = tmp_path / "run"
    with interrupt(1):
        fit(run, "--trainer.max_epochs=1")
    assert fit(run, "--trainer.max_epochs=1") == 0
    found = points([record for records in fragments(run) for record in records])
    assert [step for step, name, _ in found if name == "train/loss"] == [0, 1]
    assert [row["step"] for row in rows(run / "metrics.csv") if row["train/loss"]] == ["0", "1"]


def test_starts_of_one_second_are_found_in_their_order(tmp_path):
    names = ["offline-run-20261121_223407-ab-2", "offline-run-20261121_223407-ab", "run-20261121_223406-ab"]
    names += ["offline-run-20261121_223407-ab-10", "offline-run-20261121_223407-cd"]
    for name in names:
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / f"run-{name[-2:]}.wandb").touch()
    found = [path.parent.name for path in wandb_contents.files_of(tmp_path, "ab")]
    assert found == [names[2], names[1], names[0], names[3]]


def test_nothing_but_numbers_unless_asked(fit, fragments, points, tmp_path, images):
    run = tmp_path / "run"
    assert fit(run, "--trainer.max_epochs=1") == 0
    (records,) = fragments(run)
    assert not [path for path in run.rglob("*") if path.suffix in (".png", ".jpg", ".jpeg", ".gif", ".npy")]
    assert not list(run.glob("wandb/*/files/media")) and not artifacts(records)
    types = {record["type"] for record in records}
    assert not types & {"environment", "output", "output_raw", "artifact", "alert"}
    (folder,) = run.glob("wandb/offline-run-*")
    assert not [path.name for path in (folder / "files").rglob("*") if path.is_file()]
    config = config_of(records)
    assert config["model"]["init_args"]["backbone"] == "test_resnet" and config["seed_everything"] == 0
    assert config["data"]["init_args"]["root"] == config["trainer"]["default_root_dir"] == "<path>"
    assert config["images"]["images"] == 16 and len(config["images"]["digest"]) == 64
    assert config["environment"]["packages"]["torch"] and config["environment"]["world_size"] == 1
    stored = json.dumps(records)
    for private in (str(images), str(tmp_path), os.path.expanduser("~"), socket.gethostname(), sys.executable):
        assert len(private) < 4 or private not in stored, private


@pytest.mark.slow
def test_grids_are_logged_when_asked_at_each_start(fit, fragments, tmp_path):
    run = tmp_path / "run"
    small = ["--model.size=16", "--data.load_size=32", "--data.channels=1", "--model.distortions=[rician_noise]"]
    for epochs in (1, 2):
        images = ["--trainer.logger.images=true", f"--trainer.max_epochs={epochs}"]
        assert fit(run, *small, *images, config="contrique_small") == 0
    for records in fragments(run):
        named = {name for r in records if r["type"] == "history" for name in r["history"]["item"]}
        assert {"images/views._type", "images/distortions._type"} <= named
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/images/*.png"))) == 4


@pytest.mark.slow
def test_the_bundle_is_an_artifact_when_asked(fit, interrupt, fragments, tmp_path):
    import csrtrain

    run = tmp_path / "run"
    asked = ["--trainer.logger.bundle=true", "--trainer.max_epochs=2"]
    with interrupt(3):
        fit(run, *asked)
    assert fit(run, *asked) == 0
    first, second = fragments(run)
    assert not artifacts(first)
    (artifact,) = artifacts(second)
    (content,) = artifact["manifest"]["contents"]
    assert content["path"] == "bundle.safetensors" and "WANDB_DATA_DIR" not in os.environ
    staged = Path(content["local_path"])
    assert staged.is_relative_to(run)
    shutil.copy(staged, tmp_path / "bundle.safetensors")
    assert csrtrain.load(str(tmp_path / "bundle.safetensors")).header.training["steps"] == 4


@pytest.mark.parametrize(
    "config, y",
    [
        ("nr_linear", "predicted"),
        pytest.param("fr_mos", "distance", marks=pytest.mark.slow),
        pytest.param("fr_difference", "distance", marks=pytest.mark.slow),
    ],
)
def test_heads_are_logged_with_predicted_beside_rated(
    config, y, fragments, points, documented, tmp_path, images, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    table = ["path,reference,mos", *(f"{i:02d}.png,{i - i % 2:02d}.png,{i / 16:.3f}" for i in range(16))]
    (images / "ratings.csv").write_text("\n".join(table) + "\n")
    run = tmp_path / "run"
    options = ["--model.backbone=test_resnet", f"--data.manifest={images / 'ratings.csv'}", "--data.workers=0"]
    options += [f"--trainer.default_root_dir={run}", "--trainer.logger+=csrtrain.runs.loggers.Wandb"]
    assert main(["fit", "-c", config, *options]) == 0
    (records,) = fragments(run)
    assert {"held_out/srcc", "held_out/plcc", "alpha"} <= {name for _, name, _ in points(records)} <= documented
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    (item,) = [item for item in items if "scatter_table._type" in item]
    assert (item["scatter_table.ncols"], item["scatter_table.nrows"]) == (3, 16)
    (path,) = run.glob("wandb/offline-run-*/files/media/table/*.json")
    found = json.loads(path.read_text())
    assert found["columns"] == ["split", "mos", y]
    assert sorted(row[1] for row in found["data"]) == pytest.approx([round(i / 16, 3) for i in range(16)])
    assert ".png" not in path.read_text()


@pytest.mark.slow
def test_a_head_on_choices_logs_what_is_documented(fragments, points, documented, tmp_path, images, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    table = ["reference,p0,p1,judge"]
    table += [f"{i:02d}.png,{(i + 1) % 16:02d}.png,{(i + 2) % 16:02d}.png,{i % 2}" for i in range(16)]
    (images / "triplets.csv").write_text("\n".join(table) + "\n")
    run = tmp_path / "run"
    options = ["--model.backbone=test_resnet", f"--data.triplets={images / 'triplets.csv'}", "--data.workers=0"]
    options += [f"--trainer.default_root_dir={run}", "--trainer.logger+=csrtrain.runs.loggers.Wandb"]
    assert main(["fit", "-c", "fr_2afc", *options]) == 0
    (records,) = fragments(run)
    names = {name for _, name, _ in points(records)}
    assert "held_out/two_afc" in names <= documented and not list(run.glob("wandb/*/files/media"))


@pytest.mark.slow
def test_a_fault_of_wandb_does_not_stop_the_training(fit, fragments, points, tmp_path, monkeypatch, rows):
    from wandb.sdk.wandb_run import Run

    run, plain = tmp_path / "run", Run.log

    def failing(self, data, *args, **kwargs):
        if data.get("trainer/global_step") == 1:
            raise OSError("No space left on device")
        return plain(self, data, *args, **kwargs)

    monkeypatch.setattr(Run, "log", failing)
    with pytest.warns(UserWarning, match="wandb failed .OSError: No space left on device.. Training goes on"):
        assert fit(run, "--trainer.max_epochs=2") == 0
    monkeypatch.setattr(Run, "log", plain)
    assert len(rows(run / "metrics.csv")) == 6
    assert fit(run, "--trainer.max_epochs=3") == 0
    found = points([record for records in fragments(run) for record in records])
    assert [step for step, name, _ in found if name == "train/loss"] == list(range(6))


@pytest.mark.slow
def test_a_missing_wandb_is_named_and_needed_only_by_its_logger(arguments, tmp_path):
    """A package of that name whose import fails stands before the real one."""
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text("raise ImportError('no wandb here')\n")
    path = os.pathsep.join([str(tmp_path / "broken"), os.environ.get("PYTHONPATH", ""), os.getcwd()])
    runs = {"with": arguments(tmp_path / "a"), "without": arguments(tmp_path / "b", logger=None)}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "csrtrain", *command, "--trainer.max_epochs=1"],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for name, command in runs.items()
    }
    errors = {name: process.communicate()[1] for name, process in processes.items()}
    assert processes["with"].returncode == 2
    assert (
        "Expected the package wandb for csrtrain.runs.loggers.Wandb, got ImportError: no wandb here" in errors["with"]
    )
    assert "Traceback" not in errors["with"] and not (tmp_path / "a" / "checkpoints").exists()
    assert processes["without"].returncode == 0, errors["without"]


def test_paths_of_a_config_are_hidden_and_nothing_else():
    config = yaml.safe_load(
        """
        model: {class_path: csrtrain.quality.NoReference, init_args: {
          backbone: [a/b.safetensors, resnet18, c.SAFETENSORS], weights: imagenet, alphas: [0.1, 1], scales: null}}
        data: {init_args: {root: DOE_JOHN, manifest: m, window: [40.0, 400.0], modality: mri, labels: null,
          authentic: 'samples:medical', image_column: image}}
        trainer: {default_root_dir: runs, precision: 16-mixed, logger: [{init_args: {name: n, run_dir: '~x'}}]}
        weights: D:\\data\\DOE
        """
    )
    hidden = wandb_contents.without_paths(config)
    assert hidden["model"] == config["model"] | {
        "init_args": config["model"]["init_args"] | {"backbone": ["<path>", "resnet18", "<path>"]}
    }
    assert hidden["data"]["init_args"] == config["data"]["init_args"] | {"root": "<path>", "manifest": "<path>"}
    assert hidden["trainer"]["default_root_dir"] == hidden["weights"] == "<path>"
    assert hidden["trainer"]["logger"][0]["init_args"] == {"name": "n", "run_dir": "<path>"}
    assert "DOE" not in str(hidden)


def test_what_a_server_has_not_confirmed_is_not_held(fit, tmp_path):
    run = tmp_path / "run"
    assert fit(run, "--trainer.max_epochs=2") == 0
    (file,) = wandb_contents.files_of(run, (run / "wandb_id").read_text())
    assert set(wandb_contents.held([file], sent=None)) == set(wandb_contents.held([file], sent=0)) == {0, 1, 2, 3}
    online = file.parent.with_name(file.parent.name.removeprefix("offline-"))
    file.parent.rename(online)
    assert set(wandb_contents.held([online / file.name], sent=2)) == {0, 1, 2}
    assert wandb_contents.held([online / file.name], sent=-1) == {}
    (online / file.name).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="Expected .* to be readable by wandb leet inspect, got: "):
        wandb_contents.held([online / file.name], sent=None)


def test_a_histogram_has_at_most_512_bars_and_the_same_sum():
    for count in (1, 128, 512, 513, 2048):
        heights, edges = wandb_contents.histogram([1 / count] * count)
        assert len(heights) <= 512 and len(edges) == len(heights) + 1
        assert sum(heights) == pytest.approx(1) and (edges[0], np.ptp(np.diff(edges))) == (0.5, 0)


def test_a_server_that_cannot_begin_leaves_an_offline_run(tmp_path, monkeypatch, settle):
    import wandb

    plain = wandb.init

    def refusing(*args, mode=None, **kwargs):
        if mode != "offline":
            raise wandb.errors.CommError("no answer")
        return plain(*args, mode=mode, **kwargs)

    monkeypatch.setattr(wandb, "init", refusing)
    logger = Wandb(run_dir=str(tmp_path / "run"), offline=False)
    with pytest.warns(UserWarning, match="wandb could not begin .CommError.; this start is kept offline"):
        logger.log_metrics({"loss": 1.0}, step=0)
    logger.finalize("success")
    settle(tmp_path / "run")
    (file,) = wandb_contents.files_of(tmp_path / "run", (tmp_path / "run" / "wandb_id").read_text())
    assert wandb_contents.held([file], None)[0] >= {"loss"}


def test_the_documented_table_names_nothing_that_pretraining_does_not_log(documented):
    assert {name for name in documented if name.startswith("train/")} == METHODS - {"epoch"} | {"train/skipped_steps"}
    assert {"epoch", "val/knn_accuracy", "val/knn_srcc", "images/views", "images/distortions", "scatter"} <= documented


@pytest.mark.slow
def test_killed_twice_at_any_moment_nothing_is_lost_or_repeated(arguments, fragments, points, tmp_path):
    """kill -9 of the process and of wandb's, when three and seven steps are in metrics.csv."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--trainer.max_epochs=5", "--trainer.callbacks+=csrtrain.runs.checkpoints.RunCheckpoint"]
    more += ["--trainer.callbacks.every_n_steps=1"]

    def begin(run):
        command = [sys.executable, "-m", "csrtrain", *arguments(run, *more)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    for lines in (4, 9):
        process, csv_file = begin(killed), killed / "metrics.csv"
        deadline = time.monotonic() + 120
        while not csv_file.exists() or len(csv_file.read_text().splitlines()) < lines:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert begin(killed).wait() == 0 and begin(whole).wait() == 0
    starts = fragments(killed)
    assert len(starts) == 3
    found = points([record for records in starts for record in records])
    assert [step for step, _, _ in found] == sorted(step for step, _, _ in found)
    expected = {(step, name) for step, name, _ in points(fragments(whole)[0])}
    lost = expected - {(step, name) for step, name, _ in found}
    # Killed between the checkpoint of an epoch's last step and its measures, an epoch has none.
    assert "train/loss" not in {name for _, name in lost} and len({step for step, _ in lost}) <= 2
    assert {(step, name) for step, name, _ in found} <= expected
    named = [(step, name) for step, name, _ in found if name != "epoch"]
    assert len(named) == len(set(named))
