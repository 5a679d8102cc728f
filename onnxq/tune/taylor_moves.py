"""Slopes through operators that only move values, or repeat them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import OnnxqError
from onnxq.runtime import make_session
from onnxq.tune.taylor_nodes import Slopes, attribute

_MOST_REPEATS = 64
_EXACT = 1 << 24
"""Floats are numbers of places up to here."""


def _reshaped(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    return s.reshape(slope, s.shapes[node.input[0]]) if index == 0 else None


def _transposed(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    rank = len(s.shapes[node.input[0]])
    order = [int(n) for n in attribute(node, "perm", list(range(rank))[::-1])]
    return s.node("Transpose", slope, perm=[order.index(n) for n in range(rank)]) if index == 0 else None


def _concat(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    shapes = [s.shapes[name] for name in node.input]
    axis = int(attribute(node, "axis", 0)) % len(shapes[0])
    start = sum(shape[axis] for shape in shapes[:index])
    cut = [s.constant(np.array([n], np.int64)) for n in (start, start + shapes[index][axis], axis)]
    return s.node("Slice", slope, *cut)


def _moved(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    """Of any operator that moves and repeats: it is run once on the numbers of the places."""
    shape = s.shapes[node.input[0]]
    size = math.prod(shape)
    if index or size >= _EXACT:
        return None
    copy = _alone(s, node)
    found = None if copy is None else copy(np.arange(1, size + 1, dtype=np.float32).reshape(shape))
    if found is None:
        return None
    sources = np.rint(found).astype(np.int64).reshape(-1)
    nothing = s.constant(np.zeros(1, np.float32))
    flat = s.node("Concat", s.reshape(slope, [-1]), nothing, axis=0)
    parts = [s.node("Gather", flat, s.constant(places)) for places in _readers(sources, size)]
    if len(parts) > _MOST_REPEATS:
        return None
    return s.reshape(parts[0] if len(parts) == 1 else s.node("Sum", *parts), shape)


def _resized(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    """Interpolation along the last two axes, one after the other: a matrix each, found by resizing unit vectors."""
    shape, result = s.shapes[node.input[0]], s.shapes[node.output[0]]
    if attribute(node, "mode", "nearest") == "nearest":
        return _moved(s, node, index, slope)
    if index or len(shape) != 4 or shape[:2] != result[:2] or not math.prod(shape):
        return None
    copy = _alone(s, node)
    if copy is None:
        return None
    rows, columns = np.zeros((shape[2], result[2]), np.float32), np.zeros((shape[3], result[3]), np.float32)
    for axis, matrix in ((2, rows), (3, columns)):
        for place in range(shape[axis]):
            unit = np.zeros(shape, np.float32)
            unit[(slice(None),) * axis + (place,)] = 1.0
            found = copy(unit)
            if found is None:
                return None
            matrix[place] = found[0, 0, :, 0] if axis == 2 else found[0, 0, 0, :]
    return s.node("MatMul", s.constant(rows), s.node("MatMul", slope, s.constant(np.ascontiguousarray(columns.T))))


def _alone(s: Slopes, node: onnx.NodeProto) -> Callable[[NDArray[np.float32]], NDArray[np.float64] | None] | None:
    """The node as a function of its first input; None where another one depends on the sample.

    What it gives is None where the runtime refuses it.
    """
    feed: dict[str, NDArray[Any]] = {"x": np.zeros(s.shapes[node.input[0]], np.float32)}
    names = ["x"]
    for number, name in enumerate(node.input[1:], 1):
        value = s.value(name)
        if name and value is None:
            return None
        if value is not None:
            feed[f"x{number}"] = np.asarray(value)
        names.append(f"x{number}" if name else "")
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    del twin.input[:], twin.output[:]
    twin.input.extend(names)
    twin.output.extend(f"y{number}" if name else "" for number, name in enumerate(node.output))
    kinds = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feed.items()
    ]
    outputs = [onnx.ValueInfoProto(name="y0")]
    graph = onnx.helper.make_graph([twin], "move", kinds, outputs)
    model = s.copies.graph.skeleton()
    piece = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    piece.opset_import.extend(model.opset_import)
    try:
        session = make_session(piece, threads=1, optimize=False)
    except OnnxqError:
        return None

    def run(x: NDArray[np.float32]) -> NDArray[np.float64] | None:
        try:
            return np.asarray(session.run(["y0"], {**feed, "x": x})[0], np.float64)
        except OnnxqError:
            return None

    return run


def _readers(sources: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int32]]:
    """For each element of the input one place in the output that is made of it, the next one, and so on.

    The place behind the last one stands for none.
    """
    order = np.argsort(sources, kind="stable")
    order = order[sources[order] > 0]
    elements = sources[order] - 1
    first = np.searchsorted(elements, elements)
    turn = np.arange(len(elements)) - first
    for number in range(int(turn.max(initial=0)) + 1):
        places = np.full(size, len(sources), np.int32)
        now = turn == number
        places[elements[now]] = order[now]
        yield places


MOVES: Mapping[str, Callable[[Slopes, onnx.NodeProto, int, str], str | None]] = MappingProxyType(
    {
        **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
        "Transpose": _transposed,
        "Concat": _concat,
        **dict.fromkeys(
            ("Slice", "Gather", "GatherElements", "GatherND", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
            _moved,
        ),
        **dict.fromkeys(("Resize", "Upsample"), _resized),
    }
)
"""By operator type."""
