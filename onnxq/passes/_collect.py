"""Running the model over the calibration data and measuring some of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxq.calib.engine import Collector
from onnxq.calib.feeds import Feed
from onnxq.calib.points import StatisticPoint
from onnxq.calib.reductions import reductions_for
from onnxq.calib.shards import Job
from onnxq.graph import GraphModel
from onnxq.passes._inputs import inputs_of
from onnxq.passes._linear import describe
from onnxq.runtime import make_session, serialized, thread_count
from onnxq.stats import TensorStats

if TYPE_CHECKING:
    from onnxq.context import QuantContext


def measure(
    graph: GraphModel, ctx: QuantContext, points: Sequence[StatisticPoint], *, nonnegative: Collection[str] = ()
) -> dict[str, TensorStats]:
    """Run the model once over ``ctx.reader``; writes ``ctx.samples``.

    The session keeps all of ONNX Runtime's optimizations; only tensors that are measured become outputs, or their
    extremes do.

    Args:
        graph: The model.
        ctx: Its reader, threads, workers and progress are used.
        points: What to measure.
        nonnegative: Names of tensors without values below zero.

    Returns:
        Statistics by tensor name; none without points or without a reader.

    Raises:
        CalibrationError: If a tensor holds NaN or infinity.
        DataError: If the data do not fit the model.
    """
    if not points or ctx.reader is None:
        return {}
    inputs = inputs_of(graph)
    fed = {i.name for i in inputs}
    inner = [p for p in points if p.tensor not in fed]
    shapes = {p.tensor: graph.shape(graph.tensor(p.tensor)) for p in inner}
    reduced = reductions_for(inner, shapes, inputs, nonnegative, opset=graph.opset)
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
    if ctx.workers is None:
        return collector.run(ctx.reader)
    job = Job(serialized(graph, taps or None, extra), tuple(points), inputs, reduced)
    return ctx.workers.collect(collector, job, ctx.reader)


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
