"""A job on two nodes that is stopped in three ways ends as if it had never been."""

import pytest

from benchmarks.resume import faults

pytestmark = pytest.mark.slurm


def test_preempted_three_times_on_two_nodes_ends_bit_identical(cluster):
    fit = ("--nodes=2", "--signal=USR1@60", "fit", "-c", "tiny.yaml")
    whole = cluster.submit("--job-name=whole", "--time=10", *fit)
    cluster.until_done(whole)
    assert cluster.step_of("runs/whole") == cluster.steps, cluster.log()

    job = cluster.submit("--job-name=parted", "--time=10", *fit)
    run_dir = cluster.folder / "runs/parted"
    stops = []

    def halt():
        """Let the job save two steps or more, and halt rank 0; SLURM wakes it with each signal."""
        before = cluster.step_of("runs/parted")
        process = cluster.first_rank(job)
        cluster.wait_for(lambda: cluster.step_of("runs/parted") >= before + 2)
        process.suspend()
        stops.append(cluster.step_of("runs/parted"))

    def until_stopped(times):
        cluster.wait_for(lambda: cluster.state(job)["Restarts"] == str(times))
        cluster.wait_for(lambda: cluster.state(job)["JobState"] == "PENDING")
        assert stops[-1] <= cluster.step_of("runs/parted") < cluster.steps
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


def test_a_run_that_fails_on_two_nodes_is_not_queued_again(cluster):
    """For the error of a rank srun sends SIGTERM to the other one, which is just ending, or waits for the first."""
    fit = ("--nodes=2", "--time=10", "--job-name=diverged", "fit", "-c", "tiny.yaml", "--model.learning_rate=1e38")
    changed = "Expected the config that the run in runs/diverged began with, got changes"
    for more, codes, message in (
        ((), ["2:0"], "Expected finite weights, got others after step 1"),
        (("--model.temperature=0.3",), ["2:0", "137:0"], changed),  # who waits for a connection hears SIGKILL alone
    ):
        job = cluster.submit(*fit, *more)
        cluster.until_done(job)
        state, log = cluster.state(job), (cluster.folder / f"slurm-{job}.out").read_text()
        assert (state["JobState"], state["Restarts"]) == ("FAILED", "0") and state["ExitCode"] in codes, log
        assert log.count(f"error: {message}") == 1
