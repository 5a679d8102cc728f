"""Widths of layers for an average width, by what each width does to the outputs of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight import gptq, rtn
from onnxq.algos.weight.bit_budget import choose_widths
from onnxq.algos.weight.rtn import SEARCHED, BlockMatrix
from onnxq.calib.chunks import first_batches
from onnxq.calib.feeds import Feed
from onnxq.calib.readers import Reader
from onnxq.errors import CalibrationError, RecipeError
from onnxq.graph import GraphModel
from onnxq.passes._block_layers import BlockLayer, matrix_of, shape_of
from onnxq.passes._block_stream import BlockStream, Group
from onnxq.passes._inputs import inputs_of
from onnxq.passes._trial import opened_model
from onnxq.passes._weight_only import unusable
from onnxq.recipe import WeightOnly
from onnxq.runtime import make_session, thread_count

if TYPE_CHECKING:
    from onnxq.context import QuantContext

Key = tuple[str, bool]
"""What layers with the same codes share."""
Squares = Sequence[NDArray[np.float64]] | None

_ROWS = 1024
"""Outputs of a layer that are looked at."""
_SAMPLES = 4
"""How many samples the model is run on for each layer."""


def widths_for(storage: str) -> tuple[int, ...]:
    """The widths that a storage gains something by."""
    return (2, 3, 4, 5, 6, 8) if storage in ("packed", "rounded") else (2, 4, 8)


def choose_layer_widths(
    graph: GraphModel, ctx: QuantContext, layers: Sequence[BlockLayer], scheme: WeightOnly
) -> tuple[dict[Key, int], str]:
    """Choose the width of each layer for the average that the scheme says.

    With data the model is run once for each layer, with codes in this one alone: what its outputs lose, over their
    magnitude, is the error of the layer for that width, and follows the errors of its weights for all others. Where
    the weights do not fit into the memory budget, the error is that of the layer's own outputs times its size, and
    without data that of its weights times its size: a weight more or less counts the same in every layer then.

    Args:
        graph: The graph.
        ctx: Reader, threads and budget.
        layers: All layers.
        scheme: Average, storage and block size.

    Returns:
        The widths by the keys of the layers, and a sentence about them.

    Raises:
        RecipeError: If the average is below the smallest width.
    """
    widths = widths_for(scheme.storage)
    meter = _Meter(graph, ctx, {layer.key: layer for layer in layers}, scheme)
    errors = meter.errors(widths)
    owners = meter.layers
    sizes = [owners[key].outputs * owners[key].inputs for key in errors]
    average = float(scheme.average_bits or widths[-1])
    try:
        chosen = choose_widths(np.stack(list(errors.values())), widths, sizes, average)
    except ValueError as err:
        raise RecipeError(f"scheme.average_bits: {err}") from err
    spent = sum(w * n for w, n in zip(chosen, sizes, strict=True)) / sum(sizes)
    counts = ", ".join(f"{n} of {w} bits" for w, n in sorted(Counter(chosen).items()))
    return dict(zip(errors, chosen, strict=True)), f"codes are {spent:.2f} bits wide on average: {counts}"


class _Meter:
    """Errors of layers for every width."""

    def __init__(self, graph: GraphModel, ctx: QuantContext, layers: dict[Key, BlockLayer], scheme: WeightOnly) -> None:
        self.layers = layers
        self._graph = graph
        self._ctx = ctx
        self._scheme = scheme

    def errors(self, widths: Sequence[int]) -> dict[Key, NDArray[np.float64]]:
        """By the keys of the layers, one number for each width."""
        budget = self._ctx.recipe.calibration.memory_budget_mb * 2**20
        if self._ctx.reader is not None and self._graph.weight_bytes <= budget:
            own = {key: self._relative(layer, None, widths) for key, layer in self.layers.items()}
            average = float(self._scheme.average_bits or widths[-1])
            middle = max(i for i, width in enumerate(widths) if width <= average)
            effects = self._effects(self._ctx.reader, widths[middle])
            return {key: own[key] * (effects[key] / max(own[key][middle], 1e-30)) for key in self.layers}
        found: dict[Key, NDArray[np.float64]] = {}

        def measure(layer: BlockLayer, squares: Squares) -> None:
            if layer.key not in found:
                found[layer.key] = self._relative(layer, squares, widths) * (layer.outputs * layer.inputs)

        def visit(group: Group) -> None:
            for layer in group.layers:
                measure(layer, group.squares)

        if self._ctx.reader is not None and any(layer.source for layer in self.layers.values()):
            BlockStream(self._graph, list(self.layers.values()), self._ctx).run(visit, "measuring layers")
        for layer in self.layers.values():
            measure(layer, None)
        return found

    def _rounded(self, layer: BlockLayer, rows: NDArray[np.float32], bits: int, squares: Squares) -> BlockMatrix:
        shape = shape_of(layer, self._scheme.block_size, bits, SEARCHED, self._scheme.storage)
        cost = None if squares is None else gptq.importance_of(np.concatenate([np.diag(s) for s in squares]))
        try:
            return rtn.round_to_nearest(rows, shape, cost, workers=thread_count(self._ctx.threads))
        except CalibrationError as err:
            raise unusable(layer.plan, err) from err

    def _relative(self, layer: BlockLayer, squares: Squares, widths: Sequence[int]) -> NDArray[np.float64]:
        """What the weights, or with squares the outputs, of a layer lose, over their magnitude."""
        matrix = matrix_of(self._graph, layer)
        rows = np.array(matrix[:: max(1, -(-len(matrix) // _ROWS))], np.float32, order="C")
        power = _power(rows, squares) or 1.0
        errors = [self._rounded(layer, rows, bits, squares).decode() - rows for bits in widths]
        return np.array([_power(error, squares) / power for error in errors])

    def _effects(self, reader: Reader, bits: int) -> dict[Key, float]:
        """What the model's outputs lose by codes in one layer alone, over their magnitude."""
        names = sorted({layer.plan.tensor for layer in self.layers.values()})
        session = make_session(opened_model(self._graph, names), threads=1)
        feeds = first_batches(reader, _SAMPLES, 1, inputs_of(self._graph))
        floats: Feed = {name: self._graph.value(self._graph.tensor(name)) for name in names}

        def outputs(changed: Feed) -> list[list[NDArray[Any]]]:
            return [session.run(None, {**floats, **changed, **feed}) for feed in feeds]

        expected, found = outputs({}), dict[Key, float]()
        for done, (key, layer) in enumerate(self.layers.items(), 1):
            rows = np.array(matrix_of(self._graph, layer), np.float32, order="C")
            values = self._rounded(layer, rows, bits, None).decode()
            actual = outputs({layer.plan.tensor: np.ascontiguousarray(values if layer.by_rows else values.T)})
            found[key] = sum(map(_loss, expected, actual))
            if self._ctx.progress is not None:
                self._ctx.progress("measuring layers", done, len(self.layers))
        return found


def _power(rows: NDArray[np.float32], squares: Squares) -> float:
    if squares is None:
        return float(np.square(rows, dtype=np.float64).sum())
    ends = np.cumsum([len(s) for s in squares])
    spans = [slice(int(end) - len(s), int(end)) for end, s in zip(ends, squares, strict=True)]
    return sum(float(gptq.output_errors(rows[:, span], s).sum()) for span, s in zip(spans, squares, strict=True))


def _loss(expected: Sequence[NDArray[Any]], actual: Sequence[NDArray[Any]]) -> float:
    """The squared error of float outputs over their squares, each output counting the same."""
    total = 0.0
    for wanted, found in zip(expected, actual, strict=True):
        if wanted.dtype.kind != "f":
            continue
        finite = np.isfinite(wanted) & np.isfinite(found)
        gap = np.where(finite, found, 0).astype(np.float64) - np.where(finite, wanted, 0)
        power = np.square(np.where(finite, wanted, 0), dtype=np.float64).sum()
        total += float(np.square(gap).sum() / max(power, 1e-30))
    return total
