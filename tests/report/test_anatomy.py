"""What reports find out about a quantized model: from its plan, or from the two files alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.modelio import load_model
from onnxq.report.anatomy import channel_axis, name_of
from onnxq.report.anatomy_models import read_anatomy
from onnxq.report.anatomy_result import anatomy_of
from onnxq.report.blocks import graph_section, layer_section, scale_section, value_section
from tests.graphs import build, normal

MODELS = Path(__file__).resolve().parents[2] / "models"
RECIPES = {
    "default": {"calibration": {"samples": 4}},
    "tensorrt": {"target": "tensorrt", "calibration": {"samples": 4}},
    "qnn": {"target": "qnn", "calibration": {"samples": 4}},
    "weights": {"scheme": {"kind": "weight_only"}},
    "blocks": {"scheme": {"kind": "weight_only", "storage": "blocks"}, "weights": {"type": "int4"}},
    "dynamic": {"scheme": {"kind": "dynamic"}},
}


@pytest.fixture(scope="module", params=RECIPES, ids=str)
def result(request):
    data = MODELS / "data" / "digits_calib.npz"
    return onnxq.quantize(MODELS / "digits_transformer.onnx", data, recipe=RECIPES[request.param], threads=1)


def test_the_files_tell_what_the_plan_said(result):
    """Names of decoded weights and numbers of blocks are up to the storage; roles are not."""
    read = read_anatomy(load_model(MODELS / "digits_transformer.onnx"), result.graph)
    planned = {d.node: d.role for d in result.plan.decisions}
    roles = {name: d.role for name, d in read.decisions.items() if name in planned}
    assert len(roles) >= len(planned) - 1
    assert {name: role for name, role in roles.items() if role != planned[name]} == {}
    known = anatomy_of(result, {})
    for name in read.activations.keys() & known.activations.keys():
        np.testing.assert_array_equal(read.activations[name].scale, known.activations[name].scale)
        np.testing.assert_array_equal(read.activations[name].zero_point, known.activations[name].zero_point)
        assert read.activations[name].kind.split(",")[0] == known.activations[name].kind.split(",")[0]
    for place in read.weights.keys() & known.weights.keys():
        np.testing.assert_array_equal(read.weights[place].scale, known.weights[place].scale)
    if result.plan.activations and result.recipe.scheme.kind == "static":
        assert read.activations.keys() >= known.activations.keys() - {"image"}
        assert read.weights


def test_every_scheme_has_its_sections(result):
    anatomy = anatomy_of(result, {})
    (table,) = [block for block in layer_section(anatomy).blocks if hasattr(block, "rows")]
    assert Counter(row[2] for row in table.rows) == Counter(d.role for d in result.plan.decisions)
    assert len(graph_section(anatomy).blocks[0].nodes) == len(table.rows) + 2
    assert scale_section(anatomy) is not None
    weights = value_section(anatomy).blocks[-1]
    assert {t.name for t in weights.tensors} <= {w.tensor for w in result.plan.weights}
    assert weights.tensors


def test_channels_of_weights():
    text = """g (float[N, 4, 8, 8] x, float[N, 4] z) => (float[N, 3, 8, 8] c, float[N, 6, 9, 9] t, float[N, 3] a,
                                                       float[N, 3] b, float[N, 5] m) {
        c = Conv(x, C)
        t = ConvTranspose(x, T)
        a = Gemm(z, A)
        b = Gemm<transB = 1>(z, B)
        m = MatMul(z, M)
    }"""
    weights = {
        "C": normal(3, 4, 1, 1),
        "T": normal(4, 6, 2, 2),
        "A": normal(4, 3),
        "B": normal(3, 4),
        "M": normal(4, 5),
    }
    graph = onnxq.GraphModel.from_proto(build(text, **weights))
    assert [channel_axis(graph, node, 1) for node in graph.nodes()] == [0, 1, 1, 0, 1]


def test_nodes_without_names_go_by_their_outputs():
    graph = onnxq.GraphModel.from_proto(build("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    (node,) = graph.nodes()
    assert name_of(node) == "y"
    assert read_anatomy(graph, graph).decisions["y"].role == "float"
