"""What the job script makes of words, signals and exit codes; `csrtrain` is a stand-in that says how it was called."""

import fcntl
import os
import shutil

import psutil
import pytest

pytestmark = pytest.mark.slurm


@pytest.fixture
def stand_in(cluster, tmp_path):
    """A function: the body of a csrtrain -> the same cluster with it, in a folder of its own."""

    def make(body):
        program = tmp_path / "bin/csrtrain"
        program.parent.mkdir()
        program.write_text(f"#!/usr/bin/env bash\n{body}\n")
        program.chmod(0o755)
        return cluster.beside(tmp_path, CSRTRAIN_ENV="none", PATH=f"{program.parent}:{os.environ['PATH']}")

    return make


SAY = 'printf "%s|" "$SLURM_PROCID/$SLURM_NTASKS" "$OMP_NUM_THREADS" "$@" >> "said-$SLURM_JOB_NAME-$SLURM_PROCID"'


def test_a_line_of_a_sweep_goes_to_its_task_and_quotes_are_kept(stand_in):
    made = stand_in(SAY.replace("$SLURM_JOB_NAME", "$SLURM_ARRAY_TASK_ID"))
    (made.folder / "sweep.txt").write_text("--a 1\n--b=\"x y\" '$(touch evil)' --c\n")
    job = made.submit("--array=1-3", "--job-name=s", "fit", "-c", "x y.yaml", CSRTRAIN_SWEEP="sweep.txt")
    made.until_done(job)
    rest = "--trainer.num_nodes=1|--trainer.devices=1|"
    first = f"0/1|1|fit|-c|x y.yaml|--a|1|--trainer.default_root_dir=runs/s/line-1|{rest}"
    assert (made.folder / "said-1-0").read_text() == first, made.log()
    second = f"0/1|1|fit|-c|x y.yaml|--b=x y|$(touch evil)|--c|--trainer.default_root_dir=runs/s/line-2|{rest}"
    assert (made.folder / "said-2-0").read_text() == second
    assert not (made.folder / "said-3-0").exists() and not (made.folder / "evil").exists()
    assert "Expected options in line 3 of sweep.txt, got none" in made.log()


def test_a_verb_other_than_fit_is_one_task_that_no_warning_ends(stand_in):
    made = stand_in(f"touch started; sleep 3; {SAY}")
    job = made.submit("--nodes=2", "--job-name=one", "score", "m.safetensors", "a b.png")
    made.wait_for((made.folder / "started").exists)
    made.call("scancel", "--signal=USR1", job)
    made.until_done(job)
    assert (made.folder / "said-one-0").read_text() == "0/1|1|score|m.safetensors|a b.png|", made.log()
    assert not (made.folder / "said-one-1").exists()
    assert made.state(job)["JobState"] == "COMPLETED"


def test_a_staged_folder_is_read_from_the_disk_of_the_node(stand_in, tmp_path):
    if not shutil.which("rsync"):
        pytest.skip("no rsync")
    made = stand_in(f'{SAY}; cat "${{3#*=}}"/* >> said-content')
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a").write_text("pixels")
    environment = {"CSRTRAIN_STAGE": "images/", "CSRTRAIN_SCRATCH": str(tmp_path / "scratch")}
    words = ("fit", "-c", "--data.root=images", "images/a", "imagesque")
    made.until_done(made.submit("--job-name=st", *words, **environment))
    copy = next((tmp_path / "scratch").glob("csrtrain-*/images-*[0-9]"))
    said = (made.folder / "said-st-0").read_text()
    assert said.startswith(f"0/1|1|fit|-c|--data.root={copy}|{copy}/a|imagesque|--trainer.default"), made.log()
    assert (made.folder / "said-content").read_text() == "pixels"
    assert copy.parent.stat().st_mode & 0o077 == 0


def test_a_job_that_is_warned_while_it_copies_is_requeued(stand_in, tmp_path):
    if not shutil.which("rsync"):
        pytest.skip("no rsync")
    made = stand_in('cat "${3#*=}"/* >> said-content')
    source, scratch = tmp_path / "images", tmp_path / "scratch"
    source.mkdir()
    (source / "a").write_text("pixels")
    name = made.call("bash", "-c", 'echo "images-$(cksum <<<"$0" | cut -d " " -f 1).lock"', source)
    lock = scratch / f"csrtrain-{made.call('id', '-un')}" / name
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:  # the copy of another job
        fcntl.flock(held, fcntl.LOCK_EX)
        environment = {"CSRTRAIN_STAGE": str(source), "CSRTRAIN_SCRATCH": str(scratch)}
        job = made.submit("--job-name=copies", "fit", "-c", f"--data.root={source}", **environment)
        made.wait_for(lambda: any(str(lock) in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])))
        made.call("scancel", "--signal=USR1", job)
        made.wait_for(lambda: made.state(job)["Restarts"] == "1", 20)
        assert not (made.folder / "said-content").exists()
    made.until_done(job)
    assert made.state(job)["JobState"] == "COMPLETED", made.log()
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
def test_how_a_run_ends_decides_over_the_job(stand_in, body, state, restarts):
    made = stand_in(f"echo $1 >> calls; [[ $1 == fit ]] || exit 0; {body}")
    job = made.submit("--job-name=ends", "fit", "-c", "x", CSRTRAIN_EXPORT="b.safetensors")
    made.until_done(job)
    found = made.state(job)
    assert (found["JobState"], found["Restarts"]) == (state, str(restarts)), made.log()
    calls = (made.folder / "calls").read_text().split()
    assert calls == ["fit"] * (restarts + 1) + ["export"] * (state == "COMPLETED")  # of a whole run only


def test_a_job_that_never_comes_to_a_checkpoint_is_not_requeued_for_ever(stand_in):
    # The first start leaves what the last of four vain ones would.
    made = stand_in('((SLURM_RESTART_COUNT)) || echo "4 " >runs/vain/.starts; exit 143')
    job = made.submit("--job-name=vain", "fit", "-c", "x")
    made.until_done(job)
    assert (made.state(job)["Restarts"], made.state(job)["ExitCode"]) == ("1", "2:0"), made.log()
    assert "Expected a new checkpoint in one of the last five starts" in made.log()


def test_a_cancelled_job_is_not_requeued(stand_in):
    made = stand_in("trap 'touch stopped; exit 143' TERM; touch started; while true; do sleep 0.1; done")
    job = made.submit("--job-name=gone", "fit", "-c", "x")
    made.wait_for((made.folder / "started").exists)
    made.call("scancel", job)
    made.until_done(job)
    assert (made.folder / "stopped").exists()  # it had time to save
    assert (made.state(job)["JobState"], made.state(job)["Restarts"]) == ("CANCELLED", "0")


@pytest.mark.parametrize(
    ("options", "words", "message"),
    [
        ([], ["fit", "--trainer.default_root_dir=x"], "Expected the run directory in CSRTRAIN_RUN"),
        (["--job-name=bash"], ["fit"], "Expected another job name, got bash"),
    ],
)
def test_wrong_use_is_refused(stand_in, options, words, message):
    made = stand_in("touch called")
    job = made.submit(*options, *words)
    made.until_done(job)
    assert message in made.log() and made.state(job)["ExitCode"] == "2:0"
    assert not (made.folder / "called").exists()
