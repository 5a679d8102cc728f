"""A model for Ascend in standard integer operators, so that what goes to the device can be run here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._ascend_constants import read_bias, read_fill, read_weight
from onnxq.passes._ascend_ops import (
    ASCEND_OPS,
    PASSIVE,
    infer_sizes,
    raise_opset,
    read_anti_quant,
    read_dequant,
    read_quant,
    refuse_unknown,
)
from onnxq.passes._ascend_walk import AscendWalk, check_rewritten
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._integer_ops import IntegerWriter, Part, transposed_weight
from onnxq.passes._linear import LINEAR_OPS, describe, kind, optional_input

if TYPE_CHECKING:
    from onnxq.context import QuantContext

OPSET = 13
"""Operators are written as this version has them."""
_INT32 = (1 << 31) - 1
_EXACT = 1 << 24
"""Up to here float32 holds every whole number."""


@dataclass(frozen=True, slots=True)
class _Codes:
    """A float32 tensor that holds signed codes."""

    offset: int
    bits: int


@dataclass(frozen=True, slots=True)
class _Sums:
    """A tensor of sums of products.

    Attributes:
        dtype: Its type: int32, int64 (of 16-bit codes) or float32 (AveragePool).
        trailing: How many axes follow that of the channels; None where that is not known.
    """

    dtype: str
    trailing: int | None


class SimulateAscend(Pass):
    """Ascend's operators, and the layers between them, in operators that ONNX Runtime executes exactly.

    Given:
        ``AscendQuant -> Conv (int8 weight, int32 bias) -> AscendDequant``
    Result:
        ``Mul, Round, Add, Clip`` with the numbers as they are stored, ``ConvInteger``, ``Add`` of the bias in
        int32, ``Cast, Mul`` by the float32 of each word. Between a quantization and the layers that read it,
        tensors are float32 and hold codes; as graph outputs they are integers as before.

    The sums are those of the device, ``sum((code - offset) * weight) + bias`` in int32, whatever the CPU; what is
    padded counts as zero. Those of 16-bit codes are collected in int64. AveragePool is left in float32, where sums
    of fewer than ``2**24`` steps are exact; a ConvTranspose becomes a ConvInteger over its input with zeros between
    the elements. The operator set is raised to 13 if it is older.

    Source: ONNX Runtime's ConvInteger and MatMulInteger; AMCT's deploy model.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED})
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
            GraphError: If the model holds something that cannot be computed exactly.
        """
        if not graph.nodes(*ASCEND_OPS):
            return PassReport(notes=("there is no Ascend operator in this model: it is left as it is",))
        raise_opset(graph, OPSET)
        infer_sizes(graph)
        return PassReport(changed=_Simulation(graph).run())

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """No Ascend operator is left.

        Raises:
            GraphError: If there is one.
        """
        check_rewritten(graph)


class _Simulation(AscendWalk):
    verb = "simulate"

    def __init__(self, graph: GraphModel) -> None:
        super().__init__(graph)
        self._write = IntegerWriter(graph)
        self._codes: dict[str, _Codes] = {}
        self._sums: dict[str, _Sums] = {}
        self._declared = {t.name: graph.dtype(t) for t in graph.outputs}

    def _holds(self, name: str) -> str:
        return "codes" if name in self._codes else "sums of products" if name in self._sums else ""

    def _between(self, node: Node, held: str) -> None:
        op = str(node.op)
        if op in PASSIVE:
            self._pass_on(node, held)
        elif held in self._sums:
            if op != "Add":
                self._unexpected(node, held)
            self._add_bias(node, held)
        elif op in LINEAR_OPS:
            self._linear(node)
        elif op == "AveragePool":
            self._average(node)
        elif op == "Concat":
            self._concat(node)
        elif op == "Pad":
            self._pad(node)
        else:
            self._unexpected(node, held)

    def _check_untouched(self, node: Node) -> None:
        """A layer whose weight has codes needs codes of its activation."""
        if kind(node) in LINEAR_OPS and read_weight(self._graph, node, 1) is not None:
            raise GraphError(
                f"{describe(node)} has an int8 weight, but {node.inputs[0].name!r} does not come from an AscendQuant"
            )

    # ---- quantizing and dequantizing

    def _finish(self, node: Node, tensor: Tensor, dtype: str) -> str:
        """Let `tensor` be the output of `node`, which is removed; returns the name of that output."""
        graph, result = self._graph, node.outputs[0]
        if graph.read_by_subgraph(result):
            raise GraphError(f"{describe(node)}: {result.name!r} is read inside a body, where codes are not handled")
        graph.remove_node(node)
        graph.replace_output(graph.producer(tensor), 0, result)
        graph.set_type(result, np.dtype(dtype), graph.shape(result))
        return str(result.name)

    def _quant(self, node: Node) -> None:
        write, numbers, base = self._write, read_quant(node), node.name
        x = node.inputs[0]
        if self._half and not self._graph.is_float32(x):
            x = write.cast(x, "float32", base)
        factor = write.number(numbers.factor, "float32")
        for _ in range(1 + numbers.root):
            x = write.add("Mul", [x, factor], base)
        if numbers.rounding:
            x = write.add(numbers.rounding, [x], base)
        else:  # towards zero
            size = write.add("Floor", [write.add("Abs", [x], base)], base)
            x = write.add("Mul", [write.add("Sign", [x], base), size], base)
        x = write.add("Add", [x, write.number(numbers.offset, "float32")], base)
        bounds = [write.number(b, "float32") for b in numbers.bounds]
        result = self._finish(node, write.add("Clip", [x, *bounds], base), "float32")
        self._codes[result] = _Codes(numbers.offset, numbers.bits)

    def _dequant(self, node: Node) -> None:
        write, numbers, base = self._write, read_dequant(self._graph, node), node.name
        x = node.inputs[0]
        sums = self._sums.get(x.name)
        if sums is None:
            raise GraphError(f"{describe(node)} reads {x.name!r}, which is not the result of a layer with codes")
        if sums.dtype != "float32":
            x = write.cast(x, "float32", base)
        shape: tuple[int, ...] = ()
        if numbers.scale.size > 1:
            if sums.trailing is None:
                raise GraphError(f"{describe(node)} has a scale per channel, but between it and its layer axes move")
            shape = (numbers.scale.size, *(1,) * sums.trailing)
        scale = write.number(numbers.scale if shape else numbers.scale[0], "float32", shape)
        for _ in range(1 + numbers.root):
            x = write.add("Mul", [x, scale], base)
        if numbers.relu:
            x = write.add("Relu", [x], base)
        self._end(node, x, half=numbers.half)

    def _anti_quant(self, node: Node) -> None:
        write, numbers, base = self._write, read_anti_quant(node), node.name
        x = node.inputs[0]
        if x.name not in self._codes:
            dtype = self._graph.dtype(x)
            if dtype is None or dtype.name not in ("int8", "int4", "int16"):
                raise GraphError(f"{describe(node)} reads {x.name!r}, which does not hold codes of an AscendQuant")
            x = write.cast(x, "float32", base)  # a constant, or an input of the model
        x = write.add("Sub", [x, write.number(numbers.offset, "float32")], base)
        for _ in range(1 + numbers.root):
            x = write.add("Mul", [x, write.number(numbers.scale, "float32")], base)
        self._end(node, x, half=numbers.half)

    def _end(self, node: Node, x: Tensor, *, half: bool) -> None:
        dtype = "float16" if half else "float32"
        if half:
            x = self._write.cast(x, dtype, node.name)
        graph, result = self._graph, node.outputs[0]
        graph.remove_node(node)
        graph.replace_output(graph.producer(x), 0, result)
        graph.set_type(result, np.dtype(dtype), graph.shape(result))

    # ---- layers

    def _operand(self, node: Node, index: int) -> tuple[Part, ...]:
        """The codes at an input, as uint8."""
        tensor = node.inputs[index]
        if (codes := self._codes.get(tensor.name)) is not None:
            return self._write.split(tensor, codes.offset, codes.bits)
        weight = read_weight(self._graph, node, index)
        if weight is None:
            raise GraphError(
                f"{describe(node)}: {tensor.name!r} (input {index}) holds no codes, but another input does"
            )
        if node.op == "Gemm" and node.attrs.get("transB", 0):
            return (self._write.weight(weight, "_transposed", transposed_weight(weight)),)
        return (self._write.weight(weight),)

    def _linear(self, node: Node) -> None:
        write, parts = self._write, self._operand(node, 0)
        if node.op == "Gemm":
            _check_gemm(node)
        trailing = 0
        if node.op in ("Conv", "ConvTranspose"):
            weight = read_weight(self._graph, node, 1)
            if weight is None:
                raise GraphError(f"{describe(node)}: its weight {node.inputs[1].name!r} is no int8 constant")
            trailing = len(weight.shape) - 2
            if node.op == "Conv":
                total = write.convolve(node, parts, write.weight(weight), dict(node.attrs))
            else:
                total = write.transposed(node, parts, weight)
        else:
            total = write.multiply(node, parts, self._operand(node, 1))
        dtype = "int64" if any(p.weight != 1 for p in parts) or self._is_wide(node, 1) else "int32"
        if (bias := optional_input(node, 2)) is not None:
            values = read_bias(self._graph, node, bias)
            shape = (-1, *(1,) * trailing) if trailing else values.shape
            total = write.add("Add", [total, self._bias_numbers(node, values.reshape(shape), dtype)], node.name)
        self._sums[self._finish(node, total, dtype)] = _Sums(dtype, trailing)

    def _is_wide(self, node: Node, index: int) -> bool:
        codes = self._codes.get(node.inputs[index].name)
        return codes is not None and codes.bits > 8

    def _bias_numbers(self, node: Node, values: NDArray[np.int64], dtype: str) -> Tensor:
        if values.size and max(-int(values.min()), int(values.max())) > _INT32:
            raise GraphError(f"{describe(node)}: a number of its bias does not fit into int32")
        name = self._graph.unique_name(f"{node.name}_bias")
        return self._graph.add_constant(name, values.astype(dtype))

    def _average(self, node: Node) -> None:
        """An AveragePool in float32: its sums are whole numbers, and exact while they are small."""
        codes, kernel = self._codes[node.inputs[0].name], [int(k) for k in node.attrs.get("kernel_shape", [])]
        low, high = -(1 << (codes.bits - 1)), (1 << (codes.bits - 1)) - 1
        if math.prod(kernel) * max(high - codes.offset, codes.offset - low) >= _EXACT:
            raise GraphError(f"{describe(node)}: sums over a window of {kernel} are not exact in float32")
        offset = self._write.number(codes.offset, "float32")
        x = self._write.add("Sub", [node.inputs[0], offset], node.name)
        total = self._write.add("AveragePool", [x], node.name, **node.attrs)
        self._sums[self._finish(node, total, "float32")] = _Sums("float32", len(kernel))

    def _add_bias(self, node: Node, held: str) -> None:
        index = 1 if node.inputs[0].name == held else 0
        sums = self._sums[held]
        if node.inputs[index].name in self._sums or sums.dtype == "float32":
            self._unexpected(node, held)
        values = read_bias(self._graph, node, node.inputs[index])
        numbers = self._bias_numbers(node, values, sums.dtype)
        total = self._write.add("Add", [node.inputs[1 - index], numbers], node.name)
        self._sums[self._finish(node, total, sums.dtype)] = sums

    # ---- what moves codes

    def _pass_on(self, node: Node, held: str) -> None:
        """Codes and sums go through; a MaxPool of sums would be meant for floats."""
        if node.inputs[0].name != held or (held in self._sums and "Pool" in node.op):
            self._unexpected(node, held)
        for tensor in node.outputs:
            if not tensor.name or (tensor is not node.outputs[0] and "Pool" in node.op):
                continue
            if (codes := self._codes.get(held)) is not None:
                self._codes[tensor.name] = codes
                dtype = "float32"
            else:
                sums = self._sums[held]
                self._sums[tensor.name] = sums if node.op == "Identity" else _Sums(sums.dtype, None)
                dtype = sums.dtype
            self._graph.set_type(tensor, np.dtype(dtype), self._graph.shape(tensor))

    def _concat(self, node: Node) -> None:
        kinds = {self._codes.get(t.name) for t in node.inputs}
        codes = kinds.pop()
        if kinds or codes is None:
            raise GraphError(f"{describe(node)} joins codes of different zero points, or codes and something else")
        result = node.outputs[0]
        self._codes[result.name] = codes
        self._graph.set_type(result, np.dtype("float32"), self._graph.shape(result))

    def _pad(self, node: Node) -> None:
        """Zeros around codes stand for the number 0, whose code is the zero point."""
        codes, result = self._codes.get(node.inputs[0].name), node.outputs[0]
        if codes is None:
            self._unexpected(node, next(t.name for t in node.inputs if t.name in self._sums))
            return
        if str(node.attrs.get("mode", "constant")) == "constant":
            fill = read_fill(self._graph, node, codes.offset)
            self._graph.set_input(node, 2, self._write.number(fill, "float32"))
        self._codes[result.name] = codes
        self._graph.set_type(result, np.dtype("float32"), self._graph.shape(result))

    def _give(self, tensor: Tensor) -> None:
        """Turn codes and sums that are an output of the model into the integers they stand for."""
        graph, codes, sums = self._graph, self._codes.get(tensor.name), self._sums.get(tensor.name)
        if codes is None and (sums is None or sums.dtype == "int32"):
            return
        default = np.dtype("int32" if codes is None else "int16" if codes.bits > 8 else "int8")
        declared = self._declared[tensor.name]
        wanted = declared if declared is not None and declared.kind in "iV" else default
        inner = self._take_over(tensor, f"{tensor.name}_codes", graph.dtype(tensor))
        graph.set_type(tensor, wanted, graph.shape(tensor))
        graph.add_node("Cast", [inner], name=f"{tensor.name}_cast", outputs=[tensor], attrs={"to": wanted})


def _check_gemm(node: Node) -> None:
    if node.attrs.get("transA", 0):
        raise GraphError(f"{describe(node)} has transA; a layer with codes must not")
    factors = {name: float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta")}
    if factors["alpha"] != 1.0 or (factors["beta"] != 1.0 and optional_input(node, 2) is not None):
        raise GraphError(f"{describe(node)} has {factors}; of a layer with codes both must be 1")
