import copy
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from csrtrain.models.momentum import Queue, update_momentum


@pytest.mark.parametrize("size, batch", [(12, 4), (10, 4), (10, 3), (5, 8), (4, 4), (3, 10)])
def test_queue_equals_a_deque(size, batch):
    queue = Queue(size, 6, seed=3)
    expected = deque(queue.rows.clone(), maxlen=size)
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        keys = torch.randn(batch, 6, generator=generator)
        queue.enqueue(keys)
        expected.extend(F.normalize(keys, dim=1))
        oldest_first = torch.cat([queue.rows[queue.pointer :], queue.rows[: queue.pointer]])
        assert torch.equal(oldest_first, torch.stack(list(expected)))


def test_state_goes_through_a_checkpoint_that_runs_no_code(tmp_path):
    queue = Queue(10, 4)
    queue.enqueue(torch.randn(7, 4))
    torch.save(queue.state_dict(), tmp_path / "q.pt")
    other = Queue(10, 4, seed=9)
    other.load_state_dict(torch.load(tmp_path / "q.pt", weights_only=True))
    assert torch.equal(other.rows, queue.rows) and other.pointer == 7
    keys = torch.randn(5, 4)
    queue.enqueue(keys)
    other.enqueue(keys)
    assert torch.equal(other.rows, queue.rows) and other.pointer == queue.pointer == 2


def test_the_first_rows_are_unit_vectors_from_the_seed():
    a, b, c = Queue(20, 4, seed=1), Queue(20, 4, seed=1), Queue(20, 4, seed=2)
    assert torch.equal(a.rows, b.rows) and not torch.equal(a.rows, c.rows)
    assert torch.allclose(a.rows.norm(dim=1), torch.ones(20))


def test_an_empty_queue_is_refused():
    with pytest.raises(ValueError, match="at least 1 key, got 0"):
        Queue(0, 4)


def test_momentum_equals_the_formula_and_leaves_buffers():
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = copy.deepcopy(online).requires_grad_(False)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(torch.randn_like(parameter))
    online[1].running_mean.fill_(5.0)
    expected = [0.9 * k + 0.1 * q for k, q in zip(slow.parameters(), online.parameters(), strict=True)]
    update_momentum(online, slow, 0.9)
    for got, want in zip(slow.parameters(), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-7) and not got.requires_grad
    assert torch.equal(slow[1].running_mean, torch.zeros(4))
