"""Statistics that were measured before, for whoever chooses numbers more than once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.stats import RoundQuantiles, TensorStats


@dataclass(eq=False)
class KnownStats:
    """What one model's tensors have shown over one set of data.

    Attributes:
        samples: How many samples that were.
    """

    samples: int = 0
    _found: dict[tuple[str, bool], list[tuple[StatisticPoint, TensorStats]]] = field(default_factory=dict, repr=False)

    def add(
        self, points: Iterable[StatisticPoint], stats: Mapping[str, TensorStats], nonnegative: Collection[str] = ()
    ) -> None:
        """Keep what was measured for points.

        Args:
            points: One per tensor.
            stats: By tensor name.
            nonnegative: Names of the tensors whose smallest value was not looked at: it counts as 0.
        """
        for point in points:
            if point.tensor in stats:
                key = point.tensor, point.tensor in nonnegative
                self._found.setdefault(key, []).append((point, stats[point.tensor]))

    def take(self, point: StatisticPoint, nonnegative: Collection[str] = ()) -> TensorStats | None:
        """The statistics of a point, with nothing that it does not ask for; None if they are not known.

        They are the same as if only that point had been measured.
        """
        for known, stats in self._found.get((point.tensor, point.tensor in nonnegative), ()):
            if _covers(known, point):
                return _restricted(stats, point)
        return None

    def missing(self, points: Iterable[StatisticPoint], nonnegative: Collection[str] = ()) -> list[StatisticPoint]:
        """The points that are not known."""
        return [point for point in points if self.take(point, nonnegative) is None]


def unite(points: Iterable[StatisticPoint]) -> list[StatisticPoint]:
    """One point per tensor that asks for everything that points of that tensor do; in order of first appearance.

    Where points count channels along different axes the first one stays as it is.
    """
    united: dict[str, StatisticPoint] = {}
    for point in points:
        old = united.setdefault(point.tensor, point)
        if old.axis == point.axis:
            united[point.tensor] = replace(
                old,
                kinds=old.kinds | point.kinds,
                shares=tuple(sorted({*old.shares, *point.shares})),
                observers=tuple(dict.fromkeys((*old.observers, *point.observers))),
            )
    return list(united.values())


def _covers(known: StatisticPoint, wanted: StatisticPoint) -> bool:
    return (
        not wanted.kinds & ~(known.kinds | StatKind.RANGE)
        and known.axis == wanted.axis
        and set(wanted.shares) <= set(known.shares)
        and set(wanted.observers) <= set(known.observers)
    )


def _restricted(stats: TensorStats, point: StatisticPoint) -> TensorStats:
    kinds = point.kinds
    sums = StatKind.CHANNEL_SUM in kinds
    quantiles = stats.quantiles if StatKind.QUANTILES in kinds else None
    if quantiles is not None and quantiles.shares != point.shares:
        by_share = dict(zip(quantiles.shares, quantiles.sums, strict=True))
        quantiles = RoundQuantiles(point.shares, tuple(by_share[s] for s in point.shares), quantiles.rounds)
    observed = {seen.request: seen for seen in stats.observed or ()}
    return TensorStats(
        stats.low,
        stats.high,
        stats.count,
        stats.histogram if StatKind.HISTOGRAM in kinds else None,
        stats.channel_absmax if StatKind.CHANNEL_ABSMAX in kinds else None,
        stats.channel_sum if sums else None,
        stats.channel_count if sums else 0,
        quantiles,
        stats.peaks if StatKind.PEAKS in kinds else None,
        tuple(observed[request] for request in point.observers if request in observed) or None,
    )
