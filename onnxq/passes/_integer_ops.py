"""Sums of products of codes in standard operators, with exact results on every CPU.

Only uint8 times uint8 is used, codes and weights shifted by 128 and their zero points with them: where ONNX
Runtime multiplies uint8 by int8, processors without VNNI add two products in 16 bits, which saturates.
Zero points are given to the operators, so that what a convolution pads with counts as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, LazyArray, Node, Tensor
from onnxq.passes._ascend_constants import WeightCodes
from onnxq.passes._linear import describe

_SHIFT = 128
_BYTE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A share of a tensor of codes: ``weight * (tensor - zero)``.

    Attributes:
        tensor: uint8.
        zero: What stands for zero, 0 to 255.
        weight: What one step counts: 1, or 256 for the upper byte of 16-bit codes.
    """

    tensor: Tensor
    zero: int
    weight: int = 1


class IntegerWriter:
    """Writes integer operators; the nodes are called after the one they stand for.

    Args:
        graph: Where they go.
    """

    def __init__(self, graph: GraphModel) -> None:
        self._graph = graph
        self._scalars: dict[tuple[object, str], Tensor] = {}
        self._parts: dict[str, tuple[Part, ...]] = {}
        self._weights: dict[tuple[str, str], Tensor] = {}

    def add(self, op: str, inputs: Sequence[Tensor | None], base: str, **attrs: object) -> Tensor:
        """A node with one output; returns that."""
        name = f"{base}_{op.lower()}"
        return self._graph.add_node(op, inputs, name=name, attrs=attrs).outputs[0]

    def number(self, value: object, dtype: str, shape: tuple[int, ...] = ()) -> Tensor:
        """A small constant, made once."""
        array: NDArray[Any] = np.asarray(value, dtype).reshape(shape) if shape else np.asarray(value, dtype)
        key = (array.tobytes(), f"{dtype}{array.shape}")
        if key not in self._scalars:
            self._scalars[key] = self._graph.add_constant(self._graph.unique_name(f"{dtype}_constant"), array)
        return self._scalars[key]

    def cast(self, tensor: Tensor, dtype: str, base: str) -> Tensor:
        """`tensor` in another element type."""
        return self.add("Cast", [tensor], base, to=np.dtype(dtype))

    # ---- operands

    def split(self, codes: Tensor, offset: int, bits: int) -> tuple[Part, ...]:
        """The bytes of a float32 tensor of signed codes, made once per tensor.

        Args:
            codes: Whole numbers of `bits` bits.
            offset: Their zero point.
            bits: Up to 16.
        """
        if codes.name in self._parts:
            return self._parts[codes.name]
        base = codes.name
        if bits <= 8:
            shifted = self.add("Add", [codes, self.number(_SHIFT, "float32")], base)
            parts: tuple[Part, ...] = (Part(self.cast(shifted, "uint8", base), offset + _SHIFT),)
        else:
            shifted = self.add("Add", [codes, self.number(_SHIFT * _BYTE, "float32")], base)
            scaled = self.add("Mul", [shifted, self.number(1.0 / _BYTE, "float32")], base)
            high = self.add("Floor", [scaled], base)
            whole = self.add("Mul", [high, self.number(float(_BYTE), "float32")], base)
            low = self.add("Sub", [shifted, whole], base)
            zeros = divmod(offset + _SHIFT * _BYTE, _BYTE)
            parts = (
                Part(self.cast(high, "uint8", base), zeros[0], _BYTE),
                Part(self.cast(low, "uint8", base), zeros[1]),
            )
        self._parts[codes.name] = parts
        return parts

    def weight(self, codes: WeightCodes, form: str = "", change: LazyArray | None = None) -> Part:
        """The codes of a weight as uint8, made once per weight and form.

        Args:
            codes: The weight.
            form: What `change` is called.
            change: Other numbers than `codes.unsigned()`: those in another order.
        """
        key = (codes.source.name, form)
        if key not in self._weights:
            name = self._graph.unique_name(f"{codes.source.name}_unsigned{form}")
            self._weights[key] = self._graph.add_constant(name, codes.unsigned() if change is None else change)
        return Part(self._weights[key], codes.offset + _SHIFT)

    # ---- sums

    def convolve(self, node: Node, parts: Sequence[Part], weight: Part, attrs: dict[str, object]) -> Tensor:
        """ConvInteger over all parts: int32, or int64 where there are several."""
        results = []
        for part in parts:
            zeros = [self.number(p.zero, "uint8") for p in (part, weight)]
            results.append((self.add("ConvInteger", [part.tensor, weight.tensor, *zeros], node.name, **attrs), part))
        return self._total([(tensor, part.weight) for tensor, part in results], node.name)

    def multiply(self, node: Node, left: Sequence[Part], right: Sequence[Part]) -> Tensor:
        """MatMulInteger over all pairs of parts: int32, or int64 where there are several."""
        results = []
        for a in left:
            for b in right:
                zeros = [self.number(p.zero, "uint8") for p in (a, b)]
                product = self.add("MatMulInteger", [a.tensor, b.tensor, *zeros], node.name)
                results.append((product, a.weight * b.weight))
        return self._total(results, node.name)

    def _total(self, results: list[tuple[Tensor, int]], base: str) -> Tensor:
        if len(results) == 1:
            return results[0][0]
        total = None
        for tensor, weight in results:
            wide = self.cast(tensor, "int64", base)
            if weight != 1:
                wide = self.add("Mul", [wide, self.number(weight, "int64")], base)
            total = wide if total is None else self.add("Add", [total, wide], base)
        return total

    # ---- transposed convolution

    def transposed(self, node: Node, parts: Sequence[Part], weight: WeightCodes) -> Tensor:
        """A ConvTranspose as a convolution of its input, zeros put between, with the mirrored weight.

        Raises:
            GraphError: If its padding depends on a size that is not known.
        """
        kernel = weight.shape[2:]
        groups = int(node.attrs.get("group", 1))
        strides = _ints(node, "strides", len(kernel), 1)
        dilations = _ints(node, "dilations", len(kernel), 1)
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        begins, ends = _crops(node, self._graph.shape(node.inputs[0]), spans, strides)
        pads = [0, 0, *(s - 1 - b for s, b in zip(spans, begins, strict=True))]
        pads += [0, 0, *(s - e - t for s, e, t in zip(spans, ends, strides, strict=True))]
        stuffed = [Part(self._stuff(node, p, strides, pads), p.zero, p.weight) for p in parts]
        shape = (weight.shape[1] * groups, weight.shape[0] // groups, *kernel)
        mirrored = LazyArray(shape, np.dtype(np.uint8), partial(_mirrored, weight, groups, shape))
        numbers = self.weight(weight, f"_mirrored{groups}", mirrored)
        return self.convolve(node, stuffed, numbers, {"dilations": dilations, "group": groups, "kernel_shape": kernel})

    def _stuff(self, node: Node, part: Part, strides: list[int], pads: list[int]) -> Tensor:
        """`stride - 1` zeros behind each element, and then padding, which may be negative."""
        tensor, rank, zero = part.tensor, len(strides) + 2, self.number(part.zero, "uint8")
        for axis, stride in enumerate(strides, start=2):
            if stride == 1:
                continue
            order = [i for i in range(rank) if i != axis] + [axis]  # it is its own inverse only for the last two
            back = [order.index(i) for i in range(rank)]
            tensor = tensor if axis == rank - 1 else self.add("Transpose", [tensor], node.name, perm=order)
            tensor = self.add("Unsqueeze", [tensor, self.number([rank], "int64")], node.name)
            behind = self.number([0] * (rank + 1) + [0] * rank + [stride - 1], "int64")
            tensor = self.add("Pad", [tensor, behind, zero], node.name)
            tensor = self.add("Reshape", [tensor, self.number([0] * (rank - 1) + [-1], "int64")], node.name)
            tensor = tensor if axis == rank - 1 else self.add("Transpose", [tensor], node.name, perm=back)
        if any(pads):
            tensor = self.add("Pad", [tensor, self.number(pads, "int64"), zero], node.name)
        return tensor


def transposed_weight(codes: WeightCodes) -> LazyArray:
    """A weight of rank 2 plus 128 with its axes swapped, uint8."""
    rows, columns = codes.shape
    return LazyArray((columns, rows), np.dtype(np.uint8), partial(_swapped, codes))


def _swapped(codes: WeightCodes) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(codes.unsigned().make()).T)


def _mirrored(codes: WeightCodes, groups: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(Cin, Cout/g, *kernel) as (Cout, Cin/g, *kernel), mirrored along the kernel, plus 128."""
    values = np.asarray(codes.unsigned().make())
    values = np.flip(values, tuple(range(2, values.ndim)))
    values = values.reshape(groups, values.shape[0] // groups, *values.shape[1:])
    return np.ascontiguousarray(values.swapaxes(1, 2)).reshape(shape)


def _ints(node: Node, name: str, count: int, default: int) -> list[int]:
    return [int(v) for v in node.attrs.get(name) or [default] * count]


def _crops(
    node: Node, shape: tuple[object, ...] | None, spans: list[int], strides: list[int]
) -> tuple[list[int], list[int]]:
    """How much a ConvTranspose cuts off at both ends of each axis; negative where it adds."""
    rank = len(spans)
    extra = _ints(node, "output_padding", rank, 0)
    auto = str(node.attrs.get("auto_pad", "NOTSET"))
    wanted = node.attrs.get("output_shape")
    if wanted:
        sizes = [] if shape is None else [s for s in shape[2:] if isinstance(s, int)]
        if len(sizes) != rank:
            raise GraphError(f"{describe(node)} has an output_shape; the size of its input must be fixed for that")
        full = [t * (n - 1) + s + x for t, n, s, x in zip(strides, sizes, spans, extra, strict=True)]
        totals = [max(0, f - int(w)) for f, w in zip(full, list(wanted)[-rank:], strict=True)]
        short = [max(0, int(w) - f) for f, w in zip(full, list(wanted)[-rank:], strict=True)]
        extra = [x + s for x, s in zip(extra, short, strict=True)]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max(0, s - t + x) for s, t, x in zip(spans, strides, extra, strict=True)]
    else:
        pads = [0] * (2 * rank) if auto == "VALID" else _ints(node, "pads", 2 * rank, 0)
        return pads[:rank], [e - x for e, x in zip(pads[rank:], extra, strict=True)]
    upper = auto == "SAME_UPPER"
    begins = [t // 2 if upper else t - t // 2 for t in totals]
    return begins, [t - b - x for t, b, x in zip(totals, begins, extra, strict=True)]
