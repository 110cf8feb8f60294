"""What a checkpoint of a pretraining run tells the bundle that is made from it."""

from typing import Any

from lightning.pytorch import LightningModule

from csrtrain import bundle
from csrtrain.models.backbone import Backbone


def bundle_header(module: LightningModule, backbone: Backbone) -> dict[str, Any]:
    """Plain data: backbone arguments, training data (digest, no names), method, seed, versions, measured results."""
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    metrics = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    return {
        "backbone": backbone.arguments(),
        "method": type(module).__name__,
        "data": data.describe(),
        "seed": data.seed,
        "steps": module.trainer.global_step,
        "versions": bundle.versions(),
        "results": {name: value for name, value in metrics.items() if value == value},
    }
