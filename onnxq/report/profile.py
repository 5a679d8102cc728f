"""Where the time of a model goes, node by node, as ONNX Runtime's profiler tells it.

What runs are the nodes of the optimized graph: several nodes of the model fused into one, others added by ONNX Runtime
(a Transpose, a Reorder). `NodeTime.layer` says which node of the model the time is for, where that can be known.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import onnx

from onnxq.calib.feeds import Feed
from onnxq.graph import GraphModel
from onnxq.modelio import load_model
from onnxq.passes._base import PassManager
from onnxq.passes.assign_names import AssignNames
from onnxq.pipeline import context_for, run_passes
from onnxq.recipe import Recipe
from onnxq.report.origins import Origins
from onnxq.runtime import Trace, trace

_CODES = frozenset({"int8", "uint8"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
_INTEGER = re.compile(r"QLinear.*|.*Integer(ToFloat)?|QGemm|QAttention|QEmbedLayerNormalization|QMoE|DynamicQuantize.+")
_DECODED = re.compile(r"MatMulNBits|GatherBlockQuantized|MatMulBnb4")
_BODIES = frozenset({"If", "Loop", "Scan"})
_KERNEL = "_kernel_time"


class KernelKind(Enum):
    """What a kernel computes with."""

    INTEGER = "integer"
    """With integer codes: QLinearConv, MatMulInteger, DynamicQuantizeMatMul, …"""
    CODED_WEIGHTS = "coded weights"
    """With floats and weights that are stored as codes: MatMulNBits, …"""
    CODES = "moves codes"
    """It passes integer codes on: MaxPool, Transpose, Concat, … on int8 or uint8."""
    CONVERSION = "conversion"
    """Between floats and codes, or between types."""
    DEQUANTIZED = "float on dequantized"
    """With floats just made of codes, and its weights were codes or codes are made of it again: it was not fused."""
    FLOAT = "float"
    """With floats, or anything else."""

    @property
    def integer(self) -> bool:
        """Whether codes are used without being turned into floats first."""
        return self in (KernelKind.INTEGER, KernelKind.CODED_WEIGHTS, KernelKind.CODES)


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One node of the graph that was run.

    Attributes:
        name: Its name there.
        op_type: Its operator there, such as QLinearConv or FusedConv.
        domain: The operator's domain; "" is ONNX itself.
        microseconds: Time of one inference: the median over the runs, without the nodes in its bodies.
        kind: What it computes with.
        provider: The execution provider.
        layer: Name of the model's node that it is for; None where ONNX Runtime added it or the name is lost.
        covers: Names of all of the model's nodes that it does, in their order; those of the layer's body are not
            among them.
    """

    name: str
    op_type: str
    domain: str
    microseconds: float
    kind: KernelKind
    provider: str
    layer: str | None
    covers: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        what = {"name": self.name, "op_type": self.op_type, "domain": self.domain, "kind": self.kind.value}
        return {
            **what,
            "microseconds": self.microseconds,
            "provider": self.provider,
            "layer": self.layer,
            "covers": list(self.covers),
        }


@dataclass(frozen=True, slots=True)
class OpTime:
    """All nodes of one operator.

    Attributes:
        op_type: The operator.
        kind: What they compute with.
        nodes: How many.
        microseconds: Their time in one inference.
        share: Of the time of all nodes, 0 to 1.
    """

    op_type: str
    kind: KernelKind
    nodes: int
    microseconds: float
    share: float

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        what = {"op_type": self.op_type, "kind": self.kind.value, "nodes": self.nodes}
        return {**what, "microseconds": self.microseconds, "share": self.share}


@dataclass(frozen=True, slots=True)
class Profile:
    """Times of all nodes of one inference.

    Attributes:
        nodes: In the order they run.
        run_microseconds: Time of the whole inference with the profiler on, median over the runs; it is longer than
            without the profiler by some microseconds for each node.
        runs: How many runs were measured.
    """

    nodes: tuple[NodeTime, ...]
    run_microseconds: float
    runs: int

    @property
    def microseconds(self) -> float:
        """Time of all nodes."""
        return sum(node.microseconds for node in self.nodes)

    def by_op(self) -> tuple[OpTime, ...]:
        """Times by operator and kind, the longest first."""
        groups: defaultdict[tuple[str, KernelKind], list[NodeTime]] = defaultdict(list)
        for node in self.nodes:
            groups[node.op_type, node.kind].append(node)
        total = self.microseconds or 1.0
        found = []
        for (op_type, kind), nodes in groups.items():
            spent = sum(node.microseconds for node in nodes)
            found.append(OpTime(op_type, kind, len(nodes), spent, spent / total))
        return tuple(sorted(found, key=lambda op: (-op.microseconds, op.op_type, op.kind.value)))

    def by_kind(self) -> Mapping[KernelKind, float]:
        """Microseconds by what is computed with; every kind is there."""
        found = dict.fromkeys(KernelKind, 0.0)
        for node in self.nodes:
            found[node.kind] += node.microseconds
        return found

    def by_layer(self) -> Mapping[str, float]:
        """Microseconds by name of the model's node; see `NodeTime.layer`."""
        found: defaultdict[str, float] = defaultdict(float)
        for node in self.nodes:
            if node.layer is not None:
                found[node.layer] += node.microseconds
        return dict(found)

    @property
    def unmapped(self) -> tuple[NodeTime, ...]:
        """Nodes that are for no node of the model."""
        return tuple(node for node in self.nodes if node.layer is None)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "runs": self.runs,
            "run_microseconds": self.run_microseconds,
            "by_op": [op.to_dict() for op in self.by_op()],
            "by_kind": {kind.value: spent for kind, spent in self.by_kind().items()},
            "nodes": [node.to_dict() for node in self.nodes],
        }


def profile_model(
    graph: GraphModel | Path, feeds: Sequence[Feed], *, threads: int = 0, runs: int = 20, warm_up: int = 3
) -> Profile:
    """Run a model under ONNX Runtime's profiler.

    Args:
        graph: The model or its file.
        feeds: Taken in turn, one for each run.
        threads: Threads of ONNX Runtime; 0 for all cores.
        runs: How many runs are measured.
        warm_up: How many runs come before that.

    Raises:
        ModelError: If ONNX Runtime cannot load it.
        DataError: If ONNX Runtime refuses a feed, or there is none.
    """
    source = str(graph) if isinstance(graph, Path) else "the model"
    model = load_model(graph) if isinstance(graph, Path) else graph
    named = _named(model)
    executed = graph if named is model else named
    traced = trace(executed, feeds, threads=threads, runs=runs, warm_up=warm_up, source=source)
    return profile_of(traced, named)


def _named(graph: GraphModel) -> GraphModel:
    """The graph, or a copy where nodes lack a name of their own; those get the names that they have in reports."""
    if len({node.name for node in graph.nodes()} - {""}) == len(graph.nodes()):
        return graph
    named = graph.copy()
    run_passes(PassManager([AssignNames()]), named, context_for(Recipe(), None, 1, None))
    return named


def profile_of(traced: Trace, graph: GraphModel) -> Profile:
    """What a trace says about a model.

    Args:
        traced: What ONNX Runtime's profiler wrote.
        graph: The model as it was given to ONNX Runtime.
    """
    whole = [event for event in traced.events if event.get("name") == "model_run"][traced.warm_up :]
    times: defaultdict[_Key, dict[int, float]] = defaultdict(dict)
    events: dict[_Key, Mapping[str, Any]] = {}
    for number, key, event, spent in _kernels(traced.events, whole):
        events.setdefault(key, event)
        times[key][number] = times[key].get(number, 0.0) + spent
    executed = _Executed(traced.optimized, Origins(graph, traced.optimized))
    nodes = []
    for key, event in events.items():
        runs = [times[key].get(number, 0.0) for number in range(len(whole))]
        nodes.append(executed.node(key, event["args"], float(statistics.median(runs))))
    run = float(statistics.median(event["dur"] for event in whole)) if whole else 0.0
    return Profile(tuple(nodes), run, len(whole))


@dataclass(frozen=True, slots=True)
class _Key:
    """Which node an event is of: nodes in bodies have the node around them as `outer`."""

    name: str
    index: str
    outer: _Key | None = None

    @property
    def top(self) -> str:
        """Name of the node of the main graph."""
        return self.name if self.outer is None else self.outer.top


def _kernels(
    events: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, _Key, Mapping[str, Any], float]]:
    """The number of the run, the node, its event, and its time without that of the nodes in its bodies."""
    kernels = [e for e in events if e.get("cat") == "Node" and str(e.get("name", "")).endswith(_KERNEL)]
    for number, run in enumerate(whole):
        end = run["ts"] + run["dur"]
        inside = [e for e in kernels if run["ts"] <= e["ts"] and e["ts"] + e["dur"] <= end]
        around: list[tuple[float, _Key, int]] = []
        found: list[tuple[_Key, Mapping[str, Any], float]] = []
        for event in sorted(inside, key=lambda e: (e["ts"], -e["dur"])):
            while around and event["ts"] >= around[-1][0]:
                around.pop()
            outer = around[-1][1] if around else None
            key = _Key(event["name"].removesuffix(_KERNEL), str(event["args"].get("node_index", "")), outer)
            if around:
                place = around[-1][2]
                found[place] = (*found[place][:2], found[place][2] - event["dur"])
            if event["args"].get("op_name") in _BODIES:
                around.append((event["ts"] + event["dur"], key, len(found)))
            found.append((key, event, float(event["dur"])))
        for key, event, spent in found:
            yield number, key, event, max(0.0, spent)


class _Executed:
    """The graph that was run."""

    def __init__(self, optimized: onnx.ModelProto, origins: Origins) -> None:
        self._origins = origins
        self._nodes = {node.name: node for node in optimized.graph.node if node.name}
        pairs = [n for n in optimized.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        self._decoded = {n.output[0] for n in pairs if n.op_type == "DequantizeLinear"}
        constants = {t.name for t in optimized.graph.initializer}
        self._weights = {n.output[0] for n in pairs if n.input[0] in constants}
        self._coded = {n.input[0] for n in pairs if n.op_type == "QuantizeLinear"}

    def node(self, key: _Key, args: Mapping[str, Any], microseconds: float) -> NodeTime:
        """What is known of a node that was run."""
        op_type = str(args.get("op_name", ""))
        node = self._nodes.get(key.name) if key.outer is None else None
        origin = self._origins.of(key.top)
        return NodeTime(
            key.name,
            op_type,
            node.domain if node is not None and node.op_type == op_type else "",
            microseconds,
            self._kind(op_type, args, node),
            str(args.get("provider", "")),
            origin.layer,
            origin.covers if key.outer is None else (),
        )

    def _kind(self, op_type: str, args: Mapping[str, Any], node: onnx.NodeProto | None) -> KernelKind:
        if op_type in _CONVERSIONS:
            return KernelKind.CONVERSION
        if _INTEGER.fullmatch(op_type):
            return KernelKind.INTEGER
        if _DECODED.fullmatch(op_type):
            return KernelKind.CODED_WEIGHTS
        types = [next(iter(shape), "") for shape in args.get("input_type_shape", ())]
        if types and types[0] in _CODES:
            return KernelKind.CODES
        if node is not None and not self._decoded.isdisjoint(node.input):
            unfused = not (self._weights.isdisjoint(node.input) and self._coded.isdisjoint(node.output))
            return KernelKind.DEQUANTIZED if unfused else KernelKind.FLOAT
        return KernelKind.FLOAT
