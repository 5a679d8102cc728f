"""QuantizeLinear and DequantizeLinear, read: their numbers, pairs of them, and constants behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, LazyArray, Node, Tensor
from onnxq.passes._linear import describe, optional_input

QUANTIZE = ("QuantizeLinear", "com.microsoft::QuantizeLinear")
DEQUANTIZE = ("DequantizeLinear", "com.microsoft::DequantizeLinear")
_DOMAINS = (None, "", "ai.onnx", "com.microsoft")
_WIDTHS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32}


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """The affine map of a QuantizeLinear or DequantizeLinear, with signed codes.

    Attributes:
        scale: float32, shape (1,) or (channels,).
        zero: Zero points of signed codes, of the shape of `scale`.
        axis: The axis of the channels; of no meaning where there is one scale.
        bits: Width of the codes.
        unsigned: Whether they are unsigned in the model, and so higher by half their range.
    """

    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    axis: int
    bits: int
    unsigned: bool

    def same_as(self, other: Numbers) -> bool:
        """Whether both map every code to the same number."""
        return (
            self.bits == other.bits
            and self.unsigned == other.unsigned
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
            and (self.axis == other.axis or self.scale.size == 1)
        )

    @property
    def shift(self) -> int:
        """What has to be taken from a code of the model to get the signed one."""
        return (1 << (self.bits - 1)) if self.unsigned else 0

    def __str__(self) -> str:
        kind = f"{'u' if self.unsigned else ''}int{self.bits}"
        shown = ", ".join(f"{s:.6g}" for s in self.scale[:3]) + (", ..." if self.scale.size > 3 else "")
        return f"{kind} of scale {shown} and zero point {int(self.zero[0]) + self.shift}"


def is_quantize(node: Node | None) -> bool:
    """Whether it is a QuantizeLinear, ONNX's or ONNX Runtime's."""
    return node is not None and node.op == "QuantizeLinear" and node.domain in _DOMAINS


def is_dequantize(node: Node | None) -> bool:
    """Whether it is a DequantizeLinear, ONNX's or ONNX Runtime's."""
    return node is not None and node.op == "DequantizeLinear" and node.domain in _DOMAINS


def read_numbers(graph: GraphModel, node: Node) -> Numbers:
    """The numbers of a QuantizeLinear or DequantizeLinear.

    Raises:
        GraphError: If they are not constant, or of a kind that is not known.
    """
    scale, zero = node.inputs[1], optional_input(node, 2)
    for tensor in (scale, zero):
        if tensor is not None and not graph.is_constant(tensor):
            raise GraphError(
                f"{describe(node)}: {tensor.name!r} is computed when the model runs; it must be a constant"
            )
    if int(node.attrs.get("block_size", 0)):
        raise GraphError(f"{describe(node)} has a scale per block; Ascend takes one per tensor or per channel")
    codes = zero if zero is not None else node.inputs[0] if is_dequantize(node) else node.outputs[0]
    dtype = graph.dtype(codes)
    name = "uint8" if dtype is None else dtype.name
    if name not in _WIDTHS:
        raise GraphError(f"{describe(node)} has codes of type {name}; known are {', '.join(_WIDTHS)}")
    unsigned, bits = name.startswith("u"), _WIDTHS[name]
    scales = np.asarray(graph.value(scale)).astype(np.float32).reshape(-1)
    if not scales.size or not (np.isfinite(scales).all() and (scales > 0).all()):
        raise GraphError(f"{describe(node)}: every scale in {scale.name!r} must be finite and > 0")
    zeros = np.zeros(1, np.int64) if zero is None else np.asarray(graph.value(zero)).astype(np.int64).reshape(-1)
    shift = (1 << (bits - 1)) if unsigned else 0
    zeros = np.broadcast_to(zeros - shift, scales.shape)
    return Numbers(scales, zeros, int(node.attrs.get("axis", 1)), bits, unsigned)


def read_pair(graph: GraphModel, dequantize: Node) -> tuple[Node, Numbers]:
    """The QuantizeLinear in front of a DequantizeLinear, and the numbers of both.

    Raises:
        GraphError: If there is none, or their numbers differ.
    """
    quantize = graph.producer(dequantize.inputs[0])
    if not is_quantize(quantize):
        raise GraphError(
            f"{describe(dequantize)} reads {dequantize.inputs[0].name!r}, which no QuantizeLinear writes; codes must "
            "be made of floats by a QuantizeLinear directly in front of it"
        )
    first, second = read_numbers(graph, quantize), read_numbers(graph, dequantize)
    if not first.same_as(second):
        raise GraphError(
            f"{describe(quantize)} and {describe(dequantize)} are a pair, but their numbers differ: "
            f"{first} and {second}"
        )
    return quantize, first


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A constant that the model holds in codes, or lets go through codes.

    Attributes:
        values: It in floats.
        numbers: What its codes mean; the axis counts the axes of `values`.
        shape: Its shape.
        name: What to call it.
        order: How its axes have been changed, or None.
    """

    values: Tensor | LazyArray
    numbers: Numbers
    shape: tuple[int, ...]
    name: str
    order: tuple[int, ...] | None = None


def read_coded(graph: GraphModel, tensor: Tensor) -> Coded | None:
    """The constant behind a DequantizeLinear, with or without a QuantizeLinear and a Transpose; None if it is none.

    Raises:
        GraphError: If the numbers of a pair differ.
    """
    node, order = graph.producer(tensor), None
    if node is not None and node.op == "Transpose" and is_dequantize(graph.producer(node.inputs[0])):
        rank = graph.rank(node.inputs[0])
        order = tuple(node.attrs.get("perm") or reversed(range(rank or 2)))
        node = graph.producer(node.inputs[0])
    if not is_dequantize(node):
        return None
    source = node.inputs[0]
    if graph.is_constant(source):
        numbers = read_numbers(graph, node)
        shape = tuple(int(d) for d in graph.shape(source) or () if isinstance(d, int))
        values: Tensor | LazyArray = LazyArray(
            shape, np.dtype(np.float32), partial(_dequantized, graph, source, numbers)
        )
        base = str(source.name).removesuffix("_quantized")
    else:
        quantize = graph.producer(source)
        if not is_quantize(quantize) or not graph.is_constant(quantize.inputs[0]):
            return None
        _, numbers = read_pair(graph, node)
        values, base = quantize.inputs[0], str(quantize.inputs[0].name)
        shape = tuple(int(d) for d in graph.shape(values) or () if isinstance(d, int))
    rank = len(shape)
    axis = numbers.axis % rank if rank and -rank <= numbers.axis < rank else 0
    if order is not None:
        values = LazyArray(
            tuple(shape[i] for i in order), np.dtype(np.float32), partial(_transposed, graph, values, order)
        )
        axis, shape = order.index(axis), tuple(shape[i] for i in order)
    return Coded(values, Numbers(numbers.scale, numbers.zero, axis, numbers.bits, numbers.unsigned), shape, base, order)


def _transposed(graph: GraphModel, values: Any, order: tuple[int, ...]) -> NDArray[np.float32]:  # noqa: ANN401 - a tensor or a lazy array
    array = np.asarray(values.make() if isinstance(values, LazyArray) else graph.value(values))
    return np.ascontiguousarray(array.transpose(order))


def _dequantized(graph: GraphModel, source: Tensor, numbers: Numbers) -> NDArray[np.float32]:
    codes = np.asarray(graph.value(source))
    shape = [1] * codes.ndim
    if numbers.scale.size > 1:
        shape[numbers.axis % codes.ndim] = numbers.scale.size
    elif not codes.ndim:
        return np.asarray((int(codes) - numbers.shift - int(numbers.zero[0])) * numbers.scale[0], np.float32)
    zero = numbers.zero.reshape(shape) + numbers.shift
    if numbers.bits > 16:  # biases: as exact as floats can be
        return ((codes - zero) * numbers.scale.reshape(shape).astype(np.float64)).astype(np.float32)
    steps = codes.astype(np.int32) - zero.astype(np.int32)
    return steps.astype(np.float32) * numbers.scale.reshape(shape)
