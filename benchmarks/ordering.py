"""Does a stronger distortion lie further away? Distances beside SSIM, MS-SSIM and pixels, in their domain and outside.

    CSRTRAIN_DATA=DIR python -m benchmarks.ordering natural:NAME=BUNDLE mri:NAME=BUNDLE ... --write

20 references of `DIR/natural` and 20 of `DIR/brain_mri` (of the fifth of its groups that `benchmarks.distortion_probe`
keeps from training), the middle 224 px, every type of the bank at all five levels, each with a noise of its own. Two
levels of a type are a pair if the severity of one is larger (of signed types: on the same side). Measured is the share
of pairs whose stronger one has the larger distance (equal ones count half), mean over types. CSR distances: all weights
1, all stages, of backbones trained in the domain that stands before their name, and an untrained one. Intervals: 95 %,
bootstrap over references, paired for differences. "Beats" means that the interval of the difference excludes 0.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from benchmarks import harness
from benchmarks.distortion_probe import lists
from csrtrain.augment.bank import DistortionBank
from csrtrain.augment.color import luma
from csrtrain.augment.distort import LEVELS, rows_for
from csrtrain.data import decode
from csrtrain.data.images import native
from csrtrain.data.index import addresses_of
from csrtrain.metrics.representation import paired_bootstrap
from csrtrain.models.full_reference import FullReferenceMetric

REFERENCES, SIDE = 20, 224
CONTROLS = ("untrained", "SSIM", "MS-SSIM", "pixels")
Array = NDArray[np.float64]


def references(domain: str, root: Path, runs: Path) -> list[Tensor]:
    """(C,S,S) uint8, spread over the folder."""
    if domain == "natural":
        addresses = list(addresses_of(str(root / "natural")))
        paths = addresses[:: len(addresses) // REFERENCES][:REFERENCES]
    else:
        paths = [path for path, _ in lists(domain, root, runs)[1][:REFERENCES]]
    channels = 3 if domain == "natural" else 1
    return [native(decode.to_channels(decode.read(path), channels), SIDE, 0.5, 0.5) for path in paths]


def distances_of(metrics: dict[str, FullReferenceMetric], reference: Tensor, distorted: Tensor) -> dict[str, Array]:
    """Per metric (N,) of distorted (N,C,S,S) to reference (1,C,S,S), both float."""
    found = {}
    with torch.no_grad():
        for name, metric in metrics.items():
            x, y = (adapted(images, metric.channels) for images in (distorted, reference))
            kept = metric.reference(y)
            found[name] = torch.cat([metric.distance(part, kept) for part in x.split(25)])
        y = reference.expand_as(distorted)
        similar = structural_similarity_index_measure(distorted, y, data_range=1.0, reduction="none")
        multiscale = multiscale_structural_similarity_index_measure(distorted, y, data_range=1.0, reduction="none")
        assert isinstance(similar, Tensor)
        found |= {"SSIM": 1 - similar, "MS-SSIM": 1 - multiscale, "pixels": (distorted - y).square().mean((1, 2, 3))}
    return {name: values.double().numpy() for name, values in found.items()}


def adapted(images: Tensor, channels: int) -> Tensor:
    """Grey images for a colour network, or the luma of colour ones for a grey network."""
    return luma(images) if channels == 1 and images.shape[1] == 3 else images.expand(-1, channels, -1, -1)


def ordered(distances: Array, severities: Array) -> float:
    """Share of pairs of levels (5,) in the right order, NaN without a pair."""
    right = []
    for i in range(LEVELS):
        for j in range(LEVELS):
            stronger = abs(severities[i]) < abs(severities[j]) and severities[i] * severities[j] >= 0
            if stronger:
                right.append(0.5 + 0.5 * np.sign(distances[j] - distances[i]))
    return float(np.mean(right)) if right else float("nan")


def measure(domain: str, metrics: dict[str, FullReferenceMetric], images: list[Tensor]) -> tuple[dict[str, Array], Any]:
    """Per metric (R,T) shares, and the rows of the bank."""
    channels = len(images[0])
    bank = DistortionBank(rows_for("natural" if domain == "natural" else "mri", channels, jpeg2000=True))
    kinds = len(bank.rows)
    types, levels = np.divmod(np.arange(kinds * LEVELS), LEVELS)
    shares: dict[str, list[list[float]]] = {}
    for number, image in enumerate(track(images, domain)):
        seeds = np.arange(len(types), dtype=np.int64)[:, None] + 1_000_003 * number
        drawn = bank.drawn(types[:, None], levels[:, None] + 1.0, seeds)
        distorted = bank(image.expand(len(types), -1, -1, -1).contiguous(), drawn)
        for name, values in distances_of(metrics, image[None].float() / 255, distorted).items():
            table = values.reshape(kinds, LEVELS)
            shares.setdefault(name, []).append([ordered(d, s) for d, s in zip(table, bank.severities, strict=True)])
    return {name: np.array(rows) for name, rows in shares.items()}, bank.rows


def main() -> None:
    """Both domains, all distances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="DOMAIN:NAME=BUNDLE")
    parser.add_argument("--runs", type=Path, default=Path("runs/ordering"), help="folder for lists of files")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    bundles = harness.named(options.bundles)
    metrics = {name: FullReferenceMetric(backbone) for name, backbone in harness.backbones(bundles).items()}
    rows: list[dict[str, Any]] = []
    notes = [f"{name}: {harness.trained(path)}" for name, path in bundles.items()]
    for domain in ("natural", "mri"):
        root = harness.data_root()
        shares, types = measure(domain, metrics, references(domain, root, options.runs))
        means = {name: np.nanmean(table, axis=1) for name, table in shares.items()}
        every = np.arange(REFERENCES)
        for name, values in means.items():
            value, low, high = paired_bootstrap(values, np.zeros(len(values)), every)
            row = {"images": domain, "distance": name, "ordered": value, "interval": f"[{low:.3f}, {high:.3f}]"}
            for control in CONTROLS if name in bundles else ():
                _, low, high = paired_bootstrap(values, means[control], every)
                row[f"minus {control}"] = f"[{low:+.3f}, {high:+.3f}]" + (" beats" if low > 0 else "")
            other = f"{'mri' if domain == 'natural' else 'natural'}:{name.partition(':')[2]}"
            if name.startswith(domain) and other in means:
                difference, low, high = paired_bootstrap(values, means[other], every)
                verdict = " beats" if low > 0 else " loses" if high < 0 else ""
                row["minus the other domain's"] = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]{verdict}"
            rows.append(row)
        for k, kind in enumerate(types):
            share_of = {name: f"{np.nanmean(table[:, k]):.2f}" for name, table in shares.items()}
            notes.append(f"{domain}, {kind.name}: " + ", ".join(f"{name} {share}" for name, share in share_of.items()))
    notes.append("The natural backbones saw all of natural, without labels; the mri ones none of these references.")
    command = "CSRTRAIN_DATA=DIR python -m benchmarks.ordering DOMAIN:NAME=BUNDLE ... --write"
    packages = ("torch", "timm", "torchmetrics")
    result = harness.Result("ordering", "Levels of distortion in their order", rows, notes, packages, command)
    result.show(options.write)


if __name__ == "__main__":
    main()
