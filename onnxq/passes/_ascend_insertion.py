"""What both forms of a model for Ascend have in common: layer by layer, codes in front and factors behind."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from onnxq.graph import GraphModel, Tensor
from onnxq.passes._ascend_clips import relax_clips
from onnxq.passes._ascend_layers import AscendLayer, Entry, edit_constants, find_layers
from onnxq.passes._base import PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext


class LayerWriter(abc.ABC):
    """Writes the layers of a record into a float graph; tensors with equal factors are quantized once.

    Args:
        graph: The graph the factors were found for.
    """

    def __init__(self, graph: GraphModel) -> None:
        self._graph = graph
        self._codes: dict[object, Tensor] = {}

    def insert(self, ctx: QuantContext, *, as_floats: bool) -> PassReport:
        """Write all layers.

        Args:
            ctx: Its factors and recipe are read.
            as_floats: Weights and biases are integers stored as float32.

        Raises:
            RecordError: If the factors do not fit the graph, or a bias does not fit into int32.
        """
        layers = find_layers(self._graph, ctx.factors, s19=ctx.recipe.fp16_scales)
        relaxed = relax_clips(self._graph, layers)
        edit_constants(self._graph, layers, as_floats=as_floats)
        for layer in layers:
            self._write(layer)
        self._graph.sort()
        notes = (f"{relaxed} Clips became Relus: the codes behind them saturate below the limit",) if relaxed else ()
        return PassReport(changed=len(layers), notes=notes)

    def _write(self, layer: AscendLayer) -> None:
        for entry in layer.entries:
            codes = self._quant(entry)
            if layer.scale is None:
                codes = self._anti_quant(layer, entry, codes)
            self._graph.set_input(entry.node, entry.index, codes)
        self._finish(layer)

    @abc.abstractmethod
    def _quant(self, entry: Entry) -> Tensor:
        """The codes of an input of a layer."""

    @abc.abstractmethod
    def _anti_quant(self, layer: AscendLayer, entry: Entry, codes: Tensor) -> Tensor:
        """The floats that codes stand for, in front of a node that cannot compute with them."""

    @abc.abstractmethod
    def _finish(self, layer: AscendLayer) -> None:
        """Write what a layer needs besides codes at its inputs."""
