"""A no-reference metric: one pass of frozen features over rated images, then ridge regression in closed form."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from csrtrain import bundle
from csrtrain.data.manifest import SPLITS, Manifest
from csrtrain.data.whole import Groups, WholeBatch
from csrtrain.distributed import world_size
from csrtrain.metrics import bootstrap
from csrtrain.metrics.correlation import agreement, srcc, srcc_interval
from csrtrain.metrics.representation import group_folds
from csrtrain.models import ridge
from csrtrain.models.domain import appearance
from csrtrain.models.features import FrozenFeatures
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale
from csrtrain.quality import one_pass

_FEWEST = 20  # ratings of the learning curve's first point, which doubles
_DRAWS = 10  # of each size

Array = NDArray[np.float64]


class NoReference(LightningModule):
    """A linear regressor from frozen features to opinion scores, as CONTRIQUE, Re-IQA and ARNIQA fit it.

    The pass makes the features of every image once, shared among the ranks. After it ridge regression is fitted to the
    rows of split train in float64; its strength alpha is chosen by the exact error of held-out folds of whole groups
    inside train. Rows of split val and test are only predicted.

    Args:
        backbone: bundle path or timm name, or several, whose features stand side by side (content and quality, as in
            Re-IQA, arXiv 2304.00451).
        channels: of the images, for timm names; bundles know theirs.
        scales: of the image; by default those of each bundle.
        l2: divide each representation by its length; by default as each bundle says.
        crops: side in pixels of five squares instead of the whole image (224 in ARNIQA, arXiv 2310.14918).
        stages: of the feature maps, counted from 0, whose means are used instead of the representation.
        alphas: strengths of ridge regression to choose from.
        folds: of whole groups, inside train.
        learning_curve: also fit to 20, 40, 80, ... of the training ratings, ten times each, and write to
            `learning_curve.csv` SRCC on the test rows whose group is not in train (without them those of val, without
            both a fifth of the groups).
        weights: of timm names: `none` (untrained), a path, or `imagenet` (from a local cache).
    """

    def __init__(
        self,
        backbone: str | list[str],
        channels: int = 3,
        scales: list[float] | None = None,
        l2: bool | None = None,
        crops: int | None = None,
        stages: list[int] | None = None,
        alphas: list[float] | None = None,
        folds: int = 5,
        learning_curve: bool = False,
        weights: str = "none",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the head is solved for; DDP wants a parameter that could be trained
        if folds < 2:
            raise ValueError(f"Expected model.folds >= 2, got {folds}. Correct the config.")
        if not all(alpha > 0 for alpha in alphas or ()):
            raise ValueError(f"Expected model.alphas above 0, got {alphas}. Correct the config.")
        features = one_pass.frozen_features(backbone, channels, scales, l2, crops, stages, weights)
        self.window = one_pass.common_window(features.backbones)
        self.metric = NoReferenceMetric(features, RatingScale(0, 1))
        self.alphas = tuple(alphas or ridge.ALPHAS)
        self.folds = folds
        self.learning_curve = learning_curve
        self.summary: list[str] = []
        self.untrained = one_pass.untrained(backbone, weights)
        self._folded: list[FrozenFeatures] = []
        self._groups = Groups(16)
        self._broken: dict[int, str] = {}
        self._left_out: list[str] = []
        self._results: dict[str, float] = {}
        self._rows: list[NDArray[np.int64]] = []
        self._features: list[NDArray[np.float32]] = []  # and behind them the appearance

    def setup(self, stage: str) -> None:
        """Tell the data how the backbones' images were read, and learn what the ratings mean."""
        data = one_pass.prepare(self.trainer, self.metric.features.channels, self.window)
        rated, rows = data.rated, data.train_rows
        low, high = data.rating_range or (rated.ratings[rows].min(), rated.ratings[rows].max())
        if not low < high:
            raise ValueError(f"Expected different ratings in {data.path}, got {low:g} for all. Rate the images.")
        groups = len(np.unique(rated.groups[rows]))
        if groups < self.folds:
            raise ValueError(
                f"Expected at least model.folds = {self.folds} groups of training images in {data.path}, got {groups}. "
                "Rate more images, or lower model.folds."
            )
        self.metric.scale = RatingScale(float(low), float(high), rated.higher_is_better, rated.rating_name)

    def on_train_start(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._folded = [self.metric.features.folded()]  # in a list: no part of the checkpoint
        self._groups = Groups(data.batch_size)

    def training_step(self, batch: WholeBatch, batch_idx: int) -> dict[str, Any]:
        if batch.images is not None:
            if (ready := self._groups.add(batch)) is not None:
                self._extract(ready)
        elif batch.reason:
            self._broken[batch.rows[0]] = batch.reason
        one_pass.say_progress(self.trainer, batch_idx)
        if self.trainer.is_last_batch:
            for ready in self._groups.rest():
                self._extract(ready)
            self._fit()
            optimizer: Any = self.optimizers()
            optimizer.step()  # changes nothing, and counts as the one step after which the run is saved
        return {"loss": torch.zeros((), device=self.device)}

    @torch.no_grad()
    def _extract(self, batch: WholeBatch) -> None:
        """Features and appearance of images of one shape."""
        assert batch.images is not None
        with torch.autocast(self.device.type, enabled=False):
            looks = appearance(batch.images)
        h = self._folded[0](batch.images).float()
        self._rows.append(np.array(batch.rows, dtype=np.int64))
        self._features.append(torch.cat([h, looks], 1).cpu().numpy())

    def _fit(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rated = data.rated
        rows, found = self._gathered(data)
        h, looks = np.split(found, [self.metric.head.in_features], axis=1)
        for row in rows[~np.isfinite(h).all(1)][:1]:
            raise ValueError(f"Expected finite features, got others for {rated.addresses[row]}. Leave it out.")
        ratings, groups = rated.ratings[rows], rated.groups[rows]
        splits = np.array(rated.splits)[rows] if rated.splits else np.full(len(rows), "train")
        train = splits == "train"
        folds = group_folds(groups[train], self.folds, data.seed)
        fitted = ridge.fit(h[train], ratings[train], folds, self.alphas)
        best = fitted.best(ratings[train])
        with torch.no_grad():
            self.metric.head.weight.copy_(torch.from_numpy(fitted.weights[best])[None])
            self.metric.head.bias.copy_(torch.tensor([fitted.biases[best]]))
        self.metric.domain.fit(torch.from_numpy(h[train]), torch.from_numpy(looks[train]), folds, data.seed)
        predicted = h.astype(np.float64) @ fitted.weights[best] + fitted.biases[best]
        predicted[train] = fitted.held_out[best]
        if len(best_images := _pristine_rows(rated, rows)):
            scale = self.metric.scale
            median = float(np.median(predicted[best_images]))
            self.metric.scale = scale._replace(pristine=median * scale.slope + scale.offset)
        self._report(data, predicted, ratings, groups, splits, float(self.alphas[best]))
        self._write_scores(rated.addresses, rows, splits, ratings, predicted)
        if self.learning_curve:
            self._write_curve(h.astype(np.float64), ratings, groups, splits, data.seed)
        data.epoch = 1

    def _gathered(self, data: Any) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows in their order, and their features and appearance (N,F+P), of all ranks."""
        own = (np.concatenate([np.empty(0, np.int64), *self._rows]), self._features, self._broken)
        found: list[Any] = [own] * world_size()
        if world_size() > 1:
            dist.all_gather_object(found, own)
        rows = np.concatenate([rows for rows, _, _ in found])
        broken = {row: reason for _, _, reasons in found for row, reason in sorted(reasons.items())}
        one_pass.refuse_broken(list(broken.values()), data.max_broken)
        if len(np.unique(rows)) != len(rows) or len(rows) + len(broken) != len(data.rated):
            raise ValueError(
                f"Expected every image once, got {len(rows)} of {len(data.rated)}. Leave out "
                "trainer.limit_train_batches and trainer.fast_dev_run."
            )
        self._left_out = list(broken.values())
        h = np.concatenate([part for _, parts, _ in found for part in parts])
        order = np.argsort(rows)
        return rows[order], h[order]

    def _report(
        self, data: Any, predicted: Array, ratings: Array, groups: NDArray[np.int64], splits: Any, alpha: float
    ) -> None:
        """Log how well the scores agree, and say it in words."""
        scale = self.metric.scale
        count = int((splits == "train").sum())
        self.summary = [
            f"Fitted {self.metric.head.in_features} weights to {count} ratings ({scale.name}, {scale.low:g} to "
            f"{scale.high:g}) of {len(np.unique(groups[splits == 'train']))} groups; "
            f"{one_pass.chosen_alpha(alpha, self.alphas)}."
        ]
        self._results = {"alpha": alpha}
        if self._left_out:
            self.summary += [f"Left out {len(self._left_out)} broken images:", *self._left_out[: one_pass.LISTED]]
        if self.untrained:
            self.summary.append(f"The backbone {', '.join(self.untrained)} is untrained: name a bundle for a metric.")
        if scale.name == "proxy":
            self.summary.append(
                "The ratings are proxies, computed from pristine images: no opinion of people is in it."
            )
        if scale.pristine is not None:
            self.summary.append(f"Pristine images score {scale.pristine:.0f} of 100 (median).")
        for split in SPLITS:
            of = splits == split
            shared = np.intersect1d(groups[of], groups[splits == "train"]) if split != "train" else np.empty(0)
            if len(shared):
                self.summary.append(f"{len(shared)} groups of {split} are in train too: see csrtrain check-data.")
            if of.sum() < 2:
                continue
            values = agreement(predicted[of], ratings[of])
            low, high = srcc_interval(predicted[of], ratings[of], groups[of])
            name = "held_out" if split == "train" else split
            self._results |= {f"{name}/{key}": value for key, value in values.items()}
            self._results |= {f"{name}/srcc_low": low, f"{name}/srcc_high": high}
            where = f"{self.folds} folds of train, by group" if split == "train" else f"{of.sum()} images of {split}"
            self.summary.append(
                f"{where}: SRCC {values['srcc']:.3f}{bootstrap.in_words(low, high)}, KRCC {values['krcc']:.3f}, PLCC "
                f"{values['plcc']:.3f}, RMSE {values['rmse']:.3g}."
            )
        self._results = {key: value for key, value in self._results.items() if math.isfinite(value)}
        self.log_dict(self._results, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    @rank_zero_only
    def _write_scores(
        self, addresses: list[str], rows: NDArray[np.int64], splits: Any, ratings: Array, predicted: Array
    ) -> None:
        """`scores.csv` of the run: what each rated image gets, those of train by the fit without their fold."""
        lines = [
            (addresses[row], split, f"{rating:.10g}", f"{value:.10g}")
            for row, split, rating, value in zip(rows, splits, ratings, predicted, strict=True)
        ]
        one_pass.write_table(self.trainer, "scores.csv", ["path", "split", self.metric.scale.name, "predicted"], lines)

    @rank_zero_only
    def _write_curve(self, h: Array, ratings: Array, groups: NDArray[np.int64], splits: Any, seed: int) -> None:
        """`learning_curve.csv` of the run: SRCC against the number of ratings."""
        train = np.flatnonzero(splits == "train")
        apart = ~np.isin(groups, groups[train])
        judged = next((found for s in ("test", "val") if len(found := np.flatnonzero((splits == s) & apart)) > 1), None)
        if judged is None:
            out = group_folds(groups[train], 5, seed) == 0
            train, judged = train[~out], train[out]
        rng = np.random.default_rng(seed)
        sizes = [_FEWEST * 2**k for k in range(32) if _FEWEST * 2**k < len(train)] + [len(train)]
        lines = []
        for size in sizes:
            values = []
            for _ in range(_DRAWS if size < len(train) else 1):
                # Whole groups in random order, as a user would rate them.
                order = rng.permutation(len(np.unique(groups[train])))[np.unique(groups[train], return_inverse=True)[1]]
                chosen = train[np.argsort(order, kind="stable")[:size]]
                folds = min(self.folds, len(np.unique(groups[chosen])))
                if folds < 2 or np.ptp(ratings[chosen]) == 0:
                    continue
                fitted = ridge.fit(h[chosen], ratings[chosen], group_folds(groups[chosen], folds), self.alphas)
                best = fitted.best(ratings[chosen])
                values.append(srcc(h[judged] @ fitted.weights[best] + fitted.biases[best], ratings[judged]))
            if values:
                mean_and_ends = (float(np.mean(values)), min(values), max(values))
                lines.append((str(size), *(f"{v:.4f}" for v in mean_and_ends), len(values)))
        one_pass.write_table(
            self.trainer, "learning_curve.csv", ["ratings", "srcc", "srcc_min", "srcc_max", "draws"], lines
        )
        curve = ", ".join(f"{line[0]}: {line[1]}" for line in lines) or "too few images or groups"
        self.summary.append(f"SRCC by number of ratings, on {len(judged)} images of other groups: {curve}.")

    def check_stored(self, stored: dict[str, Any], data: Any) -> None:
        """Whether a complete run was fitted to these ratings on these backbones; see `one_pass.check_stored`."""
        frozen = {f"metric.features.{name}": value for name, value in self.metric.features.state_dict().items()}
        one_pass.check_stored(stored, data, "ratings", frozen)

    @rank_zero_only
    def on_train_end(self) -> None:
        run_dir = self.trainer.default_root_dir
        print("\n".join(self.summary))
        print(
            "Scores are 0 to 100, higher is better. Keep the metric, and score images:\n"
            f"  csrtrain export {run_dir} -o metric.safetensors\n"
            "  csrtrain score metric.safetensors images/ -o scores.csv"
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.metric.head.parameters(), lr=0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["csrtrain"] = bundle.described_metric(
            self.metric,
            window=one_pass.window_of(data),
            training={"method": "NoReference", "data": data.describe(), "seed": data.seed},
            results=self._results,
        )


def _pristine_rows(rated: Manifest, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of `rows` are pristine: references of others or of themselves."""
    references = set(rated.references or []) - {""}
    return np.array([k for k, row in enumerate(rows) if rated.addresses[row] in references], dtype=np.int64)
