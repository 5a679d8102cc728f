"""Widths of layers for an average width, by what each width does to the outputs of the layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight import gptq, rtn
from onnxq.algos.weight.bit_budget import choose_widths
from onnxq.algos.weight.rtn import SEARCHED
from onnxq.errors import CalibrationError, RecipeError
from onnxq.graph import GraphModel
from onnxq.passes._block_layers import BlockLayer, matrix_of, shape_of
from onnxq.passes._block_stream import BlockStream, Group
from onnxq.passes._weight_only import unusable
from onnxq.recipe import WeightOnly
from onnxq.runtime import thread_count

if TYPE_CHECKING:
    from onnxq.context import QuantContext

Widths = dict[tuple[str, bool], int]
"""Bits by the keys of layers."""

_ROWS = 1024
"""Outputs of a layer that are looked at."""


def widths_for(storage: str) -> tuple[int, ...]:
    """The widths that a storage gains something by."""
    return (2, 3, 4, 5, 6, 8) if storage in ("packed", "rounded") else (2, 4, 8)


def choose_layer_widths(
    graph: GraphModel, ctx: QuantContext, layers: Sequence[BlockLayer], scheme: WeightOnly
) -> tuple[Widths, str]:
    """Choose the width of each layer for the average that the scheme says.

    The error of a layer is that of its outputs over their own magnitude, with codes nearest to its weights; where its
    inputs are not known, that of its weights. The model is run once over the data where there are any.

    Args:
        graph: The graph.
        ctx: Reader, threads and budget.
        layers: All layers.
        scheme: Average, storage and block size.

    Returns:
        The widths, and a sentence about them.

    Raises:
        RecipeError: If the average is below the smallest width.
    """
    widths, found = widths_for(scheme.storage), dict[tuple[str, bool], NDArray[np.float64]]()

    def measure(layer: BlockLayer, squares: Sequence[NDArray[np.float64]] | None) -> None:
        if layer.key not in found:
            try:
                found[layer.key] = _errors(graph, layer, squares, widths, scheme, thread_count(ctx.threads))
            except CalibrationError as err:
                raise unusable(layer.plan, err) from err

    def visit(group: Group) -> None:
        for layer in group.layers:
            measure(layer, group.squares)

    if ctx.reader is not None and any(layer.source for layer in layers):
        BlockStream(graph, layers, ctx).run(visit, "measuring layers")
    for layer in layers:
        measure(layer, None)
    owners = {layer.key: layer for layer in layers}
    sizes = [owners[key].outputs * owners[key].inputs for key in found]
    average = float(scheme.average_bits or widths[-1])
    try:
        chosen = choose_widths(np.stack(list(found.values())), widths, sizes, average)
    except ValueError as err:
        raise RecipeError(f"scheme.average_bits: {err}") from err
    spent = sum(w * n for w, n in zip(chosen, sizes, strict=True)) / sum(sizes)
    counts = ", ".join(f"{n} of {w} bits" for w, n in sorted(Counter(chosen).items()))
    return dict(zip(found, chosen, strict=True)), f"codes are {spent:.2f} bits wide on average: {counts}"


def _errors(
    graph: GraphModel,
    layer: BlockLayer,
    squares: Sequence[NDArray[np.float64]] | None,
    widths: Sequence[int],
    scheme: WeightOnly,
    workers: int,
) -> NDArray[np.float64]:
    """The relative error of a layer's outputs for each width."""
    matrix = matrix_of(graph, layer)
    rows = np.array(matrix[:: max(1, -(-len(matrix) // _ROWS))], np.float32, order="C")
    parts = [(slice(0, layer.inputs), None)] if squares is None else _spans(squares)
    power = sum(_power(rows[:, span], square) for span, square in parts) or 1.0
    errors = []
    for bits in widths:
        shape = shape_of(layer, scheme.block_size, bits, SEARCHED, scheme.storage)
        cost = None if squares is None else gptq.importance_of(np.concatenate([np.diag(s) for s in squares]))
        error = rtn.round_to_nearest(rows, shape, cost, workers=workers).decode() - rows
        errors.append(sum(_power(error[:, span], square) for span, square in parts) / power)
    return np.array(errors)


def _spans(squares: Sequence[NDArray[np.float64]]) -> list[tuple[slice, NDArray[np.float64] | None]]:
    ends = np.cumsum([len(s) for s in squares])
    return [(slice(int(end) - len(s), int(end)), s) for end, s in zip(ends, squares, strict=True)]


def _power(rows: NDArray[np.float32], square: NDArray[np.float64] | None) -> float:
    if square is None:
        return float(np.square(rows, dtype=np.float64).sum())
    return float(gptq.output_errors(rows, square).sum())
