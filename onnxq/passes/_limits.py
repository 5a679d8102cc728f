"""What a target demands of single nodes beyond their type: ranks, dilations, attributes, widths."""

from __future__ import annotations

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._bias import bias_place
from onnxq.passes._linear import optional_input
from onnxq.targets import Limits, Target

_CONV_OPS = ("Conv", "ConvTranspose")
_NO_LIMITS = Limits()


def why_beyond(graph: GraphModel, node: Node, target: Target) -> str | None:
    """Why the form of a node is one that the target does not compute with codes; None if it is not."""
    limits = target.limits.get(node.op, _NO_LIMITS)
    for name, wanted in limits.attributes.items():
        if float(node.attrs.get(name, wanted)) != wanted:
            return f"its {name} is {node.attrs[name]}; {target.title} computes it with {wanted:g} only"
    weight = weight_of(graph, node)
    if node.op == "MatMul" and weight is None and target.alone:
        return _why_no_product(graph, node, limits, target)
    tensor = weight if weight is not None else node.inputs[0]
    rank = graph.rank(tensor)
    if limits.ranks and rank not in limits.ranks:
        role = "weight" if weight is not None else "input"
        known = " and ".join(str(r) for r in sorted(limits.ranks))
        found = "unknown" if rank is None else str(rank)
        return f"its {role} {tensor.name!r} has rank {found}; {target.title} computes {node.op} of rank {known} only"
    dilations = [int(d) for d in node.attrs.get("dilations", ())]
    if any(axis < len(dilations) and dilations[axis] != 1 for axis in limits.plain.get(rank or 0, ())):
        return f"its dilations are {dilations}; {target.title} computes a {node.op} of this rank undilated only"
    return None


def _why_no_product(graph: GraphModel, node: Node, limits: Limits, target: Target) -> str | None:
    if graph.is_constant(node.inputs[0]):
        return "its first input is the constant one; swap the factors (transpose both) when you export"
    return None if limits.variables else f"{target.title} does not multiply two activations with codes"


def why_not_wide(graph: GraphModel, node: Node, bits: int, target: Target) -> str | None:
    """Why the target does not compute this node with activations of so many bits; None if it does."""
    limits = target.limits.get(node.op, _NO_LIMITS)
    if bits <= 8 or not target.alone or limits.wide == "always":
        return None
    if limits.wide == "never" or weight_of(graph, node) is None:
        return f"{target.title} takes no {bits} bit activations for this {node.op}; give it int8 by a rule"
    if bias_place(graph, node) is None:
        return f"{target.title} takes {bits} bit activations for a {node.op} with a bias only; give it int8 by a rule"
    return None


def needs_symmetric(graph: GraphModel, node: Node, target: Target) -> bool:
    """Whether the target wants the zero point of this node's activations in the middle."""
    limits = target.limits.get(node.op, _NO_LIMITS)
    weight = weight_of(graph, node)
    if weight is None:
        return limits.variables
    return graph.rank(weight) in limits.symmetric


def weight_of(graph: GraphModel, node: Node) -> Tensor | None:
    """The second input of a linear operator where it is constant."""
    if node.op not in (*_CONV_OPS, "Gemm", "MatMul"):
        return None
    weight = optional_input(node, 1)
    return weight if weight is not None and graph.is_constant(weight) else None
