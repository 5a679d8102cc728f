"""ChooseWeightCodes in whole models: what is written decodes to what was chosen, and the model is as good as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.algos.weight.codes import decode, encode
from onnxq.errors import GraphError
from tests.bundled import FEED_FORWARD
from tests.graphs import build, normal, run, session

MODELS = Path(__file__).resolve().parents[2] / "models"
DENSE = "g (float[N,12] x) => (float[N,6] y) { [n] y = MatMul(x, W) }"


def accuracy(model: onnx.ModelProto) -> float:
    images = dict(np.load(MODELS / "data" / "digits_test.npz", allow_pickle=False))
    labels = np.load(MODELS / "data" / "digits_test_labels.npy", allow_pickle=False)
    return float((session(model, optimize=True).run(None, images)[0].argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("path", FEED_FORWARD, ids=lambda p: p.stem)
def test_bundled_models_are_as_good_with_eight_bits_and_no_data(path: Path) -> None:
    result = onnxq.quantize(path, recipe={"scheme": "weight_only"})
    before, after = accuracy(onnx.load(path)), accuracy(result.model)
    assert after >= before - 0.0025  # one of 450 images
    assert result.samples == 0
    assert not result.plan.activations
    assert set(result.weight_codes) == {w.key for w in result.plan.weights}
    assert len(result.plan.weights) >= 8


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 11, 16])
@pytest.mark.parametrize("storage", ["packed", "rounded"])
def test_the_model_computes_with_decoded_weights(bits: int, storage: str) -> None:
    w = normal(12, 6)
    content = {"scheme": {"kind": "weight_only", "storage": storage}, "weights": {"bits": bits}}
    result = onnxq.quantize(build(DENSE, W=w), recipe=content)
    codes = result.weight_codes["W"]
    assert codes.bits == bits
    expected = decode(encode(w, codes), codes)
    found = run(result.model, {"x": np.eye(12, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(found, expected)


def test_correction_can_be_left_out() -> None:
    def mean_gap(correction: bool) -> float:
        scheme = {"kind": "weight_only", "correction": correction}
        result = onnxq.quantize(build(DENSE, W=w), recipe={"scheme": scheme, "weights": {"bits": 3}})
        codes = result.weight_codes["W"]
        return float(np.abs((decode(encode(w, codes), codes) - w).mean(axis=0)).max())

    w = normal(12, 6)
    assert mean_gap(True) < 1e-6
    assert mean_gap(False) > 1e-3


def test_searched_ranges_are_closer() -> None:
    w = normal(400, 6)

    def error(method: str) -> float:
        recipe: dict[str, Any] = {"scheme": "weight_only", "weights": {"bits": 2, "method": method}}
        codes = onnxq.quantize(build(DENSE.replace("12", "400"), W=w), recipe=recipe).weight_codes["W"]
        return float(np.linalg.norm(decode(encode(w, codes), codes) - w))

    assert error("mse") < 0.9 * error("absmax")


def test_a_weight_that_is_not_finite_names_its_node() -> None:
    w = normal(12, 6)
    w[3, 3] = np.inf
    with pytest.raises(GraphError, match=r"weight 'W' of node 'n': .*NaN or infinity.*skip the node"):
        onnxq.quantize(build(DENSE, W=w), recipe={"scheme": "weight_only"})


def test_data_are_not_read() -> None:
    def never() -> Any:
        raise AssertionError("read")
        yield

    result = onnxq.quantize(build(DENSE, W=normal(12, 6)), never, recipe={"scheme": "weight_only"})
    assert result.changed


def test_a_model_without_weights_comes_back_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(build("g (float[N,4] x) => (float[N,4] y) { y = Erf (x) }"), path)
    result = onnxq.quantize(path, recipe={"scheme": "weight_only"})
    assert not result.changed
    assert result.save(tmp_path / "q.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("storage", "bits", "opset"), [("packed", 4, 13), ("native", 8, 13), ("native", 16, 21)])
def test_the_operator_set_is_the_oldest_that_has_what_is_needed(storage: str, bits: int, opset: int) -> None:
    content = {"scheme": {"kind": "weight_only", "storage": storage}, "weights": {"bits": bits}}
    assert onnxq.quantize(build(DENSE, opset=12, W=normal(12, 6)), recipe=content).graph.opset == opset
