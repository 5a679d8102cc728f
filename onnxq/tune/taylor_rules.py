"""How a slope at a node's output becomes a slope at its inputs: elementwise operators, products, norms, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx

from onnxq.tune.taylor_moves import MOVES
from onnxq.tune.taylor_nodes import STEP, Shape, Slopes, attribute
from onnxq.tune.taylor_windows import WINDOWS

Rule = Callable[[Slopes, onnx.NodeProto, int, str], str | None]
"""Of a node, the index of an input and the slope at the first output: the slope at that input, None if unknown."""


def _passed_on(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return slope if index == 0 and s.shapes[node.input[0]] == s.shapes[node.output[0]] else None


def _secant(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    """Of an operator that treats every element by itself: the slope between two points at a small distance."""
    x = node.input[0]
    if index != 0 or s.shapes[x] != s.shapes[node.output[0]]:
        return None
    step = STEP * s.sizes[x] + 1e-12
    ends = [s.again(node, {0: s.node(op, x, s.number(step))})[0] for op in ("Add", "Sub")]
    rise = s.node("Mul", s.node("Sub", *ends), s.number(0.5 / step))
    return s.node("Mul", slope, rise)


def _clamp(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return s.masked(slope, node.input[0], node.output[0]) if index == 0 else None


def _of_output(write: Callable[[Slopes, str], str]) -> Rule:
    """A rule for functions whose derivative is simple in terms of their value."""

    def rule(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
        return s.node("Mul", slope, write(s, node.output[0])) if index == 0 else None

    return rule


def _sigmoid(s: Slopes, y: str) -> str:
    return s.node("Mul", y, s.node("Sub", s.number(1.0), y))


def _tanh(s: Slopes, y: str) -> str:
    return s.node("Sub", s.number(1.0), s.node("Mul", y, y))


def _reciprocal(s: Slopes, y: str) -> str:
    return s.node("Neg", s.node("Mul", y, y))


def _log(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return s.node("Div", slope, node.input[0]) if index == 0 else None


def _negative(s: Slopes, _: onnx.NodeProto, index: int, slope: str) -> str | None:
    return s.node("Neg", slope) if index == 0 else None


def _broadcast(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str:
    return s.summed_to(slope, s.shapes[node.output[0]], s.shapes[node.input[index]])


def _sum(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return _broadcast(s, node, index, slope)


def _difference(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return _broadcast(s, node, index, s.node("Neg", slope) if index else slope)


def _product(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return _broadcast(s, node, index, s.node("Mul", slope, node.input[1 - index]))


def _quotient(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    part = s.node("Div", slope, node.input[1])
    if index:
        part = s.node("Neg", s.node("Mul", part, node.output[0]))
    return _broadcast(s, node, index, part)


def _extreme(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return _broadcast(s, node, index, s.masked(slope, node.output[0], node.input[index]))


def _where(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    ends = (slope, s.number(0.0)) if index == 1 else (s.number(0.0), slope)
    return _broadcast(s, node, index, s.node("Where", node.input[0], *ends))


def _matmul(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    a, b = (s.shapes[name] for name in node.input)
    if min(len(a), len(b)) < 2:
        return None
    other = node.input[1 - index]
    rank = len(s.shapes[other])
    flipped = s.node("Transpose", other, perm=[*range(rank - 2), rank - 1, rank - 2])
    pair = (flipped, slope) if index else (slope, flipped)
    found: Shape = (*s.shapes[node.output[0]][:-2], *(b if index else a)[-2:])
    return s.summed_to(s.node("MatMul", *pair), found, b if index else a)


def _gemm(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    if index == 2:
        scaled = s.node("Mul", slope, s.number(float(attribute(node, "beta", 1.0))))
        return _broadcast(s, node, index, scaled)
    flips = [int(attribute(node, name, 0)) for name in ("transA", "transB")]
    alpha = float(attribute(node, "alpha", 1.0))
    other = node.input[1 - index]
    own, their = flips[index], flips[1 - index]
    if index == 0:
        pair, turned = ((other, slope), (their, 1)) if own else ((slope, other), (0, 1 - their))
    else:
        pair, turned = ((slope, other), (1, their)) if own else ((other, slope), (1 - their, 0))
    return s.node("Gemm", *pair, alpha=alpha, transA=turned[0], transB=turned[1])


def _softmax(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    y = node.output[0]
    axis = int(attribute(node, "axis", -1)) % len(s.shapes[y])
    weighted = s.node("Mul", slope, y)
    return s.node("Sub", weighted, s.node("Mul", y, s.total(weighted, [axis]))) if index == 0 else None


def _log_softmax(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    y = node.output[0]
    axis = int(attribute(node, "axis", -1)) % len(s.shapes[y])
    spread = s.node("Mul", s.node("Exp", y), s.total(slope, [axis]))
    return s.node("Sub", slope, spread) if index == 0 else None


def _normalized(s: Slopes, x: str, axes: list[int], epsilon: float, slope: str) -> str:
    """Through ``(x - mean) / sqrt(variance + epsilon)``."""
    shape = s.shapes[x]
    centred = s.node("Sub", x, s.mean(x, shape, axes))
    variance = s.mean(s.node("Mul", centred, centred), shape, axes)
    deviation = s.node("Sqrt", s.node("Add", variance, s.number(epsilon)))
    unit = s.node("Div", centred, deviation)
    along = s.node("Mul", unit, s.mean(s.node("Mul", slope, unit), shape, axes))
    return s.node("Div", s.node("Sub", s.node("Sub", slope, s.mean(slope, shape, axes)), along), deviation)


def _layer_norm(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    x = node.input[0]
    rank = len(s.shapes[x])
    axes = list(range(int(attribute(node, "axis", -1)) % rank, rank))
    epsilon = float(attribute(node, "epsilon", 1e-5))
    return _normalized(s, x, axes, epsilon, s.node("Mul", slope, node.input[1])) if index == 0 else None


def _instance_norm(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    x = node.input[0]
    rank = len(s.shapes[x])
    scale = s.reshape(node.input[1], [-1, *[1] * (rank - 2)])
    epsilon = float(attribute(node, "epsilon", 1e-5))
    return _normalized(s, x, list(range(2, rank)), epsilon, s.node("Mul", slope, scale)) if index == 0 else None


def _reduced_axes(s: Slopes, node: onnx.NodeProto) -> list[int] | None:
    rank = len(s.shapes[node.input[0]])
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = s.value(node.input[1])
        if axes is None:
            return None
    if axes is None or not len(axes):
        return [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return [int(axis) % rank for axis in axes]


def _spread_out(s: Slopes, node: onnx.NodeProto, tensor: str, axes: list[int]) -> str:
    shape = s.shapes[node.input[0]]
    return s.expand(s.reshape(tensor, [1 if a in axes else size for a, size in enumerate(shape)]), shape)


def _reduction(mean: bool) -> Rule:
    def rule(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
        axes = _reduced_axes(s, node)
        if index or axes is None:
            return None
        count = math.prod(s.shapes[node.input[0]][axis] for axis in axes) if mean else 1
        return _spread_out(s, node, s.node("Mul", slope, s.number(1.0 / count)), axes)

    return rule


def _reduced_extreme(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    axes = _reduced_axes(s, node)
    if index or axes is None:
        return None
    return s.masked(_spread_out(s, node, slope, axes), node.input[0], _spread_out(s, node, node.output[0], axes))


def _global_pool(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    shape = s.shapes[node.input[0]]
    return s.expand(s.node("Mul", slope, s.number(1.0 / math.prod(shape[2:]))), shape) if index == 0 else None


def _global_max(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return s.masked(slope, node.input[0], node.output[0]) if index == 0 else None


_SECANTS = (
    *("LeakyRelu", "PRelu", "HardSigmoid", "HardSwish", "Elu", "Selu", "Celu", "Softplus", "Softsign", "Erf", "Gelu"),
    *(
        "FastGelu",
        "QuickGelu",
        "BiasGelu",
        "Sin",
        "Cos",
        "Mish",
        "Swish",
        "ThresholdedRelu",
        "BatchNormalization",
        "Pow",
    ),
)
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(("Identity", "Dropout", "Cast"), _passed_on),
        **dict.fromkeys(_SECANTS, _secant),
        **dict.fromkeys(("Relu", "Clip"), _clamp),
        "Sigmoid": _of_output(_sigmoid),
        "Tanh": _of_output(_tanh),
        "Exp": _of_output(lambda s, y: y),
        "Sqrt": _of_output(lambda s, y: s.node("Div", s.number(0.5), y)),
        "Reciprocal": _of_output(_reciprocal),
        "Log": _log,
        "Neg": _negative,
        "Abs": lambda s, n, i, slope: s.node("Mul", slope, s.node("Sign", n.input[0])),
        **dict.fromkeys(("Add", "Sum"), _sum),
        "Sub": _difference,
        "Mul": _product,
        "Div": _quotient,
        **dict.fromkeys(("Max", "Min"), _extreme),
        "Where": _where,
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Softmax": _softmax,
        "LogSoftmax": _log_softmax,
        "LayerNormalization": _layer_norm,
        "InstanceNormalization": _instance_norm,
        "ReduceMean": _reduction(True),
        "ReduceSum": _reduction(False),
        **dict.fromkeys(("ReduceMax", "ReduceMin"), _reduced_extreme),
        "GlobalAveragePool": _global_pool,
        "GlobalMaxPool": _global_max,
        **WINDOWS,
        **MOVES,
    }
)
"""By operator type."""
