import errno
import os
import subprocess
import sys
import threading
import time

import pytest
import yaml

from csrtrain.runs import directory

CONFIG = {
    "seed_everything": 0,
    "data": {"init_args": {"root": "a", "workers": 2}},
    "trainer": {"max_epochs": 3, "accumulate_grad_batches": 1},
}


def changed(**values):
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    for path, value in values.items():
        *parents, key = path.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[key] = value
    return config


def begin(run_dir, config):
    directory.check_config(run_dir, config)
    directory.keep_config(run_dir, config)


def test_first_start_keeps_the_config_and_the_same_one_may_resume(tmp_path):
    begin(tmp_path, CONFIG)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG
    begin(tmp_path, CONFIG)
    assert len(list(tmp_path.glob("config.resume-*.yaml"))) == 1


@pytest.mark.parametrize("path, value", [("data__init_args__workers", 0), ("trainer__max_epochs", 9)])
def test_keys_that_cannot_change_the_result_may_change(tmp_path, path, value):
    begin(tmp_path, CONFIG)
    begin(tmp_path, changed(**{path: value}))


@pytest.mark.parametrize(
    "path, value", [("seed_everything", 1), ("data__init_args__root", "b"), ("trainer__accumulate_grad_batches", 2)]
)
def test_a_change_that_matters_is_refused_with_the_difference(tmp_path, path, value):
    begin(tmp_path, CONFIG)
    with pytest.raises(directory.RunRefused, match=rf"{path.replace('__', '.')}: .* -> {value}"):
        directory.check_config(tmp_path, changed(**{path: value}))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


BOMB = b"a0: &a0 [x, {}]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d, {}]\n" % (k, k, k - 1, k - 1) for k in range(1, 40))


@pytest.mark.parametrize(
    "content", [b"", b"- 1", b"a: [", b"\xff\xfe\x00", b"trainer: 1", b"trainer: {callbacks: 1}", BOMB]
)
def test_a_damaged_config_is_refused(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(directory.RunRefused, match=r"Expected .* in .*config.yaml, got .*begin anew with --fresh"):
        directory.check_config(tmp_path, CONFIG)


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from csrtrain.runs import directory\n"
        "held = directory.lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(directory.RunRefused, match=f"in use by process {holder.pid}"):
            directory.lock(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    for _ in range(50):  # the kernel frees the lock with the process
        try:
            directory.lock(tmp_path).close()
            break
        except directory.RunRefused:
            time.sleep(0.1)
    else:
        pytest.fail("the lock outlived its process")


@pytest.fixture
def holder(tmp_path):
    """Another process that has taken the directory, in SLURM job 17."""
    code = (
        "import sys, time; from pathlib import Path; from csrtrain.runs import directory\n"
        "held = directory.lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SLURM_JOB_ID": "17"},
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_requeued_job_waits_for_its_predecessor(tmp_path, monkeypatch, holder):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(directory.RunRefused, match="in use by process .* of SLURM job 17"):
        directory.lock(tmp_path, wait=0.3)
    threading.Timer(0.5, holder.kill).start()
    directory.lock(tmp_path, wait=30).close()


def test_another_job_does_not_wait(tmp_path, monkeypatch, holder):
    monkeypatch.setattr(directory.time, "sleep", lambda seconds: pytest.fail("waited"))
    for job in ("18", "117", None):
        if job:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        else:
            monkeypatch.delenv("SLURM_JOB_ID")
        with pytest.raises(directory.RunRefused, match="of SLURM job 17"):
            directory.lock(tmp_path)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(directory.fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="has no locks. See to it that no second job"):
        directory.lock(tmp_path).close()


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(directory.RunRefused, match=r"can be written to, got .*file/run \(Not a directory\)"):
        directory.lock(tmp_path / "file" / "run")


def test_what_is_kept_and_whether_to_go_on_may_change(tmp_path):
    keeper = {"class_path": "csrtrain.runs.checkpoints.RunCheckpoint", "init_args": {"every_n_steps": 5}}
    guard = {"class_path": "csrtrain.runs.nonfinite.StopOnNonFinite", "init_args": {"skip": 3}}
    other = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    begin(tmp_path, changed(trainer__callbacks=[keeper]))
    directory.check_config(tmp_path, changed(trainer__callbacks=[guard]))
    directory.check_config(tmp_path, CONFIG)
    with pytest.raises(directory.RunRefused, match="trainer.callbacks"):
        directory.check_config(tmp_path, changed(trainer__callbacks=[keeper, other]))


def test_set_aside_numbers_old_runs(tmp_path):
    run = tmp_path / "run"
    names = []
    for _ in range(2):
        run.mkdir()
        names.append(directory.set_aside(run).name)
    assert names == ["run.old-1", "run.old-2"]
    assert not run.exists()
