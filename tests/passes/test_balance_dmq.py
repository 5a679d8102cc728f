"""BalanceDmq: the function against ONNX Runtime, the factors on both sides, folding and every reason against it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.algos.balance import balance_factors
from onnxq.errors import CalibrationError, DataError, GraphError
from onnxq.graph import GraphModel
from onnxq.passes._balance import FOLDED, channel_shape
from onnxq.passes._base import PassReport
from onnxq.passes.balance_dmq import BalanceDmq
from onnxq.passes.calibrate_channels import CalibrateChannels
from onnxq.passes.select_layers import SelectLayers
from tests.graphs import apply, assert_same_function, build, feeds_for, normal, ops, positive, reasons, run
from tests.passes.ptq import planned

RTOL = 1e-5
SIZES = np.array([1, 40, 0.2, 1.5, 0.7, 3], np.float32)
"""Channel 1 is the outlier."""


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights whose output channels, on axis 0, have the sizes of SIZES."""
    return normal(*shape, seed=seed) * SIZES.reshape(-1, *[1] * (len(shape) - 1))


def columns(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights whose output channels, on the last axis, have the sizes of SIZES."""
    return normal(*shape, seed=seed) * SIZES


def balanced(
    model: onnx.ModelProto, *, changed: int, recipe: Any = None, data: Any = None
) -> tuple[GraphModel, Any, PassReport]:
    """Run the passes; check the function, the count and that both sides hold the factors."""
    data = feeds_for(model, seed=7, free=8) if data is None else data
    graph, ctx = planned(model, data=data, recipe={"balance": {}} if recipe is None else recipe)
    before = graph.copy()
    plain = graph.to_proto().SerializeToString()
    apply(graph, CalibrateChannels(), ctx=ctx)
    assert graph.to_proto().SerializeToString() == plain
    measured = dict(ctx.stats)
    report = apply(graph, BalanceDmq(), ctx=ctx)
    assert report.changed == changed == len(ctx.balance)
    assert (graph.to_proto().SerializeToString() == plain) == (changed == 0)
    assert_same_function(model, graph, rtol=RTOL)
    assert len(report.notes) == changed
    for name, factors in ctx.balance.items():
        check_layer(before, graph, name, factors, data, measured)
    return graph, ctx, report


def check_layer(
    before: GraphModel, after: GraphModel, name: str, factors: np.ndarray, data: Any, measured: dict[str, Any]
) -> None:
    """The layer's input is divided, its channels were measured, and where one stood out it does so far less."""
    old, new = value_of(before, name, data), value_of(after, name, data)
    shape = channel_shape(before, before.node(name), factors.size)
    np.testing.assert_allclose(new, old / factors.reshape(shape), rtol=1e-4, atol=1e-5 * np.abs(new).max())
    others = tuple(i for i, s in enumerate(shape) if s == 1)
    was, now = (np.abs(v).max(axis=others) for v in (old, new))
    np.testing.assert_allclose(measured[before.node(name).inputs[0].name].channel_absmax, was, rtol=1e-5)
    outlier = was.max() / np.median(was)
    if outlier > 5:
        assert now.max() / np.median(now) < outlier / 2


def value_of(graph: GraphModel, name: str, data: Any) -> np.ndarray:
    """What the layer `name` reads."""
    tensor = graph.node(name).inputs[0].name
    proto = graph.to_proto()
    if tensor in data:
        return data[tensor]
    if tensor not in [o.name for o in proto.graph.output]:
        proto.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return run(proto, data)[tensor]


def weight(graph: GraphModel, node: str) -> np.ndarray:
    return np.asarray(graph.value(graph.node(node).inputs[1]))


def folded(graph: GraphModel) -> list[str]:
    return json.loads(graph.metadata.get(FOLDED, "[]"))


# ---- folding -----------------------------------------------------------------------------------

CONV = "[layer] y = Conv(r, W)"
GAMMA, BETA = SIZES.copy(), normal(6, seed=3)
IMAGE = "g (float[N,3,8,8] x) => (float[N,A,B,C] y)"
TOKENS = "g (float[N,5,6] x) => (float[N,5,4] y)"
FOLDABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "Conv, Relu": (f"{IMAGE} {{ c = Conv(x, V, B) r = Relu(c) {CONV} }}", {"V": rows(6, 3, 1, 1), "B": GAMMA}),
    "Conv without bias, LeakyRelu, MaxPool": (
        f"{IMAGE} {{ c = Conv(x, V) l = LeakyRelu(c) r = MaxPool<kernel_shape=[2,2]>(l) {CONV} }}",
        {"V": rows(6, 3, 1, 1)},
    ),
    "Conv, PRelu, Pad, AveragePool": (
        f"""{IMAGE} {{ c = Conv(x, V) l = PRelu(c, slope) p = Pad(l, pads) r = AveragePool<kernel_shape=[2,2]>(p)
            {CONV} }}""",
        {"V": rows(6, 3, 1, 1), "slope": positive(6, 1, 1), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
    ),
    "ConvTranspose": (
        f"{IMAGE} {{ r = ConvTranspose<group=3>(x, V, B) {CONV} }}",
        {"V": normal(3, 2, 2, 2) * SIZES.reshape(3, 2, 1, 1), "B": GAMMA},
    ),
    "BatchNormalization": (
        f"{IMAGE} {{ c = Conv(x, V) s = Sigmoid(c) r = BatchNormalization(s, gamma, beta, mean, var) {CONV} }}",
        {"V": normal(6, 3, 1, 1), "gamma": GAMMA, "beta": BETA, "mean": normal(6), "var": positive(6)},
    ),
    "InstanceNormalization": (
        f"{IMAGE} {{ c = Conv(x, V) r = InstanceNormalization(c, gamma, beta) {CONV} }}",
        {"V": normal(6, 3, 1, 1), "gamma": GAMMA, "beta": BETA},
    ),
    "Mul by a constant": (
        f"{IMAGE} {{ c = Conv(x, V) s = Sigmoid(c) r = Mul(gamma, s) {CONV} }}",
        {"V": normal(6, 3, 1, 1), "gamma": GAMMA.reshape(6, 1, 1)},
    ),
    "Mul by a number": (
        f"{IMAGE} {{ c = Conv(x, V) s = Sigmoid(c) r = Mul(s, half) {CONV} }}",
        {"V": normal(6, 3, 1, 1), "half": np.float32(0.5)},
    ),
    "Div by a constant, Add and Sub": (
        f"""{IMAGE} {{ c = Conv(x, V) s = Sigmoid(c) d = Div(s, gamma) a = Add(beta, d) r = Sub(a, one) {CONV} }}""",
        {"V": normal(6, 3, 1, 1), "gamma": 1 / GAMMA.reshape(6, 1, 1), "beta": BETA.reshape(6, 1, 1), "one": 1.0},
    ),
    "a constant divided": (
        f"{IMAGE} {{ c = Conv(x, V) s = Sigmoid(c) r = Div(gamma, s) {CONV} }}",
        {"V": normal(6, 3, 1, 1, scale=0.3), "gamma": GAMMA.reshape(1, 6, 1, 1)},
    ),
    "two branches added": (
        f"{IMAGE} {{ a = Conv(x, V) b = Conv(x, U) s = Add(a, b) r = Relu(s) {CONV} }}",
        {"V": rows(6, 3, 1, 1), "U": rows(6, 3, 1, 1, seed=2)},
    ),
    "a gate, through its left branch": (
        f"{IMAGE} {{ a = Conv(x, V) b = Conv(x, U) s = Sigmoid(b) r = Mul(a, s) {CONV} }}",
        {"V": rows(6, 3, 1, 1), "U": normal(6, 3, 1, 1)},
    ),
    "a gate, through its right branch": (
        f"{IMAGE} {{ a = Conv(x, V) b = Conv(x, U) s = Sigmoid(b) r = Mul(s, a) {CONV} }}",
        {"V": rows(6, 3, 1, 1), "U": normal(6, 3, 1, 1)},
    ),
    "a gate whose left branch fails late": (
        f"""{IMAGE} {{ a = Conv(x, V) b = Conv(x, U) s = Sigmoid(b) t = Add(beta, s) r = Mul(t, a) {CONV} }}""",
        {"V": rows(6, 3, 1, 1), "U": normal(6, 3, 1, 1), "beta": BETA.reshape(6, 1, 1)},
    ),
    "Gemm, Relu": (
        """g (float[N,3] x) => (float[N,4] y) { c = Gemm<transB=1, alpha=0.5, beta=2.0>(x, V, B) r = Relu(c)
            [layer] y = Gemm<transB=1>(r, W) }""",
        {"V": rows(6, 3), "B": GAMMA, "W": normal(4, 6)},
    ),
    "MatMul and bias": (
        f"{TOKENS} {{ c = MatMul(x, V) b = Add(B, c) r = Relu(b) [layer] y = MatMul(r, W) }}",
        {"V": columns(6, 6), "B": GAMMA, "W": normal(6, 4)},
    ),
    "LayerNormalization": (
        f"{TOKENS} {{ r = LayerNormalization(x, gamma, beta) [layer] y = MatMul(r, W) }}",
        {"gamma": GAMMA, "beta": BETA, "W": normal(6, 4)},
    ),
    "LayerNormalization without bias": (
        f"{TOKENS} {{ r = LayerNormalization<axis=2>(x, gamma) [layer] y = MatMul(r, W) }}",
        {"gamma": GAMMA, "W": normal(6, 4)},
    ),
    "LayerNormalization with its statistics": (
        """g (float[N,5,6] x) => (float[N,5,4] y, float[N,5,1] mean) { r, mean = LayerNormalization(x, gamma)
            [layer] y = MatMul(r, W) }""",
        {"gamma": GAMMA, "W": normal(6, 4)},
    ),
    "an RMS normalization in pieces": (
        f"""{TOKENS} {{ q = Mul(x, x) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps) s = Sqrt(e) i = Div(one, s)
            n = Mul(x, i) r = Mul(n, gamma) [layer] y = MatMul(r, W) }}""",
        {"eps": 1e-5, "one": 1.0, "gamma": GAMMA, "W": normal(6, 4)},
    ),
    "an RMS normalization, then a gate": (
        f"""{TOKENS} {{ q = Pow(x, two) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps) s = Sqrt(e) n = Div(x, s)
            h = Mul(gamma, n) u = MatMul(h, V) g = MatMul(h, U) sg = Sigmoid(g) w = Mul(g, sg) r = Mul(w, u)
            [layer] y = MatMul(r, W) }}""",
        {
            "two": 2.0,
            "eps": 1e-5,
            "gamma": np.ones(6, np.float32),
            "V": columns(6, 6),
            "U": normal(6, 6),
            "W": normal(6, 4),
        },
    ),
    "a layer normalization in pieces": (
        f"""{TOKENS} {{ m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes=[-1]>(q)
            e = Add(v, eps) s = Sqrt(e) n = Div(d, s) a = Mul(n, gamma) r = Add(a, beta) [layer] y = MatMul(r, W) }}""",
        {"two": 2.0, "eps": 1e-5, "gamma": GAMMA, "beta": BETA, "W": normal(6, 4)},
    ),
    "pooling, flattening": (
        """g (float[N,3,8,8] x) => (float[N,4] y) { c = Conv(x, V) p = GlobalAveragePool(c) r = Flatten(p)
            [layer] y = Gemm(r, W) }""",
        {"V": rows(6, 3, 1, 1), "W": normal(6, 4)},
    ),
    "mean over positions": (
        """g (float[N,5,6] x) => (float[N,4] y) { n = LayerNormalization(x, gamma)
            r = ReduceMean<axes=[1], keepdims=0>(n) [layer] y = Gemm(r, W) }""",
        {"gamma": GAMMA, "W": normal(6, 4)},
    ),
    "image to tokens": (
        """g (float[2,3,8,8] x) => (float[2,64,4] y) { c = Conv(x, V) f = Reshape(c, shape)
            r = Transpose<perm=[0,2,1]>(f) [layer] y = MatMul(r, W) }""",
        {"V": rows(6, 3, 1, 1), "shape": np.array([0, 6, -1]), "W": normal(6, 4)},
    ),
    "heads of an attention": (
        """g (float[N,5,6] x) => (float[N,5,4] y) {
            v = MatMul(x, V) vb = Add(v, B) vs = Reshape(vb, split) vt = Transpose<perm=[0,2,1,3]>(vs)
            q = MatMul(x, Q) qs = Reshape(q, split) qt = Transpose<perm=[0,2,1,3]>(qs)
            kt = Transpose<perm=[0,2,3,1]>(qs) s = MatMul(qt, kt) a = Softmax<axis=-1>(s) o = MatMul(a, vt)
            t = Transpose<perm=[0,2,1,3]>(o) r = Reshape(t, merge) [layer] y = MatMul(r, W) }""",
        {
            "V": columns(6, 6),
            "B": GAMMA,
            "Q": normal(6, 6, seed=5),
            "W": normal(6, 4),
            "split": np.array([0, 5, 2, 3]),
            "merge": np.array([0, 5, 6]),
        },
    ),
}
ONLY_LAYER = {"rules": [{"match": {"node": "layer"}, "balance": {}}]}


def foldable(name: str) -> onnx.ModelProto:
    text, constants = FOLDABLE[name]
    if CONV in text:
        constants = {"W": normal(4, 6, 1, 1)} | constants
    return build(text, **constants)


@pytest.mark.parametrize("name", FOLDABLE)
def test_the_division_goes_into_what_is_in_front(name: str) -> None:
    model = foldable(name)
    graph, ctx, report = balanced(model, changed=1, recipe=ONLY_LAYER)
    assert ops(graph) == ops(planned(model)[0])
    assert folded(graph) == ["layer"]
    assert report.notes == (f"layer: the division is part of what computes {graph.node('layer').inputs[0].name!r}",)
    assert graph.node("layer").inputs[0].name in json.loads(ctx.metadata["onnxq.rescaled_tensors"])
    assert apply(graph, SelectLayers(), CalibrateChannels(), BalanceDmq(), ctx=ctx).changed == 0


FUSED_NORMS = {
    "skip": "r, m, v, z = com.microsoft.SkipLayerNormalization <epsilon=1e-5> (x, k, gamma, beta, bias)",
    "skip, without beta": "r, m, v, z = com.microsoft.SkipLayerNormalization (x, k, gamma)",
    "skip, RMS": "r, m, v, z = com.microsoft.SkipSimplifiedLayerNormalization (x, k, gamma, bias)",
}


@pytest.mark.parametrize("name", FUSED_NORMS)
def test_the_division_goes_into_normalizations_that_onnx_runtime_has_fused(name: str) -> None:
    """Factors are in the scale and bias, but not in what is added in front of them."""
    text = f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[N,5,6] x, float[N,5,6] k) => (float[N,5,4] y, float[N,5,6] z) {{
            {FUSED_NORMS[name]} [layer] y = MatMul(r, W) }}"""
    constants = {"gamma": GAMMA, "beta": BETA, "bias": normal(6, seed=4)}
    used = {key: value for key, value in constants.items() if key in text}
    model = build(text, check=False, W=normal(6, 4), **used)
    graph, _, _ = balanced(model, changed=1, recipe=ONLY_LAYER)
    assert folded(graph) == ["layer"]
    assert ops(graph) == ops(planned(model)[0])
    assert [t.name for t in graph.constants() if t.name == "bias"] == ["bias"] * ("bias" in text)


def test_factors_are_those_of_the_algorithm() -> None:
    model, x = foldable("Conv, Relu"), normal(16, 3, 8, 8)
    before = planned(model)[0]
    recipe = {"rules": [{"match": {"node": "layer"}, "balance": {"strength": 0.7}}]}
    graph, ctx, _ = balanced(model, changed=1, recipe=recipe, data={"x": x})
    act = np.abs(value_of(before, "layer", {"x": x})).max(axis=(0, 2, 3))
    wmax = np.abs(weight(before, "layer")).max(axis=(0, 2, 3))
    np.testing.assert_allclose(ctx.balance["layer"], balance_factors(act, wmax, 0.7), rtol=1e-5)
    np.testing.assert_allclose(
        weight(graph, "layer"), weight(before, "layer") * ctx.balance["layer"].reshape(1, 6, 1, 1), rtol=1e-6
    )


def test_layers_that_read_one_tensor_share_a_factor() -> None:
    model = build(
        """g (float[N,5,6] x) => (float[N,5,4] q, float[N,5,4] k, float[N,5,3] v) {
            r = LayerNormalization(x, gamma, beta)
            [query] q = MatMul(r, Q) [key] k = MatMul(r, K) [value] v = MatMul(r, V) }""",
        gamma=GAMMA, beta=BETA, Q=normal(6, 4), K=normal(6, 4, seed=1) * 3, V=normal(6, 3, seed=2),
    )  # fmt: skip
    data = {"x": normal(8, 5, 6)}
    before = planned(model)[0]
    graph, ctx, _ = balanced(model, changed=3, data=data)
    assert "Mul" not in ops(graph)
    largest = np.max([np.abs(weight(before, n)).max(axis=1) for n in ("query", "key", "value")], axis=0)
    act = np.abs(value_of(before, "query", data)).max(axis=(0, 1))
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(ctx.balance[name], balance_factors(act, largest, 0.5), rtol=1e-5)
    assert folded(graph) == ["key", "query", "value"]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("Conv<group=2>(r, W)", (4, 3, 1, 1)),
        ("Conv<group=6>(r, W)", (12, 1, 3, 3)),
        ("ConvTranspose<group=2>(r, W)", (6, 2, 2, 2)),
    ],
)
def test_groups(text: str, shape: tuple[int, ...]) -> None:
    """Each group's inputs have factors of their own."""
    model = build(
        f"{IMAGE} {{ c = Conv(x, V) s = Sigmoid(c) r = Mul(gamma, s) [layer] y = {text} }}",
        V=normal(6, 3, 1, 1), gamma=GAMMA.reshape(6, 1, 1), W=normal(*shape),
    )  # fmt: skip
    recipe = {"rules": [{"match": {"node": "layer"}, "quantize": True, "balance": {}}]}
    _, ctx, _ = balanced(model, changed=1, recipe=recipe)
    assert ctx.balance["layer"].shape == (6,)


def test_chains_are_balanced_layer_by_layer() -> None:
    model = build(
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
            [one] a = Conv(x, W1, B1) r = Relu(a) [two] b = Conv(r, W2, B2) s = Relu(b) [three] y = Conv(s, W3) }""",
        W1=rows(6, 3, 1, 1), B1=GAMMA, W2=rows(6, 6, 1, 1), B2=BETA, W3=normal(4, 6, 1, 1),
    )  # fmt: skip
    graph, _, report = balanced(model, changed=3)
    assert folded(graph) == ["three", "two"]
    assert "one.mul" in [n.name for n in graph.nodes()]
    assert report.notes[0] == "one: a Mul divides its input, for 'x' is a graph input"


def test_constants_that_others_read_stay() -> None:
    model = build(
        """g (float[N,5,6] x) => (float[N,5,4] y, float[N,5,6] z) {
            r = LayerNormalization(x, gamma, beta) [layer] y = MatMul(r, W) z = Mul(x, gamma) }""",
        gamma=GAMMA, beta=BETA, W=normal(6, 4),
    )  # fmt: skip
    graph, _, _ = balanced(model, changed=1)
    np.testing.assert_array_equal(graph.value(graph.tensor("gamma")), GAMMA)


# ---- a Mul ------------------------------------------------------------------------------------

TWO = "g (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,6,8,8] z)"
IF = (
    "z = If(flag) <then_branch = t () => (float[N,6,8,8] o) { o = Identity(r) },"
    " else_branch = e () => (float[N,6,8,8] p) { p = Neg(r) }>"
)
UNFOLDABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "graph input": (
        "g (float[N,6,8,8] x) => (float[N,4,8,8] y) { [layer] y = Conv(x, W) }", {}, "'x' is a graph input"
    ),
    "barrier": (f"{IMAGE} {{ c = Conv(x, V) r = Sigmoid(c) {CONV} }}", {}, "Sigmoid 'sigmoid_1' does not let"),
    "graph output": (
        f"g (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,6,8,8] r) {{ c = Conv(x, V) r = Relu(c) {CONV} }}",
        {}, "'r' is a graph output",
    ),
    "another reader": (
        f"{TWO} {{ c = Conv(x, V) r = Relu(c) {CONV} [z] z = Neg(r) }}",
        {}, "'z' reads 'r' as well and is not balanced",
    ),
    "squared": (
        f"{TWO} {{ c = Conv(x, V) r = Relu(c) {CONV} [z] z = Mul(r, r) }}",
        {}, "'z' reads 'r' as well and is not balanced",
    ),
    "a square in front": (
        f"{IMAGE} {{ c = Conv(x, V) r = Mul(c, c) {CONV} }}", {}, "'c' is read 2 times",
    ),
    "body": (
        f"{TWO} {{ c = Conv(x, V) r = Relu(c) {CONV} {IF} }}".replace("x)", "x, bool flag)", 1),
        {}, "'r' is read inside the body",
    ),
    "read on the way": (
        f"g (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,6,8,8] c) {{ c = Conv(x, V) r = Relu(c) {CONV} }}",
        {}, "'c' is a graph output",
    ),
    "clip": (
        f"{IMAGE} {{ c = Conv(x, V) r = Clip(c, zero, six) {CONV} }}", {"zero": 0.0, "six": 6.0}, "does not let",
    ),
    "one branch only": (
        f"{IMAGE} {{ c = Conv(x, V) s = Sigmoid(c) a = Conv(x, U) r = Add(a, s) {CONV} }}",
        {"U": rows(6, 3, 1, 1)}, "does not let",
    ),
    "flattened positions": (
        """g (float[N,3,2,2] x) => (float[N,4] y) { c = Conv(x, V) r = Flatten(c) [layer] y = Gemm(r, W) }""",
        {"W": normal(24, 4)}, "does not let",
    ),
    "half of a Gelu": (
        f"""{TOKENS} {{ c = MatMul(x, V) d = Div(c, root) f = Erf(d) a = Add(f, one) m = Mul(c, a) r = Mul(m, half)
            [layer] y = MatMul(r, W) }}""",
        {"V": columns(6, 6), "root": 1.4142135, "one": 1.0, "half": 0.5, "W": normal(6, 4)}, "would have to grow",
    ),
    "two axes normalized": (
        f"{TOKENS} {{ r = LayerNormalization<axis=1>(x, gamma) [layer] y = MatMul(r, W) }}",
        {"gamma": np.ones((5, 6), np.float32) * SIZES, "W": normal(6, 4)}, "does not let",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_otherwise_a_mul_divides(name: str) -> None:
    text, constants, reason = UNFOLDABLE[name]
    model = build(text, **{"W": normal(4, 6, 1, 1), "V": rows(6, 3, 1, 1)} | constants)
    if not any("V" in n.input for n in model.graph.node):
        del model.graph.initializer[[t.name for t in model.graph.initializer].index("V")]
    data = feeds_for(model, seed=7, free=8) | (
        {"x": normal(8, 6, 8, 8) * SIZES.reshape(6, 1, 1)} if name == "graph input" else {}
    )
    graph, ctx, report = balanced(model, changed=1, recipe=ONLY_LAYER, data=data)
    assert folded(graph) == []
    layer = graph.node("layer")
    mul = graph.node("layer.mul")
    assert mul.op == "Mul"
    assert layer.inputs[0] is mul.outputs[0]
    assert graph.is_private(mul.outputs[0])
    factor = next(t for t in mul.inputs if graph.is_constant(t))
    assert factor.name == "layer.tensor_balance_factor"
    shape = graph.shape(factor)
    assert sum(size > 1 for size in shape) == 1
    assert len(shape) == graph.rank(layer.inputs[0])
    np.testing.assert_allclose(graph.value(factor).reshape(-1), 1 / ctx.balance["layer"], rtol=1e-6)
    assert reason in report.notes[0]
    assert report.notes[0].startswith("layer: a Mul divides its input, for ")
    assert "onnxq.rescaled_tensors" not in ctx.metadata
    apply(graph, SelectLayers(), ctx=ctx)
    assert "layer.mul" not in [n for a in ctx.plan.activations.values() for n, _ in a.readers]
    assert apply(graph, CalibrateChannels(), BalanceDmq(), ctx=ctx).changed == 0


@pytest.mark.parametrize("name", ["graph input", "barrier", "another reader"])
def test_without_a_mul_such_layers_are_left_alone(name: str) -> None:
    text, constants, reason = UNFOLDABLE[name]
    used = {"W": normal(4, 6, 1, 1)} | ({"V": rows(6, 3, 1, 1)} if "V)" in text else {}) | constants
    model = build(text, **used)
    recipe = {"rules": [{"match": {"node": "layer"}, "balance": {"mul": False}}]}
    _, _, report = balanced(model, changed=0, recipe=recipe)
    (skip,) = report.skipped
    assert skip.reason.startswith("not balanced: ")
    assert reason in skip.reason
    assert skip.reason.endswith("the recipe wants no Mul (balance.mul)")


def test_what_costs_nothing_is_balanced_without_a_mul_too() -> None:
    recipe = {"rules": [{"match": {"node": "layer"}, "balance": {"mul": False}}]}
    graph, _, _ = balanced(foldable("LayerNormalization"), changed=1, recipe=recipe)
    assert folded(graph) == ["layer"]


def test_different_strengths_are_kept_apart() -> None:
    model = build(
        """g (float[N,5,6] x) => (float[N,5,4] q, float[N,5,4] k) {
            r = LayerNormalization(x, gamma) [query] q = MatMul(r, Q) [key] k = MatMul(r, K) }""",
        gamma=GAMMA, Q=normal(6, 4), K=normal(6, 4, seed=1),
    )  # fmt: skip
    recipe = {"balance": {"strength": 0.3}, "rules": [{"match": {"node": "key"}, "balance": {"strength": 0.6}}]}
    graph, ctx, report = balanced(model, changed=2, recipe=recipe)
    assert ops(graph).count("Mul") == 2
    assert "different strengths" in report.notes[0]
    assert not np.allclose(ctx.balance["query"], ctx.balance["key"])


def test_where_a_record_carries_the_numbers_quantized_weights_in_front_stay() -> None:
    recipe = ONLY_LAYER | {"target": "ascend"}
    model = foldable("Conv, Relu")
    graph, _, report = balanced(model, changed=1, recipe=recipe)
    assert "layer.mul" in [n.name for n in graph.nodes()]
    assert "which a record may carry to another graph" in report.notes[0]
    first = next(n for n in graph.nodes("Conv") if n.name != "layer")
    np.testing.assert_array_equal(weight(graph, first.name), rows(6, 3, 1, 1))
    free, _, _ = balanced(model, changed=1, recipe=recipe | {"skip": [first.name]})
    assert folded(free) == ["layer"]
    normed, _, _ = balanced(foldable("LayerNormalization"), changed=1, recipe=recipe)
    assert folded(normed) == ["layer"]


# ---- what is not balanced -----------------------------------------------------------------------


def test_without_a_weight_nothing_is_balanced() -> None:
    model = build(
        """g (float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,3,4,4] y, float[N,3,8,8] w) {
            [pool] y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) [product] w = MatMul(x, z) }"""
    )
    recipe = {"target": "ascend", "balance": {}}
    _, ctx, report = balanced(model, changed=0, recipe=recipe)
    assert ctx.stats == {}
    assert reasons(report) == {
        "pool": "not balanced: an AveragePool has no weight that could take the factors",
        "product": "not balanced: both factors of the MatMul are activations; there is no weight that could take the "
        "factors",
    }


def test_only_what_the_recipe_names_is_balanced() -> None:
    _, _, report = balanced(foldable("two branches added"), changed=0, recipe={})
    assert report == PassReport()
    _, ctx, _ = balanced(foldable("two branches added"), changed=1, recipe=ONLY_LAYER | {"skip": ["Add"]})
    assert list(ctx.balance) == ["layer"]
    _, _, skipped = balanced(foldable("Gemm, Relu"), changed=0, recipe=ONLY_LAYER | {"skip": ["Gemm"]})
    assert skipped.skipped == ()


def test_zero_activations_and_zero_weights_have_nothing_to_balance() -> None:
    zero = build(
        f"{TOKENS} {{ r = LayerNormalization(x, gamma) [layer] y = MatMul(r, W) }}",
        gamma=np.zeros(6, np.float32), W=normal(6, 4),
    )  # fmt: skip
    _, _, report = balanced(zero, changed=0)
    assert reasons(report) == {"layer": "not balanced: every factor is 1"}
    dead = build(
        f"{TOKENS} {{ r = LayerNormalization(x, gamma) [layer] y = MatMul(r, W) }}",
        gamma=GAMMA * (np.arange(6) != 2), W=normal(6, 4) * (np.arange(6) != 3).reshape(6, 1),
    )  # fmt: skip
    balanced(dead, changed=1)


def test_channels_on_different_axes() -> None:
    model = build(
        """g (float[N,6,6,6] x) => (float[N,4,6,6] y, float[N,6,6,4] z) {
            r = Relu(x) [layer] y = Conv(r, W) [other] z = MatMul(r, V) }""",
        W=normal(4, 6, 1, 1), V=normal(6, 4),
    )  # fmt: skip
    graph, _, report = balanced(model, changed=1)
    assert reasons(report) == {"other": "not balanced: another layer reads 'r' with its channels on another axis"}
    assert "layer.mul" in [n.name for n in graph.nodes()]


# ---- contract ----------------------------------------------------------------------------------


def test_unmeasured_inputs_and_missing_data() -> None:
    graph, ctx = planned(foldable("Conv, Relu"), recipe=ONLY_LAYER)
    with pytest.raises(DataError, match="1 layers to balance need calibration data"):
        apply(graph, CalibrateChannels(), ctx=ctx)
    with pytest.raises(CalibrationError, match=r"layer 'layer': the 6 channels of its input .* were not measured"):
        apply(graph, BalanceDmq(), ctx=ctx)


def test_a_layer_with_factors_out_of_bounds_is_left_alone() -> None:
    w = normal(6, 4)
    w[2] *= 1e-20
    model = build(
        "g (float[N,5,6] x) => (float[N,5,4] y, float[N,5,4] z) { r = LayerNormalization(x, gamma) "
        "[layer] y = MatMul(r, W) s = Sigmoid(r) [other] z = MatMul(s, V) }",
        gamma=GAMMA, W=w, V=normal(6, 4),
    )  # fmt: skip
    _, ctx, report = balanced(model, changed=1)
    assert list(ctx.balance) == ["other"]
    assert reasons(report)["layer"].startswith("not balanced: channel 2: the balance factor would be")


def test_metadata_that_are_no_list_of_names() -> None:
    graph, ctx = planned(foldable("Conv, Relu"), data={"x": normal(8, 3, 8, 8)}, recipe=ONLY_LAYER)
    graph.metadata[FOLDED] = '{"layer": 1}'
    with pytest.raises(GraphError, match=r"'onnxq.balance_folded' must be a JSON list"):
        apply(graph, CalibrateChannels(), ctx=ctx)


def test_measuring_does_not_depend_on_batches() -> None:
    x = normal(24, 5, 6)
    stats = []
    for size in (1, 5, 24):
        feeds = [{"x": x[i : i + size]} for i in range(0, 24, size)]
        graph, ctx = planned(foldable("LayerNormalization"), data=feeds, recipe={"balance": {}}, threads=2)
        apply(graph, CalibrateChannels(), ctx=ctx)
        stats.append(next(iter(ctx.stats.values())).channel_absmax)
    np.testing.assert_allclose(stats[0], stats[1], rtol=1e-6)
    np.testing.assert_allclose(stats[0], stats[2], rtol=1e-6)
