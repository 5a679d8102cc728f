"""What is rewritten for training and what is refused; gradients are compared in tests/qat."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.errors import GraphError
from onnxq.graph import GraphModel
from onnxq.passes._legal_opset import lower_opset
from onnxq.passes._legal_paths import find_paths, reached
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.legalize_for_training import LegalizeForTraining
from tests.graphs import apply, assert_same_function, build, context, normal, ops, positive, run

F32 = np.float32


def legalized(model: onnx.ModelProto, *trained: str, outputs: tuple[str, ...] = (), ctx: Any = None) -> GraphModel:
    graph = GraphModel.from_proto(model)
    apply(graph, AssignNames(), InferShapes(), LegalizeForTraining(trained, outputs), ctx=ctx or context())
    return graph


def refusal(model: onnx.ModelProto, *trained: str) -> str:
    with pytest.raises(GraphError) as caught:
        legalized(model, *trained)
    return str(caught.value)


# ---- where gradients flow


def paths_of(model: onnx.ModelProto, *trained: str, outputs: tuple[str, ...] = ()) -> list[str]:
    graph = GraphModel.from_proto(model)
    apply(graph, AssignNames(), InferShapes())
    return [n.op for n in find_paths(graph, trained, outputs).nodes]


def test_only_nodes_between_parameters_and_outputs_count() -> None:
    model = build(
        "g (float[N,4] x) => (float[N,5] y, float[N,4] z) { "
        "z = HardSwish(x) a = MatMul(x, w) s = Shape(a) b = Sigmoid(a) y = Reshape(b, s) q = Elu(a) }",
        w=normal(4, 5),
    )
    assert paths_of(model, "w") == ["MatMul", "Sigmoid", "Reshape"]
    assert paths_of(model, "x") == ["HardSwish", "MatMul", "Sigmoid", "Reshape"]
    assert paths_of(model, "x", outputs=("z",)) == ["HardSwish"]
    assert paths_of(model) == []


def test_nothing_passes_comparisons_indexes_and_sequences() -> None:
    model = build(
        "g (float[3] x) => (float[3] y) { a = Mul(x, w) c = Greater(a, x) i = ArgMax<axis=0>(a) t = Round(a) "
        "s = SequenceConstruct(t) h = SequenceAt(s, zero) g = Gather(x, i) k = Where(c, x, h) y = Add(k, g) }",
        w=normal(3), zero=np.int64(0).reshape(()),
    )  # fmt: skip
    assert paths_of(model, "w") == []


def test_parameters_of_other_outputs_are_not_reached() -> None:
    model = build(
        "g (float[3] x) => (float[3] y, float[3] z) { y = Mul(x, v) z = Mul(y, w) }", v=normal(3), w=normal(3)
    )
    graph = GraphModel.from_proto(model)
    assert reached(graph, ("w", "v"), ("y",)) == ("v",)
    assert reached(graph, ("w", "v")) == ("w", "v")


# ---- rewriting


def test_what_needs_no_gradient_stays() -> None:
    model = build(
        "g (float[1,3,8,8] x) => (float[a,b,c,d] y) { "
        "p = HardSwish(x) s = Resize<mode=\"cubic\">(p, , k) y = Conv(s, w) }",
        k=F32([1, 1, 0.5, 0.5]), w=normal(2, 3, 1, 1),
    )  # fmt: skip
    assert ops(legalized(model, "w")) == ["HardSwish", "Resize", "Conv"]
    assert "HardSwish" not in ops(legalized(model, "x"))


def test_names_of_outputs_and_parameters_stay() -> None:
    model = build(
        "g (float[2,3,4,4] x) => (float[2,3,4,4] y, float[2,3,4,4] z) { "
        "y = PRelu(x, slope) z = InstanceNormalization(y, w, b) }",
        slope=positive(3, 1, 1), w=positive(3), b=normal(3),
    )  # fmt: skip
    graph = legalized(model, "slope", "w", "b")
    assert_same_function(model, graph, rtol=2e-6)
    assert {"slope", "w", "b"} <= {t.name for t in graph.constants()}
    assert not {"PRelu", "InstanceNormalization"} & set(ops(graph))


def test_a_legal_graph_is_not_changed() -> None:
    model = build("g (float[2,3] x) => (float[2,4] y) { a = Gemm(x, w, b) y = Relu(a) }", w=normal(3, 4), b=normal(4))
    graph = GraphModel.from_proto(model)
    apply(graph, AssignNames(), InferShapes())
    before = graph.to_proto().SerializeToString()
    assert apply(graph, LegalizeForTraining(("w", "b"))).changed == 0
    assert graph.to_proto().SerializeToString() == before
    again = legalized(build("g (float[3] x) => (float[3] y) { y = Selu(x) }"), "x")
    assert apply(again, LegalizeForTraining(("x",))).changed == 0


def test_rounding_by_the_model_has_a_gradient_of_0_and_its_values() -> None:
    model = build("g (float[5] x) => (float[5] y) { f = Floor(x) y = Mul(f, w) }", w=normal(5))
    graph = legalized(model, "x", "w")
    assert "SequenceAt" in ops(graph)
    assert_same_function(model, graph, rtol=0)


def test_extreme_values_of_activations() -> None:
    x = F32([-200, -90, -20, -1e-6, 0, 1e-6, 20, 90, 200])
    for op in ("Softplus", "Elu", "Selu", "Celu", "Mish", "Softsign", "HardSwish", "HardSigmoid"):
        model = build(f"g (float[9] x) => (float[9] y) {{ y = {op}(x) }}", opset=18)
        expected, found = run(model, {"x": x})["y"], run(legalized(model, "x"), {"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6, err_msg=op)


def test_old_operator_sets_are_converted() -> None:
    model = build(
        "g (float[2,3,4] x) => (float[2,3,4] y) { s = Softmax<axis=1>(x) y = Mul(s, w) }", opset=11, w=normal(4)
    )
    graph = legalized(model, "x", "w")
    assert graph.opset >= 13
    assert_same_function(model, graph, rtol=1e-6)


def test_opset_that_only_adds_types_is_lowered() -> None:
    model = build("g (float[2,3] x) => (float[2,3] y) { y = HardSwish(x) }", opset=22)
    model.opset_import[0].version = 23
    assert lower_opset(model, 21) == ()
    assert model.opset_import[0].version == 21
    newer = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("RMSNormalization", ["x", "w"], ["y"], name="norm")], "g", [], []
        ),
        opset_imports=[onnx.helper.make_opsetid("", 23)],
    )
    assert lower_opset(newer, 21) == ("norm (RMSNormalization)",)
    assert newer.opset_import[0].version == 23


# ---- batch normalization


def normalized() -> onnx.ModelProto:
    return build(
        "g (float[N,3,4,4] x) => (float[N,3,4,4] y) { "
        "y = BatchNormalization<epsilon=0.01,momentum=0.8>(x, w, b, m, v) }",
        opset=13, w=positive(3), b=normal(3), m=normal(3, seed=1), v=positive(3, seed=2),
    )  # fmt: skip


def recipe(batchnorm: str) -> Any:
    return context(recipe=SimpleNamespace(training=SimpleNamespace(batchnorm=batchnorm)))


def test_batch_normalization_becomes_arithmetic_of_its_parameters() -> None:
    ctx = recipe("fold")
    graph = legalized(normalized(), "w", "b", ctx=ctx)
    assert "BatchNormalization" not in ops(graph)
    assert ctx.frozen == ()
    assert_same_function(normalized(), graph, rtol=1e-6)


def test_batch_normalization_learns_its_statistics() -> None:
    ctx = recipe("train")
    graph = legalized(normalized(), "w", "b", ctx=ctx)
    (node,) = graph.nodes("BatchNormalization")
    assert ctx.frozen == ("m", "v")
    assert node.attrs["training_mode"] == 1
    assert node.attrs["momentum"] == pytest.approx(0.8)
    assert node.outputs[0].name == "y"
    assert len(node.outputs) == 3
    assert graph.opset >= 14
    x = normal(5, 3, 4, 4)
    spread = x.var(axis=(0, 2, 3), keepdims=True) + 0.01
    expected = (x - x.mean(axis=(0, 2, 3), keepdims=True)) / np.sqrt(spread)
    expected = expected * positive(3).reshape(3, 1, 1) + normal(3).reshape(3, 1, 1)
    np.testing.assert_allclose(run(graph, {"x": x})["y"], expected, rtol=1e-3, atol=1e-5)


def test_shared_statistics_are_refused() -> None:
    model = build(
        "g (float[N,3] x) => (float[N,3] y) { "
        "a = BatchNormalization(x, w, b, m, v) y = BatchNormalization(a, w, b, m, v) }",
        w=positive(3), b=normal(3), m=normal(3), v=positive(3),
    )  # fmt: skip
    with pytest.raises(GraphError, match=r"running statistics 'm'.*set training.batchnorm: fold"):
        legalized(model, "w", "b", ctx=recipe("train"))


# ---- refusals: the node, the reason, what to do

REFUSED = {
    "no gradient": (
        "y = Atan(x)", {}, ["node 'atan_0' (Atan)", "no verified gradient", "training.freeze"]),
    "exponent": ("y = Pow(x, w)", {"w": normal(3)}, ["(Pow)", "its exponent is trained", "training.freeze"]),
    "scatter": (
        'y = ScatterND<reduction="add">(x, i, u)', {"i": np.int64([[0]]), "u": normal(1)}, ["reduction 'add'"]),
    "mask": ("y, m = Dropout(x) c = Cast<to=1>(m) z = Add(y, c)", {}, ["(Dropout)", "its mask is used"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    body, constants, words = REFUSED[name]
    out = "z" if "z =" in body else "y"
    told = refusal(build(f"g (float[3] x) => (float[3] {out}) {{ {body} }}", **constants), "x", *constants)
    assert told.startswith("1 nodes cannot be trained through")
    assert all(word in told for word in words), told


IMAGES = {
    "same pads": ('y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w)', {"w": normal(4, 4, 3, 3)}, "length of axis 2"),
    "linear": ('y = Resize<mode="linear">(x, , s)', {"s": F32([1, 1, 2, 2])}, "how it is resized"),
    "nearest": ("y = Resize(x, , s)", {"s": F32([1, 1, 1.5, 1])}, "give the model's inputs fixed sizes"),
    "crop": ('y = Resize<mode="linear",coordinate_transformation_mode="tf_crop_and_resize">(x, r, s)',
             {"r": np.zeros(8, F32), "s": F32([1, 1, 2, 2])}, "it crops"),
    "product": ("y = ReduceProd<axes=[2]>(x)", {}, "a product depends on the length of axis 2"),
    "average": ("y = AveragePool<kernel_shape=[2,2],dilations=[2,2],pads=[1,1,1,1]>(x)", {}, "wrong with dilations"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_refused_for_images_of_any_size(name: str) -> None:
    body, constants, words = IMAGES[name]
    model = build(f"g (float[N,4,H,W] x) => (float[a,b,c,d] y) {{ {body} }}", opset=17 if name != "average" else 19,
                  **constants)  # fmt: skip
    assert words in refusal(model, "x")


LAYERS = {
    "lengths": ("y = LSTM<hidden_size=3>(x, w, r, , l)", {"l": np.int32([2, 3])}, "lengths of its sequences"),
    "activations": ('y = LSTM<hidden_size=3,activations=["Relu","Tanh","Tanh"]>(x, w, r)', {}, "its activations are"),
    "clip": ("y = LSTM<hidden_size=3,clip=1.0>(x, w, r)", {}, "it clips its gates"),
    "backwards": ('y = LSTM<hidden_size=3,direction="reverse">(x, w, r)', {}, "reading backwards depends on"),
    "peepholes": ("y = LSTM<hidden_size=3>(x, w, r, , , , , p)", {"p": normal(1, 9)}, "peepholes"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_refused_recurrent_layers(name: str) -> None:
    body, constants, words = LAYERS[name]
    weights = {"w": normal(1, 12, 2), "r": normal(1, 12, 3)}
    assert words in refusal(
        build(f"g (float[T,2,2] x) => (float[T,1,2,3] y) {{ {body} }}", **weights, **constants), "w"
    )


def test_bodies_are_refused_by_name() -> None:
    model = build(
        "g (float[3] x, bool c) => (float[3] y) { a = Mul(x, w) "
        "y = If (c) <then_branch = t () => (float[3] p) { p = Abs(a) }, "
        "else_branch = e () => (float[3] q) { q = Neg(a) }> }",
        w=normal(3),
    )  # fmt: skip
    told = refusal(model, "w")
    assert "(If): gradients cannot enter its body" in told
    assert "Mul" not in told


def test_all_that_is_refused_is_counted() -> None:
    body = " ".join(f"x{i + 1} = Atan(x{i})" for i in range(7))
    told = refusal(build(f"g (float[3] x0) => (float[3] x7) {{ {body} }}"), "x0")
    assert told.startswith("7 nodes")
    assert told.endswith("and 2 more")
