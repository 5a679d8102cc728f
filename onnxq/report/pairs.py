"""Which tensor of a quantized model stands for which tensor of the float model."""

from __future__ import annotations

import json
from dataclasses import dataclass

from onnxq.graph import GraphModel, Node, Tensor

_CLAMPS = ("Relu", "Clip")


@dataclass(frozen=True, slots=True)
class Pair:
    """One activation in both models.

    Attributes:
        node: Name of the float node that computes it.
        op_type: Its operator type.
        reference: Name of the tensor in the float model.
        quantized: Name of the tensor in the quantized model.
    """

    node: str
    op_type: str
    reference: str
    quantized: str


def find_pairs(reference: GraphModel, quantized: GraphModel) -> tuple[Pair, ...]:
    """Match the float activations of two models by name, in the order of the float model's nodes.

    Where the quantized model uses a tensor only through QuantizeLinear and DequantizeLinear, what
    comes out of these is compared: this is what the next layers see. If they also do the work of a
    Relu or Clip that the float model has behind the tensor, that one's output is the reference. Tensors
    whose channels were scaled on purpose are left out.

    Args:
        reference: The float model.
        quantized: What became of it.
    """
    known = quantized.tensors()
    rescaled = rescaled_tensors(quantized)
    pairs: list[Pair] = []
    for node in reference.nodes():
        for tensor in node.outputs:
            other = known.get(tensor.name)
            if not tensor.name or other is None or quantized.is_constant(other) or tensor.name in rescaled:
                continue
            seen = after_rounding(quantized, other)
            source, maker = tensor, node
            if seen is not other:
                clamp = _absorbed_clamp(reference, tensor)
                if clamp is not None and clamp.outputs[0].name not in known:
                    source, maker = clamp.outputs[0], clamp
            pairs.append(Pair(maker.name or source.name, maker.op, source.name, seen.name))
    return tuple(pairs)


def rescaled_tensors(quantized: GraphModel) -> frozenset[str]:
    """Tensors whose channels were scaled on purpose: their values cannot be compared with the float model's."""
    try:
        names = json.loads(quantized.metadata.get("onnxq.rescaled_tensors", "[]"))
    except json.JSONDecodeError:
        return frozenset()
    return frozenset(n for n in names if isinstance(n, str)) if isinstance(names, list) else frozenset()


def after_rounding(graph: GraphModel, tensor: Tensor) -> Tensor:
    """What DequantizeLinear gives, if QuantizeLinear is all that reads `tensor`; else `tensor`."""
    uses = graph.consumers(tensor)
    if not uses or graph.is_output(tensor) or graph.read_by_subgraph(tensor):
        return tensor
    if any(use.node.op != "QuantizeLinear" or use.index != 0 for use in uses):
        return tensor
    for use in graph.consumers(uses[0].node.outputs[0]):
        if use.node.op == "DequantizeLinear" and use.index == 0:
            return use.node.outputs[0]
    return tensor


def _absorbed_clamp(graph: GraphModel, tensor: Tensor) -> Node | None:
    uses = graph.consumers(tensor)
    if len(uses) == 1 and uses[0].node.op in _CLAMPS and graph.is_private(tensor):
        return uses[0].node
    return None
