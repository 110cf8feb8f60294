"""Small scenes with noise, a bundle and tables, for heads that compare images."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from csrtrain import bundle
from csrtrain.models.backbone import Backbone

SCENES, VERSIONS = 12, 5


@pytest.fixture
def save_bundle():
    def save(path, channels=3, seed=0):
        torch.manual_seed(seed)
        backbone = Backbone("test_resnet", channels=channels)
        bundle.save(path, backbone, bundle.header_for(backbone, features={"scales": [1.0, 0.5], "l2": True}))

    return save


@pytest.fixture
def noise(save_bundle, tmp_path):
    """(12,5) how much noise is in each version of each scene, `K-V.png` of `K.png`; every other one is brighter, too.

    Beside them `a.safetensors`, an untrained backbone.
    """
    save_bundle(tmp_path / "a.safetensors")
    rng = np.random.default_rng(0)
    noise = rng.uniform(2, 40, (SCENES, VERSIONS))
    for k in range(SCENES):
        scene = rng.integers(60, 170, (5, 6, 3)).repeat(8, 0).repeat(8, 1)
        Image.fromarray(scene.astype(np.uint8)).save(tmp_path / f"{k}.png")
        for v in range(VERSIONS):
            image = scene + noise[k, v] * rng.standard_normal(scene.shape) + 40 * (v % 2)
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(tmp_path / f"{k}-{v}.png")
    return noise


@pytest.fixture
def write_table():
    def write(path, rows):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return write
