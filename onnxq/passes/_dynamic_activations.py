"""Codes of activations that come with them: the nodes that take a range and round to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.graph import GraphModel, Tensor

_FLOAT, _UINT8 = np.dtype(np.float32), np.dtype(np.uint8)
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
            name = f"{tensor.name}_quantized_transposed"
            self._transposed[tensor.name] = self._add("Transpose", [found.codes], name, perm=[1, 0])
        return replace(found, codes=self._transposed[tensor.name])

    def centred(self, tensor: Tensor, *, transpose: bool = False) -> Tensor:
        """Codes minus their zero point as floats, of an activation whose zero point may be anything.

        Args:
            tensor: float32, any shape; a matrix where it is transposed.
            transpose: Whether to transpose it.
        """
        found = self.transposed(tensor) if transpose else self.codes(tensor)
        name = found.codes.name
        floats = self._add("Cast", [found.codes], f"{name}_float", to=_FLOAT)
        level = found.level
        if level is None:
            level = self._add("Cast", [found.zero_point], f"{name}_level", to=_FLOAT)
        return self._add("Sub", [floats, level], f"{name}_centred")

    def _by_onnx(self, tensor: Tensor) -> Codes:
        name = tensor.name
        node = self._graph.add_node(
            "DynamicQuantizeLinear", [tensor], name=f"{name}_dynamic_quantize",
            outputs=[f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"],
        )  # fmt: skip
        return Codes(*node.outputs)

    def _by_value(self, tensor: Tensor) -> Codes:
        """``scale = (max - min) / 255``, 0.01 where that is 0; ``zero_point = round(-128 - min / scale)``.

        The codes are int8's, moved up by 128: ONNX Runtime multiplies uint8 by int8 faster than int8 by int8. A zero
        point beyond uint8 cannot be told to MatMulInteger: it gets the nearest one, and `rest` is the difference.
        Source: MindSpore Lite's dynamic quantization (``src/litert/kernel/cpu/int8/dynamic_quant.cc``).
        """
        base, add = tensor.name, self._add
        low = add("ReduceMin", [tensor], f"{base}_min", keepdims=0)
        high = add("ReduceMax", [tensor], f"{base}_max", keepdims=0)
        width = add("Sub", [high, low], f"{base}_range")
        steps = add("Div", [width, self._number(255.0)], f"{base}_step")
        varies = add("Greater", [width, self._number(0.0)], f"{base}_varies")
        scale = add("Where", [varies, steps, self._number(0.01)], f"{base}_scale")
        lowest = add("Div", [low, scale], f"{base}_lowest")
        origin = add("Sub", [self._number(-128.0), lowest], f"{base}_origin")
        zero = self._half_away(origin, f"{base}_zero")
        level = add("Add", [zero, self._number(128.0)], f"{base}_level")
        inside = add("Clip", [level, self._number(0.0), self._number(255.0)], f"{base}_inside")
        zero_point = add("Cast", [inside], f"{base}_zero_point", to=_UINT8)
        beyond = add("Sub", [inside, level], f"{base}_beyond")
        rest = add("Mul", [beyond, scale], f"{base}_rest")
        scaled = add("Div", [tensor, scale], f"{base}_scaled")
        placed = add("Add", [scaled, zero], f"{base}_placed")
        limited = add("Clip", [placed, self._number(-128.0), self._number(127.0)], f"{base}_limited")
        rounded = self._half_away(limited, f"{base}_rounded")
        moved = add("Add", [rounded, self._number(128.0)], f"{base}_moved")
        return Codes(add("Cast", [moved], f"{base}_quantized", to=_UINT8), scale, zero_point, rest, level)

    def _half_away(self, tensor: Tensor, name: str) -> Tensor:
        """Rounded to whole numbers, halves away from zero."""
        size = self._add("Abs", [tensor], f"{name}_size")
        above = self._add("Add", [size, self._number(float(_BELOW_HALF))], f"{name}_above")
        whole = self._add("Floor", [above], f"{name}_whole")
        sign = self._add("Sign", [tensor], f"{name}_sign")
        return self._add("Mul", [whole, sign], name)

    def _add(self, op: str, inputs: Sequence[Tensor], name: str, **attrs: object) -> Tensor:
        """A node and its output; its type is left to shape inference: a line for each would take space in the file."""
        return self._graph.add_node(op, inputs, name=name, outputs=[name], attrs=attrs).outputs[0]

    def _number(self, value: float) -> Tensor:
        if value not in self._numbers:
            self._numbers[value] = self._graph.add_constant(f"number_{value:g}", np.array(value, np.float32))
        return self._numbers[value]
