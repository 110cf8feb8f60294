"""Full-reference distances: a weight for each channel of a frozen backbone, fitted to what people chose or rated.

A distance is linear in its weights, so that one pass through the backbone is enough for any number of epochs: what is
kept of a pair of images is, per channel, the mean over places of the squared difference of unit feature vectors. The
weights are fitted to those numbers, exactly as if the images went through the backbone at each step. The dropout that
LPIPS has in training is left out.
"""

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from csrtrain import bundle
from csrtrain.data.comparisons import PairBatch
from csrtrain.data.manifest import SPLITS
from csrtrain.losses.ranking import Ranker, preference_loss
from csrtrain.metrics import bootstrap
from csrtrain.metrics.preference import two_afc
from csrtrain.metrics.representation import group_folds, paired_bootstrap
from csrtrain.models import nonnegative
from csrtrain.models.full_reference import FullReferenceMetric
from csrtrain.quality import one_pass, opinions

_START = 0.3  # mean distance that the ranker begins with: the size of LPIPS', for which its 0.1 was chosen
_FEWEST_GROUPS = 5  # of an interval

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def fit_to_choices(
    differences: Tensor,
    pairs: Tensor,
    judge: Tensor,
    epochs: int = 10,
    batch_size: int = 50,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> Tensor:
    """Weights of at least 0 whose distances rank as people do: LPIPS' training (Zhang et al., CVPR 2018, section 3.2).

    A network, discarded at the end, learns with the weights to say from two distances which share of people chose p1.
    Adam with betas 0.5 and 0.999; the learning rate is constant for the first half of the epochs and one more, and
    falls towards 0 in a line over the others; after each step weights below 0 become 0. Ours: all weights begin alike,
    such that the mean distance is 0.3, the size of LPIPS', and the learning rate of a weight is in units of this
    beginning, so that the result does not depend on how large the differences are. LPIPS begins at random and has 1e-4,
    2e-3 to 5e-3 of the mean size of its first weights, for seven times as many steps as 22,000 triplets give: with 1e-2
    these take the weights about as far.

    Args:
        differences: (P,F) float32 of pairs, see `FullReferenceMetric.channel_differences`.
        pairs: (N,2) which pair p0 and p1 of each triplet make with the reference.
        judge: (N,) share of people who chose p1, in [0,1].
        epochs: through the triplets.
        batch_size: triplets per step.
        learning_rate: of the weights, as a share of the first, and of the network.
        seed: of the network and the order.

    Returns:
        (F,) float32.

    Raises:
        ValueError: no two images of the triplets differ.
    """
    mean = float(differences.sum(1)[pairs].mean())
    if not mean > 0:
        raise ValueError("Expected images that differ, got none among the triplets. Give others.")
    start = _START / mean
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ranker = Ranker()
        weights = torch.ones(differences.shape[1], requires_grad=True)  # in units of the start
        optimizer = torch.optim.Adam([weights, *ranker.parameters()], lr=learning_rate, betas=(0.5, 0.999))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: min(1.0, (epochs - epoch) / (epochs - epochs // 2))
        )
        target = judge.float()
        for _ in range(epochs):
            for rows in torch.randperm(len(target)).split(batch_size):  # type: ignore[no-untyped-call]
                d0, d1 = (start * (differences[pairs[rows, k]] @ weights) for k in (0, 1))
                optimizer.zero_grad()
                preference_loss(ranker(d0, d1), target[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    weights.clamp_(min=0)
            schedule.step()
    return weights.detach() * start


class Preference(LightningModule):
    """A distance fitted to 2AFC triplets: which of two images people find closer to a reference.

    The pass makes the channel differences of every distinct pair of images once, shared among the ranks; after it the
    weights are fitted on every rank alike, see `fit_to_choices`, to the triplets of split train. Those of val and test
    are only compared.

    Memory: a float32 per distinct pair and channel, on each rank, and as much again while they are put together. The
    train set of BAPPS (151,400 triplets, 302,800 pairs) needs 1.2 GB with the 1,024 channels of a ResNet-18, 4.7 GB
    with the 3,904 of a ResNet-50; `stages` takes less, each further of `scales` as much again.

    Args:
        backbone: bundle path or timm name.
        channels: of the images, for timm names; bundles know theirs.
        stages: of the feature maps, counted from 0; all by default.
        scales: of the images, each with weights of its own; 1 alone by default.
        epochs, batch_size, learning_rate: see `fit_to_choices`.
        folds: of whole groups inside train, for a result on held-out train rows; 0 leaves it out.
        weights: of a timm name: `none` (untrained), a path, or `imagenet` (from a local cache).
    """

    def __init__(
        self,
        backbone: str,
        channels: int = 3,
        stages: list[int] | None = None,
        scales: list[float] | None = None,
        epochs: int = 10,
        batch_size: int = 50,
        learning_rate: float = 1e-2,
        folds: int = 5,
        weights: str = "none",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the weights are fitted after the pass; DDP wants one to train
        if epochs < 1 or batch_size < 1 or not learning_rate > 0 or folds < 0 or folds == 1:
            raise ValueError(
                "Expected model.epochs >= 1, batch_size >= 1, learning_rate > 0 and folds 0 or >= 2, got "
                f"{epochs}, {batch_size}, {learning_rate} and {folds}. Correct the config."
            )
        opened = one_pass.open_backbone(backbone, channels, weights)
        self.window = one_pass.common_window([opened])
        self.metric = FullReferenceMetric(opened, stages, (1.0,) if scales is None else scales)
        self.metric.weights.requires_grad_(True)
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.folds = folds
        self.summary: list[str] = []
        self.untrained = one_pass.untrained(backbone, weights)
        self._results: dict[str, float] = {}
        self._pass: one_pass.PairPass | None = None

    def setup(self, stage: str) -> None:
        """Tell the data how the backbone's images were read, and look whether there are groups enough."""
        data = one_pass.prepare(self.trainer, self.metric.channels, self.window)
        groups = len(np.unique(data.triplets.groups[data.triplets.splits == "train"]))
        if groups < self.folds:
            raise ValueError(
                f"Expected at least model.folds = {self.folds} groups of train triplets in {data.path}, got {groups}. "
                "Lower model.folds; 0 leaves the held-out result out."
            )

    def on_train_start(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._pass = one_pass.PairPass(data.comparisons, data.batch_size, self.metric.channel_differences)

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict[str, Any]:
        assert self._pass is not None
        self._pass.add(batch, self.trainer.is_last_batch)
        one_pass.say_progress(self.trainer, batch_idx)
        if self.trainer.is_last_batch:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            with torch.autocast(self.device.type, enabled=False), torch.enable_grad():
                self._fit(data, self._pass.gathered(data.max_broken))
            optimizer: Any = self.optimizers()
            optimizer.step()  # changes nothing, and counts as the one step after which the run is saved
        return {"loss": torch.zeros((), device=self.device)}

    def _fit(self, data: Any, found: one_pass.Differences) -> None:
        triplets, rows = data.triplets, found.whole
        judge, groups, splits = (x[rows] for x in (triplets.judge, triplets.groups, triplets.splits))
        train = np.flatnonzero(splits == "train")
        if not len(train):
            raise ValueError(f"Expected triplets of split train whose images can be read, got none in {data.path}.")
        differences = torch.from_numpy(found.values)
        pairs = torch.from_numpy(data.comparisons.of_rows[rows])
        shares = torch.from_numpy(judge)

        def fitted(of: Integers) -> Tensor:
            return fit_to_choices(
                differences, pairs[of], shares[of], self.epochs, self.batch_size, self.learning_rate, data.seed
            )

        weights = fitted(train)
        self.metric.set_weights(weights)
        ones = differences.sum(1, dtype=torch.float64)[pairs].numpy()  # (N,2)
        distances = differences.double().mv(weights.double())[pairs].numpy()
        if self.folds:
            folds = group_folds(groups[train], self.folds, data.seed)
            for fold in range(self.folds):
                out = train[folds == fold]
                without = fitted(train[folds != fold]).double()
                distances[out] = (differences.double() @ without)[pairs[out]].numpy()
        self._report(distances, ones, judge, groups, splits, found.left_out)
        names = (triplets.references, triplets.p0, triplets.p1)
        lines = [
            (*(column[row] for column in names), splits[k], f"{judge[k]:.10g}")
            + tuple(f"{value:.10g}" for value in (*distances[k], *ones[k]))
            for k, row in enumerate(rows)
        ]
        header = ["reference", "p0", "p1", "split", "judge", "d0", "d1", "d0_uncalibrated", "d1_uncalibrated"]
        one_pass.write_table(self.trainer, "scores.csv", header, lines)
        data.epoch = 1

    def _report(
        self, distances: Array, ones: Array, judge: Array, groups: Integers, splits: Any, left_out: list[str]
    ) -> None:
        """Log how well the distances agree with people, and say it in words."""
        weights, train = self.metric.all_weights, splits == "train"
        self.summary = [
            f"Fitted {len(weights)} weights ({int((weights > 0).sum())} above 0) to {train.sum()} triplets of "
            f"{len(np.unique(groups[train]))} groups.",
        ]
        if left_out:
            self.summary += [f"Left out the triplets of {len(left_out)} broken images:", *left_out[: one_pass.LISTED]]
        if self.untrained:
            self.summary.append(f"The backbone {self.untrained[0]} is untrained: name a bundle for a metric.")
        for split in SPLITS:
            of = splits == split
            if not of.any() or (split == "train" and not self.folds):
                continue
            agrees, plain = (two_afc(d[of, 0], d[of, 1], judge[of]) for d in (distances, ones))
            name = "held_out" if split == "train" else split
            where = f"{self.folds} folds of train, by group" if split == "train" else f"{of.sum()} triplets of {split}"
            value, gain = float(agrees.mean()), float(agrees.mean() - plain.mean())
            ends, gain_ends = _interval(agrees, 0 * agrees, groups[of]), _interval(agrees, plain, groups[of])
            most = float(np.maximum(judge[of], 1 - judge[of]).mean())
            self._results |= {
                f"{name}/two_afc": value,
                f"{name}/two_afc_low": ends[0],
                f"{name}/two_afc_high": ends[1],
                f"{name}/two_afc_uncalibrated": float(plain.mean()),
                f"{name}/two_afc_gain_low": gain_ends[0],
                f"{name}/two_afc_gain_high": gain_ends[1],
                f"{name}/two_afc_most": most,
            }
            self.summary.append(
                f"{where}: 2AFC {value:.3f}{bootstrap.in_words(*ends)}, with all weights 1 {plain.mean():.3f}, "
                f"difference {gain:+.3f}{bootstrap.in_words(*gain_ends, '+')}; no distance can reach more than "
                f"{most:.3f}."
            )
            shared = np.intersect1d(groups[of], groups[train]) if split != "train" else np.empty(0)
            if len(shared):
                self.summary.append(f"{len(shared)} groups of {split} are in train too.")
        self._results = {key: value for key, value in self._results.items() if math.isfinite(value)}
        self.log_dict(self._results, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def check_stored(self, stored: dict[str, Any], data: Any) -> None:
        """Whether a complete run was fitted to these triplets on this backbone; see `one_pass.check_stored`."""
        one_pass.check_stored(stored, data, "triplets", _frozen(self.metric))

    @rank_zero_only
    def on_train_end(self) -> None:
        print("\n".join([*self.summary, one_pass.farewell(self.trainer.default_root_dir)]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.metric.weights.parameters(), lr=0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["csrtrain"] = bundle.described_distance(
            self.metric,
            window=one_pass.window_of(data),
            training={"method": "Preference", "data": data.describe(), "seed": data.seed},
            results=self._results,
            fitted_to="2afc",
        )


class Opinion(LightningModule):
    """A distance fitted to opinion scores of distorted images beside their references.

    The pass makes the channel differences of every distinct pair of images once, shared among the ranks. After it
    weights of at least 0 are fitted, without an intercept, to the loss of quality: how far a rating is below the best
    of its range; see `csrtrain.models.nonnegative`. The strength alpha is chosen by the error of held-out folds of
    whole groups inside train; rows of split val and test are only compared. The distance is in units of the ratings.

    Time: it grows with the third power of the number of weights, and the fit is not stopped by a signal; `stages` takes
    fewer, each further of `scales` as many again.

    Args:
        backbone: bundle path or timm name.
        channels: of the images, for timm names; bundles know theirs.
        stages: of the feature maps, counted from 0; all by default.
        scales: of the images, each with weights of its own; 1 alone by default.
        alphas: strengths to choose from.
        folds: of whole groups, inside train.
        weights: of a timm name: `none` (untrained), a path, or `imagenet` (from a local cache).
    """

    def __init__(
        self,
        backbone: str,
        channels: int = 3,
        stages: list[int] | None = None,
        scales: list[float] | None = None,
        alphas: list[float] | None = None,
        folds: int = 5,
        weights: str = "none",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the weights are solved for; DDP wants one to train
        if folds < 2:
            raise ValueError(f"Expected model.folds >= 2, got {folds}. Correct the config.")
        opened = one_pass.open_backbone(backbone, channels, weights)
        self.window = one_pass.common_window([opened])
        self.metric = FullReferenceMetric(opened, stages, (1.0,) if scales is None else scales)
        self.metric.weights.requires_grad_(True)
        self.alphas = tuple(alphas or nonnegative.ALPHAS)
        self.folds = folds
        self.untrained = one_pass.untrained(backbone, weights)
        self._outcome: opinions.Outcome | None = None
        self._pass: one_pass.PairPass | None = None

    def setup(self, stage: str) -> None:
        """Tell the data how the backbone's images were read, and look whether the ratings can be fitted to."""
        opinions.check(one_pass.prepare(self.trainer, self.metric.channels, self.window), self.folds)

    def on_train_start(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._pass = one_pass.PairPass(data.comparisons, data.batch_size, self.metric.channel_differences)

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict[str, Any]:
        assert self._pass is not None
        self._pass.add(batch, self.trainer.is_last_batch)
        one_pass.say_progress(self.trainer, batch_idx)
        if self.trainer.is_last_batch:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            found = self._pass.gathered(data.max_broken)
            self._outcome = opinions.fit(data, found, nonnegative.fit, self.alphas, self.folds, self.untrained)
            self.metric.set_weights(torch.from_numpy(self._outcome.weights).float())
            opinions.publish(self, self._outcome)
            data.epoch = 1
            optimizer: Any = self.optimizers()
            optimizer.step()  # changes nothing, and counts as the one step after which the run is saved
        return {"loss": torch.zeros((), device=self.device)}

    def check_stored(self, stored: dict[str, Any], data: Any) -> None:
        """Whether a complete run was fitted to these ratings on this backbone; see `one_pass.check_stored`."""
        one_pass.check_stored(stored, data, "ratings", _frozen(self.metric))

    @rank_zero_only
    def on_train_end(self) -> None:
        assert self._outcome is not None
        print("\n".join([*self._outcome.summary, one_pass.farewell(self.trainer.default_root_dir)]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.metric.weights.parameters(), lr=0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["csrtrain"] = bundle.described_distance(
            self.metric,
            window=one_pass.window_of(data),
            training={"method": "Opinion", "data": data.describe(), "seed": data.seed},
            results=self._outcome.results if self._outcome else {},
            fitted_to=data.rated.rating_name,
        )


def _interval(a: Array, b: Array, groups: Integers) -> tuple[float, float]:
    """95 % of the difference of two means, groups drawn with replacement; NaN for few groups, which say nothing."""
    if len(np.unique(groups)) < _FEWEST_GROUPS:
        return math.nan, math.nan
    return paired_bootstrap(a, b, groups)[1:]


def _frozen(metric: FullReferenceMetric) -> dict[str, Tensor]:
    """Tensors of the backbone by their name in a checkpoint."""
    return {f"metric.backbone.{name}": value for name, value in metric.backbone.state_dict().items()}
