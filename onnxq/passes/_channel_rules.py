"""How channels pass operators without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxq.graph import Node, Tensor
from onnxq.passes._channel_path import numbers
from onnxq.passes._channel_units import NONE, Labels, Mask, Place, Trace, count
from onnxq.passes._linear import describe, optional_input

ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "Where", "PRelu", "Mod", "And", "Or", "Xor"}
    | {"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Relu", "LeakyRelu", "Elu", "Selu", "Celu"}
    | {"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "ThresholdedRelu", "Mish", "Gelu"}
    | {"Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos"}
    | {"Not", "IsNaN", "Identity", "Cast", "Clip", "Dropout"}
)
"""Each element of the result depends on the elements at the same place only."""
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"}
    | {"ReduceLogSumExp", "ReduceSumSquare"}
)
ALONG_AXIS = frozenset({"Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum"})


def elementwise(trace: Trace, node: Node) -> None:
    """Operands that meet at a channel keep or lose it together; constants shrink."""
    graph = trace.graph
    found = [(i, p) for i, p in trace.labelled(node)]
    if any(o.name and (o.outputs or graph.is_output(o)) for o in node.outputs[1:]):
        trace.fix_inputs(node, "has more outputs than one")
        return
    ranks = [graph.rank(t) for t in node.inputs if t.name]
    if any(r is None for r in ranks):
        trace.fix_inputs(node, "has an operand of unknown rank")
        return
    places = {i: (graph.rank(node.inputs[i]) or 0) - p.axis for i, p in found}
    wide = {i: p for i, p in found if len(p.labels) > 1}
    for i, place in found:
        if i not in wide:
            trace.units.fix(
                place.labels, f"it has one channel only, which {describe(node)} behind it may spread over others"
            )
    if not wide:
        return
    first = next(iter(wide))
    right, size = places[first], len(wide[first].labels)
    if any(places[i] != right or len(p.labels) != size for i, p in wide.items()):
        trace.fix_inputs(node, "has operands whose channels are on different axes")
        return
    cuts = _constants(trace, node, right, size, set(wide))
    if cuts is None:
        trace.fix_inputs(node, "has an operand whose channels no layer makes")
        return
    labels = wide[first].labels
    for place in wide.values():
        trace.units.tie(
            labels, place.labels, f"{describe(node)} behind it has an operand whose channels no layer makes"
        )
    for index, axis in cuts:
        trace.cut(node, index, axis, labels)
    rank = max(r for r in ranks if r is not None)
    trace.put(node.outputs[0], rank - right, _tied(labels, [p.labels for p in wide.values()]))


def _tied(labels: Labels, others: Sequence[Labels]) -> Labels:
    """Units where any operand has one: a channel of no layer does not hide what the other operand loses."""
    for other in others:
        labels = np.where(labels >= 0, labels, other)
    return labels


def _constants(trace: Trace, node: Node, right: int, size: int, labelled: set[int]) -> list[tuple[int, int]] | None:
    """The constants among the operands that have a number for each channel: input and axis; None if one is no constant.

    Operands that spread over all channels do not matter.
    """
    cuts: list[tuple[int, int]] = []
    for index, tensor in enumerate(node.inputs):
        rank = trace.graph.rank(tensor) if tensor.name else None
        if index in labelled or rank is None or rank < right:
            continue
        axis = rank - right
        if trace.dim(tensor, axis) == 1:
            continue
        if not trace.graph.is_constant(tensor) or trace.dim(tensor, axis) != size:
            return None
        cuts.append((index, axis))
    return cuts


def pool(trace: Trace, node: Node) -> None:
    """Pooling over the axes behind the channels."""
    place = trace.at(node.inputs[0])
    if place is None:
        return
    second = node.outputs[1] if len(node.outputs) > 1 else None
    if place.axis != 1 or (second is not None and second.name and (second.outputs or trace.graph.is_output(second))):
        trace.fix_inputs(node, "does not pool each channel by itself")
        return
    trace.follow(node, place)


def reduce(trace: Trace, node: Node) -> None:
    """Reductions over other axes than that of the channels, ArgMax and ArgMin."""
    graph, place = trace.graph, trace.at(node.inputs[0])
    rank = graph.rank(node.inputs[0])
    if place is None or rank is None:
        trace.fix_inputs(node, "reads its channels as something else")
        return
    single = node.op in ("ArgMax", "ArgMin")
    axes = (float(node.attrs.get("axis", 0)),) if single else numbers(graph, node, 1, "axes")
    if axes is None and (optional_input(node, 1) is not None or not node.attrs.get("noop_with_empty_axes", 0)):
        trace.fix_inputs(node, "may compute across its channels")
        return
    gone = {int(a) % rank for a in axes or ()}
    if place.axis in gone:
        trace.fix_inputs(node, "computes across its channels")
        return
    before = 0 if node.attrs.get("keepdims", 1) else sum(a < place.axis for a in gone)
    trace.put(node.outputs[0], place.axis - before, place.labels)


def along_axis(trace: Trace, node: Node) -> None:
    """Softmax and the like, along one axis; before opset 13 along all from that one on."""
    place, rank = trace.at(node.inputs[0]), trace.graph.rank(node.inputs[0])
    if place is None or rank is None:
        trace.fix_inputs(node, "reads its channels as something else")
        return
    if node.op == "CumSum":
        given = numbers(trace.graph, node, 1, "axis")
        axes = {int(given[0]) % rank} if given else set(range(rank))
    elif node.op == "LpNormalization" or trace.graph.opset >= 13:
        axes = {int(node.attrs.get("axis", -1)) % rank}
    else:
        axes = set(range(int(node.attrs.get("axis", 1)) % rank, rank))
    _unless_across(trace, node, place, axes)


def layer_norm(trace: Trace, node: Node) -> None:
    """LayerNormalization normalizes all axes from one on."""
    place, rank = trace.at(node.inputs[0]), trace.graph.rank(node.inputs[0])
    if place is None or rank is None or any(i > 0 for i, _ in trace.labelled(node)):
        trace.fix_inputs(node, "reads its channels as something else")
        return
    _unless_across(trace, node, place, set(range(int(node.attrs.get("axis", -1)) % rank, rank)))


def _unless_across(trace: Trace, node: Node, place: Place, axes: set[int]) -> None:
    if place.axis in axes or any(o.name and o.outputs for o in node.outputs[1:]):
        trace.fix_inputs(node, "computes across its channels")
    else:
        trace.follow(node, place)


def pad(trace: Trace, node: Node) -> None:
    """Padding of other axes."""
    place, rank = trace.at(node.inputs[0]), trace.graph.rank(node.inputs[0])
    pads = numbers(trace.graph, node, 1, "pads")
    axes = list(range(rank or 0))
    if optional_input(node, 3) is not None:
        given = numbers(trace.graph, node, 3, "axes")
        axes = [int(a) % (rank or 1) for a in given] if given is not None else []
    if place is None or pads is None or rank is None or len(pads) != 2 * len(axes):
        trace.fix_inputs(node, "may add channels")
        return
    half = len(axes)
    if any(axis == place.axis and (pads[i] or pads[half + i]) for i, axis in enumerate(axes)):
        trace.fix_inputs(node, "adds channels")
        return
    trace.follow(node, place)


def concat(trace: Trace, node: Node) -> None:
    """Along the channels: one after the other; along another axis: all inputs keep or lose a channel together."""
    graph = trace.graph
    rank = graph.rank(node.outputs[0])
    places = dict(trace.labelled(node))
    if rank is None or len({p.axis for p in places.values()}) != 1:
        trace.fix_inputs(node, "joins tensors whose channels are on different axes")
        return
    axis, along = next(iter(places.values())).axis, int(node.attrs["axis"]) % rank
    if along == axis:
        parts: list[Labels] = []
        for index, tensor in enumerate(node.inputs):
            size = trace.dim(tensor, axis)
            if index not in places and size is None:
                trace.fix_inputs(node, "joins its channels with an unknown number of others")
                return
            parts.append(places[index].labels if index in places else np.full(size or 0, NONE))
        trace.put(node.outputs[0], axis, np.concatenate(parts))
        return
    if len(places) < len(node.inputs):
        trace.fix_inputs(node, "joins it with a tensor whose channels no layer makes")
        return
    first, *rest = places.values()
    for other in rest:
        trace.units.tie(first.labels, other.labels, f"{describe(node)} behind it joins it with channels of no layer")
    trace.put(node.outputs[0], axis, _tied(first.labels, [p.labels for p in rest]))


def split(trace: Trace, node: Node) -> None:
    """Along the channels each output has its part of them; some of each part are left."""
    graph, place = trace.graph, trace.at(node.inputs[0])
    rank = graph.rank(node.inputs[0])
    if place is None or rank is None:
        trace.fix_inputs(node, "reads its channels as something else")
        return
    if int(node.attrs.get("axis", 0)) % rank != place.axis:
        for output in node.outputs:
            if output.name:
                trace.put(output, place.axis, place.labels)
        return
    sizes = [trace.dim(output, place.axis) for output in node.outputs]
    known = [s for s in sizes if s is not None]
    if len(known) < len(sizes) or sum(known) != len(place.labels):
        trace.fix_inputs(node, "splits its channels into parts of unknown sizes")
        return
    parts = np.split(place.labels, np.cumsum(known)[:-1])
    for output, part in zip(node.outputs, parts, strict=True):
        trace.parts.append(part)
        if output.name:
            trace.put(output, place.axis, part)
    trace.edit(place.labels, lambda alive: _write_split(trace, node, parts, alive))


def _write_split(trace: Trace, node: Node, parts: Sequence[Labels], alive: Mask) -> None:
    sizes = [count(part, alive) for part in parts]
    if trace.graph.opset < 13:
        node.attrs["split"] = sizes
        return
    node.attrs.pop("num_outputs", None)
    name = f"{node.name or node.outputs[0].name}/split_pruned"
    trace.graph.set_input(node, 1, trace.graph.add_constant(name, np.asarray(sizes, np.int64)))


def slice_(trace: Trace, node: Node) -> None:
    """A run of channels, or of something else."""
    graph, place = trace.graph, trace.at(node.inputs[0])
    rank = graph.rank(node.inputs[0])
    starts, ends = numbers(graph, node, 1, "starts"), numbers(graph, node, 2, "ends")
    if place is None or rank is None or starts is None or ends is None:
        trace.fix_inputs(node, "cuts out an unknown part of it")
        return
    given = numbers(graph, node, 3, "axes")
    axes = [int(a) % rank for a in (range(len(starts)) if given is None else given)]
    if place.axis not in axes:
        trace.follow(node, place)
        return
    steps = numbers(graph, node, 4, "steps") or (1,) * len(starts)
    if len(axes) != 1 or steps[0] != 1:
        trace.fix_inputs(node, "picks some of its channels")
        return
    where = range(*slice(int(starts[0]), int(ends[0])).indices(len(place.labels)))
    low, high = where.start, max(where.stop, where.start)
    inside, outside = place.labels[low:high], np.delete(place.labels, slice(low, high))
    trace.parts += [inside, outside]
    trace.edit(place.labels, lambda alive: _write_slice(trace, node, place.labels, low, high, alive))
    trace.put(node.outputs[0], place.axis, inside)


def _write_slice(trace: Trace, node: Node, labels: Labels, low: int, high: int, alive: Mask) -> None:
    bounds = [count(labels[:low], alive), count(labels[:high], alive)]
    if "starts" in node.attrs:
        node.attrs.update(starts=bounds[:1], ends=bounds[1:])
        return
    for index, bound in enumerate(bounds, 1):
        kind = trace.graph.dtype(node.inputs[index]) or np.int64
        name = f"{node.name or node.outputs[0].name}/bound_pruned"
        trace.graph.set_input(node, index, trace.graph.add_constant(name, np.asarray([bound], kind)))


def resize(trace: Trace, node: Node) -> None:
    """Resize and Upsample of the axes behind the channels."""
    graph, place = trace.graph, trace.at(node.inputs[0])
    rank = graph.rank(node.inputs[0])
    scale_index = 1 if node.op == "Upsample" or graph.opset < 11 else 2
    scales, sizes = numbers(graph, node, scale_index, "scales"), numbers(graph, node, 3, "sizes")
    if place is None or rank is None or node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        trace.fix_inputs(node, "may resize its channels")
        return
    axes = [int(a) % rank for a in node.attrs.get("axes", range(rank))]
    values = scales or sizes
    if not values or len(values) != len(axes):
        trace.fix_inputs(node, "may resize its channels")
        return
    wanted = dict(zip(axes, values, strict=True)).get(place.axis)
    if wanted not in (None, 1.0 if scales else len(place.labels)):
        trace.fix_inputs(node, "resizes its channels")
        return
    if not scales and wanted is not None:
        position, tensor = axes.index(place.axis), node.inputs[3]
        trace.edit(place.labels, lambda alive: set_number(trace, node, 3, tensor, position, count(place.labels, alive)))
    trace.follow(node, place)


def set_number(trace: Trace, node: Node, index: int, tensor: Tensor, position: int, value: int) -> None:
    """Let a node read a constant of integers with one of them changed."""
    values = np.array(trace.graph.value(tensor))
    values[position] = value
    trace.graph.set_input(node, index, trace.graph.add_constant(f"{tensor.name}_pruned", values))


def shape(trace: Trace, node: Node) -> None:
    """Sizes: those of other axes do not change."""
    place, graph = trace.at(node.inputs[0]), trace.graph
    if place is None:
        return
    start, end = int(node.attrs.get("start", 0)), node.attrs.get("end")
    rank = graph.rank(node.inputs[0]) or 0
    seen = range(rank)[start : None if end is None else int(end)]
    if place.axis not in seen:
        return
    sizes = node.outputs[0]
    harmless = not graph.is_output(sizes) and not graph.read_by_subgraph(sizes)
    position = place.axis - (seen[0] if seen else 0)
    if not harmless or not all(_avoids(trace, u.node, position, len(seen)) for u in graph.consumers(sizes)):
        trace.fix_inputs(node, "gives its number of channels to something that computes with it")


def _avoids(trace: Trace, node: Node, position: int, length: int) -> bool:
    """Whether what reads a list of sizes takes others than that at `position`."""
    graph = trace.graph
    if node.op == "Gather" and graph.is_constant(node.inputs[1]):
        return all(int(i) % length != position for i in np.asarray(graph.value(node.inputs[1])).reshape(-1))
    if node.op == "Slice":
        starts, ends = numbers(graph, node, 1, "starts"), numbers(graph, node, 2, "ends")
        steps = numbers(graph, node, 4, "steps") or (1,)
        if starts and ends:
            return position not in range(length)[int(starts[0]) : int(ends[0]) : int(steps[0])]
    return False


Rule = Callable[[Trace, Node], None]
RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), reduce),
    **dict.fromkeys(ALONG_AXIS, along_axis),
    "LayerNormalization": layer_norm,
    "Pad": pad,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Resize": resize,
    "Upsample": resize,
    "Shape": shape,
}
