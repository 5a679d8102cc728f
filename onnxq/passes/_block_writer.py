"""Weights whose codes have scales of blocks, as every storage has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.blocks import pack_blocks, pack_rows
from onnxq.algos.weight.codes import WeightCodes
from onnxq.algos.weight.rtn import BlockMatrix
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._block_layers import recall
from onnxq.passes._blocks import DOMAIN, BlockWriter
from onnxq.passes._decoders import Decoder, SharedConstants
from onnxq.plan import StoredBlocks, WeightPlan
from onnxq.spec import QType

GATHER = "GatherBlockQuantized"
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level that multiplies codes of activations."""


class StoredBlockWriter:
    """Lets nodes read codes that were chosen before; what several of them read in the same way is written once.

    Args:
        graph: Where.
        storage: As `onnxq.recipe.WeightOnly` has it.
        shared: Constants that decoders share.
        accuracy_level: That of MatMulNBits.
    """

    def __init__(self, graph: GraphModel, storage: str, shared: SharedConstants, accuracy_level: int) -> None:
        self._graph = graph
        self._storage = storage
        self._shared = shared
        self._nodes = BlockWriter(graph, 0, accuracy_level=accuracy_level)
        self._known: dict[tuple[str, str], list[Tensor]] = {}

    def write(self, plan: WeightPlan, stored: StoredBlocks) -> None:
        """Let the node of one weight read its codes."""
        graph, node = self._graph, self._graph.node(plan.node)
        if self._storage == "blocks" and node.op == "Gather":
            self._gather(plan, stored, node)
        elif self._storage == "blocks":
            constants = self._constants(plan, stored, "blocks")
            attrs = {"K": stored.inputs, "N": len(graph.value(graph.tensor(stored.scale)))}
            self._nodes.replace(node, constants, {**attrs, "bits": stored.width, "block_size": stored.size})
        elif self._storage == "native" and node.op == "Gemm":
            (weight,) = self._constants(plan, stored, "native columns")
            self._nodes.as_matmul(node, weight)
        else:
            form = "rows" if stored.by_rows else "columns"
            (weight,) = self._constants(plan, stored, f"{self._storage} {form}")
            graph.set_input(node, plan.index, weight)

    def _constants(self, plan: WeightPlan, stored: StoredBlocks, form: str) -> list[Tensor]:
        key = (stored.codes, form)
        if key not in self._known:
            matrix, by_rows = recall(self._graph, stored), form.endswith("rows")
            match form.split()[0]:
                case "blocks":
                    self._known[key] = self._blocks(plan.key, matrix, stored.width)
                case "table":
                    self._known[key] = self._table(plan.key, matrix, stored.width)
                case "native":
                    self._known[key] = [self._native(plan.key, matrix, by_rows=by_rows)]
                case "rounded":
                    values = matrix.decode()
                    rounded = self._graph.add_constant(f"{plan.key}_rounded", values if by_rows else values.T)
                    self._known[key] = [rounded]
                case _:
                    self._known[key] = [self._packed(plan.key, matrix, by_rows=by_rows)]
        return self._known[key]

    # ---- operators of ONNX Runtime

    def _blocks(self, base: str, matrix: BlockMatrix, width: int) -> list[Tensor]:
        coded = pack_blocks(matrix, width)
        parts: list[tuple[str, NDArray[np.generic]]] = [("blocks", coded.codes), ("scales", coded.scale)]
        if (matrix.zero_point != 1 << (width - 1)).any():  # this is what a missing one means
            parts.append(("zero_points", coded.zero_point))
        return [self._graph.add_constant(f"{base}_{name}", array) for name, array in parts]

    def _table(self, base: str, matrix: BlockMatrix, width: int) -> list[Tensor]:
        parts = (
            ("blocks", pack_rows(matrix.codes, width)),
            ("scales", matrix.scale),
            ("zero_points", pack_rows(matrix.zero_point, width)),
        )
        return [self._graph.add_constant(f"{base}_{name}", array) for name, array in parts]

    def _gather(self, plan: WeightPlan, stored: StoredBlocks, node: Node) -> None:
        graph = self._graph
        codes, *numbers = self._constants(plan, stored, "table")
        name, result, indexes = str(node.name), node.outputs[0], node.inputs[1]
        graph.remove_node(node)
        looked_up = graph.add_node(
            GATHER, [codes, indexes, *numbers], name=name, outputs=[result], domain=DOMAIN,
            attrs={"gather_axis": 0, "quantize_axis": 1, "bits": stored.width, "block_size": stored.size},
        )  # fmt: skip
        graph.rename_node(looked_up, name)

    # ---- standard operators

    def _native(self, base: str, matrix: BlockMatrix, *, by_rows: bool) -> Tensor:
        """DequantizeLinear with an axis of blocks, behind the narrowest signed integers of the operator set."""
        graph = self._graph
        types = [t for t in QType if t.label in ("int2", "int4", "int8") and t.bits >= matrix.shape.bits]
        qtype = min((t for t in types if t.min_opset <= graph.opset), key=lambda t: t.bits)
        shift = np.int32(qtype.bounds[0])
        arrays = (matrix.codes.astype(np.int32) + shift, matrix.scale, matrix.zero_point.astype(np.int32) + shift)
        codes, scale, zero = (array if by_rows else np.ascontiguousarray(array.T) for array in arrays)
        constants = [
            graph.add_constant(f"{base}_quantized", codes, qtype=qtype), graph.add_constant(f"{base}_scale", scale)
        ]  # fmt: skip
        if zero.any():
            constants.append(graph.add_constant(f"{base}_zero_point", zero, qtype=qtype))
        node = graph.add_node(
            "DequantizeLinear", constants, name=f"{base}_decode", outputs=[f"{base}_decoded"], dtype=np.float32,
            attrs={"axis": 1 if by_rows else 0, "block_size": matrix.shape.size}, shape=codes.shape,
        )  # fmt: skip
        return node.outputs[0]

    def _packed(self, base: str, matrix: BlockMatrix, *, by_rows: bool) -> Tensor:
        """Every block as a row of its own, decoded like any weight with a scale for each row, and put together."""
        graph, (outputs, inputs) = self._graph, matrix.codes.shape
        size, blocks = min(matrix.shape.size, inputs), matrix.scale.shape[1]
        values = np.repeat(matrix.zero_point[:, -1:], blocks * size, axis=1).astype(np.int32)
        values[:, :inputs] = matrix.codes
        scale, zero = matrix.scale.reshape(-1), matrix.zero_point.reshape(-1).astype(np.int32)
        codes = WeightCodes(matrix.shape.bits, 0, 0, scale, zero, np.ones_like(scale), np.zeros_like(scale))
        whole = Decoder(graph, self._shared, base, values.reshape(-1, size), codes).packed()
        if blocks > 1:
            wanted = self._shared.get(f"shape_{outputs}x{blocks * size}", [outputs, blocks * size])
            whole = self._node("Reshape", [whole, wanted])
        if blocks * size != inputs:
            bounds = [self._shared.get(f"number_{k}", [k]) for k in (0, inputs, 1)]
            whole = self._node("Slice", [whole, *bounds])
        if not by_rows:
            whole = self._node("Transpose", [whole], {"perm": [1, 0]})
        graph.set_type(whole, np.float32, (outputs, inputs) if by_rows else (inputs, outputs))
        return whole

    def _node(self, op: str, inputs: list[Tensor], attrs: dict[str, object] | None = None) -> Tensor:
        return self._graph.add_node(op, inputs, name="decode", outputs=["decoded"], attrs=attrs).outputs[0]


def accuracy_level(compute: str | None, *, chosen: bool) -> int:
    """MatMulNBits' accuracy_level for what a recipe says; 0 leaves it to ONNX Runtime, which takes float32.

    Args:
        compute: As `onnxq.recipe.WeightOnly` has it.
        chosen: Whether the recipe has a method.
    """
    wanted = compute or ("int8" if chosen else "float32")
    return INT8_ACTIVATIONS if wanted == "int8" else 0
