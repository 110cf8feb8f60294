import numpy as np
import pytest
import scipy.stats
import torch
import torchvision.transforms as T

from csrtrain.augment import parameters
from csrtrain.augment.settings import SETTINGS

MODALITIES = list(SETTINGS)


def draw(modality, n, height=96, width=80, seed=3, epoch=0, start=0):
    return parameters.draw(SETTINGS[modality], seed, epoch, np.arange(start, start + n), height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 80), (50, 120), (40, 200), (200, 40)])
def test_boxes_are_distributed_as_in_torchvision(height, width):
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    ratio = SETTINGS["natural"].crop.ratio
    theirs = [T.RandomResizedCrop.get_params(image, [0.2, 1.0], [1 / ratio, ratio]) for _ in range(3000)]
    ours = draw("natural", 1500, height, width)["crops"][..., :4].reshape(-1, 4).numpy()
    for column, values in zip(np.array(theirs).T, ours.T, strict=True):
        assert scipy.stats.ks_2samp(column, values).pvalue > 0.001


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 300), (300, 30), (1, 1)])
def test_boxes_lie_inside(modality, height, width):
    top, left, h, w = draw(modality, 500, height, width)["crops"][..., :4].unbind(-1)
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    for values in (top, left, h, w):
        assert torch.equal(values, values.round())


def test_fallback_is_the_centre_with_the_nearest_ratio():
    # 10 x 1000: no attempt at 20 % of the area or more with a ratio of at most 4/3 fits.
    crops = draw("natural", 50, 10, 1000)["crops"]
    assert torch.equal(crops[..., :4], torch.tensor([0.0, 493.0, 10.0, 13.0]).expand(2, 50, 4))


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_sample_is_drawn_alike_in_any_batch(modality):
    together = draw(modality, 40)
    order = np.array([31, 7, 20])
    apart = parameters.draw(SETTINGS[modality], 3, 0, order, 96, 80)
    assert together.keys() == apart.keys()
    for name in together.keys() - {"blurred0", "blurred1"}:
        assert torch.equal(together[name][:, order], apart[name]), name
    for name in ("blurred0", "blurred1"):
        among = np.isin(order, together[name].numpy())
        assert apart[name].tolist() == np.flatnonzero(among).tolist()


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 1}, {"start": 1000}])
def test_views_epochs_seeds_and_positions_differ(change):
    first, other = draw("mri", 20), draw("mri", 20, **change)
    for name in ("crops", "sigma", "seeds", "chain", "field"):
        assert not torch.equal(first[name], other[name]), name
        assert not torch.equal(first[name][0], first[name][1]), name


def test_tensors_are_on_the_host_and_few():
    drawn = draw("histology", 5)
    assert len(drawn) <= 9
    for name, values in drawn.items():
        assert values.device.type == "cpu" and values.dtype in (torch.float32, torch.int64), name


def share(mask):
    return mask.double().mean().item()


@pytest.mark.parametrize("modality", MODALITIES)
def test_chances_and_ranges_are_those_of_the_table(modality):
    setting = SETTINGS[modality]
    n = 4000
    drawn = draw(modality, n)
    crops = drawn["crops"]

    def near(mask, chance):
        return abs(share(mask) - chance) < 0.03

    assert near(crops[..., 4] > 0, setting.flip_columns.chance)
    assert near(crops[..., 5] > 0, setting.flip_rows.chance)
    assert near(crops[..., 6] > 0, setting.transpose.chance)
    for name in ("blurred0", "blurred1"):
        assert abs(len(drawn[name]) / n - setting.blur.chance) < 0.03
    assert drawn["sigma"].min() >= setting.blur.low and drawn["sigma"].max() <= setting.blur.high
    if setting.jitter:
        for column, name in enumerate(("brightness", "contrast", "saturation", "hue")):
            strength, identity = getattr(setting.jitter, name), 0.0 if name == "hue" else 1.0
            values = drawn["color"][..., column] - identity
            assert near(values != 0, setting.jitter.chance if strength else 0.0)
            assert values.abs().max() <= strength + 1e-6 and values.abs().max() >= 0.97 * strength
    if setting.stain:
        chosen, scales, shifts = drawn["stain"].split([1, 3, 3], dim=-1)
        assert near(chosen > 0, setting.stain.chance)
        assert (scales - 1).abs().max() <= setting.stain.scale + 1e-6
        assert shifts.abs().max() <= setting.stain.shift + 1e-6
    if "chain" in drawn:
        gain, sigma, width, level, gamma = drawn["chain"].unbind(-1)
        for values, op in ((gain, setting.gain), (gamma, setting.gamma)):
            assert near(values != 1, op.chance if op else 0.0)
            assert op is None or (values.min() >= op.low - 1e-6 and values.max() <= op.high + 1e-6)
        assert near(sigma > 0, setting.noise.chance) and sigma.max() <= setting.noise.sigma
        assert near(width != 1, setting.window.chance if setting.window else 0.0)
        assert torch.equal(width != 1, level != 0)
    if setting.field:
        field = drawn["field"]
        assert near(field.abs().sum((2, 3)) > 0, setting.field.chance)
        assert field.abs().max() <= setting.field.strength
        assert (field[:, :, 0, 0] == 0).all() and (field[:, :, 3, 3] == 0).all()
        degree = torch.arange(4)[:, None] + torch.arange(4)
        assert ((field != 0).any(1).any(0) == ((degree > 0) & (degree <= setting.field.degree))).all()
