"""The constants of a model for Ascend, read: weights, wherever their codes are, biases, and what is padded with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, LazyArray, Node, Tensor
from onnxq.passes._ascend_ops import code_bits
from onnxq.passes._linear import describe, kind, optional_input


@dataclass(frozen=True, slots=True, eq=False)
class WeightCodes:
    """The codes of a weight, wherever they are: ``real = scale * (code - offset)``.

    Attributes:
        graph: The graph it is in.
        source: The constant that holds them.
        offset: Their zero point, nearly always 0.
        packed: The axis along which a byte holds two codes of 4 bits, the lower half first; or None.
    """

    graph: GraphModel
    source: Tensor
    offset: int = 0
    packed: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        stored = tuple(int(d) for d in self.graph.shape(self.source) or () if isinstance(d, int))
        return tuple(d * 2 if i == self.packed else d for i, d in enumerate(stored))

    def values(self) -> NDArray[np.int8]:
        """The codes, int8; a memmap where they are in a file."""
        values = np.asarray(self.graph.value(self.source)).astype(np.int8, copy=False)
        if self.packed is None:
            return values
        low, high = ((values << 4).astype(np.int8) >> 4), values >> 4
        halves = np.stack([low, high], axis=self.packed + 1)
        return halves.reshape(self.shape)

    def unsigned(self) -> LazyArray:
        """The codes plus 128, uint8."""
        return LazyArray(self.shape, np.dtype(np.uint8), partial(_unsigned, self))


def _unsigned(codes: WeightCodes) -> NDArray[np.uint8]:
    return codes.values().view(np.uint8) ^ np.uint8(128)


def read_weight(graph: GraphModel, node: Node, index: int) -> WeightCodes | None:
    """The codes at input `index` of a layer; None if there is no constant, or one of floats.

    Raises:
        GraphError: If they are in a form that is not known.
    """
    tensor = node.inputs[index]
    maker = graph.producer(tensor)
    offset, bits = 0, 8
    if maker is not None and maker.op == "AscendWeightQuant":
        tensor, offset, bits = maker.inputs[0], _weight_offset(graph, maker), code_bits(maker)
        if not graph.is_constant(tensor):
            raise GraphError(f"{describe(maker)}: its weight {tensor.name!r} must be a constant")
    if not graph.is_constant(tensor):
        return None
    dtype = graph.dtype(tensor)
    if dtype is None or dtype.name not in ("int8", "int4"):
        if maker is None:
            return None
        raise GraphError(f"{describe(maker)}: its weight {tensor.name!r} is {dtype}; it must be int8")
    codes = WeightCodes(graph, tensor, offset)
    if bits == 4 and dtype.name == "int8" and _is_packed(codes, node):
        return WeightCodes(graph, tensor, offset, _input_axis(node))
    return codes


def _weight_offset(graph: GraphModel, node: Node) -> int:
    offset = optional_input(node, 1)
    if offset is None:
        return 0
    if not graph.is_constant(offset):
        raise GraphError(f"{describe(node)}: its offset {offset.name!r} must be a constant")
    values = np.unique(np.asarray(graph.value(offset)).astype(np.int64))
    if values.size != 1 or not -128 <= values[0] <= 127:
        raise GraphError(f"{describe(node)}: the offsets of its weight differ, which is not handled; one must do")
    return int(values[0])


def _is_packed(codes: WeightCodes, node: Node) -> bool:
    """Whether a byte holds two codes: it does not if the layer has as many inputs as there are bytes."""
    values, axis = codes.values(), _input_axis(node)
    if values.size and (values.min() < -8 or values.max() > 7):
        return True
    shape = codes.graph.shape(node.inputs[0])
    if shape is None or not shape:
        return True
    channels = shape[1] if node.op in ("Conv", "ConvTranspose") else shape[-1]
    groups = int(node.attrs.get("group", 1)) if node.op == "Conv" else 1
    return not isinstance(channels, int) or channels != values.shape[axis] * groups


def _input_axis(node: Node) -> int:
    """The axis of a weight that counts what is summed over."""
    return 1 if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0)) else 0


def read_bias(graph: GraphModel, node: Node, tensor: Tensor) -> NDArray[np.int64]:
    """The whole numbers added to the sums of a layer, in the shape they have; also behind a Cast.

    Raises:
        GraphError: If they are not constant, or no whole numbers.
    """
    maker = graph.producer(tensor)
    if maker is not None and kind(maker) == "Cast":
        tensor = maker.inputs[0]
    if not graph.is_constant(tensor):
        raise GraphError(f"{describe(node)}: its bias {tensor.name!r} must be a constant of int32 numbers")
    values = np.asarray(graph.value(tensor))
    whole = values.astype(np.float64)
    if values.dtype.kind not in "iuf" or not (np.isfinite(whole).all() and (whole == np.rint(whole)).all()):
        raise GraphError(
            f"{describe(node)}: its bias {tensor.name!r} is {values.dtype} and no whole numbers; a layer with codes "
            "needs int32 numbers of the scale of its sums"
        )
    return whole.astype(np.int64)


def read_fill(graph: GraphModel, node: Node, offset: int) -> int:
    """The code a Pad of codes fills in.

    A whole number of an integer type is taken as it is. Nothing, or the float 0, stands for the number 0, whose
    code is the zero point: the exporter's Pad has been left as it was.

    Args:
        graph: The graph.
        node: A Pad of opset 11 or newer, with mode constant.
        offset: The zero point of the codes.

    Raises:
        GraphError: If it cannot be told.
    """
    value = optional_input(node, 2)
    if value is None:
        return offset
    if not graph.is_constant(value):
        raise GraphError(f"{describe(node)} pads codes with {value.name!r}, which is not a constant")
    number = np.asarray(graph.value(value)).reshape(-1)[0]
    if number.dtype.kind in "iu":
        return int(number)
    if float(number) in (0.0, float(offset)):
        return offset
    raise GraphError(f"{describe(node)} pads codes with the float {float(number)}; only zero is handled")
