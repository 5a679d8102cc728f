"""From settled nodes to a plan: which tensors get codes, with which specification, sharing what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnxq.errors import RecipeError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._bias import bias_place
from onnxq.passes._caches import find_caches
from onnxq.passes._candidates import Candidate
from onnxq.passes._flow import Flow
from onnxq.passes._limits import needs_symmetric
from onnxq.passes._linear import label
from onnxq.passes._specs import (
    activation_method,
    activation_spec,
    beside,
    computes_float8,
    keeps_codes,
    weight_method,
    weight_spec,
)
from onnxq.plan import ActivationPlan, Decision, Plan, WeightPlan
from onnxq.recipe import (
    AVG,
    EMD,
    AbsMax,
    ActivationConfig,
    ActivationMethod,
    MinMax,
    Percentile,
    Recipe,
    RemovalOutlier,
    TrainedActivation,
)
from onnxq.spec import PerBlock, PerTensor, QuantSpec
from onnxq.targets import Target

_Way = tuple[QuantSpec, ActivationMethod, TrainedActivation | None]


class Groups:
    """Tensors that share a scale: union-find; a group is called after its first tensor."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._rank: dict[str, int] = {}

    def find(self, name: str) -> str:
        """The group of a tensor."""
        self._rank.setdefault(name, len(self._rank))
        root = name
        while self._parent.get(root, root) != root:
            root = self._parent[root]
        while self._parent.get(name, name) != root:
            self._parent[name], name = root, self._parent[name]
        return root

    def join(self, a: str, b: str) -> None:
        """Let two tensors share a scale."""
        first, second = sorted((self.find(a), self.find(b)), key=lambda n: self._rank[n])
        self._parent[second] = first


@dataclass
class _Placer:
    graph: GraphModel
    flow: Flow
    target: Target
    recipe: Recipe

    def run(self) -> Plan:
        activations = self._each_reader() if self.target.alone else self._activations()
        activations |= self._caches(activations)
        weights = tuple(self._unique(self._weights(activations)))
        decisions = tuple(
            Decision(label(n), str(n.op), self.flow.roles[label(n)], self.flow.reasons.get(label(n), ""))
            for n in self.graph.nodes()
        )
        return Plan(decisions, activations, weights, tuple(label(n) for n in self._removed(activations)))

    # ---- activations

    def _tables(self) -> frozenset[str]:
        """Results of lookups that hand on the codes of their table: these have its numbers, not their own."""
        return frozenset(
            c.results[0].name
            for c in self.flow.quantized.values()
            if c.kind == "lookup" and keeps_codes(self._weight_spec(c), self.target)
        )

    def _readers(self) -> dict[str, list[tuple[str, int]]]:
        found: dict[str, list[tuple[str, int]]] = {}
        for name, c in self.flow.quantized.items():
            for index in c.data:
                tensor = c.node.inputs[index]
                if self._wants_codes(c, tensor):
                    found.setdefault(tensor.name, []).append((name, index))
        return found

    def _wants_codes(self, c: Candidate, tensor: Tensor) -> bool:
        """Where a backend fuses an Add into the layer before it, that layer's result stays float."""
        if self.target.both_addends or c.kind != "arithmetic":
            return True
        fused = [t for i in c.data if (t := c.node.inputs[i]).name not in self.flow.coded and self._from_linear(t)]
        return not any(t is tensor for t in fused[:1])

    def _from_linear(self, tensor: Tensor) -> bool:
        maker = self.graph.producer(tensor)
        return maker is not None and label(maker) in self.flow.quantized and maker.op != "Add"

    def _activations(self) -> dict[str, ActivationPlan]:
        readers = self._readers()
        for name in self._tables():
            readers.pop(name, None)
        named = [n for n in self._order() if n in readers or n in self.flow.coded]
        groups = self._groups(named)
        leaders: dict[str, tuple[QuantSpec, ActivationConfig]] = {}
        plans: dict[str, ActivationPlan] = {}
        for name in named:
            aside = self._float8_aside(name, readers.get(name, []))
            if aside is not None:
                plans[aside.key] = aside
                readers[name] = [r for r in readers[name] if r not in aside.readers]
            group = groups.find(name)
            if group not in leaders:
                config = self._config(name, readers.get(name, []))
                leaders[group] = (activation_spec(config, self.target), config)
            spec, config = leaders[group]
            bounds = self.flow.clamps[name][1] if name in self.flow.clamps else (-math.inf, math.inf)
            plans[name] = ActivationPlan(
                name, spec, _method(config, readers.get(name, [])), group, name in self.flow.coded,
                tuple(readers.get(name, ())), bounds, trained=config.trained,
            )  # fmt: skip
        return plans

    def _caches(self, known: dict[str, ActivationPlan]) -> dict[str, ActivationPlan]:
        """What a decoder gives back for the next step, where the recipe wants codes of it."""
        cache = self.recipe.cache
        if cache is None:
            return {}
        if not self.target.standard or self.target.alone:
            raise RecipeError(f"cache: {self.target.title} has no codes as outputs of a model; leave it out")
        config = ActivationConfig(type=cache.type).over(self.recipe.activations)
        spec, method = activation_spec(config, self.target), activation_method(config)
        names = [str(c.present.name) for c in find_caches(self.graph) if c.present.name not in known]
        return {name: ActivationPlan(name, spec, method, name, True, ()) for name in names}

    def _float8_aside(self, name: str, readers: list[tuple[str, int]]) -> ActivationPlan | None:
        """What the float8 readers of a tensor get that others take as integers."""
        own = [r for r in readers if computes_float8(self.flow.quantized[r[0]].settings.activations, self.target)]
        if not own or (len(own) == len(readers) and name not in self.flow.coded):
            return None
        config = self._around(None, own)
        key = f"{name}#float8"
        return ActivationPlan(
            name, activation_spec(config, self.target), activation_method(config), key, False, tuple(own), key=key,
            trained=config.trained,
        )  # fmt: skip

    def _config(self, name: str, readers: list[tuple[str, int]]) -> ActivationConfig:
        """What the recipe says of a tensor: what makes it is asked first, but an exception beats the default."""
        return self._around(self.flow.coded.get(name), readers)

    def _around(self, maker: Node | None, readers: list[tuple[str, int]]) -> ActivationConfig:
        around = [] if maker is None else [self.flow.quantized[label(maker)]]
        around += [self.flow.quantized[reader] for reader, _ in readers]
        special = [c for c in around if c.settings.activations != self.recipe.activations]
        return (special or around)[0].settings.activations

    def _order(self) -> Iterator[str]:
        """The names of all activations in topological order."""
        order = [t.name for t in self.graph.inputs] + [t.name for n in self.graph.nodes() for t in n.outputs]
        yield from dict.fromkeys(order)

    def _each_reader(self) -> dict[str, ActivationPlan]:
        """Every reader converts its own input, all those that want it alike in the same way."""
        plans: dict[str, ActivationPlan] = {}
        found = self._readers()
        for tensor, readers in ((name, found[name]) for name in self._order() if name in found):
            ways: list[tuple[_Way, list[tuple[str, int]]]] = []
            for reader in readers:
                way = self._way(self.flow.quantized[reader[0]])
                members = next((alike for known, alike in ways if known == way), None)
                if members is None:
                    ways.append((way, [reader]))
                else:
                    members.append(reader)
            for number, ((spec, method, trained), members) in enumerate(ways, 1):
                key = tensor if number == 1 else f"{tensor}#{number}"
                plans[key] = ActivationPlan(
                    tensor, spec, method, key, False, tuple(members), key=key, trained=trained
                )  # fmt: skip
        return plans

    def _way(self, c: Candidate) -> _Way:
        config = c.settings.activations
        if needs_symmetric(self.graph, c.node, self.target):
            config = ActivationConfig(symmetric=True).over(config)
        return activation_spec(config, self.target), activation_method(config), config.trained

    def _groups(self, named: list[str]) -> Groups:
        groups = Groups()
        known = set(named)
        for name in named:
            groups.find(name)
        for c in self.flow.quantized.values():
            if c.kind not in ("passive", "join"):
                continue
            inputs = [c.node.inputs[i] for i in c.data]
            if c.kind == "join":  # a tensor that others read keeps its own, finer scale
                inputs = [t for t in inputs if self.graph.is_private(t)]
            for result in c.results:
                for tensor in inputs:
                    if tensor.name in known and result.name in known:
                        groups.join(tensor.name, result.name)
        return groups

    def _removed(self, activations: dict[str, ActivationPlan]) -> Iterator[Node]:
        """Absorbed nodes whose work saturation does; with codes below zero they must stay."""
        for name, (nodes, _) in self.flow.clamps.items():
            if not activations[name].spec.symmetric:
                yield from nodes

    # ---- weights

    def _weights(self, activations: dict[str, ActivationPlan]) -> Iterator[WeightPlan]:
        keys = {reader: a.key for a in activations.values() for reader, _ in a.readers}
        for name, c in self.flow.quantized.items():
            for index in c.constants if c.kind != "linear" else ():
                yield self._constant(name, c, index)
            if c.weight >= 0:
                yield self._weight(name, c, activations, keys)

    def _constant(self, name: str, c: Candidate, index: int) -> WeightPlan:
        """A constant addend or factor: of the activations' type, as the kernels want it."""
        spec = activation_spec(c.settings.activations, self.target)
        tensor = c.node.inputs[index].name
        return WeightPlan(name, index, tensor, tensor, spec, AbsMax())

    def _weight(
        self, name: str, c: Candidate, activations: dict[str, ActivationPlan], keys: dict[str, str]
    ) -> WeightPlan:
        spec = self._weight_spec(c)
        tensor = c.node.inputs[c.weight].name
        source = next((c.node.inputs[i].name for i in c.data), "")
        codes = self.target.bias_codes and not spec.qtype.floating
        bias = codes and source in activations and self._has_bias(c)
        return WeightPlan(
            name, c.weight, tensor, tensor, spec, weight_method(c.settings.weights, self.target),
            bias=bias and not isinstance(spec.granularity, PerBlock), input=source, input_key=keys.get(name, ""),
            trained=c.settings.weights.trained,
        )  # fmt: skip

    def _has_bias(self, c: Candidate) -> bool:
        """Whether its bias, which correction may give it still, gets int32 codes.

        That is not so for the constant of an Add that has codes of its own.
        """
        if c.info.bias is not None:
            return True
        found = bias_place(self.graph, c.node)
        return found is not None and label(found[0]) not in self.flow.quantized

    def _weight_spec(self, c: Candidate) -> QuantSpec:
        config = beside(c.settings.weights, c.settings.activations, self.target)
        spec = weight_spec(self.graph, c.node, c.weight, config, self.target)
        if c.kind == "lookup" and c.settings.weights.granularity is None:
            return QuantSpec(spec.qtype, PerTensor(), spec.symmetric, spec.bits, spec.narrow)
        return spec

    def _unique(self, plans: Iterator[WeightPlan]) -> Iterator[WeightPlan]:
        """Give a weight that its readers want differently a key for each way."""
        ways: dict[str, list[object]] = {}
        for plan in plans:
            known = ways.setdefault(plan.tensor, [])
            way = (plan.spec, plan.method, plan.trained)
            if way not in known:
                known.append(way)
            number = known.index(way)
            key = plan.tensor if number == 0 else f"{plan.tensor}#{number + 1}"
            yield replace(plan, key=key)


def _method(config: ActivationConfig, readers: list[tuple[str, int]]) -> ActivationMethod:
    """How the range of a tensor is chosen; outliers that nothing computes with as codes are results, and stay."""
    method = activation_method(config)
    cuts = isinstance(method, (RemovalOutlier, AVG, EMD)) or (isinstance(method, Percentile) and method.both_ends)
    return MinMax() if cuts and not readers else method


def place(graph: GraphModel, flow: Flow, target: Target, recipe: Recipe) -> Plan:
    """Make the plan of what was settled.

    Raises:
        RecipeError: If the target does not execute a type the recipe asks for.
    """
    return _Placer(graph, flow, target, recipe).run()
