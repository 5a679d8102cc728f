"""The fusion file: what each deployed operator stands for."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from onnxq.dialects.amct.fusion_json import fusion_info, write_fusion_json
from onnxq.errors import ModelError
from onnxq.graph import GraphModel
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from tests.graphs import apply, build, normal, positive

ORIGINAL = """g (float[1,3,8,8] x) => (float[1,4,6,6] y, int64[4] s) {
  [conv1] c = Conv (x, W)
  [bn1] b = BatchNormalization (c, gamma, beta, mean, variance)
  [relu1] r = Relu (b)
  [conv2] y = Conv (r, V)
  [shape] s = Shape (y)
}"""
DEPLOY = """g (float[1,3,8,8] x) => (float[1,4,6,6] y, int64[4] s) <
  int8[1,3,8,8] q1, int32[1,4,6,6] conv1_output0, int8[1,4,6,6] q2, int32[1,4,6,6] conv2_output0 > {
  [conv1__quant] q1 = AscendQuant (x)
  [conv1] conv1_output0 = Conv (q1, W)
  [conv1__dequant] b = AscendDequant (conv1_output0, p1)
  [relu1] r = Relu (b)
  [conv2__quant] q2 = AscendQuant (r)
  [conv2] conv2_output0 = Conv (q2, V)
  [conv2__dequant] y = AscendDequant (conv2_output0, p2)
  [shape] s = Shape (y)
  [added] z = Cos (r)
}"""


def original() -> onnx.ModelProto:
    four = {n: positive(4, seed=i) for i, n in enumerate(("gamma", "beta", "mean", "variance"))}
    return build(ORIGINAL, W=normal(4, 3, 3, 3), V=normal(4, 4, 1, 1), **four)


def deploy(text: str = DEPLOY) -> onnx.ModelProto:
    """A deployed model; the text format has no dots in names, so they are two underscores in it."""
    model = build(text, check=False)
    for node in model.graph.node:
        node.name = node.name.replace("__", ".")
    return model


def ops(content) -> dict[str, dict]:
    (graph,) = content["graph"]
    return {op["name"]: op for op in graph["op"]}


def origins(op) -> list[str]:
    (attr,) = op["attr"]
    assert attr["key"] == "_datadump_original_op_names"
    assert attr["value"]["list"]["val_type"] == 1
    return attr["value"]["list"].get("s", [])


def outputs(op) -> list[dict]:
    plain = [{a["key"].removeprefix("_datadump_"): a["value"] for a in d["attr"]} for d in op["output_desc"]]
    return [{key: next(iter(value.values())) for key, value in one.items()} for one in plain]


def test_what_stands_for_what():
    content = fusion_info(deploy(), original(), name="net")
    assert content["name"] == "net"
    found = ops(content)
    assert [(op["name"], op["type"]) for op in content["graph"][0]["op"]] == [
        (node.name, node.op_type) for node in deploy().graph.node
    ]
    assert {name: origins(op) for name, op in found.items()} == {
        "conv1.quant": ["conv1", "bn1"],
        "conv1": ["conv1", "bn1"],
        "conv1.dequant": ["conv1", "bn1"],
        "relu1": ["relu1"],
        "conv2.quant": ["conv2"],
        "conv2": ["conv2"],
        "conv2.dequant": ["conv2"],
        "shape": ["shape"],
        "added": [],
    }


def test_outputs_that_are_tensors_of_the_original():
    found = ops(fusion_info(deploy(), original(), name="net"))
    desc = {"origin_format": "NCHW", "data_type": "DT_FLOAT", "origin_output_index": 0}
    assert {name: outputs(op) for name, op in found.items() if "output_desc" in op} == {
        "conv1.dequant": [{**desc, "origin_name": "bn1"}],
        "relu1": [{**desc, "origin_name": "relu1"}],
        "conv2.dequant": [{**desc, "origin_name": "conv2"}],
        "shape": [{**desc, "origin_name": "shape", "data_type": "DT_INT64"}],
    }


def test_the_mapping_that_is_given_counts():
    given = {"conv1": ["conv1", "bn1", "extra"], "added": ["relu1"], "shape": []}
    found = ops(fusion_info(deploy(), original(), name="net", origins=given))
    assert origins(found["conv1.dequant"]) == ["conv1", "bn1", "extra"]
    assert origins(found["added"]) == ["relu1"]
    assert origins(found["shape"]) == []


def test_a_second_output_has_its_index():
    text = "g (float[4] x) => (float[2] a, float[2] b) { [s] a, b = Split <num_outputs = 2> (x) }"
    model = build(text, opset=18)
    assert [o["origin_output_index"] for o in outputs(ops(fusion_info(model, model, name=""))["s"])] == [0, 1]


def test_a_sum_of_integers_under_the_name_of_a_float_tensor_is_not_it():
    """The Add of a bias goes in front of the AscendDequant; the product of the MatMul keeps its name."""
    text = "g (float[2,3] x) => (float[2,4] y) <{}[2,4] p> {{ {} }}"
    before = "[m] p = MatMul (x, W) [a] y = Add (p, B)"
    after = (
        "[m__quant] q = AscendQuant (x) [m] p = MatMul (q, W) [a] a_output0 = Add (p, B)"
        "[m__dequant] y = AscendDequant (a_output0, w)"
    )
    first = build(text.format("float", before), W=normal(3, 4), B=normal(4))
    found = ops(fusion_info(deploy(text.format("int32", after)), first, name=""))
    assert "output_desc" not in found["m"]
    assert "output_desc" not in found["a"]
    assert [o["origin_name"] for o in outputs(found["m.dequant"])] == ["a"]
    assert origins(found["m.dequant"]) == ["m"]
    assert origins(found["a"]) == ["a"]
    untold = deploy(text.format("int32", after))
    untold.graph.ClearField("value_info")
    assert "output_desc" not in ops(fusion_info(untold, first, name=""))["m"]


def test_a_pad_of_codes_is_not_the_float_one():
    text = "g (float[1,1,4,4] x) => (float[1,1,5,5] y) <{}[1,1,6,6] p> {{ {} }}"
    first = build(text.format("float", "[pad] p = Pad (x, w) [pool] y = AveragePool <kernel_shape = [2,2]> (p)"),
                  w=np.array([0, 0, 1, 1, 0, 0, 1, 1]))  # fmt: skip
    after = "[pool__quant] q = AscendQuant (x) [pad] p = Pad (q, w) [pool] r = AveragePool (p) [pool__dequant] y=D(r)"
    found = ops(fusion_info(deploy(text.format("int8", after)), first, name=""))
    assert "output_desc" not in found["pad"]
    assert [o["origin_name"] for o in outputs(found["pool.dequant"])] == ["pool"]


def test_numbered_nodes_of_a_product_of_two_variables():
    before = build("g (float[2,3] x, float[3,2] z) => (float[2,2] y) { [m] y = MatMul (x, z) }")
    text = """g (float[2,3] x, float[3,2] z) => (float[2,2] y) {
      [m__quant] a = AscendQuant (x) [m__quant1] b = AscendQuant (z)
      [m] i = MatMul (a, b) [m__dequant] y = AscendDequant (i, w) }"""
    found = ops(fusion_info(deploy(text), before, name=""))
    assert [origins(op) for op in found.values()] == [["m"]] * 4


def test_a_dot_in_a_name_is_not_a_suffix():
    before = deploy("g (float[2] x) => (float[2] y) { [a] h = Relu (x) [a__b] y = Relu (h) }")
    text = "g (float[2] x) => (float[2] y) { [a] h = Relu (x) [a__b] k = Relu (h) [a__c] y = Relu (k) }"
    found = ops(fusion_info(deploy(text), before, name=""))
    assert [origins(op) for op in found.values()] == [["a"], ["a.b"], []]


def test_what_was_replaced_by_something_else_is_not_folded():
    """Between conv and the result there are two tensors that come from elsewhere."""
    before = build(
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) { [c] h = Conv (x, W) [s] k = Sin (x) [a] y = Add (h, k) }",
        W=normal(1, 1, 1, 1),
    )
    after = build(
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) { [s] k = Sin (x) [c] y = Conv (k, W) }", W=normal(1, 1, 1, 1)
    )
    assert origins(ops(fusion_info(after, before, name=""))["c"]) == ["c"]


def test_several_that_were_folded_are_told_in_their_order():
    before = build(
        "g (float[1,1,2,2] x) => (float[1,1,2,2] y) { [c] h = Conv (x, W) [m] k = Mul (h, two) [a] y = Add (one, k) }",
        W=normal(1, 1, 1, 1), two=2.0, one=1.0,
    )  # fmt: skip
    after = build("g (float[1,1,2,2] x) => (float[1,1,2,2] y) { [c] y = Conv (x, W) }", W=normal(1, 1, 1, 1))
    assert origins(ops(fusion_info(after, before, name=""))["c"]) == ["c", "m", "a"]


def test_after_the_pass_that_folds():
    graph = GraphModel.from_proto(original())
    apply(graph, FuseBatchNorm())
    found = ops(fusion_info(graph.to_proto(), original(), name=""))
    assert origins(found["conv1"]) == ["conv1", "bn1"]
    assert [o["origin_name"] for o in outputs(found["conv1"])] == ["bn1"]


def test_written_the_same_each_time(tmp_path):
    content = fusion_info(deploy(), original(), name="net")
    path = write_fusion_json(content, tmp_path / "net_quant.json")
    first = path.read_bytes()
    assert json.loads(first) == content
    write_fusion_json(fusion_info(deploy(), original(), name="net"), path)
    assert path.read_bytes() == first
    with pytest.raises(ModelError, match="the fusion file cannot be written"):
        write_fusion_json(content, tmp_path / "no" / "net_quant.json")
