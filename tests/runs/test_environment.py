import importlib.metadata
import json
import os
import platform
import re
import socket
from types import SimpleNamespace

import pytest
import torch

from csrtrain.runs import environment


def trainer(world_size=2):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(strategy=strategy, precision="bf16-mixed", num_nodes=1, world_size=world_size)


def test_versions_hardware_and_nothing_that_names_a_machine_or_a_person():
    found = environment.describe(trainer())
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert {"csrtrain", "lightning", "numpy", "pydicom", "timm"} <= found["packages"].keys()
    assert not {"onnx", "pytest", "tensorboard"} & found["packages"].keys()  # extras
    assert (found["precision"], found["world_size"], found["accelerator"], found["devices"]) == (
        "bf16-mixed",
        2,
        "cpu",
        [],
    )
    assert found["cpu_cores"] >= 1 and found["memory_gb"] > 0.1 and found["strategy"] == "SimpleNamespace"
    text = json.dumps(found)
    for private in (socket.gethostname(), os.path.expanduser("~"), os.getcwd()):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", text) or len(private) < 3
    assert "/" not in text.replace(found["cpu"], "")


def test_the_first_start_is_kept_and_a_later_one_only_when_it_differs(tmp_path):
    first, other = environment.describe(trainer()), environment.describe(trainer(world_size=4))
    environment.keep(tmp_path, first)
    environment.keep(tmp_path, first)
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]
    environment.keep(tmp_path, other)
    (later,) = tmp_path.glob("environment.resume-*.json")
    assert json.loads((tmp_path / "environment.json").read_text()) == first
    assert json.loads(later.read_text())["world_size"] == 4


@pytest.mark.parametrize("half_a_row", [True, False])
def test_spectrum_is_one_row_per_epoch_also_after_a_stop(fit, interrupt, rows, tmp_path, half_a_row):
    """A kill left half a row, or an empty file."""
    run = tmp_path / "run"
    with interrupt(3):
        fit(run, "--trainer.max_epochs=2", logger=None)
    text = (run / "spectrum.csv").read_text()
    (run / "spectrum.csv").write_text(text + "\0\0\n3,0.25,0.1" if half_a_row else "")
    assert fit(run, "--trainer.max_epochs=2", logger=None) == 0
    found = rows(run / "spectrum.csv")
    assert [row["step"] for row in found] == (["1", "3"] if half_a_row else ["3"])
    assert list(found[0]) == ["step", *(f"share_{i}" for i in range(1, 129))]
    shares = [float(value) for name, value in found[-1].items() if name != "step"]
    assert sum(shares) == pytest.approx(1, abs=1e-4) and shares == sorted(shares, reverse=True)
    rank = next(row["train/effective_rank"] for row in rows(run / "metrics.csv")[::-1] if row["train/effective_rank"])
    entropy = -sum(share * torch.tensor(share).log().item() for share in shares if share > 0)
    assert torch.tensor(entropy).exp().item() == pytest.approx(float(rank), rel=1e-4)
    assert json.loads((run / "environment.json").read_text())["precision"] == "32-true"
