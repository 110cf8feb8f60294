"""Backbone: a timm model, by name or from a bundle, as representation and feature maps."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from csrtrain.files import shown
from csrtrain.models import weights as weight_files
from csrtrain.models.weights import Weights

MOST_SCALES = 16
"""Of an image, per backbone."""

PREFIX = "backbone."
"""Names of the backbone's tensors in bundles and checkpoints begin with it."""
_LONGEST_NAME = 200  # characters; timm's longest has 62


class Backbone(nn.Module):
    """A timm model without its classifier; input range and normalisation belong to it.

    Images are (B,C,H,W) float in [0,1]. Any size goes where the architecture allows it: vision transformers resample
    their position embedding and pad to whole patches, Swin pads its windows.

    Args:
        name: timm name (`resnet18`, `vit_small_patch16_224`, `resnet50.a1_in1k`), or the path of a bundle
            (`.safetensors`), which gives architecture, weights and normalisation.
        channels: of the images. RGB weights are adapted to another number: summed for one channel, repeated and
            rescaled for n (timm's `adapt_input_conv`).
        weights: `none` for a random initialisation; a path of a bundle, of a timm state dict in safetensors, or of a
            torch state dict (read with `weights_only=True`); `imagenet` for timm's pretrained weights of this name
            from the local cache. Nothing is downloaded.
        mean, std: normalisation per channel, in units of [0,1]. By default those of the bundle; with other weights
            those that timm declares for the name (averaged for one channel, repeated for n); without weights 0.5 and
            0.5, which spreads [0,1] over [-1,1] (our choice).

    Raises:
        ValueError: unknown name; weights that are missing, damaged or of another architecture; mean or std that do not
            fit the channels.
    """

    mean: Tensor
    std: Tensor
    header: Any = None
    """What the bundle says that `csrtrain.load` read it from (`csrtrain.headers.BundleHeader`)."""

    def __init__(
        self,
        name: str,
        channels: int = 3,
        weights: str = "none",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"Expected channels >= 1, got {channels}. Correct the config.")
        if name.endswith(".safetensors"):
            if weights not in ("none", name):
                raise ValueError(f"Expected weights none beside the bundle {name}, got {weights}. Name one of them.")
            name, weights = _bundle_arguments(name)["name"], name
        _check_name(name)
        loaded = None if weights == "none" else _load(name, weights)
        default_mean, default_std = _normalisation(name, channels, loaded)
        self.name = name
        self.channels = channels
        self.network: Any = _network(name, channels, weights, loaded)
        self.frozen = False
        self.register_buffer("mean", _per_channel("mean", default_mean if mean is None else mean, channels))
        self.register_buffer("std", _per_channel("std", default_std if std is None else std, channels))
        if not bool((self.std > 0).all()):
            raise ValueError(f"Expected std above 0, got {self.std.flatten().tolist()}. Correct the config.")

    def representation(self, images: Tensor) -> Tensor:
        """(B,C,H,W) float in [0,1] -> (B,D), pooled as timm does for the architecture (mean, or class token)."""
        h: Tensor = self.network(self._normalised(images))
        return h

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """(B,C,H,W) float in [0,1] -> a (B,C,H,W) per stage, from fine to coarse.

        ResNets: after the stem and each of four stages; ConvNeXt: each stage; vision transformers: each block, without
        the class token and before the last norm. Neither pooling nor the last norm is computed.
        """
        maps: list[Tensor] = self.network.forward_intermediates(self._normalised(images), intermediates_only=True)
        return maps

    def patch_representations(self, images: Tensor, side: int) -> Tensor:
        """(B,C,H,W) float in [0,1] -> (B,side*side,D), the representation of each part of the last feature map.

        The map, or the tokens of a square image, are averaged over side x side equal parts, row by row; what the
        architecture does after its pooling (a norm in ConvNeXt, say) is done to each.
        """
        x: Tensor = self.network.forward_features(self._normalised(images))
        if x.ndim == 3:  # tokens (B,N,D), class token and the like first
            x = x[:, getattr(self.network, "num_prefix_tokens", 0) :]
            rows = math.isqrt(x.shape[1])
            parts = F.adaptive_avg_pool2d(x.transpose(1, 2).reshape(len(x), -1, rows, rows), side)  # (B,D,s,s)
            norm: Any = getattr(self.network, "fc_norm", nn.Identity())
            h: Tensor = norm(parts.flatten(2).transpose(1, 2))
            return h
        last = x.shape[-1] == self.network.num_features != x.shape[1]  # Swin's (B,H,W,D)
        parts = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2) if last else x, side)
        parts = parts.flatten(2).transpose(1, 2).flatten(0, 1)  # (B*s*s,D)
        parts = parts[:, None, None] if last else parts[:, :, None, None]
        h = self.network.forward_head(parts, pre_logits=True)
        return h.view(len(x), side * side, -1)

    def pooled_map(self, images: Tensor) -> Tensor:
        """(B,C,H,W) float in [0,1] -> (B,D,h,w), the feature map whose mean is the representation.

        Raises:
            ValueError: the architecture computes its representation in another way (a class token, a norm after the
                mean).
        """
        x: Tensor = self.network.forward_features(self._normalised(images))
        h = self.network.forward_head(x, pre_logits=True)
        if x.ndim != 4 or h.shape != x.shape[:2] or not torch.allclose(h, x.mean((2, 3)), rtol=1e-2, atol=1e-3):
            raise ValueError(
                f"Expected a backbone whose representation is the mean of its last feature map, as a ResNet's, got "
                f"{self.name}. Use another for heat-maps."
            )
        return x

    def forward(self, images: Tensor) -> Tensor:
        """As `representation`."""
        return self.representation(images)

    def _normalised(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise ValueError(
                f"Expected images (B,{self.channels},H,W), float in [0,1], got {tuple(images.shape)} {images.dtype}. "
                "Set channels to those of the images, and divide 8-bit values by 255."
            )
        return (images - self.mean) / self.std

    @property
    def representation_dim(self) -> int:
        """D of `representation`."""
        width = getattr(self.network, "head_hidden_size", None)
        return int(width if width is not None else self.network.num_features)

    @property
    def stage_channels(self) -> list[int]:
        """Channels of each of the `feature_maps`."""
        stages: Any = self.network.feature_info
        return [int(stage["num_chs"]) for stage in (stages if isinstance(stages, list) else stages.get_dicts())]

    @property
    def has_batch_norm(self) -> bool:
        """Whether a sample's representation depends, in training, on the rest of the batch."""
        return any(isinstance(module, _BatchNorm) for module in self.modules())

    def arguments(self) -> dict[str, Any]:
        """Plain arguments that rebuild it, without weights: `Backbone(**arguments)`, then `load_state_dict`."""
        return {
            "name": self.name,
            "channels": self.channels,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    def compile_stages(self) -> None:
        """Let `torch.compile` fuse what lies within each stage, in place: the names of weights stay as they are."""
        for stage in self.network.children():
            if len(list(stage.modules())) > 1:
                stage.compile()

    def train(self, mode: bool = True) -> "Backbone":
        """As `nn.Module.train`; a frozen backbone stays in evaluation."""
        super().train(mode and not self.frozen)
        return self


def check_stages(stages: Sequence[int], known: int) -> None:
    """Refuse stages that are no numbers of `known` feature maps in order.

    Raises:
        ValueError: with what there is.
    """
    if not stages or list(stages) != sorted(set(stages) & set(range(known))):
        raise ValueError(f"Expected stages in order from 0 to {known - 1}, got {list(stages)}. Name others.")


def check_scales(scales: Sequence[float]) -> None:
    """Refuse scales of images that are none, too many, too small or too large to compute with, or there twice.

    Raises:
        ValueError: with what they may be.
    """
    once = 0 < len(scales) == len(set(scales)) <= MOST_SCALES
    if not once or not all(1 / 16 <= scale <= 4 for scale in scales):
        raise ValueError(
            f"Expected scales from 1/16 to 4, each once, at most {MOST_SCALES}, got {list(scales)}. Name others."
        )


def freeze(backbone: Backbone) -> Backbone:
    """Freeze for good: no parameter takes a gradient, and batch-norm statistics stay, also when a parent trains.

    Gradients still flow to the images when these ask for them, as a metric used as a loss needs; otherwise no graph is
    recorded.
    """
    backbone.frozen = True
    backbone.requires_grad_(False)
    backbone.train(False)
    return backbone


def _check_name(name: str) -> None:
    """Only names of timm's own registry: a name with a source (`hf-hub:`) would download."""
    if len(name) > _LONGEST_NAME:  # looking for close names would take minutes
        raise ValueError(f"Expected the name of a timm model, got {len(name)} characters, {shown(name)}. Correct it.")
    architecture = name.split(".")[0]
    if timm.is_model(architecture) and ":" not in name and "/" not in name:
        try:
            timm.get_pretrained_cfg(name)
            return
        except RuntimeError:
            close = timm.list_models(f"{architecture}.*", pretrained=True)
    else:
        names = timm.list_models()
        close = sorted((n for n in names if n.startswith(name)), key=len)[:5] or difflib.get_close_matches(
            name, names, 5, 0.5
        )
    raise ValueError(
        f"Expected the name of a timm model or the path of a .safetensors bundle, got {shown(repr(name))}. "
        + (f"Close names: {', '.join(close[:5])}." if close else "timm.list_models() lists the names.")
    )


def _bundle_arguments(path: str) -> dict[str, Any]:
    header = weight_files.read_header(path)
    if header is None:
        raise ValueError(
            f"Expected a csrtrain bundle as backbone, got plain weights in {path}. Give the timm name as backbone and "
            "this path as weights."
        )
    return checked_arguments(header, path)


def checked_arguments(header: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The backbone's arguments in a bundle header.

    Raises:
        ValueError: they are missing or of the wrong types, or the name is none of timm's.
    """
    arguments = header.get("backbone")
    if not isinstance(arguments, dict) or set(arguments) != {"name", "channels", "mean", "std"}:
        raise ValueError(
            f"Expected backbone arguments name, channels, mean, std in {path}, got {shown(repr(arguments))}. Export it "
            "again."
        )
    name, channels = arguments["name"], arguments["channels"]
    if not isinstance(name, str) or type(channels) is not int or channels < 1:
        raise ValueError(
            f"Expected a name and a number of channels in {path}, got {shown(repr(name))} and {shown(repr(channels))}. "
            "Export it again."
        )
    for values in (arguments["mean"], arguments["std"]):
        if (
            not isinstance(values, list)
            or len(values) != channels
            or not all(isinstance(v, float) and math.isfinite(v) for v in values)
        ):
            raise ValueError(
                f"Expected mean and std as {channels} numbers in {path}, got {str(values)[:100]}. Export it again."
            )
    try:
        _check_name(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not all(value > 0 for value in arguments["std"]):
        raise ValueError(f"Expected std above 0 in {path}, got {shown(repr(arguments['std']))}. Export it again.")
    return arguments


def _load(name: str, weights: str) -> Weights:
    """Tensors of the network, and the header when they come from a bundle."""
    path = weight_files.cached(name) if weights == "imagenet" else Path(weights)
    tensors, header = weight_files.read(path)
    if header is None:
        return Weights(tensors, None)
    arguments = checked_arguments(header, path)
    if arguments["name"] != name:
        raise ValueError(f"Expected weights of {name}, got a bundle of {arguments['name']} in {path}. Change one.")
    prefix = f"{PREFIX}network."
    network = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return Weights(network, header)


def _normalisation(name: str, channels: int, loaded: Weights | None) -> tuple[list[float], list[float]]:
    """Default mean and std, see `Backbone`."""
    if loaded is None:
        return [0.5] * channels, [0.5] * channels
    config = timm.get_pretrained_cfg(name)
    declared = (
        loaded.header["backbone"] if loaded.header else {"mean": config.mean, "std": config.std} if config else {}
    )
    mean, std = list(declared.get("mean", [0.5])), list(declared.get("std", [0.5]))
    if channels == 1:
        return [sum(mean) / len(mean)], [sum(std) / len(std)]
    return [mean[i % len(mean)] for i in range(channels)], [std[i % len(std)] for i in range(channels)]


def _per_channel(what: str, values: Sequence[float], channels: int) -> Tensor:
    if len(values) != channels:
        raise ValueError(f"Expected {what} with {channels} values, one per channel, got {list(values)}. Correct it.")
    return torch.tensor(list(values), dtype=torch.float32).view(1, -1, 1, 1)


def _network(name: str, channels: int, source: str, loaded: Weights | None) -> Any:
    """The timm model, with the weights of `loaded` in it; every tensor must find its place."""
    if loaded is None:
        return _create(name, channels, None)
    if loaded.header:
        check_tensors(name, loaded.header["backbone"]["channels"], loaded.tensors, source)
    try:
        if loaded.header and loaded.header["backbone"]["channels"] == channels:
            network = _create(name, channels, None)
            network.load_state_dict(loaded.tensors, strict=True)
            return network
        return _create(name, channels, loaded)
    except (RuntimeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:500]
        raise ValueError(
            f"Expected weights that fit {name} with {channels} channels, got other ones in {source}: {reason}. "
            "Name the architecture that the weights were trained with."
        ) from None


class _CountsOnCpu(TorchFunctionMode):
    """Under `torch.device("meta")`: rates of depth are read back while a network is made, so they need numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "cpu"} if func is torch.linspace else {})})


def check_tensors(name: str, channels: int, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Refuse tensors that are not those of an architecture, before memory is taken for it: a file of a few bytes could
    name one of 30 GB, or a million channels.

    Args:
        name: of timm.
        channels: of the images.
        tensors: by their names in the network.
        path: where they are from.

    Raises:
        ValueError: names, shapes or types differ, or there is no such network.
    """
    try:
        with torch.device("meta"), _CountsOnCpu():
            wanted = {key: _form(value) for key, value in _create(name, channels, None).state_dict().items()}
    except Exception as error:  # an architecture may say in its own way what it cannot be
        reason = shown(f"{type(error).__name__}: {error}")
        raise ValueError(
            f"Expected a network {name} for {channels} channels in {path}, got none: {reason}. Use another copy."
        ) from None
    got = {key: _form(value) for key, value in tensors.items()}
    for what, names in (
        ("Missing key", wanted.keys() - got.keys()),
        ("Unexpected key", got.keys() - wanted.keys()),
        ("Other size or type of", {key for key in wanted.keys() & got.keys() if wanted[key] != got[key]}),
    ):
        if names:
            first = min(names)
            details = f" ({wanted[first]}, got {got[first]})" if first in wanted and first in got else ""
            raise ValueError(
                f"Expected weights of {name} in {path}, got others: {what} {shown(first)}{details}. Use another copy."
            )


def _form(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    """Size, and the type of the numbers; any precision goes."""
    return tuple(tensor.shape), "float" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _create(name: str, channels: int, loaded: Weights | None) -> Any:
    """Let timm build the model for images of any size; foreign weights go through timm's own conversion, strictly."""
    config = timm.get_pretrained_cfg(name)
    overlay = None if loaded is None else _pretrained(name, loaded)
    # The ways in which architectures with a fixed input size accept other sizes, best first.
    ways: list[dict[str, Any]] = [{"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True}]
    ways = [*ways, {"strict_img_size": False}, {}] if config is not None and config.fixed_input_size else [{}]
    for way in ways:
        try:
            network: Any = timm.create_model(
                name,
                pretrained=loaded is not None,
                pretrained_cfg_overlay=overlay,
                num_classes=0,
                in_chans=channels,
                **way,
            )
            break
        except TypeError:
            if way == ways[-1]:
                raise
    network.pretrained_cfg.pop("state_dict", None)
    return network


def _pretrained(name: str, loaded: Weights) -> dict[str, Any]:
    """timm's description of pretrained weights, with the tensors in it and without a classifier."""
    config = timm.get_pretrained_cfg(name)
    classifiers = config.classifier if config else None
    drop = tuple(f"{c}." for c in ([classifiers] if isinstance(classifiers, str) else classifiers or ()))
    tensors = {key: value for key, value in loaded.tensors.items() if not key.startswith(drop)}
    overlay: dict[str, Any] = {"state_dict": tensors, "num_classes": 0, "label_offset": 0}
    if loaded.header:
        size = config.input_size[1:] if config else (224, 224)
        overlay["input_size"] = (loaded.header["backbone"]["channels"], *size)
    return overlay
