"""A run begun on 2 ranks goes on with 1 and then 4, with the same global batch, as if nothing had been."""

import json

import pytest
import torch
import yaml

from benchmarks.resume import make_images
from benchmarks.starts import Starter
from csrtrain.models.weights import read_torch
from csrtrain.runs.checkpoints import newest

STEPS = 20
COMMON = {"size": 32, "projection_dim": 16, "learning_rate": 0.05}
METHODS = {
    "SimCLR": {"backbone": "test_vit", "optimizer": "sgd", **COMMON},
    "MoCo": {"backbone": "test_vit", "queue_size": 20, "momentum": 0.9, **COMMON},
}


@pytest.fixture(scope="module")
def starter():
    with Starter() as one:
        yield one


def record(path, ranks):
    """step -> (mean loss; in rank order images, digests of drawn parameters, and what the views are like)."""
    found = {}
    lines = [[json.loads(line) for line in open(f"{path}.{rank}")] for rank in range(ranks)]
    for of_ranks in zip(*lines, strict=True):
        assert len({line["step"] for line in of_ranks}) == 1
        parts = (sum((line[key] for line in of_ranks), []) for key in ("images", "drawn", "views"))
        found[of_ranks[0]["step"]] = (sum(line["loss"] for line in of_ranks) / ranks, *parts)
    return found


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("method", list(METHODS))
def test_ranks_may_change(starter, tmp_path, method):
    make_images(tmp_path / "images")
    config = {
        "seed_everything": 5,
        "model": {"class_path": f"csrtrain.pretrain.{method}", "init_args": METHODS[method]},
        "data": {
            "class_path": "csrtrain.data.unlabeled.UnlabeledData",
            "init_args": {
                "root": str(tmp_path / "images"),
                "cache_dir": str(tmp_path / "cache"),
                "channels": 1,
                "modality": "mri",
                "load_size": 40,
                "batch_size": 8,
                "workers": 0,
            },
        },
        "trainer": {"max_epochs": 5, "accelerator": "cpu"},
    }
    (tmp_path / "elastic.yaml").write_text(yaml.safe_dump(config))

    def fit(run, ranks, stop=0):
        name = f"{run}-{ranks}"
        arguments = ["fit", "-c", str(tmp_path / "elastic.yaml"), f"--trainer.default_root_dir={tmp_path / run}"]
        arguments += [f"--trainer.devices={ranks}", f"--trainer.strategy={'ddp' if ranks > 1 else 'auto'}"]
        patch = f"tests.runs.elastic_worker:prepare:{tmp_path / name},{stop}"
        start = starter.start(arguments, tmp_path / f"{name}.log", ranks, patch=patch)
        assert starter.wait(start, 300) == [143 if stop else 0] * ranks, (tmp_path / f"{name}.log").read_text()[-3000:]
        return record(tmp_path / name, ranks)

    whole = fit("whole", 2)
    assert list(whole) == list(range(1, STEPS + 1))
    parts = {}
    for ranks, stop in ((2, 7), (1, 13), (4, 0)):
        part = fit("parts", ranks, stop)
        assert not parts.keys() & part.keys()
        parts |= part
    assert list(parts) == list(whole)
    for step, (loss, images, drawn, views) in whole.items():
        assert (images, drawn) == parts[step][1:3], step
        assert views == pytest.approx(parts[step][3], abs=1e-8), step  # float32, rounded by the size of the batch
        assert abs(loss - parts[step][0]) <= 1e-8, step
    a, b = (read_torch(newest(tmp_path / run)) for run in ("whole", "parts"))
    for name, value in a["state_dict"].items():
        if torch.is_tensor(value):
            assert value.dtype == torch.float64 and torch.allclose(value, b["state_dict"][name], rtol=0, atol=1e-7), (
                name
            )
        else:
            assert value == b["state_dict"][name]  # where the queue goes on
    assert a["UnlabeledData"] == b["UnlabeledData"]


@pytest.mark.ddp
@pytest.mark.slow
def test_a_batch_that_the_ranks_cannot_share_is_refused(starter, tmp_path):
    make_images(tmp_path / "images")
    arguments = ["fit", "-c", "medical_simclr", f"--data.root={tmp_path / 'images'}", "--data.batch_size=7"]
    arguments += [f"--data.cache_dir={tmp_path / 'cache'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    start = starter.start([*arguments, "--trainer.devices=2", "--trainer.strategy=ddp"], tmp_path / "log", 2)
    assert starter.wait(start, 300) == [2, 2]
    said = (tmp_path / "log").read_text()
    assert "Expected data.batch_size to be a multiple of the 2 devices, got 7" in said and "Traceback" not in said
