import pytest
import torch

from csrtrain.models.backbone import Backbone
from csrtrain.models.difference import DifferenceMetric
from csrtrain.models.features import Contract, FrozenFeatures


@pytest.fixture
def metric():
    torch.manual_seed(0)
    made = DifferenceMetric(FrozenFeatures([Backbone("test_resnet", 3)], [Contract()]))
    made.weight.data.normal_()
    return made


def test_distance_is_the_product_of_absolute_differences(metric):
    x, y = torch.rand(2, 8, 3, 64, 80)
    with torch.no_grad():
        expected = ((metric.features(x) - metric.features(y)).abs() @ metric.weight).clamp(min=0)
        assert 0 < int((expected == 0).sum()) < 8  # both signs
        torch.testing.assert_close(metric.distance(x, y), expected)
        torch.testing.assert_close(metric.distance(y, x), expected)
        torch.testing.assert_close(metric.folded().distance(x, y), expected, rtol=1e-4, atol=1e-5)


def test_identical_images_are_at_zero_in_any_batch_and_type(metric):
    x = (torch.rand(3, 3, 64, 64) * 255).byte()
    y = x.clone()
    y[1] = 255 - y[1]
    metric.weight.data.abs_()
    found = metric.distance(x, y)
    assert found[0] == found[2] == 0 < found[1]
    torch.testing.assert_close(metric.distance(x.float() / 255, y.float() / 255), found)
    torch.testing.assert_close(metric.distance(x, x[:1])[1:], metric.distance(x[1:], x[:1].expand(2, -1, -1, -1)))
    assert metric.distance(x, x.float() / 255).eq(0).all()


def test_bad_pairs(metric):
    x = torch.rand(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"Expected references of the images' shape \(2, 3, 64, 64\), got \(2, 3, 64"):
        metric.distance(x, torch.rand(2, 3, 64, 65))
    with pytest.raises(ValueError, match=r"Expected references in \[0,1\], got .* to 255. Divide"):
        metric.distance(x, 255 * (x > 0.5).float())
    with pytest.raises(ValueError, match=r"Expected images in \[0,1\], got nan to nan. Replace NaN"):
        metric.distance(x * torch.nan, x)
    with pytest.raises(ValueError, match=r"Expected images \(B,3,H,W\)"):
        metric.distance(x[:, :1], x[:, :1])


def test_a_loss_may_overshoot_and_is_exported_as_of_feature_maps(metric):
    x, y = torch.rand(2, 2, 3, 64, 64)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 1.24, -0.24
    metric.weight.data.abs_()
    distance = metric.distance(x, y)
    assert bool((distance > 0).all())
    exported = torch.export.export(metric, (x, y)).module()
    torch.testing.assert_close(exported(x, y), distance, rtol=1e-4, atol=1e-5)


def test_values_are_not_waited_for(metric, no_host_reads):
    with no_host_reads():
        metric.distance(*torch.rand(2, 2, 3, 64, 64))


@pytest.mark.gpu
def test_other_values_give_nan_on_a_gpu(metric):
    x, y = torch.rand(2, 3, 3, 64, 64).cuda()
    x[1] *= 255
    distance = metric.cuda().distance(x, y)
    assert distance[1].isnan() and torch.isfinite(distance[[0, 2]]).all()
    assert metric.distance(x, y[:1] * torch.nan).isnan().all()


def test_the_distance_is_the_differences_times_the_weights():
    torch.manual_seed(0)
    metric = DifferenceMetric(FrozenFeatures([Backbone("test_resnet")], [Contract()]))
    metric.weight.copy_(torch.rand(metric.weight.shape))
    images = torch.rand(4, 3, 64, 72)
    images[3] = images[0]
    found = metric.differences(images, [0, 1, 0, 2], [1, 2, 3, 2])
    expected = metric.distance(images[[0, 1, 0, 2]], images[[1, 2, 3, 2]])
    torch.testing.assert_close(found @ metric.weight, expected, rtol=1e-5, atol=1e-6)
    assert found.shape == (4, len(metric.weight)) and bool((found[2:] == 0).all()) and bool((found >= 0).all())
