"""One step of SimCLR, MoCo and CONTRIQUE on a fixed batch, on this rank's share of it; rank 0 saves loss and gradients.

Run by test_ranks.py under torchrun with 1, 2 and 4 ranks.
"""

import copy
import sys
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from csrtrain.batches import ViewBatch
from csrtrain.pretrain import CONTRIQUE, MoCo, SimCLR

BATCH = 8
CLASSES = torch.tensor([0, 31, 31, -7, 0, -9, 31, -7])  # of the images: synthetic, and authentic below 0
COMMON = dict(channels=1, modality="mri", size=32, projection_dim=16)


class Step(nn.Module):
    """What Lightning wraps in DDP: the training step; keeps the projections to read their gradient."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: ViewBatch) -> torch.Tensor:
        kept = []
        handle = self.method.head.register_forward_hook(lambda module, inputs, output: kept.append(output))
        loss = self.method.training_step(batch, 0)["loss"]
        handle.remove()
        self.projections = kept
        for projection in kept:
            projection.retain_grad()
        return loss


def methods() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    simclr = SimCLR(backbone="test_vit", **COMMON, temperature=0.1)
    width = simclr.backbone.representation_dim
    simclr.head = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16))  # the usual head has batch-norm
    moco = MoCo(backbone="test_convnext", **COMMON, queue_size=20)
    shuffled = MoCo(backbone="test_resnet", **COMMON, queue_size=20, batch_norm_groups=4)
    contrique = CONTRIQUE(backbone="test_vit", **COMMON)
    contrique.head = copy.deepcopy(simclr.head)
    legacy = copy.deepcopy(contrique)
    legacy.legacy_gradient_scale = True
    return {
        "simclr": simclr,
        "moco": moco,
        "moco, batch-norm and shuffling": shuffled,
        "contrique": contrique,
        "contrique, legacy": legacy,
    }


def main(output: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    local = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    results = {}
    for name, method in methods().items():
        method.double().train()
        generator = torch.Generator().manual_seed(1)
        views = torch.rand(2, BATCH, 1, 32, 32, generator=generator, dtype=torch.float64)
        step = Step(method)
        wrapped = DistributedDataParallel(step) if ranks > 1 else step
        for number in range(2):  # the second step meets the queue that the first one filled
            method.zero_grad()
            indices = np.arange(BATCH)[local]
            loss = wrapped(ViewBatch(views[0, local], views[1, local], indices, 3, 0, number, CLASSES[local]))
            loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        at_z = torch.cat([projection.grad for projection in step.projections])
        several = name == "simclr" or name.startswith("contrique")
        at_z = at_z.unflatten(0, (2, -1)) if several else at_z[None]  # (views, B, d)
        parts = [torch.zeros_like(at_z) for _ in range(ranks)]
        dist.all_gather(parts, at_z.contiguous())
        results[name] = {
            "loss": mean / ranks,
            "projections": torch.cat(parts, dim=1) / ranks,  # DDP takes the mean over ranks
            "parameters": {key: p.grad.clone() for key, p in method.named_parameters() if p.grad is not None},
        }
        if hasattr(method, "queue"):
            queues = [torch.zeros_like(method.queue.rows) for _ in range(ranks)]
            dist.all_gather(queues, method.queue.rows)
            results[name]["queues"] = queues
    if rank == 0:
        torch.save(results, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
