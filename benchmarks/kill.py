"""Kill drill: `csrtrain fit` is killed with SIGKILL at random moments and started again by the same command.

    python -m benchmarks kill

It must always start again, from a checkpoint that is whole, and end bit-identical to a run that was never killed. A
checkpoint is written after every step, so that many kills fall into a save.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks import harness
from benchmarks.resume import faults, make_images
from csrtrain.runs.checkpoints import newest

CONFIG: dict[str, Any] = {
    "seed_everything": 5,
    "model": {
        "class_path": "csrtrain.pretrain.MoCo",
        "init_args": {
            "backbone": "test_resnet",
            "size": 32,
            "projection_dim": 16,
            "queue_size": 20000,  # makes the checkpoint larger and its save longer
            "batch_norm_groups": 2,
            "learning_rate": 0.05,
        },
    },
    "data": {
        "class_path": "csrtrain.data.unlabeled.UnlabeledData",
        "init_args": {
            "channels": 1,
            "modality": "mri",
            "load_size": 40,
            "batch_size": 8,
            "workers": 2,
            "min_epoch_length": 320,
        },
    },
    "trainer": {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "callbacks": [
            {"class_path": "csrtrain.runs.checkpoints.RunCheckpoint", "init_args": {"every_n_steps": 1, "keep": 3}}
        ],
    },
}


def start(root: Path, run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    """The command a user types, in a process group of its own."""
    config = root / "kill.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "csrtrain", "fit", "-c", str(config), "--data.root", str(root / "images")]
    command += ["--data.cache_dir", str(root / ".cache"), "--trainer.default_root_dir", str(run_dir)]
    return subprocess.Popen(
        command,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def drill(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a run `kills` times, then let it end; compare with one that ran through.

    Half of the kills wait for a save to begin (its temporary file), so that they fall into it.
    """
    make_images(root / "images")
    log = root / "log"
    if start(root, root / "whole", log).wait(timeout=600):
        raise RuntimeError(f"The uninterrupted run failed:\n{log.read_text()[-3000:]}")
    rng = random.Random(seed)
    run_dir = root / "killed"
    during_save = 0
    for kill in range(kills):
        process = start(root, run_dir, log)
        before = newest(run_dir)
        deadline = time.monotonic() + 120
        # Wait until this start has made progress of its own, so that the drill ends.
        while process.poll() is None and newest_name(run_dir) == (before.name if before else None):
            if time.monotonic() > deadline:
                raise RuntimeError(f"No progress within 120 s after kill {kill}:\n{log.read_text()[-3000:]}")
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if kill % 2:
            while process.poll() is None and not list((run_dir / "checkpoints").glob(".*.tmp")):
                pass
        during_save += bool(list((run_dir / "checkpoints").glob(".*.tmp")))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(root, run_dir, log)
    code = process.wait(timeout=600)
    bad = [f"exit code {code}:\n{log.read_text()[-3000:]}"] if code else faults(root / "whole", run_dir)
    return {"kills": kills, "in a save": during_save, "faults": bad}


def newest_name(run_dir: Path) -> str | None:
    """Name of the newest checkpoint file, whole or not."""
    names = sorted(path.name for path in (run_dir / "checkpoints").glob("step-*.ckpt"))
    return names[-1] if names else None


def run() -> harness.Result:
    """Five runs of 8 kills each."""
    rows = []
    for seed in range(5):
        with tempfile.TemporaryDirectory() as directory:
            row = drill(Path(directory), kills=8, seed=seed)
        rows.append({"seed": seed, **row, "faults": "; ".join(row["faults"]) or "none"})
    notes = ["After each kill the same command starts the run again; compared bit by bit with a run never killed."]
    return harness.Result("kill", "SIGKILL at random moments, saves included", rows, notes)
