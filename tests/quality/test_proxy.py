import numpy as np
import pytest
import torch

import csrtrain
from csrtrain.cli import main
from csrtrain.quality import ProxyData

SMALL = ["--data.sources=10", "--data.types_per_source=2", "--data.side=176", "--model.backbone=test_resnet"]


@pytest.fixture(scope="module")
def data():
    return ProxyData(sources=10, types_per_source=3, side=176)


def test_pristine_images_are_best_and_stronger_distortion_is_worse(data):
    rated = data.rated
    assert len(rated) == 40 and rated.rating_name == "proxy" and rated.higher_is_better
    ratings = rated.ratings.reshape(10, 4)
    assert np.allclose(ratings[:, 0], 1, atol=1e-6) and (ratings[:, 1:] <= 1).all() and ratings.min() >= 0
    assert ratings[:, 1:].std() > 0.05 and not any("mos" in name for name in rated.columns)
    assert rated.addresses[0].endswith("pristine")


def test_whole_sources_are_split(data):
    splits = np.array(data.rated.splits)
    for group in np.unique(data.rated.groups):
        assert len(set(splits[data.rated.groups == group])) == 1
    assert 0.1 < (splits == "test").mean() < 0.35


def test_the_same_every_time_and_every_row_once(data):
    again = ProxyData(sources=10, types_per_source=3, side=176)
    assert np.array_equal(again.rated.ratings, data.rated.ratings) and again.rated.digest == data.rated.digest
    assert not np.array_equal(
        ProxyData(sources=10, types_per_source=3, side=176, seed=1).rated.ratings, data.rated.ratings
    )
    rows = [row for batch in data.train_dataloader() for row in batch.rows]
    assert sorted(rows) == list(range(40))
    first = next(iter(data.train_dataloader()))
    assert first.images.dtype == torch.uint8 and first.images.shape[1:] == (3, 176, 176)


def test_the_config_from_end_to_end(tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["fit", "-c", "quickstart_nr", *SMALL, f"--trainer.default_root_dir={run}", "--trainer.accelerator=cpu"]
    assert main([*arguments, "--model.learning_curve=false"]) == 0
    said = capsys.readouterr().out
    assert "(proxy, 0 to 1)" in said and "no opinion of people" in said and "mos" not in said
    assert main(["export", str(run), "-o", str(tmp_path / "m.safetensors")]) == 0
    header = csrtrain.load(tmp_path / "m.safetensors").header
    assert header.score["pristine"] > 50
    assert header.score["ratings"] == "proxy" and "no opinion" in header.training["data"]["proxy"]


@pytest.mark.parametrize("option", ["sources=3", "types_per_source=0", "side=64", "batch_size=0"])
def test_bad_options(option, capsys):
    assert main(["fit", "-c", "quickstart_nr", f"--data.{option}"]) == 2
    assert "Expected data.sources >= 10" in capsys.readouterr().err
