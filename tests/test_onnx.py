import json

import numpy as np
import onnxruntime
import pytest
import torch

from csrtrain import bundle, headers
from csrtrain.models.backbone import Backbone
from csrtrain.models.features import Contract, FrozenFeatures
from csrtrain.models.no_reference import NoReferenceMetric, RatingScale
from csrtrain.onnx import export_onnx


def metric(contract=Contract(), channels=3, scale=RatingScale(1, 5)):  # noqa: B008
    torch.manual_seed(0)
    made = NoReferenceMetric(FrozenFeatures([Backbone("test_resnet", channels=channels)], [contract]), scale).eval()
    made.header = headers.MetricHeader(**bundle.described_metric(made, "header", {}, {}))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [metric(), metric(Contract((0.5,), False), 1, RatingScale(0, 100, False, "dmos")), metric(Contract(stages=(1, 4)))],
    ids=["rgb", "grey", "stages"],
)
def test_onnxruntime_gives_the_scores_of_torch(made, tmp_path):
    assert export_onnx(made, tmp_path / "m.onnx") < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(7)
    for shape in ((1, 200, 313), (4, 65, 64)):
        x = torch.rand((shape[0], made.features.channels, *shape[1:]), generator=generator)
        (found,) = session.run(None, {"images": x.numpy()})
        np.testing.assert_allclose(found, made.score(x).detach(), atol=1e-3)
    header = json.loads(session.get_modelmeta().custom_metadata_map["csrtrain"])
    assert header["score"]["range"] == [0, 100] and header["kind"] == "no_reference"


@pytest.mark.parametrize(
    ("contract", "name", "message"),
    [
        (Contract((1.0,), True, 64), "m.onnx", "whole images at scales 1 and 0.5 for ONNX"),
        (Contract((1.0, 0.7)), "m.onnx", "whole images at scales 1 and 0.5 for ONNX"),
        (Contract(), "m.pt", "ends in .onnx"),
    ],
)
def test_refused(contract, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(metric(contract), tmp_path / name)
    assert not list(tmp_path.iterdir())
