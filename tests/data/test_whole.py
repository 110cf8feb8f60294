import numpy as np
import pytest
import torch
from PIL import Image

from csrtrain.data import whole
from csrtrain.data.whole import whole_images


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(9):
        shape = (20, 30, 3) if k % 3 else (16, 12, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9))
    np.save(tmp_path / "no_image.npy", np.zeros(3))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_image_once_in_batches_of_one_shape(folder, workers, batch_size):
    addresses = [str(folder / f"{k}.png") for k in range(9)]
    seen = {}
    for batch in whole_images(addresses, 3, batch_size, workers):
        assert 1 <= len(batch.rows) == len(batch.images) <= batch_size
        seen |= dict(zip(batch.rows, batch.images, strict=True))
    assert sorted(seen) == list(range(9))
    for row, image in seen.items():
        expected = np.asarray(Image.open(addresses[row]))
        np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(folder):
    addresses = [str(folder / name) for name in ("0.png", "broken.png", "missing.png", "no_image.npy", "1.png")]
    batches = list(whole_images(addresses, 3))
    broken = {batch.rows[0]: batch.reason for batch in batches if batch.images is None}
    assert sorted(broken) == [1, 2, 3]
    assert all(addresses[row] in reason for row, reason in broken.items())
    assert sorted(row for batch in batches if batch.images is not None for row in batch.rows) == [0, 4]


def test_channels_that_cannot_be_made_are_named(folder):
    (batch,) = whole_images([str(folder / "0.png")], 5)
    assert batch.images is None and "0.png" in batch.reason and "channels" in batch.reason


def test_large_images_go_alone_and_few_wait(folder, monkeypatch):
    monkeypatch.setattr(whole, "_PIXELS", 600)
    addresses = [str(folder / f"{k}.png") for k in range(9)]
    sizes = {tuple(b.images.shape[2:]): len(b.rows) for b in whole_images(addresses, 3, 16)}
    assert sizes == {(20, 30): 1, (16, 12): 3}
    monkeypatch.setattr(whole, "_WAITING", 0)
    assert max(len(b.rows) for b in whole_images(addresses, 3, 16)) == 1


def test_deep_images_are_floats_and_not_mixed_with_bytes(folder):
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    batches = list(whole_images([str(folder / "1.png"), str(folder / "deep.png")], 1))
    assert {batch.images.dtype for batch in batches} == {torch.uint8, torch.float32}
    (floats,) = [batch.images for batch in batches if batch.images.dtype == torch.float32]
    np.testing.assert_allclose(floats[0, 0], deep / 65535, atol=1e-6)
