"""The full-reference distance beside the `lpips` package: its trunks and linear weights on both sides.

    python -m benchmarks distances

Trunks at random, because time and agreement do not depend on their weights; linear weights as shipped. Ours under bf16
autocast and in float32, theirs in float32, as it stands, without gradient; then a step of a loss, with the gradient of
the first image.
"""

from typing import Any

import lpips
import torch
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.distortions import photographs
from csrtrain.models.full_reference import FullReferenceMetric

BATCH, SIZE, ROUNDS = 8, 224, 7
TARGETS = {"alex": 2.0, "vgg": 1.7}


class Trunk(nn.Module):
    """The trunk of the lpips package as a backbone: [0,1] instead of [-1,1]."""

    channels = 3

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.stage_channels = model, model.chns

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return list(self.model.net(self.model.scaling_layer(2 * images - 1)))


def rows_of(net: str, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Time and agreement of one trunk."""
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    torch.manual_seed(0)
    ours = FullReferenceMetric(Trunk(lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()))  # type: ignore[arg-type]
    for weight, layer in zip(ours.weights.values(), theirs.lins, strict=True):
        weight.copy_(layer.model[-1].weight.flatten())

    @torch.no_grad()
    def peer() -> Tensor:
        return theirs(x, y, normalize=True)[:, 0, 0, 0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def float32() -> Tensor:
        return ours.distance(x, y)

    @torch.no_grad()
    def bf16() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ours.distance(x, y)

    made = x.clone().requires_grad_()

    def peer_loss() -> None:
        torch.autograd.grad(theirs(made, y, normalize=True).mean(), made)

    def loss() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = ours.distance(made, y).mean()
        torch.autograd.grad(found, made)

    seconds = harness.interleave(
        {"peer": peer, "bf16": bf16, "float32": float32, "peer loss": peer_loss, "loss": loss}, ROUNDS
    )
    ms = {kind: 1e3 * value / BATCH for kind, value in seconds.items()}
    target = TARGETS[net]
    difference = float((float32() - peer()).abs().max())
    relative = float(((bf16() - peer()).abs() / peer()).max())
    return [
        harness.compared(f"{net}, bf16: ms per pair", ms["bf16"], ms["peer"], target),
        harness.compared(f"{net}, float32: ms per pair", ms["float32"], ms["peer"], 1.0),
        harness.compared(f"{net}, bf16, as a loss with its gradient: ms per pair", ms["loss"], ms["peer loss"], 1.0),
        {
            "what": f"{net}, float32: largest difference",
            "ours": difference,
            "target": "<= 1e-6",
            "verdict": "met" if difference <= 1e-6 else "missed",
        },
        {"what": f"{net}, bf16: largest relative difference", "ours": relative},
    ]


def run() -> harness.Result:
    """Both trunks."""
    x = photographs(BATCH, SIZE).float() / 255
    generator = torch.Generator().manual_seed(0)
    y = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    rows = [row for net in TARGETS for row in rows_of(net, x, y)]
    notes = [f"{BATCH} pairs of {SIZE} px, medians of {ROUNDS} interleaved rounds."]
    return harness.Result("distances", "Full-reference distance beside lpips", rows, notes, ("torch", "lpips"))
