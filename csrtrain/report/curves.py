"""What was measured along a training: losses, rates, probes, collapse monitors, spectrum."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from csrtrain.report import compare, words
from csrtrain.report.charts import Array, Chart, Line
from csrtrain.report.folders import Run
from csrtrain.report.markup import Markup, joined, tag
from csrtrain.report.shown import Shown, charts, lines, runs_legend
from csrtrain.runs.monitors import COLLAPSED_RANK, COLLAPSED_STD

_MOST_CHARTS = 24  # of measures that csrtrain does not know
_LEAST_SHARE = 1e-6  # of a spectrum that is drawn


def curves(shown: Sequence[Shown]) -> Markup:
    """Loss, learning rate, probes, and whatever else was logged more than once per run."""
    watched = [f"train/{name}" for name in words.MONITORS]
    kept = [name for name in compare.measures([one.run for one in shown]) if name not in watched]
    known = [name for name in ("train/loss", "train/epoch_loss") if name in kept]
    rates = [name for name in kept if _is_rate(name)]
    probes = [name for name in kept if name.startswith("val/")]
    rest = [name for name in kept if name not in (*known, *rates, *probes)]
    drawn = [*known, *rates, *probes, *rest[:_MOST_CHARTS]]
    shown = [one for one in shown if any(name in one.run.curves for name in drawn)]
    if not drawn:
        return Markup()
    found = [_metric_chart(name, shown) for name in drawn]
    more = f"{len(rest) - _MOST_CHARTS} more measures are in metrics.csv." if len(rest) > _MOST_CHARTS else ""
    return joined([runs_legend(shown), charts(found), tag("p", {"class": "quiet"}, more) if more else ""])


def _is_rate(name: str) -> bool:
    return name.rpartition("/")[2].startswith(("lr", "learning_rate"))


def _metric_chart(name: str, shown: Sequence[Shown]) -> Chart:
    titles = {
        "train/loss": "Loss of the training, per step",
        "train/epoch_loss": "Mean loss of each epoch",
        "val/knn_accuracy": "Probe: accuracy of kNN on the representation",
        "val/knn_srcc": "Probe: SRCC of kNN on the representation",
    }
    notes = ["Step 0 is the untrained backbone."] if name.startswith("val/knn_") else []
    title = titles.get(name, f"Learning rate ({name})" if _is_rate(name) else name)
    return Chart(title, "step", name.rpartition("/")[2], lines(name, shown), notes=notes)


def monitors(shown: Sequence[Shown]) -> Markup:
    """The four monitors with the values that they are read against, and the spectrum."""
    read: dict[str, tuple[str, list[tuple[float, str]], list[float], str]] = {
        "embedding_std": (
            "Embedding standard deviation",
            [(COLLAPSED_STD, f"collapsed below {COLLAPSED_STD:g}"), (1.0, "1: spread evenly")],
            [0.0, 1.05],
            "0 when all images get the same projection.",
        ),
        "effective_rank": (
            "Effective rank of the projections",
            [(COLLAPSED_RANK, f"collapsed below {COLLAPSED_RANK:g}")],
            [0.0],
            "How many directions are in use; it depends on the dimension and on the images.",
        ),
        "alignment": ("Alignment", [(0.0, "0: views agree")], [], "Mean squared distance of two views of an image."),
        "uniformity": (
            "Uniformity",
            [(-4.0, "-4: most even"), (0.0, "0: collapsed")],
            [],
            "Lower is more even over the sphere.",
        ),
    }
    found = []
    for name, (title, levels, within, note) in read.items():
        if drawn := lines(f"train/{name}", shown):
            found.append(Chart(title, "step", name, drawn, levels=levels, within=within, notes=[note]))
    found += _spectra(shown)
    return joined([runs_legend(shown), charts(found)]) if found else Markup()


def _spectra(shown: Sequence[Shown]) -> list[Chart]:
    """Singular values of the projections: of one run the first, middle and last epoch, of several the last of each."""
    drawn: list[Line] = []
    tables = [(one, spectrum) for one in shown if (spectrum := _spectrum(one.run)) is not None]
    for one, (steps, shares) in tables:
        chosen = [len(steps) - 1] if len(shown) > 1 else sorted({0, (len(steps) - 1) // 2, len(steps) - 1})
        for place, k in enumerate(chosen):
            label = str(one.number) if len(shown) > 1 else f"{steps[k]:g}"
            color = one.color if len(shown) > 1 else len(chosen) - 1 - place
            drawn.append(Line(np.arange(1.0, shares.shape[1] + 1), shares[k], color, label))
    if not drawn:
        return []
    ends = "Numbers are those of the runs, at their last epoch." if len(shown) > 1 else "Numbers are steps."
    notes = [f"A flat curve uses many directions, a steep one few; least {_LEAST_SHARE:g}. {ends}"]
    title = "Spectrum: singular values of the projections"
    return [Chart(title, "rank of the singular value", "share of their sum", drawn, log_y=True, notes=notes)]


def _spectrum(run: Run) -> tuple[Array, Array] | None:
    """Steps (E,) and shares (E,d) of the epochs."""
    if run.spectrum is None or "step" not in run.spectrum:
        return None
    columns = [column for column in run.spectrum if str(column).startswith("share_")]
    numbers = run.spectrum[["step", *columns]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    numbers = numbers[np.isfinite(numbers).all(1)]
    return (numbers[:, 0], numbers[:, 1:].clip(_LEAST_SHARE)) if len(numbers) and columns else None
