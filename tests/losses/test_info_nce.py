import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from csrtrain.losses import chunked
from csrtrain.losses.info_nce import info_nce


def inputs(b=7, k=11, d=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(b, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    return query, key, F.normalize(torch.randn(k, d, generator=generator, dtype=dtype), dim=1)


def literal(query, key, queue, temperature):
    """Algorithm 1 of arXiv 1911.05722."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("elements", [1, 3 * 7, 2**21])  # blocks of 1, 3, all keys of the queue
def test_loss_and_gradient_equal_a_literal_implementation(monkeypatch, temperature, elements):
    monkeypatch.setattr(chunked, "ELEMENTS", elements)
    (q, k, queue), (q2, k2, _) = inputs(), inputs()
    ours, theirs = info_nce(q, k, queue, temperature), literal(q2, k2, queue, temperature)
    ours.backward()
    theirs.backward()
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.allclose(q.grad, q2.grad, atol=1e-11)


def test_no_gradient_reaches_key_and_queue():
    q, k, queue = inputs()
    info_nce(q, k, queue.requires_grad_(), 0.2).backward()
    assert q.grad is not None and k.grad is None and queue.grad is None


def test_equals_lightly_with_its_memory_bank():
    (q, k, queue), (q2, k2, _) = inputs(64, 256, 32, torch.float32), inputs(64, 256, 32, torch.float32)
    lightly = NTXentLoss(temperature=0.2, memory_bank_size=(256, 32))
    lightly.memory_bank.bank = queue.clone()
    ours, theirs = info_nce(q, k, queue, 0.2), lightly(q2, k2)
    ours.backward()
    theirs.backward()
    assert abs(float((ours - theirs).detach())) < 1e-6
    assert float((q.grad - q2.grad).abs().max()) < 1e-6


def test_gradient_by_finite_differences():
    q, k, queue = inputs(3, 4, 3)
    assert torch.autograd.gradcheck(lambda a: info_nce(a, k.detach(), queue, 0.5), (q,))


def test_the_queue_may_change_before_the_backward_pass():
    """Keys are enqueued right after the loss, in place."""
    (q, k, queue), (q2, k2, fixed) = inputs(), inputs()
    loss = info_nce(q, k.detach(), queue, 0.2)
    queue.zero_()
    loss.backward()
    info_nce(q2, k2.detach(), fixed, 0.2).backward()
    assert torch.equal(q.grad, q2.grad)


def test_autocast_and_half_precision_input_do_not_reach_the_product():
    q, k, queue = inputs(64, 256, 16, torch.float32)
    expected = info_nce(q, k, queue, 0.1)
    gradient = torch.autograd.grad(expected, q)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(q, k, queue, 0.1)
        assert torch.equal(loss, expected) and torch.equal(torch.autograd.grad(loss, q)[0], gradient)
    low_q, low_k = q.detach().bfloat16(), k.detach().bfloat16()
    assert torch.equal(info_nce(low_q, low_k, queue, 0.1), info_nce(low_q.float(), low_k.float(), queue, 0.1))


def test_extremes_stay_finite():
    """Queries equal or opposite to keys and queue, at a temperature that overflows exp."""
    q, k, queue = (x.detach().float() for x in inputs())
    for query, key in ((q, q), (q, -q), (queue[:7], -queue[:7]), (-queue[:7], queue[:7])):
        leaf = query.clone().requires_grad_()
        loss = info_nce(leaf, key, queue, 0.005)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_not_a_number_comes_through():
    q, k, queue = (x.detach() for x in inputs())
    queue[3, 2] = torch.nan
    assert torch.isnan(info_nce(q, k, queue, 0.1))


def test_invariant_to_scale_and_to_the_order_of_the_queue():
    q, k, queue = (x.detach() for x in inputs())
    loss = info_nce(q, k, queue, 0.2)
    assert torch.allclose(loss, info_nce(5 * q, k / 3, queue.flip(0), 0.2), atol=1e-12)


@pytest.mark.parametrize(
    "b, key, k, match",
    [
        (4, (5, 3), 6, "got 5 for 4"),
        (4, (4, 2), 6, "one d"),
        (0, (0, 3), 6, "at least 1 query, got 0"),
        (4, (4, 3), 0, "got an empty one"),
    ],
)
def test_wrong_input(b, key, k, match):
    with pytest.raises(ValueError, match=match):
        info_nce(torch.rand(b, 3), torch.rand(key), torch.rand(k, 3), 0.2)
    with pytest.raises(ValueError, match="temperature > 0"):
        info_nce(torch.rand(4, 3), torch.rand(4, 3), torch.rand(4, 3), -1.0)
