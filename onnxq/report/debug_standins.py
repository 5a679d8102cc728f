"""Nodes of the float model that several nodes of the quantized one do the work of: they are shown in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.algos.affine import dequantize
from onnxq.algos.weight import quantize_weight
from onnxq.algos.weight.blocks import BlockCodes, pack_rows
from onnxq.algos.weight.codes import decode, encode
from onnxq.calib.segments import piece_session
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.report.debug_reading import Reading, Source

if TYPE_CHECKING:
    from onnxq.plan import WeightPlan
    from onnxq.result import Result

_BLOCKS, _TABLE = "MatMulNBits", "GatherBlockQuantized"


@dataclass(frozen=True, slots=True)
class StandIn:
    """A node of the float model, and where its tensors are in the quantized one.

    Attributes:
        node: The node.
        sources: By whether it is an output, and its index; what is not in the quantized model is not here.
        constants: Which of the inputs are constant.
    """

    node: Node
    sources: Mapping[tuple[bool, int], Source]
    constants: frozenset[int]


def find_stand_ins(original: GraphModel, reading: Reading, result: Result) -> dict[int, StandIn]:
    """The nodes of the float model that have become several others, by the identity of the last of these.

    All nodes of the quantized model that the float one lacks are hidden.

    Args:
        original: The float model, with the names that the quantized one has.
        reading: The quantized model.
        result: How it came about.
    """
    graph = reading.graph
    finder = _Finder(original, graph, result, {(w.node, w.index): w for w in result.plan.weights})
    kept = {n.name for n in original.nodes() if graph.has_node(n.name) and _is_same(original, graph, n)}
    order = {id(node): place for place, node in enumerate(graph.nodes())}
    reading.hidden |= {id(node) for node in graph.nodes() if node.name not in kept}
    gone = set(result.plan.absorbed) | kept
    found: dict[int, StandIn] = {}
    known = graph.tensors()
    for node in original.nodes():
        made = [known[t.name] for t in node.outputs if t.name in known]
        makers = [m for m in map(graph.producer, made) if m is not None]
        if node.name in gone or not makers or any(m.name in kept or m.op == "DequantizeLinear" for m in makers):
            continue
        found[id(max(makers, key=lambda m: order[id(m)]))] = finder.stand_in(node)
    return found


def _is_same(original: GraphModel, graph: GraphModel, node: Node) -> bool:
    """Whether a node still computes what it did: codes are the business of others."""
    other = graph.node(node.name)
    if other.op != node.op or len(other.outputs) < len(node.outputs):
        return False
    before, after = original.dtype(node.outputs[0]), graph.dtype(other.outputs[0])
    return before is None or after is None or before == after


@dataclass(frozen=True, slots=True)
class _Finder:
    original: GraphModel
    graph: GraphModel
    result: Result
    weights: Mapping[tuple[str, int], WeightPlan]

    def stand_in(self, node: Node) -> StandIn:
        """A node, and where its tensors are."""
        inputs = [i for i, t in enumerate(node.inputs) if t.name]
        constants = frozenset(i for i in inputs if self.original.is_constant(node.inputs[i]))
        sources = {(False, i): self._constant(node, i) for i in constants}
        sources |= dict(self._inputs(node, [i for i in inputs if i not in constants]))
        known = self.graph.tensors()
        sources |= {(True, i): Source((str(t.name),)) for i, t in enumerate(node.outputs) if t.name in known}
        return StandIn(node, sources, constants)

    def _inputs(self, node: Node, indices: list[int]) -> Iterator[tuple[tuple[bool, int], Source]]:
        known = self.graph.tensors()
        for index in indices:
            name = str(node.inputs[index].name)
            if name in known:
                yield (False, index), _codes(known, name) or Source((name,))

    def _constant(self, node: Node, index: int) -> Source:
        tensor = node.inputs[index]
        plan = self.weights.get((node.name, index))
        if plan is None:
            return Source((f"{tensor.name} as it is",), make=partial(self.original.value, tensor))
        return Source((f"{plan.key} in codes",), make=partial(self._decoded, node, plan, tensor))

    def _decoded(self, node: Node, plan: WeightPlan, tensor: Tensor) -> NDArray[Any]:
        """The weight that the codes of a plan stand for."""
        if (blocks := block_codes(self.graph, plan)) is not None:
            matrix = blocks.decode()
            return matrix if node.op == "Gather" or node.attrs.get("transB", 0) else matrix.T
        weight = np.asarray(self.original.value(tensor), np.float32)
        codes = self.result.weight_codes.get(plan.key)
        if codes is not None:
            return decode(encode(weight, codes), codes)
        params = self.result.params.get(plan.key)
        if params is not None:
            return dequantize(quantize_weight(weight, params), params)
        stored = stored_weight(self.graph, plan)
        return weight if stored is None else stored


def _codes(known: Mapping[str, Tensor], name: str) -> Source | None:
    """The codes an activation gets when the model runs, their scale, and their zero point, whatever its size."""
    names = [f"{name}_quantized", f"{name}_scale"]
    names.append(f"{name}_level" if f"{name}_level" in known else f"{name}_zero_point")
    return Source(tuple(names)) if all(n in known for n in names) else None


def block_codes(graph: GraphModel, plan: WeightPlan) -> BlockCodes | None:
    """The codes of a weight whose node has become MatMulNBits or GatherBlockQuantized; None where it has not."""
    if not graph.has_node(plan.node) or (node := graph.node(plan.node)).op not in (_BLOCKS, _TABLE):
        return None
    table, bits, size = node.op == _TABLE, int(node.attrs["bits"]), int(node.attrs["block_size"])
    names = [node.inputs[0], *node.inputs[2:4]] if table else node.inputs[1:4]
    codes, scale, *zeros = (np.asarray(graph.value(t)) for t in names if t.name)
    outputs = len(codes) if table else int(node.attrs["N"])
    inputs = codes.shape[1] * 8 // bits if table else int(node.attrs["K"])
    scale = scale.reshape(outputs, -1)
    whole = np.zeros((outputs, scale.shape[1] * size * bits // 8), np.uint8)
    whole[:, : codes.size // outputs] = codes.reshape(outputs, -1)
    middle = np.full(scale.shape, 1 << (bits - 1), np.uint8)
    zero = zeros[0].reshape(outputs, -1) if zeros else pack_rows(middle, bits)
    return BlockCodes(bits, size, inputs, whole.reshape(outputs, scale.shape[1], -1), scale, zero)


def stored_weight(graph: GraphModel, plan: WeightPlan) -> NDArray[np.float32] | None:
    """What the constants that a node's weight is decoded from stand for; None where it is not decoded from any."""
    if not graph.has_node(plan.node) or plan.index >= len(graph.node(plan.node).inputs):
        return None
    tensor = graph.node(plan.node).inputs[plan.index]
    if graph.is_constant(tensor):
        return np.asarray(graph.value(tensor))
    model, constants = graph.skeleton(), {t.name: t for t in graph.constants()}
    nodes: list[onnx.NodeProto] = []
    wanted = {str(tensor.name)}
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.insert(0, node)
            wanted |= set(node.input)
    reads = {name for node in nodes for name in node.input if name} - {name for node in nodes for name in node.output}
    if not nodes or not reads <= set(constants):
        return None
    weights = [onnx.numpy_helper.from_array(np.asarray(graph.value(constants[n])), n) for n in sorted(reads)]
    session = piece_session(model, nodes, weights, {}, [str(tensor.name)])
    found: NDArray[np.float32] = session.run([str(tensor.name)], {})[0]
    return found
