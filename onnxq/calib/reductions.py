"""Ranges found inside the graph: the values never leave the runtime, only their extremes do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calib.feeds import Dim, InputInfo, batching
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.stats import TensorStats

_AXES_ARE_INPUTS = {"ReduceSum": 13, "ReduceMax": 18, "ReduceMin": 18}
_STEPS = 10
"""The first operator set whose Slice can leave rows out."""
_PREFIX = "onnxq.extremes"
_END = int(np.iinfo(np.int64).max)

_WHOLE = StatKind.CHANNEL_SUM | StatKind.QUANTILES | StatKind.PEAKS | StatKind.OBSERVED
"""What needs all values of a tensor."""

LARGE = 1 << 14
"""Of tensors with so many values in a sample, the histogram counts some only; ranges are always exact."""
THINNING = 4
"""It counts every so many-th row or value."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is computed of one tensor instead of giving it out.

    Attributes:
        point: The tensor, and what is wanted of it.
        rank: Its rank, at least 3; the channels lie along axis 1.
        channels: How many there are.
        inner: Values of one channel of one row; None where it is not known before the run.
        rows: Length of axis 0; None where that is the number of samples run.
        counted: The graph counts the values: the other attributes do not tell how many there are. For
            this ONNX Runtime brings the whole tensor back from the layout of its convolutions.
        sampled: Some rows of the tensor are given out, for its histogram: every `THINNING`-th along axis 2.
        nonnegative: The values come from a Relu or a Clip at 0: their smallest is taken to be 0, and the
            largest is found by a GlobalMaxPool, which runs in the layout convolutions have inside ONNX
            Runtime and so costs next to nothing. Such a clamp lets no NaN through that could be found here.
    """

    point: StatisticPoint
    rank: int
    channels: int
    inner: int
    rows: int | None
    counted: bool
    sampled: bool
    nonnegative: bool

    def nodes(self, prefix: str, opset: int) -> Iterator[onnx.NodeProto]:
        """The nodes that compute ``prefix.high`` and, unless they are known, ``.low``, ``.sum`` and ``.size``.

        All but the last have the shape (channels,).
        """
        tensor, axes = self.point.tensor, [0, *range(2, self.rank)]
        if self.sampled:
            numbers = [f"{_PREFIX}.{name}" for name in ("starts", "ends", "axis", "steps")]
            yield onnx.helper.make_node("Slice", [tensor, *numbers], [f"{prefix}.rows"])
        if self.counted:
            yield onnx.helper.make_node("Size", [tensor], [f"{prefix}.size"])
        if self.nonnegative:
            yield onnx.helper.make_node("GlobalMaxPool", [tensor], [f"{prefix}.pooled"])
            yield _reduce("ReduceMax", f"{prefix}.pooled", f"{prefix}.high", axes, opset)
            return
        for op, name in (("ReduceMax", "high"), ("ReduceMin", "low"), ("ReduceSum", "sum")):
            yield _reduce(op, tensor, f"{prefix}.{name}", axes, opset)

    def count(self, rows: int) -> int:
        """Number of values in a run of so many samples, where it is not counted."""
        return (rows if self.rows is None else self.rows) * self.channels * self.inner


def _constant(name: str, value: NDArray[np.int64]) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [f"{_PREFIX}.{name}"], value=onnx.numpy_helper.from_array(value))


def _reduce(op: str, tensor: str, result: str, axes: Sequence[int], opset: int) -> onnx.NodeProto:
    if opset >= _AXES_ARE_INPUTS[op]:
        return onnx.helper.make_node(op, [tensor, f"{_PREFIX}.axes{len(axes)}"], [result], keepdims=0)
    return onnx.helper.make_node(op, [tensor], [result], axes=axes, keepdims=0)


@dataclass(frozen=True, slots=True)
class Reductions:
    """Everything that is reduced in one graph.

    The results of all tensors leave the graph in one vector each of largest values, smallest values and
    sums, because every output costs time in Python.
    """

    items: tuple[Reduction, ...] = ()

    @property
    def tensors(self) -> frozenset[str]:
        """Names of the tensors that are reduced."""
        return frozenset(item.point.tensor for item in self.items)

    @property
    def static(self) -> bool:
        """Whether all numbers of values are known before the run."""
        return not any(item.counted for item in self.items)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the graph must be asked for."""
        vectors = [f"{_PREFIX}.high"] if self.items else []
        if any(not item.nonnegative for item in self.items):
            vectors += [f"{_PREFIX}.low", f"{_PREFIX}.sum"]
        sizes = [f"{_PREFIX}.{k}.size" for k, item in enumerate(self.items) if item.counted]
        return (*vectors, *sizes, *self.rows.values())

    @property
    def rows(self) -> Mapping[str, str]:
        """The outputs that have rows for histograms, by name of the tensor."""
        return {item.point.tensor: f"{_PREFIX}.{k}.rows" for k, item in enumerate(self.items) if item.sampled}

    def nodes(self, opset: int) -> Iterator[onnx.NodeProto]:
        """The nodes that compute the outputs.

        Args:
            opset: The model's operator set.
        """
        for rank in sorted({item.rank for item in self.items}):
            axes = np.array([0, *range(2, rank)])
            yield _constant(f"axes{len(axes)}", axes)
        if self.rows:
            for name, number in (("starts", 0), ("ends", _END), ("axis", 2), ("steps", THINNING)):
                yield _constant(name, np.array([number]))
        for number, item in enumerate(self.items):
            yield from item.nodes(f"{_PREFIX}.{number}", opset)
        for kind in ("high", "low", "sum"):
            parts = [f"{_PREFIX}.{k}.{kind}" for k, i in enumerate(self.items) if kind == "high" or not i.nonnegative]
            if parts:
                yield onnx.helper.make_node("Concat", parts, [f"{_PREFIX}.{kind}"], axis=0)


@dataclass
class Extremes:
    """What the runs of one graph with `Reductions` have shown so far."""

    reductions: Reductions
    highs: NDArray[np.float32] = field(init=False)
    lows: NDArray[np.float32] = field(init=False)
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        items = self.reductions.items
        self.highs = np.full(sum(i.channels for i in items), -np.inf, np.float32)
        self.lows = np.full(sum(i.channels for i in items if not i.nonnegative), np.inf, np.float32)
        self.counts = [0] * len(items)

    def add(self, found: Mapping[str, NDArray[Any]], rows: int) -> tuple[str, ...]:
        """Take in the outputs of a run.

        Args:
            found: The outputs by name.
            rows: How many samples were run.

        Returns:
            Names of the tensors that hold NaN or infinity: maxima and minima show infinities, sums show NaN.
        """
        items = self.reductions.items
        if not items:
            return ()
        highs = found[f"{_PREFIX}.high"]
        lows, sums = found.get(f"{_PREFIX}.low", self.lows), found.get(f"{_PREFIX}.sum", self.lows[:0])
        if not (np.isfinite(highs).all() and np.isfinite(lows).all()) or np.isnan(sums).any():
            return tuple(self._broken(highs, lows, sums))
        np.maximum(self.highs, highs, out=self.highs)
        np.minimum(self.lows, lows, out=self.lows)
        for number, item in enumerate(items):
            counted = int(found[f"{_PREFIX}.{number}.size"]) if item.counted else item.count(rows)
            self.counts[number] += counted
        return ()

    def _broken(
        self, highs: NDArray[np.float32], lows: NDArray[np.float32], sums: NDArray[np.float32]
    ) -> Iterator[str]:
        for item, high, low in self._slices():
            finite = np.isfinite(highs[high]).all() and np.isfinite(lows[low]).all()
            if not finite or np.isnan(sums[low]).any():
                yield item.point.tensor

    def _slices(self) -> Iterator[tuple[Reduction, slice, slice]]:
        """Each tensor's places in the vectors of largest and of smallest values."""
        items = self.reductions.items
        highs = [0, *itertools.accumulate(i.channels for i in items)]
        lows = [0, *itertools.accumulate(0 if i.nonnegative else i.channels for i in items)]
        for number, item in enumerate(items):
            yield item, slice(highs[number], highs[number + 1]), slice(lows[number], lows[number + 1])

    def absmax(self) -> dict[str, float]:
        """The largest magnitude so far of the tensors whose rows are given out."""
        return {
            item.point.tensor: max(
                float(self.highs[high].max()), 0.0 if item.nonnegative else -float(self.lows[low].min())
            )
            for item, high, low in self._slices()
            if item.sampled
        }

    def stats(self) -> dict[str, TensorStats]:
        """What was found, by name of the tensor; histograms are the caller's."""
        found: dict[str, TensorStats] = {}
        for (item, high, low), count in zip(self._slices(), self.counts, strict=True):
            if not count:
                found[item.point.tensor] = TensorStats(math.inf, -math.inf, 0, None, None)
                continue
            highs = self.highs[high]
            lows = np.zeros_like(highs) if item.nonnegative else self.lows[low]
            absmax = None
            if StatKind.CHANNEL_ABSMAX in item.point.kinds:
                absmax = np.maximum(np.abs(lows), np.abs(highs))
            smallest, largest = float(lows.min()) + 0.0, float(highs.max()) + 0.0
            found[item.point.tensor] = TensorStats(smallest, largest, count, None, absmax)
        return found


def reductions_for(
    points: Sequence[StatisticPoint],
    shapes: Mapping[str, Sequence[Dim] | None],
    inputs: Sequence[InputInfo],
    nonnegative: Collection[str] = (),
    *,
    opset: int = _STEPS,
) -> Reductions:
    """The points that need extremes only, and can be reduced in the graph.

    Args:
        points: What is to be measured.
        shapes: Shape of each tensor, None where not even the rank is known; tensors of rank below 3 are small anyway.
        inputs: The model's inputs.
        nonnegative: Names of the tensors that come from a Relu or a Clip at 0.
        opset: The model's operator set.
    """
    rule = batching(inputs)
    batch = {i.shape[0] for i in inputs if i.name in rule.carried and i.shape} - {None}
    items: list[Reduction] = []
    for point in points:
        shape = shapes.get(point.tensor)
        if shape is None or len(shape) < 3 or _WHOLE & point.kinds:
            continue
        sampled = StatKind.HISTOGRAM in point.kinds
        if sampled and (opset < _STEPS or not _has_many_rows(shape)):
            continue
        if (StatKind.CHANNEL_ABSMAX in point.kinds and point.axis != 1) or not isinstance(shape[1], int):
            continue
        lengths = [d for d in shape[2:] if isinstance(d, int)]
        inner = math.prod(lengths) if len(lengths) == len(shape) - 2 else 0
        rows = shape[0] if isinstance(shape[0], int) else None
        counted = not inner or (rows is None and (shape[0] is None or shape[0] not in batch))
        items.append(Reduction(point, len(shape), shape[1], inner, rows, counted, sampled, point.tensor in nonnegative))
    return Reductions(tuple(items))


def _has_many_rows(shape: Sequence[Dim]) -> bool:
    """Whether some of the rows along axis 2 tell enough, whatever the order of the axes; all channels are in them."""
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    return len(shape) == 4 and len(sizes) == 3 and math.prod(sizes) >= LARGE and sizes[1] >= 2 * THINNING
