"""The job script on a real SLURM, two nodes of one core on this machine: preempted, in arrays, in a chain.

pytest -m slurm -n 0
"""

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.resume import faults, make_images
from csrtrain.models.weights import read_torch
from csrtrain.runs.checkpoints import newest

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "slurm/local/cluster"
SCRIPT = ROOT / "slurm/train.sbatch"
STEPS = 24
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

pytestmark = pytest.mark.slurm


def wait_for(condition, seconds, what):
    """The first true value of condition()."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.1)
    return value


class Cluster:
    """Commands of a SLURM, in a folder with images, ratings and a config."""

    def __init__(self, folder, conf):
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        self.environment |= {"SLURM_CONF": str(conf), "PYTHONPATH": str(ROOT), "CSRTRAIN_ENV": sys.prefix}

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
        return self.call("sbatch", "--parsable", *words[:split], SCRIPT, *words[split:], **environment)

    def state(self, job):
        """The fields that scontrol shows."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split("\n")[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self):
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("slurm-*.out")))

    def until_done(self, *jobs, seconds=120):
        """Wait until SLURM has no more of these jobs."""
        ids = ",".join(jobs)
        wait_for(lambda: not self.call("squeue", "--noheader", f"--jobs={ids}"), seconds, self.log)

    def first_rank(self, job):
        """The process of rank 0 of a job, once it is there."""

        def found():
            for process in psutil.process_iter(["name", "environ"]):
                environment = process.info["environ"] or {}
                if (process.info["name"], environment.get("SLURM_JOB_ID")) != ("csrtrain", job):
                    continue
                # Its loader processes have the same name and environment.
                if environment["SLURM_PROCID"] == "0" and process.parent().name().startswith("slurmstepd"):
                    return process
            return None

        return wait_for(found, 60, self.log)


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


def step_of(run_dir):
    names = sorted(path.stem for path in (run_dir / "checkpoints").glob("step-*.ckpt"))
    return int(names[-1].removeprefix("step-")) if names else 0


def test_preempted_three_times_on_two_nodes_ends_bit_identical(cluster):
    fit = ("--nodes=2", "--signal=USR1@60", "fit", "-c", "tiny.yaml")
    whole = cluster.submit("--job-name=whole", "--time=10", *fit)
    cluster.until_done(whole)
    assert step_of(cluster.folder / "runs/whole") == STEPS, cluster.log()

    job = cluster.submit("--job-name=parted", "--time=10", *fit)
    run_dir = cluster.folder / "runs/parted"
    stops = []

    def halt():
        """Let the job save two steps or more, and halt rank 0; SLURM wakes it with each signal."""
        before = step_of(run_dir)
        process = cluster.first_rank(job)
        wait_for(lambda: step_of(run_dir) >= before + 2, 90, cluster.log)
        process.suspend()
        stops.append(step_of(run_dir))

    def until_stopped(times):
        wait_for(lambda: cluster.state(job)["Restarts"] == str(times), 90, cluster.log)
        wait_for(lambda: cluster.state(job)["JobState"] == "PENDING", 60, cluster.log)
        assert stops[-1] <= step_of(run_dir) < STEPS
        cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=10")

    halt()
    cluster.call("scontrol", "requeue", job)
    until_stopped(1)

    halt()
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # SLURM looks every 30 seconds
    until_stopped(2)

    halt()
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--wrap=true")
    until_stopped(3)

    cluster.until_done(job, urgent)
    assert cluster.state(job)["JobState"] == "COMPLETED"
    assert cluster.state(job)["Restarts"] == "3"
    assert faults(cluster.folder / "runs/whole", run_dir) == []
    assert len(list(run_dir.glob("config*.yaml"))) == 4


def test_an_array_of_four_seeds_is_four_runs(cluster):
    array = cluster.submit("--array=1-4", "--job-name=seeds", "--time=10", "--signal=USR1@60", "fit", "-c", "tiny.yaml")
    cluster.until_done(array)
    folders = [cluster.folder / f"runs/seeds/seed-{seed}" for seed in range(1, 5)]
    assert [step_of(folder) for folder in folders] == [STEPS] * 4, cluster.log()
    weights = [read_torch(newest(folder))["state_dict"]["backbone.network.conv1.0.weight"] for folder in folders]
    assert len({tuple(values.flatten().tolist()) for values in weights}) == 4
    seeds = [yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] for folder in folders]
    assert seeds == [1, 2, 3, 4]


def test_a_chain_waits_for_a_requeued_job_and_ends_with_scores(cluster):
    options = ("--time=10", "--signal=USR1@60")
    output = cluster.call(
        *(ROOT / "slurm/chain", "runs/chain", *options, "fit", "-c", "tiny.yaml", "--trainer.max_epochs=2"),
        *("then", *options, "fit", "-c", "nr_linear", "--data.manifest=ratings.csv", "--trainer.accelerator=cpu"),
        *("then", *options, "score", "images"),
    )
    pretrain, head, score = (line.split()[1] for line in output.splitlines())
    folder = cluster.folder / "runs/chain"
    wait_for(lambda: step_of(folder / "pretrain") >= 1, 60, cluster.log)
    cluster.call("scontrol", "requeue", pretrain)
    wait_for(lambda: cluster.state(pretrain)["JobState"] == "PENDING", 60, cluster.log)
    assert cluster.state(head)["Reason"] == "Dependency"
    cluster.call("scontrol", "update", f"JobId={pretrain}", "StartTime=now")
    cluster.until_done(pretrain, head, score, seconds=180)
    assert [cluster.state(job)["JobState"] for job in (pretrain, head, score)] == ["COMPLETED"] * 3, cluster.log()
    assert cluster.state(pretrain)["Restarts"] == "1"
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert len(rows) == 35 and all(0 < float(row["score"]) < 100 and not row["error"] for row in rows)


class TestWords:
    """What the script makes of its words: `csrtrain` is a stand-in here that says how it was called."""

    @pytest.fixture
    def stand_in(self, cluster, tmp_path):
        """A function: the body of a csrtrain -> the same cluster with it, in a folder of its own."""

        def make(body):
            program = tmp_path / "bin/csrtrain"
            program.parent.mkdir()
            program.write_text(f"#!/usr/bin/env bash\n{body}\n")
            program.chmod(0o755)
            made = Cluster(tmp_path, cluster.environment["SLURM_CONF"])
            made.environment |= {"CSRTRAIN_ENV": "none", "PATH": f"{program.parent}:{os.environ['PATH']}"}
            return made

        return make

    SAY = 'printf "%s|" "$SLURM_PROCID/$SLURM_NTASKS" "$OMP_NUM_THREADS" "$@" >> "said-$SLURM_JOB_NAME-$SLURM_PROCID"'

    def test_a_line_of_a_sweep_goes_to_its_task_and_quotes_are_kept(self, stand_in):
        made = stand_in(self.SAY.replace("$SLURM_JOB_NAME", "$SLURM_ARRAY_TASK_ID"))
        (made.folder / "sweep.txt").write_text("--a 1\n--b=\"x y\" '$(touch evil)' --c\n")
        job = made.submit("--array=1-3", "--job-name=s", "fit", "-c", "x y.yaml", CSRTRAIN_SWEEP="sweep.txt")
        made.until_done(job, seconds=30)
        rest = "--trainer.num_nodes=1|--trainer.devices=1|"
        first = f"0/1|1|fit|-c|x y.yaml|--a|1|--trainer.default_root_dir=runs/s/line-1|{rest}"
        assert (made.folder / "said-1-0").read_text() == first, made.log()
        second = f"0/1|1|fit|-c|x y.yaml|--b=x y|$(touch evil)|--c|--trainer.default_root_dir=runs/s/line-2|{rest}"
        assert (made.folder / "said-2-0").read_text() == second
        assert not (made.folder / "said-3-0").exists() and not (made.folder / "evil").exists()
        assert "Expected options in line 3 of sweep.txt, got none" in made.log()

    def test_a_verb_other_than_fit_is_one_task_that_no_warning_ends(self, stand_in):
        made = stand_in(f"touch started; sleep 3; {self.SAY}")
        job = made.submit("--nodes=2", "--job-name=one", "score", "m.safetensors", "a b.png")
        wait_for((made.folder / "started").exists, 30, made.log)
        made.call("scancel", "--signal=USR1", job)
        made.until_done(job, seconds=30)
        assert (made.folder / "said-one-0").read_text() == "0/1|1|score|m.safetensors|a b.png|", made.log()
        assert not (made.folder / "said-one-1").exists()
        assert made.state(job)["JobState"] == "COMPLETED"

    def test_a_staged_folder_is_read_from_the_disk_of_the_node(self, stand_in, tmp_path):
        if not shutil.which("rsync"):
            pytest.skip("no rsync")
        made = stand_in(f'{self.SAY}; cat "${{3#*=}}"/* >> said-content')
        (tmp_path / "images").mkdir()
        (tmp_path / "images/a").write_text("pixels")
        environment = {"CSRTRAIN_STAGE": "images/", "CSRTRAIN_SCRATCH": str(tmp_path / "scratch")}
        words = ("fit", "-c", "--data.root=images", "images/a", "imagesque")
        made.until_done(made.submit("--job-name=st", *words, **environment), seconds=30)
        copy = next((tmp_path / "scratch").glob("csrtrain-*/images-*[0-9]"))
        said = (made.folder / "said-st-0").read_text()
        assert said.startswith(f"0/1|1|fit|-c|--data.root={copy}|{copy}/a|imagesque|--trainer.default"), made.log()
        assert (made.folder / "said-content").read_text() == "pixels"

    @pytest.mark.parametrize(
        ("body", "state", "restarts"),
        [
            ("exit 1", "FAILED", 0),
            ("((SLURM_RESTART_COUNT)) || exit 143", "COMPLETED", 1),  # no scontrol for csrtrain: the script requeues
            ("((SLURM_RESTART_COUNT)) || kill -USR1 $$", "COMPLETED", 1),  # the signal came before there was a handler
            ("((SLURM_RESTART_COUNT)) || { scontrol requeue $SLURM_JOB_ID; sleep 1; }", "COMPLETED", 1),
        ],
    )
    def test_how_a_run_ends_decides_over_the_job(self, stand_in, body, state, restarts):
        made = stand_in(f"echo $1 >> calls; [[ $1 == fit ]] || exit 0; {body}")
        job = made.submit("--job-name=ends", "fit", "-c", "x", CSRTRAIN_EXPORT="b.safetensors")
        made.until_done(job, seconds=60)
        found = made.state(job)
        assert (found["JobState"], found["Restarts"]) == (state, str(restarts)), made.log()
        calls = (made.folder / "calls").read_text().split()
        assert calls == ["fit"] * (restarts + 1) + ["export"] * (state == "COMPLETED")  # of a whole run only

    def test_a_job_that_never_comes_to_a_checkpoint_is_not_requeued_for_ever(self, stand_in):
        # The first start leaves what the last of four vain ones would.
        made = stand_in('((SLURM_RESTART_COUNT)) || echo "4 " >runs/vain/.starts; exit 143')
        job = made.submit("--job-name=vain", "fit", "-c", "x")
        made.until_done(job, seconds=60)
        assert (made.state(job)["Restarts"], made.state(job)["ExitCode"]) == ("1", "2:0"), made.log()
        assert "Expected a new checkpoint in one of the last five starts" in made.log()

    def test_a_cancelled_job_is_not_requeued(self, stand_in):
        made = stand_in("trap 'touch stopped; exit 143' TERM; touch started; while true; do sleep 0.1; done")
        job = made.submit("--job-name=gone", "fit", "-c", "x")
        wait_for((made.folder / "started").exists, 30, made.log)
        made.call("scancel", job)
        made.until_done(job, seconds=30)
        assert (made.folder / "stopped").exists()  # it had time to save
        assert (made.state(job)["JobState"], made.state(job)["Restarts"]) == ("CANCELLED", "0")

    @pytest.mark.parametrize(
        ("options", "words", "message"),
        [
            ([], ["fit", "--trainer.default_root_dir=x"], "Expected the run directory in CSRTRAIN_RUN"),
            (["--job-name=bash"], ["fit"], "Expected another job name, got bash"),
        ],
    )
    def test_wrong_use_is_refused(self, stand_in, options, words, message):
        made = stand_in("touch called")
        job = made.submit(*options, *words)
        made.until_done(job, seconds=30)
        assert message in made.log() and made.state(job)["ExitCode"] == "2:0"
        assert not (made.folder / "called").exists()
