"""Several runs beside each other: which differ in their seed alone, whose values compare, and which is best."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from csrtrain.report.folders import Run
from csrtrain.report.words import LOWER_IS_BETTER, SPLITS, last
from csrtrain.runs import directory


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Numbers of runs by config: those of a group differ in their seed and in what cannot change a result."""
    groups: list[list[int]] = []
    for number, run in enumerate(runs):
        for group in groups:
            if _same_but_for_seed(runs[group[0]], run):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _same_but_for_seed(one: Run, other: Run) -> bool:
    if not one.tree or not other.tree:
        return False
    lengths = [[run.newest_config.get(f"trainer.max_{unit}") for unit in ("epochs", "steps")] for run in (one, other)]
    return lengths[0] == lengths[1] and not directory.difference(_unseeded(one.tree), _unseeded(other.tree))


def _unseeded(tree: dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    tree.pop("seed_everything", None)
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(data.get("init_args"), dict):
        data["init_args"].pop("seed", None)
    return tree


def measures(runs: Sequence[Run]) -> list[str]:
    """Columns of the metrics in a fixed order: training, probes, held-out folds, val, test; no ends of intervals."""
    found = dict.fromkeys(name for run in runs for name in run.curves if name != "epoch")
    order = ("train/", "val/knn", *(f"{split}/" for split in SPLITS))
    kept = [name for name in found if not name.endswith(("_low", "_high"))]
    return sorted(kept, key=lambda name: next((k for k, one in enumerate(order) if name.startswith(one)), len(order)))


def best(runs: Sequence[Run], measure: str) -> set[int]:
    """Numbers of the runs with the best last value of a measure; none where values do not compare.

    Values compare where the measure has a direction and what it was measured on is the same: the labels of a probe, or
    the ratings of a head by their digest. Of runs that differ in their seed alone none is marked: that would be luck. A
    loss has no direction between runs: it depends on temperature and batch.
    """
    name = measure.rpartition("/")[2]
    judged_heads = measure.partition("/")[0] in SPLITS and name in ("srcc", "krcc", "plcc", "rmse", "two_afc")
    if not judged_heads and not measure.startswith("val/knn_"):
        return set()
    values = np.array([last(run.curves.get(measure)) for run in runs])
    there = [k for k, value in enumerate(values) if math.isfinite(value)]
    if len(seed_groups([runs[k] for k in there])) < 2:
        return set()
    if judged_heads:
        bases = {str(runs[k].data.get("digest") or k) for k in there}
    else:
        keys = ("labels", "label_column", "image_column", "group_column")
        bases = {str([runs[k].config.get(f"data.init_args.{key}") for key in keys]) for k in there}
    if len(bases) > 1:
        return set()
    top = min(values[there]) if name in LOWER_IS_BETTER else max(values[there])
    winners = {k for k in there if values[k] == top}
    return winners if len(winners) < len(there) else set()


def mean_and_spread(values: Sequence[float]) -> str:
    """`0.512 ± 0.013 (4)`: mean, standard deviation of a sample, and how many."""
    good = np.array([value for value in values if math.isfinite(value)])
    if not len(good):
        return ""
    spread = f" ± {good.std(ddof=1):.2g}" if len(good) > 1 else ""
    return f"{good.mean():.4g}{spread} ({len(good)})"


def different_keys(runs: Sequence[Run]) -> list[str]:
    """Keys of the configs that are not the same in all runs; the run directory itself does not count."""
    configs = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in configs for key in config if key != "trainer.default_root_dir")
    return [key for key in keys if len({repr(config.get(key, "")) for config in configs}) > 1]
