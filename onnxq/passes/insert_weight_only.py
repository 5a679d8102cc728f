"""Writes weights as codes that are decoded to floats; the model computes as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.algos.weight.codes import WeightCodes, decode, encode
from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Tensor
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._block_writer import StoredBlockWriter, accuracy_level
from onnxq.passes._blocks import BlockWriter
from onnxq.passes._decoders import FIRST_WITH_BLOCKS, Decoder, SharedConstants, oldest_opset
from onnxq.passes._weights import weight_value
from onnxq.plan import Plan, WeightPlan

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_STORAGES = ("packed", "native", "blocks", "rounded")


@dataclass(frozen=True)
class InsertWeightOnly(Pass):
    """Puts codes in the place of planned weights.

    Given:
        a plan of weights and how each of them becomes codes.
    Result:
        every reader of a planned weight reads what decodes its codes; other readers, graph outputs and bodies that
        read it keep the floats. A weight that several nodes read in the same way is written once.

        * ``packed``: as many bits per weight as they are wide, behind operators that ONNX Runtime runs once, when it
          makes the session; all of them are in operator set 11.
        * ``native``: the next wider signed integers behind DequantizeLinear. ONNX Runtime leaves these in place and
          decodes whenever the model runs, unless a session has ``session.disable_quant_qdq``; backends with integer
          weights want them so. A weight that no container of the operator set holds is packed.
        * ``blocks``: a large MatMul or Gemm whose codes have up to 8 bits becomes a MatMulNBits of 4 or 8 bits, with
          codes of its own; the rest is packed.
        * ``rounded``: floats that have only the values of the codes.

        Except for blocks, the floats are those of `onnxq.algos.weight.codes.decode`, bit for bit. Weights of
        ``ctx.blocks`` have scales of blocks in all storages: packed in the same way; native behind DequantizeLinear
        with an axis of blocks, of operator set 21, a Gemm as MatMul and Add, as ONNX Runtime fuses only that; blocks
        as MatMulNBits and GatherBlockQuantized of 2, 4 or 8 bits.

    Attributes:
        storage: One of the four.
        block_size: Weights that share a scale in the MatMulNBits that get codes here; a power of 2 from 16.
        compute: What MatMulNBits multiplies with, ``float32`` or ``int8``; None decides by whether codes were chosen.
    """

    storage: str = "packed"
    block_size: int = 32
    compute: str | None = None

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.PLAN, Fact.CODES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QUANTIZED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS})

    def __post_init__(self) -> None:
        if self.storage not in _STORAGES:
            raise ValueError(f"storage {self.storage!r}; must be one of {', '.join(_STORAGES)}")

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Refuse a model whose operator set is too old.

        Raises:
            GraphError: If it lacks what decodes the codes.
        """
        needed = max(oldest_opset(self.storage, 8), FIRST_WITH_BLOCKS if self.storage == "native" and ctx.blocks else 1)
        if (ctx.plan or Plan()).weights and graph.opset < needed:
            raise GraphError(
                f"{self.storage} weights need operator set {needed}, the model has {graph.opset}; upgrade it first"
            )

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Insert.

        Raises:
            GraphError: If the plan does not fit the graph.
        """
        plan, blocks = ctx.plan or Plan(), ctx.blocks
        level = accuracy_level(self.compute, chosen=bool(blocks))
        writer = _Writer(graph, self.storage, self.block_size, level)
        for weight in plan.weights:
            stored = blocks.get((weight.node, weight.index))
            if stored is None:
                writer.write(weight, ctx.weight_codes[weight.key])
            else:
                writer.stored.write(weight, stored)
        graph.sort()
        return PassReport(changed=len(plan.weights), notes=tuple(writer.notes))

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """No reader of a planned weight reads the floats that it has read before.

        Raises:
            GraphError: If one does.
        """
        for weight in (ctx.plan or Plan()).weights:
            inputs = graph.node(weight.node).inputs
            if weight.index < len(inputs) and inputs[weight.index].name == weight.tensor:
                raise GraphError(f"{weight.node!r} reads the floats of {weight.tensor!r}, which were planned as codes")


class _Writer:
    def __init__(self, graph: GraphModel, storage: str, block_size: int, level: int) -> None:
        self.notes: list[str] = []
        self._graph = graph
        self._storage = storage
        self._shared = SharedConstants(graph)
        self._blocks = BlockWriter(graph, block_size, accuracy_level=level)
        self.stored = StoredBlockWriter(graph, storage, self._shared, level)
        self._done: dict[str, Tensor] = {}

    def write(self, plan: WeightPlan, codes: WeightCodes) -> None:
        """Let the node of one weight read its codes."""
        if self._storage == "blocks" and self._blocks.fits(plan, codes.bits):
            self._blocks.write(plan, codes.bits)
            return
        if plan.key not in self._done:
            self._done[plan.key] = self._decoded(plan, codes)
        self._graph.set_input(self._graph.node(plan.node), plan.index, self._done[plan.key])

    def _decoded(self, plan: WeightPlan, codes: WeightCodes) -> Tensor:
        weight = weight_value(self._graph, plan)
        if codes.axis is not None and codes.scale.shape != weight.shape[codes.axis : codes.axis + 1]:
            raise GraphError(
                f"weight {plan.tensor!r} {list(weight.shape)} has {codes.scale.size} scales along axis {codes.axis}"
            )
        dtype, values = weight.dtype, encode(weight, codes)
        if self._storage == "rounded":
            return self._graph.add_constant(f"{plan.key}_rounded", decode(values, codes).astype(dtype))
        decoder = Decoder(self._graph, self._shared, plan.key, values, codes)
        tensor = decoder.native() if self._storage == "native" else decoder.packed()
        if tensor is None:
            self.notes.append(f"weight {plan.tensor!r}: no integer type holds its codes and zero points; it is packed")
            tensor = decoder.packed()
        if dtype == np.float32:
            return tensor
        cast = self._graph.add_node(
            "Cast", [tensor], name=f"{plan.key}_cast", attrs={"to": dtype}, dtype=dtype, shape=weight.shape
        )
        return cast.outputs[0]
