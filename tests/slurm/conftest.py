"""A SLURM of two one-core nodes on this machine for each test file, with images, ratings and a config of a tiny run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.resume import make_images

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "slurm/local/cluster"
CONFIG = {
    "seed_everything": 5,
    "model": {
        "class_path": "csrtrain.pretrain.SimCLR",
        "init_args": {
            "backbone": "test_resnet",
            "size": 32,
            "projection_dim": 16,
            "optimizer": "sgd",
            "learning_rate": 0.05,
        },
    },
    "data": {
        "class_path": "csrtrain.data.unlabeled.UnlabeledData",
        "init_args": {
            "root": "images",
            "cache_dir": "cache",
            "channels": 1,
            "modality": "mri",
            "load_size": 40,
            "batch_size": 8,
            "workers": 1,
        },
    },
    "trainer": {
        "max_epochs": 6,
        "accelerator": "cpu",
        "callbacks": [
            {"class_path": "csrtrain.runs.checkpoints.RunCheckpoint", "init_args": {"every_n_steps": 1, "keep": -1}}
        ],
    },
}


class Cluster:
    """Commands of a SLURM, given in a folder."""

    steps = 24  # of the tiny run

    def __init__(self, folder, conf):
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        self.environment |= {"SLURM_CONF": str(conf), "PYTHONPATH": str(ROOT), "CSRTRAIN_ENV": sys.prefix}

    def beside(self, folder, **environment):
        """The same SLURM, in another folder and environment."""
        made = Cluster(folder, self.environment["SLURM_CONF"])
        made.environment |= environment
        return made

    def call(self, *command, **environment):
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *words, **environment):
        """Options of sbatch, and what follows the script; the id of the job."""
        split = next(i for i, word in enumerate(words) if not word.startswith("-"))
        script = ROOT / "slurm/train.sbatch"
        return self.call("sbatch", "--parsable", *words[:split], script, *words[split:], **environment)

    def wait_for(self, condition, seconds=180):
        """The first true value of condition()."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.log()}"
            time.sleep(0.1)
        return value

    def state(self, job):
        """The fields that scontrol shows."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split("\n")[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def step_of(self, run):
        """That the newest checkpoint of a run holds."""
        names = sorted(path.stem for path in (self.folder / run / "checkpoints").glob("step-*.ckpt"))
        return int(names[-1].removeprefix("step-")) if names else 0

    def log(self):
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("slurm-*.out")))

    def until_done(self, *jobs, seconds=300):
        """Wait until SLURM has no more of these jobs."""
        ids = ",".join(jobs)
        self.wait_for(lambda: not self.call("squeue", "--noheader", f"--jobs={ids}"), seconds)

    def first_rank(self, job):
        """The process of rank 0 of a job, once it is there."""

        def found():
            for process in psutil.process_iter(["name", "environ"]):
                environment = process.info["environ"] or {}
                here = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if not here or (process.info["name"], environment.get("SLURM_JOB_ID")) != ("csrtrain", job):
                    continue
                # Its loader processes have the same name and environment.
                if environment["SLURM_PROCID"] == "0" and process.parent().name().startswith("slurmstepd"):
                    return process
            return None

        return self.wait_for(found)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    check = subprocess.run([LOCAL, "check"], capture_output=True, text=True)
    if check.returncode:
        pytest.skip(check.stderr.strip())
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([LOCAL, "start", folder / "cluster"], check=True)
    make_images(folder / "images")
    rows = [f"images/{i:02d}.png,{i % 7 + 1}\n" for i in range(35)]
    (folder / "ratings.csv").write_text("path,mos\n" + "".join(rows))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    yield Cluster(folder, folder / "cluster/slurm.conf")
    subprocess.run([LOCAL, "stop", folder / "cluster"], check=True)
