"""Quantized, the models that are no plain classifiers keep what they are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from tests.bundled import FEED_FORWARD, FILES, labels_of, metrics, name_of, samples
from tests.graphs import session

MODELS = [path for path in FILES if path not in FEED_FORWARD and "_opset" not in path.stem]
METRICS = {
    "digits_gru": "accuracy",
    "digits_lstm": "accuracy",
    "digits_prototypes": "accuracy",
    "ink_unet": "overlap",
    "pairs_answer": "right_answers",
    "sketch_decoder": "likelihood",
    "sketch_decoder_with_past": "likelihood",
    "tones_conv1d": "accuracy",
}
LOST = 0.03
"""At the most: three points of accuracy or overlap, 0.03 bits per token."""


def score(path: Path, model: onnx.ModelProto) -> float:
    # As it is written: integer kernels of some processors saturate with what other targets take.
    found = session(model)
    feed = samples(path, "test")
    names = [value.name for value in found.get_outputs()]
    inputs = {value.name: feed[value.name] for value in found.get_inputs()}
    outputs = dict(zip(names, map(np.asarray, found.run(names, inputs)), strict=True))
    return float(getattr(metrics(), METRICS[name_of(path)])(outputs, labels_of(path)))


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_static(path: Path) -> None:
    before = score(path, onnx.load(path))
    for target in ("ort", "qnn"):
        result = onnxq.quantize(path, samples(path, count=48), target=target)
        assert result.plan.counts()["quantized"] >= (1 if "lstm" in path.stem else 2)
        assert score(path, result.model) >= before - LOST, target


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_no_data(path: Path) -> None:
    before, size = score(path, onnx.load(path)), path.stat().st_size
    result = onnxq.quantize(path, recipe={"scheme": "weight_only"})
    assert score(path, result.model) >= before - LOST
    assert len(result.model.SerializeToString()) < 0.75 * size


@pytest.mark.parametrize("name", ["digits_gru", "digits_lstm"])
def test_recurrent_layers_are_quantized_as_the_model_runs(name: str) -> None:
    path = next(p for p in MODELS if p.stem == name)
    result = onnxq.quantize(path, recipe={"scheme": "dynamic"})
    assert score(path, result.model) >= score(path, onnx.load(path)) - LOST
    assert len(result.model.SerializeToString()) < 0.5 * path.stat().st_size
