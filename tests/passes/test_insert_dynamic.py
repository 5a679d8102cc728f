"""InsertDynamic: integer arithmetic against numpy's, what ONNX Runtime fuses, and whole models.

Bounds: products against a numpy reference of the same integers differ by float32 rounding only (1e-6 of the largest
output); models against the float model by the cosine of their outputs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxq
from onnxq.errors import GraphError
from onnxq.runtime import make_session, optimized
from tests.graphs import build, feeds_for, normal, ops, run

MODELS = Path(__file__).parents[2] / "models"
ZOO = Path(__file__).parents[3] / "shared" / "zoo"
TOLERANCE = 1e-6

Array = NDArray[Any]


def dynamic(model: Any, *, recipe: dict[str, Any] | None = None, **scheme: Any) -> onnx.ModelProto:
    """Quantize and check; inputs and outputs keep their names."""
    result = onnxq.quantize(model, recipe={"scheme": {"kind": "dynamic", **scheme}, **(recipe or {})}).model
    onnx.checker.check_model(result)
    if isinstance(model, onnx.ModelProto):
        assert [o.name for o in result.graph.output] == [o.name for o in model.graph.output]
    return result


def half_away(x: Array) -> Array:
    return np.sign(x) * np.floor(np.abs(x.astype(np.float64)) + 0.5)


def onnx_codes(x: Array) -> tuple[Array, Array, float]:
    """Integers with the zero point taken off, and the scale, as DynamicQuantizeLinear is defined."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero), scale, 0.0


def exact_codes(x: Array) -> tuple[Array, Array, float]:
    """Integers with the zero point taken off, and the scale, as MindSpore Lite defines them (float32)."""
    width = np.float32(x.max() - x.min())
    scale = np.float32(width / np.float32(255)) if width > 0 else np.float32(0.01)
    zero = half_away(np.float32(np.float32(-128) - x.min() / scale))
    codes = half_away(np.clip((x / scale).astype(np.float32) + np.float32(zero), -128, 127))
    return codes.astype(np.int64) - int(zero), scale, float(zero)


def weight_codes(w: Array, axis: int | None, *, pairs: bool) -> tuple[Array, Array]:
    """Integers and scales: the largest magnitude is 127; neighbours of one sign along K add up to 127 at most."""
    axes = tuple(i for i in range(w.ndim) if i != axis) if axis is not None else None
    scale = np.abs(w).max(axis=axes, keepdims=True) / np.float32(127)
    if pairs:
        k = np.moveaxis(w, -2 if w.ndim > 1 else -1, 0)
        if len(k) % 2:
            k = np.concatenate([k, np.zeros_like(k[:1])])
        sums = [np.abs(np.clip(k[0::2], lo, hi) + np.clip(k[1::2], lo, hi)) for lo, hi in ((0, np.inf), (-np.inf, 0))]
        largest = np.maximum(*sums).max(axis=0)  # one per output of each matrix
        largest = largest.reshape(-1, largest.shape[-1]).max(axis=0) if largest.ndim else largest
        largest = largest if axis is not None else largest.max()
        scale = np.maximum(scale, (largest / np.float32(127)).reshape(np.shape(scale) if axis is None else -1))
    return np.clip(np.rint(w / scale), -127, 127).astype(np.int64), scale.astype(np.float32)


def assert_close(found: Array, wanted: Array) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= TOLERANCE * max(np.abs(wanted).max(), 1e-6)


def both(model: onnx.ModelProto, feed: dict[str, Array], output: str = "y") -> list[Array]:
    """Results of the model as written and as ONNX Runtime fuses it."""
    return [run(model, feed, optimize=optimize)[output] for optimize in (False, True)]


CODES = {"onnx": onnx_codes, "exact": exact_codes}
RANGES = pytest.mark.parametrize("ranges", ["onnx", "exact"])
SHIFT = pytest.mark.parametrize("shift", [0.0, 3.0, -40.0])  # ranges around zero, and far from it


# ---- products --------------------------------------------------------------------------------------


@RANGES
@SHIFT
@pytest.mark.parametrize(("x", "w"), [((5, 8), (8, 6)), ((2, 3, 7), (7, 6)), ((8,), (8, 6)), ((2, 5, 9), (2, 9, 4))])
def test_a_matmul_computes_the_exact_integers(
    x: tuple[int, ...], w: tuple[int, ...], ranges: str, shift: float
) -> None:
    dims, weight, value = ",".join(map(str, x)), normal(*w), normal(*x) + np.float32(shift)
    text = f"g (float[{dims}] x) => (float[{','.join('D' * (len(x) - (len(w) > len(x))))}] y) {{ y = MatMul(x, W) }}"
    model = build(text, check=False, W=weight)
    codes, scale, _ = CODES[ranges](value)
    integers, scales = weight_codes(weight, weight.ndim - 1, pairs=True)
    wanted = np.matmul(codes, integers) * np.float64(scale) * scales.reshape(-1).astype(np.float64)
    for found in both(dynamic(model, ranges=ranges), {"x": value}):
        assert_close(found, wanted)


@RANGES
def test_a_vector_as_weight(ranges: str) -> None:
    weight, value = normal(8), normal(2, 5, 8) + np.float32(2)
    model = build("g (float[2,5,8] x) => (float[2,5] y) { y = MatMul(x, W) }", W=weight)
    codes, scale, _ = CODES[ranges](value)
    integers, scales = weight_codes(weight, None, pairs=True)
    wanted = np.matmul(codes, integers) * np.float64(scale) * np.float64(scales.reshape(()))
    for found in both(dynamic(model, ranges=ranges), {"x": value}):
        assert_close(found, wanted)


@RANGES
@SHIFT
@pytest.mark.parametrize(("w", "x"), [((6, 8), (8, 6)), ((4, 7), (2, 7, 5)), ((4, 8), (8,)), ((2, 4, 7), (2, 7, 3))])
def test_a_weight_on_the_left(w: tuple[int, ...], x: tuple[int, ...], ranges: str, shift: float) -> None:
    weight, value = normal(*w), normal(*x) + np.float32(shift)
    rank = np.matmul(weight, value).ndim
    text = f"g (float[{','.join(map(str, x))}] x) => (float[{','.join('D' * rank)}] y) {{ y = MatMul(W, x) }}"
    model = build(text, check=False, W=weight)
    codes, scale, _ = CODES[ranges](value)
    integers, scales = weight_codes(weight, weight.ndim - 2, pairs=False)
    rows = scales.reshape(-1) if len(x) == 1 else scales.reshape(-1, 1)
    wanted = np.matmul(integers, codes) * np.float64(scale) * rows.astype(np.float64)
    for found in both(dynamic(model, ranges=ranges), {"x": value}):
        assert_close(found, wanted)


@RANGES
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta", "bias"), [(1.0, 1.0, None), (0.5, 1.0, (6,)), (-2.0, 0.25, (5, 1))])
def test_all_forms_of_gemm(
    trans_a: int, trans_b: int, alpha: float, beta: float, bias: tuple[int, ...] | None, ranges: str
) -> None:
    weight, value = normal(8, 6), normal(5, 8) + np.float32(1)
    addend = None if bias is None else normal(*bias)
    dims = "8,5" if trans_a else "5,8"
    constants = {"W": np.ascontiguousarray(weight.T) if trans_b else weight} | ({} if bias is None else {"C": addend})
    attrs = f"<alpha={alpha}, beta={beta}, transA={trans_a}, transB={trans_b}>"
    read = "x, W" if bias is None else "x, W, C"
    model = build(f"g (float[{dims}] x) => (float[5,6] y) {{ y = Gemm {attrs} ({read}) }}", **constants)
    codes, scale, _ = CODES[ranges](value)
    integers, scales = weight_codes(weight, 1, pairs=True)
    wanted = alpha * np.matmul(codes, integers) * np.float64(scale) * scales.astype(np.float64)
    wanted = wanted if addend is None else wanted + beta * addend
    for found in both(dynamic(model, ranges=ranges), {"x": np.ascontiguousarray(value.T) if trans_a else value}):
        assert_close(found, wanted)


@RANGES
@SHIFT
def test_products_of_two_activations(ranges: str, shift: float) -> None:
    model = build("g (float[2,5,8] x, float[2,8,6] w) => (float[2,5,6] y) { y = MatMul(x, w) }")
    feed = {"x": normal(2, 5, 8) + np.float32(shift), "w": normal(2, 8, 6, seed=1) - np.float32(2 * shift)}
    (a, a_scale, _), (b, b_scale, _) = CODES[ranges](feed["x"]), CODES[ranges](feed["w"])
    for found in both(dynamic(model, ranges=ranges, variables=True), feed):
        assert_close(found, np.matmul(a, b) * np.float64(a_scale) * np.float64(b_scale))


@RANGES
def test_a_gemm_of_activations_and_a_tensor_times_itself(ranges: str) -> None:
    text = "y = Gemm <alpha=0.5, beta=2.0, transA=1> (x, x, c)"
    model = build(f"g (float[5,8] x, float[8] c) => (float[8,8] y) {{ {text} }}")
    feed = {"x": normal(5, 8) + np.float32(1), "c": normal(8)}
    codes, scale, _ = CODES[ranges](feed["x"])
    wanted = 0.5 * np.matmul(codes.T, codes) * np.float64(scale) ** 2 + 2 * feed["c"]
    quantized = dynamic(model, ranges=ranges, variables=True)
    assert ops(quantized).count("DynamicQuantizeLinear") == (ranges == "onnx")
    for found in both(quantized, feed):
        assert_close(found, wanted)


def test_sums_that_would_saturate_in_16_bits_do_not() -> None:
    """Neighbours of full magnitude with full activations: 2 * 255 * 127 > 32767."""
    weight = np.full((64, 16), 1.0, np.float32)
    model = build("g (float[4,64] x) => (float[4,16] y) { y = MatMul(x, W) }", W=weight)
    value = np.ones((4, 64), np.float32)
    for found in both(dynamic(model), {"x": value}):
        np.testing.assert_allclose(found, 64.0, rtol=0.01)


@RANGES
@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_an_activation_that_is_constant(value: float, ranges: str) -> None:
    weight, x = normal(8, 6), np.full((3, 8), value, np.float32)
    model = build("g (float[3,8] x) => (float[3,6] y) { y = MatMul(x, W) }", W=weight)
    for found in both(dynamic(model, ranges=ranges), {"x": x}):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, x @ weight, atol=max(abs(value), 1) * 0.02 * np.abs(weight).sum(axis=0).max())


def test_exact_ranges_round_halves_away_from_zero_and_need_not_hold_zero() -> None:
    weight = np.eye(6, dtype=np.float32)
    model = build("g (float[1,6] x) => (float[1,6] y) { y = MatMul(x, W) }", W=weight)
    x = np.array([[0, 0.5, 1.5, 2.5, 254.5, 255]], np.float32)  # scale 1: codes from -128, halves at -127.5 and so on
    quantized = dynamic(model, ranges="exact")
    found = run(quantized, {"x": x})["y"]
    np.testing.assert_allclose(found, [[0, 0, 1, 2, 255, 255]], rtol=1e-5)
    below = np.array([[-255, -254.5, -1.5, -0.5, -0.25, 0]], np.float32)  # scale 1: zero is code 127
    np.testing.assert_allclose(run(quantized, {"x": below})["y"], [[-255, -255, -1, 0, 0, 0]], rtol=1e-5)
    x = np.array([[1000, 1001, 1002, 1003, 1004, 1005]], np.float32)
    found = run(quantized, {"x": x})["y"]
    assert np.abs(found - x).max() < 5 / 255 + 0.02  # onnx ranges would be 4 wide


def test_uint8_weights_use_the_whole_range_without_room_for_pairs() -> None:
    weight, value = normal(64, 16), normal(4, 64)
    model = build("g (float[4,64] x) => (float[4,16] y) { y = MatMul(x, W) }", W=weight)
    quantized = dynamic(model, recipe={"weights": {"type": "uint8"}})
    codes, scale, _ = onnx_codes(value)
    scales = np.abs(weight).max(axis=0) / np.float32(127)
    integers = np.clip(np.rint(weight / scales) + 128, 0, 255).astype(np.int64) - 128
    for found in both(quantized, {"x": value}):
        assert_close(found, np.matmul(codes, integers) * np.float64(scale) * scales.astype(np.float64))


def test_weights_that_are_not_numbers_are_refused() -> None:
    model = build("g (float[N,8] x) => (float[N,6] y) { [mm] y = MatMul(x, W) }", W=np.full((8, 6), np.nan, np.float32))
    with pytest.raises(GraphError, match=r"weight 'W' of node 'mm'.*skip the node"):
        dynamic(model)


# ---- the form of the graph ---------------------------------------------------------------------------


def test_readers_share_the_codes_of_an_activation_and_of_a_weight() -> None:
    text = "a = MatMul(x, W) b = MatMul(x, V) c = MatMul(x, W) p = Add(a, b) y = Mul(p, c)"
    model = build(f"g (float[N,3,8] x) => (float[N,3,8] y) {{ {text} }}", W=normal(8, 8), V=normal(8, 8, seed=1))
    quantized = dynamic(model)
    assert Counter(ops(quantized))["DynamicQuantizeLinear"] == 1
    assert Counter(ops(quantized))["MatMulInteger"] == 3
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in quantized.graph.initializer) == 2
    assert all(t.data_type != onnx.TensorProto.FLOAT or len(t.dims) < 2 for t in quantized.graph.initializer)


def test_onnx_runtime_fuses_products_and_biases() -> None:
    text = """a = MatMul(x, W) b = Add(a, B) r = Relu(b) y = MatMul(r, V)
              c = MatMul(x, V) z = Add(c, C)"""
    body = f"g (float[N,3,8] x) => (float[N,3,8] y, float[N,3,8] z) {{ {text} }}"
    model = build(body, W=normal(8, 8), V=normal(8, 8, seed=1), B=normal(8), C=normal(8, seed=3))
    fused = Counter(ops(optimized(dynamic(model))))
    assert fused == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Relu": 1, "DynamicQuantizeMatMul": 1}


def test_graph_outputs_and_bodies_keep_what_they_read() -> None:
    text = """h = MatMul(x, W)
        z = If (b) < then_branch = t () => (float[2,8] p) { p = Add(h, h) },
                     else_branch = e () => (float[2,8] q) { q = Identity(h) }>"""
    model = build(f"g (float[2,8] x, bool b) => (float[2,8] h, float[2,8] z) {{ {text} }}", W=normal(8, 8))
    quantized = dynamic(model)
    feed = {"x": normal(2, 8), "b": np.array(True)}
    found, wanted = run(quantized, feed), run(model, feed)
    np.testing.assert_array_equal(found["z"], 2 * found["h"])
    assert np.abs(found["h"] - wanted["h"]).max() < 0.1
    assert onnxq.plan_model(model, recipe={"scheme": "dynamic"}).plan.counts() == {
        "quantized": 1, "shared": 0, "absorbed": 0, "float": 1,
    }  # fmt: skip


def test_a_weight_that_is_a_graph_output_too_stays_one() -> None:
    model = build(
        "g (float[N,8] x) => (float[N,6] y, float[8,6] v) { y = MatMul(x, W) v = Identity(W) }", W=normal(8, 6)
    )
    feed = {"x": normal(3, 8)}
    np.testing.assert_array_equal(run(dynamic(model), feed)["v"], normal(8, 6))


def test_the_same_model_gives_the_same_bytes() -> None:
    model = build("g (float[N,8] x) => (float[N,6] y) { y = MatMul(x, W) }", W=normal(8, 6))
    assert dynamic(model).SerializeToString() == dynamic(model).SerializeToString()


def test_old_models_are_converted_to_an_opset_that_has_the_operators() -> None:
    model = build("g (float[N,8] x) => (float[N,6] y) { y = MatMul(x, W) }", opset=9, ir_version=4, W=normal(8, 6))
    quantized = dynamic(model)
    assert quantized.opset_import[0].version >= 11
    assert "DynamicQuantizeLinear" in ops(quantized)


# ---- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [None, {"weights": {"granularity": "per_tensor"}}])
@pytest.mark.parametrize(("axis", "shape"), [(0, (9, 8)), (1, (8, 9)), (-1, (4, 8, 9)), (1, (4, 9, 8))])
def test_a_table_is_decoded_behind_its_gather(axis: int, shape: tuple[int, ...], recipe: dict[str, Any] | None) -> None:
    table = normal(*shape) + np.float32(2)
    dims = ",".join("D" * (len(shape) + 1))
    model = build(f"g (int64[2,3] i) => (float[{dims}] y) {{ y = Gather <axis={axis}> (T, i) }}", check=False, T=table)
    quantized = dynamic(model, recipe=recipe)
    index = np.array([[0, 3, -1], [8, 2, 2]])
    axes = tuple(i for i in range(len(shape)) if i != axis % len(shape)) if recipe is None else None
    low = np.minimum(table.min(axis=axes, keepdims=True), 0)
    high = np.maximum(table.max(axis=axes, keepdims=True), 0)
    scale = ((high - low) / 255).astype(np.float32)
    zero = np.clip(np.rint(-128 - low / scale), -128, 127)
    decoded = (np.clip(np.rint(table / scale) + zero, -128, 127) - zero).astype(np.float32) * scale
    for found in both(quantized, {"i": index}):
        np.testing.assert_allclose(found, np.take(decoded, index, axis=axis), rtol=1e-6)
    largest = max(quantized.graph.initializer, key=lambda t: len(t.raw_data))
    assert largest.data_type == onnx.TensorProto.INT8


# ---- recurrent layers and attention ------------------------------------------------------------------


def recurrent(op: str, gates: int, attrs: str = "", directions: int = 1) -> onnx.ModelProto:
    text = f"y, h = {op} <hidden_size=16{attrs}> (x, W, R, B)"
    return build(
        f"g (float[5,2,12] x) => (float[5,{directions},2,16] y, float[{directions},2,16] h) {{ {text} }}",
        W=normal(directions, gates * 16, 12, scale=0.3), R=normal(directions, gates * 16, 16, seed=1, scale=0.3),
        B=normal(directions, gates * 32, scale=0.1),
    )  # fmt: skip


@pytest.mark.parametrize("recipe", [None, {"weights": {"granularity": "per_tensor"}}, {"weights": {"type": "uint8"}}])
@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_becomes_the_kernel_for_codes(directions: int, recipe: dict[str, Any] | None) -> None:
    attrs = ', direction="bidirectional"' if directions == 2 else ""
    model = recurrent("LSTM", 4, attrs, directions)
    quantized = dynamic(model, recipe=recipe)
    assert ops(quantized) == ["DynamicQuantizeLSTM"]
    feed = feeds_for(model)
    wanted, found = run(model, feed), run(quantized, feed)
    for name in wanted:
        assert cosine(wanted[name], found[name]) > 0.9995


@pytest.mark.parametrize("recipe", [None, {"weights": {"granularity": "per_tensor"}}, {"weights": {"type": "uint8"}}])
@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("RNN", 1)])
def test_weights_of_other_recurrent_layers_are_decoded_at_loading(
    op: str, gates: int, recipe: dict[str, Any] | None
) -> None:
    model = recurrent(op, gates, ', direction="bidirectional"', 2)
    quantized = dynamic(model, recipe=recipe)
    assert ops(optimized(quantized)) == [op]
    assert {len(t.raw_data) for t in quantized.graph.initializer if t.data_type in (2, 3)} >= {2 * gates * 16 * 12}
    feed = feeds_for(model)
    wanted, found = run(model, feed), run(quantized, feed)
    for name in wanted:
        assert cosine(wanted[name], found[name]) > 0.9999


@pytest.mark.parametrize("recipe", [None, {"weights": {"granularity": "per_tensor"}}])
def test_attention_becomes_the_kernel_for_codes(recipe: dict[str, Any] | None) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2,5,16] x) => (float[2,5,16] y) { [a] y = com.microsoft.Attention <num_heads=4> (x, W, B) }"""
    model = build(text, check=False, W=normal(16, 48, scale=0.3), B=normal(48, scale=0.1))
    quantized = dynamic(model, recipe=recipe)
    assert ops(quantized) == ["DynamicQuantizeLinear", "QAttention"]
    feed = {"x": normal(2, 5, 16)}
    assert cosine(run(model, feed)["y"], run(quantized, feed)["y"]) > 0.999


# ---- whole models ------------------------------------------------------------------------------------


def cosine(a: Array, b: Array) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(("scheme", "least"), [({}, 0.9990), ({"ranges": "exact", "variables": True}, 0.9970)])
def test_the_bundled_transformer(scheme: dict[str, Any], least: float) -> None:
    path = MODELS / "digits_transformer.onnx"
    with np.load(MODELS / "data" / "digits_test.npz", allow_pickle=False) as file:
        images = file["image"][:100].astype(np.float32)
    wanted = make_session(path, threads=1).run(None, {"image": images})[0]
    found = make_session(dynamic(path, **scheme), threads=1).run(None, {"image": images})[0]
    assert cosine(wanted, found) > least
    assert (wanted.argmax(axis=1) == found.argmax(axis=1)).mean() >= 0.99


def zoo(name: str) -> Path:
    path = ZOO / "models" / name
    if not path.exists():
        pytest.skip("no zoo of real models")
    return path


def test_the_language_model() -> None:
    path = zoo("stories260K_llama.onnx")
    tokens = np.load(ZOO / "stories260K_sample_tokens.npy", allow_pickle=False)[:2, :64].astype(np.int64)
    model = dynamic(path)
    wanted = make_session(path, threads=1).run(None, {"tokens": tokens})[0]
    assert cosine(wanted, make_session(model, threads=1).run(None, {"tokens": tokens})[0]) > 0.999
    assert path.stat().st_size / len(model.SerializeToString()) > 3
    fused = Counter(ops(optimized(model)))
    assert fused["DynamicQuantizeMatMul"] + fused["MatMulIntegerToFloat"] == 36
    assert not fused["MatMulInteger"]


def test_the_lstm_model() -> None:
    path = zoo("dtln_model_1.onnx")
    rng = np.random.default_rng(0)
    feed = {
        "input_2": np.abs(rng.normal(size=(1, 1, 257))).astype(np.float32),
        "input_3": (0.1 * rng.normal(size=(1, 2, 128, 2))).astype(np.float32),
    }
    model = dynamic(path)
    wanted, found = (make_session(m, threads=1).run(None, feed) for m in (path, model))
    assert all(cosine(a, b) > 0.9995 for a, b in zip(wanted, found, strict=True))
    assert path.stat().st_size / len(model.SerializeToString()) > 3.6
    assert Counter(ops(model))["DynamicQuantizeLSTM"] == 2


def test_a_model_whose_lstm_is_in_a_body_says_so_and_runs() -> None:
    path = zoo("silero_vad_16k_op15.onnx")
    result = onnxq.quantize(path, recipe={"scheme": "dynamic"})
    found = {d.op_type: d.reason for d in result.plan.left_float()}
    assert "bodies of If" in found["If"]
    assert "ConvInteger" in found["Conv"]
    rng = np.random.default_rng(0)
    feed = {
        "input": (0.1 * rng.normal(size=(1, 576))).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000, np.int64),
    }  # fmt: skip
    wanted, given = (make_session(m, threads=1).run(None, feed) for m in (path, result.model))
    for a, b in zip(wanted, given, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4)
