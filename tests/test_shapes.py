import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxq.errors import ModelError
from onnxq.runtime import make_session
from onnxq.shapes import fix_shapes


@pytest.fixture
def model() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["h"], name="first"),
        helper.make_node("Add", ["h", "b"], ["y"], name="second"),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((4, 5), np.float32), "w")
    graph = helper.make_graph(
        nodes,
        "g",
        [value("a", TensorProto.FLOAT, ["n", "t", 4]), value("b", TensorProto.FLOAT, ["n", None, 5])],
        [value("y", TensorProto.FLOAT, ["n", "t", 5])],
        [weight],
        value_info=[value("h", TensorProto.FLOAT, ["n", "t", 5])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def dims(value: onnx.ValueInfoProto) -> list[object]:
    return [d.dim_value or d.dim_param or None for d in value.type.tensor_type.shape.dim]


def test_a_named_dimension_is_fixed_everywhere(model):
    fixed = fix_shapes(model, {"a": [2, -1, 4]}).to_proto()
    assert [dims(v) for v in fixed.graph.input] == [[2, "t", 4], [2, None, 5]]
    assert [dims(v) for v in fixed.graph.output] == [[2, "t", 5]]
    assert [dims(v) for v in model.graph.input] == [["n", "t", 4], ["n", None, 5]]


def test_a_nameless_dimension_is_fixed_where_it_is(model):
    fixed = fix_shapes(model, {"b": [1, 3, 5], "a": [1, 3, 4]})
    assert [dims(v) for v in fixed.to_proto().graph.input] == [[1, 3, 4], [1, 3, 5]]
    feed = {"a": np.ones((1, 3, 4), np.float32), "b": np.ones((1, 3, 5), np.float32)}
    np.testing.assert_array_equal(make_session(fixed).run(None, feed)[0], np.full((1, 3, 5), 5))


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"image": [1, 2, 4]}, "'image', which is not an input of the model; its inputs are 'a', 'b'"),
        ({"a": [1, 4]}, "3 dimensions there: [n, t, 4]"),
        ({"a": [1, 2, 5]}, "dimension 2 is 4 in the model: [n, t, 4]; give 4 or -1"),
        ({"a": [0, 2, 4]}, "a dimension is a number from 1"),
        ({"a": [1, 2, 4], "b": [2, 2, 5]}, "input 'b': shape [2, 2, 5] is given, but dimension 0 is 'n', which is 1"),
    ],
)
def test_what_does_not_fit(model, shapes, told):
    with pytest.raises(ModelError) as caught:
        fix_shapes(model, shapes)
    assert told in str(caught.value)
