"""Measures the activations of the plan on the calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.algos.activation import method_info
from onnxq.calib.engine import Collector
from onnxq.calib.feeds import Feed
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.calib.reductions import reductions_for
from onnxq.errors import DataError
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._depthwise import links
from onnxq.passes._inputs import inputs_of
from onnxq.passes._linear import describe
from onnxq.passes._measured import is_measured
from onnxq.plan import Plan
from onnxq.recipe import OutputMSE
from onnxq.runtime import make_session, thread_count

if TYPE_CHECKING:
    from onnxq.context import QuantContext


@dataclass(frozen=True)
class Calibrate(Pass):
    """Runs the model over the calibration data once and writes ``ctx.stats`` for every planned activation.

    The session keeps all of ONNX Runtime's optimizations; only tensors that need numbers of their own
    become outputs: what merely passes another tensor on takes that one's numbers.

    Given:
        a plan, and ``ctx.reader`` if the plan has activations.
    Result:
        the graph unchanged; `ctx.stats` by tensor name.

    Attributes:
        channels: Measure the channels in front of depthwise convolutions, for SpreadChannels, and no
            histogram there.
    """

    channels: bool = False

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATS})
    preserves_function: ClassVar[bool] = True

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `DataError` if data are needed and there are none."""
        if ctx.plan is not None and ctx.plan.activations and ctx.reader is None:
            raise DataError(
                f"{len(ctx.plan.activations)} activations need calibration data and none were given; "
                "give samples (--data), or ask for random ones by name (--random, calibration: {random: true})"
            )

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Measure.

        Raises:
            CalibrationError: If an activation holds NaN or infinity.
            DataError: If the data do not fit the model.
        """
        points = list(_points(graph, ctx.plan or Plan(), channels=self.channels))
        if not points or ctx.reader is None:
            ctx.stats = {}
            return PassReport()
        inputs = inputs_of(graph)
        fed = {i.name for i in inputs}
        inner = [p for p in points if p.tensor not in fed]
        clamped = {a.tensor for a in (ctx.plan or Plan()).activations.values() if a.bounds[0] == 0}
        shapes = {p.tensor: graph.shape(graph.tensor(p.tensor)) for p in inner}
        reduced = reductions_for(inner, shapes, inputs, clamped)
        taps = [*(p.tensor for p in inner if p.tensor not in reduced.tensors), *reduced.outputs]
        extra = list(reduced.nodes(graph.opset))
        session = make_session(graph, threads=1, outputs=taps or None, extra=extra)
        total = ctx.reader.len_hint()

        def report(done: int) -> None:
            ctx.samples = done
            if ctx.progress is not None:
                ctx.progress("calibrating", done, total)

        collector = Collector(
            session,
            points,
            inputs,
            workers=thread_count(ctx.threads),
            on_samples=report,
            explain=lambda feed: _explain(graph, feed),
            reduced=reduced,
        )
        ctx.stats = collector.run(ctx.reader)
        return PassReport(notes=(f"{len(points)} tensors measured over {ctx.samples} samples",))


def _points(graph: GraphModel, plan: Plan, *, channels: bool) -> Iterator[StatisticPoint]:
    spread = {link.activation.tensor for link in links(graph, plan)} if channels else set()
    for activation in plan.activations.values():
        if activation.tensor in spread:
            yield StatisticPoint(activation.tensor, StatKind.CHANNEL_ABSMAX)
        elif is_measured(graph, plan, activation):
            histogram = isinstance(activation.method, OutputMSE) or method_info(activation.method.name).needs_histogram
            yield StatisticPoint(activation.tensor, StatKind.HISTOGRAM if histogram else StatKind.RANGE)


def _explain(graph: GraphModel, feed: Feed) -> str:
    """The first node, in order, whose output is not finite though its inputs are."""
    nodes = graph.nodes()
    floats = [t.name for n in nodes for t in n.outputs if t.name and graph.is_float32(t)]
    found = make_session(graph, threads=1, optimize=False, outputs=floats).run(floats, feed)
    broken = {name for name, x in zip(floats, found, strict=True) if not np.isfinite(x).all()}
    broken |= {name for name, x in feed.items() if x.dtype.kind == "f" and not np.isfinite(x).all()}
    for node in nodes:
        if any(t.name in broken for t in node.outputs):
            if any(t.name in broken for t in node.inputs):
                return f" (already in its input: see {describe(node)})"
            return f"; the first node that gives such a value is {describe(node)}"
    return ""
