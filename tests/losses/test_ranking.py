import lpips
import pytest
import torch

from csrtrain.losses.ranking import Ranker, preference_loss


def test_loss_and_gradient_equal_those_of_lpips():
    torch.manual_seed(0)
    theirs, ours = lpips.BCERankingLoss(), Ranker()
    for layer, other in zip(ours.layers[::2], theirs.net.model[:5:2], strict=True):
        layer.weight.data, layer.bias.data = other.weight.data[:, :, 0, 0].clone(), other.bias.data.clone()
    d0, d1, judge = torch.rand(3, 32)
    a, b = (torch.stack([d0, d1]).requires_grad_() for _ in range(2))
    mine = preference_loss(ours(*a), judge)
    expected = theirs(b[0].view(-1, 1, 1, 1), b[1].view(-1, 1, 1, 1), 2 * judge.view(-1, 1, 1, 1) - 1).mean()
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
    mine.backward()
    expected.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_training_finds_the_preference():
    torch.manual_seed(0)
    ranker, d0, d1 = Ranker(), torch.rand(256), torch.rand(256)
    judge = (d1 < d0).float()
    optimizer = torch.optim.Adam(ranker.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        preference_loss(ranker(d0, d1), judge).backward()
        optimizer.step()
    assert ((ranker(d0, d1) > 0) == (judge > 0.5)).float().mean() > 0.95


def test_loss_is_float32():
    logit, judge = torch.linspace(-3, 3, 8).bfloat16(), torch.rand(8).bfloat16()
    loss = preference_loss(logit, judge)
    assert loss.dtype == torch.float32 and torch.equal(loss, preference_loss(logit.float(), judge.float()))


def test_a_share_is_missing():
    with pytest.raises(ValueError, match=r"a share per answer, got \(2,\) for \(3,\)"):
        preference_loss(torch.zeros(3), torch.zeros(2))
