"""Parts of a graph that a runtime fuses into one float kernel: codes inside them would only cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxq.graph import GraphModel, Node, Tensor

LAYER_NORM = "it is part of a layer normalization, which runs as one float kernel"
GELU = "it is part of a Gelu, which runs as one float kernel"
HARD_SWISH = "it is part of a HardSwish, whose intermediate values lose too much in 8 bits"
BALANCE = "it divides the channels of a balanced layer's input; codes in front of it would undo that"
ATTENTION = "it is part of an attention: a product, the softmax, what scales or masks it; 8 bits lose too much there"

ONE_KERNEL = (LAYER_NORM, GELU)
"""What becomes one kernel only where all its nodes that read the same values read the same tensor."""

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Where", "Cast", "Neg"})
_DEPTH = 6


def fused_patterns(graph: GraphModel) -> dict[str, str]:
    """Node names inside such a pattern, each with the reason why it stays float."""
    found: dict[str, str] = {}
    for node in graph.nodes("Sqrt"):
        found |= dict.fromkeys(_layer_norm(graph, node), LAYER_NORM)
    for node in graph.nodes("Erf", "Tanh"):
        found |= dict.fromkeys(_gelu(graph, node), GELU)
    for node in graph.nodes("Clip", "HardSigmoid"):
        found |= dict.fromkeys(_hard_swish(graph, node), HARD_SWISH)
    for node in graph.nodes("Softmax"):
        found |= dict.fromkeys(_attention(graph, node), ATTENTION)
    for node in graph.nodes("Mul"):
        if any(graph.is_constant(t) and ".tensor_balance_factor" in t.name for t in node.inputs):
            found[node.name] = BALANCE
    return found


def _data(graph: GraphModel, node: Node) -> list[Tensor]:
    """The inputs of an elementwise node that are not constants."""
    return [t for t in node.inputs if t.name and not graph.is_constant(t)]


def _producer(graph: GraphModel, tensor: Tensor, *ops: str) -> Node | None:
    node: Node | None = graph.producer(tensor)
    return node if node is not None and (not ops or node.op in ops) else None


def _readers(graph: GraphModel, node: Node, *ops: str) -> Iterator[Node]:
    for use in graph.consumers(node.outputs[0]):
        if use.node.op in ops:
            yield use.node


def _before(graph: GraphModel, node: Node, *ops: str) -> Node | None:
    """The producer of the only data input, if it is one of `ops`."""
    data = _data(graph, node)
    return _producer(graph, data[0], *ops) if len(data) == 1 else None


def _layer_norm(graph: GraphModel, sqrt: Node) -> list[str]:
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps) * gamma + beta``; without the mean it is an RMS norm."""
    plus = _before(graph, sqrt, "Add")
    mean = _before(graph, plus, "ReduceMean") if plus is not None else None
    square = _producer(graph, mean.inputs[0], "Pow", "Mul") if mean is not None else None
    if plus is None or mean is None or square is None:
        return []
    members = [sqrt, plus, mean, square]
    centred = _producer(graph, square.inputs[0], "Sub")
    if centred is not None:
        members.append(centred)
        members += [m for t in centred.inputs if (m := _producer(graph, t, "ReduceMean")) is not None]
    tails = list(_readers(graph, sqrt, "Div", "Reciprocal"))
    members += tails
    for tail in tails:
        members += _run_of(graph, tail, ("Mul", "Add"))
    return [n.name for n in members]


def _run_of(graph: GraphModel, node: Node, ops: tuple[str, ...]) -> list[Node]:
    """The chain of single readers behind `node` of these types: the gamma and beta of a norm."""
    chain: list[Node] = []
    for op in ops:
        following = list(_readers(graph, chain[-1] if chain else node, op))
        if len(following) != 1 or not any(graph.is_constant(t) for t in following[0].inputs):
            break
        chain.append(following[0])
    return chain


def _gelu(graph: GraphModel, curve: Node) -> list[str]:
    """``x * (1 + erf(x / sqrt(2))) * 0.5`` and the form with tanh."""
    plus = next(iter(_readers(graph, curve, "Add")), None)
    product = next(iter(_readers(graph, plus, "Mul")), None) if plus is not None else None
    if plus is None or product is None or not _holds(graph, plus, 1.0):
        return []
    members = {id(n): n for n in (curve, plus, product)}
    for node in _upstream(graph, curve):
        members[id(node)] = node
    for half in (*_readers(graph, product, "Mul"), *(_before_any(graph, product))):
        if _holds(graph, half, 0.5):
            members[id(half)] = half
    return [n.name for n in members.values()]


def _before_any(graph: GraphModel, node: Node) -> Iterator[Node]:
    for tensor in _data(graph, node):
        before = _producer(graph, tensor, "Mul")
        if before is not None:
            yield before


def _upstream(graph: GraphModel, node: Node) -> Iterator[Node]:
    """The elementwise nodes that feed a curve and combine one tensor with constants only."""
    stack = [(t, 0) for t in _data(graph, node)]
    while stack:
        tensor, depth = stack.pop()
        before = _producer(graph, tensor, *_ELEMENTWISE)
        if before is None or depth >= _DEPTH:
            continue
        if any(graph.is_constant(t) for t in before.inputs) or depth:
            yield before
            stack += [(t, depth + 1) for t in _data(graph, before)]


def _holds(graph: GraphModel, node: Node, number: float) -> bool:
    """Whether one input is the constant `number`."""
    return any(
        graph.is_constant(t) and graph.shape(t) in ((), (1,)) and bool(np.all(np.isclose(graph.value(t), number)))
        for t in node.inputs
    )


def _hard_swish(graph: GraphModel, curve: Node) -> list[str]:
    """``x * clip(x + 3, 0, 6) / 6`` and ``x * hardsigmoid(x)``."""
    source = curve.inputs[0]
    members = [curve]
    if curve.op == "Clip":
        plus = _producer(graph, source, "Add")
        if plus is None or not _holds(graph, plus, 3.0) or len(_data(graph, plus)) != 1:
            return []
        members.append(plus)
        source = _data(graph, plus)[0]
    products = list(_readers(graph, curve, "Mul", "Div"))
    for first in products:
        members.append(first)
        if not any(t is source for t in first.inputs):
            members += [n for n in _readers(graph, first, "Mul") if any(t is source for t in n.inputs)]
        else:
            members += [n for n in _readers(graph, first, "Mul", "Div") if len(_data(graph, n)) == 1]
    uses_source = any(t is source for n in members[1:] if n.op == "Mul" for t in n.inputs)
    return [n.name for n in members] if uses_source else []


def _attention(graph: GraphModel, softmax: Node) -> list[str]:
    """A Softmax between two MatMuls of activations, these, and what scales and masks its input.

    Measured on one core with AVX2, 64 channels a head and 128 to 512 positions: with codes the two products
    make the block 2 to 5 % faster and cost 3 to 7 dB.
    """
    products = [n for n in _readers(graph, softmax, "MatMul") if len(_data(graph, n)) == 2]
    if not products:
        return []
    members = [softmax, *products]
    tensor = softmax.inputs[0]
    for _ in range(_DEPTH):
        before = _producer(graph, tensor)
        if before is not None and before.op == "MatMul" and len(_data(graph, before)) == 2:
            members.append(before)
        if before is None or before.op not in _ELEMENTWISE:
            break
        members.append(before)
        inner = [t for t in _data(graph, before) if (p := graph.producer(t)) is not None and p.op != "Cast"]
        tensor = inner[0] if inner else before.inputs[0]
    return [n.name for n in members]
