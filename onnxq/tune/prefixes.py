"""Copies of a model beside the model, in which one layer or some are quantized; what they have in common runs once.

Everything in front of a layer is the same whether the layer is quantized or not. So a copy holds only what depends
on the layer, reads the rest from the model itself, and many copies share one session: that is the cache, with nothing
to be stored. Quantized tensors are floats with the values of their codes, so that no kernel's rounding is part of
the result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.algos.affine import fake_quantize
from onnxq.calib.segments import read_names
from onnxq.graph import GraphModel
from onnxq.passes._bias import bias_place
from onnxq.passes._linear import LINEAR_OPS, optional_input
from onnxq.passes._weights import weight_value
from onnxq.plan import Plan, WeightPlan
from onnxq.spec import QuantParams
from onnxq.stages import Chosen

_PREFIX = "onnxq.copy"


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that computes with codes.

    Attributes:
        name: Its name.
        op_type: Its operator type.
        start: Position of the first node that its quantization touches.
        nodes: Positions of all nodes that depend on it, its own first.
    """

    name: str
    op_type: str
    start: int
    nodes: tuple[int, ...]


class Copies:
    """Writes copies of nodes of a model.

    Args:
        chosen: The model and its numbers.

    Attributes:
        layers: What can be quantized by itself, in topological order.
        outputs: Names of the model's outputs.
        protos: The model's nodes, in topological order.
        nodes: What was written so far.
    """

    def __init__(self, chosen: Chosen) -> None:
        self.graph = chosen.graph if chosen.prepared is None else chosen.prepared
        self.protos = list(self.graph.skeleton().graph.node)
        self.outputs = tuple(t.name for t in self.graph.outputs)
        self.nodes: list[onnx.NodeProto] = []
        self._chosen = chosen
        self._weights: dict[str, list[WeightPlan]] = {}
        for weight in chosen.plan.weights:
            self._weights.setdefault(weight.node, []).append(weight)
        self._keys = _keys(chosen.plan)
        self._biases = dict(_biases(self.graph, chosen))
        self._coded = _coded_outputs(self.graph, chosen.plan)
        self.layers = tuple(_layers(self.protos, chosen.plan, self._biases))
        self._written: dict[object, str] = {}

    def fresh(self) -> None:
        """Forget what was written."""
        self.nodes = []
        self._written = {}

    def write(
        self, quantized: Collection[str], positions: Iterable[int], beside: Mapping[str, str], tag: str
    ) -> dict[str, str]:
        """Copy nodes.

        Args:
            quantized: Names of the layers that are quantized among them.
            positions: Which nodes, ascending.
            beside: What tensors are called that the copies read and none of them makes, where not as in the model.
            tag: Tells the names of this copy from others'.

        Returns:
            What the tensors are called that the copies make.
        """
        names = dict(beside)
        made: dict[str, str] = {}
        for position in positions:
            proto = self.protos[position]
            twin = onnx.NodeProto()
            twin.CopyFrom(proto)
            twin.name = f"{tag}/{proto.name}"
            _rename_reads(twin, names)
            if proto.name in quantized:
                for index, key in self._keys.get(proto.name, ()):
                    twin.input[index] = self.through_codes(twin.input[index], key)
                for weight in self._weights.get(proto.name, ()):
                    twin.input[weight.index] = self._weight(weight)
            owner, index = self._biases.get(proto.name, ("", 0))
            if owner in quantized:
                twin.input.extend([""] * (index + 1 - len(twin.input)))
                twin.input[index] = self._bias(proto.name, index)
            for number, name in enumerate(proto.output):
                if name:
                    twin.output[number] = made[name] = names[name] = f"{tag}/{name}"
            self.nodes.append(twin)
            for name in proto.output:
                owner, key = self._coded.get(name, ("", ""))
                if owner in quantized:
                    made[name] = names[name] = self.through_codes(made[name], key)
        return made

    def unit(self, layer: Layer) -> tuple[int, ...]:
        """Positions of the nodes that hold what is quantized: the layer's own, and that of its bias."""
        bias = {node for node, (owner, _) in self._biases.items() if owner == layer.name}
        return tuple(p for p in layer.nodes if p == layer.start or self.protos[p].name in bias)

    def weight_bytes(self, layer: Layer) -> int:
        """Bytes of what the weights of a layer become."""
        graph = self._chosen.graph
        values = (weight_value(graph, weight) for weight in self._weights.get(layer.name, ()))
        return sum(4 * value.size for value in values)

    def coded(self, layer: Layer, without: Collection[str]) -> list[tuple[str, str]]:
        """Tensors that float nodes get as codes from a layer, and their names with the values of the codes.

        Args:
            layer: The layer.
            without: Tensors to leave out.
        """
        found = [(name, key) for name, (owner, key) in self._coded.items() if owner == layer.name]
        return [(name, self.through_codes(name, key)) for name, key in found if name not in without]

    def through_codes(self, tensor: str, key: str) -> str:
        """A tensor with the values of its codes; written once.

        Args:
            tensor: Its name.
            key: What its numbers are called in the plan.
        """
        params = self._chosen.params[key]
        where = (tensor, params.scale.tobytes(), params.zero_point.tobytes(), params.spec)
        if where not in self._written:
            self._written[where] = self._rounded(tensor, params)
        return self._written[where]

    def constant(self, value: NDArray[Any]) -> str:
        """A constant."""
        return self.node("Constant", [], value=onnx.numpy_helper.from_array(np.asarray(value, order="C")))

    def node(self, op: str, inputs: Sequence[str], *, domain: str = "", **attrs: Any) -> str:  # noqa: ANN401 - as ONNX has it
        """A node; gives the name of its output."""
        name = f"{_PREFIX}.{op}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], name=name, domain=domain, **attrs))
        return name

    def _rounded(self, tensor: str, params: QuantParams) -> str:
        """Round in floats: pairs of QuantizeLinear and DequantizeLinear would become kernels on codes."""
        spec = params.spec
        if spec.qtype.floating:
            kind = getattr(onnx.TensorProto, spec.qtype.name)
            scale = self.constant(params.scale)
            zero = onnx.helper.make_tensor("zero", kind, [], [0.0])
            zero_point = self.node("Constant", [], value=zero)
            codes = self.node("QuantizeLinear", [tensor, scale, zero_point])
            return self.node("DequantizeLinear", [codes, scale, zero_point])
        scale = self.constant(params.scale)
        low, high = (np.float32(bound) - params.zero_point.astype(np.float32) for bound in spec.bounds)
        steps = self.node("Round", [self.node("Div", [tensor, scale])])
        kept = self.node("Min", [self.node("Max", [steps, self.constant(low)]), self.constant(high)])
        return self.node("Mul", [kept, scale])

    def _weight(self, weight: WeightPlan) -> str:
        where = ("weight", weight.node, weight.index)
        if where not in self._written:
            value = weight_value(self._chosen.graph, weight)
            self._written[where] = self.constant(fake_quantize(value, self._chosen.params[weight.key]))
        return self._written[where]

    def _bias(self, node: str, index: int) -> str:
        where = ("bias", node, index)
        if where not in self._written:
            graph = self._chosen.graph
            self._written[where] = self.constant(graph.value(graph.node(node).inputs[index]))
        return self._written[where]


def _keys(plan: Plan) -> dict[str, list[tuple[int, str]]]:
    """The inputs of each node that come as codes, and what their numbers are called."""
    found: dict[str, list[tuple[int, str]]] = {}
    for activation in plan.activations.values():
        for node, index in activation.readers:
            found.setdefault(node, []).append((index, activation.key))
    return found


def _biases(graph: GraphModel, chosen: Chosen) -> Iterator[tuple[str, tuple[str, int]]]:
    """Nodes with a bias that was corrected: the layer it belongs to, and which input it is."""
    for weight in chosen.plan.weights:
        node = chosen.graph.node(weight.node)
        if node.op not in LINEAR_OPS:
            continue
        place = bias_place(chosen.graph, node) if node.op == "MatMul" else (node, 2)
        new = None if place is None else optional_input(*place)
        if place is None or new is None:
            continue
        old = optional_input(graph.node(place[0].name), place[1])
        if old is None or not np.array_equal(graph.value(old), chosen.graph.value(new)):
            yield place[0].name, (weight.node, place[1])


def _coded_outputs(graph: GraphModel, plan: Plan) -> dict[str, tuple[str, str]]:
    """Tensors that float nodes and graph outputs get as codes: the layer that gives them, and their numbers."""
    roles = {d.node: d.role for d in plan.decisions}
    outputs = {t.name for t in graph.outputs}
    found: dict[str, tuple[str, str]] = {}
    for activation in plan.activations.values():
        tensor = graph.tensor(activation.tensor)
        coded = set(activation.readers)
        floats = any(
            (use.node.name, use.index) not in coded and roles.get(use.node.name) == "float"
            for use in graph.consumers(tensor)
        )
        if not activation.everywhere or not (floats or activation.tensor in outputs):
            continue
        maker = graph.producer(tensor)
        while maker is not None and roles.get(maker.name) in ("absorbed", "shared"):
            maker = graph.producer(maker.inputs[0])
        if maker is not None and roles.get(maker.name) == "quantized":
            found[activation.tensor] = maker.name, activation.key
    return found


def _layers(protos: Sequence[onnx.NodeProto], plan: Plan, biases: Mapping[str, tuple[str, int]]) -> Iterator[Layer]:
    readers: dict[str, list[int]] = {}
    for position, proto in enumerate(protos):
        for name in read_names(proto):
            readers.setdefault(name, []).append(position)
    behind = [0] * len(protos)  # sets of positions as bits
    for position in reversed(range(len(protos))):
        mask = 1 << position
        for name in protos[position].output:
            for reader in readers.get(name, ()) if name else ():
                mask |= behind[reader]
        behind[position] = mask
    places = {proto.name: position for position, proto in enumerate(protos)}
    for decision in plan.decisions:
        if decision.role != "quantized" or decision.node not in places:
            continue
        start = places[decision.node]
        mask = behind[start]
        for node, (owner, _) in biases.items():
            if owner == decision.node:
                mask |= behind[places[node]]
        yield Layer(decision.node, decision.op_type, start, tuple(_bits(mask)))


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _rename_reads(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node and its bodies read; what a body makes itself keeps its name."""
    for index, name in enumerate(node.input):
        if name in names:
            node.input[index] = names[name]
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            own = {t.name for t in body.input} | {t.name for t in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            outer = {old: new for old, new in names.items() if old not in own}
            for inner in body.node:
                _rename_reads(inner, outer)
            for output in body.output:
                output.name = outer.get(output.name, output.name)
