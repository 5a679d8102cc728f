"""Costs of layers: measured here by ONNX Runtime's profiler, or counted where the backend does not run here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnxq.calib.feeds import Feed
from onnxq.costs import model_cost
from onnxq.graph import GraphModel
from onnxq.plan import Plan
from onnxq.report.profile import KernelKind, NodeTime, Profile, profile_model
from onnxq.runtime import make_session
from onnxq.tune.costs import OUTSIDE, Edge, LayerCosts

RUNS = 20
_SHAPES_AT_ONCE = 32
_PER_NODE = 3.0
"""Microseconds that a conversion costs however small its tensor is."""
_PER_ELEMENT = 5e-4
"""Microseconds for an element, where the integer model has no conversion to learn it from."""
_MOST_PER_ELEMENT = 5e-3
"""What is beyond that is no work on elements: small tensors would make it look so."""
_ADDED = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
"""What ONNX Runtime adds where kernels of different layouts meet."""
_FLOAT_OPS, _WIDE_OPS = 4.0, 2.0
"""Cost of a multiplication in float and with 16 bits, where one with 8 bits costs 1: as wide as the numbers are."""


def measure_costs(
    prepared: GraphModel, quantized: GraphModel, plan: Plan, feed: Feed, *, threads: int = 0, runs: int = RUNS
) -> LayerCosts:
    """Profile a model in float and in integers.

    Args:
        prepared: The float model, with the names that the plan has.
        quantized: What became of it.
        plan: What was quantized.
        feed: One sample.
        threads: Threads of ONNX Runtime; 0 for all cores.
        runs: How many runs of each are measured.

    Raises:
        OnnxqError: If a model cannot be run.
    """
    floats, integers = (profile_model(g, [feed], threads=threads, runs=runs) for g in (prepared, quantized))
    elements = _elements(prepared, feed, threads)
    return costs_of(prepared, plan, floats, integers, elements)


def costs_of(
    prepared: GraphModel, plan: Plan, floats: Profile, integers: Profile, elements: Mapping[str, int]
) -> LayerCosts:
    """The costs that two profiles tell.

    Args:
        prepared: The float model.
        plan: What was quantized.
        floats: The profile of the float model.
        integers: That of the quantized model.
        elements: How many elements each tensor has.
    """
    layers = _Layers(prepared, plan)
    edges = list(layers.edges(elements))
    between = [node for node in integers.nodes if _is_conversion(node)]
    crossing = sum(size for producer, consumer, size in edges if OUTSIDE in (producer, consumer))
    spent = sum(max(0.0, node.microseconds - _PER_NODE) for node in between)
    rate = min(spent / crossing, _MOST_PER_ELEMENT) if crossing and spent else _PER_ELEMENT
    work = [node for node in integers.nodes if not _is_conversion(node)]
    return LayerCosts(
        layers.costs((node.layer, node.microseconds) for node in floats.nodes),
        layers.costs((node.layer, node.microseconds) for node in work),
        tuple(Edge(a, b, _PER_NODE + rate * size) for a, b, size in edges),
        sum(node.microseconds for node in work if layers.of(node.layer) == OUTSIDE),
    )


def _is_conversion(node: NodeTime) -> bool:
    """Whether a node of the integer model is there because codes and floats, or their layouts, meet."""
    return node.kind is KernelKind.CONVERSION or (node.layer is None and node.op_type in _ADDED)


def count_costs(prepared: GraphModel, plan: Plan) -> LayerCosts:
    """Costs in operations, weighted by the width of the numbers; for backends that do not run here.

    Args:
        prepared: The float model, with inferred shapes.
        plan: What was quantized.
    """
    layers = _Layers(prepared, plan)
    counted = [(node.node, float((node.macs or 0) + node.elementwise)) for node in model_cost(prepared).nodes]
    sizes = {name: _count(prepared.shape(prepared.tensor(name))) for name in _activations(prepared)}
    return LayerCosts(
        layers.costs((name, _FLOAT_OPS * cost) for name, cost in counted),
        layers.costs(counted),
        tuple(Edge(a, b, float(size)) for a, b, size in layers.edges(sizes)),
        _FLOAT_OPS * sum(cost for name, cost in counted if layers.of(name) == OUTSIDE),
        "operations",
        _WIDE_OPS,
    )


def _count(shape: Sequence[int | str | None] | None) -> int:
    count = 1
    for size in shape or ():
        count *= size if isinstance(size, int) else 1
    return count


def _activations(graph: GraphModel) -> Iterator[str]:
    """Names of all tensors that are computed or fed."""
    yield from (tensor.name for tensor in graph.inputs)
    for node in graph.nodes():
        yield from (tensor.name for tensor in node.outputs if tensor.name)


class _Layers:
    """The quantized nodes, each with the nodes behind it that only pass its codes on or that its saturation does.

    Args:
        graph: The float model.
        plan: What was quantized.
    """

    def __init__(self, graph: GraphModel, plan: Plan) -> None:
        self._graph = graph
        self._makers = {t.name: node for node in graph.nodes() for t in node.outputs if t.name}
        self._owner: dict[str, str] = {}
        roles = {d.node: d.role for d in plan.decisions}
        for node in graph.nodes():
            name = str(node.name)
            if roles.get(name) == "quantized":
                self._owner[name] = name
            elif roles.get(name) in ("shared", "absorbed"):
                before = next((self._makers[t.name] for t in node.inputs if t.name in self._makers), None)
                self._owner[name] = OUTSIDE if before is None else self._owner.get(str(before.name), OUTSIDE)
        self.names = tuple(name for name, owner in self._owner.items() if name == owner)

    def of(self, name: str | None) -> str:
        """The layer a node belongs to."""
        return self._owner.get(name or "", OUTSIDE)

    def costs(self, spent: Iterable[tuple[str | None, float]]) -> dict[str, float]:
        """What each layer costs, of the costs of nodes."""
        found = dict.fromkeys(self.names, 0.0)
        for name, cost in spent:
            if (layer := self.of(name)) in found:
                found[layer] += cost
        return found

    def edges(self, elements: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
        """Producer, consumer and elements of each tensor between two layers, or a layer and the rest."""
        outputs = {tensor.name for tensor in self._graph.outputs}
        for node in self._graph.nodes():
            reader = self.of(str(node.name))
            for tensor in {t.name: t for t in node.inputs if t.name in elements}.values():
                maker = self._makers.get(tensor.name)
                source = OUTSIDE if maker is None else self.of(str(maker.name))
                if source != reader and elements[tensor.name]:
                    yield source, reader, elements[tensor.name]
            for tensor in node.outputs:
                if tensor.name in outputs and reader != OUTSIDE and elements.get(tensor.name):
                    yield reader, OUTSIDE, elements[tensor.name]


def _elements(graph: GraphModel, feed: Feed, threads: int) -> Mapping[str, int]:
    """How many elements each activation has for one sample."""
    found = {name: array.size for name, array in feed.items()}
    wanted = [name for name in _activations(graph) if name not in found]
    for start in range(0, len(wanted), _SHAPES_AT_ONCE):
        part = wanted[start : start + _SHAPES_AT_ONCE]
        session = make_session(graph, threads=threads, outputs=part)
        for name, value in zip(part, session.run(part, feed), strict=True):
            found[name] = int(getattr(value, "size", 0))
    return found
