"""Where codes flow: which candidates get codes, keep codes and give codes, given their neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._candidates import Candidate, why_no_codes
from onnxq.passes._linear import label
from onnxq.passes._specs import activation_spec, computes_float8
from onnxq.plan import Role
from onnxq.targets import Target

CLAMPS = frozenset({"Relu", "Clip"})
USELESS = "nothing after it computes with codes: {} in float is as fast and more accurate"


@dataclass
class Flow:
    """What was settled.

    Attributes:
        quantized: Candidates by node name that compute with codes or pass them on.
        roles: Role of every node by name.
        reasons: Why a node stays float, by name.
        coded: Tensors that are given as codes to all their readers, by name, with the node that gives them.
        clamps: Absorbed Relus and Clips by the name of the last one's output: the nodes and their bounds.
    """

    quantized: dict[str, Candidate] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    coded: dict[str, Node] = field(default_factory=dict)
    clamps: dict[str, tuple[tuple[Node, ...], tuple[float, float]]] = field(default_factory=dict)


def settle(graph: GraphModel, verdicts: dict[str, Candidate | str], target: Target) -> Flow:
    """Decide for all nodes.

    Args:
        graph: The graph.
        verdicts: By node name: a candidate, or why the node stays float.
        target: The backend.
    """
    if target.alone:
        return _each_alone(graph, verdicts)
    verdicts = dict(verdicts)
    first: dict[str, str] = {}
    while True:  # what turns out useless may have been what made others useful
        flow = _once(graph, verdicts, target)
        useful = _useful(graph, verdicts, target, flow)
        useless = [n for n, c in flow.quantized.items() if c.kind != "lookup" and n not in useful]
        first = flow.reasons | first  # later ones are consequences
        if not useless:
            flow.reasons = {n: first[n] for n in flow.reasons}
            return flow
        verdicts |= {n: USELESS.format(flow.quantized[n].node.op) for n in useless}


def _each_alone(graph: GraphModel, verdicts: dict[str, Candidate | str]) -> Flow:
    """Every candidate converts its own input, so all of them are quantized."""
    flow = Flow()
    for node in graph.nodes():
        verdict = verdicts[label(node)]
        if isinstance(verdict, str):
            flow.roles[label(node)] = "float"
            flow.reasons[label(node)] = verdict
        else:
            _note(flow, verdict, "quantized")
    return flow


def _once(graph: GraphModel, verdicts: dict[str, Candidate | str], target: Target) -> Flow:
    """One pass over the graph."""
    useful = _useful(graph, verdicts, target)
    flow = Flow()
    for node in graph.nodes():
        name = label(node)
        verdict = verdicts[name]
        reason = verdict if isinstance(verdict, str) else _admit(graph, verdict, useful, flow, target)
        if reason:
            flow.roles[name] = "float"
            flow.reasons[name] = reason
    return flow


def _useful(
    graph: GraphModel, verdicts: dict[str, Candidate | str], target: Target, flow: Flow | None = None
) -> frozenset[str]:
    """Names of nodes from which codes can flow to a linear operator, or, in what was settled, do."""
    found: set[str] = set()
    wanting: set[str] = set()  # without those that take no other codes than their own
    for node in reversed(graph.nodes()):
        verdict = verdicts[label(node)]
        if flow is not None and not isinstance(verdict, str) and flow.roles[label(node)] == "float":
            continue
        if isinstance(verdict, str):  # a clamp that the backend fuses into the layer before it lets codes through
            if node.op in CLAMPS - target.clamps and any(_wanted(graph, t, wanting) for t in node.outputs[:1]):
                found.add(label(node))
                wanting.add(label(node))
            continue
        forced = target.all_codes or (verdict.settings.force and verdict.kind != "clamp")
        if verdict.kind == "linear" or forced or any(_wanted(graph, t, wanting) for t in verdict.results):
            found.add(label(node))
            if not computes_float8(verdict.settings.activations, target):
                wanting.add(label(node))
    return frozenset(found)


def _wanted(graph: GraphModel, tensor: Tensor, useful: set[str] | frozenset[str]) -> bool:
    return any(label(use.node) in useful for use in graph.consumers(tensor))


def _admit(graph: GraphModel, c: Candidate, useful: frozenset[str], flow: Flow, target: Target) -> str:
    """Write a candidate into `flow`; returns why it stays float, or an empty string."""
    name = label(c.node)
    if c.kind == "clamp":
        return _clamp(graph, c, flow, target)
    if c.kind == "lookup":
        _note(flow, c, "quantized")
        return ""
    if name not in useful:
        return USELESS.format(c.node.op)
    if c.kind != "linear" and not c.settings.force and not target.all_codes:
        floats = _costly(graph, c, flow, target)
        if floats:
            return why_no_codes(graph, c, floats)
    _note(flow, c, "shared" if c.kind == "passive" else "quantized")
    if _gives_codes(graph, c, useful, target):
        for tensor in c.results:
            flow.coded[tensor.name] = c.node
    return ""


def _costly(graph: GraphModel, c: Candidate, flow: Flow, target: Target) -> list[Tensor]:
    """Inputs that come as floats and would have to be converted for this node only."""
    floats = [c.node.inputs[i] for i in c.data if c.node.inputs[i].name not in flow.coded]
    if c.kind in ("unary", "passive", "join") and _makes_any(
        target
    ):  # what the layer before gives becomes codes at no cost
        floats = [t for t in floats if not _from_quantized(graph, t, flow)]
    if c.kind == "arithmetic" and len(floats) < len(c.data):
        floats = [t for t in floats if not _is_gate(graph, t)]
    if c.kind == "arithmetic" and not target.both_addends and _fits_residual(graph, c):
        return []
    return floats


def _makes_any(target: Target) -> bool:
    """Whether every layer of the backend can give codes and floats alike."""
    return target.float_result >= {"Conv"}


def _from_quantized(graph: GraphModel, tensor: Tensor, flow: Flow) -> bool:
    maker = graph.producer(tensor)
    while maker is not None and maker.op in CLAMPS:
        maker = graph.producer(maker.inputs[0])
    return maker is not None and flow.roles.get(label(maker)) == "quantized"


def _is_gate(graph: GraphModel, tensor: Tensor) -> bool:
    """Whether it has one number for each channel of an image: converting that costs nothing."""
    shape = graph.shape(tensor) or ()
    return len(shape) >= 3 and all(size == 1 for size in shape[2:])


def _note(flow: Flow, c: Candidate, role: Role) -> None:
    flow.quantized[label(c.node)] = c
    flow.roles[label(c.node)] = role


def _fits_residual(graph: GraphModel, c: Candidate) -> bool:
    """Whether an Add has one input from a linear operator, into which the backend fuses it, and one other."""
    makers = [graph.producer(c.node.inputs[i]) for i in c.data]
    linear = [m for m in makers if m is not None and m.op in ("Conv", "Gemm", "MatMul", "ConvTranspose")]
    return c.node.op == "Add" and len(makers) == 2 and len(linear) >= 1


def _gives_codes(graph: GraphModel, c: Candidate, useful: frozenset[str], target: Target) -> bool:
    if computes_float8(c.settings.activations, target):
        return False
    if c.node.op not in target.float_result:
        return True
    if _makes_any(target):
        return False  # nothing needs codes behind it; readers that want codes ask for them
    return all(_only_codes(graph, t, useful) for t in c.results)


def _only_codes(graph: GraphModel, tensor: Tensor, useful: frozenset[str]) -> bool:
    """Whether every reader of `tensor` takes codes at no loss: a bias Add behind a MatMul would round twice."""
    if graph.is_output(tensor) or graph.read_by_subgraph(tensor):
        return False
    readers = [use.node for use in graph.consumers(tensor)]
    return bool(readers) and all(
        label(n) in useful
        and n.op not in ("Add", "Mul", "Sub", "Div")
        and (n.op not in ("Relu", "Clip") or all(_only_codes(graph, t, useful) for t in n.outputs[:1]))
        for n in readers
    )


def _clamp(graph: GraphModel, c: Candidate, flow: Flow, target: Target) -> str:
    """Let a Relu or Clip disappear, or compute with codes; otherwise say why it stays float."""
    reason = _absorb(graph, c, flow, target)
    if reason and target.all_codes:
        _note(flow, c, "quantized")
        flow.coded[c.results[0].name] = c.node
        return ""
    return reason


def _absorb(graph: GraphModel, c: Candidate, flow: Flow, target: Target) -> str:
    """A Relu or Clip disappears where its input is codes nobody else reads."""
    source, result = c.node.inputs[0], c.results[0]
    maker = flow.coded.get(source.name)
    if maker is None:
        origin = graph.producer(source)
        if origin is not None and label(origin) in flow.quantized:
            return f"{origin.op} {label(origin)!r} in front of it gives floats"
        return "what it reads are floats"
    role = flow.roles[label(maker)]
    if role == "shared":
        return "its input shares its scale with other tensors, so saturation cannot replace it"
    if not graph.is_private(source):
        return f"its input {source.name!r} is read elsewhere too, so saturation cannot replace it"
    if activation_spec(flow.quantized[label(maker)].settings.activations, target).symmetric:
        return "symmetric activations have codes below zero, so saturation cannot replace it"
    del flow.coded[source.name]
    inner, (low, high) = flow.clamps.pop(source.name, ((), (-math.inf, math.inf)))
    flow.coded[result.name] = maker
    flow.clamps[result.name] = ((*inner, c.node), (max(low, c.bounds[0]), min(high, c.bounds[1])))
    flow.roles[label(c.node)] = "absorbed"
    return ""
