import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from csrtrain.losses import chunked
from csrtrain.losses.nt_xent import nt_xent


def literal(z0, z1, temperature):
    """Equation 1 of arXiv 2002.05709, one anchor at a time."""
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    n = len(z0)
    terms = []
    for i in range(2 * n):
        similarity = z @ z[i] / temperature
        others = [k for k in range(2 * n) if k != i]
        terms.append(torch.logsumexp(similarity[others], 0) - similarity[(i + n) % (2 * n)])
    return torch.stack(terms).mean()


def projections(n=13, d=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("elements", [1, 4 * 26, 2**21])  # blocks of 1, 4, all rows
def test_loss_and_gradient_equal_a_literal_implementation(monkeypatch, temperature, elements):
    monkeypatch.setattr(chunked, "ELEMENTS", elements)
    z, y = projections(), projections()
    ours, theirs = nt_xent(*z, temperature), literal(*y, temperature)
    (3.0 * ours).backward()
    (3.0 * theirs).backward()
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-11) for a, b in zip(z, y, strict=True))


def test_equals_lightly_in_float32():
    z, y = projections(300, 32, torch.float32), projections(300, 32, torch.float32)
    ours, theirs = nt_xent(*z, 0.1), NTXentLoss(temperature=0.1)(*y)
    ours.backward()
    theirs.backward()
    assert abs(float((ours - theirs).detach())) < 1e-6
    assert all(float((a.grad - b.grad).abs().max()) < 1e-6 for a, b in zip(z, y, strict=True))


def test_gradient_by_finite_differences():
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), projections(4, 3))


def test_invariant_to_scale_order_and_exchange_of_views():
    z0, z1 = (z.detach() for z in projections())
    loss = nt_xent(z0, z1, 0.2)
    order = torch.randperm(len(z0), generator=torch.Generator().manual_seed(1))
    for other in (nt_xent(7 * z0, 0.1 * z1, 0.2), nt_xent(z0[order], z1[order], 0.2), nt_xent(z1, z0, 0.2)):
        assert torch.allclose(loss, other, atol=1e-12)


def test_autocast_and_half_precision_input_do_not_reach_the_product():
    z0, z1 = projections(64, 16, torch.float32)
    expected = nt_xent(z0, z1, 0.05)
    gradient = torch.autograd.grad(expected, z0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z0, z1, 0.05)
        assert torch.equal(loss, expected) and torch.equal(torch.autograd.grad(loss, z0)[0], gradient)
    for dtype in (torch.bfloat16, torch.float16):
        low0, low1 = z0.detach().to(dtype).requires_grad_(), z1.detach().to(dtype)
        loss = nt_xent(low0, low1, 0.05)
        assert loss.dtype == torch.float32 and torch.equal(loss, nt_xent(low0.float(), low1.float(), 0.05))
        loss.backward()
        assert low0.grad.dtype == dtype


def test_float32_is_near_float64():
    z, y = projections(300, 32, torch.float32), projections(300, 32, torch.float32)
    y = [x.detach().double().requires_grad_() for x in y]
    ours, exact = nt_xent(*z, 0.05), nt_xent(*y, 0.05)
    ours.backward()
    exact.backward()
    assert abs(float((ours - exact).detach())) < 1e-6
    for a, b in zip(z, y, strict=True):
        assert float((a.grad - b.grad).norm() / b.grad.norm()) < 1e-6


def test_extremes_stay_finite():
    """Equal views, opposite views, all projections alike and zero vectors, at a temperature that overflows exp."""
    z0, z1 = (z.detach().float() for z in projections())
    for pair in ((z0, z0), (z0, -z0), (z0.abs(), z1.abs() + 100), (0 * z0, 0 * z1)):
        leaf = pair[0].clone().requires_grad_()
        loss = nt_xent(leaf, pair[1], 0.005)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_not_a_number_comes_through():
    z0, z1 = (z.detach() for z in projections())
    z0[3, 2] = torch.nan
    assert torch.isnan(nt_xent(z0, z1, 0.1))


def test_a_second_derivative_is_refused():
    z0, z1 = projections()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(nt_xent(z0, z1, 0.1), z0, create_graph=True)


def test_without_gradient_the_value_is_the_same():
    z = projections()
    with torch.no_grad():
        assert torch.equal(nt_xent(*z, 0.1), nt_xent(*z, 0.1).detach())


@pytest.mark.parametrize(
    "shapes, temperature, match",
    [
        (((4, 3), (4, 3)), 0.0, "temperature > 0, got 0.0"),
        (((4, 3), (5, 3)), 0.1, "got 4 and 5"),
        (((4, 3), (4, 2)), 0.1, "one d"),
        (((4, 3, 1), (4, 3, 1)), 0.1, "one d"),
        (((1, 3), (1, 3)), 0.1, "at least 2 images"),
    ],
)
def test_wrong_input(shapes, temperature, match):
    with pytest.raises(ValueError, match=match):
        nt_xent(*(torch.rand(shape) for shape in shapes), temperature)
