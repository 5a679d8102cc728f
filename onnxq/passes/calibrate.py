"""Measures the activations of the plan on the calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from onnxq.algos.activation import method_info, shares_of
from onnxq.calib.known import KnownStats, unite
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.errors import DataError
from onnxq.graph import GraphModel
from onnxq.observers import ObserverRequest
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._collect import measure
from onnxq.passes._depthwise import links
from onnxq.passes._measured import is_measured
from onnxq.plan import Plan
from onnxq.recipe import ActivationMethod, Custom, OutputMSE

if TYPE_CHECKING:
    from onnxq.context import QuantContext


@dataclass(frozen=True)
class Calibrate(Pass):
    """Runs the model over the calibration data once and writes ``ctx.stats`` for every planned activation.

    The session keeps all of ONNX Runtime's optimizations; only tensors that need numbers of their own
    become outputs: what merely passes another tensor on takes that one's numbers. What ``ctx.known`` holds is
    taken from there.

    Given:
        a plan, and ``ctx.reader`` if the plan has activations.
    Result:
        the graph unchanged; `ctx.stats` by tensor name.

    Attributes:
        channels: Measure the channels in front of depthwise convolutions, for SpreadChannels, and no
            histogram there.
        also: Plans of other recipes: what they need is measured in the same run, for ``ctx.known``.
    """

    channels: bool = False
    also: tuple[Plan, ...] = ()

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATS})
    preserves_function: ClassVar[bool] = True

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `DataError` if data are needed and there are none."""
        plan = ctx.plan or Plan()
        if not plan.activations or ctx.reader is not None:
            return
        if ctx.known is None or ctx.known.missing(_points(graph, plan, channels=self.channels), _clamped(plan)):
            raise DataError(
                f"{len(plan.activations)} activations need calibration data and none were given; "
                "give samples (--data), or ask for random ones by name (--random, calibration: {random: true})"
            )

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Measure.

        Raises:
            CalibrationError: If an activation holds NaN or infinity.
            DataError: If the data do not fit the model.
        """
        plan = ctx.plan or Plan()
        known = KnownStats() if ctx.known is None else ctx.known
        clamped = _clamped(plan)
        wanted = list(_points(graph, plan, channels=self.channels))
        missing = known.missing(wanted, clamped)
        for run in [p for p in missing if not p.batches], [p for p in missing if p.batches]:
            self._measure(graph, ctx, known, unite([*run, *self._more(graph, known, clamped, run)]), clamped)
        ctx.stats = {}
        for point in wanted:
            seen = known.take(point, clamped)
            if seen is not None and point.tensor in ctx.stats:
                both = (*(ctx.stats[point.tensor].observed or ()), *(seen.observed or ()))
                seen = replace(ctx.stats[point.tensor], observed=both)
            if seen is not None:
                ctx.stats[point.tensor] = seen
        if not ctx.stats:
            return PassReport()
        ctx.samples = known.samples
        return PassReport(notes=(f"{len(ctx.stats)} tensors measured over {ctx.samples} samples",))

    def _more(
        self, graph: GraphModel, known: KnownStats, clamped: frozenset[str], run: Sequence[StatisticPoint]
    ) -> Iterator[StatisticPoint]:
        """What other plans need and a run can measure without running the model in another way."""
        if not run or any(point.singly for point in run):
            return
        for plan in self.also:
            differing = clamped ^ _clamped(plan)
            for point in known.missing(_points(graph, plan, channels=self.channels), clamped):
                if point.tensor not in differing and not point.singly:
                    yield point

    def _measure(
        self,
        graph: GraphModel,
        ctx: QuantContext,
        known: KnownStats,
        points: Sequence[StatisticPoint],
        clamped: frozenset[str],
    ) -> None:
        known.add(points, measure(graph, ctx, points, nonnegative=clamped), clamped)
        if points:
            known.samples = ctx.samples


def _clamped(plan: Plan) -> frozenset[str]:
    """Names of the tensors without values below zero."""
    return frozenset(a.tensor for a in plan.activations.values() if a.bounds[0] == 0)


def _points(graph: GraphModel, plan: Plan, *, channels: bool) -> Iterator[StatisticPoint]:
    spread = {link.activation.tensor for link in links(graph, plan)} if channels else set()
    kinds: dict[str, StatKind] = {}
    shares: dict[str, set[float]] = {}
    observers: dict[str, dict[ObserverRequest, None]] = {}
    for activation in plan.activations.values():
        name = activation.tensor
        if name in spread:
            kinds[name] = StatKind.CHANNEL_ABSMAX
        elif is_measured(graph, plan, activation):  # readers may want one tensor in several ways
            kinds[name] = kinds.get(name, StatKind.RANGE) | _kind(activation.method)
            shares.setdefault(name, set()).update(_shares(activation.method))
            if isinstance(activation.method, Custom):
                observers.setdefault(name, {})[activation.method.request] = None
    for name, kind in kinds.items():
        simple = kind if kind == StatKind.RANGE else kind & ~StatKind.RANGE
        yield from _rounds(name, simple, tuple(sorted(shares.get(name, ()))), tuple(observers.get(name, ())))


def _rounds(
    name: str, kind: StatKind, shares: tuple[float, ...], observers: tuple[ObserverRequest, ...]
) -> Iterator[StatisticPoint]:
    """The points of one tensor; what wants the batches of the data takes a run of its own."""
    single = tuple(request for request in observers if not request.batches)
    whole = tuple(request for request in observers if request.batches)
    others = kind if single else kind & ~StatKind.OBSERVED
    if others:
        yield StatisticPoint(name, others, shares=shares, observers=single)
    if whole:
        yield StatisticPoint(name, StatKind.OBSERVED, observers=whole)


def _kind(method: ActivationMethod) -> StatKind:
    if isinstance(method, OutputMSE):
        return StatKind.HISTOGRAM
    if isinstance(method, Custom):
        return StatKind.OBSERVED
    info = method_info(method.name)
    if info.needs_histogram:
        return StatKind.HISTOGRAM
    if info.needs_peaks:
        return StatKind.PEAKS
    return StatKind.QUANTILES if _shares(method) else StatKind.RANGE


def _shares(method: ActivationMethod) -> tuple[float, ...]:
    return () if isinstance(method, (OutputMSE, Custom)) else shares_of(method.name, method.parameters())
