"""The peers of benchmarks/distortions.py do what ours does, so that their times compare."""

import numpy as np
import pytest
import torch

from benchmarks.distortions import photographs
from benchmarks.peers import DIRECT, PEERS
from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.distort import NATURAL, ROWS

RANDOM = ("motion_blur", "color_shift", "white_noise", "white_noise_ycbcr", "impulse_noise", "multiplicative_noise")
RANDOM += ("denoise", "jitter", "non_eccentricity_patches", "color_blocks")


@pytest.fixture(scope="module")
def images():
    return photographs(4, 96)


def both(name, images, level, peers=PEERS):
    """Ours and the peer's, in [0,1]: (n,3,H,W) each."""
    bank, peer, n = DistortionBank([ROWS[name]]), peers[name], len(images)
    floats, random = images.float() / 255, np.random.default_rng(0)
    ours = bank(floats, bank.drawn(np.zeros((n, 1), dtype=np.int64), np.full((n, 1), level), np.arange(n)[:, None]))
    taken = (floats if peer.floats else images).permute(0, 2, 3, 1).numpy()
    value = ROWS[name].values[int(level) - 1]
    made = np.stack([peer.function(image, value, random) for image in taken])
    return ours, torch.from_numpy(made.astype(np.float32) / (1 if peer.floats else 255)).permute(0, 3, 1, 2).clamp(0, 1)


@pytest.mark.filterwarnings("ignore:.*negative Z values")
@pytest.mark.parametrize("level", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("name", [row.name for row in NATURAL if row.name not in (*RANDOM, "color_quantization")])
def test_a_peer_does_what_ours_does(images, name, level):
    ours, theirs = both(name, images, level)
    assert float((ours - theirs).abs().mean()) < 0.004  # a step of a byte


@pytest.mark.parametrize("level", [1.0, 3.0, 5.0])
def test_the_palettes_of_ours_and_of_the_peer_are_as_large_and_as_near(images, level):
    ours, theirs = both("color_quantization", images, level)
    errors = [(made - images / 255).square().mean() for made in (ours, theirs)]
    assert 0.3 < float(errors[0] / errors[1]) < 1.2
    colors = ROWS["color_quantization"].values[int(level) - 1]
    for made in (ours, theirs):
        assert all(len(torch.unique(image.flatten(1), dim=1)[0]) <= colors for image in made)


@pytest.mark.parametrize("level", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("name", ["saturate_hsv", "quantize_levels"])
def test_a_plain_peer_does_what_ours_does(images, name, level):
    ours, theirs = both(name, images, level, DIRECT)
    assert float((ours - theirs).abs().mean()) < 0.004
