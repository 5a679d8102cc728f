"""Writes a record into the graph in standard operators, which any runtime executes: Ascend's fake-quant model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.ascend_words import quant_scale
from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Tensor
from onnxq.passes._ascend_insertion import LayerWriter
from onnxq.passes._ascend_layers import AscendLayer, Entry
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.spec import code_bounds

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_FIRST_ROUND = 11
"""The first operator set with Round; Clip takes its bounds as inputs from there on."""
_ROUNDER = 1.5 * 2.0**23
"""A float32 has no place for fractions once this is added: that rounds it, ties to even."""


@dataclass(frozen=True)
class InsertAscendFake(Pass):
    """Lets the layers of a record compute with integers that are stored as floats.

    Given:
        the factors of each layer, ``ctx.factors``, and the float graph they were found for.
    Result:
        in front of each layer ``<layer>.quant.fakequant.{mul,round,add,clip,sub}``: codes minus their zero point, so
        that a padding of zeros is right; weights and biases are the integers of the deploy model, as float32;
        behind it ``<layer>.fakedequant.mul``. In front of a MaxPool or Add there is
        ``<layer>.fakeantiquant.mul`` as well. Every float tensor keeps its name, graph outputs too. Sums are exact
        up to 2^24, and so is this model up to there.

    Source: AMCT's fake-quant models.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FACTORS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QUANTIZED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS, Fact.FACTORS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Insert.

        Raises:
            RecordError: If the factors do not fit the graph, or a bias does not fit into int32.
        """
        return _Writer(graph).insert(ctx, as_floats=True)

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `GraphError` if a layer of the record is not followed by its factor."""
        for name, factors in ctx.factors.items():
            if not factors.tensor_quantize and not graph.has_node(f"{name}.fakedequant.mul"):
                raise GraphError(f"layer {name!r} has factors and computes without them")


class _Writer(LayerWriter):
    def _finish(self, layer: AscendLayer) -> None:
        if layer.scale is not None:
            self._dequant(layer, layer.scale)

    def _quant(self, entry: Entry) -> Tensor:
        key = entry.key
        if key not in self._codes:
            base, factors = f"{entry.name}.fakequant", entry.factors
            low, high = code_bounds(factors.act_bits, signed=True)
            scale = self._number(f"{base}.scale", quant_scale(factors.scale_d))
            offset = self._number(f"{base}.offset", factors.offset_d)
            codes = self._step(f"{base}.mul", "Mul", entry.node.inputs[entry.index], scale)
            codes = self._round(base, codes)
            codes = self._step(f"{base}.add", "Add", codes, offset)
            codes = self._clip(base, codes, low, high)
            self._codes[key] = self._step(f"{base}.sub", "Sub", codes, offset)
        return self._codes[key]

    def _round(self, base: str, tensor: Tensor) -> Tensor:
        if self._graph.opset >= _FIRST_ROUND:
            return self._step(f"{base}.round", "Round", tensor)
        number = self._number(f"{base}.rounder", _ROUNDER)
        return self._step(f"{base}.round", "Sub", self._step(f"{base}.round_up", "Add", tensor, number), number)

    def _clip(self, base: str, tensor: Tensor, low: int, high: int) -> Tensor:
        if self._graph.opset >= _FIRST_ROUND:
            bounds = (self._number(f"{base}.min_val", low), self._number(f"{base}.max_val", high))
            return self._step(f"{base}.clip", "Clip", tensor, *bounds)
        return self._step(f"{base}.clip", "Clip", tensor, attrs={"min": float(low), "max": float(high)})

    def _anti_quant(self, layer: AscendLayer, entry: Entry, codes: Tensor) -> Tensor:
        base = f"{layer.name}.fakeantiquant{entry.index or ''}"
        return self._step(f"{base}.mul", "Mul", codes, self._number(f"{base}.scale", entry.factors.scale_d))

    def _dequant(self, layer: AscendLayer, scale: NDArray[np.float32]) -> None:
        """Let the result keep its name behind the dequantization."""
        graph, result, base = self._graph, layer.last.outputs[0], f"{layer.name}.fakedequant"
        shape = graph.shape(result)
        factor = graph.add_constant(f"{base}.dqscale", _along_channels(layer, scale, graph.rank(result)))
        graph.replace_output(layer.last, 0, graph.new_variable(f"{layer.last.name}_output0", np.float32, shape))
        # the constant comes first: ONNX Runtime would fold a second factor into the weights, which are integers no more
        graph.add_node("Mul", [factor, layer.last.outputs[0]], name=f"{base}.mul", outputs=[result])

    def _number(self, name: str, value: float | np.float32) -> Tensor:
        return self._graph.add_constant(name, np.asarray(value, np.float32))

    def _step(self, name: str, op: str, *inputs: Tensor, attrs: dict[str, object] | None = None) -> Tensor:
        shape = self._graph.shape(inputs[0])
        node = self._graph.add_node(
            op, inputs, name=name, outputs=[f"{name}.output0"], attrs=attrs, dtype=np.float32, shape=shape
        )
        return node.outputs[0]


def _along_channels(layer: AscendLayer, scale: NDArray[np.float32], rank: int | None) -> NDArray[np.float32]:
    """The factors so that they broadcast against the result: axis 1 of images, the last axis of matrices."""
    if layer.node.op in ("Conv", "ConvTranspose"):
        spatial = len(layer.edits[0].shape) - 2
        return scale.reshape((1, -1) + (1,) * spatial)
    return scale if rank == 1 else scale.reshape(1, -1)
