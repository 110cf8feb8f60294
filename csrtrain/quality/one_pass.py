"""What heads share that are fitted after one pass of frozen features: the pass over pairs, files, refusals."""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from csrtrain import bundle
from csrtrain.data.comparisons import Comparisons, PairBatch, PairGroups
from csrtrain.data.decode import DecodeError
from csrtrain.distributed import rank, world_size
from csrtrain.files import write_atomically
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures

LISTED = 20  # broken images, at most


def chosen_alpha(alpha: float, alphas: tuple[float, ...]) -> str:
    """The strength that was chosen, in words; at an end of the grid a better one may lie beyond."""
    end = {min(alphas): "smallest", max(alphas): "largest"}.get(alpha) if len(alphas) > 1 else None
    return f"alpha {alpha:.3g}" + (f", the {end} of model.alphas: try others beyond it" if end else "")


def open_backbone(name: str, channels: int, weights: str) -> Backbone:
    """A backbone by bundle path, or by timm name with channels and weights."""
    return bundle.load_backbone(name) if name.endswith(".safetensors") else Backbone(name, channels, weights)


def frozen_features(
    names: str | list[str],
    channels: int,
    scales: list[float] | None,
    l2: bool | None,
    crops: int | None,
    stages: list[int] | None,
    weights: str,
) -> FrozenFeatures:
    """Backbones, each used as its bundle says or as given; arguments as for `csrtrain.quality.NoReference`."""
    backbones = [open_backbone(name, channels, weights) for name in ([names] if isinstance(names, str) else names)]
    contracts = []
    for one in backbones:
        declared = Contract.declared_by(one)
        used = declared.scales if scales is None else tuple(float(scale) for scale in scales)
        chosen = None if stages is None else tuple(stages)
        contracts.append(Contract(used, declared.l2 if l2 is None else l2, crops, chosen))
    return FrozenFeatures(backbones, contracts)


def untrained(names: str | list[str], weights: str) -> list[str]:
    """Those of the backbones that nothing has trained."""
    named = [names] if isinstance(names, str) else names
    return [name for name in named if not name.endswith(".safetensors")] if weights == "none" else []


def common_window(backbones: Iterable[Any]) -> Any:
    """The intensity window that the bundles of backbones name; None where there is no bundle.

    Raises:
        ValueError: they name several.
    """
    windows = {str(one.header.input["window"]): one.header.input["window"] for one in backbones if one.header}
    if len(windows) > 1:
        raise ValueError(f"Expected bundles of one intensity window, got {', '.join(windows)}. Use others.")
    return next(iter(windows.values()), None)


def prepare(trainer: Trainer, channels: int, window: Any) -> Any:
    """The data module, told how to read images: in these channels and this window.

    Raises:
        ValueError: the trainer is not set to one pass.
    """
    if trainer.max_epochs != 1 or trainer.max_steps not in (-1, 1):
        raise ValueError(
            f"Expected trainer.max_epochs 1 and no max_steps for a head that is fitted after one pass, got "
            f"{trainer.max_epochs} and {trainer.max_steps}. Correct the config."
        )
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    data.channels = channels
    if window is not None:
        data.window = tuple(window) if isinstance(window, list) else window
    return data


def say_progress(trainer: Trainer, batch_idx: int) -> None:
    """A line for every tenth of the pass, where there is no progress bar."""
    steps = int(trainer.num_training_batches)
    done = 10 * (batch_idx + 1) // steps
    if rank() == 0 and trainer.progress_bar_callback is None and done > 10 * batch_idx // steps:
        print(f"features: step {batch_idx + 1} of {steps}", flush=True)


def refuse_broken(reasons: list[str], most: int) -> None:
    """Raise what could not be read, if it is more than data.max_broken.

    Raises:
        DecodeError: it is.
    """
    if len(reasons) > most:
        listed = "\n".join([*reasons[:LISTED], *(["..."] if len(reasons) > LISTED else [])])
        raise DecodeError(
            f"Expected at most {most} broken images (data.max_broken), got {len(reasons)}. Mend or remove them, or "
            f"raise the limit:\n{listed}"
        )


def check_stored(stored: dict[str, Any], data: Any, name: str, frozen: dict[str, Tensor]) -> None:
    """Whether a complete run, its checkpoint, was fitted to these rows on these backbones.

    Args:
        stored: the checkpoint.
        data: has `path` and `describe()`, with a digest.
        name: of the rows, in words.
        frozen: tensors of the backbones by their name in the checkpoint.

    Raises:
        ValueError: it was not.
    """
    if stored["csrtrain"]["training"]["data"]["digest"] != data.describe()["digest"]:
        what = f"{name} in {data.path}"
    elif any(not torch.equal(value, stored["state_dict"].get(key, torch.empty(0))) for key, value in frozen.items()):
        what = "backbone"
    else:
        return
    raise ValueError(f"Expected the {what} that the run was fitted to, got another. Begin anew with --fresh.")


def window_of(data: Any) -> str | list[float]:
    """The intensity window of the images, as a header has it."""
    return data.window if isinstance(data.window, str) else list(data.window)


def farewell(run_dir: str) -> str:
    """What to do with a distance that is fitted."""
    return (
        "Distances are 0 for identical images, lower is closer. Keep the metric, and compare images:\n"
        f"  csrtrain export {run_dir} -o distance.safetensors\n"
        "  csrtrain score distance.safetensors images/ --reference originals/ -o distances.csv"
    )


def write_table(trainer: Trainer, name: str, header: list[str], lines: list[Any]) -> None:
    """A CSV file of the run, on the first rank."""
    if rank() == 0:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *lines])
        write_atomically(Path(trainer.default_root_dir, name), text.getvalue().encode())


class Differences(NamedTuple):
    """What a pass over pairs found on all ranks.

    values: (P,F) float32 of each pair, 0 where it could not be read.
    whole: (N,) the rows of the table whose pairs could all be read.
    left_out: what is wrong with those that could not.
    """

    values: NDArray[np.float32]
    whole: NDArray[np.int64]
    left_out: list[str]


class PairPass:
    """One pass over pairs of images, each once over all ranks.

    Args:
        comparisons: the pairs.
        batch_size: images that go through the backbone at once.
        differences: images (n,C,H,W), left (P,), right (P,) -> (P,F), see `FullReferenceMetric.channel_differences`.
    """

    def __init__(
        self,
        comparisons: Comparisons,
        batch_size: int,
        differences: Callable[[Tensor, list[int], list[int]], Tensor],
    ) -> None:
        self._comparisons = comparisons
        self._differences = differences
        self._groups = PairGroups(batch_size)
        self._pairs: list[int] = []
        self._values: list[NDArray[np.float32]] = []
        self._broken: dict[int, str] = {}

    @torch.no_grad()
    def add(self, batch: PairBatch, last: bool) -> None:
        """Take a step's images, and compare what is ready: all of it at the last."""
        self._broken |= dict(batch.broken)
        for ready in [*self._groups.add(batch), *(self._groups.rest() if last else [])]:
            assert ready.images is not None
            self._pairs += ready.pairs
            self._values.append(self._differences(ready.images, ready.left, ready.right).float().cpu().numpy())

    def gathered(self, most_broken: int) -> Differences:
        """The differences of all ranks, on each of them; what this one had is given up.

        Raises:
            DecodeError: more than `most_broken` images or pairs could not be read.
            ValueError: a pair is missing, or a difference is not finite.
        """
        own: Any = (self._pairs, self._values, self._broken)
        found: list[Any] = [own] * world_size()
        if world_size() > 1:
            dist.all_gather_object(found, own)
        broken = {pair: reason for _, _, reasons in found for pair, reason in reasons.items()}
        reasons = list(dict.fromkeys(broken[pair] for pair in sorted(broken)))
        refuse_broken(reasons, most_broken)
        pairs = np.array([pair for numbers, _, _ in found for pair in numbers], dtype=np.int64)
        count = len(self._comparisons.pairs)
        if len(np.unique(pairs)) != len(pairs) or len(pairs) + len(broken) != count or not len(pairs):
            raise ValueError(
                f"Expected every pair once, got {len(pairs)} of {count}. Leave out trainer.limit_train_batches and "
                "trainer.fast_dev_run."
            )
        parts = [part for _, values, _ in found for part in values]
        values = np.zeros((count, parts[0].shape[1]), dtype=np.float32)
        for part in parts:
            values[pairs[: len(part)]] = part
            pairs = pairs[len(part) :]
        wrong = np.flatnonzero(~np.isfinite(values).all(1))
        for pair in wrong[:1]:
            names = " and ".join(self._comparisons.addresses[i] for i in self._comparisons.pairs[pair])
            raise ValueError(f"Expected finite features, got others for {names}. Leave them out.")
        lost = np.zeros(count, dtype=np.bool_)
        lost[list(broken)] = True
        return Differences(values, np.flatnonzero(~lost[self._comparisons.of_rows].any(1)), reasons)
