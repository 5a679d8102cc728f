"""A model for Ascend as one with QuantizeLinear and DequantizeLinear, which other backends take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, LazyArray, Node, Tensor
from onnxq.passes._ascend_constants import WeightCodes, read_bias, read_fill, read_weight
from onnxq.passes._ascend_ops import (
    ASCEND_OPS,
    PASSIVE,
    DequantNumbers,
    infer_sizes,
    raise_opset,
    read_anti_quant,
    read_dequant,
    read_quant,
    refuse_unknown,
)
from onnxq.passes._ascend_walk import AscendWalk, check_rewritten
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._linear import LINEAR_OPS, describe, optional_input
from onnxq.spec import QType

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_INT32 = (1 << 31) - 1
_SAME = 1e-6
"""Two scales this close, relative to each other, are one: one of them has been stored as its reciprocal."""


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What codes stand for: ``scale * (code - offset)``."""

    scale: np.float32
    offset: int
    bits: int

    def is_close(self, scale: np.float32, offset: int) -> bool:
        """Whether other numbers mean the same."""
        return self.offset == offset and bool(np.isclose(self.scale, scale, rtol=_SAME, atol=0))


class AscendToQdq(Pass):
    """Ascend's operators become QuantizeLinear and DequantizeLinear, layers between them compute with floats.

    Given:
        ``AscendQuant -> Conv (int8 weight, int32 bias) -> AscendDequant``
    Result:
        ``QuantizeLinear -> DequantizeLinear -> Conv`` whose weight and bias are a DequantizeLinear of the codes of
        the deploy model; the scale of the weight is that of its sums by that of its input, per channel where the
        words are. Names of float tensors and of constants stay. The operator set is raised to 13, or to 21 where
        activations have 4 or 16 bits.

    The reciprocal of the stored factor becomes the scale, so that a value next to a tie may get the neighbouring
    code. The weight of a grouped ConvTranspose whose groups have scales of their own becomes floats.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QUANTIZED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS, Fact.STATS, Fact.SHAPES})

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Refuse operators that are not known, by name.

        Raises:
            GraphError: If there is one.
        """
        refuse_unknown(graph)

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Rewrite.

        Raises:
            GraphError: If the model holds something that Q/DQ cannot express.
        """
        nodes = graph.nodes(*ASCEND_OPS)
        if not nodes:
            return PassReport(notes=("there is no Ascend operator in this model: it is left as it is",))
        wide = any(read_quant(n).bits != 8 for n in nodes if n.op == "AscendQuant")
        raise_opset(graph, QType.INT16.min_opset if wide else 13)
        infer_sizes(graph)
        return PassReport(changed=_Conversion(graph).run())

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """No Ascend operator is left.

        Raises:
            GraphError: If there is one.
        """
        check_rewritten(graph)


class _Conversion(AscendWalk):
    verb = "convert"

    def __init__(self, graph: GraphModel) -> None:
        super().__init__(graph)
        self._held: dict[str, _Numbers] = {}
        self._sums: dict[str, Node] = {}
        self._coded: dict[str, Tensor] = {}
        self._done: dict[str, NDArray[np.float32]] = {}
        self._weights: dict[tuple[str, bytes, bool], Tensor] = {}
        self._outputs = {t.name: graph.dtype(t) for t in graph.outputs}

    def _holds(self, name: str) -> str:
        return "codes" if name in self._held else "sums of products" if name in self._sums else ""

    def _between(self, node: Node, held: str) -> None:
        op = str(node.op)
        if held in self._sums:
            self._pass_sums_on(node, held)
        elif op in (*LINEAR_OPS, "AveragePool"):
            self._sums[node.outputs[0].name] = node
            self._floats(node.outputs[0])
        elif op in PASSIVE or op in ("Concat", "Pad"):
            self._pass_on(node)
        else:
            self._unexpected(node, held)

    def _floats(self, tensor: Tensor) -> None:
        if self._graph.read_by_subgraph(tensor):
            raise GraphError(f"{tensor.name!r} is read inside a body, where codes are not handled")
        self._graph.set_type(tensor, np.float32, self._graph.shape(tensor))

    # ---- codes

    def _quant(self, node: Node) -> None:
        graph, numbers = self._graph, read_quant(node)
        if numbers.rounding != "Round":
            raise GraphError(f"{describe(node)} does not round to the nearest code; QuantizeLinear always does")
        known = _Numbers(numbers.scale, numbers.offset, numbers.bits)
        x, codes, name = node.inputs[0], node.outputs[0], node.name
        self._floats(codes)
        if self._half and not graph.is_float32(x):
            x = graph.add_node("Cast", [x], name=f"{name}_cast", attrs={"to": np.float32}).outputs[0]
        uses = graph.consumers(codes)
        graph.remove_node(node)
        constants = self._constants(name, known)
        dtype = graph.dtype(constants[1])
        graph.set_type(codes, dtype, graph.shape(codes))
        graph.add_node("QuantizeLinear", [x, *constants], name=name, outputs=[codes])
        floats = graph.add_node(
            "DequantizeLinear", [codes, *constants], name=f"{name}_dequantize", outputs=[f"{codes.name}_dequantized"],
            dtype=np.float32, shape=graph.shape(codes),
        ).outputs[0]  # fmt: skip
        graph.replace_uses(codes, floats, uses)
        self._held[floats.name] = known
        self._coded[floats.name] = codes

    def _constants(self, base: str, numbers: _Numbers) -> tuple[Tensor, Tensor]:
        graph, qtype = self._graph, QType.container(numbers.bits, signed=True)
        return (
            graph.add_constant(graph.unique_name(f"{base}_scale"), np.asarray(numbers.scale, np.float32)),
            graph.add_constant(graph.unique_name(f"{base}_zero_point"), np.asarray(numbers.offset), qtype=qtype),
        )

    def _anti_quant(self, node: Node) -> None:
        graph, stored = self._graph, read_anti_quant(node)
        x, result = node.inputs[0], node.outputs[0]
        scale = np.float32(stored.scale * stored.scale) if stored.root else stored.scale
        known, codes = self._held.get(x.name), self._coded.get(x.name, x)
        if known is not None and codes is x and known.is_close(scale, stored.offset):  # it has been moved
            floats = graph.add_node("Identity", [x], name=f"{node.name}_identity").outputs[0]
            graph.set_type(floats, np.float32, graph.shape(result))
            self._end(node, floats, half=stored.half)
            return
        dtype = graph.dtype(codes)
        if dtype is None or dtype.name not in ("int4", "int8", "int16"):
            raise GraphError(f"{describe(node)} has other numbers than the AscendQuant that {x.name!r} comes from")
        bits = int("".join(filter(str.isdigit, dtype.name)))
        constants = self._constants(node.name, _Numbers(scale, stored.offset, bits))
        floats = graph.add_node("DequantizeLinear", [codes, *constants], name=f"{node.name}_dequantize").outputs[0]
        graph.set_type(floats, np.float32, graph.shape(result))
        self._end(node, floats, half=stored.half)

    def _end(self, node: Node, x: Tensor, *, half: bool, relu: bool = False) -> None:
        """Let the output of `node`, which is removed, be `x`."""
        graph, result, name = self._graph, node.outputs[0], node.name
        graph.remove_node(node)
        steps: list[tuple[str, dict[str, Any]]] = [("Relu", {})] if relu else []
        steps += [("Cast", {"to": np.float16})] if half else []
        if not steps and not (graph.is_output(result) or graph.read_by_subgraph(result)):
            graph.replace_uses(result, x)
            return
        for op, attrs in steps or [("Identity", {})]:
            x = graph.add_node(op, [x], name=f"{name}_{op.lower()}", attrs=attrs).outputs[0]
        graph.replace_output(graph.producer(x), 0, result)
        graph.set_type(result, np.float16 if half else np.float32, graph.shape(result))

    def _pass_on(self, node: Node) -> None:
        known = {self._held.get(t.name) for t in (node.inputs if node.op == "Concat" else node.inputs[:1])}
        numbers = known.pop()
        if numbers is None or known:
            raise GraphError(f"{describe(node)} joins codes of different meaning, or codes and something else")
        if node.op == "Pad" and str(node.attrs.get("mode", "constant")) == "constant":
            steps = read_fill(self._graph, node, numbers.offset) - numbers.offset
            name = self._graph.unique_name(f"{node.name}_value")
            self._graph.set_input(
                node, 2, self._graph.add_constant(name, np.asarray(steps * numbers.scale, np.float32))
            )
        for tensor in node.outputs[: 1 if "Pool" in node.op else None]:
            self._held[tensor.name] = numbers
            self._floats(tensor)

    def _give(self, tensor: Tensor) -> None:
        """Codes that went through other nodes to an output of the model are codes there again."""
        graph, numbers = self._graph, self._held.get(tensor.name)
        if numbers is None:
            return
        name = tensor.name
        floats = self._take_over(tensor, f"{name}_float", np.float32)
        constants = self._constants(f"{name}_output", numbers)
        graph.set_type(tensor, graph.dtype(constants[1]), graph.shape(tensor))
        graph.add_node("QuantizeLinear", [floats, *constants], name=f"{name}_quantize", outputs=[tensor])

    # ---- layers

    def _pass_sums_on(self, node: Node, held: str) -> None:
        index = next(i for i, t in enumerate(node.inputs) if t.name == held)
        moves = node.op in PASSIVE and "Pool" not in node.op and index == 0
        if not moves and (node.op != "Add" or node.inputs[1 - index].name in self._sums):
            self._unexpected(node, held)
        for tensor in node.outputs:
            self._sums[tensor.name] = node
            self._floats(tensor)

    def _dequant(self, node: Node) -> None:
        x, numbers = node.inputs[0], read_dequant(self._graph, node)
        if x.name not in self._sums:
            raise GraphError(f"{describe(node)} reads {x.name!r}, which is not the result of a layer with codes")
        factor = numbers.scale.astype(np.float64)
        scale = (factor * factor if numbers.root else factor).astype(np.float32)
        chain = list(self._chain(x))
        layer = chain[-1]
        done = self._done.setdefault(layer.name, scale)
        if done is not scale and not np.array_equal(done, scale):
            raise GraphError(f"{describe(layer)} is dequantized with different scales; Q/DQ cannot express it")
        if done is scale:
            self._layer(layer, [n for n in chain if n.op == "Add"], scale)
        self._end_layer(node, x, numbers)

    def _end_layer(self, node: Node, x: Tensor, numbers: DequantNumbers) -> None:
        graph, result = self._graph, node.outputs[0]
        if numbers.relu or numbers.half or not graph.is_private(x):
            self._end(node, x, half=numbers.half, relu=numbers.relu)
            return
        maker = graph.producer(x)
        graph.remove_node(node)
        graph.replace_output(maker, next(i for i, t in enumerate(maker.outputs) if t is x), result)
        graph.set_type(result, np.float32, graph.shape(result))

    def _chain(self, tensor: Tensor) -> Iterator[Node]:
        """The nodes from a dequantization back to its layer."""
        while True:
            node = self._graph.producer(tensor)
            yield node
            if node.op in (*LINEAR_OPS, "AveragePool"):
                return
            tensor = next(t for t in node.inputs if t.name in self._sums)

    def _layer(self, node: Node, adds: list[Node], scale: NDArray[np.float32]) -> None:
        """Give a layer a weight and biases such that its floats are its sums by `scale`."""
        known = self._held.get(node.inputs[0].name)
        if known is None:
            raise GraphError(f"{describe(node)}: {node.inputs[0].name!r} (input 0) holds no codes, another input does")
        if node.op == "AveragePool" or node.inputs[1].name in self._held:
            other = np.float32(1) if node.op == "AveragePool" else self._held[node.inputs[1].name].scale
            if scale.size != 1 or not np.isclose(scale[0], known.scale * other, rtol=8 * _SAME, atol=0):
                raise GraphError(f"{describe(node)} is dequantized with another scale than that of what it reads")
        else:
            weight = read_weight(self._graph, node, 1)
            if weight is None:
                raise GraphError(f"{describe(node)}: its weight {node.inputs[1].name!r} is no int8 constant")
            per_input = (scale.astype(np.float64) / np.float64(known.scale)).astype(np.float32)
            self._graph.set_input(node, 1, self._weight(node, weight, per_input))
        if (bias := optional_input(node, 2)) is not None:
            self._bias(node, 2, bias, scale)
        for add in adds:
            index = 1 if add.inputs[0].name in self._sums else 0
            self._bias(add, index, add.inputs[index], scale)

    def _weight(self, node: Node, codes: WeightCodes, scale: NDArray[np.float32]) -> Tensor:
        graph, axis = self._graph, _channel_axis(node, len(codes.shape))
        key = (codes.source.name, scale.tobytes() + bytes([axis]), codes.packed is not None)
        if key in self._weights:
            return self._weights[key]
        base = codes.source.name
        groups = int(node.attrs.get("group", 1)) if node.op == "ConvTranspose" else 1
        if groups > 1 and scale.size > 1:
            parts = scale.reshape(groups, -1)
            if (parts != parts[0]).any():
                return self._float_weight(codes, parts)
            scale = parts[0]
        source = codes.source
        if codes.packed is not None or graph.dtype(source) != np.int8:
            unpacked = LazyArray(codes.shape, np.dtype(np.int8), codes.values)
            source = graph.add_constant(graph.unique_name(f"{base}_unpacked"), unpacked)
        per_axis = scale.size > 1
        numbers = scale if per_axis else scale[0]
        floats = graph.add_node(
            "DequantizeLinear",
            [
                source,
                graph.add_constant(graph.unique_name(f"{base}_scale"), np.asarray(numbers, np.float32)),
                graph.add_constant(
                    graph.unique_name(f"{base}_zero_point"), np.full(np.shape(numbers), codes.offset, np.int8)
                ),
            ],
            name=f"{base}_dequantize", outputs=[f"{base}_dequantized"], attrs={"axis": axis} if per_axis else {},
            dtype=np.float32, shape=codes.shape,
        ).outputs[0]  # fmt: skip
        self._weights[key] = floats
        return floats

    def _float_weight(self, codes: WeightCodes, scale: NDArray[np.float32]) -> Tensor:
        """The weight of a ConvTranspose whose groups differ in scale, shape (groups, outputs of one)."""
        shape = codes.shape
        values = codes.values().reshape(scale.shape[0], -1, *shape[1:]).astype(np.float32) - codes.offset
        floats = values * scale.reshape(scale.shape[0], 1, -1, *(1,) * (len(shape) - 2))
        name = self._graph.unique_name(f"{codes.source.name}_float")
        return self._graph.add_constant(name, floats.reshape(shape))

    def _bias(self, node: Node, index: int, tensor: Tensor, scale: NDArray[np.float32]) -> None:
        """int32 numbers behind a DequantizeLinear, in the shape they have."""
        graph, values = self._graph, read_bias(self._graph, node, tensor)
        if values.size and max(-int(values.min()), int(values.max())) > _INT32:
            raise GraphError(f"{describe(node)}: a number of its bias does not fit into int32")
        per_axis = scale.size > 1
        if per_axis and (not values.ndim or values.shape[-1] != scale.size):
            values = np.broadcast_to(values, (*values.shape[:-1], scale.size))
        base, numbers = f"{node.name}_bias", scale if per_axis else scale[0]
        inputs = [
            graph.add_constant(graph.unique_name(f"{base}_quantized"), values.astype(np.int32)),
            graph.add_constant(graph.unique_name(f"{base}_scale"), np.asarray(numbers, np.float32)),
            graph.add_constant(graph.unique_name(f"{base}_zero_point"), np.zeros(np.shape(numbers), np.int32)),
        ]
        floats = graph.add_node(
            "DequantizeLinear", inputs, name=f"{base}_dequantize", attrs={"axis": values.ndim - 1} if per_axis else {},
            dtype=np.float32, shape=values.shape,
        ).outputs[0]  # fmt: skip
        graph.set_input(node, index, floats)


def _channel_axis(node: Node, rank: int) -> int:
    """The axis of a weight that counts the outputs."""
    if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0)):
        return 0
    return 1 if node.op == "ConvTranspose" else rank - 1
