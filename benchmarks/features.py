"""Two-scale features of whole images from a frozen ResNet-18 and ResNet-50, beside the networks eager, float32, NCHW.

    python -m benchmarks features

The peer is what a user writes: the timm model in evaluation, no gradient, images in PyTorch's usual order of memory,
full and half scale, each divided by its length. Ours is `FrozenFeatures.folded()`, as every verb uses it, in float32
and under bf16 autocast. The physical limit in float32 is the
time that the peer spends in convolutions, by its share in one profiled call.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness
from benchmarks.distortions import photographs
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures

BATCH, SIZE = 8, 384
ROUNDS = 5


def rows_of(name: str, images: torch.Tensor) -> list[dict[str, Any]]:
    """Time, and what bf16 does to a score."""
    torch.manual_seed(0)
    plain = Backbone(name).eval()
    ours = FrozenFeatures([Backbone(name)], [Contract()])
    ours.backbones[0].load_state_dict(plain.state_dict())
    ours = ours.folded()

    @torch.no_grad()
    def eager() -> torch.Tensor:
        half = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
        return torch.cat([F.normalize(plain.representation(x), dim=1) for x in (images, half)], dim=1)

    @torch.no_grad()
    def float32() -> torch.Tensor:
        return ours(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def bf16() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ours(images)  # type: ignore[no-any-return]

    seconds = harness.interleave({"eager": eager, "float32": float32, "bf16": bf16}, ROUNDS)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        eager()
    events = profiled.key_averages()
    spent = {event.key: event.cpu_time_total for event in events}
    share = spent["aten::convolution"] / sum(event.self_cpu_time_total for event in events)
    milliseconds = {kind: 1e3 * value / BATCH for kind, value in seconds.items()}
    limit = f"the peer's convolutions: {share * milliseconds['eager']:.1f} ms"
    rows = [
        harness.compared(f"{name}, {kind}: ms per image", milliseconds[kind], milliseconds["eager"], target, bound)
        for kind, target, bound in (("bf16", 2.5, ""), ("float32", 1.3, limit))
    ]
    reference, low = eager().double().numpy(), bf16().double().numpy()
    rating = np.linspace(0, 1, BATCH)
    head = Ridge(1e-2).fit(reference, rating)
    difference = float(np.abs(head.predict(low) - head.predict(reference)).max() / np.ptp(rating))
    rows.append(
        {
            "what": f"{name}, bf16: largest difference of a score fitted in float32, share of the range of ratings",
            "ours": difference,
            "target": "<= 0.005",
            "verdict": "met" if difference <= 0.005 else "missed",
        }
    )
    exact = float((float32() - eager()).abs().max())
    what = f"{name}, float32: largest difference of a feature"
    rows.append({"what": what, "ours": exact, "target": "<= 1e-5", "verdict": "met" if exact <= 1e-5 else "missed"})
    return rows


def run() -> harness.Result:
    """Both architectures."""
    images = photographs(BATCH, SIZE).float() / 255
    rows = [row for name in ("resnet18", "resnet50") for row in rows_of(name, images)]
    notes = [f"{BATCH} photographs of {SIZE} px, medians of {ROUNDS} interleaved rounds."]
    return harness.Result("features", "Two-scale features", rows, notes, ("torch", "timm"))
