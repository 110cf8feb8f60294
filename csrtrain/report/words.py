"""What a run was and how it went, in words."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from csrtrain.report.folders import Curve, Run
from csrtrain.report.paths import Hidden
from csrtrain.runs.monitors import describe_collapse

MONITORS = ("embedding_std", "effective_rank", "alignment", "uniformity")
SPLITS = {"held_out": "held-out folds of train", "val": "split val", "test": "split test"}
MEASURES = {
    "srcc": "SRCC",
    "krcc": "KRCC",
    "plcc": "PLCC",
    "rmse": "RMSE",
    "two_afc": "2AFC",
    "plcc_logistic": "PLCC logistic",
    "outlier_ratio": "outlier ratio",
    "two_afc_subsets": "2AFC, mean of subsets",
    "jnd": "JND mAP",
}
"""How the measures of heads and evaluations are called."""
LOWER_IS_BETTER = ("rmse", "outlier_ratio")
_LIVE = 600  # seconds since the last row within which a run is taken to be going on; our choice

Kind = Literal["good", "warning", "bad", "plain"]


class Verdict(NamedTuple):
    """A sentence, and whether it is good news."""

    kind: Kind
    text: str


def last(curve: Curve | None) -> float:
    """The last finite value; NaN without one."""
    return float(curve.finite[-1]) if curve is not None and len(curve.finite) else math.nan


def verdicts(run: Run, now: float) -> list[Verdict]:
    """How a run went: complete, finite, collapsed, better than untrained, of use.

    Args:
        run: the run.
        now: seconds since 1970.
    """
    found = [_completeness(run, now), *_finiteness(run)]
    found += _head(run) if run.is_head else [*_collapse(run), *_probes(run)]
    if run.data.get("smoke_run") is True or str(run.config.get("data.init_args.root")).startswith("samples:"):
        found.append(
            Verdict("warning", "Trained on the few sample images that ship inside packages: no usable metric.")
        )
    found += [Verdict("warning", note) for note in run.notes]
    return found


def facts(run: Run, hidden: Hidden) -> list[tuple[str, str]]:
    """What a run is: names of facts and their values, those that are known."""
    config, data = run.newest_config, run.data
    images = data.get("images")
    kinds = [str(config.get(f"data.init_args.{key}", data.get(key)) or "") for key in ("modality", "channels")]
    described = [f"{images:,} images" if isinstance(images, int) else ""]
    described.append("embedded samples" if str(config.get("data.init_args.root")).startswith("samples:") else "")
    described += [kinds[0] if kinds[0] != "None" else "", f"{kinds[1]} channel(s)" if kinds[1] else ""]
    described += [f"{data[key]:,} {key}" for key in ("groups", "train") if isinstance(data.get(key), int)]
    described.append(f"digest {str(data['digest'])[:12]}" if data.get("digest") else "")
    if data.get("proxy"):
        described.append(f"proxy ratings: {data['proxy']}")
    batch = config.get("data.init_args.batch_size")
    total = _most_steps(run)
    steps = f"{run.steps:,}" + (f" of {total:,}" if total else "") + (f" of {batch} images" if batch else "")
    most = _most_epochs(config)
    epochs = f", {run.epochs} of {most} epochs" if most is not None else f", {run.epochs} epochs"
    rows = [
        ("Method", run.method),
        ("Backbone", _backbones(run, hidden)),
        ("Data", ", ".join(part for part in described if part)),
        ("Steps" if not run.is_head else "Pass", steps + epochs if not run.is_head else _pass(run)),
        ("Loss", _losses(run)),
        ("Seed", str(config.get("seed_everything", ""))),
        ("Precision", str(config.get("trainer.precision", ""))),
    ]
    return [(name, hidden.text(value)) for name, value in rows if value]


def _backbones(run: Run, hidden: Hidden) -> str:
    """timm names and what they began with; of bundles a number."""
    start = run.config.get("model.init_args.weights")
    start = {"none": "untrained", "imagenet": "ImageNet"}.get(str(start), hidden.value(start, "weights"))
    said = []
    for name in _named_backbones(run):
        is_bundle = name.endswith(".safetensors")
        said.append(f"bundle {hidden.value(name, 'path')}" if is_bundle else f"{hidden.value(name)}, {start}")
    return "; ".join(said)


def _named_backbones(run: Run) -> list[str]:
    names = run.config.get("model.init_args.backbone")
    return [str(name) for name in (names if isinstance(names, list) else [names]) if name]


def _losses(run: Run) -> str:
    """First and last finite loss."""
    loss = run.curves.get("train/loss")
    return f"{loss.finite[-1]:.4g}, at first {loss.finite[0]:.4g}" if loss is not None and len(loss.finite) else ""


def _pass(run: Run) -> str:
    return f"{len(run.scores):,} rows scored" if run.scores is not None else "not finished"


def _most_epochs(config: Mapping[str, Any]) -> int | None:
    """None: as many as the steps take."""
    epochs, steps = config.get("trainer.max_epochs"), config.get("trainer.max_steps", -1)
    if isinstance(epochs, int) and epochs >= 0:
        return epochs
    return 1000 if epochs is None and steps == -1 and config else None  # Lightning's default


def _most_steps(run: Run) -> int | None:
    steps = run.newest_config.get("trainer.max_steps", -1)
    return steps if isinstance(steps, int) and steps >= 0 else None


def _completeness(run: Run, now: float) -> Verdict:
    if run.is_head:
        done = any(name.startswith(f"{split}/") for name in run.curves for split in SPLITS)
        what = "The head is fitted."
        open_ = "The head is not fitted yet"
    else:
        steps, epochs = _most_steps(run), _most_epochs(run.newest_config)
        done = (steps is not None and run.steps >= steps) or (epochs is not None and run.epochs >= epochs)
        what = f"Complete: {run.steps:,} steps, {run.epochs} epoch{'s' if run.epochs != 1 else ''}."
        of = f" of {steps:,} steps" if steps else f" of {epochs} epochs" if epochs else ""
        at = f"{run.steps:,} steps" if steps or not of else f"{run.epochs}"
        open_ = f"Not complete: {at}{of}"
    if done:
        return Verdict("good", what)
    seconds = now - max(run.written, run.begun)
    if seconds < _LIVE:
        return Verdict("plain", f"{open_}; something was written {_ago(seconds)} ago, so it may be going on.")
    return Verdict(
        "warning", f"{open_}; nothing was written for {_ago(seconds)}. The same command goes on where it stands."
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def _finiteness(run: Run) -> list[Verdict]:
    found = []
    for name, curve in run.curves.items():
        wrong = np.flatnonzero(~np.isfinite(curve.values))
        if len(wrong):
            kind: Kind = "bad" if name.startswith("train/") else "warning"
            found.append(
                Verdict(kind, f"{name} is not finite {times(len(wrong))}, first at step {curve.steps[wrong[0]]:.0f}.")
            )
    if run.skipped:
        text = f"{run.skipped:,} optimiser steps were skipped: their loss or gradient was not finite."
        found.append(Verdict("warning", text))
    if not found and any(name != "epoch" for name in run.curves):
        found.append(Verdict("good", "All measured values are finite."))
    return found


def times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _collapse(run: Run) -> list[Verdict]:
    curves = [run.curves.get(f"train/{name}") for name in MONITORS]
    if any(curve is None or not len(curve.values) for curve in curves):
        return [Verdict("plain", "Whether the representation collapses is measured at the end of an epoch: not yet.")]
    values = {name: float(curve.values[-1]) for name, curve in zip(MONITORS, curves, strict=True) if curve is not None}
    sentence = describe_collapse(values)
    measured = (
        f"Embedding std {values['embedding_std']:.2f}, effective rank {values['effective_rank']:.1f}, alignment "
        f"{values['alignment']:.2f}, uniformity {values['uniformity']:.2f}."
    )
    if sentence:
        return [Verdict("bad", f"{sentence} {measured}")]
    return [Verdict("good", f"The representation has not collapsed. {measured}")]


def _probes(run: Run) -> list[Verdict]:
    found = []
    for name, curve in run.curves.items():
        if not name.startswith("val/knn_") or not len(curve.finite):
            continue
        first = float(curve.values[0]) if curve.steps[0] == 0 else math.nan
        now = last(curve)
        if len(curve.finite) < 2 or not math.isfinite(first):
            found.append(Verdict("plain", f"{name} is {now:.3f}; there is no other value beside it yet."))
        elif now > first:
            found.append(Verdict("good", f"{name} is {now:.3f}, {first:.3f} of the untrained backbone."))
        else:
            found.append(
                Verdict("warning", f"{name} is {now:.3f}, no better than {first:.3f} of the untrained backbone.")
            )
    if not found:
        found.append(Verdict("plain", "No probe: with data.labels a kNN probe says what was learned."))
    return found


def _head(run: Run) -> list[Verdict]:
    found = []
    for split, where in SPLITS.items():
        for measure in ("srcc", "two_afc"):
            values = {key: last(run.curves.get(f"{split}/{measure}{key}")) for key in ("", "_low", "_high")}
            if math.isfinite(values[""]):
                text = f"{MEASURES[measure]} {with_interval(values[''], values['_low'], values['_high'])} on {where}"
                few = "" if math.isfinite(values["_low"]) else " (too few groups for an interval)"
                found.append(Verdict("plain", f"{text}{few}{_beside(run, split, measure)}."))
    untrained = [name for name in _named_backbones(run) if not name.endswith(".safetensors")]
    if run.config.get("model.init_args.weights") == "none" and untrained:
        found.append(Verdict("warning", "A backbone is untrained: name a bundle for a metric."))
    if run.data.get("proxy") or str(run.config.get("data.class_path")).endswith("ProxyData"):
        found.append(
            Verdict("warning", "The ratings are proxies, computed from pristine images: no opinion of people.")
        )
    return found


def _beside(run: Run, split: str, measure: str) -> str:
    """How a fitted distance stands to the one with all weights alike."""
    plain = last(run.curves.get(f"{split}/{measure}_uncalibrated"))
    if not math.isfinite(plain):
        return ""
    low, high = (last(run.curves.get(f"{split}/{measure}_gain_{end}")) for end in ("low", "high"))
    verdict = {"beats": "better than", "is beaten": "worse than"}.get(beats(low, high), "not told apart from")
    return f", {verdict} {plain:.3f} with all weights alike"


def beats(low: float, high: float) -> str:
    """What the 95 % interval of a difference to a control says."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return "beats" if low > 0 else "is beaten" if high < 0 else "neither"


def with_interval(value: float, low: float = math.nan, high: float = math.nan, sign: str = "") -> str:
    """`0.512 [0.401, 0.623]`; nothing for what is not finite."""
    if not math.isfinite(value):
        return ""
    ends = f" [{low:{sign}.3f}, {high:{sign}.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:{sign}.3f}{ends}"
