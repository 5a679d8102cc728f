"""How the values of activations and weights are spread, in a few hundred bytes each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.engine import Collector
from onnxq.calib.feeds import Feed
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.graph import GraphModel
from onnxq.passes._inputs import inputs_of
from onnxq.report.numbers import Numbers
from onnxq.report.page import ChannelRanges, TensorHistogram
from onnxq.runtime import make_session, thread_count
from onnxq.stats import HALF, TensorStats

BARS = 96
"""Most bins of a histogram in a report."""
CHANNELS = 256
"""Most channels of a weight that are shown one by one; where there are more, neighbours are shown together."""
_AT_A_TIME = 128
"""Histograms that are counted in one run over the data: each takes 128 KiB per thread."""


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """How the values of one tensor are spread.

    Attributes:
        low: Smallest value.
        high: Largest value.
        count: How many values there are.
        edges: Lower edge of the first bin and upper edge of the last one.
        counts: Values in each bin, at most `BARS` of them; empty where only the range is known.
        clipped: Share of the values that no code comes near; None where it is not known.
    """

    low: float
    high: float
    count: int
    edges: tuple[float, float]
    counts: tuple[int, ...]
    clipped: float | None = None


def distribution(stats: TensorStats, numbers: Numbers | None = None) -> Distribution:
    """What a report says about measured values.

    Args:
        stats: What was measured.
        numbers: How the tensor becomes codes, where it does.
    """
    histogram = stats.histogram
    if histogram is None or not stats.count or not histogram.total:
        return Distribution(stats.low, stats.high, stats.count, (stats.low, stats.high), ())
    filled = np.flatnonzero(histogram.counts)
    first, last = int(filled[0]), int(filled[-1]) + 1
    run = math.ceil((last - first) / BARS)
    parts = np.zeros(-(-(last - first) // run) * run, np.int64)
    parts[: last - first] = histogram.counts[first:last]
    counts = parts.reshape(-1, run).sum(axis=1)
    edges = ((first - HALF) * histogram.width, (first - HALF + parts.size) * histogram.width)
    clipped = None
    if numbers is not None:
        low, high = numbers.range
        step = float(numbers.scale.max()) / 2
        centers, weights = histogram.nonzero()
        out = weights[(centers < low - step) | (centers > high + step)].sum()
        clipped = float(out) / histogram.total
    return Distribution(stats.low, stats.high, stats.count, edges, tuple(counts.tolist()), clipped)


def measured(
    graph: GraphModel, tensors: Sequence[str], numbers: Mapping[str, Numbers], feeds: Iterable[Feed], *, threads: int
) -> dict[str, Distribution]:
    """Run a float model and look at some of its tensors.

    Args:
        graph: The model.
        tensors: Names of float tensors: inputs or activations.
        numbers: How they become codes, by name.
        feeds: The data; they are gone through more than once where there are many tensors.
        threads: Threads; 0 for all cores.

    Raises:
        CalibrationError: If a value is not finite.
        DataError: If the data do not fit the model.
    """
    inputs = inputs_of(graph)
    fed = {info.name for info in inputs}
    found: dict[str, Distribution] = {}
    for start in range(0, len(tensors), _AT_A_TIME):
        names = tensors[start : start + _AT_A_TIME]
        session = make_session(graph, threads=1, outputs=[n for n in names if n not in fed] or None)
        points = [StatisticPoint(name, StatKind.HISTOGRAM) for name in names]
        stats = Collector(session, points, inputs, workers=thread_count(threads)).run(feeds)
        found |= {name: distribution(stats[name], numbers.get(name)) for name in names if stats[name].count}
    return found


def histogram_of(name: str, spread: Distribution, numbers: Numbers | None, remark: str = "") -> TensorHistogram:
    """The block that shows a distribution.

    Args:
        name: Name of the tensor.
        spread: How its values are spread.
        numbers: How it becomes codes, where it does.
        remark: What else to say.
    """
    parts = [f"{spread.count:,} values from {spread.low:.5g} to {spread.high:.5g}"]
    if numbers is not None:
        low, high = numbers.range
        by = f" by {numbers.method}" if numbers.method else ""
        parts.append(f"{numbers.kind} codes from {low:.5g} to {high:.5g}{by}, scale {numbers.scale_text}")
    if spread.clipped is not None:
        parts.append(f"{100 * spread.clipped:.3g} % of the values are cut off")
    clip = None if numbers is None else numbers.range
    return TensorHistogram(name, *spread.edges, spread.counts, clip, "; ".join([*parts, *filter(None, [remark])]))


def channels_of(name: str, weight: NDArray[np.floating], axis: int, numbers: Numbers | None) -> ChannelRanges:
    """The block that shows the channels of a weight.

    Args:
        name: Its name.
        weight: Its values, at least one dimension.
        axis: Axis of the channels.
        numbers: How it becomes codes, where it does.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    low, high = weight.min(axis=others), weight.max(axis=others)
    step = math.ceil(low.size / CHANNELS)
    clip: list[tuple[float, float]] = []
    parts = [f"{low.size} channels along axis {axis}"]
    if numbers is not None:
        parts += [numbers.kind, f"scale {numbers.scale_text}", *filter(None, [numbers.method])]
        if numbers.axis == axis or numbers.low.size == 1:
            floor, ceiling = (np.broadcast_to(v, low.shape) for v in (numbers.low, numbers.high))
            clip = list(zip(_joined(floor, step, np.minimum), _joined(ceiling, step, np.maximum), strict=True))
    ranges = _joined(low, step, np.minimum), _joined(high, step, np.maximum)
    return ChannelRanges(name, *ranges, step, clip, ", ".join(parts))


def _joined(values: NDArray[np.floating], step: int, join: np.ufunc) -> list[float]:
    """The extreme of each run of `step` values."""
    found: list[float] = join.reduceat(values, np.arange(0, values.size, step)).astype(float).tolist()
    return found
