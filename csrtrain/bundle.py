"""The one file format that leaves a run: weights and a JSON header in one `.safetensors` file.

The header is one JSON text in the metadata of the safetensors file. No pickle, no class paths, no file names and no
patient data: nothing in it is run, and it can be shared. The same content gives the same bytes.
"""

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from csrtrain.files import shown, write_atomically
from csrtrain.headers import BundleHeader, DistanceHeader, Header, MetricHeader, check_use, read_header
from csrtrain.models import weights
from csrtrain.models.backbone import PREFIX, Backbone, check_tensors, checked_arguments
from csrtrain.models.difference import DifferenceMetric
from csrtrain.models.domain import NEIGHBORS
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale

_PACKAGES = ("csrtrain", "torch", "torchvision", "lightning", "timm", "lightly", "kornia")
_DIRECTIONS = ("higher is better", "lower is better")
_MOST_BACKBONES = 16  # of a metric, ours
_METRIC = "metric."  # prefix of its tensors in a checkpoint

Distance = FullReferenceMetric | DifferenceMetric


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


def save(path: str | Path, module: Backbone | NoReferenceMetric | Distance, header: Header) -> None:
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
        backbones=[_described_backbone(b) for b in backbones],
        input={"channels": metric.features.channels, "range": [0.0, 1.0], "window": window},
        features=[_described_contract(contract) for contract in metric.features.contracts],
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


def described_distance(
    metric: Distance,
    window: str | list[float],
    training: dict[str, Any],
    results: dict[str, float],
    fitted_to: str = "ones",
) -> dict[str, Any]:
    """The header of a distance, as plain data; `fitted_to`: see `DistanceHeader`."""
    if isinstance(metric, FullReferenceMetric):
        backbones = [metric.backbone]
        features = [{"stages": list(metric.stages), "scales": list(metric.scales), "half_scale_filter": "bilinear_aa"}]
    else:
        backbones = [b for b in metric.features.backbones if isinstance(b, Backbone)]
        features = [_described_contract(contract) for contract in metric.features.contracts]
    header = DistanceHeader(
        backbones=[_described_backbone(b) for b in backbones],
        input={"channels": metric.channels, "range": [0.0, 1.0], "window": window},
        features=features,
        distance={
            "of": "maps" if isinstance(metric, FullReferenceMetric) else "representations",
            "identical": 0.0,
            "direction": "lower is closer",
            "fitted_to": fitted_to,
        },
        training=training,
        versions=versions(),
        results=results,
    )
    return asdict(header)


def _described_backbone(backbone: Backbone) -> dict[str, Any]:
    return {"arguments": backbone.arguments(), "training": backbone.header.training if backbone.header else {}}


def _described_contract(contract: Contract) -> dict[str, Any]:
    return {
        "scales": list(contract.scales),
        "l2": contract.l2,
        "crops": contract.crops,
        "stages": None if contract.stages is None else list(contract.stages),
        "half_scale_filter": "bilinear_aa",
    }


def load(path: str | Path) -> Backbone | NoReferenceMetric | Distance:
    """What a bundle holds, in evaluation mode, on the CPU, with its `header`.

    A backbone: `backbone.representation(images)`: (B,C,H,W) float in [0,1] -> (B,D); `backbone.feature_maps(images)`:
    a (B,C,H,W) per stage. A no-reference metric: `metric.score(images)`: (B,C,H,W) -> (B,), 0 to 100, higher is better;
    `metric.assess(images)`, `metric.heatmap(images)`. A full-reference distance: `metric.distance(x, y)`: pairs of
    (B,C,H,W) -> (B,), 0 for identical images, lower is closer; of feature maps also `metric.distance_map(x, y)`.

    Raises:
        ValueError: the file is missing, damaged, no bundle, or its weights do not fit its header.
    """
    header = read_header(path)
    if isinstance(header, BundleHeader):
        return _loaded_backbone(header, path)
    metric: NoReferenceMetric | Distance
    if isinstance(header, MetricHeader):
        metric = _rebuilt_metric(header, weights.read(path).tensors, path)
    else:
        metric = _rebuilt_distance(header, weights.read(path).tensors, path)
    metric.header = header
    return metric.eval()


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
            f"Expected the bundle of a no-reference metric, got one of another kind in {path}. Fit a head to ratings "
            "first: csrtrain fit -c nr_linear."
        )
    return metric


def load_distance(path: str | Path) -> Distance:
    """As `load`, of a bundle that has to hold a full-reference distance."""
    metric = load(path)
    if not isinstance(metric, Distance):
        raise ValueError(
            f"Expected the bundle of a full-reference distance, got one of another kind in {path}. Make one of a "
            "backbone: csrtrain export BACKBONE -o DISTANCE --distance."
        )
    return metric


def _loaded_backbone(header: BundleHeader, path: str | Path) -> Backbone:
    backbone = _rebuild(header.backbone, weights.read(path).tensors, path)
    backbone.header = header
    return backbone.eval()


def _check_metric(header: MetricHeader) -> None:
    """Refuse what would change a score without a word."""
    if header.score["ratings_direction"] not in _DIRECTIONS:
        raise ValueError(f"direction {header.score['ratings_direction']!r}")


def _rebuilt_features(
    header: MetricHeader | DistanceHeader, tensors: dict[str, Tensor], path: str | Path
) -> tuple[FrozenFeatures, list[dict[str, Any]]]:
    """Backbones and contracts, and the arguments of each backbone."""
    for contract in header.features:
        if type(contract["crops"]) not in (int, type(None)):
            raise ValueError(f"features {contract!r}")
        stages = contract.get("stages")  # not in bundles of before
        if stages is not None and not (isinstance(stages, list) and all(type(stage) is int for stage in stages)):
            raise ValueError(f"stages {stages!r}")
        check_use(contract["scales"], contract["l2"])
    if len(header.backbones) > _MOST_BACKBONES:
        raise ValueError(f"{len(header.backbones)} backbones")
    arguments = [checked_arguments({"backbone": one["arguments"]}, path) for one in header.backbones]
    backbones = [_built(one, tensors, f"features.backbones.{i}.", path) for i, one in enumerate(arguments)]
    contracts = [
        Contract(tuple(map(float, f["scales"])), f["l2"], f["crops"], f.get("stages") and tuple(f["stages"]))
        for f in header.features
    ]
    return FrozenFeatures(backbones, contracts), arguments


def _filled(metric: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    """Exactly these tensors, all finite, in a metric."""
    metric.load_state_dict(tensors, strict=True)
    if wrong := [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise ValueError(f"not finite: {wrong[:3]}")


def _rebuilt_metric(header: MetricHeader, tensors: dict[str, Tensor], path: str | Path) -> NoReferenceMetric:
    """The metric of a header with exactly these tensors in it."""
    try:
        _check_metric(header)
        low, high = map(float, header.score["ratings_range"])
        better = header.score["ratings_direction"] == _DIRECTIONS[0]
        pristine = header.score.get("pristine")
        scale = RatingScale(low, high, better, str(header.score["ratings"]), pristine and float(pristine))
        features, arguments = _rebuilt_features(header, tensors, path)
        looks, kept = tensors.get("domain.looks"), tensors.get("domain.representations")
        anchors = 0 if looks is None or looks.ndim != 2 else len(looks)
        if kept is None or kept.shape != (anchors, sum(features.sizes)):
            raise ValueError("other training images")
        metric = NoReferenceMetric(features, scale, anchors)
        _filled(metric, tensors)
        if header.domain["anchors"] != anchors != 0:
            raise ValueError("another number of training images")
        _check_rebuilt(header, features.channels, features.backbones, arguments, path)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"Expected the weights and header of a metric in {path}, got others: {_reason(error)}. Use another copy."
        ) from None
    return metric


def _rebuilt_distance(header: DistanceHeader, tensors: dict[str, Tensor], path: str | Path) -> Distance:
    """The distance of a header with exactly these tensors in it."""
    try:
        metric: Distance
        if header.distance["of"] == "representations":
            features, arguments = _rebuilt_features(header, tensors, path)
            backbones: Any = features.backbones
            metric = DifferenceMetric(features)
        elif header.distance["of"] == "maps":
            (one,), (contract,) = header.backbones, header.features
            arguments = [checked_arguments({"backbone": one["arguments"]}, path)]
            backbones = [_built(arguments[0], tensors, PREFIX, path)]
            scales = contract.get("scales", [1.0])  # not in bundles of before
            check_use(scales, l2=False)
            metric = FullReferenceMetric(backbones[0], contract["stages"], scales)
        else:
            raise ValueError(f"distance of {header.distance['of']!r}")
        _filled(metric, tensors)
        if isinstance(metric, FullReferenceMetric) and any(bool((w < 0).any()) for w in metric.weights.values()):
            raise ValueError("weights below 0")
        _check_rebuilt(header, metric.channels, backbones, arguments, path)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"Expected the weights and header of a distance in {path}, got others: {_reason(error)}. Use another copy."
        ) from None
    return metric


def _check_rebuilt(
    header: MetricHeader | DistanceHeader,
    channels: int,
    backbones: Any,
    arguments: list[dict[str, Any]],
    path: str | Path,
) -> None:
    """What the header says of channels and normalisation is what the weights hold."""
    if header.input["channels"] != channels:
        raise ValueError("other channels")
    for backbone, one in zip(backbones, arguments, strict=True):
        _check_normalisation(backbone, one, path)


def export_distance(
    source: str | Path, output: str | Path, stages: list[int] | None = None, scales: Sequence[float] = (1.0,)
) -> DistanceHeader:
    """Make a full-reference distance with all weights 1 of a backbone: CSR's metric (arXiv 2212.01577), no ratings.

    Args:
        source: checkpoint of a pretraining run, or the bundle of a backbone.
        output: the bundle, `.safetensors`.
        stages: of the feature maps, counted from 0; all by default.
        scales: of the images, 1 is as they are.

    Returns:
        The header that was written.

    Raises:
        ValueError: there is no backbone in it, it has no such stage, or it is for no such scale.
    """
    if str(source).endswith(".safetensors"):
        backbone = load_backbone(source)
    else:
        described, tensors = _checkpoint(source)
        backbone, backbone.header = _backbone_of(described, tensors, source)
    metric = FullReferenceMetric(backbone, stages, scales)
    window = backbone.header.input["window"]
    header = DistanceHeader(**described_distance(metric, window, {"method": "CSR"}, {}))
    save(output, metric, header)
    return header


def export_checkpoint(checkpoint: str | Path, output: str | Path) -> Header:
    """Make a bundle of the backbone, the metric or the distance in a checkpoint of `csrtrain fit`.

    Args:
        checkpoint: Lightning checkpoint; what describes it stands under its key `csrtrain`.
        output: the bundle, `.safetensors`.

    Returns:
        The header that was written.

    Raises:
        ValueError: the checkpoint is missing, damaged, would run code, or is none of csrtrain's.
    """
    described, tensors = _checkpoint(checkpoint)
    kept = {name.removeprefix(_METRIC): value for name, value in tensors.items() if name.startswith(_METRIC)}
    module: Backbone | NoReferenceMetric | Distance
    header: Header
    if described.get("kind") == "no_reference":
        header = MetricHeader(**_all_fields(described, MetricHeader, checkpoint))
        module = _rebuilt_metric(header, kept, checkpoint)
    elif described.get("kind") == "full_reference":
        header = DistanceHeader(**_all_fields(described, DistanceHeader, checkpoint))
        module = _rebuilt_distance(header, kept, checkpoint)
    else:
        module, header = _backbone_of(described, tensors, checkpoint)
    save(output, module, header)
    return header


def _checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What describes a checkpoint of csrtrain fit, and its tensors."""
    content = weights.read_torch(path)
    described, tensors = content.get("csrtrain"), content.get("state_dict")
    if not isinstance(described, dict) or not isinstance(tensors, dict):
        raise ValueError(
            f"Expected a checkpoint of csrtrain fit, got one without its description in {path}. "
            "Weights of other programs go to --model.weights."
        )
    try:
        weights.check_plain(described)
    except ValueError as error:
        raise ValueError(f"Expected plain data as the description in {path}, got {error}. Use another copy.") from None
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"Expected names of tensors in {path}, got others. Use another copy.")
    used = {name: value for name, value in tensors.items() if name.startswith((PREFIX, _METRIC))}
    weights.check_tensors(used, path)
    return described, used


def _all_fields(described: dict[str, Any], kind: type[Header], path: str | Path) -> dict[str, Any]:
    if set(described) != {field.name for field in fields(kind)}:
        raise ValueError(f"Expected the description of a metric in {path}, got {sorted(described)}. Fit it again.")
    return described


def _backbone_of(
    described: dict[str, Any], tensors: dict[str, Tensor], path: str | Path
) -> tuple[Backbone, BundleHeader]:
    """The backbone that a checkpoint of pretraining holds, and what its bundle says."""
    arguments = checked_arguments(described, path)
    backbone = _rebuild(arguments, {n: value for n, value in tensors.items() if n.startswith(PREFIX)}, path)
    data = described.get("data", {})
    header = header_for(
        backbone,
        window=data.get("window", "header"),
        training={key: described.get(key) for key in ("method", "config", "data", "seed", "steps")},
        versions=described.get("versions", {}),
        results=described.get("results", {}),
        features=described.get("features", {}),
    )
    return backbone, header


def _rebuild(arguments: dict[str, Any], tensors: dict[str, Tensor], path: str | Path) -> Backbone:
    """The network of `arguments` with exactly these tensors in it."""
    backbone = _built(arguments, tensors, PREFIX, path)
    try:
        _filled(backbone, {name.removeprefix(PREFIX): value for name, value in tensors.items()})
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected weights of {arguments['name']} in {path}, got others: {_reason(error)}. Use another copy."
        ) from None
    _check_normalisation(backbone, arguments, path)
    return backbone


def _built(arguments: dict[str, Any], tensors: dict[str, Tensor], prefix: str, path: str | Path) -> Backbone:
    """The network of `arguments`, made only when the tensors of this prefix are its own."""
    own = f"{prefix}network."
    network = {name.removeprefix(own): value for name, value in tensors.items() if name.startswith(own)}
    check_tensors(arguments["name"], arguments["channels"], network, path)
    return Backbone(**arguments)


def _check_normalisation(backbone: Backbone, arguments: dict[str, Any], path: str | Path) -> None:
    if backbone.arguments() != arguments:
        raise ValueError(f"Expected mean and std of the header among the weights of {path}, got others. Export again.")


def _reason(error: Exception) -> str:
    return shown(" ".join(str(error).split()))
