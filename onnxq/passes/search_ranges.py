"""Chooses the range of an activation by what it does to the layers that read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.algos import activation as activation_methods
from onnxq.algos.affine import fake_quantize, params_from_range
from onnxq.calib.chunks import first_batches
from onnxq.calib.engine import batch_for
from onnxq.calib.feeds import Feed
from onnxq.calib.segments import piece_session, read_names
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._inputs import inputs_of
from onnxq.passes._measured import groups_of, is_measured, merged_stats
from onnxq.passes._readers import Effect, effect_of
from onnxq.plan import ActivationPlan, Plan
from onnxq.recipe import OutputMSE
from onnxq.runtime import make_session, thread_count
from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats

if TYPE_CHECKING:
    from onnxq.context import QuantContext

Range = tuple[float, float]

_TINY = 1e-30
_PATIENCE = 2
_ENOUGH = 1 << 13
"""So many values show what happens to large ones; of fewer, the largest are missing."""

FACTORS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2)
"""Parts of the observed range that are tried."""


@dataclass(frozen=True)
class SearchRanges(Pass):
    """Writes ``ctx.ranges`` for every activation whose method is `output_mse`.

    The squared error of a tensor itself, which its histogram gives, is a good guide in general. It
    says little where a few huge values are cut off by a bounded Clip behind the next layer anyway. So
    there, each candidate range is judged by the relative squared error in the outputs of the layers
    that read the tensor, behind their Clips; residual Adds, pools and what only moves values are
    looked through. Everything else stays float meanwhile. Where the samples hold a few values only,
    large values they do not show count as they stand in the histogram. Only the readers are run again, so the cost
    grows linearly with the model: that of about a dozen forward passes over `samples` samples.
    Everywhere else the range with the least squared error of the tensor is left to ChooseParams.

    Given:
        a plan, its statistics with histograms, and ``ctx.reader``.
    Result:
        the graph unchanged; `ctx.ranges` by group.

    Source: the layer-wise objective of Nagel et al., "A White Paper on Neural Network Quantization",
    2021, section 3.1, carried over from weights to activations.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Search all groups.

        Raises:
            DataError: If the data do not fit the model.
        """
        plan = ctx.plan or Plan()
        wanted = {g: m for g, m in groups_of(plan).items() if isinstance(m[0].method, OutputMSE)}
        if not wanted or ctx.reader is None:
            return PassReport()
        order = {n.name: i for i, n in enumerate(graph.nodes())}
        searches = [s for g, m in wanted.items() if (s := _prepare(graph, plan, order, g, m, ctx)) is not None]
        inputs = inputs_of(graph)
        count = max(m[0].method.samples for m in wanted.values() if isinstance(m[0].method, OutputMSE))
        size = 4 * sum(s.count for s in ctx.stats.values()) / max(ctx.samples, 1)
        feeds = first_batches(ctx.reader, count, batch_for(size), inputs)
        _measure(graph, searches, feeds, ctx)
        ctx.ranges = {s.group: s.best() for s in searches}
        return PassReport(notes=(f"{len(searches)} ranges chosen by their effect on the layers behind them",))


@dataclass(eq=False)
class _Search:
    """The candidates of one group and the errors found so far."""

    group: str
    spec: QuantSpec
    effect: Effect
    stats: TensorStats
    ranges: list[Range]
    errors: NDArray[np.float64]

    def unseen(self, candidate: Range, seen: Range) -> float:
        """Relative squared error of the values that a candidate cuts off and that no sample held."""
        centers, counts = self.stats.require_histogram().nonzero()
        cut = centers - np.clip(centers, min(candidate[0], seen[0]), max(candidate[1], seen[1]))
        return float(np.dot(cut**2, counts)) / max(float(np.dot(centers**2, counts)), _TINY)

    def best(self) -> Range:
        return self.ranges[int(np.argmin(self.errors))]


def _prepare(
    graph: GraphModel,
    plan: Plan,
    order: Mapping[str, int],
    group: str,
    members: list[ActivationPlan],
    ctx: QuantContext,
) -> _Search | None:
    sources = [m.tensor for m in members if is_measured(graph, plan, m)]
    readers = [u for m in members for u in _uses(graph, m)]
    effect = effect_of(graph, frozenset(plan.absorbed), order, sources, readers)
    if not effect.saturates:
        return None
    stats, bounds = merged_stats(members, ctx.stats)
    spec = members[0].spec
    start = activation_methods.find_range(stats, spec, activation_methods.mse.MseConfig())
    candidates = [(max(stats.low * f, bounds[0]), min(stats.high * f, bounds[1])) for f in FACTORS]
    start = (max(start[0], bounds[0]), min(start[1], bounds[1]))
    ranges = sorted({start, *candidates}, key=lambda r: r[0] - r[1])
    return _Search(group, spec, effect, stats, ranges, np.full(len(ranges), np.inf))


def _uses(graph: GraphModel, member: ActivationPlan) -> Iterator[Node]:
    if member.everywhere:
        for use in graph.consumers(graph.tensor(member.tensor)):
            yield use.node
    else:
        for name, _ in member.readers:
            yield graph.node(name)


@dataclass(frozen=True)
class _Judge:
    """Runs the readers of one group after the other on the values they are fed.

    Attributes:
        graph: The graph, for its weights.
        skeleton: The model without its weights.
        nodes: Its nodes by name.
        constants: Its constants by name.
        values: For each batch, every tensor the pieces are fed.
    """

    graph: GraphModel
    skeleton: onnx.ModelProto
    nodes: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, Tensor]
    values: Sequence[Feed]

    def __call__(self, search: _Search) -> None:
        """Try the candidates, the largest first, until the error has grown twice."""
        protos = [self.nodes[n.name] for n in search.effect.nodes]
        made = {name for proto in protos for name in proto.output}
        reads = {name for proto in protos for name in read_names(proto)} - made
        fed = sorted(reads - self.constants.keys())
        weights = [self._weight(name) for name in sorted(reads & self.constants.keys())]
        outputs = list(search.effect.outputs)
        example = {name: self.values[0][name] for name in fed}
        session = piece_session(self.skeleton, protos, weights, example, outputs)
        feeds = [{name: values[name] for name in fed} for values in self.values]
        expected = [session.run(outputs, feed) for feed in feeds]
        powers = [max(sum(map(_power, ys)), _TINY) for ys in zip(*expected, strict=True)]
        shown = [feed[name] for feed in feeds for name in search.effect.sources if name in feed]
        seen = (min(float(x.min()) for x in shown), max(float(x.max()) for x in shown))
        few = sum(x.size for x in shown) < _ENOUGH
        grown = 0
        for index, (low, high) in enumerate(search.ranges):
            params = params_from_range(low, high, search.spec)
            errors = np.zeros(len(outputs))
            for feed, reference in zip(feeds, expected, strict=True):
                rounded = {n: fake_quantize(feed[n], params) for n in search.effect.sources if n in feed}
                found = session.run(outputs, {**feed, **rounded})
                errors += [_power(a - b) for a, b in zip(found, reference, strict=True)]
            search.errors[index] = float((errors / powers).sum())
            if few:
                search.errors[index] += len(outputs) * search.unseen((low, high), seen)
            grown = grown + 1 if search.errors[index] > search.errors[: index + 1].min() else 0
            if grown == _PATIENCE:
                return

    def _weight(self, name: str) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.asarray(self.graph.value(self.constants[name]), order="C"), name)


def _measure(graph: GraphModel, searches: Sequence[_Search], feeds: Sequence[Feed], ctx: QuantContext) -> None:
    skeleton = graph.skeleton()
    constants = {t.name: t for t in graph.constants()}
    workers = thread_count(ctx.threads)
    fed = {i.name for i in inputs_of(graph)}
    taps = sorted({n for s in searches for n in s.effect.reads(set(constants)) if n not in fed})
    session = make_session(graph, threads=1, outputs=taps) if taps else None

    def run(feed: Feed) -> Feed:
        return feed if session is None else {**feed, **dict(zip(taps, session.run(taps, feed), strict=True))}

    with ThreadPoolExecutor(workers) as pool:
        judge = _Judge(graph, skeleton, {n.name: n for n in skeleton.graph.node}, constants, list(pool.map(run, feeds)))
        for done, _ in enumerate(pool.map(judge, searches), 1):
            if ctx.progress is not None:
                ctx.progress("searching ranges", done, len(searches))


def _power(x: NDArray[np.float32]) -> float:
    flat = x.reshape(-1)
    return float(np.dot(flat, flat))
