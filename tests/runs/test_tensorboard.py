"""TensorBoard by config: Lightning's logger, in the run directory, read back from its event files."""

import importlib.util
import os
import subprocess
import sys

import pytest

LOGGER = "lightning.pytorch.loggers.TensorBoardLogger"
NEEDED = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is an extra")


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@NEEDED
def test_an_interrupted_run_goes_on_in_the_same_place_without_a_repeat(fit, interrupt, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = [f"--trainer.logger.save_dir={tmp_path / 'elsewhere'}", "--trainer.max_epochs=3"]
    assert fit(whole, *more, logger=LOGGER) == 0
    for step in (3, 5):  # each has one step behind its checkpoint
        with interrupt(step):
            fit(stopped, *more, logger=LOGGER)
    assert fit(stopped, *more, logger=LOGGER) == 0
    assert len(list((stopped / "tensorboard").glob("events.*"))) == 3 and not (tmp_path / "elsewhere").exists()
    found = scalars(stopped / "tensorboard")
    assert [step for step, _ in found["train/loss"]] == list(range(6))
    assert found == scalars(whole / "tensorboard")
    assert {"train/epoch_loss", "train/effective_rank"} <= found.keys() and "hp_metric" not in found
    assert (stopped / "tensorboard" / "hparams.yaml").read_text().strip() in ("", "{}")


@pytest.mark.slow
def test_without_the_package_the_error_says_what_to_install(arguments, tmp_path):
    """Packages of that name whose import fails stand before the real ones."""
    (tmp_path / "broken" / "tensorboard").mkdir(parents=True)
    (tmp_path / "broken" / "tensorboard" / "__init__.py").write_text("raise ImportError('none here')\n")
    path = os.pathsep.join([str(tmp_path / "broken"), os.environ.get("PYTHONPATH", ""), os.getcwd()])
    command = arguments(tmp_path / "run", f"--trainer.logger.save_dir={tmp_path}", logger=LOGGER)
    done = subprocess.run(
        [sys.executable, "-m", "csrtrain", *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if importlib.util.find_spec("tensorboardX") is None:
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "Expected the package tensorboard for lightning.pytorch.loggers.TensorBoardLogger" in done.stderr
        assert "pip install 'csrtrain[tensorboard]'" in done.stderr
        assert not (tmp_path / "run").exists()
