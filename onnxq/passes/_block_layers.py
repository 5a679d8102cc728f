"""Weights whose codes get scales of blocks: which they are, and where their codes are kept until they are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.blocks import pack_rows, unpack_rows
from onnxq.algos.weight.rtn import BlockMatrix, BlockShape
from onnxq.graph import GraphModel, Node
from onnxq.plan import StoredBlocks, WeightPlan

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayer:
    """A weight seen as a matrix of N outputs and K inputs, from one node that reads it.

    Attributes:
        plan: The weight.
        by_rows: Whether the tensor has the shape (N, K); otherwise it has (K, N).
        outputs: N.
        inputs: K.
        source: Name of the activation it is multiplied with; empty for a table that is looked up, and where that is a
            constant.
    """

    plan: WeightPlan
    by_rows: bool
    outputs: int
    inputs: int
    source: str

    @property
    def key(self) -> tuple[str, bool]:
        """Layers with the same key share their codes."""
        return self.plan.key, self.by_rows

    @property
    def place(self) -> tuple[str, int]:
        """Where its codes are in `QuantContext.blocks`."""
        return self.plan.node, self.plan.index


def block_layer(graph: GraphModel, plan: WeightPlan, storage: str) -> BlockLayer | str:
    """A planned weight as a matrix, or why its blocks cannot have scales.

    Args:
        graph: The graph.
        plan: The weight.
        storage: As `onnxq.recipe.WeightOnly` has it.
    """
    node = graph.node(plan.node)
    if node.op not in ("MatMul", "Gemm", "Gather") or plan.index != (0 if node.op == "Gather" else 1):
        return f"scales of blocks are for tables of Gather and second inputs of MatMul and Gemm, not for {node.op}"
    tensor = node.inputs[plan.index]
    shape = tuple(d for d in graph.shape(tensor) or () if isinstance(d, int))
    if len(shape) != 2 or not graph.is_float32(tensor):
        return (
            f"its weight has shape {list(shape)} and type {graph.dtype(tensor)}; scales of blocks are for 2-D float32"
        )
    if plan.spec.bits > 8:
        return f"codes of {plan.spec.bits} bits; those with scales of blocks have 8 at the most"
    reason = _why_not_gather(node) if node.op == "Gather" else _why_not_product(graph, node, storage)
    if reason is not None:
        return reason
    by_rows = node.op == "Gather" or bool(node.op == "Gemm" and node.attrs.get("transB", 0))
    outputs, inputs = shape if by_rows else shape[::-1]
    if node.op == "Gather" and storage == "blocks" and inputs % 4:
        return f"a row of its table has {inputs} numbers; GatherBlockQuantized wants a multiple of 4"
    x = node.inputs[0]
    source = "" if node.op == "Gather" or graph.is_constant(x) else str(x.name)
    return BlockLayer(plan, by_rows, outputs, inputs, source)


def _why_not_gather(node: Node) -> str | None:
    axis = int(node.attrs.get("axis", 0)) % 2
    return "it looks up columns of its table; scales of blocks are for rows" if axis else None


def _why_not_product(graph: GraphModel, node: Node, storage: str) -> str | None:
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return "a Gemm with transA has codes of whole channels"
    if node.op == "Gemm" and storage in ("blocks", "native") and float(node.attrs.get("alpha", 1.0)) != 1.0:
        return "a Gemm with alpha has codes of whole channels"
    rank = graph.rank(node.inputs[0])
    return f"its input has rank {rank}; a product with blocks wants 2 or more" if rank is None or rank < 2 else None


def block_layers(
    graph: GraphModel, plans: Iterable[WeightPlan], storage: str
) -> tuple[list[BlockLayer], dict[str, str]]:
    """All weights as matrices, and for the nodes of the others why they are none."""
    layers, refused = [], {}
    for plan in plans:
        found = block_layer(graph, plan, storage)
        if isinstance(found, str):
            refused[plan.node] = found
        else:
            layers.append(found)
    return layers, refused


def matrix_of(graph: GraphModel, layer: BlockLayer) -> Matrix:
    """The float weight as shape (N, K): a view, of a memmap where it is in a file."""
    value: Matrix = graph.value(graph.node(layer.plan.node).inputs[layer.plan.index])
    return value if layer.by_rows else value.T


def shape_of(layer: BlockLayer, size: int | str, bits: int, shares: tuple[float, ...], storage: str) -> BlockShape:
    """The blocks of a layer.

    Args:
        layer: The layer.
        size: Weights that share a scale, or ``row``. Blocks are not longer than a row makes them.
        bits: Width of the codes.
        shares: Shares of the ranges that are tried.
        storage: As `onnxq.recipe.WeightOnly` has it.
    """
    whole = layer.inputs if storage != "blocks" else max(16, 1 << (layer.inputs - 1).bit_length())
    wanted = whole if isinstance(size, str) else min(size, whole)
    return BlockShape(bits, wanted, bool(layer.plan.spec.symmetric), shares)


def keep(graph: GraphModel, layer: BlockLayer, matrix: BlockMatrix) -> StoredBlocks:
    """Put codes among the constants of the graph, which go to a file when they are many."""
    bits = matrix.shape.bits
    width = next(w for w in (2, 4, 8) if w >= bits)

    def put(part: str, array: NDArray[np.generic]) -> str:
        return str(graph.add_constant(f"{layer.plan.key}_{part}", array).name)

    codes = put("chosen_codes", pack_rows(matrix.codes, width))
    scale, zero = put("chosen_scale", matrix.scale), put("chosen_zero_point", matrix.zero_point)
    return StoredBlocks(
        codes, scale, zero, layer.inputs, bits, matrix.shape.size, matrix.shape.symmetric, layer.by_rows
    )


def recall(graph: GraphModel, stored: StoredBlocks) -> BlockMatrix:
    """The codes that `keep` has put away."""
    codes, scale, zero = (
        np.array(graph.value(graph.tensor(name))) for name in (stored.codes, stored.scale, stored.zero_point)
    )
    unpacked = unpack_rows(codes, stored.width)[:, : stored.inputs]
    return BlockMatrix(BlockShape(stored.bits, stored.size, stored.symmetric), unpacked, scale, zero)


def rescale(graph: GraphModel, stored: StoredBlocks, factors: NDArray[np.float32]) -> None:
    """Divide what the codes stand for by a factor for each output, shape (N,)."""
    tensor = graph.tensor(stored.scale)
    graph.rewrite_constant(tensor, (graph.value(tensor) / factors[:, None]).astype(np.float32))
