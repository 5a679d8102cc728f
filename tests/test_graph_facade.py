"""The contract of the façade: one test for each fault of onnx-graphsurgeon 0.6 that it repairs.

The numbers are those of the audit of onnx-graphsurgeon that `GraphModel` was designed from.
"""

from __future__ import annotations

import gc
import importlib.metadata
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq._graph.weights import DataFile
from onnxq.errors import GraphError, OnnxqError
from onnxq.graph import GraphModel
from onnxq.modelio import load_model, save_model
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.lift_constants import LiftConstants
from onnxq.spec import QType
from tests.graphs import apply, assert_same_function, build, feeds_for, graph_of, normal, run

IF_BOTH_READ_W = """g (float[2,3] x, bool c) => (float[2,3] y) {
    a = Add(x, W)
    y = If(c) <then_branch = t () => (float[2,3] p) { p = Mul(a, W) },
               else_branch = e () => (float[2,3] q) { q = Sub(a, W) }> }"""


def same(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    """Whether two models are equal to the last byte."""
    return a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("qtype", "codes", "raw", "ir_version"),
    [
        (QType.INT4, [-8, 7, 1], b"\x78\x01", 10),
        (QType.UINT4, [15, 0, 8, 1], b"\x0f\x18", 10),
        (QType.INT2, [-2, 1, 0, -1, 1], b"\xc6\x01", 13),
        (QType.UINT2, [3, 0, 1, 2], b"\x93", 13),
    ],
)
def test_row_01_small_integers_are_packed(qtype: QType, codes: list[int], raw: bytes, ir_version: int) -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    constant = graph.add_constant("w", np.array(codes, np.int32), qtype=qtype)
    graph.add_node("Identity", [constant], name="reader")
    exported = graph.to_proto()
    (tensor,) = exported.graph.initializer
    assert (tensor.raw_data, list(tensor.dims)) == (raw, [len(codes)])
    assert tensor.data_type == getattr(TensorProto, qtype.name)
    assert exported.ir_version == ir_version
    again = GraphModel.from_proto(exported)
    assert again.value(again.tensor("w")).astype(int).tolist() == codes
    assert same(again.to_proto(), exported), "reading the numbers must not change what is exported"


def test_row_01_int4_runs_and_is_range_checked() -> None:
    model = build("g (float[3,4] x) => (float[3,5] y) { y = MatMul(x, W) }", opset=21, ir_version=10, W=normal(4, 5))
    graph = GraphModel.from_proto(model)
    codes = np.random.default_rng(0).integers(-8, 8, (4, 5))
    packed = graph.add_constant("W_q", codes, qtype=QType.INT4)
    scale = graph.add_constant("W_scale", np.float32(0.5))
    dequantize = graph.add_node("DequantizeLinear", [packed, scale], name="W_dq")
    graph.replace_uses(graph.tensor("W"), dequantize.outputs[0])
    x = feeds_for(model)["x"]
    assert np.allclose(run(graph, {"x": x})["y"], x @ (codes * 0.5), rtol=1e-5, atol=1e-5)
    with pytest.raises(GraphError, match=r"'w8'.*-8\.\.8 are outside int4's -8\.\.7"):
        graph.add_constant("w8", np.array([-8, 8]), qtype=QType.INT4)
    with pytest.raises(GraphError, match="must be integers"):
        graph.add_constant("wf", np.array([1.0]), qtype=QType.INT4)


def _with_everything() -> onnx.ModelProto:
    model = build("g (float[N,3] x) => (float[N,3] y) { a = Relu(x) b = Add(a, W) y = Neg(b) }", W=normal(3))
    model.domain, model.model_version, model.doc_string = "org.example", 7, "model doc"
    model.producer_name, model.producer_version = "exporter", "1.2"
    graph = model.graph
    graph.doc_string = "graph doc"
    graph.node[1].doc_string = "node doc"
    graph.initializer[0].doc_string = "weight doc"
    graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3], "value doc"))
    for holder in (model, graph, graph.node[1], graph.value_info[0], graph.input[0], graph.initializer[0]):
        holder.metadata_props.add(key="key", value="text")
    graph.input[0].type.denotation = "TENSOR"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.value_info[0].type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    note = graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="W")
    model.training_info.add().algorithm.name = "step"
    return model


def test_row_02_metadata_docs_and_denotations_survive_edits() -> None:
    model = _with_everything()
    graph = GraphModel.from_proto(model)
    assert same(graph.to_proto(), model)
    (last,) = graph.nodes("Neg")
    extra = graph.add_node("Identity", [last.inputs[0]], name="extra", dtype=np.float32, shape=("N", 3))
    graph.set_input(last, 0, extra.outputs[0])
    graph.metadata["new"] = "entry"
    exported = graph.to_proto()
    assert [n.op_type for n in exported.graph.node] == ["Relu", "Add", "Identity", "Neg"]
    del exported.graph.node[2]
    exported.graph.node[2].input[0] = "b"
    assert exported.graph.value_info.pop().name == "extra_output"
    assert exported.metadata_props.pop().key == "new"
    assert same(exported, model)


def test_row_02_a_changed_shape_keeps_the_denotations() -> None:
    graph = GraphModel.from_proto(_with_everything())
    graph.set_type(graph.tensor("a"), np.float16, (5, 3))
    (info,) = graph.to_proto().graph.value_info
    assert info.doc_string == "value doc"
    assert info.type.tensor_type.elem_type == TensorProto.FLOAT16
    assert [(d.dim_value, d.denotation) for d in info.type.tensor_type.shape.dim] == [(5, ""), (3, "DATA_CHANNEL")]


def test_row_03_functions_are_inlined_with_their_overloads() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "loc" : 1]>
        g (float[2] x) => (float[2] y) { a = loc.F(x) y = loc.F:twice(a) }
        <domain: "loc", opset_import: ["" : 17]> F (x) => (y) { y = Neg(x) }
        <domain: "loc", overload: "twice", opset_import: ["" : 17]> F (x) => (y) { y = Add(x, x) }"""
    model = build(text)
    model.metadata_props.add(key="kept", value="yes")
    graph = GraphModel.from_proto(model)
    assert [n.op for n in graph.nodes()] == ["Neg", "Add"]
    exported = graph.to_proto()
    assert not exported.functions
    assert exported.metadata_props[0].value == "yes"
    assert run(graph, {"x": np.array([1, -3], np.float32)})["y"].tolist() == [-2, 6]


def test_row_04_weights_read_by_bodies_stay_outside_once() -> None:
    model = build(IF_BOTH_READ_W, W=normal(2, 3))
    graph = GraphModel.from_proto(model)
    assert graph.read_by_subgraph(graph.tensor("W"))
    assert same(graph.to_proto(), model)
    node = graph.nodes("Add")[0]
    graph.set_input(node, 1, graph.inputs[0])
    assert graph.sweep() == 0, "only bodies read W now"
    exported = graph.to_proto()
    assert [t.name for t in exported.graph.initializer] == ["W"]
    assert all(not a.g.initializer for n in exported.graph.node for a in n.attribute)
    run(exported)


def test_row_05_weights_are_mapped_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: normal(300, 300, seed=i) for i, name in enumerate(("A", "B"))}
    model = build("g (float[300,300] x) => (float[300,300] y) { a = MatMul(x, A) y = MatMul(a, B) }", **weights)
    path = tmp_path / "m.onnx"
    save_model(GraphModel.from_proto(model), path, external_data=True)
    maps: list[tuple[int, int]] = []
    original = DataFile.map
    monkeypatch.setattr(DataFile, "map", lambda self, *at: maps.append(at) or original(self, *at))
    graph = load_model(path)
    graph.set_input(graph.nodes()[0], 1, graph.tensor("B"))
    graph.sweep()
    graph.skeleton()
    graph.copy()
    assert maps == [], "nothing needed the numbers"
    value = graph.value(graph.tensor("B"))
    assert len(maps) == 1
    assert isinstance(value, np.memmap)
    assert not value.flags.writeable
    assert np.array_equal(value, weights["B"])


def test_row_06_external_data_are_read_and_new_constants_are_not_external(tmp_path: Path) -> None:
    model = build("g (float[4,40] x) => (float[4,40] y) { y = MatMul(x, W) }", W=normal(40, 40))
    path = tmp_path / "m.onnx"
    save_model(GraphModel.from_proto(model), path, external_data=True)
    raw = onnx.load(path, load_external_data=False)
    assert raw.graph.initializer[0].data_location == TensorProto.EXTERNAL
    graph = GraphModel.from_proto(raw, base_dir=tmp_path)
    old = graph.tensor("W")
    graph.replace_uses(old, graph.add_constant("W2", graph.value(old) * 2))
    graph.sweep()
    exported = graph.to_proto()
    assert exported.graph.initializer[0].data_location == TensorProto.DEFAULT
    x = feeds_for(model)["x"]
    assert np.allclose(run(exported, {"x": x})["y"], 2 * run(model, {"x": x})["y"], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["BFLOAT16", "FLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "UINT4", "INT4"]
)
def test_row_07_only_numpy_types_leave_the_facade(name: str) -> None:
    onnx_type = getattr(TensorProto, name)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(onnx_type))
    values = np.array([0, 1, 2, 4]).astype(dtype)
    nodes = [helper.make_node("Identity", ["W"], ["a"]), helper.make_node("Identity", ["x"], ["y"])]
    infos = [helper.make_tensor_value_info(n, onnx_type, [4]) for n in ("x", "y", "a")]
    weight = numpy_helper.from_array(values, "W")
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:2], [weight], value_info=infos[2:]))
    graph = GraphModel.from_proto(model)
    for tensor in ("W", "x", "y", "a"):
        assert graph.dtype(graph.tensor(tensor)) == dtype
    assert graph.value(graph.tensor("W")).dtype == dtype
    graph.replace_uses(graph.tensor("W"), graph.add_constant("V", values))
    graph.set_type(graph.tensor("a"), dtype, (2, 2))
    exported = graph.to_proto()
    assert {t.name: t.data_type for t in exported.graph.initializer} == {"W": onnx_type, "V": onnx_type}
    assert exported.graph.value_info[0].type.tensor_type.elem_type == onnx_type
    assert np.array_equal(numpy_helper.to_array(exported.graph.initializer[1]), values)


def test_row_08_a_copy_is_complete_and_independent() -> None:
    text = """g (seq(float[2]) s, float[2] x) => (float[2] y) {
        i = Constant <value_int = 0> () a = SequenceAt(s, i) y = Add(a, W) }"""
    model = build(text, W=normal(2))
    model.producer_name = "exporter"
    graph = GraphModel.from_proto(model)
    other = graph.copy()
    assert same(other.to_proto(), model)
    half = other.add_constant("W16", np.zeros(2, np.float16))
    other.replace_uses(other.tensor("W"), half)
    other.sweep()
    assert [t.name for t in other.to_proto().graph.initializer] == ["W16"]
    assert same(graph.to_proto(), model)


def test_row_09_the_opset_changes_when_asked() -> None:
    model = build("g (float[2,3] x) => (float[2] y) { y = ReduceSum <axes = [1], keepdims = 0> (x) }", opset=11)
    graph = GraphModel.from_proto(model)
    assert graph.opset == 11
    graph.upgrade_opset(21)
    exported = graph.to_proto()
    assert graph.opset == exported.opset_import[0].version == 21
    assert_same_function(model, exported, rtol=0)


def test_row_10_the_source_is_never_changed() -> None:
    model = build(IF_BOTH_READ_W, W=normal(2, 3))
    before = model.SerializeToString(deterministic=True)
    graph = GraphModel.from_proto(model)
    other = graph.add_constant("other", normal(2, 3))
    graph.replace_uses(graph.tensor("W"), other)
    graph.add_node("Custom", [other], name="custom", domain="org.example")
    graph.upgrade_opset(21)
    graph.to_proto()
    assert model.SerializeToString(deterministic=True) == before


def test_row_11_sweep_never_shifts_positional_outputs() -> None:
    model = build(
        """g (float[5] x) => (int64[2] y) {
        v, i = TopK(x, k) y = Identity(i) unused = Relu(v) }""",
        k=np.array([2], np.int64),
        W=normal(3),
    )
    graph = GraphModel.from_proto(model)
    assert graph.sweep() == 2, "the Relu and the unused initializer"
    exported = graph.to_proto()
    assert list(exported.graph.node[0].output) == ["v", "i"]
    assert_same_function(model, exported, rtol=0)


def test_row_12_sorting_is_iterative_and_keeps_a_right_order() -> None:
    size = 3000
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in reversed(range(size))]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("t0", f"t{size}")]
    graph = GraphModel.from_proto(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])))
    assert [n.outputs[0].name for n in graph.nodes()] == [f"t{i + 1}" for i in range(size)]
    text = "g (float[1] x) => (float[1] a3, float[1] b3) { %s }"
    lines = ["a1 = Relu(x)", "a2 = Relu(a1)", "a3 = Relu(a2)", "b1 = Neg(x)", "b2 = Neg(b1)", "b3 = Neg(b2)"]
    graph = graph_of(text % " ".join(lines))
    graph.sort()
    assert [n.outputs[0].name for n in graph.nodes()] == ["a1", "a2", "a3", "b1", "b2", "b3"]
    late = graph.add_node("Neg", [graph.tensor("a1")], name="late")
    graph.set_input(graph.nodes("Relu")[2], 0, late.outputs[0])
    assert [n.outputs[0].name for n in graph.nodes()] == ["a1", "a2", "late_output", "a3", "b1", "b2", "b3"]


def _chain(size: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(size)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("t0", f"t{size}")]
    return helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 21)]
    )


def _quantize_everything(model: onnx.ModelProto) -> float:
    """Processor seconds to load, put a Q and a DQ on every tensor, sort, validate and export."""
    gc.collect()
    gc.disable()
    start = time.process_time()
    graph = GraphModel.from_proto(model)
    scale, zero = graph.add_constant("scale", np.float32(0.1)), graph.add_constant("zero", np.uint8(3))
    for node in graph.nodes():
        tensor = node.inputs[0]
        uses = graph.consumers(tensor)
        quantize = graph.add_node("QuantizeLinear", [tensor, scale, zero], name=f"{tensor.name}_q")
        back = graph.add_node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{tensor.name}_dq")
        graph.replace_uses(tensor, back.outputs[0], uses)
    graph.sort()
    graph.validate()
    exported = graph.to_proto()
    seconds = time.process_time() - start
    gc.enable()
    assert len(exported.graph.node) == 3 * len(model.graph.node)
    assert list(exported.graph.node[2].input) == ["t0_dq_output"]
    return seconds


@pytest.mark.parametrize(
    ("size", "limit"), [(1500, 3.0), pytest.param(5000, 2.3, marks=pytest.mark.slow, id="thirty-thousand-edits")]
)
def test_row_13_quantizing_every_tensor_takes_linear_time(size: int, limit: float) -> None:
    small, big = _chain(size), _chain(2 * size)
    # in turn, so that a moment in which the machine is slow hits both
    turns = [(_quantize_everything(small), _quantize_everything(big)) for _ in range(4)]
    short, long = (min(seconds) for seconds in zip(*turns, strict=True))
    assert long / short <= limit, f"{short:.2f} s for {size} nodes, {long:.2f} s for twice as many"


def _rewire_hub(size: int) -> float:
    """Processor seconds to move `size` readers of one tensor one at a time, and then all edges of one wide Concat."""
    nodes = [helper.make_node("Relu", ["x"], [f"t{i}"], name=f"n{i}") for i in range(size)]
    nodes.append(helper.make_node("Concat", [f"t{i}" for i in range(size)], ["y"], axis=0, name="wide"))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    graph = GraphModel.from_proto(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])))
    order = np.random.default_rng(0).permutation(size)
    relus = graph.nodes("Relu")
    gc.collect()
    gc.disable()
    start = time.process_time()
    hub = graph.add_node("Identity", [graph.inputs[0]], name="hub").outputs[0]
    for i in order:
        graph.set_input(relus[i], 0, hub)
    for i in order:
        tensor = relus[i].outputs[0]
        uses = graph.consumers(tensor)
        negated = graph.add_node("Neg", [tensor], name="negate")
        graph.replace_uses(tensor, negated.outputs[0], uses)
    seconds = time.process_time() - start
    gc.enable()
    graph.validate()
    wide = graph.node("wide")
    assert all(t.inputs[0].op == "Neg" for t in wide.inputs)
    assert len(hub.outputs) == size
    return seconds


def test_row_13_hubs_and_wide_nodes_are_rewired_in_linear_time() -> None:
    short = min(_rewire_hub(500) for _ in range(3))
    long = min(_rewire_hub(2000) for _ in range(3))
    assert long / short <= 8, f"{short:.2f} s for 500 edges, {long:.2f} s for 2,000"


def test_row_14_twins_are_told_apart() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) b = Relu(x) y = Neg(a) z = Neg(b) }")
    first, second = graph.nodes("Relu")
    first.outputs[0].name, second.outputs[0].name = "a", "b"
    assert [use.node is second for use in graph.consumers(graph.inputs[0])] == [False, True]
    graph.set_input(graph.nodes("Neg")[1], 0, first.outputs[0])
    graph.remove_node(second)
    assert graph.nodes("Relu")[0] is first
    assert graph.consumers(graph.inputs[0]) == ((first, 0),)
    graph.validate()
    with pytest.raises(GraphError, match="not in the graph"):
        graph.remove_node(second)
    a, b = build("g (float[2] x) => (float[2] y) { y = Add(x, W) }", W=normal(2)), normal(2, seed=1)
    other = graph_of("g (float[2] x) => (float[2] y) { y = Add(x, W) }", W=b)
    assert not same(GraphModel.from_proto(a).to_proto(), other.to_proto())


def test_row_15_snapshots_may_be_edited_while_iterated() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { a = Relu(x) y = Sum(x, x, a, x, x, x) }")
    new = graph.add_node("Identity", [graph.inputs[0]], name="new").outputs[0]
    uses = [u for u in graph.consumers(graph.inputs[0]) if u.node.op == "Sum"]
    for use in uses:
        graph.set_input(use.node, use.index, new)
    assert len(uses) == 5
    assert [u.index for u in graph.consumers(new)] == [0, 1, 3, 4, 5]
    for node in graph.nodes():
        if node.op == "Relu":
            graph.replace_uses(node.outputs[0], new)
            graph.remove_node(node)
    assert [t.name for t in graph.nodes("Sum")[0].inputs] == ["new_output"] * 6


def test_row_16_names_become_and_stay_unique() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { [n] a = Relu(x) [n] b = Relu(a) y = Neg(b) }")
    graph.validate()
    report = apply(graph, AssignNames())
    assert [n.name for n in graph.nodes()] == ["n", "n_1", "neg_2"]
    assert report.changed == 2
    assert any("'n'" in note and "'n_1'" in note for note in report.notes)
    with pytest.raises(GraphError, match="two nodes would be called 'n'"):
        graph.rename_node(graph.node("neg_2"), "n")
    assert graph.add_node("Relu", [graph.inputs[0]], name="n").name == "n_2"
    graph.node("n_2").name = "n"
    with pytest.raises(GraphError, match="the name 'n' of another one"):
        graph.validate()


def _odd_attributes() -> onnx.NodeProto:
    node = helper.make_node("Odd", ["x"], ["y"], domain="org.example", name="odd")
    tensor = numpy_helper.from_array(np.arange(3, dtype=np.float32))
    node.attribute.append(helper.make_attribute("type", helper.make_tensor_type_proto(1, [2])))
    node.attribute.append(helper.make_attribute("types", [helper.make_tensor_type_proto(1, [2])]))
    node.attribute.append(helper.make_attribute("tensors", [tensor]))
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "b", [], [helper.make_empty_tensor_value_info("z")]
    )
    node.attribute.append(helper.make_attribute("graphs", [body]))
    indices = numpy_helper.from_array(np.array([1], np.int64))
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(np.array([5], np.float32)), indices, [3])
    node.attribute.append(helper.make_attribute("sparse", sparse))
    node.attribute.append(onnx.AttributeProto(name="ints", type=onnx.AttributeProto.INTS))
    node.attribute.append(helper.make_attribute("blob", b"\xff\xfe\x00"))
    node.attribute.append(helper.make_attribute("blobs", [b"\xff", b"ok"]))
    node.attribute.append(helper.make_attribute("documented", 3, doc_string="why"))
    return node


def test_row_17_attributes_graphsurgeon_cannot_hold_are_carried() -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2]))
    given = helper.make_value_info("o", optional)
    ends = [helper.make_tensor_value_info(n, 1, [2]) for n in ("x", "y")]
    graph = helper.make_graph([_odd_attributes()], "g", [ends[0], given], [ends[1], given])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("org.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    weight = numpy_helper.from_array(np.array([5], np.float32), "sw")
    indices = numpy_helper.from_array(np.array([[0, 1]], np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(weight, indices, [2, 2]))
    facade = GraphModel.from_proto(model)
    assert same(facade.to_proto(), model)
    assert facade.read_by_subgraph(facade.inputs[0])
    assert facade.dtype(facade.tensor("o")) is None
    assert facade.value(facade.tensor("sw")).tolist() == [[0, 5], [0, 0]]
    (node,) = facade.nodes("Odd")
    node.attrs["documented"] = 4
    node.attrs["bad"] = object()
    with pytest.raises(GraphError, match=r"node 'odd' \(Odd\): attribute 'bad'"):
        facade.to_proto()
    del node.attrs["bad"]
    changed = facade.to_proto().graph.node[0].attribute[-1]
    assert (changed.i, changed.doc_string) == (4, "why")


def test_row_18_initializers_that_are_inputs_stay_inputs() -> None:
    model = build("g (float[2] x, float[2] W) => (float[2] y) { y = Add(x, W) }", W=normal(2))
    graph = GraphModel.from_proto(model)
    assert [t.name for t in graph.inputs] == ["x"]
    assert graph.is_constant(graph.tensor("W"))
    assert any("W" in note for note in graph.notes)
    assert same(graph.to_proto(), model)
    graph.replace_uses(graph.tensor("W"), graph.add_constant("V", normal(2)))
    graph.sweep()
    assert [i.name for i in graph.to_proto().graph.input] == ["x"]


def test_row_18_before_ir_version_4_every_initializer_is_an_input() -> None:
    model = build("g (float[2] x, float[2] W) => (float[2] y) { y = Add(x, W) }", opset=8, ir_version=3, W=normal(2))
    graph = GraphModel.from_proto(model)
    graph.replace_uses(graph.tensor("W"), graph.add_constant("V", normal(2)))
    graph.sweep()
    exported = graph.to_proto()
    assert [i.name for i in exported.graph.input] == ["x", "V"]
    onnx.checker.check_model(exported, full_check=True)
    run(exported, {"x": normal(2)})


def test_row_19_constant_nodes_become_constants() -> None:
    model = build("g (float[2] x) => (float[2] y) { w = Constant <value = float[2] {1, 2}> () y = Add(x, w) }")
    graph = GraphModel.from_proto(model)
    assert not graph.is_constant(graph.nodes("Add")[0].inputs[1])
    apply(graph, LiftConstants())
    weight = graph.nodes("Add")[0].inputs[1]
    assert graph.is_constant(weight)
    assert isinstance(weight, gs.Constant)
    assert graph.value(weight).tolist() == [1, 2]
    assert_same_function(model, graph, rtol=0)


def test_row_20_graphsurgeons_own_transformations_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a method of gs.Graph was called")

    for name in ("fold_constants", "cleanup", "toposort", "copy", "layer", "register", "tensors", "__init__"):
        monkeypatch.setattr(gs.Graph, name, refuse)
    monkeypatch.setattr(gs, "import_onnx", refuse)
    monkeypatch.setattr(gs, "export_onnx", refuse)
    monkeypatch.setattr(gs.Node, "__eq__", refuse)
    monkeypatch.setattr(gs.Tensor, "__eq__", refuse)
    graph = graph_of(IF_BOTH_READ_W, W=normal(2, 3))
    node = graph.add_node("Relu", [graph.inputs[0]], name="relu")
    graph.replace_uses(
        graph.inputs[0], node.outputs[0], [u for u in graph.consumers(graph.inputs[0]) if u.node is not node]
    )
    graph.replace_output(node, 0, graph.new_variable("renamed", np.float32, (2, 3)))
    graph.set_input(graph.nodes("Add")[0], 0, node.outputs[0])
    graph.replace_uses(graph.tensor("W"), graph.add_constant("V", normal(2, 3)))
    graph.sort()
    graph.sweep()
    graph.copy()
    graph.upgrade_opset(21)
    graph.validate()
    run(graph)


def test_row_21_nothing_is_printed_and_every_error_is_ours(capfd: pytest.CaptureFixture[str]) -> None:
    graph = graph_of("g (bfloat16[2] x) => (bfloat16[2] y) { [same] a = Identity(x) [same] y = Identity(a) }", opset=21)
    graph.to_proto()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(OnnxqError, match=r"no node 'sam'; did you mean 'same'\?"):
        graph.node("sam")
    with pytest.raises(OnnxqError, match=r"no tensor 'aa'; did you mean 'a'\?"):
        graph.tensor("aa")
    with pytest.raises(AttributeError):
        graph.toposort()  # type: ignore[attr-defined] # a typo must not become something else


def test_row_22_the_versions_the_facade_was_written_for_are_pinned() -> None:
    pins = "".join(importlib.metadata.requires("onnxq") or [])
    assert "onnx-graphsurgeon<0.7,>=0.6.1" in pins.replace(" ", "")
    assert "onnx>=1.20" in pins.replace(" ", "")
    variable = gs.Variable("v")
    node = gs.Node("Mul", inputs=[variable, variable])
    assert isinstance(node.inputs, list)
    assert isinstance(variable.outputs, list)
    assert [n is node for n in variable.outputs] == [True, True], "one entry for each edge"
    list.__setitem__(node.inputs, 0, gs.Variable("w"))
    assert len(variable.outputs) == 2, "list's own methods keep out of the bookkeeping"
