"""CorrectBias: with rounded weights and new biases every layer has the float mean, at the cost of a few runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq.calib.segments as segments
from onnxq.algos.affine import fake_quantize
from onnxq.graph import GraphModel
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.correct_bias import CorrectBias
from onnxq.runtime import Session
from tests.graphs import apply, build, normal, ops, reasons, run
from tests.passes.ptq import planned

MINMAX = {"activations": {"method": "minmax"}}


def biased(*shape: int, seed: int = 0) -> Any:
    """Weights that are all rounded down: each is a whole code plus 0.4, except one per output that sets the scale."""
    rng = np.random.default_rng([seed, *shape])
    w = rng.integers(-20, 21, shape) + 0.4
    w.reshape(shape[0], -1)[:, 0] = 127
    return (w / 127).astype(np.float32)


TWO = """g (float[N,3,6,6] x) => (float[N,4] y) {
    [c1] a = Conv (x, W1, B1)
    r = Relu (a)
    [c2] b = Conv (r, W2)
    s = Relu (b)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    [fc] y = Gemm <transB=1> (f, W3) }"""


def two() -> onnx.ModelProto:
    return build(TWO, W1=biased(5, 3, 3, 3), B1=normal(5), W2=biased(6, 5, 3, 3), W3=biased(4, 6))


def positive_data(count: int = 24) -> Any:
    return np.abs(normal(count, 3, 6, 6))


def prepared(model: onnx.ModelProto, x: Any, *, threads: int = 1, **recipe: Any) -> Any:
    graph, ctx = planned(model, data={"x": x}, recipe={**MINMAX, **recipe}, threads=threads)
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    return graph, ctx


def corrected(model: onnx.ModelProto, x: Any, *, samples: int = 64, threads: int = 1, **recipe: Any) -> Any:
    graph, ctx = prepared(model, x, threads=threads, **recipe)
    report = apply(graph, CorrectBias(samples), ctx=ctx)
    return graph, ctx, report


def rounded(graph: GraphModel, ctx: Any) -> onnx.ModelProto:
    """The model with weights as their codes say, everything else float."""
    proto = graph.to_proto()
    tensors = {t.name: t for t in proto.graph.initializer}
    for weight in ctx.plan.weights:
        value = fake_quantize(np.asarray(onnx.numpy_helper.to_array(tensors[weight.tensor])), ctx.params[weight.key])
        tensors[weight.tensor].CopyFrom(onnx.numpy_helper.from_array(value, weight.tensor))
    return proto


def means(model: onnx.ModelProto, x: Any, names: list[str]) -> dict[str, Any]:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    found = run(wide, {"x": x})
    return {n: v.mean(axis=tuple(i for i in range(v.ndim) if i != 1), dtype=np.float64) for n, v in found.items()}


def shift(model: onnx.ModelProto, other: onnx.ModelProto, x: Any, names: list[str]) -> dict[str, float]:
    """Largest difference of a channel's mean, over the largest mean."""
    a, b = means(model, x, names), means(other, x, names)
    return {n: float(np.abs(a[n] - b[n]).max() / np.abs(a[n]).max()) for n in names}


# ---- what it does ------------------------------------------------------------------------------


def test_every_layer_has_the_mean_of_the_float_layer() -> None:
    model, x = two(), positive_data()
    before = rounded(*prepared(model, x))
    graph, ctx, report = corrected(model, x)
    layers = ["a", "b", "y"]
    lost, left = shift(model, before, x, layers), shift(model, rounded(graph, ctx), x, layers)
    assert report.changed == 3
    assert min(lost.values()) > 1e-3
    assert max(left.values()) < 1e-5
    for layer in layers:
        assert left[layer] < 0.01 * lost[layer]


def test_a_layer_is_corrected_against_corrected_predecessors() -> None:
    """Each layer against its uncorrected predecessors would take the same shift out again and again."""
    model, x = two(), positive_data()
    graph, ctx = prepared(model, x)
    alone = rounded(graph, ctx)
    layers = ["a", "b", "y"]
    expected, found = means(model, x, layers), means(alone, x, layers)
    independent = onnx.ModelProto()
    independent.CopyFrom(alone)
    by_output = {n.output[0]: n for n in independent.graph.node}
    tensors = {t.name: t for t in independent.graph.initializer}
    for layer in layers:
        node, delta = by_output[layer], (expected[layer] - found[layer]).astype(np.float32)
        if len(node.input) == 3:
            delta = delta + onnx.numpy_helper.to_array(tensors[node.input[2]])
        del node.input[2:]
        node.input.append(f"{layer}_b")
        independent.graph.initializer.append(onnx.numpy_helper.from_array(delta, f"{layer}_b"))
    wrong = shift(model, independent, x, layers)
    apply(graph, CorrectBias(), ctx=ctx)
    right = shift(model, rounded(graph, ctx), x, layers)
    assert wrong["a"] < 1e-5
    assert wrong["y"] > 1e-3
    assert right["y"] < 0.01 * wrong["y"]


def test_layers_without_a_bias_get_one_and_the_others_a_new_one() -> None:
    graph, _, report = corrected(two(), positive_data())
    names = {n.name: [t.name for t in n.inputs] for n in graph.nodes() if n.name in ("c1", "c2", "fc")}
    assert names == {
        "c1": ["x", "W1", "B1_corrected"],
        "c2": ["r", "W2", "c2_bias"],
        "fc": ["f", "W3", "fc_bias"],
    }
    assert report.skipped == ()
    assert graph.value(graph.tensor("c2_bias")).shape == (6,)
    assert graph.value(graph.tensor("c2_bias")).dtype == np.float32


def test_weights_and_structure_stay() -> None:
    model = two()
    graph, _, _ = corrected(model, positive_data())
    assert ops(graph) == ops(model)
    for name in ("W1", "W2", "W3"):
        before = next(t for t in model.graph.initializer if t.name == name)
        np.testing.assert_array_equal(graph.value(graph.tensor(name)), onnx.numpy_helper.to_array(before))


def test_a_bias_that_two_layers_share_becomes_two() -> None:
    model = build(
        """g (float[N,3,6,6] x) => (float[N,5,4,4] y, float[N,5,4,4] z) {
            [c1] y = Conv (x, W1, B) [c2] z = Conv (x, W2, B) }""",
        W1=biased(5, 3, 3, 3), W2=-biased(5, 3, 3, 3, seed=1), B=normal(5),
    )  # fmt: skip
    x = positive_data()
    graph, ctx, _ = corrected(model, x)
    assert graph.node("c1").inputs[2] is not graph.node("c2").inputs[2]
    assert max(shift(model, rounded(graph, ctx), x, ["y", "z"]).values()) < 1e-5


def test_a_weight_that_is_rounded_in_two_ways_and_read_by_a_float_layer_too() -> None:
    model = build(
        """g (float[N,3,6,6] x) => (float[N,3,6,6] y) {
            [c1] a = Conv <pads=[1,1,1,1]> (x, W)
            [float] f = Conv <pads=[1,1,1,1]> (a, W)
            [c2] y = Conv <pads=[1,1,1,1]> (f, W) }""",
        W=biased(3, 3, 3, 3),
    )  # fmt: skip
    x = positive_data()
    rules = [{"match": {"node": "c2"}, "weights": {"bits": 4}}]
    graph, ctx, report = corrected(model, x, rules=rules, skip=["float"])
    assert report.changed == 2
    assert [w.key for w in ctx.plan.weights] == ["W", "W#2"]
    proto = graph.to_proto()
    value = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "W"))
    for node, key in (("c1", "W"), ("c2", "W#2")):
        next(n for n in proto.graph.node if n.name == node).input[1] = key + "_rounded"
        rounded_value = fake_quantize(value, ctx.params[key])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rounded_value, key + "_rounded"))
    assert max(shift(model, proto, x, ["a", "y"]).values()) < 1e-5


def test_skip_connections() -> None:
    model = build(
        """g (float[N,3,6,6] x) => (float[N,3,6,6] y) {
            [c1] a = Conv <pads=[1,1,1,1]> (x, W1)
            [c2] b = Conv <pads=[1,1,1,1]> (a, W2)
            s = Add (b, a)
            [c3] c = Conv <pads=[1,1,1,1]> (s, W3)
            y = Add (c, x) }""",
        W1=biased(3, 3, 3, 3), W2=biased(3, 3, 3, 3, seed=1), W3=biased(3, 3, 3, 3, seed=2),
    )  # fmt: skip
    x = positive_data()
    graph, ctx, report = corrected(model, x)
    assert report.changed == 3
    assert max(shift(model, rounded(graph, ctx), x, ["a", "b", "c", "y"]).values()) < 1e-5


def test_matmul_has_no_bias() -> None:
    model = build(
        """g (float[N,6] x) => (float[N,4] y) { [fc1] a = MatMul (x, W1) r = Relu (a) [fc2] y = Gemm (r, W2) }""",
        W1=biased(6, 5), W2=biased(5, 4),
    )  # fmt: skip
    graph, _, report = corrected(model, np.abs(normal(16, 6)))
    assert report.changed == 1
    assert reasons(report) == {"fc1": "MatMul has no bias that could be corrected"}
    assert ops(graph) == ops(model)


def test_nothing_to_correct() -> None:
    model = build("g (float[N,6] x) => (float[N,5] y) { [fc] y = MatMul (x, W) }", W=biased(6, 5))
    graph, ctx = prepared(model, np.abs(normal(4, 6)))
    before = graph.to_proto().SerializeToString()
    report = apply(graph, CorrectBias(), ctx=ctx)
    assert (report.changed, set(reasons(report))) == (0, {"fc"})
    assert graph.to_proto().SerializeToString() == before


def test_without_data_nothing_is_done() -> None:
    graph, ctx = prepared(two(), positive_data(4))
    ctx.reader = None
    before = graph.to_proto().SerializeToString()
    assert apply(graph, CorrectBias(), ctx=ctx).changed == 0
    assert graph.to_proto().SerializeToString() == before


def test_layers_that_stay_float_are_left_alone() -> None:
    graph, _, report = corrected(two(), positive_data(), skip=["c2"])
    assert report.changed == 2
    assert len(graph.node("c2").inputs) == 2


# ---- cost --------------------------------------------------------------------------------------


def deep(layers: int) -> onnx.ModelProto:
    lines = [f"[c{i}] t{i + 1} = Conv <pads=[1,1,1,1]> (t{i}, W{i})" for i in range(layers)]
    text = "\n".join(lines).replace("(t0", "(x").replace(f" t{layers} =", " y =")
    return build(
        f"g (float[N,3,6,6] x) => (float[N,3,6,6] y) {{ {text} }}",
        **{f"W{i}": biased(3, 3, 3, 3, seed=i) / 2 for i in range(layers)},
    )


def test_every_node_runs_a_few_times_however_many_layers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, ctx = prepared(deep(12), positive_data(32))
    pieces: Counter[str] = Counter()  # samples by node
    whole: list[int] = []
    make, real_run = segments.piece_session, Session.run
    of_pieces: dict[int, list[str]] = {}
    kept: list[Any] = []

    def piece(model: Any, nodes: Any, *rest: Any) -> Any:
        session = make(model, nodes, *rest)
        kept.append(session)
        of_pieces[id(session)] = [n.name for n in nodes]
        return session

    def counted(self: Any, names: Any, feed: Any) -> Any:
        rows = len(next(iter(feed.values())))
        if id(self) in of_pieces:
            pieces.update(dict.fromkeys(of_pieces[id(self)], rows))
        else:
            whole.append(rows)
        return real_run(self, names, feed)

    monkeypatch.setattr(segments, "piece_session", piece)
    monkeypatch.setattr(Session, "run", counted)
    apply(graph, CorrectBias(32), ctx=ctx)
    assert dict(pieces) == {f"c{i}": 32 for i in range(12)}
    assert sum(whole) <= 33


def test_the_memory_budget_limits_the_samples() -> None:
    model = build(
        "g (float[N,1,256,256] x) => (float[N,1,32,32] y) { [c] a = Conv (x, W) [d] y = Conv <strides=[8,8]> (a, V) }",
        W=np.ones((8, 1, 1, 1), np.float32), V=np.ones((1, 8, 1, 1), np.float32),
    )  # fmt: skip
    x = np.abs(normal(8, 1, 256, 256))

    def used(budget: int) -> int:
        _, _, report = corrected(model, x, calibration={"memory_budget_mb": budget})
        return int(report.notes[0].split(" over ")[1].split()[0])

    # the largest tensor takes 2 MB for each sample, and a few of them may be alive
    assert 1 <= used(16) <= 4
    assert used(1024) == 8


@pytest.mark.parametrize("samples", [4, 10])
def test_the_means_are_taken_over_as_many_samples_as_asked_for(samples: int) -> None:
    x = positive_data(32)
    x[samples:] = 100
    model = two()
    graph, ctx, _ = corrected(model, x, samples=samples)
    first = shift(model, rounded(graph, ctx), x[:samples], ["a", "b"])
    assert max(first.values()) < 1e-5


@pytest.mark.parametrize("threads", [2, 3])
def test_the_same_bits_for_any_threads_and_batches(threads: int) -> None:
    x = positive_data(20)
    expected = corrected(two(), x)[0].to_proto().SerializeToString()
    graph, ctx = planned(
        two(), data=[{"x": x[i : i + 3]} for i in range(0, 20, 3)], recipe=MINMAX, threads=threads
    )  # fmt: skip
    apply(graph, Calibrate(), ChooseParams(), CorrectBias(64), ctx=ctx)
    assert graph.to_proto().SerializeToString() == expected


def test_progress_is_told() -> None:
    graph, ctx = prepared(two(), positive_data(4))
    told: list[tuple[str, int, int | None]] = []
    ctx.progress = lambda *values: told.append(values)
    apply(graph, CorrectBias(), ctx=ctx)
    assert told[-1][1] == told[-1][2] == 3


@pytest.mark.parametrize("batch", [1, 16, 24])
def test_a_batch_that_the_model_fixes(batch: int) -> None:
    model, x = two(), positive_data(48)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    graph, ctx, report = corrected(model, x, samples=10)
    assert report.changed == 3
    used = x[: max(10 // batch, 1) * batch]
    free = rounded(graph, ctx)
    for proto in (model, free):
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        del proto.graph.value_info[:]
    assert max(shift(model, free, used, ["a", "b"]).values()) < 1e-5
