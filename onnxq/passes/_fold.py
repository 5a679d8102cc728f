"""Dividing a tensor by constants through what computes it, so that the division costs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import Dim, GraphModel, Node, Tensor
from onnxq.passes._channel_path import Place, numbers, step
from onnxq.passes._linear import LINEAR_OPS, Vector, describe, kind, read_linear, why_not_constant, why_shared

_ELEMENTWISE = ("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Clip")
_MOVED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_REDUCED = ("ReduceMean", "ReduceMax", "ReduceSum")
_DEPTH = 40
_LARGEST = 1 << 20

Factors = NDArray[np.float64]
"""What a tensor is divided by: as many axes as the tensor, each of its length or 1."""


@dataclass(frozen=True, slots=True, eq=False)
class _Edit:
    node: Node
    index: int
    values: NDArray[np.float32]


@dataclass(slots=True)
class Fold:
    """Changes of constants that divide a tensor by factors.

    Attributes:
        edits: The changes.
        tensors: Names of the tensors that have other values afterwards.
    """

    edits: list[_Edit] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)

    def apply(self, graph: GraphModel, suffix: str) -> None:
        """Write the new constants; the old ones may be shared and stay."""
        for edit in self.edits:
            name = graph.unique_name(f"{edit.node.inputs[edit.index].name}_{suffix}")
            graph.set_input(edit.node, edit.index, graph.add_constant(name, edit.values))
            if edit.node.op == "Gemm" and edit.index == 2:
                edit.node.attrs.pop("beta", None)  # it is in the values


def find_fold(
    graph: GraphModel, tensor: Tensor, factors: Factors, *, fixed: Collection[str], patterns: Collection[str]
) -> Fold | str:
    """How to divide `tensor` by `factors` without a node for it, or why that is not possible.

    The readers of `tensor` are the caller's concern. From there the division goes back through operations that let
    factors pass, over tensors that nobody else reads, into the constants of every branch.

    Args:
        graph: The graph; it is not changed.
        tensor: What is to be divided.
        factors: All > 0.
        fixed: Names of layers whose weights must stay.
        patterns: Names of nodes whose constants must keep their shapes.
    """
    walk = _Walk(graph, fixed, patterns, Fold())
    reason = walk.divide(tensor, factors)
    if reason is not None:
        return reason
    if not all(np.isfinite(edit.values).all() for edit in walk.fold.edits):
        return "a constant would overflow"
    return walk.fold


@dataclass(frozen=True, slots=True)
class _Walk:
    graph: GraphModel
    fixed: Collection[str]
    patterns: Collection[str]
    fold: Fold

    def divide(self, tensor: Tensor, factors: Factors, depth: int = 0) -> str | None:
        """Plan the division of `tensor` where it is computed; returns why not."""
        node = self.graph.producer(tensor)
        if node is None:
            return f"{tensor.name!r} is a graph input"
        if depth > _DEPTH or node.outputs[0] is not tensor:
            return _barrier(node)
        self.fold.tensors.append(tensor.name)
        rule = _RULES.get(kind(node))
        return _barrier(node) if rule is None else rule(self, node, factors, depth)

    def into(self, tensor: Tensor, factors: Factors | None, node: Node, depth: int) -> str | None:
        """Go on at an input of `node`, which nobody else may read."""
        if factors is None:
            return f"the factors do not fit the input {tensor.name!r} of {describe(node)}"
        return why_shared(self.graph, tensor) or self.divide(tensor, factors, depth + 1)

    def attempt(self, plan: Callable[[], str | None]) -> str | None:
        """Run a plan and take it back if it fails."""
        edits, tensors = len(self.fold.edits), len(self.fold.tensors)
        reason = plan()
        if reason is not None:
            del self.fold.edits[edits:], self.fold.tensors[tensors:]
        return reason

    def change(self, node: Node, index: int, values: Factors) -> None:
        with np.errstate(over="ignore"):
            self.fold.edits.append(_Edit(node, index, values.astype(np.float32)))

    def constant(self, node: Node, index: int, factors: Factors, *, grow: bool) -> str | None:
        """Multiply the constant at input `index` by factors; it may only get larger if `grow`."""
        tensor = node.inputs[index]
        if (reason := why_not_constant(self.graph, tensor, "constant")) is not None:
            return reason
        values = np.asarray(self.graph.value(tensor), np.float64)
        fitting = _without_leading(factors, values.ndim)
        shape = np.broadcast_shapes(values.shape, fitting.shape)
        if shape != values.shape and (not grow or node.name in self.patterns or math.prod(shape) > _LARGEST):
            return f"the constant {tensor.name!r} of {describe(node)} would have to grow to one number per channel"
        self.change(node, index, values * fitting)
        return None


def _barrier(node: Node) -> str:
    return f"{describe(node)} does not let a factor per channel pass"


# ---- factors on other shapes


def fitted(graph: GraphModel, factors: Factors, tensor: Tensor) -> Factors | None:
    """The same factors for a tensor that is broadcast to the shape they belong to.

    None if they vary over an axis it is broadcast along, or its shape is not known.
    """
    shape = graph.shape(tensor)
    if shape is None:
        return None
    result = _without_leading(factors, len(shape))
    if result.ndim != len(shape):
        return None
    return result if all(f in (1, d) for f, d in zip(result.shape, shape, strict=True)) else None


def _without_leading(factors: Factors, rank: int) -> Factors:
    """Drop leading axes of length 1 as long as there are more than `rank`."""
    while factors.ndim > rank and factors.shape[0] == 1:
        factors = factors[0]
    return factors


def _varying(factors: Factors) -> list[int]:
    return [axis for axis, size in enumerate(factors.shape) if size > 1]


def _vector(factors: Factors, axis: int, size: int) -> Vector | None:
    """The factors of one axis of this length, if they vary over no other."""
    axis %= max(factors.ndim, 1)
    if not factors.ndim or any(a != axis for a in _varying(factors)) or factors.shape[axis] not in (1, size):
        return None
    return np.broadcast_to(factors.reshape(-1), (size,))


def reshaped(factors: Factors, outer: Sequence[Dim], inner: Sequence[Dim]) -> Factors | None:
    """The factors on the other side of a Reshape, from the shape `outer` to `inner`; None if that cannot be known."""
    varying = _varying(factors)
    if not varying:
        return np.full((1,) * len(inner), factors.reshape(-1)[0])
    ends = {math.prod(rest): rest for i in range(len(inner), -1, -1) if (rest := _whole(inner[i:])) is not None}
    for first in range(varying[0], -1, -1):  # the shortest run of last axes that holds as much on both sides
        tail = _whole(outer[first:])
        if tail is None or math.prod(tail) > _LARGEST:
            break
        rest = ends.get(math.prod(tail))
        if rest is not None and 0 not in tail:
            full = np.broadcast_to(factors.reshape(factors.shape[first:]), tail).reshape(rest)
            return _collapsed(full.reshape((1,) * (len(inner) - len(rest)) + rest))
    axis = varying[0]  # the axes up to the only one that counts stay as they are
    same = len(inner) > axis and tuple(outer[: axis + 1]) == tuple(inner[: axis + 1]) and None not in outer[: axis + 1]
    if len(varying) == 1 and same:
        return factors.reshape((1,) * axis + (-1,) + (1,) * (len(inner) - axis - 1))
    return None


def _whole(dims: Sequence[Dim]) -> tuple[int, ...] | None:
    found = tuple(d for d in dims if isinstance(d, int))
    return found if len(found) == len(dims) else None


def _collapsed(factors: Factors) -> Factors:
    """Length 1 for every axis the factors do not vary over."""
    for axis in _varying(factors):
        first = factors.take([0], axis=axis)
        if (factors == first).all():
            factors = first
    return factors


# ---- operations


def _linear(walk: _Walk, node: Node, factors: Factors, depth: int) -> str | None:
    if kind(node) == "MatMul" and not any(walk.graph.is_constant(t) for t in node.inputs):
        return _product(walk, node, factors, depth)
    layer = read_linear(walk.graph, node)
    if isinstance(layer, str):
        return f"{describe(node)}: {layer}"
    if node.name in walk.fixed:
        return f"the weight of {describe(node)} gets numbers of its own, which a record may carry to another graph"
    axis = -1 if node.op == "MatMul" else 1
    vector = _vector(factors, axis, layer.layout.out_channels)
    if vector is None:
        return _barrier(node)
    weight = layer.layout.scaled(walk.graph.value(layer.weight), outputs=1.0 / vector)
    walk.fold.edits.append(_Edit(node, 1, weight))
    if layer.bias is not None:
        walk.change(node, 2, layer.bias / vector)
    return None


def _product(walk: _Walk, node: Node, factors: Factors, depth: int) -> str | None:
    """``A B`` of two activations: factors of its columns are those of the columns of B."""
    if factors.ndim < 2 or factors.shape[-2] != 1:
        return _barrier(node)
    right = node.inputs[1]
    return walk.into(right, fitted(walk.graph, factors, right), node, depth)


def _norm(walk: _Walk, node: Node, factors: Factors, depth: int) -> str | None:
    """Scale and bias of a normalization; its other outputs do not depend on them, unless it is being trained."""
    graph, places = walk.graph, _LAST_NORMS.get(kind(node))
    last = places is not None
    if not last and (node.attrs.get("training_mode", 0) or sum(bool(o.name) for o in node.outputs) != 1):
        return _barrier(node)
    if last and int(node.attrs.get("axis", -1)) not in (-1, factors.ndim - 1):
        return _barrier(node)
    for index in places or (1, 2):
        if len(node.inputs) <= index or not node.inputs[index].name:
            continue
        tensor = node.inputs[index]
        if (reason := why_not_constant(graph, tensor, "scale or bias")) is not None:
            return f"{describe(node)}: {reason}"
        values = np.asarray(graph.value(tensor), np.float64)
        vector = _vector(factors, -1 if last else 1, values.size) if values.ndim == 1 else None
        if vector is None:
            return _barrier(node)
        walk.change(node, index, values / vector)
    return None


def _arithmetic(walk: _Walk, node: Node, factors: Factors, depth: int) -> str | None:
    constants = [i for i, t in enumerate(node.inputs) if walk.graph.is_constant(t)]
    if len(constants) > 1:
        return _barrier(node)

    def into(index: int) -> str | None:
        return walk.into(node.inputs[index], fitted(walk.graph, factors, node.inputs[index]), node, depth)

    if kind(node) in ("Add", "Sub"):
        reasons = (walk.constant(node, i, 1.0 / factors, grow=True) if i in constants else into(i) for i in (0, 1))
        return next((r for r in reasons if r is not None), None)
    if not constants:
        first = walk.attempt(lambda: into(0))
        return first if first is None or kind(node) == "Div" else walk.attempt(lambda: into(1)) and first
    index = constants[0]
    change = factors if kind(node) == "Div" and index == 1 else 1.0 / factors
    if walk.constant(node, index, change, grow=False) is None:
        return None
    divides = kind(node) == "Div" and index == 0
    if not divides and walk.attempt(lambda: into(1 - index)) is None:
        return None
    return walk.constant(node, index, change, grow=True)


def _transpose(walk: _Walk, node: Node, factors: Factors, depth: int) -> str | None:
    order = [int(a) for a in node.attrs.get("perm", range(factors.ndim)[::-1])]
    if len(order) != factors.ndim:
        return _barrier(node)
    before = factors.transpose(np.argsort(order))
    return walk.into(node.inputs[0], fitted(walk.graph, before, node.inputs[0]), node, depth)


def _reshape(walk: _Walk, node: Node, factors: Factors, depth: int) -> str | None:
    outer, inner = walk.graph.shape(node.outputs[0]), walk.graph.shape(node.inputs[0])
    if outer is None or inner is None or len(outer) != factors.ndim:
        return _barrier(node)
    before = reshaped(factors, outer, inner)
    return _barrier(node) if before is None else walk.into(node.inputs[0], before, node, depth)


def _reduction(walk: _Walk, node: Node, factors: Factors, depth: int) -> str | None:
    source = node.inputs[0]
    axes, rank = numbers(walk.graph, node, 1, "axes"), walk.graph.rank(source)
    if not axes or rank is None:
        return _barrier(node)
    gone = sorted({int(a) % rank for a in axes})
    kept = bool(node.attrs.get("keepdims", 1))
    if factors.ndim != (rank if kept else rank - len(gone)):
        return _barrier(node)
    before = factors if kept else np.expand_dims(factors, gone)
    if any(before.shape[a] != 1 for a in gone):
        return _barrier(node)
    return walk.into(source, fitted(walk.graph, before, source), node, depth)


def _homogeneous(walk: _Walk, node: Node, factors: Factors, depth: int) -> str | None:
    source, varying = node.inputs[0], _varying(factors)
    if walk.graph.rank(source) != factors.ndim or (len(varying) > 1 and kind(node) not in _ELEMENTWISE):
        return _barrier(node)
    place = Place(source, factors.ndim, factors.ndim - (varying[0] if varying else 1))
    passed = step(walk.graph, node, 0, place, drop_clips=False)
    return _barrier(node) if isinstance(passed, str) else walk.into(source, factors, node, depth)


_LAST_NORMS: dict[str, tuple[int, ...]] = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "com.microsoft::SkipLayerNormalization": (2, 3),
    "com.microsoft::SkipSimplifiedLayerNormalization": (2,),
    "com.microsoft::EmbedLayerNormalization": (5, 6),
}
"""Normalizations over the last axis, with the indexes of their scale and bias."""

_Rule = Callable[[_Walk, Node, Factors, int], str | None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(LINEAR_OPS, _linear),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", *_LAST_NORMS), _norm),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(_MOVED, _reshape),
    **dict.fromkeys(_REDUCED, _reduction),
    **dict.fromkeys(_ELEMENTWISE, _homogeneous),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Pad"), _homogeneous),
    "Transpose": _transpose,
}
