import pytest
import torch
from torch.nn import functional

from csrtrain.models.heads import moco_head, simclr_head


def test_simclr_head_is_linear_norm_relu_linear_norm():
    torch.manual_seed(0)
    head = simclr_head(6, 8, 4)
    h = torch.randn(16, 6)
    first, norm, _, second, last_norm = head.layers
    hidden = functional.relu(functional.batch_norm(h @ first.weight.T, None, None, norm.weight, norm.bias, True))
    z = functional.batch_norm(hidden @ second.weight.T, None, None, last_norm.weight, last_norm.bias, True)
    assert first.bias is None and second.bias is None
    torch.testing.assert_close(head(h), z)


def test_moco_head_is_linear_relu_linear():
    torch.manual_seed(0)
    head = moco_head(6, 8, 4)
    h = torch.randn(16, 6)
    first, _, second = head.layers
    z = functional.relu(h @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(head(h), z)


def test_moco_head_does_not_mix_the_samples_of_a_batch():
    head = moco_head(6, 8, 4)
    h = torch.randn(16, 6)
    torch.testing.assert_close(head(h)[:3], head(h[:3]))


@pytest.mark.parametrize("head", [simclr_head, moco_head])
def test_a_width_below_1_is_refused(head):
    with pytest.raises(ValueError, match="model.hidden_dim >= 1, got 0"):
        head(6, 0, 4)
    with pytest.raises(ValueError, match="model.projection_dim >= 1, got 0"):
        head(6, 8, 0)


@pytest.mark.parametrize("head", [simclr_head, moco_head])
def test_every_parameter_takes_a_gradient(head):
    module = head(6, 8, 4)
    module(torch.randn(16, 6)).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []
