"""GraphModel's edits and questions: what each does, what it leaves alone, what it refuses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, LazyArray, Use
from onnxq.spec import QType
from tests.graphs import assert_same_function, build, graph_of, normal, ops, run

BODIES = """g (float[2,3] x, bool c) => (float[2,3] y) {
    a = Relu(x)
    b = Identity(a)
    y = If(c) <then_branch = t () => (float[2,3] p) { p = Neg(b) },
               else_branch = e () => (float[2,3] q) {
                   q = If(c) <then_branch = tt () => (float[2,3] r) { r = Abs(b) },
                              else_branch = ee () => (float[2,3] s) { s = Add(b, x) }> }> }"""


# ---- questions ---------------------------------------------------------------------------------


def test_questions_about_tensors() -> None:
    graph = graph_of("g (float[N,3] x, int64[2] i) => (float[N,3] y) { a = Mul(x, x) y = Add(a, W) }", W=normal(3))
    x, a, y, weight = map(graph.tensor, ("x", "a", "y", "W"))
    mul, add = graph.nodes()
    assert graph.inputs == (x, graph.tensor("i"))
    assert graph.outputs == (y,)
    assert graph.producer(a) is mul
    assert graph.producer(x) is None
    assert graph.consumers(x) == (Use(mul, 0), Use(mul, 1))
    assert graph.consumers(a) == (Use(add, 0),)
    assert [graph.is_private(t) for t in (x, a, y, weight)] == [False, True, False, True]
    assert [graph.is_input(t) for t in (x, a)] == [True, False]
    assert [graph.is_output(t) for t in (y, a)] == [True, False]
    assert [graph.is_constant(t) for t in (weight, x)] == [True, False]
    assert (graph.shape(x), graph.rank(x), graph.dtype(x)) == (("N", 3), 2, np.float32)
    assert (graph.shape(weight), graph.rank(weight), graph.dtype(weight)) == ((3,), 1, np.float32)
    assert (graph.shape(a), graph.rank(a), graph.dtype(a)) == (None, None, None)
    assert [graph.is_float32(graph.tensor(n)) for n in ("x", "W", "i", "a")] == [True, True, False, False]
    assert set(graph.tensors()) == {"x", "i", "a", "y", "W"}
    with pytest.raises(GraphError, match="'x' is not a constant"):
        graph.value(x)
    with pytest.raises(ValueError, match="read-only"):
        graph.value(weight)[0] = 1


def test_nodes_of_a_custom_domain_are_not_taken_for_standard_ones() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "c" : 1]> g (float[2] x) => (float[2] y) {
        a = Relu(x) b = c.Relu(a) y = c.Special(b) }"""
    graph = graph_of(text)
    assert [n.outputs[0].name for n in graph.nodes("Relu")] == ["a"]
    assert [n.outputs[0].name for n in graph.nodes("c::Relu", "Special")] == ["b", "y"]
    assert [n.outputs[0].name for n in graph.nodes("ai.onnx::Relu", "c::Special")] == ["a", "y"]


def test_an_output_that_is_read_is_not_private() -> None:
    graph = graph_of("g (float[2] x) => (float[2] a, float[2] y) { a = Relu(x) y = Neg(a) }")
    assert not graph.is_private(graph.tensor("a"))


def test_of_two_initializers_with_one_name_the_last_counts_as_in_onnx_runtime() -> None:
    model = build("g (float[2] x) => (float[2] y) { y = Add(x, W) }", W=normal(2))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "W"))
    graph = GraphModel.from_proto(model)
    feed = {"x": np.zeros(2, np.float32)}
    assert graph.value(graph.tensor("W")).tolist() == run(model, feed)["y"].tolist() == [1, 2]
    assert run(graph, feed)["y"].tolist() == [1, 2]
    assert len(graph.to_proto().graph.initializer) == 1


def test_unique_names_avoid_everything_and_are_not_given_twice() -> None:
    graph = graph_of(BODIES)
    assert [graph.unique_name("p") for _ in range(2)] == ["p_1", "p_2"], "p is a name in a body"
    assert [graph.unique_name("new") for _ in range(3)] == ["new", "new_1", "new_2"]
    assert graph.add_constant("a", np.ones(1)).name == "a_1"
    assert graph.new_variable("a").name == "a_2"
    node = graph.add_node("Relu", [graph.inputs[0]], name="x", outputs=["y"])
    assert (node.name, node.outputs[0].name) == ("x_1", "y_1")


# ---- adding ------------------------------------------------------------------------------------


def test_add_node_takes_every_kind_of_attribute() -> None:
    graph = graph_of("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    attrs = {
        "i": 3, "f": 0.5, "s": "text", "raw": b"\xff", "ints": [1, 2], "floats": (0.5, 1), "strings": ["a", "b"],
        "np_i": np.int32(4), "np_f": np.float32(0.25), "array": np.array([[1.5]]), "vector": np.array([1, 2]),
        "type": np.float16, "flag": True,
    }  # fmt: skip
    graph.add_node("Custom", [graph.inputs[0], None], name="c", attrs=attrs, domain="org.example")
    node = graph.to_proto().graph.node[1]
    got = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert onnx.numpy_helper.to_array(got.pop("array")).tolist() == [[1.5]]
    assert got == {
        "i": 3, "f": 0.5, "s": b"text", "raw": b"\xff", "ints": [1, 2], "floats": [0.5, 1], "strings": [b"a", b"b"],
        "np_i": 4, "np_f": 0.25, "vector": [1, 2], "type": 10, "flag": 1,
    }  # fmt: skip
    assert list(node.input) == ["x", ""]
    assert [(d.domain, d.version) for d in graph.to_proto().opset_import] == [("", 17), ("org.example", 1)]


def test_attributes_get_the_type_their_operator_wants() -> None:
    graph = graph_of("g (float[2,3] x) => (float[2,3] y) { y = LeakyRelu <alpha = 0.5> (x) }")
    (leaky,) = graph.nodes()
    leaky.attrs["alpha"] = 1
    graph.add_node("Elu", [graph.inputs[0]], name="elu", attrs={"alpha": 2})
    graph.add_node("LSTM", [graph.inputs[0]], name="lstm", attrs={"activation_beta": []})
    types = {n.op_type: [a.type for a in n.attribute] for n in graph.to_proto().graph.node}
    assert types["LeakyRelu"] == types["Elu"] == [onnx.AttributeProto.FLOAT]
    assert types["LSTM"] == [onnx.AttributeProto.FLOATS]
    graph.add_node("Custom", [], name="c", attrs={"axes": []})
    with pytest.raises(GraphError, match=r"'c' \(Custom\): attribute 'axes' = \[\]: the type of an empty list"):
        graph.to_proto()


def test_add_node_refuses_outputs_that_have_a_producer() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Add(x, W) }", W=normal(2))
    for name, why in (("y", "computed by ''"), ("x", "a graph input"), ("W", "a constant")):
        with pytest.raises(GraphError, match=f"'n.*' .*cannot compute '{name}'.*{why}"):
            graph.add_node("Relu", [graph.inputs[0]], name="n", outputs=[graph.tensor(name)])
    graph.validate()
    assert len(graph.nodes()) == 1


def test_a_foreign_tensor_of_a_known_name_is_refused() -> None:
    graph, other = (graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) }") for _ in range(2))
    with pytest.raises(GraphError, match="two tensors are called 'x'"):
        graph.add_node("Relu", [other.inputs[0]], name="n")


def test_constants_are_private_copies_and_lazy_ones_are_made_when_read() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    array = np.ones(2, np.float32)
    constant = graph.add_constant("c", array)
    array[:] = 5
    assert graph.value(constant).tolist() == [1, 1]
    made: list[int] = []
    lazy = LazyArray((2,), np.dtype(np.int64), lambda: made.append(1) or np.array([3, -4]))
    codes = graph.add_constant("l", lazy, qtype=QType.INT4)
    assert (graph.shape(codes), made) == ((2,), [])
    assert graph.value(codes).astype(int).tolist() == [3, -4]
    assert made == [1]
    assert graph.value(graph.add_constant("scalar", np.float32(2))).shape == ()
    with pytest.raises(GraphError, match=r"constant 'bad': ONNX has no element type for numpy's datetime64"):
        graph.add_constant("bad", np.zeros(1, "M8[s]"))


def test_values_a_pass_wrote_itself_are_exported() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Add(x, W) }", W=normal(2))
    weight = graph.tensor("W")
    assert weight.values.tolist() == normal(2).tolist()
    weight.values = np.array([1, 2], np.float32)
    assert onnx.numpy_helper.to_array(graph.to_proto().graph.initializer[0]).tolist() == [1, 2]


def test_make_constant_is_seen_by_every_reader() -> None:
    model = build(BODIES)
    graph = GraphModel.from_proto(model)
    tensor = graph.tensor("b")
    graph.make_constant(tensor, normal(2, 3))
    assert graph.is_constant(tensor)
    assert graph.sweep() == 2, "nothing reads the Identity and the Relu any more"
    assert ops(graph) == ["If"]
    got = run(graph, {"x": normal(2, 3), "c": np.array(True)})
    assert np.array_equal(got["y"], -normal(2, 3))
    for name in ("b", "x"):
        with pytest.raises(GraphError, match=f"'{name}' is a constant or a graph input already"):
            graph.make_constant(graph.tensor(name), normal(2, 3))


# ---- rewiring ----------------------------------------------------------------------------------


def test_set_input_pads_and_removes_optional_inputs() -> None:
    graph = graph_of("g (float[1,1,4,4] x) => (float[1,1,4,4] y) { y = Clip(x, low) }", low=np.float32(0))
    (clip,) = graph.nodes()
    high = graph.add_constant("high", np.float32(1))
    graph.set_input(clip, 2, high)
    graph.set_input(clip, 1, None)
    assert list(graph.to_proto().graph.node[0].input) == ["x", "", "high"]
    assert graph.consumers(graph.tensor("low")) == ()
    graph.set_input(clip, 5, high)
    assert [t.name for t in clip.inputs] == ["x", "", "high", "", "", "high"]


def test_replace_uses_of_some_and_of_all() -> None:
    graph = graph_of("g (float[2] x) => (float[2] a, float[2] y) { a = Relu(x) b = Neg(a) y = Add(a, b) }")
    relu, neg, add = graph.nodes()
    a = relu.outputs[0]
    uses = graph.consumers(a)
    extra = graph.add_node("Abs", [a], name="abs")
    graph.replace_uses(a, extra.outputs[0], [u for u in uses if u.node is add])
    assert [t.name for t in add.inputs] == ["abs_output", "b"]
    assert neg.inputs[0] is a
    graph.replace_uses(a, a)
    with pytest.raises(GraphError, match=r"input 0 of node '' \(Add\) does not read 'a'"):
        graph.replace_uses(a, extra.outputs[0], [Use(neg, 0), Use(add, 0)])
    assert neg.inputs[0] is a, "nothing is changed when one use is wrong"
    graph.validate()
    assert [t.name for t in graph.outputs] == ["a", "y"]


def test_replacing_all_uses_renames_in_bodies() -> None:
    model = build(BODIES)
    graph = GraphModel.from_proto(model)
    (identity,) = graph.nodes("Identity")
    b, a = identity.outputs[0], identity.inputs[0]
    assert graph.read_by_subgraph(b)
    assert not graph.is_private(b)
    graph.replace_uses(b, a)
    graph.remove_node(identity)
    graph.validate()
    assert (graph.read_by_subgraph(b), graph.read_by_subgraph(a)) == (False, True)
    assert "b" not in str(graph.to_proto().graph.node[-1]).split('"')
    assert_same_function(model, graph, rtol=0)


def test_replacing_uses_of_nodes_leaves_bodies_alone() -> None:
    model = build(BODIES)
    graph = GraphModel.from_proto(model)
    x = graph.inputs[0]
    uses = graph.consumers(x)
    twice = graph.add_node("Identity", [x], name="same")
    graph.replace_uses(x, twice.outputs[0], uses)
    graph.validate()
    assert graph.read_by_subgraph(x)
    assert not graph.read_by_subgraph(twice.outputs[0])
    assert_same_function(model, graph, rtol=0)


def test_bodies_never_capture_a_name_of_their_own() -> None:
    graph = graph_of(BODIES)
    clash = graph.add_node("Identity", [graph.tensor("b")], name="n", outputs=[graph.new_variable("tmp")])
    clash.outputs[0].name = "p"
    graph._tensors["p"] = clash.outputs[0]
    with pytest.raises(GraphError, match=r"\(If\): its body has a 'p' of its own"):
        graph.replace_uses(graph.tensor("b"), clash.outputs[0])


def test_nodes_are_sorted_before_the_bodies_that_read_them() -> None:
    graph = graph_of(BODIES)
    late = graph.add_node("Identity", [graph.tensor("b")], name="late")
    graph.replace_uses(graph.tensor("b"), late.outputs[0])
    graph.set_input(late, 0, graph.tensor("b"))
    assert ops(graph) == ["Relu", "Identity", "Identity", "If"]
    graph.validate()


def test_replace_output_keeps_the_name_and_its_readers() -> None:
    model = build("g (float[2] x) => (float[2] y) { a = Relu(x) y = Identity(a) }")
    graph = GraphModel.from_proto(model)
    relu, identity = graph.nodes()
    graph.replace_output(relu, 0, identity.outputs[0])
    assert identity.outputs[0].name == "y_unused"
    graph.remove_node(identity)
    graph.validate()
    assert_same_function(model, graph, rtol=0)
    with pytest.raises(GraphError, match="cannot compute 'x': it is a constant or a graph input"):
        graph.replace_output(relu, 0, graph.inputs[0])


def test_quantizing_a_graph_output_keeps_its_name() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    (relu,) = graph.nodes()
    y = relu.outputs[0]
    graph.replace_output(relu, 0, graph.new_variable("y_float", np.float32, (2,)))
    scale = graph.add_constant("s", np.float32(0.5))
    quantize = graph.add_node("QuantizeLinear", [relu.outputs[0], scale], name="q")
    graph.add_node("DequantizeLinear", [quantize.outputs[0], scale], name="dq", outputs=[y])
    graph.validate()
    assert run(graph, {"x": np.array([0.6, -1], np.float32)})["y"].tolist() == [0.5, 0]


# ---- removing ----------------------------------------------------------------------------------


def test_removing_an_if_lets_go_of_what_its_bodies_read() -> None:
    graph = graph_of(BODIES)
    (node,) = graph.nodes("If")
    y = node.outputs[0]
    graph.remove_node(node)
    assert not graph.read_by_subgraph(graph.tensor("b"))
    graph.add_node("Abs", [graph.tensor("x")], name="abs", outputs=[y])
    assert graph.sweep() == 2
    assert ops(graph) == ["Abs"]


def test_sweep_counts_and_keeps_inputs() -> None:
    model = build("g (float[2] x, float[2] unused) => (float[2] y) { y = Relu(x) z = Neg(x) w = Abs(z) }", K=normal(2))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("nowhere", 1, [2]))
    graph = GraphModel.from_proto(model)
    assert graph.sweep() == 4
    assert graph.sweep() == 0
    exported = graph.to_proto()
    assert [i.name for i in exported.graph.input] == ["x", "unused"]
    assert not exported.graph.value_info


# ---- validation --------------------------------------------------------------------------------


def test_validate_finds_what_raw_edits_break() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }"
    graph = graph_of(text)
    graph.remove_node(graph.nodes("Neg")[0])
    with pytest.raises(GraphError, match="nothing computes the graph output 'y'"):
        graph.validate()
    graph = graph_of(text)
    graph.nodes("Relu")[0].outputs.append(graph.tensor("y"))
    with pytest.raises(GraphError, match="'y' is computed twice"):
        graph.validate()
    graph = graph_of(text)
    relu, neg = graph.nodes()
    graph.set_input(relu, 0, neg.outputs[0])
    with pytest.raises(GraphError, match="cycle"):
        graph.validate()
    graph = graph_of(text)
    graph.tensor("a").name = "x"
    with pytest.raises(GraphError, match="two tensors are called 'x'"):
        graph.validate()


def test_bodies_that_read_nothing_that_exists_are_refused() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If(c) <then_branch = t () => (float[2] p) { p = Neg(x) },
                   else_branch = e () => (float[2] q) { q = Neg(ghost) }> }"""
    with pytest.raises(GraphError, match=r"\(If\) reads 'ghost', which nothing computes"):
        graph_of(text, check=False)


@pytest.mark.parametrize("width", [3, 50])
def test_random_edits_keep_both_sides_of_every_edge(width: int) -> None:
    names = [f"t{i}" for i in range(width)]
    lines = " ".join(f"{name} = Relu(x)" for name in names)
    graph = graph_of(f"g (float[2] x) => (float[2] y) {{ {lines} y = Sum({', '.join(names + names)}) }}")
    rng = np.random.default_rng(0)
    (total,) = graph.nodes("Sum")
    fresh = [graph.add_node("Neg", [graph.inputs[0]], name="neg").outputs[0] for _ in range(3)]
    for _ in range(400):
        tensors = [t for t in graph.tensors().values() if t is not graph.outputs[0]]
        old, new = (tensors[i] for i in rng.integers(0, len(tensors), 2))
        uses = [use for use in graph.consumers(old) if use.node is total]
        kind = rng.integers(0, 4)
        if kind == 0:
            graph.set_input(total, int(rng.integers(0, len(total.inputs))), new)
        elif kind == 1:
            graph.replace_uses(old, new, uses)
        elif kind == 2:
            graph.replace_uses(old, new, uses[::2])
        else:
            node = graph.add_node("Abs", [fresh[rng.integers(0, 3)]], name="abs")
            graph.set_input(node, 0, fresh[rng.integers(0, 3)])
            graph.remove_node(node)
        for tensor in graph.tensors().values():
            reads = Counter(id(node) for node in graph.nodes() for t in node.inputs if t is tensor)
            assert Counter(map(id, tensor.outputs)) == reads
            found = {(id(use.node), use.index) for use in graph.consumers(tensor)}
            assert found == {(id(n), i) for n in graph.nodes() for i, t in enumerate(n.inputs) if t is tensor}
        graph.validate()
