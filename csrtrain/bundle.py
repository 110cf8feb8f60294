"""The one file format that leaves a run: weights and a JSON header in one `.safetensors` file.

The header is one JSON text in the metadata of the safetensors file. No pickle, no class paths, no file names and no
patient data: nothing in it is run, and it can be shared. The same content gives the same bytes.
"""

import importlib.metadata
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from csrtrain.models import weights
from csrtrain.models.backbone import PREFIX, Backbone, checked_arguments
from csrtrain.models.domain import NEIGHBORS
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale

_PACKAGES = ("csrtrain", "torch", "torchvision", "lightning", "timm", "lightly", "kornia")
_DIRECTIONS = ("higher is better", "lower is better")
_METRIC = "metric."  # prefix of its tensors in a checkpoint


@dataclass(frozen=True)
class BundleHeader:
    """What a bundle says about itself; plain data.

    Attributes:
        backbone: arguments that rebuild the network, see `Backbone.arguments`.
        input: channels, range of the values, normalisation (mean, std), and the intensity window of the training
            images ("header", "full" or [centre, width]): another window means another quality.
        features: representation_dim, channels of the feature maps (stages), scales of the image that are used and the
            filter that makes the smaller one, and whether representations are L2-normalised.
        training: method, config (name), data (digest and description, no names), seed, steps.
        versions: packages by name.
        results: measured values by name, finite numbers.
        kind: "backbone".
        format: version of this format.
    """

    backbone: dict[str, Any]
    input: dict[str, Any]
    features: dict[str, Any]
    training: dict[str, Any]
    versions: dict[str, str]
    results: dict[str, float]
    kind: str = "backbone"
    format: int = weights.FORMAT


@dataclass(frozen=True)
class MetricHeader:
    """What the bundle of a no-reference metric says about itself; plain data.

    Attributes:
        backbones: of each, the arguments that rebuild it and what its own bundle says of its training.
        input: channels, range of the values, and the intensity window of the images.
        features: of each backbone scales, l2, crops, and the filter that makes the smaller scales.
        score: range and direction of the score, median score of pristine images (None where no rated image is one);
            name, range and direction of the ratings that it was fitted to.
        domain: anchors (how many training images are kept), neighbors (whose mean distance is measured).
        training: method, data (digest and description, no names), seed.
        versions: packages by name.
        results: measured values by name, finite numbers.
        kind: "no_reference".
        format: version of this format.
    """

    backbones: list[dict[str, Any]]
    input: dict[str, Any]
    features: list[dict[str, Any]]
    score: dict[str, Any]
    domain: dict[str, Any]
    training: dict[str, Any]
    versions: dict[str, str]
    results: dict[str, float]
    kind: str = "no_reference"
    format: int = weights.FORMAT


def header_for(
    backbone: Backbone,
    window: str | list[float] = "header",
    training: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
    results: dict[str, float] | None = None,
    features: dict[str, Any] | None = None,
) -> BundleHeader:
    """The header of a backbone, with what only its training knows: see `BundleHeader`."""
    arguments = backbone.arguments()
    contract = {key: arguments[key] for key in ("channels", "mean", "std")}
    return BundleHeader(
        backbone=arguments,
        input={**contract, "range": [0.0, 1.0], "window": window},
        features={
            "representation_dim": backbone.representation_dim,
            "stages": backbone.stage_channels,
            "scales": [1.0],
            "l2": False,
            **(features or {}),
        },
        training=training or {},
        versions=versions or {},
        results={name: float(value) for name, value in (results or {}).items() if math.isfinite(value)},
    )


def save(path: str | Path, module: Backbone | NoReferenceMetric, header: BundleHeader | MetricHeader) -> None:
    """Write a bundle; a reader sees the old file or the whole new one, never a part.

    Raises:
        ValueError: the name does not end in `.safetensors`, or the header describes another backbone.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"Expected a name that ends in .safetensors for a bundle, got {path}. Change the name.")
    prefix = ""
    if isinstance(header, BundleHeader):
        prefix = PREFIX
        if not isinstance(module, Backbone) or header.backbone != module.arguments():
            raise ValueError(
                f"Expected the header of this backbone, got one of {header.backbone}. Make it by header_for."
            )
    tensors = {prefix + name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.torch.save(tensors, weights.metadata(asdict(header))))


def versions() -> dict[str, str]:
    """Packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def described_metric(
    metric: NoReferenceMetric, window: str | list[float], training: dict[str, Any], results: dict[str, float]
) -> dict[str, Any]:
    """The header of a metric, as plain data, for its checkpoint."""
    scale, backbones = metric.scale, [b for b in metric.features.backbones if isinstance(b, Backbone)]
    header = MetricHeader(
        backbones=[{"arguments": b.arguments(), "training": b.header.training if b.header else {}} for b in backbones],
        input={"channels": metric.features.channels, "range": [0.0, 1.0], "window": window},
        features=[
            {"scales": list(c.scales), "l2": c.l2, "crops": c.crops, "half_scale_filter": "bilinear_aa"}
            for c in metric.features.contracts
        ],
        score={
            "range": [0.0, 100.0],
            "direction": _DIRECTIONS[0],
            "pristine": scale.pristine,
            "ratings": scale.name,
            "ratings_range": [scale.low, scale.high],
            "ratings_direction": _DIRECTIONS[0 if scale.higher_is_better else 1],
        },
        domain={"anchors": len(metric.domain.looks), "neighbors": NEIGHBORS},
        training=training,
        versions=versions(),
        results=results,
    )
    return asdict(header)


def read_header(path: str | Path) -> BundleHeader | MetricHeader:
    """What a bundle says about itself, without reading the weights.

    Raises:
        ValueError: the file is missing, damaged, no bundle, or of an unknown format.
    """
    header = weights.read_header(path)
    if header is None:
        raise ValueError(f"Expected a csrtrain bundle, got a safetensors file without its header in {path}. Export it.")
    kinds: dict[str, type[BundleHeader] | type[MetricHeader]]
    kinds = {"backbone": BundleHeader, "no_reference": MetricHeader}
    kind = kinds.get(str(header.get("kind")))
    if kind is None:
        raise ValueError(
            f"Expected a bundle of kind {' or '.join(kinds)} in {path}, got {header.get('kind')!r}. Update csrtrain."
        )
    if set(header) != {field.name for field in fields(kind)}:
        names = sorted(field.name for field in fields(kind))
        raise ValueError(f"Expected the header fields {names} in {path}, got {sorted(header)}. Export it again.")
    for field in fields(kind):
        wanted = list if str(field.type).startswith("list") else dict if str(field.type).startswith("dict") else None
        if wanted and not isinstance(header[field.name], wanted):
            raise ValueError(
                f"Expected a {'list' if wanted is list else 'mapping'} {field.name} in the header of {path}, got "
                f"{header[field.name]!r}. Export it again."
            )
    if kind is BundleHeader:
        arguments = checked_arguments(header, path)
        for name in ("channels", "mean", "std"):
            if header["input"].get(name) != arguments[name]:
                raise ValueError(
                    f"Expected the same {name} for input and backbone in {path}, got {header['input'].get(name)} and "
                    f"{arguments[name]}. Export it again."
                )
    return kind(**header)


def load(path: str | Path) -> Backbone | NoReferenceMetric:
    """What a bundle holds, in evaluation mode, on the CPU, with its `header`.

    A backbone: `backbone.representation(images)`: (B,C,H,W) float in [0,1] -> (B,D); `backbone.feature_maps(images)`:
    a (B,C,H,W) per stage. A no-reference metric: `metric.score(images)`: (B,C,H,W) -> (B,), 0 to 100, higher is better;
    `metric.assess(images)`, `metric.heatmap(images)`.

    Raises:
        ValueError: the file is missing, damaged, no bundle, or its weights do not fit its header.
    """
    header = read_header(path)
    if isinstance(header, MetricHeader):
        metric = _rebuilt_metric(header, weights.read(path).tensors, path)
        metric.header = header
        return metric.eval()
    return _loaded_backbone(header, path)


def load_backbone(path: str | Path) -> Backbone:
    """As `load`, of a bundle that has to hold a backbone."""
    header = read_header(path)
    if not isinstance(header, BundleHeader):
        raise ValueError(f"Expected the bundle of a backbone, got one of kind {header.kind} in {path}. Name another.")
    return _loaded_backbone(header, path)


def load_metric(path: str | Path) -> NoReferenceMetric:
    """As `load`, of a bundle that has to hold a no-reference metric."""
    metric = load(path)
    if not isinstance(metric, NoReferenceMetric):
        raise ValueError(
            f"Expected the bundle of a metric, got one of a backbone in {path}. Fit a head to ratings first: "
            "csrtrain fit -c nr_linear."
        )
    return metric


def _loaded_backbone(header: BundleHeader, path: str | Path) -> Backbone:
    backbone = _rebuild(header.backbone, weights.read(path).tensors, path)
    backbone.header = header
    return backbone.eval()


def _check_metric(header: MetricHeader) -> None:
    """Refuse what would change a score without a word."""
    window = header.input["window"]
    if window not in ("header", "full") and not (
        isinstance(window, list) and len(window) == 2 and all(isinstance(value, int | float) for value in window)
    ):
        raise ValueError(f"window {window!r}")
    if header.score["ratings_direction"] not in _DIRECTIONS:
        raise ValueError(f"direction {header.score['ratings_direction']!r}")
    for contract in header.features:
        if not isinstance(contract["l2"], bool) or not isinstance(contract["crops"], int | None):
            raise ValueError(f"features {contract!r}")


def _rebuilt_metric(header: MetricHeader, tensors: dict[str, Tensor], path: str | Path) -> NoReferenceMetric:
    """The metric of a header with exactly these tensors in it."""
    try:
        _check_metric(header)
        backbones = [Backbone(**checked_arguments({"backbone": b["arguments"]}, path)) for b in header.backbones]
        contracts = [Contract(tuple(map(float, f["scales"])), f["l2"], f["crops"]) for f in header.features]
        low, high = map(float, header.score["ratings_range"])
        better = header.score["ratings_direction"] == _DIRECTIONS[0]
        pristine = header.score.get("pristine")
        scale = RatingScale(low, high, better, str(header.score["ratings"]), pristine and float(pristine))
        anchors = tensors.get("domain.looks")
        metric = NoReferenceMetric(
            FrozenFeatures(backbones, contracts), scale, 0 if anchors is None or anchors.ndim != 2 else len(anchors)
        )
        metric.load_state_dict(tensors, strict=True)
        wrong = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
        if wrong or header.domain["anchors"] != len(metric.domain.looks) != 0:
            raise RuntimeError(f"not finite: {wrong[:3]}" if wrong else "another number of training images")
        if header.input["channels"] != metric.features.channels:
            raise RuntimeError("other channels")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:500]
        raise ValueError(
            f"Expected the weights and header of a metric in {path}, got others: {reason}. Use another copy."
        ) from None
    return metric


def export_checkpoint(checkpoint: str | Path, output: str | Path) -> BundleHeader | MetricHeader:
    """Make a bundle of the backbone or the metric in a checkpoint of `csrtrain fit`.

    Args:
        checkpoint: Lightning checkpoint; what describes it stands under its key `csrtrain`.
        output: the bundle, `.safetensors`.

    Returns:
        The header that was written.

    Raises:
        ValueError: the checkpoint is missing, damaged, would run code, or is none of csrtrain's.
    """
    content = weights.read_torch(checkpoint)
    described, tensors = content.get("csrtrain"), content.get("state_dict")
    if not isinstance(described, dict) or not isinstance(tensors, dict):
        raise ValueError(
            f"Expected a checkpoint of csrtrain fit, got one without its description in {checkpoint}. "
            "Weights of other programs go to --model.weights."
        )
    if described.get("kind") == "no_reference":
        return _export_metric(described, tensors, checkpoint, output)
    arguments = checked_arguments(described, checkpoint)
    kept = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    backbone = _rebuild(arguments, kept, checkpoint)
    data = described.get("data", {})
    header = header_for(
        backbone,
        window=data.get("window", "header"),
        training={key: described.get(key) for key in ("method", "config", "data", "seed", "steps")},
        versions=described.get("versions", {}),
        results=described.get("results", {}),
        features=described.get("features", {}),
    )
    save(output, backbone, header)
    return header


def _export_metric(
    described: dict[str, Any], tensors: dict[str, Tensor], checkpoint: str | Path, output: str | Path
) -> MetricHeader:
    if set(described) != {field.name for field in fields(MetricHeader)}:
        raise ValueError(
            f"Expected the description of a metric in {checkpoint}, got {sorted(described)}. Fit it again."
        )
    header = MetricHeader(**described)
    kept = {name.removeprefix(_METRIC): value for name, value in tensors.items() if name.startswith(_METRIC)}
    metric = _rebuilt_metric(header, kept, checkpoint)
    save(output, metric, header)
    return header


def _rebuild(arguments: dict[str, Any], tensors: dict[str, Tensor], path: str | Path) -> Backbone:
    """The network of `arguments` with exactly these tensors in it."""
    backbone = Backbone(**arguments)
    try:
        backbone.load_state_dict({name.removeprefix(PREFIX): value for name, value in tensors.items()}, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:500]
        raise ValueError(
            f"Expected weights of {arguments['name']} in {path}, got others: {reason}. Use another copy."
        ) from None
    if backbone.arguments() != arguments:
        raise ValueError(f"Expected mean and std of the header among the weights of {path}, got others. Export again.")
    return backbone


def write_atomically(path: Path, content: bytes) -> None:
    """Temporary file in the same directory, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
