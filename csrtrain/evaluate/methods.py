"""What is compared: bundles and controls, and what each makes of the images of a manifest."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from csrtrain import bundle, controls, score
from csrtrain.data import decode
from csrtrain.data.decode import Window
from csrtrain.data.whole import resized
from csrtrain.data.workers import as_is
from csrtrain.headers import DistanceHeader
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.models.no_reference import NoReferenceMetric

Values = NDArray[np.float64]
Module = Backbone | NoReferenceMetric | bundle.Distance
Respond = Callable[[Tensor, Tensor | None], Values]

BRISQUE = "BRISQUE + SVR"


class Reading(NamedTuple):
    """How images are read and computed with; see `csrtrain.score.extract`."""

    device: str = "auto"
    bf16: bool = False
    batch_size: int = 16
    workers: int = 0
    slice_axis: int = 2


@dataclass
class Method:
    """One row of a table: a bundle or a control, and what it makes of N images.

    Attributes:
        name: of the row.
        kind: backbone, no_reference, distance or control.
        head: what is fitted to the values in every split, or none: then they are scores, higher is better.
        values: (N,F), NaN where an image could not be read.
        broken: row -> why it has no values.
        respond: image and reference (1,C,H,W) float in [0,1] -> (F,) values, to see what a shift does and how long it
            takes.
        channels: of these images; 0: as they are.
        window: of these images.
        pairs: whether it compares an image with its reference.
        controls: names of the controls that it is compared with.
    """

    name: str
    kind: Literal["backbone", "no_reference", "distance", "control"]
    head: Literal["ridge", "svr", "none"]
    values: NDArray[np.floating[Any]]
    broken: dict[int, str]
    respond: Respond
    channels: int = 0
    window: Window = "header"
    pairs: bool = False
    controls: list[str] = field(default_factory=list)


class Contender(NamedTuple):
    """A bundle: its label, its file, and what is in it."""

    name: str
    file: str
    module: Module

    @property
    def kind(self) -> Literal["backbone", "no_reference", "distance"]:
        """Of what is in it."""
        if isinstance(self.module, Backbone):
            return "backbone"
        return "no_reference" if isinstance(self.module, NoReferenceMetric) else "distance"

    @property
    def window(self) -> Window:
        """Intensity window that its images were read with."""
        return _window(self.module)


def load(paths: Sequence[str | Path]) -> list[Contender]:
    """Bundles, labelled by the names of their files, with the folder where two share one.

    Raises:
        ValueError: a file is no bundle, or is named twice.
    """
    files = [Path(path) for path in paths]
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError(f"Expected every bundle once, got {', '.join(map(str, files))}. Name each once.")
    stems = [file.stem for file in files]
    names = [s if stems.count(s) == 1 else f"{f.resolve().parent.name}/{s}" for s, f in zip(stems, files, strict=True)]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected bundles of different file names, got {', '.join(names)}. Rename one.")
    return [Contender(name, str(file), bundle.load(file)) for name, file in zip(names, files, strict=True)]


def features_of(module: Backbone | NoReferenceMetric) -> FrozenFeatures:
    """What a head is fitted to: the features that a backbone's bundle declares, or those of a metric."""
    if isinstance(module, NoReferenceMetric):
        return module.features
    return FrozenFeatures([module], [Contract.declared_by(module)])


def distance_of(module: Backbone | bundle.Distance) -> bundle.Distance:
    """A distance as it is; of a backbone all its feature maps with weights 1, which need no rating."""
    if not isinstance(module, Backbone):
        return module
    metric = FullReferenceMetric(module)
    described = bundle.described_distance(metric, _plain(_window(module)), {"method": "CSR"}, {})
    metric.header = DistanceHeader(**described)
    return metric.eval()


def no_reference_methods(
    contenders: Sequence[Contender], addresses: Sequence[str], reading: Reading, with_controls: bool, seed: int
) -> list[Method]:
    """Backbones and no-reference metrics, then their controls: untrained backbones, and BRISQUE."""
    methods = []
    for contender in contenders:
        module = contender.module
        assert isinstance(module, Backbone | NoReferenceMetric)
        if isinstance(module, Backbone):
            method = _featured(contender.name, "backbone", features_of(module), contender.window, addresses, reading)
        else:
            method = _assessed(contender, module, addresses, reading)
        methods.append(method)
    if not with_controls or not contenders:
        return methods
    untrained: dict[str, Method] = {}
    for contender, method in zip(contenders, list(methods), strict=True):
        assert isinstance(contender.module, Backbone | NoReferenceMetric)
        features = _untrained_features(features_of(contender.module), seed)
        name = _untrained_name(features)
        if name not in untrained:
            untrained[name] = _featured(name, "control", features, contender.window, addresses, reading)
        method.controls = [name, BRISQUE]
    values, broken = _classical("BRISQUE", _brisque, 36, addresses, None, contenders[0].window, reading)
    window = contenders[0].window
    return [*methods, *untrained.values(), Method(BRISQUE, "control", "svr", values, broken, _brisque, 0, window)]


def distance_methods(
    contenders: Sequence[Contender],
    pairs: Sequence[tuple[str, str]],
    reading: Reading,
    with_controls: bool,
    seed: int,
    size: int | None = None,
) -> list[Method]:
    """Distances, minus which is the score, then their controls: pixels, SSIM, MS-SSIM, untrained backbones.

    Args:
        contenders: distances, and backbones, see `distance_of`.
        pairs: addresses of images and of their references.
        size: resize all to a square of so many pixels, antialiased; None leaves them as they are.
    """
    methods = []
    for one in contenders:
        assert not isinstance(one.module, NoReferenceMetric)
        methods.append(_compared(one.name, "distance", distance_of(one.module), one.window, pairs, reading, size))
    if not with_controls or not contenders:
        return methods
    window = contenders[0].window
    pixels = _Similarities(tuple(_SIMILARITIES))
    addresses, references = [image for image, _ in pairs], [reference for _, reference in pairs]
    values, broken = _classical("Pixels", pixels, len(_SIMILARITIES), addresses, references, window, reading, size)
    sound = np.array([row not in broken for row in range(len(pairs))])
    beside = [
        Method(name, "control", "none", values[:, k, None], broken, _Similarities((name,)), 0, window, pairs=True)
        for k, name in enumerate(_SIMILARITIES)
        if np.isfinite(values[sound, k]).all()
    ]
    untrained: dict[str, Method] = {}
    for contender, method in zip(contenders, methods, strict=True):
        assert not isinstance(contender.module, NoReferenceMetric)
        name, metric = _untrained_distance(distance_of(contender.module), seed)
        if name not in untrained:
            untrained[name] = _compared(name, "control", metric, contender.window, pairs, reading, size)
        method.controls = [name, *(control.name for control in beside)]
    return [*methods, *untrained.values(), *beside]


def _compared(
    name: str,
    kind: Literal["distance", "control"],
    metric: bundle.Distance,
    window: Window,
    pairs: Sequence[tuple[str, str]],
    reading: Reading,
    size: int | None,
) -> Method:
    """A distance as it is."""
    table = score.score_pairs(metric, pairs, **reading._asdict(), size=size)
    broken = {row: reason for row, reason in enumerate(table["error"]) if reason}
    device = _place(reading)
    own = copy.deepcopy(metric).to(device).eval()

    @torch.inference_mode()
    def respond(image: Tensor, reference: Tensor | None) -> Values:
        assert reference is not None
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=reading.bf16):
            return np.asarray(-own.distance(image.to(device), reference.to(device)).double().cpu().numpy())

    values = -table["distance"].to_numpy(dtype=np.float64)[:, None]
    return Method(name, kind, "none", values, broken, respond, metric.channels, window, pairs=True)


def _untrained_distance(metric: bundle.Distance, seed: int) -> tuple[str, bundle.Distance]:
    """The same backbone untrained, in the same stages of its feature maps (all, where representations are compared)."""
    scales: tuple[float, ...] = (1.0,)
    if isinstance(metric, FullReferenceMetric):
        backbone, stages, scales = metric.backbone, metric.stages, metric.scales
    else:
        first = metric.features.backbones[0]
        assert isinstance(first, Backbone)
        backbone, stages = first, tuple(range(len(first.stage_channels)))
    control = FullReferenceMetric(_untrained(backbone, seed), stages, scales).eval()
    control.header = metric.header
    every = stages == tuple(range(len(backbone.stage_channels)))
    what = "all stages" if every else f"stages {list(stages)}"
    what += "" if scales == (1.0,) else f", scales {', '.join(f'{scale:g}' for scale in scales)}"
    return f"untrained {backbone.name} ({what})", control


class _Similarities:
    """Closeness of an image and its reference, higher is closer, a value per name."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, image: Tensor, reference: Tensor | None) -> Values:
        if reference is None or image.shape != reference.shape:
            raise ValueError(
                f"Expected a reference of the image's shape {tuple(image.shape)}, got "
                f"{None if reference is None else tuple(reference.shape)}. Give pairs."
            )
        return np.array([_SIMILARITIES[name](image[0], reference[0]) for name in self.names])


_SIMILARITIES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "pixel L2": lambda x, y: -controls.pixel_l2(x, y),
    "PSNR": controls.psnr,
    "SSIM": controls.ssim,
    "MS-SSIM": controls.ms_ssim,
}


def _featured(
    name: str,
    kind: Literal["backbone", "control"],
    features: FrozenFeatures,
    window: Window,
    addresses: Sequence[str],
    reading: Reading,
) -> Method:
    """A method whose head is fitted in every split."""
    rest = reading._asdict()
    extracted = score.extract(features, addresses, window=window, **rest)
    place = {address: row for row, address in enumerate(addresses)}
    values = np.full((len(addresses), sum(features.sizes)), np.nan, dtype=np.float32)
    values[[place[address] for address in extracted.addresses]] = extracted.features
    broken = {place[address]: reason for address, reason in extracted.broken.items()}
    folded, device = features.folded().eval(), _place(reading)
    folded.to(device)

    @torch.inference_mode()
    def respond(image: Tensor, reference: Tensor | None) -> Values:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=reading.bf16):
            return np.asarray(folded(image.to(device))[0].double().cpu().numpy())

    return Method(name, kind, "ridge", values, broken, respond, features.channels, window)


def _assessed(contender: Contender, metric: NoReferenceMetric, addresses: Sequence[str], reading: Reading) -> Method:
    """A fitted metric, as it is."""
    table = score.score_images(metric, addresses, **reading._asdict())
    broken = {row: reason for row, reason in enumerate(table["error"]) if reason}
    folded, device = metric.folded(), _place(reading)
    folded.to(device)

    @torch.inference_mode()
    def respond(image: Tensor, reference: Tensor | None) -> Values:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=reading.bf16):
            return np.asarray(folded.score(image.to(device)).double().cpu().numpy())

    values = table["score"].to_numpy(dtype=np.float64)[:, None]
    channels = metric.features.channels
    return Method(contender.name, "no_reference", "none", values, broken, respond, channels, contender.window)


def _untrained_features(features: FrozenFeatures, seed: int) -> FrozenFeatures:
    backbones = [_untrained(b, seed) for b in features.backbones if isinstance(b, Backbone)]
    return FrozenFeatures(backbones, features.contracts)


def _untrained(backbone: Backbone, seed: int) -> Backbone:
    """The same architecture with weights as they are drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(**backbone.arguments()).eval()


def _untrained_name(features: FrozenFeatures) -> str:
    """Says what differs between untrained backbones."""
    parts = []
    for backbone, contract in zip(features.backbones, features.contracts, strict=True):
        assert isinstance(backbone, Backbone)
        scales = ", ".join(f"{scale:g}" for scale in contract.scales)
        crops = f", crops {contract.crops}" if contract.crops else ""
        stages = f", stages {', '.join(map(str, contract.stages))}" if contract.stages else ""
        parts.append(f"{backbone.name} (scales {scales}{'' if contract.l2 else ', no L2'}{crops}{stages})")
    return f"untrained {' + '.join(parts)}"


def _brisque(image: Tensor, reference: Tensor | None) -> Values:
    return np.asarray(controls.brisque_features(image[0]).numpy())


class _Classical(Dataset[tuple[int, Values | None, str]]):
    """Values of one image, or pair, at a time, computed by loader processes."""

    def __init__(
        self,
        respond: Respond,
        addresses: Sequence[str],
        references: Sequence[str] | None,
        window: Window,
        slice_axis: int,
        size: int | None,
    ) -> None:
        self.respond = respond
        self.addresses = addresses
        self.references = references
        self.window = window
        self.slice_axis = slice_axis
        self.size = size

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, i: int) -> tuple[int, Values | None, str]:
        try:
            reference = self.references[i] if self.references else ""
            images = read_pair(self.addresses[i], reference, 0, self.window, self.slice_axis, self.size)
            values = self.respond(*images)
        except decode.DecodeError as error:
            return i, None, str(error)
        except ValueError as error:
            return i, None, f"{self.addresses[i]}: {error}"
        return i, values, ""


def read_pair(
    address: str, reference: str, channels: int, window: Window, slice_axis: int, size: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """An image and its reference, where it has one, (1,C,H,W) float32 in [0,1].

    Args:
        address, reference: see `csrtrain.data.decode.read`; "" for no reference.
        channels: of both; 0 for those of the one that has more.
        window, slice_axis: see `csrtrain.data.decode.read`.
        size: see `csrtrain.data.whole.whole_pairs`.
    """
    names = [name for name in (address, reference) if name]
    images = [decode.read(name, window=window, slice_axis=slice_axis, max_megapixels=200.0) for name in names]
    wanted = channels or max(len(image) for image in images)
    images = [decode.to_channels(image, wanted) for image in images]
    floats = [(image if size is None else resized(image, size))[None] for image in images]
    floats = [image.float() / 255 if image.dtype == torch.uint8 else image.float() for image in floats]
    for image, name in zip(floats, names, strict=True):
        if not bool(torch.isfinite(image).all()):
            raise ValueError(f"Expected finite values in {name}, got NaN or infinity. Mend the file.")
    return floats[0], floats[1] if reference else None


def _classical(
    title: str,
    respond: Respond,
    width: int,
    addresses: Sequence[str],
    references: Sequence[str] | None,
    window: Window,
    reading: Reading,
    size: int | None = None,
) -> tuple[Values, dict[int, str]]:
    """(N,width) values of a control that is no network, and why rows have none."""
    images = _Classical(respond, addresses, references, window, reading.slice_axis, size)
    loader: DataLoader[Any] = DataLoader(images, batch_size=None, num_workers=reading.workers, collate_fn=as_is)
    values, broken = np.full((len(addresses), width), np.nan), {}
    console = Console(stderr=True)
    for i, found, reason in track(
        loader, title, total=len(images), console=console, transient=True, disable=not console.is_terminal
    ):
        if found is None:
            broken[i] = reason
        else:
            values[i] = found
    return values, broken


def high_frequency_shares(addresses: Sequence[str], window: Window, reading: Reading) -> Values:
    """(N,) share of power at high frequencies of each image, each file read once; NaN where it cannot be read."""
    unique = list(dict.fromkeys(addresses))
    values, _ = _classical("High frequencies", _high_frequency, 1, unique, None, window, reading)
    of = dict(zip(unique, values[:, 0], strict=True))
    return np.array([of[address] for address in addresses])


def _high_frequency(image: Tensor, reference: Tensor | None) -> Values:
    return np.array([controls.high_frequency_share(image[0])])


def _place(reading: Reading) -> torch.device:
    """The device that `csrtrain.score` has used, and so checked, before."""
    return torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if reading.device == "auto" else reading.device
    )


def _window(module: Module) -> Window:
    window: Any = module.header.input["window"] if module.header else "header"
    return tuple(window) if isinstance(window, list) else window


def _plain(window: Window) -> str | list[float]:
    return window if isinstance(window, str) else list(window)
