"""Writes a record into the graph as the operators that Ascend's compiler reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxq.algos.ascend_words import pack_words, quant_scale
from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._ascend_insertion import LayerWriter
from onnxq.passes._ascend_layers import AscendLayer, Entry
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._linear import optional_input

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_CODES = {4: np.int8, 8: np.int8, 16: np.int16}


@dataclass(frozen=True)
class InsertAscend(Pass):
    """Puts AscendQuant in front of each layer of a record and AscendDequant behind it.

    Given:
        the factors of each layer, ``ctx.factors``, and the float graph they were found for.
    Result:
        int8 weights and int32 biases under the names of the float ones, Gemms with transB=0; one AscendQuant
        ``<layer>.quant`` for all layers that read one tensor with equal factors; AscendDequant
        ``<layer>.dequant`` directly behind the layer or behind the Add of its bias, with the words
        ``<layer>.dequant.param``. In front of nodes that cannot compute with codes (MaxPool, Add) there is
        AscendAntiQuant ``<layer>.anti_quant`` as well. Every float tensor keeps its name, graph outputs too; what
        a layer itself computes is called ``<layer>_output0``.

    The zero point of the activations is not in the biases: the compiler takes it out of the sums, and pads with it.

    Source: AMCT's deploy models.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FACTORS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QUANTIZED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS, Fact.FACTORS})

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `GraphError` if the operators cannot be read in the model's operator set."""
        oldest, newest = ctx.target.opset, ctx.target.newest_opset or graph.opset
        if not oldest <= graph.opset <= newest:
            raise GraphError(
                f"the model has opset {graph.opset}; {ctx.target.title} reads its operators in opsets {oldest} to "
                f"{newest}: export the model at one of these"
            )

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Insert.

        Raises:
            RecordError: If the factors do not fit the graph, or a bias does not fit into int32.
        """
        return _Writer(graph).insert(ctx, as_floats=False)

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `GraphError` if a layer of the record does not read codes."""
        for name, factors in ctx.factors.items():
            if not factors.tensor_quantize and graph.dtype(graph.node(name).inputs[0]) not in (np.int8, np.int16):
                raise GraphError(f"layer {name!r} has factors and reads no codes")


class _Writer(LayerWriter):
    def _finish(self, layer: AscendLayer) -> None:
        if layer.pad is not None:
            self._pad_with_zero(layer, layer.pad)
        if layer.wts_bits == 4:
            self._weight_quant(layer)
        if layer.entries[0].factors.act_bits == 4:
            self._bias_quant(layer)
        if layer.scale is not None:
            self._dequant(layer, layer.scale)

    def _quant(self, entry: Entry) -> Tensor:
        key = entry.key
        if key not in self._codes:
            tensor, factors = entry.node.inputs[entry.index], entry.factors
            self._codes[key] = self._graph.add_node(
                "AscendQuant", [tensor], name=entry.name, outputs=[f"{entry.name}.output0"],
                attrs={
                    "scale": float(quant_scale(factors.scale_d)),
                    "offset": float(factors.offset_d),
                    "dst_type": f"INT{factors.act_bits}",
                },
                dtype=_CODES[factors.act_bits], shape=self._graph.shape(tensor),
            ).outputs[0]  # fmt: skip
        return self._codes[key]

    def _anti_quant(self, layer: AscendLayer, entry: Entry, codes: Tensor) -> Tensor:
        factors = entry.factors
        name = f"{layer.name}.anti_quant{entry.index or ''}"
        return self._graph.add_node(
            "AscendAntiQuant", [codes], name=name, outputs=[f"{name}.output0"],
            attrs={
                "scale": factors.scale_d,
                "offset": float(factors.offset_d),
                "dst_type": f"INT{factors.act_bits}",
            },
            dtype=np.float32, shape=self._graph.shape(codes),
        ).outputs[0]  # fmt: skip

    def _pad_with_zero(self, layer: AscendLayer, pad: Node) -> None:
        """Let a Pad of codes fill in the code of zero."""
        graph, factors = self._graph, layer.entries[0].factors
        dtype = _CODES[factors.act_bits]
        if graph.opset < 11:
            pad.attrs["value"] = float(factors.offset_d)
        elif factors.offset_d or optional_input(pad, 2) is not None:
            fill = graph.add_constant(f"{layer.name}.quant.pad_value", np.array(factors.offset_d, dtype))
            graph.set_input(pad, 2, fill)
        graph.set_type(pad.outputs[0], dtype, graph.shape(pad.outputs[0]))

    def _weight_quant(self, layer: AscendLayer) -> None:
        """Say that a weight has 4 bits."""
        graph, weight = self._graph, layer.node.inputs[1]
        scales = layer.entries[0].factors.scale_w.shape
        offset = graph.add_constant(f"{layer.name}.weight_offset", np.zeros(scales, np.int8))
        name = f"{layer.name}.weight_quant"
        node = graph.add_node(
            "AscendWeightQuant", [weight, offset], name=name, outputs=[f"{name}.output0"],
            attrs={"dst_type": "INT4"}, dtype=np.int8, shape=graph.shape(weight),
        )  # fmt: skip
        graph.set_input(layer.node, 1, node.outputs[0])

    def _bias_quant(self, layer: AscendLayer) -> None:
        """Let a layer whose activations have 4 bits read its int32 bias as floats."""
        graph = self._graph
        for edit in layer.edits:
            if edit.dtype is not np.int32:
                continue
            bias = edit.node.inputs[edit.index]
            name = f"{layer.name}.bias_quant"
            node = graph.add_node(
                "Cast", [bias], name=name, outputs=[f"{name}.output0"],
                attrs={"to": TensorProto.FLOAT}, dtype=np.float32, shape=graph.shape(bias),
            )  # fmt: skip
            graph.set_input(edit.node, edit.index, node.outputs[0])

    def _dequant(self, layer: AscendLayer, scale: NDArray[np.float32]) -> None:
        """Let the result keep its name behind the dequantization."""
        graph, result = self._graph, layer.last.outputs[0]
        words = graph.add_constant(f"{layer.name}.dequant.param", pack_words(scale))
        shape = graph.shape(result)
        if layer.last is not layer.node:
            graph.set_type(layer.node.outputs[0], np.int32, graph.shape(layer.node.outputs[0]))
        graph.replace_output(layer.last, 0, graph.new_variable(f"{layer.last.name}_output0", np.int32, shape))
        graph.add_node(
            "AscendDequant", [layer.last.outputs[0], words],
            name=f"{layer.name}.dequant", outputs=[result], attrs={"dtype": 0},
        )  # fmt: skip
