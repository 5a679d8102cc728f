"""Weights that stay floats in the file: QuantizeLinear makes their codes when the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._linear import optional_input

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.context import QuantContext

_WHOLE_BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class KeepFloatWeights(Pass):
    """``DequantizeLinear(codes)`` becomes ``DequantizeLinear(QuantizeLinear(weight))``.

    The weight is the float one wherever that gives the same code, and what the code stands for elsewhere: weights that
    were rounded by their effect. So the model gives the same numbers as before.

    Given:
        a model with QuantizeLinear and DequantizeLinear.
    Result:
        no int8 or uint8 constants of rank 2 or more that a DequantizeLinear reads; others are left as they are.

    Attributes:
        floats: The float model in the form that was quantized.
        weights: Node name and input index of each weight.
    """

    floats: GraphModel = field(repr=False)
    weights: tuple[tuple[str, int], ...]

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QUANTIZED})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Rewrite the weights."""
        skipped: list[Skip] = []
        changed = 0
        done: set[str] = set()
        for name, index in self.weights:
            node = graph.node(name) if graph.has_node(name) else None
            decoder = None if node is None else graph.producer(node.inputs[index])
            if decoder is None or decoder.op != "DequantizeLinear" or not graph.is_constant(decoder.inputs[0]):
                skipped.append(Skip(name, "its weight is not read from codes by a DequantizeLinear"))
                continue
            if str(graph.dtype(decoder.inputs[0])) not in _WHOLE_BYTES:
                skipped.append(Skip(name, f"its weight has codes of type {graph.dtype(decoder.inputs[0])}"))
                continue
            if decoder.name not in done:
                done.add(str(decoder.name))
                _rewrite(graph, decoder, self._original(name, index))
                changed += 1
        if changed:
            graph.sort()
            graph.sweep()
        return PassReport(changed=changed, skipped=tuple(skipped))

    def _original(self, name: str, index: int) -> NDArray[np.float32] | None:
        if not self.floats.has_node(name):
            return None
        tensor = self.floats.node(name).inputs[index]
        return self.floats.value(tensor) if self.floats.is_constant(tensor) else None


def _rewrite(graph: GraphModel, decoder: Node, original: NDArray[np.float32] | None) -> None:
    codes_tensor: Tensor = decoder.inputs[0]
    codes, scale = graph.value(codes_tensor), graph.value(decoder.inputs[1])
    zero = optional_input(decoder, 2)
    zeros = np.zeros(scale.shape, codes.dtype) if zero is None else graph.value(zero)
    attrs: Mapping[str, Any] = {k: v for k, v in decoder.attrs.items() if k in ("axis", "block_size")}
    steps, offsets = (_spread(a, codes.shape, attrs) for a in (scale, zeros))
    weight = ((codes.astype(np.float32) - offsets.astype(np.float32)) * steps).astype(np.float32)
    if original is not None and original.shape == codes.shape:
        bounds = np.iinfo(codes.dtype)
        again = np.clip(np.rint(original / steps) + offsets, bounds.min, bounds.max)
        weight = np.where(again == codes, original, weight)
    name = str(codes_tensor.name)
    floats = graph.add_constant(graph.unique_name(f"{name}_float"), np.ascontiguousarray(weight))
    if zero is None:
        zero = graph.add_constant(graph.unique_name(f"{name}_zero"), zeros)
    encoder = graph.add_node(
        "QuantizeLinear", [floats, decoder.inputs[1], zero], name=f"{decoder.name}_encode", attrs=attrs,
        dtype=codes.dtype, shape=codes.shape,
    )  # fmt: skip
    graph.set_input(decoder, 0, encoder.outputs[0])


def _spread(values: NDArray[Any], shape: tuple[int, ...], attrs: Mapping[str, Any]) -> NDArray[Any]:
    """Scales or zero points, one for each code."""
    if values.size == 1:
        return np.broadcast_to(values.reshape(()), shape)
    axis = int(attrs.get("axis", 1)) % len(shape)
    block = int(attrs.get("block_size", 0))
    if block:
        return np.take(np.repeat(values, block, axis=axis), range(shape[axis]), axis=axis)
    return np.broadcast_to(values.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
