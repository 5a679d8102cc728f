"""Quantizers of activations in a training graph: their parameters, and the operators that use them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.lsq import TINY, start_of_range
from onnxq.graph import GraphModel, Tensor
from onnxq.learned import LearnedRange
from onnxq.passes._measured import groups_of, is_measured
from onnxq.passes._training_ops import Chain
from onnxq.plan import ActivationPlan, Plan
from onnxq.recipe import PACT, ULQ, LSQPlus

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.recipe import TrainedActivation
    from onnxq.spec import QuantParams

_NONNEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax"})


def learned_ranges(graph: GraphModel, plan: Plan, ctx: QuantContext) -> tuple[LearnedRange, ...]:
    """Make the parameters of every group of activations; they begin with what calibration has given."""
    return tuple(_learned(graph, plan, group, members, ctx) for group, members in groups_of(plan).items())


def _learned(
    graph: GraphModel, plan: Plan, group: str, members: list[ActivationPlan], ctx: QuantContext
) -> LearnedRange:
    method: TrainedActivation = members[0].trained or ULQ()
    params, keys = ctx.params[members[0].key], tuple(m.key for m in members)
    sources = [m for m in members if is_measured(graph, plan, m)]
    bounds = (min(m.bounds[0] for m in sources), max(m.bounds[1] for m in sources))
    positive = all(m.bounds[0] >= 0 or _never_negative(graph, m) for m in sources)
    match method:
        case ULQ():
            fixed = positive if method.fixed_min is None else method.fixed_min
            return _ulq(graph, group, keys, params, method, fixed, bounds, ctx)
        case PACT():
            high, low = start_of_range(params, fixed_min=positive)
            start = max(high, -low) if method.alpha is None else method.alpha
            factor = (start if method.rate is None else method.rate) * ctx.recipe.training.scale_rate
            names = (_parameter(graph, f"{group}.alpha", start / factor),)
            return LearnedRange(group, "pact", params.spec, keys, names, factor, fixed_min=positive, bounds=bounds)
        case LSQPlus():
            return _lsq_plus(graph, group, keys, params, ctx.recipe.training.scale_rate)


def _ulq(
    graph: GraphModel, group: str, keys: tuple[str, ...], params: QuantParams, method: ULQ, fixed: bool,
    bounds: tuple[float, float], ctx: QuantContext,
) -> LearnedRange:  # fmt: skip
    high, low = start_of_range(params, fixed_min=fixed)
    if method.clip_max is not None and method.clip_min is not None:
        high, low = method.clip_max, method.clip_min
    factor = max(high, -low) * ctx.recipe.training.scale_rate
    names = [_parameter(graph, f"{group}.clip_max", high / factor)]
    if not (fixed or params.spec.symmetric):
        names.append(_parameter(graph, f"{group}.clip_min", low / factor))
    return LearnedRange(group, "ulq", params.spec, keys, tuple(names), factor, fixed_min=fixed, bounds=bounds)


def _lsq_plus(
    graph: GraphModel, group: str, keys: tuple[str, ...], params: QuantParams, rate: float
) -> LearnedRange:  # fmt: skip
    step = float(params.scale)
    names = [_parameter(graph, f"{group}.log_step", math.log(step) / rate)]
    factor = max(abs(float(params.low)), abs(float(params.high))) * rate
    if not params.spec.symmetric:
        names.append(_parameter(graph, f"{group}.offset", -float(params.zero_point) * step / factor))
    return LearnedRange(group, "lsq_plus", params.spec, keys, tuple(names), factor, rate)


def _never_negative(graph: GraphModel, activation: ActivationPlan) -> bool:
    maker = graph.producer(graph.tensor(activation.tensor))
    return maker is not None and maker.op in _NONNEGATIVE


def _parameter(graph: GraphModel, name: str, value: float) -> str:
    return str(graph.add_constant(name, np.asarray([value], np.float32)).name)


class _Ends(NamedTuple):
    """What limits and rounds a tensor: three tensors of shape (1,)."""

    step: Tensor
    low: Tensor
    high: Tensor


class RangeWriter:
    """Writes quantizers of activations.

    The numbers of all groups of a kind are computed together, as vectors: a training step is not to consist of
    thousands of operators on single numbers.

    Args:
        graph: Where they go; it has the parameters.
        ranges: What is learned.
    """

    def __init__(self, graph: GraphModel, ranges: Sequence[LearnedRange]) -> None:
        self._graph = graph
        self._learned = {learned.group: learned for learned in ranges}
        self._ends: dict[str, _Ends] = {}
        kinds: tuple[tuple[Callable[[Sequence[LearnedRange], str], None], Callable[[LearnedRange], bool]], ...] = (
            (self._asymmetric, lambda r: r.method != "lsq_plus" and not r.spec.symmetric),
            (self._symmetric, lambda r: r.method != "lsq_plus" and r.spec.symmetric),
            (self._steps, lambda r: r.method == "lsq_plus"),
        )
        for write, belongs in kinds:
            members = sorted(filter(belongs, ranges), key=lambda r: -len(r.parameters))
            if members:
                write(members, write.__name__.strip("_"))

    def step(self, group: str) -> Tensor:
        """The step of a group, shape (1,)."""
        return self._ends[group].step

    def apply(self, tensor: Tensor, group: str, key: str, result: Tensor | None = None) -> Tensor:
        """The rounded values of `tensor`.

        Args:
            tensor: What to round.
            group: Name of the group it belongs to.
            key: What the operators are called after.
            result: Where the values go; a new tensor by default.
        """
        ends, chain = self._ends[group], Chain(self._graph, f"{key}/fake_quant")
        limited = chain.op("Min", chain.op("Max", tensor, ends.low), ends.high)
        steps = chain.op("Div", limited, ends.step)
        if self._learned[group].method == "pact":  # the end learns from what it cuts off alone
            rounded = chain.exchange(limited, chain.op("Mul", chain.op("Round", steps), ends.step))
        else:
            rounded = chain.op("Mul", chain.exchange(steps, chain.op("Round", steps)), ends.step)
        if result is not None:
            self._graph.replace_output(self._graph.producer(rounded), 0, result)
            return result
        return rounded

    def _asymmetric(self, members: Sequence[LearnedRange], name: str) -> None:
        chain = Chain(self._graph, f"fake_quant/{name}")
        levels = chain.number("levels", [r.spec.bounds[1] - r.spec.bounds[0] for r in members])
        high = self._high(chain, members)
        low = self._low(chain, members, high)
        step = chain.op("Div", chain.op("Sub", high, low), levels)
        first = chain.op("Round", chain.op("Div", low, step))
        last = chain.op("Add", first, levels)
        ends = [chain.exchange(end, chain.op("Mul", codes, step)) for end, codes in ((low, first), (high, last))]
        self._split(chain, members, step, *ends)

    def _symmetric(self, members: Sequence[LearnedRange], name: str) -> None:
        chain = Chain(self._graph, f"fake_quant/{name}")
        codes = [[end - r.spec.middle for end in r.spec.bounds] for r in members]
        first, last = (chain.number(n, [pair[i] for pair in codes]) for i, n in enumerate(("first", "last")))
        step = chain.op("Div", self._high(chain, members), last)
        self._split(chain, members, step, chain.op("Mul", first, step), chain.op("Mul", last, step))

    def _steps(self, members: Sequence[LearnedRange], name: str) -> None:
        chain = Chain(self._graph, f"fake_quant/{name}")
        step = chain.op("Exp", self._vector(chain, members, 0, [r.rate for r in members]))
        offset = self._vector(chain, members, 1, [r.factor for r in members])
        shift = chain.op("Div", offset, step)
        shift = chain.exchange(shift, chain.op("Round", shift))
        limits = [(0, 0) if r.spec.symmetric else (-r.spec.bounds[1], -r.spec.bounds[0]) for r in members]
        for op, name_, values in (("Max", "least", [a for a, _ in limits]), ("Min", "most", [b for _, b in limits])):
            shift = chain.op(op, shift, chain.number(name_, values))
        ends = []
        for index, name_ in enumerate(("first", "last")):
            codes = chain.number(
                name_, [r.spec.bounds[index] - (r.spec.middle if r.spec.symmetric else 0) for r in members]
            )
            ends.append(chain.op("Mul", chain.op("Add", codes, shift), step))
        self._split(chain, members, step, *ends)

    def _high(self, chain: Chain, members: Sequence[LearnedRange]) -> Tensor:
        high = self._vector(chain, members, 0, [r.factor for r in members])
        high = chain.op("Max", high, chain.number("tiny", [TINY] * len(members)))
        return self._bounded(chain, "Min", high, [r.bounds[1] for r in members])

    def _low(self, chain: Chain, members: Sequence[LearnedRange], high: Tensor) -> Tensor:
        mirrored = [r.method == "pact" and not r.fixed_min for r in members]
        low = self._vector(chain, members, 1, [r.factor for r in members])
        low = chain.op("Min", low, chain.number("zero", [0.0] * len(members)))
        if any(mirrored):
            low = chain.op("Sub", low, chain.op("Mul", high, chain.number("mirrored", mirrored)))
        return self._bounded(chain, "Max", low, [r.bounds[0] for r in members])

    def _bounded(self, chain: Chain, op: str, ends: Tensor, bounds: list[float]) -> Tensor:
        if not any(map(math.isfinite, bounds)):
            return ends
        limits: NDArray[np.float32] = np.clip(bounds, np.finfo(np.float32).min, np.finfo(np.float32).max)
        return chain.op(op, ends, chain.number("bounds", limits))

    def _vector(self, chain: Chain, members: Sequence[LearnedRange], index: int, factors: list[float]) -> Tensor:
        """Parameter `index` of all members, 0 where the last ones have none, times its factor; shape (members,)."""
        parts = [self._graph.tensor(r.parameters[index]) for r in members if len(r.parameters) > index]
        if len(parts) < len(members):
            parts.append(chain.number("none", [0.0] * (len(members) - len(parts))))
        values = chain.op("Concat", *parts, shape=(len(members),), axis=0) if len(parts) > 1 else parts[0]
        return chain.op("Mul", values, chain.number("factors", factors))

    def _split(self, chain: Chain, members: Sequence[LearnedRange], *vectors: Tensor) -> None:
        """Hand the numbers out to the groups; `vectors` are steps, lower ends and upper ends."""
        parts = [
            self._parts(chain, vector, len(members), name) for vector, name in zip(vectors, _Ends._fields, strict=True)
        ]
        for number, learned in enumerate(members):
            self._ends[learned.group] = _Ends(*(part[number] for part in parts))

    def _parts(self, chain: Chain, vector: Tensor, count: int, name: str) -> Sequence[Tensor]:
        if count == 1:
            return [vector]
        sizes = self._graph.add_constant(f"{chain.name}/{name}_sizes", np.ones(count, np.int64))
        node = self._graph.add_node(
            "Split", [vector, sizes], name=f"{chain.name}/{name}", dtype=np.float32, shape=(1,),
            outputs=[f"{chain.name}/{name}_{i}" for i in range(count)],
        )  # fmt: skip
        return list(node.outputs)
