"""Weights as codes, and the standard operators that decode them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight import packing
from onnxq.algos.weight.codes import WeightCodes
from onnxq.graph import GraphModel, Tensor
from onnxq.spec import QType

_FEW = 32
"""Numbers up to this many are stored as float32: the Cast of a shorter type would take more than it saves."""
_FIRST_BIT_SHIFT = 11
_FIRST_PER_AXIS = 13
FIRST_WITH_BLOCKS = 21
"""The operator set where DequantizeLinear has blocks and integers of 4 bits."""


def oldest_opset(storage: str, bits: int) -> int:
    """The first operator set that has what a storage needs.

    Args:
        storage: As `onnxq.recipe.WeightOnly` has it.
        bits: Width of the codes; it matters to native storage only.
    """
    if storage == "rounded":
        return 1
    if storage == "native":
        return max(_FIRST_PER_AXIS, QType.container(max(bits, 2), signed=True).min_opset)
    return _FIRST_BIT_SHIFT


class SharedConstants:
    """Constants that several weights need, written once."""

    def __init__(self, graph: GraphModel) -> None:
        self._graph = graph
        self._known: dict[str, Tensor] = {}

    def get(self, name: str, content: NDArray[np.generic] | Sequence[int]) -> Tensor:
        """The constant called `name`, or nearly so.

        Args:
            name: Says what is in it.
            content: An array, or a list of int64.
        """
        if name not in self._known:
            array = content if isinstance(content, np.ndarray) else np.array(content, np.int64)
            self._known[name] = self._graph.add_constant(name, array)
        return self._known[name]


class Decoder:
    """Writes one weight as codes and as what decodes them.

    Args:
        graph: Where.
        shared: Constants that other weights of the graph have, too.
        base: What the names of all that is written begin with.
        values: The codes, in the shape of the weight.
        codes: What they mean.
    """

    def __init__(
        self, graph: GraphModel, shared: SharedConstants, base: str, values: NDArray[np.int32], codes: WeightCodes
    ) -> None:
        self._graph = graph
        self._shared = shared
        self._base = base
        self._values = values
        self._codes = codes

    # ---- packed

    def packed(self) -> Tensor:
        """As many bits as the codes are wide; see `onnxq.algos.weight.packing`. Returns the weight, float32."""
        bits, shape = self._codes.bits, self._values.shape
        pieces = packing.pack(self._values - self._codes.low, bits)
        if bits in (8, 16):
            whole = self._cast(self._graph.add_constant(f"{self._base}_packed", pieces[0].reshape(shape)))
        else:
            whole = self._joined(pieces)
        zero = np.asarray(self._codes.zero_point, np.int64) - self._codes.low
        if zero.any():
            whole = self._node("Sub", [whole, self._numbers("zero_point", zero)])
        return self._scaled("Mul", [whole, self._numbers("scale", self._codes.scale * self._codes.variance)])

    def _joined(self, pieces: tuple[packing.Stored, ...]) -> Tensor:
        """All pieces of every code, put together; float32, in the shape of the weight."""
        bits, widths = self._codes.bits, packing.piece_widths(self._codes.bits)
        tops = [self._top(piece, width) for piece, width in zip(pieces, widths, strict=True)]
        table = tops[0] if len(tops) == 1 else self._node("Concat", tops, {"axis": 0})
        right = self._shared.get(f"right_{bits}", packing.right_shifts(bits))
        table = self._node("BitShift", [table, right], {"direction": "RIGHT"})
        if len(tops) == 1:
            return self._cast(self._cut(table))
        rows = self._node("Reshape", [table, self._shared.get(f"rows_{len(tops)}", [len(tops), -1])])
        factors = [1 << (bits - sum(widths[: i + 1])) for i in range(len(widths))]
        powers = self._shared.get(f"powers_{bits}", np.array([factors], np.float32))
        return self._cut(self._node("MatMul", [powers, self._cast(rows)]))

    def _top(self, piece: packing.Stored, width: int) -> Tensor:
        """One piece of every code, in the highest bits of a byte."""
        bits = self._codes.bits
        stored = self._graph.add_constant(f"{self._base}_packed{'' if width == bits else width}", piece)
        if width == 8:
            return stored
        left = self._shared.get(f"left_{width}_of_{bits}", packing.left_shifts(bits, width))
        return self._node("BitShift", [stored, left], {"direction": "LEFT"})

    def _cut(self, codes: Tensor) -> Tensor:
        """Codes in the shape of the weight, without those that fill up the last bytes."""
        count, shape = self._values.size, self._values.shape
        if packing.padded_count(count, self._codes.bits) != count:
            codes = self._node("Reshape", [codes, self._shared.get("rows_1", [1, -1])])
            bounds = [self._shared.get(f"number_{k}", [k]) for k in (0, count, 1)]
            codes = self._node("Slice", [codes, *bounds])
        return self._node("Reshape", [codes, self._shared.get("shape_" + "x".join(map(str, shape)), list(shape))])

    # ---- native

    def native(self) -> Tensor | None:
        """Codes in a signed container behind DequantizeLinear, and an Add where there is a mean.

        Returns:
            The weight, float32; None if no container of the operator set holds the codes and their zero points.
        """
        qtype = self._container()
        if qtype is None:
            return None
        codes, shift = self._codes, qtype.bounds[0] - self._codes.low
        constants = [
            self._graph.add_constant(f"{self._base}_quantized", self._values + np.int32(shift), qtype=qtype),
            self._graph.add_constant(f"{self._base}_scale", codes.scale * codes.variance),
            self._graph.add_constant(f"{self._base}_zero_point", codes.zero_point + np.int32(shift), qtype=qtype),
        ]
        return self._scaled("DequantizeLinear", constants, {} if codes.axis is None else {"axis": codes.axis})

    def _container(self) -> QType | None:
        """The narrowest signed type whose upper end holds all codes and zero points, moved to its lower end."""
        zero = np.asarray(self._codes.zero_point, np.int64) - self._codes.low
        if zero.min() < 0:
            return None
        bits = max(self._codes.bits, int(zero.max()).bit_length())
        integers = (t for t in QType if t.signed and not t.floating)
        known = [t for t in integers if bits <= t.bits <= 16 and t.min_opset <= self._graph.opset]
        return min(known, key=lambda t: t.bits, default=None)

    # ---- both

    def _scaled(self, op: str, inputs: Sequence[Tensor], attrs: Mapping[str, object] | None = None) -> Tensor:
        """The weight: what `op` gives, and the mean where there is one."""
        if self._codes.mean.any():
            op, inputs, attrs = "Add", [self._node(op, inputs, attrs), self._numbers("mean", self._codes.mean)], None
        node = self._graph.add_node(
            op, inputs, name=f"{self._base}_decode", outputs=[f"{self._base}_decoded"], attrs=attrs,
            dtype=np.float32, shape=self._values.shape,
        )  # fmt: skip
        return node.outputs[0]

    def _numbers(self, label: str, numbers: NDArray[np.generic]) -> Tensor:
        """Numbers of the channels, float32, in a shape that broadcasts, stored in the shortest type that has them."""
        stored = _shortest(self._codes.along(numbers, self._values.ndim))
        constant = self._graph.add_constant(f"{self._base}_{label}", stored)
        return constant if stored.dtype == np.float32 else self._cast(constant)

    def _cast(self, tensor: Tensor) -> Tensor:
        return self._node("Cast", [tensor], {"to": np.float32})

    def _node(self, op: str, inputs: Sequence[Tensor], attrs: Mapping[str, object] | None = None) -> Tensor:
        """A step of the decoder: with a short name and no type, as there are many of them and they add to the file."""
        return self._graph.add_node(op, inputs, name="decode", outputs=["decoded"], attrs=attrs).outputs[0]


def _shortest(numbers: NDArray[np.generic]) -> NDArray[np.generic]:
    """The numbers, all of which float32 has, in the shortest type that has them all."""
    floats = numbers.astype(np.float32)
    if numbers.size > _FEW:
        for dtype in (np.uint8, np.float16, np.uint16):
            with np.errstate(invalid="ignore", over="ignore"):
                short = floats.astype(dtype)
            if np.array_equal(short.astype(np.float32), floats):
                return short
    return floats
