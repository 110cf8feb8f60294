import math

import numpy as np
import pytest
import torch

from csrtrain.models.domain import Domain, appearance, nearest


def images(count, seed, channels=3, size=(40, 50)):
    return torch.rand((count, channels, *size), generator=torch.Generator().manual_seed(seed))


def test_distance_to_the_nearest_five():
    anchors = torch.tensor([[0.0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [90, 90]])
    torch.testing.assert_close(nearest(torch.zeros(1, 2), anchors), torch.tensor([2.0]))
    torch.testing.assert_close(nearest(torch.zeros(1, 2), anchors[:2]), torch.tensor([0.5]))


def test_appearance_against_numpy():
    x = images(2, 0)
    y = x[1].mean(0).numpy().astype(np.float64)
    expected = [y.mean(), math.log(y.std() + 1e-3)]
    expected += [math.log(float((x[1, k] - x[1, 0]).abs().mean()) + 1e-3) for k in (1, 2)]
    for _ in range(4):
        for d in (np.diff(y, axis=1), np.diff(y, axis=0)):
            mean, deviation = abs(d).mean(), math.sqrt((d**2).mean())
            expected += [math.log(mean + 1e-3), math.log(deviation + 1e-3) - math.log(mean + 1e-3)]
        rows, columns = (n // 2 for n in y.shape)
        y = y[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3))
    np.testing.assert_allclose(appearance(x)[1], expected, atol=1e-5)


@pytest.mark.parametrize(("channels", "size"), [(1, (40, 50)), (3, (1, 1)), (5, (3, 200)), (1, (1100, 33))])
def test_appearance_of_any_size_and_depth(channels, size):
    x = images(2, 0, channels, size)
    found = appearance(x)
    assert found.shape == (2, Domain(0, 1, channels).looks.shape[1]) and found.isfinite().all()
    eight = (x * 255).round().to(torch.uint8)
    torch.testing.assert_close(appearance(eight), appearance(eight.float() / 255))
    assert appearance(torch.zeros_like(x)).isfinite().all()


def fitted(count=200):
    generator = torch.Generator().manual_seed(0)
    h, looks = torch.randn((count, 8), generator=generator), torch.randn((count, 20), generator=generator) * 3 + 5
    domain = Domain(0, 8, 3)
    domain.fit(h, looks, np.arange(count) % 5)
    return domain, h, looks


def test_few_of_the_same_kind_are_beyond_the_limit_and_all_of_another():
    domain, _, _ = fitted()
    generator = torch.Generator().manual_seed(1)
    h, looks = torch.randn((500, 8), generator=generator), torch.randn((500, 20), generator=generator) * 3 + 5
    assert (domain(h, looks) > 1).float().mean() < 0.05
    assert (domain(h + 9, looks) > 1).all() and (domain(h, looks + 30) > 1).all()


def test_two_in_a_hundred_held_out_images_are_beyond_the_limit():
    domain, h, looks = fitted()
    folds = np.arange(200) % 5
    beyond = 0
    for fold in range(5):
        rest = Domain(0, 8, 3)
        rest.fit(h, looks, folds)
        kept = torch.from_numpy(folds != fold)
        rest.representations, rest.looks = rest.representations[kept], rest.looks[kept]
        beyond += int((rest(h[~kept], looks[~kept]) > 1).sum())
    assert beyond == 4  # of 200


def test_at_most_a_thousand_are_kept():
    domain, _, _ = fitted(1300)
    assert domain.looks.shape == (1000, 20) and domain.representations.shape == (1000, 8)


def test_one_group_that_is_nearly_all():
    generator = torch.Generator().manual_seed(0)
    h, looks = torch.randn((3000, 8), generator=generator), torch.randn((3000, 20), generator=generator)
    domain = Domain(0, 8, 3)
    folds = np.arange(3000) == 0  # the one image of the other group is not kept
    domain.fit(h, looks, folds.astype(np.int64))
    assert domain.limits.isfinite().all() and len(domain.looks) == 1000
    assert domain(h[:1], looks[:1]).item() == pytest.approx(1) and (domain(h + 9, looks) > 1).all()
