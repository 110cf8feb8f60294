"""A CSR distance as a loss: super-resolution by 2 with L1 alone and with a distance of feature maps beside it.

    CSRTRAIN_DATA=DIR python -m benchmarks.super_resolution train RUNS NAME=BUNDLE ...
    CSRTRAIN_DATA=DIR python -m benchmarks.super_resolution report RUNS NAME=BUNDLE ... --write

`DIR/natural`: 900 photographs to train on (96 px crops, their antialiased bicubic half is the input), every tenth to
judge on (224 px, the middle). The same small residual network, seeds 0 to 2, 10 CPU minutes of one thread for each
loss, so a dearer loss makes fewer steps; L1 once more with as many steps as the untrained network's distance left time
for. Losses: L1; L1 + the distance (all weights 1, all stages) of each bundle and, as the control, of an untrained
ResNet-18. The distance's factor is not tuned: at the first step its gradient gets the
length of L1's. Judged by indices that are in none of the losses: GMSD and HaarPSI (piq), PSNR, and the radial spectrum
error, the mean over frequencies of |log10 power - log10 power of the original|, of luma. Intervals: 95 %, paired
bootstrap over images of means over seeds. "Better" means that the interval of the difference excludes 0.
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import piq
import psutil
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import harness
from csrtrain.augment.color import luma
from csrtrain.data import decode
from csrtrain.data.index import addresses_of
from csrtrain.metrics.representation import paired_bootstrap
from csrtrain.models.full_reference import FullReferenceMetric

MINUTES, SEEDS, BATCH, CROP, RATE, JUDGED = 10.0, 3, 8, 96, 1e-3, 224
WARM = 50  # steps, before memory is looked at
FEWER = "L1, as many steps as with a distance"
INDICES = {"psnr": 1, "gmsd": -1, "haarpsi": 1, "spectrum": -1}  # 1: higher is better


class Upsampler(nn.Module):
    """(B,3,H,W) -> (B,3,2H,2W): what four residual blocks add to bicubic interpolation."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + 0.2 * block(h)
        enlarged = F.interpolate(x, scale_factor=2, mode="bicubic")
        added: Tensor = enlarged + F.pixel_shuffle(self.last(h), 2)
        return added


def half(x: Tensor) -> Tensor:
    """Antialiased bicubic, rounded to 8 bits as a file would be."""
    small = F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    return small.mul(255).round().clamp(0, 255).div(255)


def photographs(root: Path, judged: bool) -> list[Tensor]:
    """(3,H,W) uint8 of at least 224 px; every tenth is judged, the others are trained on."""
    addresses = list(addresses_of(str(root / "natural")))
    chosen = [address for i, address in enumerate(addresses) if (i % 10 == 0) == judged]
    images = [decode.to_channels(decode.read(address), 3) for address in chosen]
    return [image for image in images if min(image.shape[1:]) >= JUDGED]


def losses(bundles: dict[str, str]) -> dict[str, FullReferenceMetric | None]:
    """None is L1 alone."""
    distances = {f"L1 + {name}": FullReferenceMetric(made) for name, made in harness.backbones(bundles).items()}
    return {"L1": None, **distances, FEWER: None}


def train(
    distance: FullReferenceMetric | None, images: list[Tensor], seed: int, most: int | None = None
) -> tuple[Upsampler, dict[str, float]]:
    """A network, and what its training took: `MINUTES`, or `most` steps."""
    torch.manual_seed(seed)
    network, random, process = Upsampler(), np.random.default_rng(seed), psutil.Process()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    factor, steps, memory, start = 0.0, 0, 0, time.process_time()
    while (share := steps / most if most else (time.process_time() - start) / (60 * MINUTES)) < 1:
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * share))
        crops = []
        for i in random.integers(0, len(images), BATCH):
            y, x = (int(random.integers(0, size - CROP + 1)) for size in images[i].shape[1:])
            crops.append(images[i][:, y : y + CROP, x : x + CROP])
        wanted = torch.stack(crops).float() / 255
        made = network(half(wanted))
        loss = F.l1_loss(made, wanted)
        if distance is not None:
            further = distance(made.clamp(0, 1), wanted).mean()
            if steps == 0:
                lengths = [torch.autograd.grad(part, made, retain_graph=True)[0].norm() for part in (loss, further)]
                factor = float(lengths[0] / lengths[1])
            loss = loss + factor * further
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps == WARM:
            memory = process.memory_info().rss
    grown = (process.memory_info().rss - memory) / 2**20
    return network.eval(), {"steps": steps, "factor": factor, "MiB grown after 50 steps": grown}


def radial_power(x: Tensor) -> Tensor:
    """(B,1,H,W) -> (B,H/2) log10 of the mean power at each whole radius of frequency, with a Hann window."""
    side = x.shape[-1]
    window = torch.hann_window(side)[:, None] * torch.hann_window(side)
    power = torch.fft.fft2((x - x.mean((2, 3), keepdim=True)) * window)[:, 0].abs().square()
    frequency = torch.fft.fftfreq(side) * side
    radius = torch.hypot(frequency[:, None], frequency).round().long().flatten()
    inside = radius < side // 2
    sums = torch.zeros(len(x), side // 2).index_add_(1, radius[inside], power.flatten(1)[:, inside])
    counts = torch.bincount(radius[inside], minlength=side // 2)
    return (sums / counts + 1e-8).log10()


@torch.no_grad()
def judge(made: Tensor, wanted: Tensor) -> dict[str, NDArray[np.float64]]:
    """Of each image (B,3,224,224), 8 bits."""
    made = made.mul(255).round().clamp(0, 255).div(255)
    grey, original = luma(made), luma(wanted)
    spectrum = (radial_power(grey) - radial_power(original))[:, 1:].abs().mean(1)
    found = {
        "psnr": -10 * (grey - original).square().mean((1, 2, 3)).log10(),
        "gmsd": piq.gmsd(grey, original, reduction="none"),
        "haarpsi": piq.haarpsi(grey, original, reduction="none"),
        "spectrum": spectrum,
    }
    return {name: values.double().numpy() for name, values in found.items()}


def middles(images: list[Tensor]) -> Tensor:
    found = []
    for image in images:
        y, x = ((size - JUDGED) // 2 for size in image.shape[1:])
        found.append(image[:, y : y + JUDGED, x : x + JUDGED])
    return torch.stack(found).float() / 255


def file_of(runs: Path, name: str, seed: int) -> Path:
    return runs / f"{name.replace(' ', '')}-{seed}.npz"


def train_one(root: Path, runs: Path, bundles: dict[str, str], name: str, seed: int) -> None:
    """One network, in a process of its own."""
    torch.set_num_threads(1)
    steps = int(np.load(file_of(runs, "L1 + untrained", seed))["steps"]) if name == FEWER else None
    network, facts = train(losses(bundles)[name], photographs(root, judged=False), seed, steps)
    wanted = middles(photographs(root, judged=True))
    with torch.no_grad():
        made = torch.cat([network(half(part)) for part in wanted.split(10)])
    np.savez(file_of(runs, name, seed), **judge(made, wanted), **facts)


def rows_of(runs: Path, names: list[str], bicubic: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """A row per loss, means over seeds, differences to L1."""
    rows: list[dict[str, Any]] = [{"loss": "bicubic, no training"} | {k: float(v.mean()) for k, v in bicubic.items()}]
    kept = {name: [dict(np.load(file_of(runs, name, seed))) for seed in range(SEEDS)] for name in names}
    for name, found in kept.items():
        row: dict[str, Any] = {"loss": name}
        row["steps"] = round(float(np.mean([one["steps"] for one in found])))
        for index, sign in INDICES.items():
            values = np.mean([one[index] for one in found], axis=0)
            row[index] = float(values.mean())
            row[f"{index}: seeds"] = " ".join(f"{one[index].mean():.4g}" for one in found)
            for other in ("L1", FEWER) if name not in ("L1", FEWER) else ():
                base = np.mean([one[index] for one in kept[other]], axis=0)
                _, low, high = paired_bootstrap(values, base, np.arange(len(values)))
                verdict = "better" if sign * low > 0 < sign * high else "worse" if sign * low < 0 > sign * high else "="
                row[f"{index} minus {other}"] = f"[{low:+.4f}, {high:+.4f}] {verdict}"
        grown = [one["MiB grown after 50 steps"] for one in found]
        row["MiB grown after 50 steps"] = float(np.max(grown))
        rows.append(row)
    return rows


def main() -> None:
    """Train what is not trained yet, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("train", "report"))
    parser.add_argument("runs", type=Path)
    parser.add_argument("bundles", nargs="*", metavar="NAME=BUNDLE")
    parser.add_argument("--one", nargs=2, metavar=("LOSS", "SEED"), help="train this one in this process")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    root, runs = harness.data_root(), options.runs
    bundles = harness.named(options.bundles)
    names = list(losses(bundles))
    runs.mkdir(parents=True, exist_ok=True)
    if options.one:
        train_one(root, runs, bundles, options.one[0], int(options.one[1]))
        return
    if options.verb == "train":
        for seed in range(SEEDS):
            for name in names:
                if not file_of(runs, name, seed).exists():
                    command = [sys.executable, "-m", "benchmarks.super_resolution", "train", str(runs)]
                    subprocess.run([*command, *options.bundles, "--one", name, str(seed)], check=True)
        return
    wanted = middles(photographs(root, judged=True))
    bicubic = judge(F.interpolate(half(wanted), scale_factor=2, mode="bicubic"), wanted)
    notes = [f"{name}: {harness.trained(path)}" for name, path in bundles.items()]
    notes += [
        f"{len(wanted)} images judged; {SEEDS} seeds; {MINUTES:g} CPU minutes of one thread each.",
        "The backbones saw the photographs that are judged, without labels, if they were trained on that folder.",
    ]
    title = "Super-resolution by 2: a CSR distance beside L1"
    command = "CSRTRAIN_DATA=DIR python -m benchmarks.super_resolution train|report RUNS NAME=BUNDLE ... --write"
    packages = ("torch", "piq")
    result = harness.Result("super_resolution", title, rows_of(runs, names, bicubic), notes, packages, command)
    result.show(options.write)


if __name__ == "__main__":
    main()
