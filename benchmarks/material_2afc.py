"""Which of two materials looks more like a third: distances of frozen backbones beside people's choices.

    CSRTRAIN_DATA=DIR python -m benchmarks.material_2afc NAME=BUNDLE ... --write

Bundles: as `benchmarks.biq2021 train` makes them; SimCLR of luma with `--option=--data.channels=1`, and further on the
renderings themselves (the tests', too; no choice of people is seen):

    csrtrain fit -c natural_simclr --data.root DIR/material_2afc/images --data.channels 1 --model.weights LUMA_BUNDLE \\
        --data.batch_size 50 --data.load_size 256 --model.learning_rate 0.03 --trainer.max_epochs 40 \\
        --trainer.precision bf16-mixed

`DIR/material_2afc`: 100 renderings, triplets (reference, chosen, other) with votes. Which of the two stands first is
drawn anew for each triplet. Uncalibrated: all weights 1, of all stages, of each alone, and of the stages (one or
several), the scales of the images (1, 1/2, 1/4; one or several) and their colour (as it is, or luma alone) that agree
best on the training triplets. Calibrated: a weight per channel, not negative, fitted to the training triplets as
`csrtrain fit -c fr_2afc` does, of the images in colour or of luma, whichever agrees better there, at full scale, and at
all three (`--model.scales '[1.0, 0.5, 0.25]'`). Backbones of one channel get luma. Agreement: the share of test
triplets without a tie in votes whose majority the distance follows; 2AFC: the share of votes, all test triplets. SSIM:
of luma. Intervals: 95 %, bootstrap over references. "Beats" means that the interval of the paired difference excludes
0.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from skimage.metrics import structural_similarity
from torch import Tensor

from benchmarks import harness
from csrtrain.augment.color import luma
from csrtrain.data import decode
from csrtrain.data.index import addresses_of
from csrtrain.metrics.preference import two_afc
from csrtrain.metrics.representation import paired_bootstrap
from csrtrain.models.backbone import Backbone
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.quality.full_reference import fit_to_choices

SCALES = (1.0, 0.5, 0.25)
"""Of the images, which have 256 px."""
Array = NDArray[np.float64]


class Triplets(NamedTuple):
    """reference, p0, p1: (N,) numbers of images; judge: (N,) share that chose p1; tied: (N,) as many for each."""

    reference: NDArray[np.int64]
    p0: NDArray[np.int64]
    p1: NDArray[np.int64]
    judge: Array
    tied: NDArray[np.bool_]


def read_triplets(path: Path, seed: int) -> Triplets:
    """Each in a random order: the file names the chosen one first."""
    content = json.loads(path.read_text())
    answers, votes = np.array(content["answers"]), np.array(content["agreement"], dtype=np.float64)
    swapped = np.random.default_rng(seed).random(len(answers)) < 0.5
    p0, p1 = np.where(swapped, answers[:, [2, 1]].T, answers[:, [1, 2]].T)
    share = votes[:, 0] / votes.sum(1)
    return Triplets(answers[:, 0], p0, p1, np.where(swapped, share, 1 - share), votes[:, 0] == votes[:, 1])


@torch.no_grad()
def channel_differences(metric: FullReferenceMetric, images: Tensor) -> list[Tensor]:
    """Per stage of each scale (N,N,C): `FullReferenceMetric.channel_differences` of every two images, by products."""
    parts = [metric.reference(image[None]).maps for image in track(images, "Feature maps")]
    found = []
    for stage in range(len(metric.weights)):
        maps = torch.cat([part[stage] for part in parts]).flatten(2)  # (N,C,P)
        squares = maps.square().sum(2)
        products = torch.stack([channel @ channel.T for channel in maps.unbind(1)], 2)  # (N,N,C)
        found.append(((squares[:, None] + squares[None] - 2 * products) / maps.shape[2]).clamp(min=0))
    return found


def agreement(distances: Array, triplets: Triplets) -> tuple[Array, Array]:
    """Per triplet without a tie: whether the majority is followed; per triplet: the share of votes."""
    d0, d1 = distances[triplets.reference, triplets.p0], distances[triplets.reference, triplets.p1]
    majority = two_afc(d0, d1, (triplets.judge > 0.5).astype(np.float64))[~triplets.tied]
    return majority, two_afc(d0, d1, triplets.judge)


class Found(NamedTuple):
    """A distance between all images: of which kind, with which choices, and (N,N)."""

    kind: str
    choices: str
    distances: Array


def distances_of(backbone: Backbone, images: Tensor, train: Triplets) -> list[Found]:
    """Uncalibrated and calibrated distances between all images."""
    metric = FullReferenceMetric(backbone.float(), scales=SCALES)
    grey = luma(images).expand(-1, backbone.channels, -1, -1)
    pairs = torch.from_numpy(np.stack([train.reference * len(images) + p for p in (train.p0, train.p1)], 1))
    maps: dict[tuple[str, float, int], Array] = {}
    fitted: dict[tuple[int, str], Array] = {}
    for color, shown in (("colour", images), ("luma", grey)) if backbone.channels == 3 else (("luma", grey),):
        differences = channel_differences(metric, shown)
        of_maps = zip(itertools.product(SCALES, metric.stages), differences, strict=True)
        maps |= {(color, scale, stage): found.sum(2).double().numpy() for (scale, stage), found in of_maps}
        for count in (1, len(SCALES)):
            channels = torch.cat(differences[: count * len(metric.stages)], 2)  # (N,N,F)
            weights = fit_to_choices(channels.flatten(0, 1), pairs, torch.from_numpy(train.judge))
            fitted[count, color] = (channels @ weights).double().numpy()

    def agrees(distances: Array) -> float:
        return float(agreement(distances, train)[0].mean())

    colors = sorted({color for color, _, _ in maps})
    sums = {
        (stages, scales, color): np.sum([maps[color, scale, stage] for scale in scales for stage in stages], axis=0)
        for stages in _subsets(metric.stages)
        for scales in _subsets(SCALES)
        for color in colors
    }
    stages, scales, color = max(sums, key=lambda which: agrees(sums[which]))
    chosen = f"stages {_words(stages)} at scales {_words(scales)}, {color}"
    first, plain = SCALES[:1], colors[0]
    found = [
        Found("all stages", plain, sums[metric.stages, first, plain]),
        *(Found(f"stage {stage}", plain, sums[(stage,), first, plain]) for stage in metric.stages),
        Found("best on train", chosen, sums[stages, scales, color]),
    ]
    for count, kind in ((1, "calibrated"), (len(SCALES), "calibrated, three scales")):
        best = max(colors, key=lambda which: agrees(fitted[count, which]))
        found.append(Found(kind, best, fitted[count, best]))
    return found


def _subsets(of: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """All but the empty one."""
    return [chosen for count in range(len(of)) for chosen in itertools.combinations(of, count + 1)]


def _words(numbers: tuple[float, ...]) -> str:
    return " + ".join(f"{number:g}" for number in numbers)


def main() -> None:
    """All bundles beside the controls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="NAME=BUNDLE")
    parser.add_argument("--name", default="material_2afc", help="of the files of results")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    root = harness.data_root() / "material_2afc"
    train, test = (read_triplets(root / f"answers_processed_{split}.json", 0) for split in ("train", "test"))
    images = torch.stack([decode.to_channels(decode.read(path), 3) for path in addresses_of(str(root / "images"))])
    images = images.float() / 255
    flat, dark = images.flatten(1), luma(images).flatten(1)
    grey, similar = luma(images)[:, 0].double().numpy(), np.ones((len(images), len(images)))
    for i, j in track(list(itertools.combinations(range(len(grey)), 2)), "SSIM"):
        similar[i, j] = similar[j, i] = structural_similarity(
            grey[i], grey[j], data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    distances = {
        "pixels": Found("pixels", "colour", torch.cdist(flat, flat).double().numpy()),
        "pixels of luma": Found("pixels", "luma", torch.cdist(dark, dark).double().numpy()),
        "SSIM": Found("SSIM", "luma", 1 - similar),
    }
    plain = tuple(distances)
    bundles = harness.named(options.bundles)
    for name, backbone in harness.backbones(bundles).items():
        distances |= {f"{name}, {found.kind}": found for found in distances_of(backbone, images, train)}
    untied = test.reference[~test.tied]
    agreed = {name: agreement(found.distances, test) for name, found in distances.items()}
    rows: list[dict[str, Any]] = []
    for name, (majority, soft) in agreed.items():
        value, low, high = paired_bootstrap(majority, np.zeros(len(majority)), untied)
        row = {
            "distance": name,
            "of": distances[name].choices,
            "agreement": value,
            "interval": f"[{low:.3f}, {high:.3f}]",
            "2AFC": float(soft.mean()),
        }
        for control in (*plain, f"untrained, {distances[name].kind}"):
            if name not in plain and not name.startswith("untrained"):
                _, low, high = paired_bootstrap(majority, agreed[control][0], untied)
                row[f"minus {control.split(',')[0]}"] = f"[{low:+.3f}, {high:+.3f}]"
                row[f"beats {control.split(',')[0]}"] = low > 0
        rows.append(row)
    ceiling = np.maximum(test.judge, 1 - test.judge)[~test.tied].mean()
    notes = [f"{name}: {harness.trained(path)}" for name, path in bundles.items()]
    notes += [
        f"{(~test.tied).sum()} of {len(test.judge)} test triplets without a tie. The majority has {ceiling:.3f} of "
        "their votes, its own included: no distance can follow people better than about that.",
        "The published split is by triplet: all 100 materials are in train too, so that a choice of stage and the "
        "calibrated weights are measured on materials that they saw.",
        "Minus untrained: the same kind of distance; what is chosen on train is chosen for the untrained one too.",
    ]
    title = "Similarity of materials: distances beside people's choices"
    command = "CSRTRAIN_DATA=DIR python -m benchmarks.material_2afc NAME=BUNDLE ... --write"
    if options.name != "material_2afc":
        command += f" --name {options.name}"
    result = harness.Result(options.name, title, rows, notes, ("torch", "timm", "scikit-image"), command)
    result.show(options.write)


if __name__ == "__main__":
    main()
