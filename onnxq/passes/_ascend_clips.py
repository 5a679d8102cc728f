"""Clips between two layers whose upper limit the codes behind them keep anyway."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxq.algos.ascend_words import quant_scale
from onnxq.graph import GraphModel, Node
from onnxq.passes._ascend_layers import AscendLayer, Entry
from onnxq.passes._clamps import clamp_limits
from onnxq.spec import code_bounds


def relax_clips(graph: GraphModel, layers: Iterable[AscendLayer]) -> int:
    """Make a Relu of each Clip(0, limit) behind a layer where all that reads it saturates below the limit.

    Ascend's compiler makes one operation of dequantization, Relu and quantization, and not of those with a Clip.
    The function stays the same, bit by bit: the limit itself has the highest code.

    Returns:
        How many there were.

    Source: AMCT's fusion of AscendDequant, Relu6 and AscendQuant.
    """
    known = tuple(layers)
    made = {id(layer.last.outputs[0]) for layer in known if layer.scale is not None}
    entries = {(id(e.node), e.index): e for layer in known for e in layer.entries}
    found = [n for n in graph.nodes("Clip") if id(n.inputs[0]) in made and _is_implied(graph, n, entries)]
    for node in found:
        name, result = node.name, node.outputs[0]
        source = node.inputs[0]
        graph.remove_node(node)
        relu = graph.add_node("Relu", [source], name=f"{name}_relu", outputs=[result])
        graph.rename_node(relu, name)
    return len(found)


def _is_implied(graph: GraphModel, node: Node, entries: dict[tuple[int, int], Entry]) -> bool:
    result, limits = node.outputs[0], clamp_limits(graph, node)
    if limits is None or limits[0] != 0.0 or graph.is_output(result) or graph.read_by_subgraph(result):
        return False
    readers = [entries.get((id(use.node), use.index)) for use in graph.consumers(result)]
    return bool(readers) and all(entry is not None and _saturates(entry, limits[1]) for entry in readers)


def _saturates(entry: Entry, limit: float) -> bool:
    """Whether a number gets the highest code, and so all larger ones do."""
    factors = entry.factors
    code = np.rint(np.float32(limit) * quant_scale(factors.scale_d)) + factors.offset_d
    return bool(code >= code_bounds(factors.act_bits, signed=True)[1])
