"""Sections of reports about a quantized model: its layers, its values, its graph and its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from onnxq.graph import Node
from onnxq.report.anatomy import Anatomy, channel_axis, name_of
from onnxq.report.distributions import channels_of, histogram_of
from onnxq.report.layers import LayerError
from onnxq.report.numbers import Numbers
from onnxq.report.page import (
    Bar,
    BarPlot,
    Block,
    Cell,
    ChannelPlot,
    ChannelRanges,
    Column,
    GraphNode,
    GraphView,
    HistogramPlot,
    Section,
    Table,
    TensorHistogram,
)

_LAYER_COLUMNS = (
    Column("node", "code"),
    Column("operator", "choice"),
    Column("is", "choice", hint="quantized: computes with codes; shared: moves codes; absorbed: done by saturation"),
    Column("SQNR", "number", 4, "signal to quantization noise ratio of its output in dB, errors before it included"),
    Column("cosine", "number", 6, "cosine similarity of its output with the float model's"),
    Column("output", "code", hint="the tensor whose range follows"),
    Column("lowest", "number", 4, "smallest real that has a code"),
    Column("highest", "number", 4, "largest real that has a code"),
    Column("scale", "number", 4),
    Column("zero point", "number"),
    Column("clipped", "number", 3, "percent of the values that no code comes near"),
    Column("type", "choice", hint="of the codes of the output"),
    Column("range by", "choice", hint="what chose the range of the output"),
    Column("weights", "text", hint="type, number of scales, and what chose them"),
    Column("why float", "text"),
)


def layer_section(anatomy: Anatomy) -> Section:
    """Every layer: what it is, its range, how far it is from the float model's."""
    errors = anatomy.errors_by_node()
    nodes = anatomy.nodes()
    rows = [_layer_row(anatomy, node, errors.get(name_of(node))) for node in nodes]
    kept = [i for i, c in enumerate(_LAYER_COLUMNS) if i < 3 or any(row[i] not in (None, "") for row in rows)]
    blocks: list[Block] = []
    if errors:
        blocks.append(_error_plot(anatomy, errors))
    columns = [_LAYER_COLUMNS[i] for i in kept]
    blocks.append(Table(columns, [[row[i] for i in kept] for row in rows], label="layers"))
    return Section("Layers", blocks, _layer_lead(anatomy))


def _layer_lead(anatomy: Anatomy) -> str:
    lead = "Nodes of the float model in the order in which they run."
    if anatomy.errors:
        lead += f" SQNR and cosine are over {anatomy.samples} samples and include what came in with the inputs."
    return lead


def _layer_row(anatomy: Anatomy, node: Node, error: LayerError | None) -> list[Cell]:
    decision = anatomy.decision(node)
    output = next((str(t.name) for t in node.outputs if t.name), "")
    numbers = anatomy.activations.get(output)
    spread = anatomy.spreads.get(output)
    one = numbers is not None and numbers.scale.size == 1
    low, high = (None, None) if numbers is None else numbers.range
    return [
        name_of(node),
        node.op,
        decision.role,
        None if error is None else error.metrics.sqnr_db,
        None if error is None else error.metrics.cosine,
        output if numbers is not None or spread is not None else None,
        low,
        high,
        float(numbers.scale[0]) if numbers is not None and one else None,
        int(numbers.zero_point[0]) if numbers is not None and one else None,
        None if spread is None or spread.clipped is None else 100 * spread.clipped,
        None if numbers is None else numbers.kind,
        None if numbers is None else numbers.method or None,
        _weights_text(anatomy, node),
        decision.reason,
    ]


def _weights_text(anatomy: Anatomy, node: Node) -> str:
    texts = []
    for index in range(len(node.inputs)):
        numbers = anatomy.weights.get((name_of(node), index))
        if numbers is not None:
            scales = "one scale" if numbers.scales == "one" else numbers.scales
            texts.append(", ".join(filter(None, [numbers.kind, scales, numbers.method])))
    return "; ".join(texts)


def _error_plot(anatomy: Anatomy, errors: dict[str, LayerError]) -> BarPlot:
    bars = []
    for node in anatomy.nodes():
        error = errors.get(name_of(node))
        if error is not None:
            metrics = error.metrics
            detail = f"{node.op}, cosine {metrics.cosine:.6f}"
            bars.append(Bar(name_of(node), metrics.sqnr_db, anatomy.decision(node).role, detail))
    note = "More is better: every 6 dB are one bit. What is exact has no bar."
    return BarPlot("SQNR after each layer", bars, unit="dB", note=note)


def value_section(anatomy: Anatomy) -> Section | None:
    """Histograms of activations with their clipping ranges, and ranges of the channels of weights."""
    blocks: list[Block] = []
    histograms = list(_histograms(anatomy))
    if histograms:
        note = "Between the dashed lines values have codes; those beyond are cut off."
        blocks.append(HistogramPlot("Activations", histograms, note))
    channels = list(_channels(anatomy))
    if channels:
        note = (
            "Bars are the values of the float model's weights; the lines are the smallest and largest with a code. "
            "They lie apart where a scale is larger so that sums overflow on no processor, or channels were rescaled."
        )
        blocks.append(ChannelPlot("Weights by channel", channels, note))
    return Section("Values", blocks) if blocks else None


def _histograms(anatomy: Anatomy) -> Iterator[TensorHistogram]:
    for name, spread in anatomy.spreads.items():
        if not spread.counts:
            continue
        numbers = anatomy.activations.get(name)
        shared = () if numbers is None else numbers.shared
        remark = f"shared with {shared[0]}{f' and {len(shared) - 1} more' if len(shared) > 1 else ''}" if shared else ""
        yield histogram_of(name, spread, numbers, remark)


def _channels(anatomy: Anatomy) -> Iterator[ChannelRanges]:
    shown = set()
    for node in anatomy.nodes():
        for index, tensor in enumerate(node.inputs):
            numbers = anatomy.weights.get((name_of(node), index))
            axis = channel_axis(anatomy.graph, node, index) if numbers is not None else None
            if axis is None or tensor.name in shown or not anatomy.graph.is_constant(tensor):
                continue
            shown.add(tensor.name)
            weight = np.asarray(anatomy.graph.value(tensor))
            if weight.size and weight.dtype.kind == "f" and weight.ndim > axis:
                yield channels_of(str(tensor.name), weight, axis, numbers)


def graph_section(anatomy: Anatomy) -> Section:
    """The float model's graph, coloured by what became of its nodes."""
    graph = anatomy.graph
    nodes = [GraphNode(str(t.name), "input", "io", _tensor_facts(anatomy, str(t.name))) for t in graph.inputs]
    place = {str(t.name): i for i, t in enumerate(graph.inputs)}
    errors = anatomy.errors_by_node()
    edges: list[tuple[int, int]] = []
    for node in anatomy.nodes():
        edges += [(place[t.name], len(nodes)) for t in node.inputs if t.name in place]
        place |= {str(t.name): len(nodes) for t in node.outputs if t.name}
        nodes.append(_graph_node(anatomy, node, errors.get(name_of(node))))
    for tensor in graph.outputs:
        if tensor.name in place:
            edges.append((place[tensor.name], len(nodes)))
        nodes.append(GraphNode(str(tensor.name), "output", "io"))
    note = "Drag to move, pinch or click and use the wheel to zoom, point at a node or tap it to read about it."
    return Section("Graph", (GraphView("The float model and what became of it", nodes, edges, note),))


def _graph_node(anatomy: Anatomy, node: Node, error: LayerError | None) -> GraphNode:
    decision = anatomy.decision(node)
    output = next((str(t.name) for t in node.outputs if t.name), "")
    facts = [("why", decision.reason), *_tensor_facts(anatomy, output), ("weights", _weights_text(anatomy, node))]
    for index, tensor in enumerate(node.inputs):
        if (name_of(node), index) in anatomy.weights:
            facts.append(("weight", str(tensor.name)))
    if error is not None and math.isfinite(error.metrics.sqnr_db):
        facts.append(("SQNR", f"{error.metrics.sqnr_db:.1f} dB"))
    return GraphNode(name_of(node), node.op, decision.role, tuple(fact for fact in facts if fact[1]))


def _tensor_facts(anatomy: Anatomy, name: str) -> tuple[tuple[str, str], ...]:
    numbers = anatomy.activations.get(name)
    if numbers is None:
        return (("output", name),)
    low, high = numbers.range
    facts = [("output", name), ("codes", numbers.kind), ("range", f"{low:.5g} to {high:.5g}")]
    return (*facts, ("scale", numbers.scale_text), ("range by", numbers.method))


def scale_section(anatomy: Anatomy) -> Section | None:
    """All numbers: of activations, then of weights."""
    weights: dict[str, tuple[str, Numbers]] = {}
    for place, numbers in anatomy.weights.items():
        weights.setdefault(numbers.tensor, (place[0], numbers))
    rows = [_scale_row("activation", "", numbers) for numbers in anatomy.activations.values()]
    rows += [_scale_row("weight", node, numbers) for node, numbers in weights.values()]
    columns = (
        Column("tensor", "code"),
        Column("is", "choice"),
        Column("of node", "code"),
        Column("type", "choice"),
        Column("scales"),
        Column("lowest", "number"),
        Column("highest", "number"),
        Column("scale"),
        Column("zero point"),
        Column("chosen by", "choice"),
    )
    return Section("Scales", (Table(columns, rows, label="scales"),)) if rows else None


def _scale_row(what: str, node: str, numbers: Numbers) -> list[Cell]:
    low, high = numbers.range
    texts = (numbers.scale_text, numbers.zero_text, numbers.method)
    return [numbers.tensor, what, node, numbers.kind, numbers.scales, low, high, *texts]
