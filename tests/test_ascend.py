"""onnxq.ascend: models for Ascend from file to file, and what their operators survive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxq
from onnxq import ascend
from onnxq.errors import GraphError, ModelError
from tests.graphs import build, normal, run
from tests.passes.ascend_models import FLOAT, deploy, dequant_node, quant_node, words

MODELS = Path(__file__).parents[1] / "models"


def small(opset: int = 13) -> onnx.ModelProto:
    w = np.random.default_rng(0).integers(-128, 128, (4, 3, 3, 3)).astype(np.int8)
    return deploy(
        [quant_node("x", "q", 0.05, -7), helper.make_node("Conv", ["q", "w", "b"], ["s"], name="conv"),
         dequant_node("s", "y", "d")],
        {"w": w, "b": np.arange(4, dtype=np.int32), "d": words(0.1, 0.2, 0.3, 0.4)},
        {"x": ["n", 3, 6, 6]}, {"y": FLOAT}, opset=opset,
    )  # fmt: skip


@pytest.mark.parametrize("opset", [8, 11, 16, 22])
def test_deploy_models_are_read_and_written_unchanged(opset: int, tmp_path: Path) -> None:
    model = small(opset)
    onnx.save(model, tmp_path / "deploy.onnx")
    onnxq.save_model(onnxq.load_model(tmp_path / "deploy.onnx"), tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    assert list(again.graph.node) == list(model.graph.node)
    assert list(again.graph.initializer) == list(model.graph.initializer)
    assert list(again.opset_import) == list(model.opset_import)
    assert list(again.graph.input) == list(model.graph.input)


def test_simulating_and_converting_agree(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "deploy.onnx")
    before = (tmp_path / "deploy.onnx").read_bytes()
    exact = ascend.simulate_model(tmp_path / "deploy.onnx")
    portable = ascend.deploy_to_qdq(tmp_path / "deploy.onnx")
    assert (tmp_path / "deploy.onnx").read_bytes() == before
    x = normal(2, 3, 6, 6, scale=3)
    first, second = run(exact.model, {"x": x})["y"], run(portable.model, {"x": x})["y"]
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5 * np.abs(first).max())
    assert exact.save(tmp_path / "exact.onnx").exists()
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "exact.onnx"), {"x": x})["y"], first)


@pytest.mark.parametrize("function", [ascend.simulate_model, ascend.deploy_to_qdq])
def test_a_float_model_is_no_deploy_model(function: object) -> None:
    with pytest.raises(ModelError, match="has no Ascend operator"):
        function(build("g (float[2] x) => (float[2] y) { y = Relu(x) }"))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["digits_cnn", "digits_mobilenet", "digits_transformer"])
def test_models_of_our_own_go_to_ascend_and_back(name: str) -> None:
    """The twin and the simulated deploy model give the same, and nearly what the Q/DQ model gives."""
    quantized = onnxq.quantize(MODELS / f"{name}.onnx", recipe={"calibration": {"random": True}}).model
    converted = ascend.convert_qdq(quantized)
    info = quantized.graph.input[0]
    shape = [d.dim_value or 4 for d in info.type.tensor_type.shape.dim]
    feed = {info.name: normal(*shape)}
    original, twin, exact, back = (
        next(iter(run(m, feed).values()))
        for m in (
            quantized,
            converted.fake_quant.model,
            ascend.simulate_model(converted.deploy.graph).model,
            ascend.deploy_to_qdq(converted.deploy.graph).model,
        )
    )
    size = np.abs(original).max()
    assert np.abs(twin - original).max() <= 0.01 * size  # where a pair was dropped, its rounding is missing
    np.testing.assert_allclose(exact, twin, rtol=0, atol=1e-6 * size)
    # Q/DQ divides by the scale where Ascend multiplies by its reciprocal: a value between two codes may take the other
    gaps = np.abs(back - exact).reshape(len(back), -1).max(axis=1)
    assert np.median(gaps) <= 1e-5 * size
    assert gaps.max() <= 0.01 * size


def test_numbers_of_the_model_are_those_of_the_words() -> None:
    """Nothing is folded into weights whose scales are known: BatchNormalization stays."""
    model = build(
        """g (float[1,3,6,6] x) => (float[1,4,4,4] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, ws, wz)
        c = Conv(xd, wd) y = BatchNormalization(c, g, bb, m, v) }""",
        s=0.05, z=np.int8(3), w=np.full((4, 3, 3, 3), 5, np.int8), ws=0.02, wz=np.int8(0),
        g=normal(4), bb=normal(4), m=normal(4), v=np.ones(4, np.float32),
    )  # fmt: skip
    converted = ascend.convert_qdq(model)
    proto = converted.deploy.model
    assert "BatchNormalization" in [n.op_type for n in proto.graph.node]
    values = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    node = next(n for n in proto.graph.node if n.op_type == "AscendDequant")
    assert values[node.input[1]].view(np.uint64).astype(np.uint32).view(np.float32) == np.float32(0.05) * np.float32(
        0.02
    )
    x = normal(1, 3, 6, 6)
    expected, found = (run(m, {"x": x})["y"] for m in (model, ascend.simulate_model(proto).model))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_model_without_quantized_layers_is_refused() -> None:
    model = build("g (float[2] x) => (float[2] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
                  s=0.5, z=np.int8(0))  # fmt: skip
    with pytest.raises(GraphError, match="no layer with Q/DQ pairs"):
        ascend.convert_qdq(model)
