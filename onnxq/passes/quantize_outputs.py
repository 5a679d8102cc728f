"""Outputs that are codes, for Ascend."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onnxq.algos.ascend_words import quant_scale
from onnxq.errors import GraphError
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._linear import describe
from onnxq.passes._qdq_pairs import QUANTIZE, read_numbers

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


class QuantizeOutputs(Pass):
    """A QuantizeLinear with signed codes at an output of the model becomes an AscendQuant.

    Given:
        ``QuantizeLinear(x, scale, zero point int8) -> y``, a graph output
    Result:
        ``AscendQuant(x; 1 / scale, zero point) -> y``

    Source: AMCT's convert_qat_model.
    """

    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QUANTIZED})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Replace.

        Raises:
            GraphError: If its codes are unsigned, or have a scale per channel.
        """
        nodes = graph.nodes(*QUANTIZE)
        for node in nodes:
            numbers = read_numbers(graph, node)
            if numbers.scale.size != 1 or numbers.unsigned:
                raise GraphError(f"{describe(node)} has unsigned codes or several scales; an AscendQuant has neither")
            source, result, name = node.inputs[0], node.outputs[0], str(node.name)
            graph.remove_node(node)
            attrs = {
                "scale": float(quant_scale(float(numbers.scale[0]))),
                "offset": float(numbers.zero[0]),
                "dst_type": f"INT{numbers.bits}",
            }
            graph.add_node("AscendQuant", [source], name=f"{name}.quant", outputs=[result], attrs=attrs)
        graph.sort()
        return PassReport(changed=len(nodes))
