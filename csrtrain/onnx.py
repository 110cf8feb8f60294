"""A no-reference metric as an ONNX file, for use without torch."""

import importlib.util
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrtrain.files import write_atomically
from csrtrain.models.features import pooled_features
from csrtrain.models.no_reference import NoReferenceMetric

OPSET = 18
_SIZES = ((2, 96, 128), (1, 131, 97), (3, 64, 64))  # of the images that the file is checked with
_TOLERANCE = 1e-3  # of a score from 0 to 100


def check(path: Path) -> None:
    """Refuse a name that does not end in `.onnx`, and missing packages.

    Raises:
        ValueError: one of them.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"Expected a name that ends in .onnx, got {path}. Change the name.")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"Expected the packages of ONNX, got no {', '.join(missing)}. pip install 'csrtrain[onnx]'.")


class _Whole(nn.Module):
    """The score of whole images, in operations that ONNX has."""

    def __init__(self, metric: NoReferenceMetric) -> None:
        super().__init__()
        self.metric = metric
        taps = torch.tensor([0.125, 0.375, 0.375, 0.125])
        self.register_buffer("kernel", (taps[:, None] * taps)[None, None])

    def forward(self, images: Tensor) -> Tensor:
        found = []
        for backbone, contract, scale in self.metric.features.parts():
            parts = pooled_features(backbone, contract, images if scale == 1 else self._halved(images))
            found += [F.normalize(h, dim=1) for h in parts] if contract.l2 else parts
        return self.metric.score_of(torch.cat(found, dim=1))

    def _halved(self, x: Tensor) -> Tensor:
        """Antialiased bilinear interpolation by 0.5, which is this convolution: at odd sizes ONNX's own differs."""
        kernel: Any = self.kernel
        inside = F.conv2d(torch.ones_like(x[:1, :1]), kernel, stride=2, padding=1)
        return F.conv2d(x, kernel.expand(x.shape[1], -1, -1, -1), stride=2, padding=1, groups=x.shape[1]) / inside


def export_onnx(metric: NoReferenceMetric, path: str | Path) -> float:
    """Write a metric as ONNX and compare what onnxruntime makes of it with torch.

    The file takes `images`, float32 (B,C,H,W) in [0,1], and gives `score`, (B,). H and W are at least 64 px, and H
    * W at most 1024 * 1024: larger images go in tiles in torch, and would get other scores here. The header of the
    bundle is its metadata `csrtrain`.

    Args:
        metric: from `csrtrain.load`.
        path: the file, `.onnx`.

    Returns:
        The largest difference of a score.

    Raises:
        ValueError: another name, a metric of crops or of scales other than 1 and 0.5, missing packages, or scores that
            differ.
    """
    path = Path(path)
    check(path)
    for contract in metric.features.contracts:
        if contract.crops or not set(contract.scales) <= {1.0, 0.5}:
            raise ValueError(f"Expected whole images at scales 1 and 0.5 for ONNX, got {contract}. Fit another metric.")
    import onnx
    import onnxruntime

    whole = _Whole(metric).eval()
    dynamic = torch.export.Dim.DYNAMIC
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand((b, metric.features.channels, h, w), generator=generator) for b, h, w in _SIZES]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            whole,
            (images[0],),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["score"],
            dynamic_shapes={"images": {0: dynamic, 2: dynamic, 3: dynamic}},
            opset_version=OPSET,
        )
    model = program.model_proto
    text = json.dumps(asdict(metric.header), sort_keys=True) if metric.header else "{}"
    onnx.helper.set_model_props(model, {"csrtrain": text, "images": "float32 (B,C,H,W) in [0,1], 64 px to 1 MP"})
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for x in images:
        (found,) = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            worst = max(worst, float(np.abs(found - metric.score(x).numpy()).max()))
    if not worst <= _TOLERANCE:
        raise ValueError(f"Expected equal scores from ONNX, got a difference of {worst:.2g}. Report this as a fault.")
    write_atomically(path, content)
    return worst
