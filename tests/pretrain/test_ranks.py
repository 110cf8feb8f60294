"""Loss and gradient on 2 and 4 gloo ranks equal those of one process on the whole batch."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

METHODS = ("simclr", "contrique", "moco", "moco, batch-norm and shuffling")


RANKS = (2, pytest.param(4, marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of a number of ranks, when asked for."""
    folder = tmp_path_factory.mktemp("ranks")

    @functools.cache
    def of(ranks):
        path = folder / f"{ranks}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        done = subprocess.run(
            [*command, str(Path(__file__).with_name("ranks_worker.py")), str(path)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(path, weights_only=True)

    return of


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_do_not_depend_on_the_ranks(results, method, ranks):
    one, many = results(1)[method], results(ranks)[method]
    assert abs(float(one["loss"] - many["loss"])) < 1e-6
    assert float(one["projections"].abs().max()) > 1e-4
    assert torch.allclose(one["projections"], many["projections"], atol=1e-9, rtol=1e-6)
    assert one["parameters"].keys() == many["parameters"].keys()
    for name, gradient in one["parameters"].items():
        # By its norm: timm interpolates the position embeddings in float32, where sums of small terms round.
        difference = torch.linalg.vector_norm(gradient - many["parameters"][name])
        assert difference <= 1e-7 * torch.linalg.vector_norm(gradient), name


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("method", METHODS[2:])
def test_the_queue_is_equal_on_all_ranks(results, method, ranks):
    queues = results(ranks)[method]["queues"]
    assert len(queues) == ranks
    for queue in queues:
        assert torch.equal(queue, queues[0])
        assert torch.allclose(queue, results(1)[method]["queues"][0], atol=1e-6)


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", RANKS)
def test_the_legacy_scale_divides_the_gradient_by_the_ranks(results, ranks):
    """As the released code of CONTRIQUE does: the loss is the same, the gradient 1/ranks of it."""
    one, many = results(1)["contrique"], results(ranks)["contrique, legacy"]
    assert abs(float(one["loss"] - many["loss"])) < 1e-6
    for name, gradient in one["parameters"].items():
        assert torch.allclose(gradient, ranks * many["parameters"][name], atol=1e-9, rtol=1e-6), name
