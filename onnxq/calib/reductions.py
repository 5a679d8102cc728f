"""Ranges found inside the graph: the values never leave the runtime, only their extremes do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calib.points import StatisticPoint, StatKind

_AXES_ARE_INPUTS = {"ReduceSum": 13, "ReduceMax": 18, "ReduceMin": 18}


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is computed of one tensor instead of giving it out.

    Attributes:
        tensor: Its name.
        rank: Its rank, at least 3.
        prefix: What the names of the results begin with.
        nonnegative: The values come from a Relu or a Clip at 0: their smallest is taken to be 0, and the
            largest is found by a GlobalMaxPool, which runs in the layout convolutions have inside ONNX
            Runtime and so costs next to nothing. Such a clamp lets no NaN through that could be found here.
    """

    tensor: str
    rank: int
    prefix: str
    nonnegative: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the largest and, unless they are known, smallest values and sums, and of the number of values.

        The shapes are (N, C), with further axes of length 1 where the values are nonnegative; the number is a scalar.
        """
        kinds = ("high", "size") if self.nonnegative else ("high", "low", "sum", "size")
        return tuple(f"{self.prefix}.{kind}" for kind in kinds)

    def nodes(self, opset: int) -> Iterator[onnx.NodeProto]:
        """The nodes that compute them.

        Args:
            opset: The model's operator set.
        """
        if self.nonnegative:
            high, size = self.outputs
            yield onnx.helper.make_node("GlobalMaxPool", [self.tensor], [high])
            yield onnx.helper.make_node("Size", [self.tensor], [size])
            return
        axes = list(range(2, self.rank))
        constant = f"{self.prefix}.axes"
        yield onnx.helper.make_node("Constant", [], [constant], value=onnx.numpy_helper.from_array(np.array(axes)))
        high, low, total, size = self.outputs
        for op, name in (("ReduceMax", high), ("ReduceMin", low), ("ReduceSum", total)):
            if opset >= _AXES_ARE_INPUTS[op]:
                yield onnx.helper.make_node(op, [self.tensor, constant], [name], keepdims=0)
            else:
                yield onnx.helper.make_node(op, [self.tensor], [name], axes=axes, keepdims=0)
        yield onnx.helper.make_node("Size", [self.tensor], [size])


@dataclass(frozen=True, slots=True, eq=False)
class Extremes:
    """What a `Reduction` gave for one batch.

    Attributes:
        lows: shape (N, C), float32.
        highs: shape (N, C), float32.
        count: Number of values.
        finite: Whether all values were finite: maxima and minima show infinities, sums show NaN.
    """

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    count: int
    finite: bool

    @staticmethod
    def of(reduction: Reduction, found: Mapping[str, NDArray[Any]]) -> Extremes:
        """Read the outputs of a run."""
        results = [found[name] for name in reduction.outputs]
        count = int(results[-1])
        if reduction.nonnegative:
            highs = results[0].reshape(results[0].shape[:2])
            return Extremes(np.zeros_like(highs), highs, count, bool(np.isfinite(highs).all()) or count == 0)
        highs, lows, sums = results[:3]
        finite = bool(np.isfinite(highs).all() and np.isfinite(lows).all() and not np.isnan(sums).any())
        return Extremes(lows, highs, count, finite or count == 0)


def reductions_for(
    points: Sequence[StatisticPoint], ranks: Mapping[str, int | None], nonnegative: Collection[str] = ()
) -> dict[str, Reduction]:
    """The points that need extremes only, by name of the tensor.

    Args:
        points: What is to be measured.
        ranks: Rank of each tensor, None where it is not known; tensors of rank below 3 are small anyway.
        nonnegative: Names of the tensors that come from a Relu or a Clip at 0.
    """
    found: dict[str, Reduction] = {}
    for number, point in enumerate(points):
        rank = ranks.get(point.tensor)
        per_channel = StatKind.CHANNEL_ABSMAX in point.kinds
        if rank is None or rank < 3 or (StatKind.HISTOGRAM | StatKind.CHANNEL_SUM) & point.kinds:
            continue
        if not per_channel or point.axis == 1:
            found[point.tensor] = Reduction(
                point.tensor, rank, f"onnxq.extremes.{number}", nonnegative=point.tensor in nonnegative
            )
    return found
