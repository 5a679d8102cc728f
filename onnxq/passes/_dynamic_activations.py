"""Codes of activations that come with them: the nodes that take a range and round to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.graph import GraphModel, Tensor

_BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))
"""Added before cutting decimals off it rounds halves away from zero; 0.5 itself would round its neighbour too."""


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """An activation as codes: ``real = scale * (codes - zero_point) + rest``.

    Attributes:
        codes: uint8, the shape of the activation.
        scale: float32, a scalar.
        zero_point: uint8, a scalar.
        rest: float32, a scalar: what a zero point that is no uint8 leaves; None where that cannot be.
        level: float32, a scalar: the zero point whatever its size; None where `zero_point` is all of it.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    rest: Tensor | None = None
    level: Tensor | None = None


class Activations:
    """Writes the nodes for each activation once, whoever reads it.

    Args:
        graph: Where to.
        exact: Ranges are those of the values, which need not include zero; otherwise DynamicQuantizeLinear's.
    """

    def __init__(self, graph: GraphModel, *, exact: bool) -> None:
        self._graph = graph
        self._exact = exact
        self._codes: dict[str, Codes] = {}
        self._transposed: dict[str, Tensor] = {}
        self._numbers: dict[float, Tensor] = {}

    def codes(self, tensor: Tensor) -> Codes:
        """The codes of an activation.

        Args:
            tensor: float32, any shape.
        """
        if tensor.name not in self._codes:
            self._codes[tensor.name] = self._by_value(tensor) if self._exact else self._by_onnx(tensor)
        return self._codes[tensor.name]

    def transposed(self, tensor: Tensor) -> Codes:
        """The codes of an activation, a matrix, transposed.

        Args:
            tensor: float32, two axes.
        """
        found = self.codes(tensor)
        if tensor.name not in self._transposed:
            shape = self._graph.shape(tensor)
            self._transposed[tensor.name] = self._graph.add_node(
                "Transpose", [found.codes], name=f"{tensor.name}_codes_transpose", attrs={"perm": [1, 0]},
                dtype=np.uint8, shape=None if shape is None else shape[::-1],
            ).outputs[0]  # fmt: skip
        codes = self._transposed[tensor.name]
        return Codes(codes, found.scale, found.zero_point, found.rest, found.level)

    def _by_onnx(self, tensor: Tensor) -> Codes:
        name = tensor.name
        node = self._graph.add_node(
            "DynamicQuantizeLinear", [tensor], name=f"{name}_dynamic_quantize",
            outputs=[f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"],
        )  # fmt: skip
        codes, scale, zero_point = node.outputs
        self._graph.set_type(codes, np.uint8, self._graph.shape(tensor))
        self._graph.set_type(scale, np.float32, ())
        self._graph.set_type(zero_point, np.uint8, ())
        return Codes(codes, scale, zero_point)

    def _by_value(self, tensor: Tensor) -> Codes:
        """``scale = (max - min) / 255``, 0.01 where that is 0; ``zero_point = round(-128 - min / scale)``.

        The codes are int8's, moved up by 128: ONNX Runtime multiplies uint8 by int8 faster than int8 by int8. A zero
        point beyond uint8 cannot be told to MatMulInteger: it gets the nearest one, and `rest` is the difference.
        Source: MindSpore Lite's dynamic quantization (``src/litert/kernel/cpu/int8/dynamic_quant.cc``).
        """
        base = tensor.name
        low = self._add("ReduceMin", [tensor], f"{base}_min", attrs={"keepdims": 0})
        high = self._add("ReduceMax", [tensor], f"{base}_max", attrs={"keepdims": 0})
        width = self._add("Sub", [high, low], f"{base}_range")
        steps = self._add("Div", [width, self._number(255.0)], f"{base}_step")
        varies = self._add("Greater", [width, self._number(0.0)], f"{base}_varies", dtype=np.bool_)
        scale = self._add("Where", [varies, steps, self._number(0.01)], f"{base}_scale")
        lowest = self._add("Div", [low, scale], f"{base}_lowest")
        origin = self._add("Sub", [self._number(-128.0), lowest], f"{base}_origin")
        zero = self._half_away(origin, f"{base}_zero")
        level = self._add("Add", [zero, self._number(128.0)], f"{base}_level")
        inside = self._clip(level, 0.0, 255.0, f"{base}_level_inside")
        zero_point = self._cast(inside, np.uint8, f"{base}_zero_point")
        beyond = self._add("Sub", [inside, level], f"{base}_beyond")
        rest = self._add("Mul", [beyond, scale], f"{base}_rest")
        shape = self._graph.shape(tensor)
        scaled = self._add("Div", [tensor, scale], f"{base}_scaled", shape=shape)
        placed = self._add("Add", [scaled, zero], f"{base}_placed", shape=shape)
        limited = self._clip(placed, -128.0, 127.0, f"{base}_limited", shape)
        rounded = self._half_away(limited, f"{base}_rounded", shape)
        moved = self._add("Add", [rounded, self._number(128.0)], f"{base}_moved", shape=shape)
        return Codes(self._cast(moved, np.uint8, f"{base}_quantized", shape), scale, zero_point, rest, level)

    def centred(self, tensor: Tensor, *, transpose: bool = False) -> Tensor:
        """Codes minus their zero point as floats, of an activation whose zero point may be anything.

        Args:
            tensor: float32, any shape; a matrix where it is transposed.
            transpose: Whether to transpose it.
        """
        found = self.transposed(tensor) if transpose else self.codes(tensor)
        floats = self._cast(found.codes, np.float32, f"{found.codes.name}_float", self._graph.shape(found.codes))
        level = found.level
        if level is None:
            level = self._cast(found.zero_point, np.float32, f"{found.zero_point.name}_float")
        return self._add("Sub", [floats, level], f"{found.codes.name}_centred", shape=self._graph.shape(found.codes))

    # ---- small steps

    def _half_away(self, tensor: Tensor, name: str, shape: Sequence[int | str | None] | None = ()) -> Tensor:
        """Rounded to whole numbers, halves away from zero, for magnitudes below 2**23 or whole numbers above."""
        size = self._add("Abs", [tensor], f"{name}_size", shape=shape)
        above = self._add("Add", [size, self._number(float(_BELOW_HALF))], f"{name}_above", shape=shape)
        whole = self._add("Floor", [above], f"{name}_whole", shape=shape)
        sign = self._add("Sign", [tensor], f"{name}_sign", shape=shape)
        return self._add("Mul", [whole, sign], name, shape=shape)

    def _clip(
        self, tensor: Tensor, low: float, high: float, name: str, shape: Sequence[int | str | None] | None = ()
    ) -> Tensor:
        return self._add("Clip", [tensor, self._number(low), self._number(high)], name, shape=shape)

    def _cast(self, tensor: Tensor, dtype: type, name: str, shape: Sequence[int | str | None] | None = ()) -> Tensor:
        return self._add("Cast", [tensor], name, attrs={"to": np.dtype(dtype)}, dtype=dtype, shape=shape)

    def _add(
        self,
        op: str,
        inputs: Sequence[Tensor],
        name: str,
        *,
        attrs: dict[str, object] | None = None,
        dtype: type = np.float32,
        shape: Sequence[int | str | None] | None = (),
    ) -> Tensor:
        node = self._graph.add_node(
            op, inputs, name=f"{name}_{op}", outputs=[name], attrs=attrs, dtype=dtype, shape=shape
        )
        return node.outputs[0]

    def _number(self, value: float) -> Tensor:
        if value not in self._numbers:
            self._numbers[value] = self._graph.add_constant(f"number_{value:g}", np.array(value, np.float32))
        return self._numbers[value]
