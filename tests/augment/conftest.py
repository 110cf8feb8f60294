import numpy as np
import pytest
import torch


@pytest.fixture
def noise_images():
    """(B,C,H,W) uint8: independent pixels, the hardest case for interpolation and hue, with flat and grey parts."""

    def make(n, channels, height, width, seed=0):
        images = np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)
        images[:, :, : height // 4] = images[:, :1, : height // 4]  # grey: no hue
        images[:, :, : height // 8, : width // 4] = 0
        images[:, :, : height // 8, width // 4 : width // 2] = 255
        return torch.from_numpy(images)

    return make
