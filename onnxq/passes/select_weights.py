"""Decides which weights are stored as codes, how, and says why the rest stays float."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.opinfo import OPS
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._linear import describe, kind, label, optional_input, why_not_constant
from onnxq.passes._weight_only import WEIGHT_INPUTS, channel_axis, gain_threshold, stored_method, stored_spec
from onnxq.plan import Decision, Plan, Role, WeightPlan
from onnxq.recipe import Settings, WeightOnly
from onnxq.spec import PerAxis, QuantSpec

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_WITH_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_FORCE = "a rule with quantize: true stores it as codes all the same"


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A constant that could be stored as codes, seen from one of its readers."""

    node: Node
    index: int
    settings: Settings
    axis: int

    @property
    def tensor(self) -> Tensor:
        return self.node.inputs[self.index]


@dataclass(frozen=True)
class SelectWeights(Pass):
    """Writes ``ctx.plan``: which weights are stored as codes, and why the rest is not; activations stay float.

    Weights are the constant float32 matrices, kernels and tables of Conv, ConvTranspose, Gemm, MatMul, Gather, LSTM,
    GRU and RNN. What the recipe skips stays float first of all, then what is too small for codes to pay. A weight that
    several nodes read along different axes has one scale for all of it; one that a node needs as floats stays float,
    because codes beside it would only add to the file.

    Given:
        a named graph with lifted constants and known shapes.
    Result:
        the graph unchanged; `ctx.plan`, with no activations.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Judge every node.

        Raises:
            RecipeError: If a name of the recipe matches nothing in the model.
        """
        nodes = graph.nodes()
        known = frozenset(OPS) | frozenset(WEIGHT_INPUTS)
        ctx.recipe.check_names(((label(n), str(n.op)) for n in nodes), op_types=known)
        scheme = ctx.recipe.scheme if isinstance(ctx.recipe.scheme, WeightOnly) else WeightOnly()
        judged = {label(n): _candidates(graph, n, ctx.recipe.resolve(label(n), kind(n))) for n in nodes}
        found = [c for cs in judged.values() if not isinstance(cs, str) for c in cs if not isinstance(c, str)]
        plans = _plans(graph, found, scheme)
        decisions = tuple(_decide(n, judged[label(n)], plans) for n in nodes)
        order = [plans[label(c.node), c.index] for c in found]
        ctx.plan = Plan(decisions, weights=tuple(p for p in order if isinstance(p, WeightPlan)))
        return PassReport(skipped=tuple(_skips(judged, plans)))


def _candidates(graph: GraphModel, node: Node, settings: Settings) -> str | list[_Candidate | str]:
    """For each weight of a node the candidate, or why it is none; the reason where that is so for all of the node."""
    op = kind(node)
    if settings.skip:
        return settings.reason
    if op in _WITH_BODIES:
        return f"the bodies of {node.op} nodes are left float"
    if op not in WEIGHT_INPUTS:
        return f"{op} has no weight that could be stored as codes"
    indexes = [i for i in WEIGHT_INPUTS[op] if optional_input(node, i) is not None]
    if op in ("Gemm", "MatMul", "Gather"):  # what is not constant is data
        indexes = [i for i in indexes if graph.is_constant(node.inputs[i])]
    if not indexes:
        return "it has no constant weight"
    return [_candidate(graph, node, index, settings) for index in indexes]


def _candidate(graph: GraphModel, node: Node, index: int, settings: Settings) -> _Candidate | str:
    tensor = node.inputs[index]
    reason = why_not_constant(graph, tensor, "weight")
    rank = graph.rank(tensor) or 0
    if reason is not None:
        return reason
    if rank < 2:
        return f"its weight {tensor.name!r} has {rank} dimensions; codes need 2 or more"
    if 0 in (graph.shape(tensor) or ()):
        return f"its weight {tensor.name!r} is empty"
    return _Candidate(node, index, settings, channel_axis(node, index, rank))


Plans = dict[tuple[str, int], WeightPlan | str]
"""By node name and input index: how the weight is stored, or why it stays float."""


def _plans(graph: GraphModel, found: list[_Candidate], scheme: WeightOnly) -> Plans:
    by_tensor: dict[str, list[_Candidate]] = {}
    for candidate in found:
        by_tensor.setdefault(candidate.tensor.name, []).append(candidate)
    plans: Plans = {}
    for readers in by_tensor.values():
        reason = _why_needed(graph, readers)
        along = readers[0].axis if len({c.axis for c in readers}) == 1 else None
        each = [reason or _why_not(graph, c, along, scheme) or _plan(c, along) for c in readers]
        floats = [c for c, plan in zip(readers, each, strict=True) if isinstance(plan, str)]
        if reason is None and 0 < len(floats) < len(readers):
            text = f"its weight {readers[0].tensor.name!r} stays float for {describe(floats[0].node)}"
            each = [text if isinstance(plan, WeightPlan) else plan for plan in each]
        each = _with_keys(each)
        plans |= {(label(c.node), c.index): plan for c, plan in zip(readers, each, strict=True)}
    return plans


def _why_needed(graph: GraphModel, readers: list[_Candidate]) -> str | None:
    """Why a weight must stay in the file as floats whatever its readers want; None if it need not."""
    tensor = readers[0].tensor
    if graph.is_output(tensor):
        return f"its weight {tensor.name!r} is a graph output"
    if graph.read_by_subgraph(tensor):
        return f"its weight {tensor.name!r} is read inside the body of an If, Loop or Scan"
    known = {(id(c.node), c.index) for c in readers}
    others = [use.node for use in graph.consumers(tensor) if (id(use.node), use.index) not in known]
    return f"{describe(others[0])} needs its weight {tensor.name!r} as floats" if others else None


def _why_not(graph: GraphModel, c: _Candidate, along: int | None, scheme: WeightOnly) -> str | None:
    """Why codes do not pay for a weight; a rule with quantize: true overrules it."""
    shape = tuple(int(d) for d in graph.shape(c.tensor) or () if isinstance(d, int))
    if c.settings.force:
        return None
    if math.prod(shape) <= scheme.min_size:
        return f"its weight has {math.prod(shape)} elements, not more than min_size {scheme.min_size}; {_FORCE}"
    channels = shape[c.axis]
    if c.node.op in ("Conv", "ConvTranspose") and channels <= scheme.min_channels:
        return f"its weight has {channels} channels, not more than min_channels {scheme.min_channels}; {_FORCE}"
    spec = stored_spec(c.settings.weights, along)
    each = isinstance(spec.granularity, PerAxis) and scheme.mixed is None
    if not (scheme.gain_rule and scheme.correction and each):
        return None
    elements, limit = math.prod(shape) // channels, gain_threshold(spec.bits)
    if elements <= limit:
        return f"its channels have {elements} elements, not more than the {limit} that {spec.bits} bits need; {_FORCE}"
    return None


def _plan(c: _Candidate, along: int | None) -> WeightPlan:
    config = c.settings.weights
    spec = stored_spec(config, along)
    return WeightPlan(label(c.node), c.index, c.tensor.name, c.tensor.name, spec, stored_method(config))


def _with_keys(plans: list[WeightPlan | str]) -> list[WeightPlan | str]:
    """Give a weight that its readers want differently a key for each way."""
    ways: list[tuple[QuantSpec, object]] = []
    keyed: list[WeightPlan | str] = []
    for plan in plans:
        if isinstance(plan, str):
            keyed.append(plan)
            continue
        way = (plan.spec, plan.method)
        if way not in ways:
            ways.append(way)
        number = ways.index(way)
        keyed.append(replace(plan, key=plan.tensor if number == 0 else f"{plan.tensor}#{number + 1}"))
    return keyed


def _decide(node: Node, judged: str | list[_Candidate | str], plans: Plans) -> Decision:
    reason = judged if isinstance(judged, str) else "; ".join(dict.fromkeys(_reasons(judged, plans)))
    stored = not isinstance(judged, str) and len(_reasons(judged, plans)) < len(judged)
    role: Role = "quantized" if stored else "float"
    return Decision(label(node), str(node.op), role, "" if stored else reason)


def _reasons(judged: list[_Candidate | str], plans: Plans) -> list[str]:
    each = [c if isinstance(c, str) else plans[label(c.node), c.index] for c in judged]
    return [reason for reason in each if isinstance(reason, str)]


def _skips(judged: dict[str, str | list[_Candidate | str]], plans: Plans) -> list[Skip]:
    """Every weight that stays float, also those of nodes that have another one stored as codes."""
    skips = []
    for name, found in judged.items():
        reasons = [found] if isinstance(found, str) else _reasons(found, plans)
        skips += [Skip(name, reason) for reason in dict.fromkeys(reasons)]
    return skips
