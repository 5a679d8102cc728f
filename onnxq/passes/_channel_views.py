"""How channels pass operators that only arrange elements: Reshape, Flatten, Transpose, Squeeze, Unsqueeze."""

from __future__ import annotations

import numpy as np

from onnxq.graph import Dim, Node
from onnxq.passes._channel_path import numbers
from onnxq.passes._channel_rules import Rule, set_number
from onnxq.passes._channel_units import Labels, Place, Trace, count
from onnxq.passes._linear import optional_input

Dims = tuple[Dim, ...]


def flatten(trace: Trace, node: Node) -> None:
    """All axes from one on become one: each channel becomes a run of positions, or of several."""
    place, dims = trace.at(node.inputs[0]), trace.graph.shape(node.inputs[0])
    if place is None or dims is None:
        trace.fix_inputs(node, "reads channels of an unknown shape")
        return
    axis = int(node.attrs.get("axis", 1))
    axis += len(dims) if axis < 0 else 0
    labels = _merged(dims[axis:], place, axis) if place.axis >= axis else None
    if labels is None:
        trace.fix_inputs(node, "merges its channels with axes of unknown sizes")
        return
    trace.put(node.outputs[0], 1, labels)


def _merged(dims: Dims, place: Place, first: int) -> Labels | None:
    """Units of an axis that several axes were merged into; the channels are one of these.

    Args:
        dims: Sizes of the axes.
        place: Where the channels are, in the whole tensor.
        first: The axis that `dims` begin with.
    """
    sizes = [len(place.labels) if first + i == place.axis else d for i, d in enumerate(dims)]
    if not all(isinstance(d, int) for d in sizes):
        return None
    shape = [1] * len(sizes)
    shape[place.axis - first] = len(place.labels)
    whole = [d for d in sizes if isinstance(d, int)]
    return np.broadcast_to(place.labels.reshape(shape), whole).reshape(-1)


def reshape(trace: Trace, node: Node) -> None:
    """Axes are merged or split beside the channels, or merged with them."""
    graph, place = trace.graph, trace.at(node.inputs[0])
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if place is None or before is None or after is None:
        trace.fix_inputs(node, "reads channels of an unknown shape")
        return
    values = numbers(graph, node, 1, "shape")
    if values is not None and len(values) == len(after):  # an axis that is copied is the same axis
        copies = not int(node.attrs.get("allowzero", 0))
        after = tuple(before[i] if v == 0 and copies else d for i, (v, d) in enumerate(zip(values, after, strict=True)))
    found = _kept_axis(before, after, place) or _from_right(before, after, place)
    if found is None:
        trace.fix_inputs(node, "divides its channels, or merges them with axes of unknown sizes")
        return
    if not _note_target(trace, node, found, values):
        trace.fix_inputs(node, "has a target shape that is computed")
        return
    trace.put(node.outputs[0], found.axis, found.labels)


def _kept_axis(before: Dims, after: Dims, place: Place) -> Place | None:
    """The channels where they were, behind the same axes."""
    axis = place.axis
    if len(after) <= axis or None in before[:axis] or before[: axis + 1] != after[: axis + 1]:
        return None
    return place


def _from_right(before: Dims, after: Dims, place: Place) -> Place | None:
    """Where the channels are, if all sizes behind them are known: axes of equal products correspond."""
    i, j = len(before), len(after)
    while i > 0 and j > 0:
        top, left, right = i, 1, 1
        bottom = j
        i, left = _take(before, i, left)
        j, right = _take(after, j, right)
        while left != right and left and right and (i > 0 or j > 0):
            if left < right and i > 0:
                i, left = _take(before, i, left)
            elif j > 0 and right < left:
                j, right = _take(after, j, right)
            else:
                return None
        if left != right or not left:
            return None
        if i <= place.axis < top:
            return _placed(before[i:top], after[j:bottom], place, i, j)
    return None


def _take(dims: Dims, i: int, product: int) -> tuple[int, int]:
    """One more axis to the left, and the product of sizes with it; 0 if it is not known."""
    size = dims[i - 1]
    return i - 1, product * size if isinstance(size, int) else 0


def _placed(inside: Dims, outside: Dims, place: Place, first: int, start: int) -> Place | None:
    labels = _merged(inside, place, first)
    large = [k for k, d in enumerate(outside) if d != 1]
    if labels is None or len(large) > 1:
        return None
    return Place(start + (large[0] if large else 0), labels)


def _note_target(trace: Trace, node: Node, found: Place, values: tuple[float, ...] | None) -> bool:
    """Note how the target shape changes; False if it cannot be told."""
    graph = trace.graph
    if "shape" in node.attrs:
        return False
    target = node.inputs[1]
    if values is not None:
        if values[found.axis] > 0:
            trace.edit(
                found.labels,
                lambda alive: set_number(trace, node, 1, target, found.axis, count(found.labels, alive)),
            )
        return True
    maker = graph.producer(target)
    if maker is None or maker.op != "Concat" or len(maker.inputs) <= found.axis:
        return False
    part = maker.inputs[found.axis]
    if not graph.is_constant(part) or any(trace.dim(t, 0) != 1 for t in maker.inputs):
        return False
    if int(graph.value(part)[0]) > 0:
        if not graph.is_private(target):
            return False
        where, labels = found.axis, found.labels
        trace.edit(labels, lambda alive: set_number(trace, maker, where, part, 0, count(labels, alive)))
    return True


def transpose(trace: Trace, node: Node) -> None:
    """The channels move to another axis."""
    place, rank = trace.at(node.inputs[0]), trace.graph.rank(node.inputs[0])
    if place is None or rank is None:
        trace.fix_inputs(node, "reads channels of an unknown shape")
        return
    perm = [int(p) for p in node.attrs.get("perm") or range(rank)[::-1]]
    trace.put(node.outputs[0], perm.index(place.axis), place.labels)


def _axes(trace: Trace, node: Node) -> list[int] | None:
    found = numbers(trace.graph, node, 1, "axes")
    return None if found is None else [int(a) for a in found]


def squeeze(trace: Trace, node: Node) -> None:
    """Axes of one element go."""
    place, dims = trace.at(node.inputs[0]), trace.graph.shape(node.inputs[0])
    axes = _axes(trace, node)
    if axes is None and dims is not None and optional_input(node, 1) is None:
        axes = [i for i, d in enumerate(dims) if d == 1] if all(isinstance(d, int) for d in dims) else None
    if place is None or dims is None or axes is None:
        trace.fix_inputs(node, "removes unknown axes")
        return
    gone = {a % len(dims) for a in axes}
    if place.axis in gone:
        trace.units.fix(place.labels, "it has one channel, whose axis is removed")
        return
    trace.put(node.outputs[0], place.axis - sum(a < place.axis for a in gone), place.labels)


def unsqueeze(trace: Trace, node: Node) -> None:
    """Axes of one element come."""
    place, rank = trace.at(node.inputs[0]), trace.graph.rank(node.inputs[0])
    axes = _axes(trace, node)
    if place is None or rank is None or axes is None:
        trace.fix_inputs(node, "adds unknown axes")
        return
    total = rank + len(axes)
    new = {a % total for a in axes}
    old = [i for i in range(total) if i not in new]
    trace.put(node.outputs[0], old[place.axis], place.labels)


VIEWS: dict[str, Rule] = {
    "Flatten": flatten,
    "Reshape": reshape,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
}
