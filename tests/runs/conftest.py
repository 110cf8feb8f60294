"""Small images, `csrtrain fit` in this process, and what wandb holds of it, read by wandb's own reader."""

import csv
import re
import time
from pathlib import Path

import pytest

from csrtrain.cli import main
from csrtrain.runs import wandb_contents

SMALL = [
    "--model.backbone=test_resnet",
    "--model.size=32",
    "--data.load_size=40",
    "--data.batch_size=8",
    "--data.workers=0",
    "--data.min_epoch_length=16",
    "--data.modality=mri",
    "--trainer.log_every_n_steps=1",
]


@pytest.fixture
def arguments(images, tmp_path, monkeypatch):
    """What `csrtrain fit` takes to train on the images in a run directory; wandb finds no key."""
    for name in ("WANDB_API_KEY", "WANDB_SERVICE"):  # the second: wandb's process of this one
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")

    def made(run_dir, *more, config="medical_simclr", logger="csrtrain.runs.loggers.Wandb"):
        loggers = [f"--trainer.logger+={logger}"] if logger else []
        return [
            *("fit", "-c", config, *SMALL, f"--data.root={images}", f"--data.cache_dir={tmp_path / 'cache'}"),
            *(f"--trainer.default_root_dir={run_dir}", *loggers, *more),
        ]

    return made


@pytest.fixture
def settle():
    """Waits for wandb's process, which writes the end of the newest file after run.finish has returned."""

    def ended(path):
        records = list(wandb_contents.records(path))
        return bool(records) and records[-1]["type"] == "exit"

    def wait(run_dir):
        deadline = time.monotonic() + 10
        for newest in sorted((run_dir / "wandb").glob("*run-*/*.wandb"))[-1:]:
            while not ended(newest) and time.monotonic() < deadline:
                time.sleep(0.05)

    return wait


@pytest.fixture
def fit(arguments, settle):
    def run(run_dir, *more, **which):
        try:
            return main(arguments(run_dir, *more, **which))
        finally:
            settle(run_dir)

    return run


@pytest.fixture
def interrupt(monkeypatch):
    """Let the optimiser step of this number end in an error, once."""

    class InterruptError(Exception):
        pass

    def at(step):
        from csrtrain.pretrain import SimCLR

        plain = SimCLR.training_step

        def interrupted(self, batch, batch_idx):
            if self.trainer.global_step == step:
                monkeypatch.setattr(SimCLR, "training_step", plain)
                raise InterruptError
            return plain(self, batch, batch_idx)

        monkeypatch.setattr(SimCLR, "training_step", interrupted)
        return pytest.raises(InterruptError)

    return at


@pytest.fixture
def fragments(settle):
    """The files that wandb keeps of a run, one per start, oldest first: lists of records."""

    def read(run_dir):
        settle(run_dir)
        files = wandb_contents.files_of(run_dir, (run_dir / "wandb_id").read_text())
        assert {path.parent for path in files} == {p for p in (run_dir / "wandb").glob("*run-*") if not p.is_symlink()}
        return [list(wandb_contents.records(path)) for path in files]

    return read


@pytest.fixture
def points():
    """(step, name, value) of the history, in order; a histogram is the tuple of its bars."""

    def of(records):
        found = []
        for record in records:
            if record["type"] == "history":
                item = record["history"]["item"]
                step = item["trainer/global_step"]
                for name, value in item.items():
                    if name.endswith(".values"):
                        found.append((step, name.removesuffix(".values"), tuple(value)))
                    elif "." not in name and not name.startswith("_") and name != "trainer/global_step":
                        found.append((step, name, value))
        return found

    return of


@pytest.fixture
def rows():
    def read(path):
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture
def documented():
    """Every name in the table of docs/wandb.md."""
    text = (Path(__file__).parents[2] / "docs" / "wandb.md").read_text()
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
