import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf

from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.color_spaces import SPACES_OF_COLOR, SPACES_OF_GREY
from csrtrain.augment.distort import BANKS, rows_for
from csrtrain.augment.two_scales import TwoScaleViews

N = 12
NONE = np.zeros(N, dtype=bool)


def pipeline(channels=3, **arguments):
    bank = DistortionBank(rows_for("natural" if channels == 3 else "mri", channels))
    return TwoScaleViews(bank, 24, channels, **arguments)


def make(views, images, positions=None, authentic=NONE, epoch=0):
    positions = np.arange(len(images)) if positions is None else positions
    return views(images, views.draw(3, epoch, positions, authentic[: len(images)], *images.shape[2:]))


def test_full_scale_is_a_part_and_half_scale_the_antialiased_half_of_the_distorted_image(noise_images):
    images = noise_images(N, 3, 48, 48)
    views = pipeline(color_spaces=False)
    drawn = views.draw(3, 0, np.arange(N), NONE, 48, 48)
    distorted = views.bank(images, drawn.distortions)
    full, half = views(images, drawn)
    flips = set()
    for k in range(N):
        top, left, height, width, flip = drawn.crops[0, k, :5].int().tolist()
        assert (height, width) == (24, 24)
        part = distorted[k, :, top : top + 24, left : left + 24]
        assert torch.allclose(full[k], tvf.horizontal_flip(part) if flip else part, atol=1e-6)
        smaller = tvf.resize(distorted[k], [24, 24], antialias=True)
        assert torch.allclose(half[k], tvf.horizontal_flip(smaller) if drawn.crops[1, k, 4] else smaller, atol=1e-5)
        flips.add(flip)
    assert flips == {0, 1} and len({tuple(row.tolist()) for row in drawn.crops[0, :, :2]}) > N / 2


@pytest.mark.parametrize("channels, spaces", [(1, SPACES_OF_GREY), (3, SPACES_OF_COLOR), (4, ())])
def test_colour_spaces_are_drawn_per_view(noise_images, channels, spaces):
    views = pipeline(channels)
    drawn = views.draw(3, 0, np.arange(500), np.zeros(500, dtype=bool), 48, 48)
    if spaces:
        assert all(set(row.tolist()) == set(spaces) for row in drawn.spaces)
        assert 0.5 / len(spaces) < float((drawn.spaces[0] == drawn.spaces[1]).float().mean()) < 2 / len(spaces)
    for view in make(views, noise_images(N, channels, 48, 48)):
        assert view.shape == (N, channels, 24, 24) and view.dtype == torch.float32
        assert float(view.min()) >= -1e-5 and float(view.max()) <= 1 + 1e-5


def test_a_sample_looks_alike_in_any_batch(noise_images):
    images, views = noise_images(N, 3, 48, 60), pipeline()
    together = make(views, images)
    for rows in ([7], [11, 3, 7], list(range(N - 1, -1, -1))):
        for one, other in zip(together, make(views, images[rows], np.array(rows)), strict=True):
            assert (one[rows] - other).abs().max() < 2e-5


def test_authentic_images_keep_their_pixels(noise_images):
    images, views = noise_images(N, 3, 48, 48), pipeline(color_spaces=False, flip=0.0)
    authentic = np.arange(N) % 2 == 0
    drawn = views.draw(3, 0, np.arange(N), authentic, 48, 48)
    full, _ = views(images, drawn)
    for k in range(N):
        top, left = drawn.crops[0, k, :2].int().tolist()
        same = torch.allclose(full[k], images[k, :, top : top + 24, left : left + 24] / 255, atol=1e-6)
        assert same or not authentic[k]


def test_autocast_changes_nothing_and_no_gradient_is_kept(noise_images):
    images, views = noise_images(N, 3, 48, 48), pipeline()
    expected = make(views, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = make(views, images)
    assert all(torch.equal(one, other) for one, other in zip(expected, result, strict=True))
    assert not make(views, (images.float() / 255).requires_grad_())[0].requires_grad


def test_wrong_sizes():
    with pytest.raises(ValueError, match="at least 48 px, twice model.size, got 47 x 60"):
        pipeline().draw(0, 0, np.arange(2), NONE[:2], 47, 60)
    with pytest.raises(ValueError, match="views of at least 16 px, got 15"):
        TwoScaleViews(DistortionBank(rows_for("natural", 3)), 15, 3)


@pytest.mark.parametrize("modality", BANKS)
def test_the_smallest_views_are_possible_with_every_type(noise_images, modality):
    rows = rows_for(modality, 3)
    views = TwoScaleViews(DistortionBank(rows), 16, 3)
    images = noise_images(len(rows), 3, 32, 32).float() / 255
    drawn = views.bank.drawn(np.arange(len(rows))[:, None], np.full((len(rows), 1), 5.0), np.arange(len(rows))[:, None])
    assert torch.isfinite(views.bank(images, drawn)).all()
    assert make(views, images, authentic=np.zeros(len(rows), dtype=bool))[0].shape == (len(rows), 3, 16, 16)
