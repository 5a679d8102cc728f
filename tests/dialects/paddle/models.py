"""Models with named nodes in scopes."""

from __future__ import annotations

import onnx

from tests.graphs import build, normal

NAMES = (
    "net/block1/conv",
    "net/block1/relu",
    "net/block2/conv",
    "net/block2/add",
    "net/pool",
    "net/flat",
    "net/head/fc",
)


def named(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The model with names for its nodes, in order."""
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    return model


def scoped() -> onnx.ModelProto:
    """Two convolutions, a residual sum and a Gemm, each in a scope."""
    weights = {
        "W1": normal(8, 3, 3, 3, seed=1, scale=0.3), "W2": normal(8, 8, 1, 1, seed=2, scale=0.3),
        "F": normal(5, 8, seed=3, scale=0.3), "B": normal(5, seed=4, scale=0.1),
    }  # fmt: skip
    model = build(
        "g (float[N,3,8,8] x) => (float[N,5] y) { a = Conv(x, W1) r = Relu(a) b = Conv(r, W2) s = Add(b, r) "
        "p = GlobalAveragePool(s) f = Flatten(p) y = Gemm <transB=1> (f, F, B) }".replace(
            "a = Conv(x, W1)", "a = Conv <pads=[1,1,1,1]> (x, W1)"
        ),
        **weights,
    )
    return named(model, *NAMES)


def projections() -> onnx.ModelProto:
    """A MatMul with its Add, and a Gemm whose weight has the name Paddle gives a row-parallel one."""
    weights = {
        "W1": normal(6, 8, seed=1, scale=0.3), "b1": normal(8, seed=2, scale=0.1),
        "row_parallel_linear_0.w_0": normal(8, 4, seed=3, scale=0.3), "b2": normal(4, seed=4, scale=0.1),
    }  # fmt: skip
    model = build(
        "g (float[N,6] x) => (float[N,4] y) { a = MatMul(x, W1) h = Add(a, b1) r = Relu(h) y = Gemm(r, W2, b2) }",
        check=False, **weights,
    )  # fmt: skip
    model.graph.node[3].input[1] = "row_parallel_linear_0.w_0"
    onnx.checker.check_model(model, full_check=True)
    return named(model, "/up/MatMul", "/up/Add", "/act/Relu", "/down/Gemm")
