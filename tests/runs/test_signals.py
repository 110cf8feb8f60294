import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch import Trainer

from benchmarks.resume import faults
from csrtrain.cli import main
from csrtrain.data.unlabeled import UnlabeledData
from csrtrain.pretrain import SimCLR
from csrtrain.runs import checkpoints, signals
from csrtrain.runs.agreement import Agreement

BATCHES = 4


@pytest.fixture(autouse=True)
def own_handlers():
    """A process that is stopped keeps its handlers until it ends; this one goes on."""
    before = signals.handlers()
    yield
    signals.restore(before)


@pytest.fixture
def fit(images, tmp_path):
    def run(name, *arguments):
        return main(
            [
                *("fit", "-c", "medical_simclr", "--model.backbone=test_resnet", "--model.size=32"),
                *("--data.load_size=40", "--data.batch_size=4", "--data.workers=0", "--data.min_epoch_length=16"),
                *("--trainer.max_epochs=2", f"--data.root={images}", f"--data.cache_dir={tmp_path / 'cache'}"),
                *("--trainer.log_every_n_steps=1", f"--trainer.default_root_dir={tmp_path / name}", *arguments),
            ]
        )

    return run


def send_in(monkeypatch, method, call, *numbers):
    """Send signals to this process in the n-th call of a method."""
    calls = [0]
    original = getattr(*method)

    def sending(self, *arguments, **named):
        calls[0] += 1
        if calls[0] == call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return original(self, *arguments, **named)

    monkeypatch.setattr(*method, sending)


@pytest.mark.parametrize(
    "numbers, arguments, call, step",
    [
        ((signal.SIGTERM,), (), 1, 1),
        ((signal.SIGTERM, signal.SIGTERM), (), 3, 3),
        pytest.param((signal.SIGUSR1,), (), 6, 6, marks=pytest.mark.slow),
        pytest.param((signal.SIGUSR1, signal.SIGTERM), (), BATCHES, BATCHES, marks=pytest.mark.slow),
        ((signal.SIGTERM,), ("--trainer.accumulate_grad_batches=2",), 1, 1),
    ],
)
def test_a_signal_is_answered_after_the_step_and_the_run_goes_on_exactly(
    fit, monkeypatch, tmp_path, capsys, numbers, arguments, call, step
):
    assert fit("whole", *arguments) == 0
    with monkeypatch.context() as patch:
        send_in(patch, (SimCLR, "training_step"), call, *numbers)
        with pytest.raises(SystemExit) as left:
            fit("run", *arguments)
    assert left.value.code == 143
    name = "SIGTERM" if signal.SIGTERM in numbers else "SIGUSR1"
    assert f"Stopped by {name} after step {step}, which is saved." in capsys.readouterr().err
    assert checkpoints.newest(tmp_path / "run").name == f"step-{step:09d}.ckpt"
    assert fit("run", *arguments) == 0
    assert faults(tmp_path / "whole", tmp_path / "run") == []
    whole, parts = ((tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "run"))
    assert len(parts) == len(whole)


@pytest.mark.parametrize("call, step", [pytest.param(1, None, marks=pytest.mark.slow), (5, BATCHES)])
def test_a_signal_while_validating(fit, images, monkeypatch, tmp_path, call, step):
    """Four batches of the untrained backbone, and the fifth after epoch 0, which is saved."""
    labels = f"--data.labels={images / 'labels.csv'}"
    assert fit("whole", labels) == 0
    with monkeypatch.context() as patch:
        send_in(patch, (SimCLR, "validation_step"), call, signal.SIGTERM)
        with pytest.raises(SystemExit) as left:
            fit("run", labels)
    assert left.value.code == 143
    newest = checkpoints.newest(tmp_path / "run")
    assert newest is None if step is None else newest.name == f"step-{step:09d}.ckpt"
    assert fit("run", labels) == 0
    assert faults(tmp_path / "whole", tmp_path / "run") == []


def test_a_signal_before_training_ends_the_process(fit, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        send_in(patch, (UnlabeledData, "prepare_data"), 1, signal.SIGUSR1)
        with pytest.raises(SystemExit) as left:
            fit("run")
    assert left.value.code == 143
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert fit("run") == 0


def test_the_keyboard_ends_a_run_with_130(fit, monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with monkeypatch.context() as patch:
            send_in(patch, (SimCLR, "training_step"), 6, signal.SIGINT)
            assert fit("run") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on from the newest checkpoint" in capsys.readouterr().err
    assert fit("run") == 0


@pytest.mark.parametrize("at, code", [((SimCLR, "training_step"), 0), ((UnlabeledData, "prepare_data"), 2)])
def test_of_the_ranks_of_srun_the_first_one_says_that_it_was_stopped(fit, monkeypatch, at, code):
    """A second one that says 143 would have a run that has failed queued again: srun takes the largest code."""
    monkeypatch.setenv("SLURM_PROCID", "1")
    with monkeypatch.context() as patch:
        send_in(patch, at, 1, signal.SIGTERM)
        with pytest.raises(SystemExit) as left:
            fit("run")
    assert left.value.code == code


@pytest.mark.parametrize("option", ["--data.batch_size=0", "--data.batchsize=1"])
def test_under_srun_an_error_stays_an_error_when_a_signal_follows(fit, monkeypatch, option):
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert fit("run", option) == 2
    assert signals.handlers() == signals.IGNORED
    monkeypatch.delenv("SLURM_PROCID")
    signals.restore({number: signal.SIG_DFL for number in signals.IGNORED})
    assert fit("run", option) == 2
    assert set(signals.handlers().values()) == {signal.SIG_DFL}


def test_after_the_last_step_there_is_nothing_to_stop(fit, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        send_in(patch, (SimCLR, "training_step"), 2 * BATCHES, signal.SIGTERM)
        assert fit("run") == 0
    assert checkpoints.newest(tmp_path / "run").name == f"step-{2 * BATCHES:09d}.ckpt"


def test_handlers_are_as_before_when_a_run_has_ended(fit):
    before = signals.handlers()
    assert fit("run") == 0
    assert signals.handlers() == before


def test_lightning_still_has_what_is_switched_off():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert callable(trainer._signal_connector.register_signal_handlers)
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize(
    "environment, job", [({}, "17"), ({"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "3"}, "16_3")]
)
def test_slurm_is_asked_to_queue_the_job_again(tmp_path, monkeypatch, capsys, environment, job, status):
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit {status}\n')
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    signals.leave(signals.Stopped(signals._REQUEUE, 5))
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
    assert ("failed" in capsys.readouterr().err) == bool(status)
    (tmp_path / "asked").unlink()
    signals.leave(signals.Stopped(signals._STOP, 5))
    assert not (tmp_path / "asked").exists()


def test_without_scontrol_the_job_script_has_to_requeue(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    signals.leave(signals.Stopped(signals._REQUEUE, 5))
    assert "no scontrol" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rank_that_the_first_one_started_dies_with_it():
    parent = (
        "import os, subprocess, sys, time\n"
        "from csrtrain.runs import signals\n"
        "signals.announce_parent()\n"
        "code = 'from csrtrain.runs import signals; import time; assert signals.follow_parent(); "
        'print("follows", flush=True); time.sleep(120)\'\n'
        "subprocess.Popen([sys.executable, '-c', code]); time.sleep(120)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "follows\n"
    process.kill()
    begun = time.monotonic()
    process.wait()
    assert process.stdout.read() == ""  # ends when the child, which holds the pipe too, is gone
    assert time.monotonic() - begun < 60  # by itself it would sleep longer


def test_a_foreign_rank_follows_nobody(monkeypatch):
    monkeypatch.setenv("CSRTRAIN_PARENT", "1")
    assert not signals.follow_parent()


def test_verdicts_come_in_order_and_as_late_as_on_a_gpu(no_host_reads):
    agreement = Agreement(lag=2)
    read = []
    for step in range(5):
        with no_host_reads():
            agreement.vote(torch.full((), int(step == 1), dtype=torch.int32), step)
        read.append([about for _, about in agreement.verdicts()])
    assert read == [[], [], [0], [1], [2]]
    agreement.vote(torch.ones((), dtype=torch.int32), 5)
    assert list(agreement.verdicts(all_of_them=True)) == [(0, 3), (0, 4), (1, 5)]
    assert not agreement.is_open
    at_once = Agreement()
    at_once.vote(torch.ones((), dtype=torch.int32))
    assert list(at_once.verdicts()) == [(1, None)]
