import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from csrtrain.augment.distortions import spatial
from csrtrain.augment.randoms import normal_images, other_seeds

SEEDS = torch.arange(5) * 7919 + 3


def images(n, channels, height, width):
    return torch.rand((n, channels, height, width), generator=torch.Generator().manual_seed(n * height + width))


def scipy_jitter(x, sigma, seed):
    """Five times: every channel at its displaced pixels, linearly interpolated."""
    _, height, width = x.shape
    for moves in normal_images(other_seeds(seed, 1), 5, height, 2 * width).view(5, height, width, 2).double().numpy():
        rows = np.arange(height)[:, None] + sigma * moves[:, :, 1]
        columns = np.arange(width) + sigma * moves[:, :, 0]
        x = np.stack([scipy.ndimage.map_coordinates(c, (rows, columns), order=1, mode="nearest") for c in x])
    return x


def painted(x, count, tops, lefts, down, right):
    """Patch after patch, as it is defined."""
    out = x.clone()
    for row, column, by_row, by_column in list(zip(tops, lefts, down, right, strict=True))[: int(count)]:
        patch = x[:, row - by_row : row - by_row + 16, column - by_column : column - by_column + 16]
        out[:, row : row + 16, column : column + 16] = patch
    return out


def test_jitter_is_scipys():
    x, sigma = images(5, 3, 50, 71), torch.tensor([0.05, 0.1, 0.2, 0.5, 1.0])
    jittered = spatial.jitter(x, sigma, SEEDS)
    for k in range(5):
        reference = scipy_jitter(x[k].double().numpy(), sigma[k].item(), SEEDS[k : k + 1])
        torch.testing.assert_close(jittered[k], torch.from_numpy(reference).float(), atol=1e-4, rtol=0)


def test_jitter_of_zero_is_the_identity_and_keeps_the_range():
    x = images(5, 1, 64, 48)
    torch.testing.assert_close(spatial.jitter(x, torch.zeros(5), SEEDS), x, atol=1e-4, rtol=0)
    jittered = spatial.jitter(x, torch.full((5,), 3.0), SEEDS)
    assert jittered.min() >= x.min() - 1e-6 and jittered.max() <= x.max() + 1e-6


def test_jitter_moves_by_sigma_in_rows_and_in_columns_in_any_shape():
    """On a ramp the value is the place: five independent moves of 0.2 pixels have a standard deviation of sqrt(5)/5."""
    rows = torch.arange(200.0)[:, None].expand(200, 90)
    columns = torch.arange(90.0).expand(200, 90)
    x = torch.stack((rows, columns))[None]
    moves = (spatial.jitter(x, torch.tensor([0.2]), SEEDS[:1]) - x)[0, :, 5:-5, 5:-5]
    # A later move samples between pixels whose earlier moves differ: interpolation takes some of the variance.
    assert 0.3 < moves[0].std() < 0.45 and 0.3 < moves[1].std() < 0.45
    assert moves.mean((1, 2)).abs().max() < 0.02
    assert torch.corrcoef(moves.flatten(1))[0, 1].abs() < 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_painted_in_order(channels):
    x, count = images(5, channels, 75, 120), torch.tensor([0.0, 1.0, 20.0, 60.0, 100.0])
    patches = spatial._patches(x, SEEDS)
    expected = torch.stack([painted(x[k], count[k], *(p[k].tolist() for p in patches)) for k in range(5)])
    assert torch.equal(spatial.non_eccentricity_patches(x, count, SEEDS), expected)
    assert torch.equal(spatial._copy_batch(x, count, *patches), expected)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (60, 300)])
def test_patches_and_copies_lie_in_the_image_and_within_the_radius(height, width):
    seeds = torch.arange(300)
    tops, lefts, down, right = spatial._patches(torch.empty(1, 1, height, width), seeds)
    for first, size in ((tops, height), (tops - down, height), (lefts, width), (lefts - right, width)):
        assert first.min() == 0 and first.max() == size - 16
    assert (down**2 + right**2 <= 16**2).all()
    if width > 200:
        assert right.float().abs().mean() > 5


def test_more_patches_are_the_fewer_and_further_ones():
    """So that a level is the continuation of the level below at the same seed."""
    x = images(1, 3, 96, 96)
    tops, lefts, _, _ = spatial._patches(x, SEEDS[:1])
    few = spatial.non_eccentricity_patches(x, torch.tensor([20.0]), SEEDS[:1])
    more = spatial.non_eccentricity_patches(x, torch.tensor([21.0]), SEEDS[:1])
    outside = torch.ones(96, 96)
    outside[tops[0, 20] : tops[0, 20] + 16, lefts[0, 20] : lefts[0, 20] + 16] = 0
    assert torch.equal(few * outside, more * outside)


def not_halfway(size, small):
    """The pixels at which neither step falls between two pixels, where Pillow's rounding decides."""
    pixel = np.arange(size)
    in_small = (2 * pixel + 1) * small // (2 * size)
    return ((2 * pixel + 1) * small % (2 * size) != 0) & ((2 * in_small + 1) * size % (2 * small) != 0)


@pytest.mark.parametrize("size", [(48, 48), (224, 224), (100, 257)])
@pytest.mark.parametrize("strength", [0.01, 0.05, 0.1, 0.2, 0.33, 0.5])
def test_pixelate_is_pillows(size, strength):
    x = (images(1, 3, *size) * 255).round()
    small = [round(side * (0.95 - strength**0.6)) for side in size]
    image = Image.fromarray(x[0].permute(1, 2, 0).to(torch.uint8).numpy())
    image = image.resize(small[::-1], Image.Resampling.NEAREST).resize(size[::-1], Image.Resampling.NEAREST)
    pixelated = spatial.pixelate(x, torch.tensor([strength]), SEEDS[:1])[0].permute(1, 2, 0).numpy()
    compared = np.ix_(*(not_halfway(*sides) for sides in zip(size, small, strict=True)))
    assert pixelated[compared].size > 0.5 * pixelated.size
    np.testing.assert_array_equal(pixelated[compared], np.array(image)[compared])


def test_pixelate_by_rows_and_in_one_gather_agree():
    x, scale = images(5, 3, 61, 90), torch.tensor([0.95, 0.7, 0.5, 0.3, 0.001])
    rows, columns = spatial._nearest_twice(61, scale), spatial._nearest_twice(90, scale)
    by_rows = spatial._pick_each(x, rows, columns)
    assert torch.equal(by_rows, spatial._pick_batch(x, rows, columns))
    assert torch.equal(by_rows[4], x[4, :, 30:31, 45:46].expand_as(x[4]))  # one pixel is left: the middle


def test_pixelate_leaves_the_declared_number_of_pixels():
    ramp = torch.arange(224.0).expand(5, 1, 60, 224)
    pixelated = spatial.pixelate(ramp.contiguous(), torch.tensor([0.01, 0.05, 0.1, 0.2, 0.5]), SEEDS)
    left = [len(image.unique()) for image in pixelated]
    assert left == [round(224 * scale) for scale in (0.8869, 0.7843, 0.6988, 0.5693, 0.2902)]


@pytest.mark.parametrize("channels", [1, 3])
def test_blocks_are_painted_in_order(channels):
    x, count = images(5, channels, 75, 120), torch.tensor([0.0, 1.0, 4.0, 8.0, 10.0])
    tops, lefts, colors = spatial._blocks(x, SEEDS)
    expected = x.clone()
    for k in range(5):
        for j in range(int(count[k])):
            top, left = tops[k, j].item(), lefts[k, j].item()
            expected[k, :, top : top + 32, left : left + 32] = colors[k, j][:, None, None]
    assert torch.equal(spatial.color_blocks(x, count, SEEDS), expected)
    assert torch.equal(spatial._fill_batch(x, count, tops, lefts, colors), expected)


def test_blocks_are_uniform_in_place_and_color():
    tops, lefts, colors = spatial._blocks(torch.empty(1, 3, 52, 131), torch.arange(4000))
    assert colors.shape == (4000, 10, 3) and tops.min() == 0 and tops.max() == 20 and lefts.max() == 99
    for drawn, bins, high in ((tops, 21, 21), (lefts, 100, 100), (colors[:, :, 1], 20, 1)):
        counts = torch.histc(drawn.float(), bins, 0, high - (high > 1) * 1e-3)
        assert ((counts - 40000 / bins).abs() < 5 * math.sqrt(40000 / bins)).all()
    assert torch.corrcoef(colors.view(-1, 3).T).fill_diagonal_(0).abs().max() < 0.03


def test_an_image_of_the_size_of_a_block_is_painted_over():
    x = images(1, 2, 32, 32)
    expected = spatial._blocks(x, SEEDS[:1])[2][0, 1][:, None, None].expand(2, 32, 32)
    assert torch.equal(spatial.color_blocks(x, torch.tensor([2.0]), SEEDS[:1])[0], expected)


@pytest.mark.parametrize("distort", [spatial.non_eccentricity_patches, spatial.color_blocks])
def test_the_images_given_are_not_modified(distort):
    x = images(5, 3, 64, 64)
    before = x.clone()
    assert not torch.equal(distort(x, torch.full((5,), 10.0), SEEDS), x)
    assert torch.equal(x, before)
