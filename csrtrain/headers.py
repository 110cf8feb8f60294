"""What a bundle says about itself, one class per kind of content; plain data, and how it is checked."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from csrtrain.files import shown
from csrtrain.models import weights
from csrtrain.models.backbone import check_scales, checked_arguments


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
        features: of each backbone scales, l2, crops, stages (none: the representation), and the filter that makes the
            smaller scales.
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


@dataclass(frozen=True)
class DistanceHeader:
    """What the bundle of a full-reference distance says about itself; plain data.

    Attributes:
        backbones: of each, the arguments that rebuild it and what its own bundle says of its training.
        input: channels, range of the values, and the intensity window of the images.
        features: of each backbone what is compared: stages of the feature maps and scales of the images, or of
            representations scales, l2, crops, stages (none: the representation); and the filter that makes the smaller
            scales.
        distance: of ("maps" or "representations"), identical (distance of an image to itself: 0), direction,
            fitted_to ("ones": nothing, all weights are 1; "2afc"; or the name of the ratings), units of the ratings
            or none.
        training: method, data (digest and description, no names), seed.
        versions: packages by name.
        results: measured values by name, finite numbers.
        kind: "full_reference".
        format: version of this format.
    """

    backbones: list[dict[str, Any]]
    input: dict[str, Any]
    features: list[dict[str, Any]]
    distance: dict[str, Any]
    training: dict[str, Any]
    versions: dict[str, str]
    results: dict[str, float]
    kind: str = "full_reference"
    format: int = weights.FORMAT


Header = BundleHeader | MetricHeader | DistanceHeader


def read_header(path: str | Path) -> Header:
    """What a bundle says about itself, without reading the weights.

    Raises:
        ValueError: the file is missing, damaged, no bundle, or of an unknown format.
    """
    header = weights.read_header(path)
    if header is None:
        raise ValueError(f"Expected a csrtrain bundle, got a safetensors file without its header in {path}. Export it.")
    kinds: dict[str, type[Header]]
    kinds = {"backbone": BundleHeader, "no_reference": MetricHeader, "full_reference": DistanceHeader}
    kind = kinds.get(str(header.get("kind")))
    if kind is None:
        raise ValueError(
            f"Expected a bundle of kind {', '.join(kinds)} in {path}, got {shown(repr(header.get('kind')))}. Update "
            "csrtrain."
        )
    if set(header) != {field.name for field in fields(kind)}:
        names = sorted(field.name for field in fields(kind))
        raise ValueError(
            f"Expected the header fields {names} in {path}, got {shown(repr(sorted(header)))}. Export it again."
        )
    for field in fields(kind):
        wanted = list if str(field.type).startswith("list") else dict if str(field.type).startswith("dict") else None
        if wanted and not isinstance(header[field.name], wanted):
            raise ValueError(
                f"Expected a {'list' if wanted is list else 'mapping'} {field.name} in the header of {path}, got "
                f"{shown(repr(header[field.name]))}. Export it again."
            )
    if kind is BundleHeader:
        arguments = checked_arguments(header, path)
        for name in ("channels", "mean", "std"):
            if header["input"].get(name) != arguments[name]:
                raise ValueError(
                    f"Expected the same {name} for input and backbone in {path}, got "
                    f"{shown(repr(header['input'].get(name)))} and {shown(repr(arguments[name]))}. Export it again."
                )
    try:
        _check_input(header["input"])
        if kind is BundleHeader:
            check_use(header["features"]["scales"], header["features"]["l2"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected the input and feature contract in the header of {path}, got another: {shown(str(error))}. "
            "Export it again."
        ) from None
    return kind(**header)


def _check_input(said: dict[str, Any]) -> None:
    """The intensity window: another one gives other scores without a word."""
    window = said["window"]
    if window not in ("header", "full") and not (
        isinstance(window, list) and len(window) == 2 and all(type(value) in (int, float) for value in window)
    ):
        raise ValueError(f"window {window!r}")


def check_use(scales: Any, l2: Any) -> None:
    """How a backbone is to be used: scales of the image, and whether representations are divided by their length.

    Raises:
        ValueError: they are no such thing, or scales that cannot be computed with.
    """
    if not isinstance(scales, list) or not all(type(scale) in (int, float) for scale in scales):
        raise ValueError(f"scales {scales!r}")
    check_scales(scales)
    if not isinstance(l2, bool):
        raise ValueError(f"l2 {l2!r}")
