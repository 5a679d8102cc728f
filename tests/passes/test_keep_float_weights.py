"""KeepFloatWeights: floats in the file, the same codes when it is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import stages
from tests.graphs import build, normal, run

X = normal(16, 3, 6, 6, seed=9)
WEIGHTS = {"W": normal(4, 3, 3, 3, seed=1), "F": normal(64, 5, seed=2)}


def model() -> onnx.ModelProto:
    return build("g (float[N,3,6,6] x) => (float[N,5] y) { c = Conv(x, W) f = Flatten(c) y = MatMul(f, F) }", **WEIGHTS)


def large(proto: onnx.ModelProto, kind: int) -> dict[str, Any]:
    found = (t for t in proto.graph.initializer if t.data_type == kind and len(t.dims) > 1)
    return {t.name: onnx.numpy_helper.to_array(t) for t in found}


@pytest.mark.parametrize(
    "recipe",
    [{}, {"weights": {"granularity": "per_tensor", "bits": 4}}, {"weights": {"type": "uint8", "symmetric": False}}],
    ids=str,
)
def test_outputs_stay_and_weights_are_the_original_ones(recipe: dict[str, object]) -> None:
    result = onnxq.quantize(model(), {"x": X}, recipe=recipe)
    kept = stages.keep_float_weights(result)
    onnx.checker.check_model(kept.model, full_check=True)
    np.testing.assert_array_equal(run(kept.model, {"x": X})["y"], run(result.model, {"x": X})["y"])
    assert large(kept.model, onnx.TensorProto.INT8) == large(kept.model, onnx.TensorProto.UINT8) == {}
    floats = large(kept.model, onnx.TensorProto.FLOAT).values()
    for weight in WEIGHTS.values():
        assert any(np.array_equal(f, weight) for f in floats)
    assert large(result.model, onnx.TensorProto.FLOAT) == {}  # and the result that was given is as it was


def test_weights_that_were_rounded_up_or_down_keep_their_codes() -> None:
    recipe = {"weights": {"method": {"name": "adaround", "num_iteration": 200}, "bits": 3}}
    result = onnxq.quantize(model(), {"x": X}, recipe=recipe)
    kept = stages.keep_float_weights(result)
    np.testing.assert_array_equal(run(kept.model, {"x": X})["y"], run(result.model, {"x": X})["y"])


def test_nothing_quantized_is_nothing_to_do() -> None:
    result = onnxq.quantize(model(), {"x": X}, recipe={"skip": ["Conv", "MatMul"]})
    assert stages.keep_float_weights(result) is result
