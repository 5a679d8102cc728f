"""Operators whose gradients in onnxruntime-training 1.19.2 were compared with finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from onnxq.graph import Node

_ALL = frozenset(range(1 << 10))
_FIRST = frozenset({0})

DERIVED: Mapping[str, frozenset[int]] = MappingProxyType(
    dict.fromkeys(
        {"Conv", "Gemm", "MatMul", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu", "Erf", "Exp", "Log", "Sqrt", "Neg"}
        | {"Abs", "Sin", "Cos", "Reciprocal", "Identity", "Add", "Sub", "Mul", "Div", "Min", "Max", "Concat"}
        | {"Transpose", "Flatten", "GlobalAveragePool", "AveragePool", "MaxPool", "Softmax", "LogSoftmax"},
        _ALL,
    )
    | dict.fromkeys(
        {"Pow", "Clip", "Split", "Slice", "Gather", "GatherElements", "GatherND", "Reshape", "Squeeze", "Unsqueeze"}
        | {"Expand", "Tile", "Pad", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp", "TopK", "Trilu", "Cast"},
        _FIRST,
    )
    | dict.fromkeys(["LayerNormalization", "BatchNormalization"], frozenset({0, 1, 2}))
    | dict.fromkeys(["ScatterND", "ScatterElements"], frozenset({0, 2}))
    | {"Where": frozenset({1, 2}), "LSTM": frozenset({0, 1, 2, 3, 5, 6}), "GRU": frozenset({0, 1, 2, 3, 5})}
)
"""The inputs of an operator by which its derivative is right; all others have none, silently."""

STOPPED = frozenset(
    {"SequenceConstruct", "SequenceAt", "Shape", "Size", "ConstantOfShape", "Range", "Equal", "Greater", "Less"}
    | {"GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf", "ArgMax", "ArgMin", "NonZero"}
)
"""Operators that no gradient passes, as it should be: their results are no real numbers, or they hold it back."""


def op_of(node: Node) -> str:
    """The type of a node; with its domain if that is not the default one."""
    domain = node.domain or ""
    return str(node.op) if domain in ("", "ai.onnx") else f"{domain}::{node.op}"
