"""NormalizeGemm: plain factors, one bias, a MatMul with its Add; the function stays.

Tolerance: sums of eight products, factors rounded once more: 1e-6 of the output's range; seen are 3e-7.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.graph import GraphModel
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.normalize_gemm import NormalizeGemm
from onnxq.recipe import Recipe
from tests.graphs import apply, assert_same_function, build, context, normal, ops

RTOL = 1e-6
MATRIX = "g (float[N,8] x) => (float[N,6] y)"


def normalized(
    text: str, *, changed: int, left: list[str], recipe: Recipe | None = None, **constants: Any
) -> GraphModel:
    model = build(text, **constants)
    graph = GraphModel.from_proto(model)
    ctx = context(recipe=recipe)
    apply(graph, InferShapes(), ctx=ctx)
    report = apply(graph, NormalizeGemm(), ctx=ctx)
    assert report.changed == changed
    assert ops(graph) == left
    assert_same_function(model, graph, rtol=RTOL)
    assert apply(graph, NormalizeGemm(), ctx=ctx).changed == 0
    return graph


@pytest.mark.parametrize("bias", [None, (), (1,), (6,), (1, 6), (1, 1)])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_factors_go_into_the_constants(trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    x = "float[8,3] x" if trans_a else "float[3,8] x"
    inputs = "x, W" if bias is None else "x, W, B"
    graph = normalized(
        f"""g ({x}) => (float[3,6] y) {{
            y = Gemm <transA={trans_a}, transB={trans_b}, alpha=0.5, beta=-2.0> ({inputs}) }}""",
        changed=1,
        left=["Gemm"],
        W=normal(6, 8) if trans_b else normal(8, 6),
        **({} if bias is None else {"B": normal(*bias)}),
    )
    gemm = graph.nodes()[0]
    assert "alpha" not in gemm.attrs
    assert "beta" not in gemm.attrs
    assert bias is None or graph.shape(gemm.inputs[2]) == (6,)


@pytest.mark.parametrize("shape", [(3, 6), (3, 1)])
def test_a_bias_that_differs_from_row_to_row_is_left_with_its_factor(shape: tuple[int, ...]) -> None:
    graph = normalized(
        "g (float[3,8] x) => (float[3,6] y) { y = Gemm <beta=0.5> (x, W, B) }",
        changed=0,
        left=["Gemm"],
        W=normal(8, 6),
        B=normal(*shape),
    )
    assert graph.nodes()[0].attrs["beta"] == 0.5


def test_shared_constants_stay_for_their_other_readers() -> None:
    graph = normalized(
        "g (float[N,8] x) => (float[N,8] y) { a = Gemm <alpha=3.0> (x, W, B) y = Gemm(a, W, B) }",
        changed=1,
        left=["Gemm", "Gemm"],
        W=normal(8, 8),
        B=normal(8),
    )
    first, second = graph.nodes()
    assert first.inputs[1].name == "W_alpha"
    assert [t.name for t in second.inputs[1:]] == ["W", "B"]


@pytest.mark.parametrize("bias", [(6,), (1, 6), (1,), ()])
@pytest.mark.parametrize("add", ["Add(a, B)", "Add(B, a)"])
def test_a_product_and_its_bias_become_a_gemm_with_the_name_of_the_product(add: str, bias: tuple[int, ...]) -> None:
    graph = normalized(
        f"{MATRIX} {{ [fc] a = MatMul(x, W) [plus] y = {add} }}",
        changed=1,
        left=["Gemm"],
        W=normal(8, 6),
        B=normal(*bias),
    )
    assert graph.nodes()[0].name == "fc"
    assert graph.shape(graph.nodes()[0].inputs[2]) == (6,)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,2,8] x) => (float[N,2,6] y) { a = MatMul(x, W) y = Add(a, B) }",
        "g (float[N,8] x) => (float[1,N,6] y) { a = MatMul(x, W) y = Add(a, B3) }",
        "g (float[3,8] x) => (float[3,6] y) { a = MatMul(x, W) y = Add(a, R) }",
        f"{MATRIX} {{ a = MatMul(x, W) b = Add(a, B) y = Add(a, b) }}",
        f"{MATRIX} {{ a = MatMul(x, W) y = Sub(a, B) }}",
        f"{MATRIX} {{ a = MatMul(x, W) y = Add(a, a) }}",
        "g (float[N,8] x) => (float[N,6] y, float[N,6] a) { a = MatMul(x, W) y = Add(a, B) }",
        "g (float[N,8] x, float[8,6] W0) => (float[N,6] y) { a = MatMul(x, W0) y = Add(a, B) }",
    ],
    ids=["rank 3", "bias of rank 3", "rows", "read twice", "Sub", "a + a", "graph output", "weight fed"],
)
def test_other_products_stay(text: str) -> None:
    constants = {"W": normal(8, 6), "B": normal(6), "B3": normal(1, 1, 6), "R": normal(3, 1)}
    used = {k: v for k, v in constants.items() if f"{k})" in text}
    normalized(text, changed=0, left=ops(build(text, **used)), **used)


@pytest.mark.parametrize("entry", ["fc", "plus", "MatMul", "Add", "pl*"])
def test_what_the_recipe_skips_stays_what_it_is(entry: str) -> None:
    text = f"{MATRIX} {{ [fc] a = MatMul(x, W) [plus] y = Add(a, B) }}"
    recipe = onnxq.Recipe.from_dict({"skip": [entry]})
    normalized(text, changed=0, left=["MatMul", "Add"], recipe=recipe, W=normal(8, 6), B=normal(6))


def test_a_weight_in_float16_is_left_alone() -> None:
    text = "g (float16[N,8] x) => (float16[N,6] y) { y = Gemm <alpha=0.5> (x, W) }"
    graph = GraphModel.from_proto(build(text, W=normal(8, 6).astype(np.float16)))
    assert apply(graph, NormalizeGemm()).changed == 0
