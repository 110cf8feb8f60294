import pytest
import torch
import torch.nn.functional as F

from csrtrain.losses import chunked
from csrtrain.losses.distortion_contrast import distortion_contrast
from csrtrain.losses.nt_xent import nt_xent

IDS = torch.tensor([5, 5, 7, 126, 7, 7, 5, -3, 1 << 40, 126, 1 << 40])  # -3 stands alone


def literal(z, ids, temperature):
    """One anchor at a time, only those that have positives."""
    z, ids = F.normalize(z, dim=1), ids.tolist()
    terms = []
    for a in range(len(z)):
        similarity = z @ z[a] / temperature
        others = [k for k in range(len(z)) if k != a]
        positives = [k for k in others if ids[k] == ids[a]]
        if positives:
            terms.append(torch.logsumexp(similarity[others], 0) - similarity[positives].mean())
    return torch.stack(terms).mean()


def one_hot_literal(z, labels, temperature):
    """The dense form with a label matrix (N,K), as in section 1.1 of the paper's released method."""
    z = F.normalize(z, dim=1)
    similarity = z @ z.T / temperature
    mask = (labels @ labels.T).fill_diagonal_(0)
    exponentials = similarity.exp() * (1 - torch.eye(len(z), dtype=z.dtype))
    return (exponentials.sum(1).log() - (mask * similarity).sum(1) / mask.sum(1)).mean()


def projections(n=11, d=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("elements", [1, 4 * 11, 2**21])  # blocks of 1, 4, all rows
def test_loss_and_gradient_equal_a_literal_implementation(monkeypatch, temperature, elements):
    monkeypatch.setattr(chunked, "ELEMENTS", elements)
    z, y = projections(), projections()
    ours, theirs = distortion_contrast(z, IDS, temperature), literal(y, IDS, temperature)
    (3.0 * ours).backward()
    (3.0 * theirs).backward()
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.allclose(z.grad, y.grad, atol=1e-11)


def test_equals_the_dense_one_hot_form():
    ids = torch.arange(40) % 9
    z, y = projections(40, 8), projections(40, 8)
    ours, theirs = distortion_contrast(z, ids, 0.1), one_hot_literal(y, F.one_hot(ids).double(), 0.1)
    ours.backward()
    theirs.backward()
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.allclose(z.grad, y.grad, atol=1e-12)


def test_pairs_alone_are_nt_xent():
    z = projections(12, 6)
    ids = torch.arange(6).repeat(2)
    assert torch.allclose(distortion_contrast(z, ids, 0.2), nt_xent(z[:6], z[6:], 0.2), atol=1e-12)


def test_gradient_by_finite_differences():
    assert torch.autograd.gradcheck(lambda z: distortion_contrast(z, IDS, 0.5), projections())


def test_invariant_to_scale_order_and_names_of_classes():
    z = projections().detach()
    loss = distortion_contrast(z, IDS, 0.2)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    for other in (
        distortion_contrast(7 * z, IDS, 0.2),
        distortion_contrast(z[order], IDS[order], 0.2),
        distortion_contrast(z, -3 * IDS + 1, 0.2),
        distortion_contrast(z, IDS.clamp(max=200).int(), 0.2),
    ):
        assert torch.allclose(loss, other, atol=1e-12)


def test_anchors_without_a_positive_repel_but_are_no_anchors():
    z = projections()
    distortion_contrast(z, IDS, 0.1).backward()
    assert z.grad[IDS == -3].abs().max() > 1e-4
    lonely = projections()
    loss = distortion_contrast(lonely, torch.arange(len(IDS)), 0.1)
    loss.backward()
    assert loss == 0 and torch.equal(lonely.grad, torch.zeros_like(lonely))


def test_extremes_stay_finite():
    z = projections(dtype=torch.float32).detach()
    for other in (z, z.abs() + 100, 0 * z, torch.cat([z[:6], -z[:5]])):
        leaf = other.clone().requires_grad_()
        loss = distortion_contrast(leaf, IDS, 0.01)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_float32_is_near_float64_and_autocast_does_not_reach_the_product():
    z = projections(400, 32, torch.float32)
    ids = torch.arange(400) % 31
    exact = z.detach().double().requires_grad_()
    ours, expected = distortion_contrast(z, ids, 0.05), distortion_contrast(exact, ids, 0.05)
    gradient = torch.autograd.grad(ours, z)[0]
    expected.backward()
    assert abs(float((ours - expected).detach())) < 1e-6
    assert float((gradient - exact.grad).norm() / exact.grad.norm()) < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distortion_contrast(z, ids, 0.05)
        assert torch.equal(loss, ours) and torch.equal(torch.autograd.grad(loss, z)[0], gradient)


def test_nothing_is_read_from_the_device(no_host_reads):
    z = projections(64, 16, torch.float32)
    with no_host_reads():
        distortion_contrast(z, torch.arange(64) % 7, 0.1).backward()


def test_a_second_derivative_is_refused():
    z = projections()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(distortion_contrast(z, IDS, 0.1), z, create_graph=True)


def test_legacy_scale_changes_nothing_in_one_process():
    z, y = projections(), projections()
    distortion_contrast(z, IDS, 0.1).backward()
    distortion_contrast(y, IDS, 0.1, legacy_gradient_scale=True).backward()
    assert torch.equal(z.grad, y.grad)


@pytest.mark.parametrize(
    "shape, ids, temperature, match",
    [
        ((4, 3), torch.arange(4), 0.0, "temperature > 0, got 0.0"),
        ((4, 3), torch.arange(5), 0.1, r"4 integers, got \(5,\)"),
        ((4, 3), torch.ones(4), 0.1, "4 integers, got .*float32"),
        ((4, 3), torch.ones(4, dtype=torch.bool), 0.1, "4 integers, got .*bool"),
        ((4, 3, 1), torch.arange(4), 0.1, "one d"),
        ((1, 3), torch.arange(1), 0.1, "at least 2 projections"),
    ],
)
def test_wrong_input(shape, ids, temperature, match):
    with pytest.raises(ValueError, match=match):
        distortion_contrast(torch.rand(shape), ids, temperature)
