"""The one file format that leaves a run: weights and a JSON header in one `.safetensors` file.

The header is one JSON text in the metadata of the safetensors file. No pickle, no class paths, no file names and no
patient data: nothing in it is run, and it can be shared. The same content gives the same bytes.
"""

import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from csrtrain.models import weights
from csrtrain.models.backbone import PREFIX, Backbone, checked_arguments


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
        kind: what the bundle holds: "backbone".
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


def save(path: str | Path, backbone: Backbone, header: BundleHeader) -> None:
    """Write a bundle; a reader sees the old file or the whole new one, never a part.

    Raises:
        ValueError: the name does not end in `.safetensors`, or the header describes another backbone.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"Expected a name that ends in .safetensors for a bundle, got {path}. Change the name.")
    if header.backbone != backbone.arguments():
        raise ValueError(f"Expected the header of this backbone, got one of {header.backbone}. Make it by header_for.")
    tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.torch.save(tensors, weights.metadata(asdict(header))))


def read_header(path: str | Path) -> BundleHeader:
    """What a bundle says about itself, without reading the weights.

    Raises:
        ValueError: the file is missing, damaged, no bundle, or of an unknown format.
    """
    header = weights.read_header(path)
    if header is None:
        raise ValueError(f"Expected a csrtrain bundle, got a safetensors file without its header in {path}. Export it.")
    names = {field.name for field in fields(BundleHeader)}
    if set(header) != names:
        raise ValueError(
            f"Expected the header fields {sorted(names)} in {path}, got {sorted(header)}. Export it again."
        )
    if header["kind"] != "backbone":
        raise ValueError(f"Expected a bundle of kind 'backbone' in {path}, got {header['kind']!r}. Update csrtrain.")
    for name in names - {"kind", "format"}:
        if not isinstance(header[name], dict):
            raise ValueError(
                f"Expected a mapping {name} in the header of {path}, got {header[name]!r}. Export it again."
            )
    arguments = checked_arguments(header, path)
    for name in ("channels", "mean", "std"):
        if header["input"].get(name) != arguments[name]:
            raise ValueError(
                f"Expected the same {name} for input and backbone in {path}, got {header['input'].get(name)} and "
                f"{arguments[name]}. Export it again."
            )
    return BundleHeader(**header)


def load(path: str | Path) -> Backbone:
    """The backbone of a bundle, in evaluation mode, on the CPU, with its `header`.

    `backbone.representation(images)`: (B,C,H,W) float in [0,1] -> (B,D); `backbone.feature_maps(images)`: a (B,C,H,W)
    per stage.

    Raises:
        ValueError: the file is missing, damaged, no bundle, or its weights do not fit its header.
    """
    header = read_header(path)
    backbone = _rebuild(header.backbone, weights.read(path).tensors, path)
    backbone.header = header
    return backbone.eval()


def export_checkpoint(checkpoint: str | Path, output: str | Path) -> BundleHeader:
    """Make a bundle of the backbone in a checkpoint of `csrtrain fit`.

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
