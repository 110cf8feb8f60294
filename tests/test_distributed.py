"""On 2 and 4 gloo ranks: what crosses ranks equals one process on the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from csrtrain import distributed
from csrtrain.losses.info_nce import info_nce
from csrtrain.losses.nt_xent import nt_xent
from csrtrain.metrics.representation import RepresentationStatistics
from csrtrain.models.momentum import Queue

BATCH, DIM = 8, 6


def tensors(*shape, count=1, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def local(x, ranks, rank):
    return x.chunk(ranks)[rank]


def gathered(ranks, rank):
    """x and, for a loss with a weight of its own on each rank, its gradient."""
    x = local(*tensors(BATCH, 2, 3), ranks, rank).requires_grad_()
    everything = distributed.gather(x)
    (weight,) = tensors(BATCH, 2, 3, seed=10 + rank)
    (everything * weight).sum().backward()
    return {"gathered": everything.detach(), "gradient": x.grad}


def at_projections(ranks, rank, dtype, batch=BATCH):
    """Loss and gradient of this rank, the gradient with DDP's mean over ranks."""
    z0, z1, key = (local(z, ranks, rank) for z in tensors(batch, DIM, count=3, dtype=dtype))
    queue = F.normalize(*tensors(20, DIM, seed=1, dtype=dtype))
    z0, z1, query = z0.clone().requires_grad_(), z1.clone().requires_grad_(), z0.clone().requires_grad_()
    losses = {"nt_xent loss": nt_xent(z0, z1, 0.1), "info_nce loss": info_nce(query, key, queue, 0.2)}
    sum(losses.values()).backward()
    gradients = {"nt_xent z0": z0.grad, "nt_xent z1": z1.grad, "info_nce query": query.grad}
    return {name: x.detach()[None] for name, x in losses.items()} | {name: x / ranks for name, x in gradients.items()}


def at_parameters(ranks, rank):
    """Gradients of all parameters of a small network without batch-norm, under DDP."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    network = nn.Sequential(stem, nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, DIM)).double()
    wrapped = DistributedDataParallel(network) if ranks > 1 else network
    images = [local(x, ranks, rank) for x in tensors(BATCH, 1, 8, 8, count=2, dtype=torch.float64)]
    key, queue = tensors(BATCH, DIM, dtype=torch.float64)[0], F.normalize(*tensors(20, DIM, dtype=torch.float64))
    out = {}
    for name in ("nt_xent", "info_nce"):
        network.zero_grad()
        z0, z1 = wrapped(torch.cat(images)).chunk(2)
        loss = nt_xent(z0, z1, 0.1) if name == "nt_xent" else info_nce(z0, local(key, ranks, rank), queue, 0.2)
        loss.backward()
        out |= {f"{name} {key}": parameter.grad.clone() for key, parameter in network.named_parameters()}
    return out


def queued(ranks, rank):
    """The queue after batches that do not divide it."""
    queue = Queue(11, DIM, seed=2)
    for keys in tensors(BATCH, DIM, count=4, seed=3):
        queue.enqueue(local(keys, ranks, rank))
    return {"rows": queue.rows, "pointer": torch.tensor(queue.pointer)}


def statistics(ranks, rank):
    metric = RepresentationStatistics(DIM)
    z0, z1 = tensors(BATCH, DIM, count=2)
    metric.update(local(z0, ranks, rank), local(z1, ranks, rank))
    return metric.compute()


def everything(ranks, rank):
    return {
        "gathered": gathered(ranks, rank),
        "float32": at_projections(ranks, rank, torch.float32),
        "float64": at_projections(ranks, rank, torch.float64),
        "4 images": at_projections(ranks, rank, torch.float64, batch=4),
        "parameters": at_parameters(ranks, rank),
        "queue": queued(ranks, rank),
        "statistics": statistics(ranks, rank),
    }


def worker(rank, folder):
    """One of four processes; the first two go on as two ranks, which saves starting them again."""
    torch.set_num_threads(1)
    for ranks in (4, 2):
        if rank < ranks:
            meeting = f"file://{folder}/meeting{ranks}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
            assert (distributed.rank(), distributed.world_size()) == (rank, ranks)
            torch.save(everything(ranks, rank), f"{folder}/{ranks}-{rank}.pt")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, args=(folder,), nprocs=4)
    return folder


@pytest.fixture(params=[2, 4], ids="{} ranks".format)
def ranks(request, folder):
    """What each rank found, in the order of ranks."""
    return [torch.load(folder / f"{request.param}-{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.fixture(scope="module")
def one():
    return everything(1, 0)


pytestmark = pytest.mark.ddp


def test_gather_keeps_the_order_and_its_backward_sums_over_ranks(ranks, one):
    for found in ranks:
        assert torch.equal(found["gathered"]["gathered"], one["gathered"]["gathered"])
    weights = sum(tensors(BATCH, 2, 3, seed=10 + rank)[0] for rank in range(len(ranks)))
    assert torch.allclose(torch.cat([found["gathered"]["gradient"] for found in ranks]), weights, atol=1e-6)


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-6), ("float64", 1e-14), ("4 images", 1e-14)])
def test_losses_and_their_gradients_at_the_projections(ranks, one, precision, tolerance):
    for name, expected in one[precision].items():
        parts = [found[precision][name] for found in ranks]
        got = torch.cat(parts).mean(0, keepdim=True) if name.endswith("loss") else torch.cat(parts)
        assert expected.abs().max() > 1e-3, name
        assert (got - expected).abs().max() < tolerance, name


def test_gradients_of_all_parameters(ranks, one):
    for found in ranks:
        for name, expected in one["parameters"].items():
            assert (found["parameters"][name] - expected).abs().max() < 1e-12, name
    assert sum(float(x.abs().sum()) > 1e-3 for x in one["parameters"].values()) >= 14


def test_the_queue_is_that_of_one_process(ranks, one):
    for found in ranks:
        assert torch.equal(found["queue"]["rows"], one["queue"]["rows"])
        assert found["queue"]["pointer"] == one["queue"]["pointer"] == 4 * BATCH % 11


def test_statistics_are_those_of_all_ranks(ranks, one):
    for found in ranks:
        for name in ("embedding_std", "effective_rank", "alignment"):
            assert torch.allclose(found["statistics"][name], one["statistics"][name], atol=1e-12), name
        pairs = [torch.pdist(F.normalize(z.double())) for z in tensors(BATCH, DIM, count=2)[0].chunk(len(ranks))]
        within = torch.cat(pairs).square().mul(-2).exp().mean().log()
        assert torch.allclose(found["statistics"]["uniformity"], within, atol=1e-12)
