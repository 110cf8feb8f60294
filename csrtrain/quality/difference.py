"""CONTRIQUE's full-reference regressor: ridge regression on how far representations of two images differ."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from csrtrain import bundle
from csrtrain.data.comparisons import PairBatch
from csrtrain.models import ridge
from csrtrain.models.difference import DifferenceMetric
from csrtrain.quality import one_pass, opinions


class Difference(LightningModule):
    """|h(x) - h(reference)| of frozen backbones, fitted to opinion scores (arXiv 2110.13266, section III-D).

    The pass makes the differences of every distinct pair of images once, shared among the ranks. After it ridge
    regression is fitted in float64 to the loss of quality, how far a rating is below the best of its range; its
    strength alpha is chosen by the exact error of held-out folds of whole groups inside train. There is no intercept
    (CONTRIQUE has one, and so a score for identical images that depends on the data): nothing is lost where nothing
    differs. Rows of split val and test are only compared. The distance is in the units of the ratings.

    Args:
        backbone: bundle path or timm name, or several, whose representations stand side by side.
        channels: of the images, for timm names; bundles know theirs.
        scales: of the image; by default those of each bundle.
        l2: divide each representation by its length; by default as each bundle says.
        crops: side in pixels of five squares instead of the whole image.
        stages: of the feature maps, counted from 0, whose means are used instead of the representation.
        alphas: strengths of ridge regression to choose from.
        folds: of whole groups, inside train.
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
        weights: str = "none",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the weights are solved for; DDP wants one to train
        if folds < 2:
            raise ValueError(f"Expected model.folds >= 2, got {folds}. Correct the config.")
        features = one_pass.frozen_features(backbone, channels, scales, l2, crops, stages, weights)
        self.window = one_pass.common_window(features.backbones)
        self.metric = DifferenceMetric(features)
        self.metric.weight.requires_grad_(True)
        self.alphas = tuple(alphas or ridge.ALPHAS)
        self.folds = folds
        self.untrained = one_pass.untrained(backbone, weights)
        self._outcome: opinions.Outcome | None = None
        self._pass: one_pass.PairPass | None = None

    def setup(self, stage: str) -> None:
        """Tell the data how the backbones' images were read, and look whether the ratings can be fitted to."""
        opinions.check(one_pass.prepare(self.trainer, self.metric.channels, self.window), self.folds)

    def on_train_start(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._pass = one_pass.PairPass(data.comparisons, data.batch_size, self.metric.folded().differences)

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict[str, Any]:
        assert self._pass is not None
        self._pass.add(batch, self.trainer.is_last_batch)
        one_pass.say_progress(self.trainer, batch_idx)
        if self.trainer.is_last_batch:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            found = self._pass.gathered(data.max_broken)
            self._outcome = opinions.fit(data, found, _solved, self.alphas, self.folds, self.untrained)
            with torch.no_grad():
                self.metric.weight.copy_(torch.from_numpy(self._outcome.weights))
            opinions.publish(self, self._outcome)
            data.epoch = 1
            optimizer: Any = self.optimizers()
            optimizer.step()  # changes nothing, and counts as the one step after which the run is saved
        return {"loss": torch.zeros((), device=self.device)}

    def check_stored(self, stored: dict[str, Any], data: Any) -> None:
        """Whether a complete run was fitted to these ratings on these backbones; see `one_pass.check_stored`."""
        frozen = {f"metric.features.{name}": value for name, value in self.metric.features.state_dict().items()}
        one_pass.check_stored(stored, data, "ratings", frozen)

    @rank_zero_only
    def on_train_end(self) -> None:
        assert self._outcome is not None
        print("\n".join([*self._outcome.summary, one_pass.farewell(self.trainer.default_root_dir)]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.metric.weight], lr=0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["csrtrain"] = bundle.described_distance(
            self.metric,
            window=one_pass.window_of(data),
            training={"method": "Difference", "data": data.describe(), "seed": data.seed},
            results=self._outcome.results if self._outcome else {},
            fitted_to=data.rated.rating_name,
        )


def _solved(
    differences: NDArray[Any], losses: ridge.Array, folds: NDArray[Any], alphas: tuple[float, ...]
) -> ridge.RidgeFit:
    return ridge.fit(differences, losses, folds, alphas, intercept=False)
