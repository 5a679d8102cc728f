"""What every pass must do, whatever it is for.

A pass is found by looking through `onnxq.passes`; it takes part if it can be constructed without
arguments and runs without calibration data.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator

import numpy as np
import onnx
import pytest

import onnxq.passes
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassManager, PassReport
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.lift_constants import LiftConstants
from tests.graphs import apply, assert_same_function, build, context, normal, ops, positive

RTOL = 2e-5
"""Sums of at most 200 products in float32, rounded in another order: 200 * 1.2e-7."""


def passes_without_arguments() -> Iterator[Pass]:
    """One instance of each pass that needs no arguments and no statistics."""
    data_facts = {Fact.PLAN, Fact.STATS, Fact.PARAMS, Fact.QUANTIZED, Fact.PRUNED, Fact.MASKED}
    for info in pkgutil.iter_modules(onnxq.passes.__path__):
        module = importlib.import_module(f"onnxq.passes.{info.name}")
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if (
                typing.get_origin(kind)
                or not issubclass(kind, Pass)
                or inspect.isabstract(kind)
                or kind.__module__ != module.__name__
            ):
                continue
            parameters = inspect.signature(kind).parameters.values()
            needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
            if not needed and not (kind.requires | kind.provides) & data_facts:
                yield kind()


PASSES = list(passes_without_arguments())
every_pass = pytest.mark.parametrize("step", PASSES, ids=lambda p: p.name)
every_preserving_pass = pytest.mark.parametrize(
    "step", [p for p in PASSES if p.preserves_function], ids=lambda p: p.name
)

NORM = "BatchNormalization"
MODELS: dict[str, str] = {
    "x times x": "g (float[N,4] x) => (float[N,4] y) { a = MatMul(x, W44) y = Mul(a, a) }",
    "x times x of an input": "g (float[N,4] x) => (float[N,4] y) { y = Mul(x, x) }",
    "the same tensor as both operands": "g (float[4,4] x) => (float[4,4] y) { a = Relu(x) y = MatMul(a, a) }",
    "intermediate outputs": f"""g (float[N,3,6,6] x) => (float[N,4,6,6] c, float[N,4,6,6] y, float[N,4,6,6] r) {{
        c = Conv(x, K) y = {NORM} (c, bs, bb, bm, bv) r = Relu(y) }}""",
    "an output twice removed": f"""g (float[N,3,6,6] x) => (float[N,4,6,6] y) {{
        c = Conv(x, K) n = {NORM} (c, bs, bb, bm, bv) i = Identity(n) y = Identity(i) }}""",
    "shared weights": f"""g (float[N,4,6,6] x) => (float[N,4,6,6] y) {{
        a = Conv(x, Q) n = {NORM} (a, bs, bb, bm, bv) r = Relu(n) y = Conv(r, Q) }}""",
    "a weight shared by different operators": """g (float[N,4] x) => (float[N,4] y) {
        t = Transpose(W44) a = MatMul(x, t) r = Relu(a) g = Gemm(r, W44) y = Add(g, W4) }""",
    "a shared bias": """g (float[N,4,6,6] x) => (float[N,4,6,6] y) {
        a = Conv(x, Q, W4) r = Relu(a) y = Conv(r, Q, W4) }""",
    "an If that captures": f"""g (float[N,3,6,6] x, bool p) => (float[N,4,6,6] y) {{
        c = Conv(x, K) n = {NORM} (c, bs, bb, bm, bv) t = Transpose(W44)
        y = If (p) <then_branch = t1 () => (float[N,4,6,6] ty) {{ tr = Relu(n) ty = Mul(tr, s4) }},
                    else_branch = e1 () => (float[N,4,6,6] ey) {{ ey = Add(c, n) }}> }}""",
    "a Loop with a layer inside": """g (float[4,4] x, int64 n) => (float[4,4] y) {
        y = Loop (n, , x) <body = l (int64 i, bool c, float[4,4] s_in) => (bool c_out, float[4,4] s_out) {
            c_out = Identity(c) a = MatMul(s_in, W44) s_out = Relu(a) }> }""",
    "constant nodes": """g (float[N,4] x) => (float[N,4] y) {
        k = Constant <value_float=0.5> () a = Mul(x, k) y = MatMul(a, W44) }""",
    "constants behind views": """g (float[N,4] x) => (float[N,16] y) {
        i = Identity(W44) c = Cast <to=1> (H) t = Transpose(i)
        a = MatMul(x, t) b = MatMul(a, c) y = Concat <axis=1> (a, b) }""",
    "an empty optional input": "g (float[N,4] x) => (float[N,4] y) { y = Clip(x, , W0) }",
    "an unused output": "g (float[N,4] x) => (float[N,2] y) { y, i = TopK(x, two) }",
    "a constant output": "g (float[N,4] x) => (float[N,4] y, float[4,4] t) { y = Relu(x) t = Transpose(W44) }",
    "a depthwise block": """g (float[N,4,6,6] x) => (float[N,4,6,6] y) {
        a = Conv(x, Q, W4) r = Relu(a) d = Conv <group=4, pads=[1,1,1,1]> (r, D) s = Relu(d) y = Conv(s, Q) }""",
}
CONSTANTS = {
    "W0": np.float32(0.5),
    "W4": normal(4),
    "W44": normal(4, 4),
    "H": normal(4, 12).astype(np.float16),
    "K": normal(4, 3, 1, 1),
    "Q": normal(4, 4, 1, 1) * np.float32([[[[0.1]]], [[[1]]], [[[10]]], [[[3]]]]),
    "D": normal(4, 1, 3, 3),
    "s4": normal(4, 1, 1),
    "bs": normal(4, seed=1) + 2,
    "bb": normal(4, seed=2),
    "bm": normal(4, seed=3),
    "bv": positive(4, seed=4),
    "two": np.int64([2]),
}
every_model = pytest.mark.parametrize("model", MODELS)


def made(name: str) -> onnx.ModelProto:
    """The model called `name`, with the constants its text names."""
    words = "".join(c if c.isalnum() or c == "_" else " " for c in MODELS[name]).split()
    return build(MODELS[name], **{k: v for k, v in CONSTANTS.items() if k in words})


def prepared(proto: onnx.ModelProto, step: Pass) -> GraphModel:
    """The graph with all that `step` may require."""
    graph = GraphModel.from_proto(proto)
    before = [AssignNames(), LiftConstants(), InferShapes()]
    if Fact.BN_FUSED in step.requires:
        from onnxq.passes.fuse_batchnorm import FuseBatchNorm

        before.append(FuseBatchNorm())
    apply(graph, *before)
    return graph


def bytes_of(graph: GraphModel) -> bytes:
    return graph.to_proto().SerializeToString(deterministic=True)


def test_passes_are_found() -> None:
    found = {p.name for p in PASSES}
    assert {"AssignNames", "LiftConstants", "InferShapes", "FoldConstants", "FuseBatchNorm", "EqualizeLayers"} <= found


@every_model
@every_pass
def test_a_second_run_changes_nothing(step: Pass, model: str) -> None:
    graph = prepared(made(model), step)
    apply(graph, step)
    before = bytes_of(graph)
    report = apply(graph, step)
    assert report.changed == 0
    assert bytes_of(graph) == before


@every_model
@every_pass
def test_the_count_is_zero_exactly_if_the_bytes_are_the_same(step: Pass, model: str) -> None:
    graph = prepared(made(model), step)
    before = bytes_of(graph)
    report = apply(graph, step)
    assert (report.changed == 0) == (bytes_of(graph) == before)


@every_pass
def test_a_model_without_any_match_keeps_its_bytes(step: Pass) -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { [only] y = Softplus(x) }"
    graph = prepared(build(text), step)
    before = bytes_of(graph)
    report = apply(graph, step)
    assert report.changed == 0
    assert report.skipped == ()
    assert bytes_of(graph) == before


@every_model
@every_preserving_pass
def test_the_function_is_preserved(step: Pass, model: str) -> None:
    proto = made(model)
    graph = prepared(proto, step)
    apply(graph, step)
    assert_same_function(proto, graph, rtol=RTOL)


@every_model
@every_pass
def test_names_and_types_of_inputs_and_outputs_stay(step: Pass, model: str) -> None:
    graph = prepared(made(model), step)
    before = graph.to_proto().graph
    apply(graph, step)
    after = graph.to_proto().graph
    assert list(after.input) == list(before.input)
    assert [o.name for o in after.output] == [o.name for o in before.output]
    assert [o.type.tensor_type.elem_type for o in after.output] == [o.type.tensor_type.elem_type for o in before.output]


@every_model
@every_pass
def test_two_runs_from_the_start_give_the_same_bytes(step: Pass, model: str) -> None:
    first, second = prepared(made(model), step), prepared(made(model), step)
    apply(first, step)
    apply(second, step)
    assert bytes_of(first) == bytes_of(second)


@every_model
@every_pass
def test_skips_name_a_node_and_give_a_reason(step: Pass, model: str) -> None:
    graph = prepared(made(model), step)
    names = {n.name for n in graph.nodes()}
    report = apply(graph, step)
    for skip in report.skipped:
        assert skip.node in names
        assert len(skip.reason) > 10


@every_pass
def test_configuration_is_all_a_pass_holds(step: Pass) -> None:
    """A pass that kept something of a run would treat the next model differently."""
    before = dict(vars(step))
    apply(prepared(made("shared weights"), step), step)
    assert dict(vars(step)) == before


@every_pass
def test_metadata_is_kept(step: Pass) -> None:
    proto = made("shared weights")
    proto.metadata_props.add(key="author", value="me")
    graph = prepared(proto, step)
    apply(graph, step)
    assert graph.to_proto().metadata_props[0].value == "me"


@every_pass
def test_each_pass_says_what_it_is(step: Pass) -> None:
    doc = inspect.getdoc(type(step)) or ""
    assert doc.endswith(".") or "\n" in doc
    assert doc.split("\n")[0].endswith(".")
    assert not step.provides & step.invalidates


def test_all_function_preserving_passes_together() -> None:
    """In the order of the default pipeline, on every model."""
    steps = [p for p in PASSES if p.preserves_function]
    order = ["AssignNames", "LiftConstants", "FoldConstants", "InferShapes", "FuseBatchNorm", "EqualizeLayers"]
    known = {p.name: p for p in steps}
    manager = PassManager([known[name] for name in order])
    for name in MODELS:
        proto = made(name)
        graph = GraphModel.from_proto(proto)
        report = manager.run(graph, context())
        assert isinstance(report, PassReport)
        assert_same_function(proto, graph, rtol=RTOL)


@every_pass
def test_a_graph_that_only_hands_its_input_through(step: Pass) -> None:
    graph = prepared(build("g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }"), step)
    assert apply(graph, step).changed == 0
    assert ops(graph) == ["Identity"]
