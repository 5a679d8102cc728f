"""`upgrade_opset`: both models run, and give the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq._graph.weights import DataFile
from onnxq.errors import GraphError
from onnxq.graph import GraphModel
from onnxq.modelio import load_model, save_model
from tests.graphs import assert_same_function, build, deviation, feeds_for, graph_of, normal, ops, run

LARGER, SMALLER = np.array([1, 1, 2.7, 1.5], np.float32), np.array([1, 1, 0.4, 0.7], np.float32)
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "softmax of rank 4 flattens": ("y = Softmax(x)", 11, {}),
    "softmax of the last axis": ("y = LogSoftmax <axis = 3> (x)", 11, {}),
    "axes become inputs": ("u = Unsqueeze <axes = [0]> (x) y = Squeeze <axes = [0]> (u)", 11, {}),
    "clip bounds become inputs": ("y = Clip <min = -0.5, max = 0.5> (x)", 10, {}),
    "pads become inputs": ("y = Pad <pads = [0,0,1,1,0,0,1,1], value = 2.0> (x)", 10, {}),
    "slices become inputs": ("y = Slice <axes = [2,3], starts = [1,1], ends = [3,9]> (x)", 9, {}),
    "split becomes an input": ("y, z = Split <axis = 1, split = [1,2]> (x)", 11, {}),
    "upsample nearest": ('y = Upsample <mode = "nearest", scales = [1.0,1.0,2.0,2.0]> (x)', 8, {}),
    "upsample linear": ('y = Upsample <mode = "linear"> (x, s)', 9, {"s": np.array([1, 1, 2, 2], np.float32)}),
    "resize linear": ('y = Resize <mode = "linear"> (x, s)', 10, {"s": LARGER}),
    "resize linear, smaller": ('y = Resize <mode = "linear"> (x, s)', 10, {"s": SMALLER}),
    "resize nearest": ('y = Resize <mode = "nearest"> (x, s)', 10, {"s": LARGER}),
    "resize nearest, smaller": ('y = Resize <mode = "nearest"> (x, s)', 10, {"s": SMALLER}),
    "batch normalization": (
        "y = BatchNormalization(x, a, a, b, a)", 8, {"a": np.array([1, 2, 3], np.float32), "b": normal(3)},
    ),
    "dropout": ("y = Dropout <ratio = 0.3> (x)", 10, {}),
    "lower opset conv": ('y = Conv <auto_pad = "SAME_UPPER"> (x, W)', 7, {"W": normal(4, 3, 3, 3)}),
    "big weights": ("f = Flatten(x) y = MatMul(f, W)", 11, {"W": normal(75, 300)}),
}  # fmt: skip


@pytest.mark.parametrize("version", [13, 17, 21])
@pytest.mark.parametrize("name", CASES)
def test_the_function_is_kept(name: str, version: int) -> None:
    text, opset, constants = CASES[name]
    model = build(f"g (float[2,3,5,5] x) => (float[A] y) {{ {text} }}", opset=opset, check=False, **constants)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = GraphModel.from_proto(model)
    graph.upgrade_opset(version)
    assert graph.opset == version
    feed = feeds_for(model)
    assert deviation(run(model, feed), run(graph, feed)) <= 1e-6


def test_bodies_are_converted_too() -> None:
    model = build(
        """g (float[1,3] x, bool c) => (float[3] y) {
            y = If(c) <then_branch = t () => (float[3] p) { p = Squeeze <axes = [0]> (x) },
                       else_branch = e () => (float[3] q) { q = ReduceSum <axes = [0], keepdims = 0> (x) }> }""",
        opset=11,
    )
    graph = GraphModel.from_proto(model)
    graph.upgrade_opset(17)
    assert_same_function(model, graph, rtol=0)


def test_custom_operators_metadata_and_names_are_kept() -> None:
    text = """<ir_version: 7, opset_import: ["" : 11, "c" : 3]> g (float[1,2] x) => (float[2] y) {
        [first] a = Squeeze <axes = [0]> (x) [mine] b = c.Mine <k = 3> (a) [last] y = Identity(b) }"""
    model = build(text)
    model.graph.node[1].doc_string = "doc"
    model.graph.node[1].metadata_props.add(key="k", value="v")
    model.metadata_props.add(key="m", value="n")
    graph = GraphModel.from_proto(model)
    graph.upgrade_opset(13)
    exported = graph.to_proto()
    assert [n.name for n in exported.graph.node if n.name] == ["first", "mine", "last"]
    mine = next(n for n in exported.graph.node if n.name == "mine")
    assert (mine.op_type, mine.domain, mine.doc_string, mine.metadata_props[0].value) == ("Mine", "c", "doc", "v")
    assert {d.domain: d.version for d in exported.opset_import} == {"": 13, "c": 3}
    assert exported.metadata_props[0].value == "n"


def test_sparse_weights_and_the_long_name_of_the_default_domain() -> None:
    text = "g (float[1,2,2] x) => (float[2,2] y) { s = Squeeze <axes = [0]> (x) y = Add(s, W) }"
    model = build(text, opset=11, check=False)
    values = onnx.numpy_helper.from_array(np.array([5], np.float32), "W")
    indices = onnx.numpy_helper.from_array(np.array([1], np.int64))
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2, 2]))
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    graph = GraphModel.from_proto(model)
    assert graph.opset == 11
    graph.upgrade_opset(13)
    assert graph.opset == 13
    assert run(graph, {"x": np.zeros((1, 2, 2), np.float32)})["y"].tolist() == [[0, 5], [0, 0]]


def test_big_weights_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("g (float[1,300] x) => (float[300] y) { a = MatMul(x, W) y = Squeeze <axes = [0]> (a) }",
                  opset=11, W=normal(300, 300))  # fmt: skip
    save_model(GraphModel.from_proto(model), tmp_path / "m.onnx", external_data=True)
    graph = load_model(tmp_path / "m.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(DataFile, "map", lambda *_: pytest.fail("the weights were read"))
        graph.upgrade_opset(21)
    assert graph.external_data
    assert_same_function(model, graph, rtol=0)


@pytest.mark.parametrize(
    ("text", "opset", "version", "message"),
    [
        ("y = Hardmax(x)", 11, 13, r"does not heed that Hardmax \(node 'n'\) changed with opset 13"),
        ("y = Relu(x)", 13, 12, "must be newer"),
        ("y = Relu(x)", 13, 999, "must be newer, and at most"),
        ('y = Resize <mode = "nearest"> (x, s)', 10, 13, r"Resize 'n' enlarges and shrinks"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_left_alone(text: str, opset: int, version: int, message: str) -> None:
    scales = {"s": np.array([1, 0.5, 2], np.float32)} if "Resize" in text else {}
    model = build(f"g (float[1,4,4] x) => (float[A,B,C] y) {{ [n] {text} }}", opset=opset, check=False, **scales)
    graph = GraphModel.from_proto(model)
    before = graph.to_proto().SerializeToString(deterministic=True)
    with pytest.raises(GraphError, match=message):
        graph.upgrade_opset(version)
    assert graph.to_proto().SerializeToString(deterministic=True) == before
    assert graph.opset == opset


def test_the_same_version_changes_nothing() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    nodes = graph.nodes()
    graph.upgrade_opset(17)
    assert graph.nodes() == nodes
    graph.upgrade_opset(18)
    assert ops(graph) == ["Relu"]
    assert graph.nodes()[0] is not nodes[0]
