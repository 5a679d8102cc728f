"""SplitLinear: the same numbers from parts, and what cannot be cut stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq import stages
from onnxq.errors import GraphError, RecipeError
from onnxq.passes.split_linear import SplitLinear
from tests.graphs import build, normal, run

FORMS = {
    "MatMul": "{ [fc] y = MatMul(x, W) }",
    "Gemm": "{ [fc] y = Gemm <alpha=0.5, beta=2.0> (x, W, C) }",
    "transB": "{ [fc] y = Gemm <transB=1> (x, V, C) }",
    "no bias": "{ [fc] y = Gemm(x, W) }",
}
X = normal(7, 10, seed=4)


def model(form: str, opset: int = 17) -> onnx.ModelProto:
    constants = {"W": normal(10, 5, seed=1), "V": normal(5, 10, seed=2), "C": normal(5, seed=3)}
    text = FORMS[form]
    used = {k: v for k, v in constants.items() if f" {k}" in text}
    return build(f"g (float[N,10] x) => (float[N,5] y) {text}", opset=opset, **used)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("along", ["outputs", "inputs"])
@pytest.mark.parametrize("form", FORMS)
def test_parts_give_the_same_numbers(form: str, along: Any, parts: int, opset: int) -> None:
    before = model(form, opset)
    after = stages.rewrite(before, [SplitLinear(("fc",), along, parts)]).to_proto()
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_allclose(run(after, {"x": X})["y"], run(before, {"x": X})["y"], atol=2e-5)
    products = [n.name for n in after.graph.node if n.op_type in ("MatMul", "Gemm")]
    assert products == (["fc"] if form == "MatMul" and parts == 1 else [f"fc/part{i}" for i in range(parts)])
    joins = {n.op_type for n in after.graph.node} & {"Concat", "Sum"}
    assert joins == (set() if parts == 1 else {"Concat" if along == "outputs" else "Sum"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{ [fc] y = Gemm <transA=1> (x, W) }", "its first factor is transposed"),
        ("{ [fc] y = MatMul(x, x) }", "'x' is not a float32 constant"),
        ("{ [fc] y = Relu(x) }", "Relu is no linear layer"),
    ],
)
def test_other_layers_stay(text: str, reason: str) -> None:
    constants = {"W": normal(6, 6)} if " W" in text else {}
    before = build(f"g (float[6,6] x) => (float[6,6] y) {text}", **constants)
    graph = stages.name_nodes(before)
    report = SplitLinear(("fc",), "outputs", 2).run(graph, None)  # type: ignore[arg-type] - it needs no context
    assert report.changed == 0
    assert reason in report.skipped[0].reason


def test_more_parts_than_there_are_channels_stay() -> None:
    graph = stages.name_nodes(model("MatMul"))
    report = SplitLinear(("fc",), "outputs", 6).run(graph, None)  # type: ignore[arg-type] - it needs no context
    assert report.skipped[0].reason == "it has 5 outputs, which 6 parts cannot share"


def test_names_and_numbers_are_checked() -> None:
    with pytest.raises(GraphError, match="there is no node 'fd'; did you mean 'fc'"):
        stages.rewrite(model("Gemm"), [SplitLinear(("fd",), "outputs", 2)])
    with pytest.raises(RecipeError, match="parts found 0"):
        stages.split_linear(["fc"], "inputs", 0)
