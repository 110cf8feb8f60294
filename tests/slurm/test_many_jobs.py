"""Several jobs: an array of seeds, and a chain from images to scores."""

import csv
import subprocess
from pathlib import Path

import pytest
import yaml

from csrtrain.models.weights import read_torch
from csrtrain.runs.checkpoints import newest

pytestmark = pytest.mark.slurm
CHAIN = Path(__file__).parents[2] / "slurm/chain"


def test_an_array_of_four_seeds_is_four_runs(cluster):
    array = cluster.submit("--array=1-4", "--job-name=seeds", "--time=10", "--signal=USR1@60", "fit", "-c", "tiny.yaml")
    cluster.until_done(array)
    folders = [cluster.folder / f"runs/seeds/seed-{seed}" for seed in range(1, 5)]
    assert [cluster.step_of(folder) for folder in folders] == [cluster.steps] * 4, cluster.log()
    weights = [read_torch(newest(folder))["state_dict"]["backbone.network.conv1.0.weight"] for folder in folders]
    assert len({tuple(values.flatten().tolist()) for values in weights}) == 4
    seeds = [yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] for folder in folders]
    assert seeds == [1, 2, 3, 4]


def test_a_chain_waits_for_a_requeued_job_and_ends_with_scores(cluster):
    options = ("--time=10", "--signal=USR1@60")
    output = cluster.call(
        *(CHAIN, "runs/chain", *options, "fit", "-c", "tiny.yaml", "--trainer.max_epochs=2"),
        *("then", *options, "fit", "-c", "nr_linear", "--data.manifest=ratings.csv", "--trainer.accelerator=cpu"),
        *("then", *options, "score", "images"),
    )
    pretrain, head, score = (line.split()[1] for line in output.splitlines())
    folder = cluster.folder / "runs/chain"
    cluster.wait_for(lambda: cluster.step_of("runs/chain/pretrain") >= 1)
    cluster.call("scontrol", "requeue", pretrain)
    cluster.wait_for(lambda: cluster.state(pretrain)["JobState"] == "PENDING")
    assert cluster.state(head)["Reason"] == "Dependency"
    cluster.call("scontrol", "update", f"JobId={pretrain}", "StartTime=now")
    cluster.until_done(pretrain, head, score)
    assert [cluster.state(job)["JobState"] for job in (pretrain, head, score)] == ["COMPLETED"] * 3, cluster.log()
    assert cluster.state(pretrain)["Restarts"] == "1"
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert len(rows) == 35 and all(0 < float(row["score"]) < 100 and not row["error"] for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit -c a then score images", "got 2 of 3 parts"),
        ("fit -c a then fit -c b then export runs/a", "Expected score in part 3, got export"),
        ("--time=9 then fit -c b then score images", "Expected fit in part 1, got nothing"),
    ],
)
def test_of_a_wrong_chain_no_job_is_submitted(cluster, words, message):
    made = subprocess.run(
        [CHAIN, "runs/wrong", *words.split()],
        cwd=cluster.folder,
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2 and message in made.stderr and not made.stdout
    assert not (cluster.folder / "runs/wrong").exists()
