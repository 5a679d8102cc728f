"""From one layer to the next through operations that let a positive factor per channel pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxq.graph import GraphModel, Node, Tensor, Use
from onnxq.passes._affine import Affine, read_affine
from onnxq.passes._linear import LINEAR_OPS, Linear, describe, kind, optional_input, read_linear, why_shared

_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """A layer, the only layer that reads its result, and what has to change with a factor per channel.

    Attributes:
        first: Its output channels may be divided by positive factors ...
        second: ... if its input channels are multiplied by them.
        repeat: Each channel of `first` is this many consecutive input channels of `second`; more than
            1 behind a Flatten.
        bias_add: The Add behind a MatMul, whose constant is divided too, or None.
        clips: The Clips between the two whose upper bound would have to go.
    """

    first: Linear
    second: Linear
    repeat: int
    bias_add: Node | None
    clips: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where the channels of a tensor are.

    Attributes:
        tensor: The tensor.
        rank: Its rank, None where unknown.
        from_right: Its channel axis counted from the right; 1 is the last.
    """

    tensor: Tensor
    rank: int | None
    from_right: int

    @property
    def axis(self) -> int | None:
        """The channel axis counted from the left."""
        return None if self.rank is None else self.rank - self.from_right

    @property
    def spatial(self) -> bool:
        """Whether this is (N, C, ...) with at least one axis after the channels."""
        return self.rank is not None and self.rank >= 3 and self.axis == 1


def find_path(graph: GraphModel, first: Linear, *, drop_clips: bool) -> Path | str:
    """The path from `first` to the next layer, or what is in the way."""
    place = Place(first.node.outputs[0], first.rank, first.from_right)
    bias_add: Node | None = None
    clips: list[Node] = []
    while True:
        if (reason := why_shared(graph, place.tensor)) is not None:
            return reason
        (use,) = graph.consumers(place.tensor)
        node = use.node
        if kind(node) in LINEAR_OPS:
            second = _second(graph, first, place, use)
            if isinstance(second, str):
                return second
            return Path(first, second, second.layout.in_channels // first.layout.out_channels, bias_add, tuple(clips))
        if kind(node) == "Add" and bias_add is None and place.tensor is first.node.outputs[0]:
            if not _is_bias(graph, node, first):
                return _barrier(node)
            bias_add = node
            place = replace(place, tensor=node.outputs[0])
            continue
        passed = step(graph, node, use.index, place, drop_clips=drop_clips)
        if isinstance(passed, str):
            return passed
        if node.op == "Clip" and _upper_bound(graph, node) < _FLOAT32_MAX:
            clips.append(node)
        place = passed


def _second(graph: GraphModel, first: Linear, place: Place, use: Use) -> Linear | str:
    """The layer that reads `place`, if channel c of `first` is its input channel c (or a run of them)."""
    node = use.node
    if use.index != 0:
        return f"{describe(node)} behind it reads it as its input {use.index}, not as what its weight is applied to"
    second = read_linear(graph, node)
    if isinstance(second, str):
        return f"{describe(node)} behind it: {second}"
    channels, wanted = first.layout.out_channels, second.layout.in_channels
    last = node.op in ("Gemm", "MatMul")
    fits = place.from_right == 1 if last else place.spatial and place.rank == len(second.layout.shape)
    if not fits or (node.op == "Gemm" and node.attrs.get("transA", 0)):
        return f"its channels are not the input channels of {describe(node)} behind it"
    if wanted % channels:
        return f"it has {channels} channels, {describe(node)} behind it reads {wanted}"
    return second


def _barrier(node: Node) -> str:
    return f"{describe(node)} behind it does not let a factor per channel pass"


def _is_bias(graph: GraphModel, node: Node, first: Linear) -> bool:
    affine = read_affine(graph, node, first.node.outputs[0], first)
    return isinstance(affine, Affine) and first.node.op == "MatMul"


def step(graph: GraphModel, node: Node, index: int, place: Place, *, drop_clips: bool) -> Place | str:
    """Where the channels are behind `node`, or why a factor does not pass."""
    behind = replace(place, tensor=node.outputs[0])
    if kind(node) != node.op or index != 0 or sum(bool(o.name) for o in node.outputs) != 1:
        return _barrier(node)
    if node.op in _HOMOGENEOUS:
        return _barrier(node) if node.op == "Dropout" and optional_input(node, 2) is not None else behind
    if node.op in _POOLS:
        return behind if place.spatial else _barrier(node)
    if node.op == "Clip":
        return _clip(graph, node, drop_clips=drop_clips) or behind
    if node.op == "Pad":
        return behind if _pads_with_zero(graph, node, place) else _barrier(node)
    if node.op in ("ReduceMean", "ReduceMax", "Squeeze"):
        return _reduced(graph, node, behind) or _barrier(node)
    if node.op in ("Flatten", "Reshape"):
        return replace(behind, rank=2, from_right=1) if _flattens(graph, node, place) else _barrier(node)
    return _barrier(node)


def numbers(graph: GraphModel, node: Node, index: int, attribute: str) -> tuple[float, ...] | None:
    """Numbers that older operators have as an attribute and newer ones as an input; None if absent or not constant."""
    if attribute in node.attrs:
        return tuple(np.atleast_1d(node.attrs[attribute]).tolist())
    tensor = optional_input(node, index)
    if tensor is None or not graph.is_constant(tensor):
        return None
    return tuple(np.asarray(graph.value(tensor)).reshape(-1).tolist())


def _given(node: Node, index: int, attribute: str) -> bool:
    return attribute in node.attrs or optional_input(node, index) is not None


def _upper_bound(graph: GraphModel, node: Node) -> float:
    high = numbers(graph, node, 2, "max")
    return float("inf") if high is None else float(high[0])


def _clip(graph: GraphModel, node: Node, *, drop_clips: bool) -> str | None:
    """Why no factor passes this Clip; None if it does."""
    low = numbers(graph, node, 1, "min")
    if low != (0.0,) or (_given(node, 2, "max") and numbers(graph, node, 2, "max") is None):
        return _barrier(node)
    high = _upper_bound(graph, node)
    if high >= _FLOAT32_MAX or drop_clips:
        return None
    return (
        f"{describe(node)} behind it cuts off at {high:g}, so no factor per channel passes; "
        "drop_clips=True makes it a Relu, which changes the function slightly"
    )


def _pads_with_zero(graph: GraphModel, node: Node, place: Place) -> bool:
    """Whether padding leaves the channels alone and adds zeros or copies only."""
    pads = numbers(graph, node, 1, "pads")
    if pads is None or place.rank is None or place.axis is None:
        return False
    if node.attrs.get("mode", "constant") == "constant" and _given(node, 2, "value"):
        value = numbers(graph, node, 2, "value")
        if value is None or value[0] != 0:
            return False
    axes = tuple(range(place.rank))
    if optional_input(node, 3) is not None:
        given = numbers(graph, node, 3, "axes")
        if given is None:
            return False
        axes = tuple(int(a) % place.rank for a in given)
    half = len(pads) // 2
    return all(pads[i] == 0 and pads[half + i] == 0 for i, axis in enumerate(axes) if axis == place.axis)


def _reduced(graph: GraphModel, node: Node, behind: Place) -> Place | None:
    """The channels behind ReduceMean, ReduceMax or Squeeze over other axes than theirs."""
    axes = numbers(graph, node, 1, "axes")
    if axes is None or behind.rank is None or behind.axis is None:
        return None
    gone = {int(a) % behind.rank for a in axes}
    if not gone or behind.axis in gone or 0 in gone:
        return None
    if node.op != "Squeeze" and node.attrs.get("keepdims", 1):
        return behind
    right = sum(1 for a in gone if a > behind.axis)
    return replace(behind, rank=behind.rank - len(gone), from_right=behind.from_right - right)


def _flattens(graph: GraphModel, node: Node, place: Place) -> bool:
    """Whether ``(N, C, ...)`` becomes ``(N, C * ...)``."""
    if place.axis != 1:
        return False
    if node.op == "Flatten":
        return int(node.attrs.get("axis", 1)) in (1, 1 - (place.rank or 0))
    target = numbers(graph, node, 1, "shape")
    if target is None or len(target) != 2:
        return False
    if target[0] == 0 and not node.attrs.get("allowzero", 0):
        return True
    inner = (graph.shape(place.tensor) or (None, None))[1:]
    return all(isinstance(d, int) for d in inner) and target[1] == np.prod([d for d in inner if isinstance(d, int)])
