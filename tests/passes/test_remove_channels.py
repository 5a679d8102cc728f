"""Removed channels are gone, and the rest computes what it did when they were taken for 0."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxq.context import QuantContext
from onnxq.graph import GraphModel
from onnxq.passes._base import PassReport
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.remove_channels import RemoveChannels
from onnxq.recipe import Recipe
from tests.graphs import apply, build, context, deviation, feeds_for, reasons, run
from tests.passes.masked import masked


def whole(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Small whole numbers: sums of products of these are exact in any order."""
    return np.random.default_rng([seed, *shape]).integers(-3, 4, shape).astype(np.float32)


def pruned(
    model: onnx.ModelProto, recipe: dict[str, Any]
) -> tuple[GraphModel, onnx.ModelProto, QuantContext, PassReport]:
    """The graph without channels, the model with named nodes, and what was done."""
    graph = GraphModel.from_proto(model)
    ctx = context(recipe=Recipe.from_dict(recipe))
    apply(graph, AssignNames(), LiftConstants(), InferShapes(), ctx=ctx)
    named = graph.to_proto()
    return graph, named, ctx, apply(graph, RemoveChannels(), ctx=ctx)


def check(
    model: onnx.ModelProto, ratio: float = 0.5, *, exact: bool = True, **recipe: Any
) -> tuple[GraphModel, PassReport]:
    """Prune, and compare with the masked model."""
    graph, named, ctx, report = pruned(model, {"prune": {"kind": "channels", "ratio": ratio}, **recipe})
    result = graph.to_proto()
    onnx.checker.check_model(result, full_check=True)
    for seed in range(2):
        feed = {
            name: np.round(v * 2) if v.dtype == np.float32 else v for name, v in feeds_for(model, seed=seed).items()
        }
        expected = run(masked(named, ctx.kept, feed), feed)
        found = run(graph, feed)
        if exact:
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            assert deviation(expected, found) <= 1e-5
    _shapes_are_true(graph, feed)
    return graph, report


def _shapes_are_true(graph: GraphModel, feed: dict[str, Any]) -> None:
    """What the graph says of shapes is what comes out."""
    proto = graph.to_proto()
    said = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.value_info}
    proto.graph.output.extend(v for v in proto.graph.value_info)
    for name, value in run(proto, feed).items():
        for size, dim in zip(value.shape, said.get(name, []), strict=False):
            assert dim in (0, size), name


def widths(graph: GraphModel) -> dict[str, tuple[int, ...]]:
    """Shapes of weights by node."""
    return {n.name: tuple(graph.shape(n.inputs[1])) for n in graph.nodes("Conv", "Gemm", "MatMul", "ConvTranspose")}


BN = "BatchNormalization <epsilon=0.5>"


def norm(channels: int, name: str) -> dict[str, NDArray[np.float32]]:
    return {
        f"{name}s": whole(channels, seed=11) + 5,
        f"{name}b": whole(channels, seed=12),
        f"{name}m": whole(channels, seed=13),
        f"{name}v": np.full(channels, 0.5, np.float32),
    }


def test_a_chain_loses_channels_and_all_that_depends_on_them() -> None:
    model = build(
        "g (float[N,3,8,8] x) => (float[N,5] y) {"
        f" a = Conv <pads=[1,1,1,1]> (x, A, ab) n = {BN} (a, ns, nb, nm, nv) r = Relu(n) p = PRelu(r, slope)"
        " d = Conv <group=8> (p, D, db) c = Clip(d, low, high) e = Conv(c, E) m = GlobalAveragePool(e)"
        " f = Flatten(m) y = Gemm <transB=1> (f, G, gb) }",
        A=whole(8, 3, 3, 3),
        ab=whole(8),
        **norm(8, "n"),
        slope=whole(8, 1, 1),
        D=whole(8, 1, 3, 3),
        db=whole(8),
        low=np.float32(-64),
        high=np.float32(64),
        E=whole(16, 8, 1, 1),
        G=whole(5, 16),
        gb=whole(5),
    )
    graph, report = check(model, 0.5, exact=False)
    shapes = list(widths(graph).values())
    assert shapes == [(4, 3, 3, 3), (4, 1, 3, 3), (8, 4, 1, 1), (5, 8)]
    assert [n.attrs["group"] for n in graph.nodes("Conv") if n.attrs.get("group", 1) > 1] == [4]
    assert report.changed == 2
    depthwise, last = reasons(report).values()
    assert depthwise == "it is depthwise: it loses the channels that its input loses"
    assert last == "its channels are those of the graph output 'y'"
    constants = {t.name: graph.shape(t) for t in graph.constants()}
    assert constants["ns"] == constants["nv"] == constants["ab"] == (4,)
    assert constants["slope"] == (4, 1, 1)


def test_channels_with_the_smallest_norms_go() -> None:
    weight = whole(6, 2, 1, 1)
    weight[:, :, 0, 0] = [[1, 0], [5, 0], [3, 0], [6, 0], [2, 0], [4, 0]]
    model = build(
        "g (float[N,2,4,4] x) => (float[N,1,4,4] y) { a = Conv(x, A) y = Conv(a, B) }", A=weight, B=whole(1, 6, 1, 1)
    )
    graph, _, ctx, _ = pruned(model, {"prune": {"kind": "channels", "ratio": 0.5}})
    assert [k.tolist() for k in ctx.kept.values()] == [[1, 3, 5]]
    first, second = graph.nodes("Conv")
    np.testing.assert_array_equal(graph.value(first.inputs[1]), weight[[1, 3, 5]])
    np.testing.assert_array_equal(graph.value(second.inputs[1]), whole(1, 6, 1, 1)[:, [1, 3, 5]])


def test_tied_layers_add_their_normalised_scores() -> None:
    a, b = np.float32([1, 2, 9, 4]), np.float32([400, 100, 100, 300])  # normalised: 0 .125 1 .375, 1 0 0 .667
    model = build(
        "g (float[N,1,4,4] x) => (float[N,1,4,4] y) { a = Conv(x, A) b = Conv(x, B) s = Add(a, b) y = Conv(s, C) }",
        A=a.reshape(4, 1, 1, 1),
        B=b.reshape(4, 1, 1, 1),
        C=whole(1, 4, 1, 1),
    )
    _, _, ctx, _ = pruned(model, {"prune": {"kind": "channels", "ratio": 0.25}})
    assert [k.tolist() for k in ctx.kept.values()] == [[0, 2, 3], [0, 2, 3]]
    check(model, 0.5)


def test_the_smallest_ratio_of_tied_layers_holds_and_all_multiples() -> None:
    model = build(
        "g (float[N,1,4,4] x) => (float[N,1,4,4] y) { a = Conv(x, A) b = Conv(x, B) s = Add(a, b) y = Conv(s, C) }",
        A=whole(40, 1, 1, 1),
        B=whole(40, 1, 1, 1, seed=1),
        C=whole(1, 40, 1, 1),
    )
    _, named, _, _ = pruned(model, {})
    first, second = (n.name for n in named.graph.node if n.op_type == "Conv" and n.input[0] == "x")
    for one, two, left in (((0.5, 1), (0.25, 1), 30), ((0.5, 1), (0.25, 16), 32), ((0.5, 4), (0.5, 6), 24)):
        rules = [
            {"match": {"node": name}, "prune": {"kind": "channels", "ratio": ratio, "multiple": multiple}}
            for name, (ratio, multiple) in ((first, one), (second, two))
        ]
        _, _, ctx, report = pruned(model, {"rules": rules})
        assert {len(k) for k in ctx.kept.values()} == {left}
    rules = [{"match": {"node": first}, "prune": {"kind": "channels", "ratio": 0.5}}]
    _graph, _, ctx, report = pruned(model, {"rules": rules})
    assert not ctx.kept
    assert reasons(report)[first] == f"it loses channels together with {second!r}, which keeps all of its own"
    assert reasons(report)[second] == "the recipe does not remove channels of it"


MODELS: dict[str, tuple[str, dict[str, Any], set[tuple[int, ...]]]] = {
    "residual": (
        (
            "g (float[N,4,8,8] x) => (float[N,2,8,8] y) { a = Conv(x, A) r = Relu(a) b = Conv(r, B) s = Add(b, a)"
            " t = Sub(s, a) y = Conv(t, C) }"
        ),
        {"A": whole(8, 4, 1, 1), "B": whole(8, 8, 1, 1), "C": whole(2, 8, 1, 1)},
        {(4, 4, 1, 1), (2, 4, 1, 1)},
    ),
    "concat": (
        (
            "g (float[N,4,8,8] x) => (float[N,2,8,8] y) { a = Conv(x, A) b = Conv(x, B) c = Concat <axis=1>"
            " (a, x, b, a)"
            " y = Conv(c, C) }"
        ),
        {"A": whole(8, 4, 1, 1), "B": whole(6, 4, 1, 1), "C": whole(2, 26, 1, 1)},
        {(4, 4, 1, 1), (3, 4, 1, 1), (2, 15, 1, 1)},
    ),
    "concat tied to one layer": (
        (
            "g (float[N,4,8,8] x) => (float[N,2,8,8] y) { a = Conv(x, A) b = Conv(x, B) c = Concat <axis=-3> (a, b)"
            " d = Conv(x, D) s = Mul(c, d) y = Conv(s, C) }"
        ),
        {"A": whole(8, 4, 1, 1), "B": whole(6, 4, 1, 1), "D": whole(14, 4, 1, 1), "C": whole(2, 14, 1, 1)},
        {(4, 4, 1, 1), (3, 4, 1, 1), (7, 4, 1, 1), (2, 7, 1, 1)},
    ),
    "concat along width": (
        (
            "g (float[N,4,8,8] x) => (float[N,2,8,16] y) { a = Conv(x, A) b = Conv(x, B) c = Concat <axis=3> (a, b)"
            " y = Conv(c, C) }"
        ),
        {"A": whole(8, 4, 1, 1), "B": whole(8, 4, 1, 1, seed=1), "C": whole(2, 8, 1, 1)},
        {(4, 4, 1, 1), (2, 4, 1, 1)},
    ),
    "split": (
        (
            "g (float[N,4,8,8] x) => (float[N,2,8,8] y) { a = Conv(x, A) b, c = Split <axis=1> (a, sizes) d ="
            " Conv(b, D)"
            " e = Conv(c, E) y = Add(d, e) }"
        ),
        {"A": whole(10, 4, 1, 1), "sizes": np.int64([4, 6]), "D": whole(2, 4, 1, 1), "E": whole(2, 6, 1, 1)},
        {(5, 4, 1, 1), (2, 2, 1, 1), (2, 3, 1, 1)},
    ),
    "slice": (
        (
            "g (float[N,4,8,8] x) => (float[N,2,8,8] y) { a = Conv(x, A) b = Slice(a, two, minus, one) d = Conv(b, D)"
            " e = Conv(a, E) y = Add(d, e) }"
        ),
        {
            "A": whole(12, 4, 1, 1),
            "two": np.int64([2]),
            "minus": np.int64([-2]),
            "one": np.int64([1]),
            "D": whole(2, 8, 1, 1),
            "E": whole(2, 12, 1, 1),
        },
        {(6, 4, 1, 1), (2, 4, 1, 1), (2, 6, 1, 1)},
    ),
    "flatten": (
        (
            "g (float[N,2,4,4] x) => (float[N,3] y) { a = Conv(x, A) f = Flatten(a) h = Gemm(f, G, gb) r = Relu(h)"
            " y = MatMul(r, H) }"
        ),
        {"A": whole(4, 2, 1, 1), "G": whole(64, 10), "gb": whole(1, 10), "H": whole(10, 3)},
        {(2, 2, 1, 1), (32, 5), (5, 3)},
    ),
    "reshape to a number": (
        "g (float[N,2,4,4] x) => (float[N,3] y) { a = Conv(x, A) f = Reshape(a, to) y = MatMul(f, G) }",
        {"A": whole(4, 2, 1, 1), "to": np.int64([-1, 64]), "G": whole(64, 3)},
        {(2, 2, 1, 1), (32, 3)},
    ),
    "reshape that merges the image": (
        (
            "g (float[N,2,4,4] x) => (float[N,16,3] y) { a = Conv(x, A) f = Reshape(a, to) t = Transpose"
            " <perm=[0,2,1]> (f)"
            " y = MatMul(t, G) }"
        ),
        {"A": whole(4, 2, 1, 1), "to": np.int64([0, 4, -1]), "G": whole(4, 3)},
        {(2, 2, 1, 1), (2, 3)},
    ),
    "reshape with a computed batch": (
        (
            "g (float[N,2,4,4] x) => (float[N,3] y) { a = Conv(x, A) s = Shape(a) n = Gather(s, zero) u ="
            " Unsqueeze(n, axes)"
            " t = Concat <axis=0> (u, rest) f = Reshape(a, t) y = MatMul(f, G) }"
        ),
        {"A": whole(4, 2, 1, 1), "zero": np.int64(0), "axes": np.int64([0]), "rest": np.int64([64]), "G": whole(64, 3)},
        {(2, 2, 1, 1), (32, 3)},
    ),
    "squeeze and excite": (
        (
            "g (float[N,2,4,4] x) => (float[N,3,4,4] y) { a = Conv(x, A) m = ReduceMean <axes=[2,3], keepdims=0> (a)"
            " h = Gemm(m, H) r = Relu(h) k = Gemm(r, K) u = Unsqueeze(k, axes) b = Mul(a, u) y = Conv(b, B) }"
        ),
        {"A": whole(8, 2, 1, 1), "H": whole(8, 4), "K": whole(4, 8), "axes": np.int64([2, 3]), "B": whole(3, 8, 1, 1)},
        {(4, 2, 1, 1), (4, 2), (2, 4), (3, 4, 1, 1)},
    ),
    "matmul with a bias": (
        (
            "g (float[N,5,6] x) => (float[N,5,3] y) { a = MatMul(x, A) b = Add(ab, a) r = Relu(b) c = MatMul(r, C)"
            " y = Add(c, cb) }"
        ),
        {"A": whole(6, 8), "ab": whole(8), "C": whole(8, 3), "cb": whole(3)},
        {(6, 4), (4, 3)},
    ),
    "grouped": (
        "g (float[N,4,4,4] x) => (float[N,2,4,4] y) { a = Conv(x, A) b = Conv <group=2> (a, B) y = Conv(b, C) }",
        {"A": whole(8, 4, 1, 1), "B": whole(12, 4, 1, 1), "C": whole(2, 12, 1, 1)},
        {(4, 4, 1, 1), (6, 2, 1, 1), (2, 6, 1, 1)},
    ),
    "transposed and grouped": (
        (
            "g (float[N,4,4,4] x) => (float[N,2,4,4] y) { a = Conv(x, A) b = ConvTranspose <group=2> (a, B, bb)"
            " d = ConvTranspose <group=8> (b, D) y = Conv(d, C) }"
        ),
        {
            "A": whole(12, 4, 1, 1),
            "B": whole(12, 4, 1, 1),
            "bb": whole(8),
            "D": whole(8, 2, 1, 1),
            "C": whole(2, 16, 1, 1),
        },
        {(6, 4, 1, 1), (6, 2, 1, 1), (4, 2, 1, 1), (2, 8, 1, 1)},
    ),
    "depthwise with a multiplier": (
        "g (float[N,2,6,6] x) => (float[N,2,4,4] y) { a = Conv(x, A) d = Conv <group=4> (a, D, db) y = Conv(d, C) }",
        {"A": whole(4, 2, 1, 1), "D": whole(8, 1, 3, 3), "db": whole(8), "C": whole(2, 8, 1, 1)},
        {(2, 2, 1, 1), (4, 1, 3, 3), (2, 4, 1, 1)},
    ),
    "transparent": (
        (
            "g (float[N,2,8,8] x) => (float[N,2,16,16] y) { a = Conv(x, A) p = Pad(a, pads) m = MaxPool"
            " <kernel_shape=[3,3]> (p)"
            ' u = Resize <mode="nearest">(m, , , sizes) c = Cast <to=1> (u) w = Mul(c, two) t = Max(w, nothing)'
            " y = Conv(t, C) }"
        ),
        {
            "A": whole(4, 2, 1, 1),
            "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
            "sizes": np.int64([2, 4, 16, 16]),
            "two": np.float32([2]),
            "nothing": np.zeros((4, 1, 1), np.float32),
            "C": whole(2, 4, 1, 1),
        },
        {(2, 2, 1, 1), (2, 2, 1, 1)},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_channels_are_removed_exactly(name: str) -> None:
    text, constants, shapes = MODELS[name]
    graph, _ = check(build(text, **constants), 0.5)
    assert set(widths(graph).values()) == shapes


KEPT: dict[str, tuple[str, dict[str, Any], str]] = {
    "softmax": ("s = Softmax <axis=1> (a) y = Conv(s, B)", {}, "Softmax '.*' behind it computes across its channels"),
    "mean": (
        "m = ReduceMean <axes=[1]> (a) y = Conv(m, B1)",
        {"B1": whole(8, 1, 1, 1)},
        "computes across its channels",
    ),
    "norm": (
        "l = LRN <size=3> (a) y = Conv(l, B)",
        {},
        "LRN '.*' behind it is an operator that channels are not followed",
    ),
    "shuffle": (
        "s = Reshape(a, to) t = Transpose <perm=[0,2,1,3,4]> (s) u = Reshape(t, back) y = Conv(u, B)",
        {"to": np.int64([0, 2, 4, 4, 4]), "back": np.int64([0, 8, 4, 4])},
        "divides its channels",
    ),
    "added to the input": (
        "i = Concat <axis=1> (x, x) s = Add(a, i) y = Conv(s, B)",
        {},
        "whose channels no layer makes",
    ),
    "read by its shape": (
        "s = Shape(a) f = Cast <to=1> (s) z = Conv(a, B) y = Mul(z, f)",
        {},
        "gives its number of channels",
    ),
    "an axis too many": ("y = MatMul(a, S)", {"S": whole(4, 4)}, "does not read its channels as channels"),
}


@pytest.mark.parametrize("name", KEPT)
def test_where_nothing_can_be_removed_the_report_says_why(name: str) -> None:
    text, constants, reason = KEPT[name]
    out = "float[N,8,4,4] y"
    more = {} if name in ("mean", "an axis too many") else {"B": whole(8, 8, 1, 1)}
    model = build(
        f"g (float[N,4,4,4] x) => ({out}) {{ a = Conv(x, A) {text} }}", A=whole(8, 4, 1, 1), **constants, **more
    )
    graph, report = check(model)
    assert report.changed == 0
    assert graph.to_proto() == pruned(model, {})[1]
    first = graph.nodes("Conv")[0].name
    assert re.search(reason, reasons(report)[first]), reasons(report)[first]


def test_shared_weights_and_bodies_keep_their_channels() -> None:
    model = build(
        "g (float[N,4,4,4] x, bool p) => (float[N,4,4,4] y) { a = Conv(x, A) b = Conv(a, A) c = Conv(b, C)"
        " z = If (p) <then_branch = t () => (float[N,8,4,4] ty) { ty = Relu(c) },"
        " else_branch = e () => (float[N,8,4,4] ey) { ey = Neg(c) }> y = Conv(z, B) }",
        A=whole(4, 4, 1, 1),
        C=whole(8, 4, 1, 1),
        B=whole(4, 8, 1, 1),
    )
    _graph, _named, ctx, report = pruned(model, {"prune": {"kind": "channels", "ratio": 0.5}})
    assert not ctx.kept
    told = list(reasons(report).values())
    assert told[0].startswith("its weight 'A' is shared with Conv")
    assert "read inside the body of an If" in told[2]


def test_what_others_read_too_is_copied_not_changed() -> None:
    model = build(
        "g (float[N,4,4,4] x) => (float[N,8,4,4] y, float[8] z) { a = Conv(x, A, b) c = Conv(a, C, b) y = Identity(c)"
        " z = Neg(b) }",
        A=whole(8, 4, 1, 1),
        b=whole(8),
        C=whole(8, 8, 1, 1),
    )
    graph, _ = check(model)
    assert {graph.shape(n.inputs[2]) for n in graph.nodes("Conv")} == {(4,), (8,)}


# ---- random networks


class Network:
    """A random network of whole numbers."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.tensors = [("x", 4)]

    def name(self) -> str:
        return f"t{len(self.lines)}"

    def constant(self, *shape: int) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = whole(*shape, seed=len(self.constants))
        return name

    def add(self, text: str, channels: int) -> None:
        self.lines.append(f"{self.name()} = {text}")
        self.tensors.append((f"t{len(self.lines) - 1}", channels))

    def step(self) -> None:
        tensor, channels = self.draw(st.sampled_from(self.tensors))
        same = [t for t, c in self.tensors if c == channels]
        match self.draw(
            st.sampled_from(["conv", "conv", "conv", "add", "concat", "depthwise", "grouped", "relu", "mul", "pool"])
        ):
            case "conv":
                out = self.draw(st.sampled_from([2, 4, 6, 8]))
                self.add(f"Conv({tensor}, {self.constant(out, channels, 1, 1)}, {self.constant(out)})", out)
            case "add":
                self.add(f"Add({tensor}, {self.draw(st.sampled_from(same))})", channels)
            case "concat":
                other, more = self.draw(st.sampled_from(self.tensors))
                self.add(f"Concat <axis=1> ({tensor}, {other})", channels + more)
            case "depthwise":
                self.add(f"Conv <group={channels}> ({tensor}, {self.constant(channels, 1, 1, 1)})", channels)
            case "grouped" if channels % 2 == 0:
                self.add(f"Conv <group=2> ({tensor}, {self.constant(4, channels // 2, 1, 1)})", 4)
            case "mul":
                self.add(f"Mul({tensor}, {self.constant(channels, 1, 1)})", channels)
            case "pool":
                self.add(f"MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> ({tensor})", channels)
            case _:
                self.add(f"Relu({tensor})", channels)

    def model(self) -> onnx.ModelProto:
        last, channels = self.tensors[-1]
        self.lines.append(f"y = Conv({last}, {self.constant(2, channels, 1, 1)})")
        text = "g (float[N,4,3,3] x) => (float[N,2,3,3] y) { " + " ".join(self.lines) + " }"
        return build(text, **self.constants)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), steps=st.integers(2, 9), ratio=st.sampled_from([0.25, 0.5, 0.7]))
def test_random_networks_are_what_they_were_with_the_channels_masked(data: Any, steps: int, ratio: float) -> None:
    network = Network(data.draw)
    for _ in range(steps):
        network.step()
    check(network.model(), ratio, exact=False)
