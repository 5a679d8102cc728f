"""A model with QuantizeLinear and DequantizeLinear as a float model and the numbers of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import GraphError, RecordError
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel, LazyArray, Node, Tensor, Use
from onnxq.passes._ascend_ops import PASSIVE, raise_opset
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._linear import LINEAR_OPS, describe, kind, optional_input
from onnxq.passes._qdq_pairs import (
    DEQUANTIZE,
    QUANTIZE,
    Coded,
    Numbers,
    is_dequantize,
    is_quantize,
    read_coded,
    read_numbers,
    read_pair,
)
from onnxq.spec import QType, code_bounds

if TYPE_CHECKING:
    from onnxq.context import QuantContext

OPSET = 13
"""Operators are written as this version has them."""
_NOT_NEGATIVE = frozenset({"Relu", "Clip", "Sigmoid", "Softmax", "HardSigmoid"})
_TENSOR_OPS = ("Add", "MaxPool")


class ReadQdq(Pass):
    """Takes Q/DQ pairs out of the graph and their numbers into ``ctx.factors``.

    Given:
        a model of a training tool or a quantizer: ``QuantizeLinear -> DequantizeLinear`` in front of layers, weights
        as codes behind a DequantizeLinear or as floats in front of a pair, biases in floats or int32.
    Result:
        a float graph and factors: of Conv, ConvTranspose, Gemm, MatMul and AveragePool by node name; of both inputs
        of a MatMul of two variables, and of Add and MaxPool by ``node:input``. uint8 becomes int8: zero points fall
        by 128. Weights are the numbers their codes stand for, so that the same scale gives the same codes.

    A pair that only moves or other operators read is dropped, with a reason. Where its zero point is the lowest
    code, so that it may stand for a Relu, a Clip stays in its place. A QuantizeLinear at an output of the model stays
    as well, as int8.

    Source: AMCT's convert_qat_model.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.FACTORS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS, Fact.STATS, Fact.SHAPES})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Read and rewrite.

        Raises:
            GraphError: If a pair differs, a weight is not symmetric, or an activation has a scale per channel.
        """
        if not graph.nodes(*QUANTIZE, *DEQUANTIZE):
            ctx.factors = {}
            return PassReport()
        raised = graph.opset < OPSET
        raise_opset(graph, OPSET)
        reader = _Reader(graph)
        reader.layers()
        changed = reader.rewrite() + raised
        graph.sort()
        ctx.factors = dict(reader.factors)
        return PassReport(changed, tuple(reader.skipped), tuple(reader.notes))

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """No DequantizeLinear is left, and no QuantizeLinear but at an output.

        Raises:
            GraphError: If there is one.
        """
        for node in graph.nodes(*DEQUANTIZE, *QUANTIZE):
            if is_dequantize(node) or not graph.is_output(node.outputs[0]):
                raise GraphError(f"{describe(node)} is still there")


@dataclass(frozen=True, slots=True)
class _Activation:
    """What the codes of an activation mean."""

    scale: float
    offset: int
    bits: int

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest number that has a code."""
        low, high = code_bounds(self.bits, signed=True)
        return (low - self.offset) * self.scale, (high - self.offset) * self.scale


class _Reader:
    def __init__(self, graph: GraphModel) -> None:
        self.factors: dict[str, LayerFactors] = {}
        self.skipped: list[Skip] = []
        self.notes: list[str] = []
        self._graph = graph
        self._coded: list[tuple[Node, int, Coded]] = []
        self._served: set[tuple[str, int]] = set()
        self._made: dict[tuple[str, tuple[int, ...] | None], Tensor] = {}

    # ---- reading

    def layers(self) -> None:
        """Find the numbers of all layers; nothing is changed."""
        for node in self._graph.nodes():
            op = kind(node)
            try:
                if op in LINEAR_OPS:
                    self._linear(node)
                elif op == "AveragePool" and (found := self._activation(node.inputs[0])) is not None:
                    self._serve(node, 0, _factors(found, np.ones(1, np.float32)))
                elif op in _TENSOR_OPS:
                    self._tensors(node)
            except RecordError as err:
                raise GraphError(f"{describe(node)}: {err}") from err

    def _serve(self, node: Node, index: int, factors: LayerFactors) -> None:
        key = f"{node.name}:{index}" if factors.tensor_quantize else str(node.name)
        self.factors[key] = factors
        self._served.add((str(node.name), index))

    def _skip(self, node: Node, reason: str) -> None:
        self.skipped.append(Skip(str(node.name), reason))

    def _linear(self, node: Node) -> None:
        for index in range(1, len(node.inputs)):
            if (coded := read_coded(self._graph, node.inputs[index])) is not None:
                self._coded.append((node, index, coded))
        left = self._activation(node.inputs[0])
        weight = next((c for n, i, c in self._coded if n is node and i == 1), None)
        if weight is None:
            self._without_weight(node, left)
        elif left is None:
            self._skip(node, "its weight has codes, but its activation has none: it is computed in floats")
        elif (reason := _why_not(node, left)) is not None:
            self._skip(node, reason)
        else:
            scale = _weight_scale(node, weight)
            self._serve(node, 0, _factors(left, scale, weight.numbers.bits))

    def _without_weight(self, node: Node, left: _Activation | None) -> None:
        right = self._activation(node.inputs[1]) if node.op == "MatMul" else None
        if left is None and right is None:
            return
        if left is None or right is None:
            self._skip(node, "only one of its inputs has codes: it is computed in floats")
        elif left.offset or right.offset:
            self._skip(node, "a product of two activations must have symmetric ones: it is computed in floats")
        else:
            self._serve(node, 0, _factors(left, None))
            self._serve(node, 1, _factors(right, None))

    def _tensors(self, node: Node) -> None:
        """Add and MaxPool: numbers for each input that a pair is directly in front of."""
        if node.op == "Add" and any(self._graph.is_constant(t) or read_coded(self._graph, t) for t in node.inputs):
            return  # a bias
        for index, tensor in enumerate(node.inputs):
            maker = self._graph.producer(tensor)
            found = self._activation(tensor) if is_dequantize(maker) else None
            if found is None or (node.op == "MaxPool" and self._implied(Use(node, index), found)):
                continue
            self._serve(node, index, _factors(found, None))

    def _activation(self, tensor: Tensor) -> _Activation | None:
        """What the codes mean that a tensor has gone through, perhaps before it was moved."""
        node = self._graph.producer(tensor)
        while node is not None and kind(node) in PASSIVE:
            node = self._graph.producer(node.inputs[0])
        if not is_dequantize(node) or read_coded(self._graph, node.outputs[0]) is not None:
            return None
        _, numbers = read_pair(self._graph, node)
        return _as_activation(node, numbers)

    # ---- rewriting

    def rewrite(self) -> int:
        """Take the pairs out; returns how many places changed."""
        graph = self._graph
        for node, index, coded in self._coded:
            graph.set_input(node, index, self._constant(coded))
        dequantizers = graph.nodes(*DEQUANTIZE)
        plans = []
        for node in dequantizers:
            constant = read_coded(graph, node.outputs[0])
            if constant is not None:
                self._replace_constant(node, constant)
            else:
                quantize, numbers = read_pair(graph, node)
                found = _as_activation(node, numbers)
                plans.append((node, quantize, found, self._unserved(node, found)))
        for node, quantize, found, unserved in plans:
            self._drop(node, quantize, found, unserved)
        changed = len(self._coded) + len(dequantizers)
        for node in graph.nodes(*QUANTIZE):
            if graph.is_output(node.outputs[0]):
                changed += self._keep(node)
            elif not graph.consumers(node.outputs[0]):
                graph.remove_node(node)
                changed += 1
        return changed

    def _constant(self, coded: Coded) -> Tensor:
        if not isinstance(coded.values, LazyArray):
            return coded.values
        key = coded.name, coded.order
        if key not in self._made:
            self._made[key] = self._graph.add_constant(coded.name, coded.values)
        return self._made[key]

    def _replace_constant(self, node: Node, coded: Coded) -> None:
        graph, result = self._graph, node.outputs[0]
        if graph.is_output(result):
            raise GraphError(f"{describe(node)}: a constant is an output of the model, which is not handled")
        if graph.consumers(result) or graph.read_by_subgraph(result):
            graph.replace_uses(result, self._constant(coded))
        graph.remove_node(node)

    def _implied(self, use: Use, found: _Activation) -> bool:
        """Whether a reader, or all behind it, quantizes with the same numbers anyway."""
        node, graph = use.node, self._graph
        if (str(node.name), use.index) in self._served:
            return True
        if is_quantize(node):
            return use.index == 0 and _as_activation(node, read_numbers(graph, node)) == found
        if kind(node) not in PASSIVE or use.index != 0:
            return kind(node) in LINEAR_OPS and use.index == 0 and self._will_serve(node)
        outputs = [t for t in node.outputs if t.name]
        if any(graph.is_output(t) or graph.read_by_subgraph(t) for t in outputs):
            return False
        readers = [u for t in outputs for u in graph.consumers(t)]
        return bool(readers) and all(self._implied(u, found) for u in readers)

    def _will_serve(self, node: Node) -> bool:
        """Whether a layer that has not been read yet will have the numbers of what it reads."""
        found = self._activation(node.inputs[0])
        return (
            found is not None and _why_not(node, found) is None and read_coded(self._graph, node.inputs[1]) is not None
        )

    def _unserved(self, node: Node, found: _Activation) -> list[Use]:
        """Who reads the floats behind a pair and does not quantize them again."""
        return [u for u in self._graph.consumers(node.outputs[0]) if not self._implied(u, found)]

    def _drop(self, node: Node, quantize: Node, found: _Activation, unserved: list[Use]) -> None:
        graph, source, result = self._graph, quantize.inputs[0], node.outputs[0]
        seen = graph.is_output(result) or graph.read_by_subgraph(result)
        if unserved or seen:
            readers = dict.fromkeys(describe(u.node) for u in unserved)
            by = ", ".join(readers) or "an output of the model"
            self._skip(node, f"read by {by}, which Ascend computes in floats: its rounding is left out")
        clamped = (unserved or seen) and self._may_clamp(source, found)
        kept = {(id(u.node), u.index) for u in unserved} if clamped else set()
        served = [u for u in graph.consumers(result) if (id(u.node), u.index) not in kept]
        graph.remove_node(node)
        graph.replace_uses(result, source, served)
        if clamped:
            bounds = [graph.add_constant(f"{result.name}_bound", np.asarray(b, np.float32)) for b in found.bounds]
            graph.add_node("Clip", [source, *bounds], name=f"{node.name}_clip", outputs=[result])
        elif seen:
            graph.add_node("Identity", [source], name=f"{node.name}_identity", outputs=[result])

    def _may_clamp(self, source: Tensor, found: _Activation) -> bool:
        """Whether the saturation of a pair may stand for a Relu that an optimizer has taken out."""
        low, _ = code_bounds(found.bits, signed=True)
        node = self._graph.producer(source)
        while node is not None and kind(node) in PASSIVE:
            node = self._graph.producer(node.inputs[0])
        return found.offset == low and node is not None and kind(node) not in _NOT_NEGATIVE

    def _keep(self, node: Node) -> bool:
        """Let a QuantizeLinear at an output give signed codes; returns whether it did not."""
        graph, numbers = self._graph, read_numbers(self._graph, node)
        found, result = _as_activation(node, numbers), node.outputs[0]
        if not numbers.unsigned:
            return False
        qtype, lower = QType.container(found.bits, signed=True), 1 << (found.bits - 1)
        name = graph.unique_name(f"{node.name}_signed_zero_point")
        graph.set_input(node, 2, graph.add_constant(name, np.asarray(found.offset), qtype=qtype))
        node.attrs.pop("output_dtype", None)
        graph.set_type(result, graph.dtype(node.inputs[2]), graph.shape(result))
        self.notes.append(f"the codes of the output {result.name!r} are signed now: lower by {lower} than they were")
        return True


def _as_activation(node: Node, numbers: Numbers) -> _Activation:
    if numbers.scale.size != 1:
        raise GraphError(
            f"{describe(node)} has {numbers.scale.size} scales for an activation; Ascend takes one for the whole tensor"
        )
    return _Activation(float(numbers.scale[0]), int(numbers.zero[0]), numbers.bits)


def _factors(found: _Activation, scale: NDArray[np.float32] | None, bits: int = 8) -> LayerFactors:
    weight = np.zeros(0, np.float32) if scale is None else scale
    return LayerFactors(
        found.scale, found.offset, weight, act_bits=found.bits, wts_bits=bits, tensor_quantize=scale is None
    )


def _why_not(node: Node, found: _Activation) -> str | None:
    """Why a layer with codes on both sides cannot be one for Ascend."""
    if found.bits not in (8, 16):
        return f"its activation has {found.bits} bits; Ascend takes 8 or 16: it is computed in floats"
    if node.op != "Gemm":
        return None
    factors = {name: float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta")}
    if node.attrs.get("transA", 0) or factors["alpha"] != 1 or (factors["beta"] != 1 and optional_input(node, 2)):
        return "it has transA, alpha or beta, which Ascend's Gemm with codes must not: it is computed in floats"
    return None


def _weight_scale(node: Node, weight: Coded) -> NDArray[np.float32]:
    """The scales of a weight by output channel, or one for all."""
    numbers, rank = weight.numbers, len(weight.shape)
    if numbers.zero.any():
        raise GraphError(
            f"{describe(node)}: its weight {weight.name!r} has zero point {int(numbers.zero[0]) + numbers.shift}; "
            f"Ascend takes symmetric weights only: {numbers.shift} (quantize it symmetrically)"
        )
    if numbers.bits not in (4, 8):
        raise GraphError(f"{describe(node)}: its weight {weight.name!r} has {numbers.bits} bits; Ascend takes 4 or 8")
    if numbers.scale.size == 1:
        return numbers.scale
    groups = int(node.attrs.get("group", 1)) if node.op == "ConvTranspose" else 1
    outputs = 0 if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0)) else 1
    if numbers.axis != outputs or rank < 2 or (node.op == "MatMul" and rank != 2):
        raise GraphError(
            f"{describe(node)}: its weight {weight.name!r} of shape {weight.shape} has a scale for each index of axis "
            f"{numbers.axis}; Ascend takes one for each output (axis {outputs})"
        )
    return np.tile(numbers.scale, groups)
