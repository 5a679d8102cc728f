"""What ONNX Runtime makes of the Q/DQ that is written: integer kernels, counted in its optimized model.

Every operator of the ort target sits between two quantized convolutions (or products). Beside the kernels,
the results count: the fused model and the same file run node by node must agree within two output codes
(softmax kernels round differently by one; all others agree exactly), and both stay close to the float model.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.runtime import make_session, optimized
from tests.graphs import Feed, build, feeds_for, normal

FEEDS = 8
MIN_SQNR = 28.0  # dB; two layers of 8 bits on normal noise, seen are 31.7 and more
CODES = 2.0


@dataclass(frozen=True)
class Run:
    """A model quantized, optimized and run both ways."""

    result: onnxq.Result
    kernels: Counter[str]
    sqnr: float
    codes: float
    reasons: dict[str, str] = field(default_factory=dict)


def quantized(text: str, constants: dict[str, Any], *, target: str = "ort", recipe: Any = None) -> Run:
    used = {k: v for k, v in constants.items() if re.search(rf"\b{k}\b", text)}
    model = onnx.shape_inference.infer_shapes(build(text, check=False, **used))
    feeds = [feeds_for(model, seed=s) for s in range(FEEDS)]
    result = onnxq.quantize(model, feeds, recipe=recipe, target=target, threads=1)
    onnx.checker.check_model(result.model, full_check=True)
    wanted = _outputs(model, feeds, optimize=False)
    plain = _outputs(result.model, feeds, optimize=False)
    fused = _outputs(result.model, feeds, optimize=True)
    step = (wanted.max() - wanted.min()) / 255
    sqnr = 10 * np.log10(np.sum(wanted**2) / max(np.sum((wanted - plain) ** 2), 1e-30))
    kernels = Counter(n.op_type for n in optimized(result.model).graph.node)
    reasons = {d.op_type: d.reason for d in result.plan.left_float()}
    return Run(result, kernels, float(sqnr), float(np.abs(fused - plain).max() / step), reasons)


def _outputs(model: onnx.ModelProto, feeds: list[Feed], *, optimize: bool) -> Any:
    session = make_session(model, threads=1, optimize=optimize)
    return np.concatenate([np.ravel(session.run(None, f)[0]) for f in feeds]).astype(np.float64)


CONSTANTS: dict[str, Any] = {
    "W": normal(4, 4, 1, 1),
    "B": normal(4),
    "V": normal(3, 4, 1, 1, seed=2),
    "V1": normal(3, 1, 1, 1, seed=2),
    "V8": normal(3, 8, 1, 1, seed=2),
    "V16": normal(3, 16, 1, 1, seed=2),
    "G": normal(4, 2, 3, 3),
    "D": normal(4, 1, 3, 3),
    "T": normal(4, 4, 2, 2),
    "K": normal(1, 4, 1, 8),
    "half": normal(4, 2, 1, 1),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "zero": np.float32(0),
    "top": np.float32(1.5),
    "minus": np.float32(-1),
    "flat": np.array([0, 4, 64]),
    "image": np.array([0, 4, 8, 8]),
    "axis": np.array([1]),
    "first": np.array([1]),
    "last": np.array([7]),
    "stride": np.array([2]),
    "two": np.array([2, 2]),
    "same": np.array([1, 4, 8, 8]),
    "twice": np.array([1, 1, 2, 2]),
    "order": np.array([1, 0, 3, 2]),
}


def between(body: str, last: str = "V") -> str:
    """`body` reads a, what a convolution gives, and makes b, which another one reads."""
    return f"g (float[N,4,8,8] x) => (float[N,p,q,r] y) {{ a = Conv(x, W, B) {body} y = Conv(b, {last}) }}"


def check(run: Run, wanted: dict[str, int], *, inner: int = 0) -> None:
    """The kernels, nothing converted but input, output and `inner` places, and the results."""
    for op, count in wanted.items():
        assert run.kernels[op] == count, run.kernels
    assert run.kernels["QuantizeLinear"] == 1 + inner, run.kernels
    assert run.kernels["DequantizeLinear"] <= 1 + inner, run.kernels
    assert run.codes <= CODES
    assert run.sqnr >= MIN_SQNR


# ---- linear operators -----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_every_rank(rank: int) -> None:
    dims, free = ",".join(["8"] * rank), ",".join("pqr"[:rank])
    text = f"g (float[N,4,{dims}] x) => (float[N,4,{free}] y) {{ a = Conv(x, P) b = Conv(a, Q, B) y = Conv(b, P) }}"
    constants = {"P": normal(4, 4, *[1] * rank), "Q": normal(4, 4, *[3] * rank), "B": normal(4)}
    check(quantized(text, constants), {"QLinearConv": 3, "Conv": 0})


@pytest.mark.parametrize(
    "body", ["b = Conv <group=2> (a, G)", "b = Conv <group=4> (a, D)"], ids=["grouped", "depthwise"]
)
def test_grouped_convolutions(body: str) -> None:
    check(quantized(between(body), CONSTANTS), {"QLinearConv": 3, "Conv": 0})


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
def test_gemm_of_any_transposition_alpha_and_beta(trans_a: int, trans_b: int) -> None:
    text = f"""g (float[6,8] x) => (float[p,q] y) {{ a = MatMul(x, P)
        b = Gemm <transA={trans_a}, transB={trans_b}, alpha=0.5, beta=2.0> (a, Q, C) y = MatMul(b, R) }}"""
    inner = 6 if trans_a else 8
    constants = {
        "P": normal(8, 8),
        "Q": normal(*((5, inner) if trans_b else (inner, 5))),
        "C": normal(5),
        "R": normal(5, 3),
    }
    run = quantized(text, constants)
    check(run, {"QLinearMatMul": 1, "QGemm": 1, "MatMulIntegerToFloat": 1, "Gemm": 0, "MatMul": 0})


PRODUCTS = {
    "constant": ("g (float[N,6,8] x) => (float[N,6,5] y) { a = MatMul(x, P) y = MatMul(a, Q) }", {"QLinearMatMul": 1}),
    "batched": ("g (float[2,6,8] x) => (float[2,6,5] y) { a = MatMul(x, P2) y = MatMul(a, Q2) }", {"QLinearMatMul": 1}),
    "constant on the left": (
        "g (float[N,8,6] x) => (float[N,5,6] y) { a = MatMul(P, x) y = MatMul(L, a) }",
        {"QLinearMatMul": 1},
    ),
    "two activations": (
        """g (float[N,6,8] x) => (float[N,6,6] y) {
            a = MatMul(x, P) b = MatMul(x, R) c = Transpose <perm=[0,2,1]> (b) y = MatMul(a, c) }""",
        {"QLinearMatMul": 2},
    ),
    "bias, matrices": (
        "g (float[N,8] x) => (float[N,5] y) { a = MatMul(x, P) c = Add(a, C) r = Relu(c) y = MatMul(r, Q) }",
        {"QGemm": 1, "Relu": 0},
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    text, wanted = PRODUCTS[name]
    constants = {"P": normal(8, 8), "Q": normal(8, 5), "R": normal(8, 8, seed=5), "C": normal(8), "L": normal(5, 8)}
    constants |= {"P2": normal(2, 8, 8), "Q2": normal(2, 8, 5)}
    check(quantized(text, constants), {**wanted, "MatMulIntegerToFloat": 1, "MatMul": 0, "Gemm": 0})


@pytest.mark.parametrize("batch", ["2", "N"])
def test_a_product_with_bias_is_an_integer_kernel_whether_or_not_it_becomes_a_gemm(batch: str) -> None:
    """ONNX Runtime makes a Gemm of MatMul and Add where shapes are static, a float one if the bias is float."""
    text = f"g (float[{batch},6,8] x) => (float[{batch},6,8] y) {{ a = MatMul(x, P) b = Add(a, C) y = Erf(b) }}"
    run = quantized(text, {"P": normal(8, 8), "C": normal(8)})
    assert run.kernels["QGemm"] + run.kernels["MatMulIntegerToFloat"] == 1
    assert run.kernels["Gemm"] + run.kernels["MatMul"] == 0
    assert run.codes <= CODES
    assert run.sqnr >= MIN_SQNR


def test_an_embedding_is_looked_up_as_codes() -> None:
    text = "g (int64[N,6] i) => (float[N,6,5] y) { a = Gather(E, i) y = MatMul(a, Q) }"
    run = quantized(text, {"E": normal(32, 8), "Q": normal(8, 5)})
    assert run.kernels == Counter({"Gather": 1, "MatMulIntegerToFloat": 1})
    assert run.codes <= CODES
    assert run.sqnr >= MIN_SQNR


# ---- what lies between ----------------------------------------------------------------------------

FUSED: dict[str, tuple[str, dict[str, int]]] = {
    "Add": (between("c = Conv(x, W) b = Add(a, c)"), {"QLinearAdd": 1}),
    "Add, Relu": (between("c = Conv(x, W) s = Add(a, c) b = Relu(s)"), {"QLinearAdd": 1, "Relu": 0}),
    "Add of a constant": (between("b = Add(a, K)"), {"QLinearAdd": 1}),
    "x + x": (between("b = Add(a, a)"), {"QLinearAdd": 1}),
    "Mul": (between("c = Conv(x, W) b = Mul(a, c)"), {"QLinearMul": 1}),
    "Mul by a constant": (between("b = Mul(a, K)"), {"QLinearMul": 1}),
    "x * x": (between("b = Mul(a, a)"), {"QLinearMul": 1}),
    "Concat": (between("c = Conv(x, W) b = Concat <axis=1> (a, c)", "V8"), {"QLinearConcat": 1}),
    "Concat of one twice": (between("b = Concat <axis=1> (a, a)", "V8"), {"QLinearConcat": 1}),
    "Concat, Relu": (
        between("c = Conv(x, W) d = Concat <axis=1> (a, c) b = Relu(d)", "V8"),
        {"QLinearConcat": 1, "Relu": 0},
    ),
    "AveragePool": (between("b = AveragePool <kernel_shape=[2,2], strides=[2,2]> (a)"), {"QLinearAveragePool": 1}),
    "GlobalAveragePool": (between("b = GlobalAveragePool(a)"), {"QLinearGlobalAveragePool": 1}),
    "Sigmoid": (between("b = Sigmoid(a)"), {"QLinearSigmoid": 1}),
    "Softmax": (between("b = Softmax <axis=1> (a)"), {"QLinearSoftmax": 1}),
    "LeakyRelu": (between("b = LeakyRelu <alpha=0.1> (a)"), {"QLinearLeakyRelu": 1}),
    "SiLU": (between("s = Sigmoid(a) b = Mul(a, s)"), {"QLinearSigmoid": 1, "QLinearMul": 1}),
    "Relu": (between("b = Relu(a)"), {"QLinearConv": 2, "Relu": 0}),
    "Clip": (between("b = Clip(a, zero, top)"), {"QLinearConv": 2, "Clip": 0}),
    "Clip of two signs": (between("b = Clip(a, minus, top)"), {"QLinearConv": 2, "Clip": 0}),
    "MaxPool": (between("b = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)"), {"NhwcMaxPool": 1}),
    "Relu, MaxPool": (between("c = Relu(a) b = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (c)"), {"NhwcMaxPool": 1}),
    "Resize nearest": (
        between(
            'b = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", '
            'nearest_mode="floor"> (a, , scales)'
        ),
        {"Resize": 1},
    ),
    "Reshape": (between("c = Reshape(a, flat) b = Reshape(c, image)"), {"Reshape": 2}),
    "Transpose": (between("b = Transpose <perm=[0,1,3,2]> (a)"), {}),
    "Squeeze, Unsqueeze": (between("c = Unsqueeze(a, axis) b = Squeeze(c, axis)"), {"Unsqueeze": 1, "Squeeze": 1}),
    "Slice": (between("b = Slice(a, first, last, stride)"), {"Slice": 1}),
    "Split": (between("c, d = Split <axis=1> (a, two) b = Concat <axis=1> (d, c)"), {"Split": 1, "QLinearConcat": 1}),
    "Split to layers": (
        between("c, d = Split <axis=1> (a, two) e = Conv(c, half) f = Conv(d, half) b = Concat <axis=1> (e, f)", "V8"),
        {"Split": 1, "QLinearConv": 4, "QLinearConcat": 1},
    ),
    "Expand": (between("b = Expand(a, same)"), {}),
    "Tile": (between("b = Tile(a, twice)"), {"Tile": 1}),
    "DepthToSpace": (between("b = DepthToSpace <blocksize=2> (a)", "V1"), {"DepthToSpace": 1}),
    "Identity": (between("b = Identity(a)"), {}),
    "Gather of channels": (between("b = Gather <axis=1> (a, order)"), {"Gather": 1}),
}


@pytest.mark.parametrize("name", FUSED)
def test_operators_between_layers(name: str) -> None:
    text, wanted = FUSED[name]
    run = quantized(text, CONSTANTS)
    check(run, wanted)
    assert run.reasons == {}


@pytest.mark.parametrize("path", ["Flatten(r)", "Reshape(r, R)"])
def test_a_classifier_behind_a_convolution(path: str) -> None:
    text = f"g (float[N,4,2,2] x) => (float[N,5] y) {{ a = Conv(x, W) r = Relu(a) b = {path} y = Gemm(b, F) }}"
    run = quantized(text, {"W": CONSTANTS["W"], "F": normal(16, 5), "R": np.array([-1, 16])})
    check(run, {"QLinearConv": 1, "QGemm": 1})
    assert run.kernels["DequantizeLinear"] == 0


FLOAT_INSIDE = {
    "Resize linear": between('b = Resize <mode="linear"> (a, , scales)'),
    "Pad": between("b = Pad(a, pads)"),
    "Pad reflect": between('b = Pad <mode="reflect"> (a, pads)'),
    "SpaceToDepth": between("b = SpaceToDepth <blocksize=2> (a)", "V16"),
}


@pytest.mark.parametrize("name", FLOAT_INSIDE)
def test_operators_that_run_in_float_between_codes_cost_one_conversion_each_way(name: str) -> None:
    """As much as without codes of their own; but what follows them, an Add or a Concat, gets codes."""
    found = quantized(FLOAT_INSIDE[name], CONSTANTS)
    codes = name == "Resize linear" and found.kernels["DequantizeLinear"] == 1  # as ONNX Runtime 1.23 does it
    check(found, {name.split()[0]: 1}, inner=0 if codes else 1)


SLOWER = {
    "ConvTranspose": "b = ConvTranspose(a, T)",
    "HardSigmoid": "b = HardSigmoid(a)",
    "HardSwish": "b = HardSwish(a)",
    "Tanh": "b = Tanh(a)",
    "Elu": "b = Elu(a)",
    "ReduceMean": "b = ReduceMean <axes=[2]> (a)",
    "Sub": "c = Conv(x, W) b = Sub(a, c)",
    "Div": "c = Conv(x, W) s = Sigmoid(c) b = Div(a, s)",
}


@pytest.mark.parametrize("op", SLOWER)
def test_operators_without_kernel_stay_float_unless_forced(op: str) -> None:
    run = quantized(between(SLOWER[op]), CONSTANTS)
    assert f"no int8 kernel for {op}" in run.reasons[op]
    assert not any(f.startswith("QLinear" + op) for f in run.kernels)
    forced = quantized(between(SLOWER[op]), CONSTANTS, recipe={"rules": [{"match": {"op_type": op}, "quantize": True}]})
    assert op not in forced.reasons
    assert forced.codes <= CODES
    assert forced.sqnr >= (5 if op == "Div" else 25)  # the divisor comes near zero


def test_a_gate_from_a_float_operator_is_converted() -> None:
    """One number for each channel: nothing against an Mul in float over the image."""
    body = "p = GlobalAveragePool(a) q = Conv(p, W) s = HardSigmoid(q) b = Mul(a, s)"
    run = quantized(between(body), CONSTANTS)
    assert run.kernels["QLinearMul"] == 1
    assert run.kernels["Mul"] == 0
    assert run.sqnr >= MIN_SQNR


# ---- other targets --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FUSED, *FLOAT_INSIDE])
@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
def test_other_targets_get_valid_and_accurate_models(target: str, name: str) -> None:
    text = FUSED[name][0] if name in FUSED else FLOAT_INSIDE[name]
    run = quantized(text, CONSTANTS, target=target)
    assert run.sqnr >= MIN_SQNR
    types = {t.data_type for t in run.result.model.graph.initializer if t.name.endswith("_zero_point")}
    int8, uint8, int32 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32
    assert types <= ({int8} if target == "tensorrt" else {int8, uint8, int32})


def test_tensorrt_is_symmetric_and_its_biases_are_float() -> None:
    run = quantized(between("b = Relu(a)"), CONSTANTS, target="tensorrt")
    model = run.result.model
    zero_points = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_zero_point")]
    assert len(zero_points) == 4
    assert all(z.dtype == np.int8 and not z.any() for z in zero_points)
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    biases = [n.input[2] for n in model.graph.node if n.op_type == "Conv"]
    assert len(biases) == 2
    assert floats.issuperset(biases)


@pytest.mark.parametrize("tail", ["b = Relu(s)", "b = Identity(s)"])
def test_tensorrt_quantizes_the_skip_branch_of_a_residual_add_only(tail: str) -> None:
    model = quantized(
        between(f"r = Relu(a) c = Conv(r, W, B) s = Add(c, r) {tail}"), CONSTANTS, target="tensorrt"
    ).result.model
    maker = {o: n for n in model.graph.node for o in n.output}
    add = next(n for n in model.graph.node if n.op_type == "Add")
    branch, skip = (maker[name].op_type for name in add.input)
    assert (branch, skip) == ("Conv", "DequantizeLinear")


def test_tensorrt_gives_codes_to_pools() -> None:
    model = quantized(between("c = Relu(a) b = GlobalAveragePool(c)"), CONSTANTS, target="tensorrt").result.model
    maker = {o: n for n in model.graph.node for o in n.output}
    pool = next(n for n in model.graph.node if n.op_type == "GlobalAveragePool")
    assert maker[pool.input[0]].op_type == "DequantizeLinear"


def test_qnn_gives_codes_to_every_operator_it_knows() -> None:
    text = """g (float[N,4,8,8] x) => (float[N,4,4,4] y) {
        m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) t = Transpose <perm=[0,1,3,2]> (m) r = Relu(t)
        s = Sigmoid(r) c = Conv(s, W) y = HardSwish(c) }"""
    run = quantized(text, {"W": CONSTANTS["W"]}, target="qnn")
    assert run.reasons == {}
    model = run.result.model
    maker = {o: n.op_type for n in model.graph.node for o in n.output}
    float_ops = [n for n in model.graph.node if "Linear" not in n.op_type]
    assert all(maker[name] == "DequantizeLinear" for n in float_ops for name in n.input)
    scale = {n.input[0]: n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert len({scale[name] for name in ("x", "m", "t")}) == 1
