import pytest
import torch

from csrtrain.models.backbone import Backbone
from csrtrain.models.domain import appearance
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale


@pytest.fixture
def images():
    return torch.rand((3, 3, 70, 90), generator=torch.Generator().manual_seed(0))


def metric(scale, anchors=0):
    torch.manual_seed(0)
    made = NoReferenceMetric(FrozenFeatures([Backbone("test_resnet")], [Contract()]), scale, anchors).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


@pytest.mark.parametrize(
    ("scale", "worst", "best"),
    [(RatingScale(1, 5), 1.0, 5.0), (RatingScale(0, 100, False, "dmos"), 100.0, 0.0), (RatingScale(-2, 2), -2.0, 2.0)],
)
def test_the_score_is_0_at_the_worst_rating_and_100_at_the_best(images, scale, worst, best):
    made = metric(scale)
    torch.nn.init.zeros_(made.head.weight)
    for rating, score in ((worst, 0.0), (best, 100.0), ((worst + best) / 2, 50.0)):
        torch.nn.init.constant_(made.head.bias, rating)
        torch.testing.assert_close(made.score(images), torch.full((3,), score), atol=1e-4, rtol=0)
        torch.testing.assert_close(made.assess(images).rating, torch.full((3,), rating))
    torch.nn.init.constant_(made.head.bias, best + (best - worst))
    assert made.assess(images).out_of_range.all()


def test_the_rating_is_linear_in_the_features(images):
    made = metric(RatingScale(1, 5))
    expected = made.features(images) @ made.head.weight[0] + made.head.bias
    torch.testing.assert_close(made.assess(images).rating, expected.detach())
    torch.testing.assert_close(made(images), (expected - 1) * 25)
    eight = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(made(eight), made(eight.float() / 255))


def test_the_heat_map_sums_to_the_score(images):
    for scale in (RatingScale(1, 5), RatingScale(0, 100, False, "dmos")):
        made = metric(scale)
        score = made.score(images)
        torch.testing.assert_close(made.heatmap(images).sum((1, 2)), score.detach(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("verb", ["score", "assess", "heatmap"])
def test_what_is_no_batch_of_images(images, verb):
    judge = getattr(metric(RatingScale(1, 5), anchors=3), verb)
    with pytest.raises(ValueError, match=r"Expected a tensor of images .B,C,H,W., got ndarray. Convert it"):
        judge(images.numpy())
    with pytest.raises(ValueError, match=r"Expected images .B,3,H,W., got .3, 70, 90.. Give a batch"):
        judge(images[0])
    with pytest.raises(ValueError, match=r"Expected images .B,3,H,W., got .3, 3, 0, 90."):
        judge(images[:, :, :0])


def test_gradients_reach_the_images_and_no_weight_of_the_backbone(images):
    made = metric(RatingScale(1, 5))
    x = images.clone().requires_grad_()
    made.score(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None for p in made.features.parameters())


def test_out_of_domain_beyond_the_limit(images):
    made = metric(RatingScale(1, 5), anchors=3)
    assert metric(RatingScale(1, 5)).assess(images).distance.tolist() == [0, 0, 0]  # nothing to compare with
    more = torch.rand((40, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    made.domain.fit(made.features(more), appearance(more), torch.arange(40).numpy() % 5)
    assert not made.assess(images).out_of_domain.any()
    found = made.assess(images.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    assert found.out_of_domain.all() and (found.distance > 1).all()  # no colour


def test_no_range():
    with pytest.raises(ValueError, match="Expected a range of ratings, got 3 to 3"):
        metric(RatingScale(3, 3))
