"""Scales and zero points of a quantized model, tensor by tensor, for a debug report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Tensor
from onnxq.plan import WeightPlan
from onnxq.report.debug_files import number
from onnxq.report.debug_reading import Reading
from onnxq.report.debug_rows import Layout, Place
from onnxq.report.debug_standins import block_codes

if TYPE_CHECKING:
    from onnxq.result import Result

_WIDTHS = {"2": 2, "4": 4, "8": 8, "16": 16, "32": 32}


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    """The scales of one tensor, in one dimension; the other arrays broadcast against them."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.integer[Any]]
    bits: int
    variance: NDArray[np.float32]
    mean: NDArray[np.float32]


def param_rows(
    layout: Layout, reading: Reading, result: Result, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[list[str]]:
    """One row per scale: of each node, its inputs and then its outputs.

    Args:
        layout: The places in question.
        reading: The quantized model, as it runs here.
        result: Where the numbers of weights are.
        shapes: Shapes of the tensors of one sample.
    """
    finder = _Finder(reading.graph, result, {(w.node, w.index): w for w in result.plan.weights})
    for place in layout.places:
        numbers = finder.numbers(place)
        shape = shapes.get(place.measure.source.names[0])
        if numbers is None or shape is None:
            continue
        dims = "".join(f"{d} " for d in shape)
        head = [place.node, place.op_type, place.tensor, str(int(np.prod(shape, dtype=np.int64))), dims]
        for scale, zero, variance, mean in np.broadcast(
            numbers.scale, numbers.zero_point, numbers.variance, numbers.mean
        ):
            yield [*head, number(scale), str(int(zero)), str(numbers.bits), number(variance), number(mean)]


@dataclass(frozen=True, slots=True)
class _Finder:
    graph: GraphModel
    result: Result
    weights: Mapping[tuple[str, int], WeightPlan]

    def numbers(self, place: Place) -> _Numbers | None:
        """The numbers of a place: those of the plan, else those of the DequantizeLinear behind which it is."""
        plan = None if place.output else self.weights.get((place.node, place.index))
        if plan is not None:
            return self._of_weight(plan)
        tensor = self.graph.tensors().get(place.measure.source.names[0])
        return None if tensor is None else self._written(tensor) or self._planned(place)

    def _of_weight(self, plan: WeightPlan) -> _Numbers | None:
        blocks = block_codes(self.graph, plan)
        if blocks is not None:
            return _plain(blocks.scale, blocks.zero_points().astype(np.int32), blocks.bits)
        codes = self.result.weight_codes.get(plan.key)
        if codes is not None:
            flat = (v.reshape(-1) for v in (codes.scale, codes.variance, codes.mean))
            scale, variance, mean = flat
            return _Numbers(scale, codes.zero_point.reshape(-1), codes.bits, variance, mean)
        return self._planned_numbers(plan.key)

    def _planned(self, place: Place) -> _Numbers | None:
        """The numbers of an activation of a model that has no DequantizeLinear."""
        return self._planned_numbers(place.tensor) if self.result.factors else None

    def _planned_numbers(self, key: str) -> _Numbers | None:
        params = self.result.params.get(key)
        if params is None:
            return None
        return _plain(params.scale, params.zero_point, params.spec.bits)

    def _written(self, tensor: Tensor) -> _Numbers | None:
        maker = self.graph.producer(tensor)
        if maker is None or maker.op != "DequantizeLinear" or not self.graph.is_constant(maker.inputs[1]):
            return None
        scale = np.asarray(self.graph.value(maker.inputs[1]), np.float32)
        dtype = self.graph.dtype(maker.inputs[0])
        has_zero = len(maker.inputs) > 2 and bool(maker.inputs[2].name)
        if has_zero and not self.graph.is_constant(maker.inputs[2]):
            return None
        zero = np.asarray(self.graph.value(maker.inputs[2])).astype(np.int32) if has_zero else np.zeros(1, np.int32)
        digits = "8" if dtype is None else dtype.name.lstrip("uint")
        return _plain(scale, zero, _WIDTHS.get(digits, 8))


def _plain(scale: NDArray[np.float32], zero_point: NDArray[np.int32], bits: int) -> _Numbers:
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    return _Numbers(scale.reshape(-1), zero_point.reshape(-1), bits, one, zero)
