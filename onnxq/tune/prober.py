"""Quantizes a model by one recipe or another and measures what becomes of it: one calibration for most recipes."""

from __future__ import annotations

import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from onnxq import stages
from onnxq.calib.feeds import Feed
from onnxq.calib.readers import DataLike
from onnxq.errors import CalibrationError, GraphError, ModelError, PassError, RecipeError
from onnxq.graph import GraphModel
from onnxq.pipeline import ModelLike, Progress, Result, quantize
from onnxq.plan import Plan
from onnxq.recipe import Recipe
from onnxq.report.benchmark import Clock, benchmark
from onnxq.targets import Target, get_target
from onnxq.tune.costs import LayerCosts
from onnxq.tune.costs_measured import count_costs, measure_costs
from onnxq.tune.evaluation import Metric, Scorer
from onnxq.tune.history import Outcome, State
from onnxq.tune.repairs import Change, Repair, ladder, repairs_for, wide_repair
from onnxq.tune.sensitivity import rank_layers

ROUNDS = 15
_RESULTS_KEPT = 2
_REFUSALS = (RecipeError, GraphError, ModelError, CalibrationError, PassError)
"""What a recipe can fail with that is no fault of the user's: it is not for this model or backend."""


class Machine(Protocol):
    """Where costs come from."""

    def costs(self, prepared: GraphModel, quantized: GraphModel, plan: Plan, feed: Feed) -> LayerCosts:
        """What the layers of a model cost."""
        ...

    def times(self, graphs: Sequence[GraphModel], feed: Feed) -> Sequence[float] | None:
        """Milliseconds of one inference of each model, taking turns; None where that says nothing."""
        ...


class ThisMachine:
    """Measures with ONNX Runtime on this machine.

    Args:
        threads: Threads of ONNX Runtime; 0 for all cores.
    """

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads

    def costs(self, prepared: GraphModel, quantized: GraphModel, plan: Plan, feed: Feed) -> LayerCosts:
        """Profile both models."""
        return measure_costs(prepared, quantized, plan, feed, threads=self._threads)

    def times(self, graphs: Sequence[GraphModel], feed: Feed) -> Sequence[float] | None:
        """Run the models in turn."""
        # Of one thread the time on the processor: what other processes take is not counted.
        clock = Clock(now=time.process_time) if self._threads == 1 else Clock()
        found = benchmark(graphs, [feed], threads=self._threads, rounds=ROUNDS, clock=clock)
        return [timing.quartiles[0] for timing in found.timings]  # other processes only add to it


class Elsewhere:
    """A machine that is not at hand: operations are counted."""

    def costs(self, prepared: GraphModel, quantized: GraphModel, plan: Plan, feed: Feed) -> LayerCosts:
        """Count operations."""
        del quantized, feed
        return count_costs(prepared, plan)

    def times(self, graphs: Sequence[GraphModel], feed: Feed) -> Sequence[float] | None:
        """Nothing is known."""
        del graphs, feed
        return None


class ModelProber:
    """Measures a model that is quantized in one way or another.

    Args:
        model: The float model.
        graph: The same as a graph.
        data: Calibration data.
        recipe: The recipe that tuning starts with.
        scorer: Scores models.
        state: What is known already.
        machine: Where costs come from.
        threads: Threads of calibration.
        clock: Seconds since any moment.
        progress: Is told how far it is.
    """

    def __init__(
        self,
        model: ModelLike,
        graph: GraphModel,
        data: DataLike | None,
        recipe: Recipe,
        scorer: Scorer,
        state: State,
        machine: Machine,
        *,
        threads: int = 0,
        clock: Callable[[], float] = time.monotonic,
        progress: Progress | None = None,
    ) -> None:
        self.recipe = recipe
        self._model = model
        self._graph = graph
        self._data = data
        self._scorer = scorer
        self._state = state
        self._machine = machine
        self._threads = threads
        self._clock = clock
        self._progress = progress
        self._measured: dict[str, stages.Measured] = {}
        self._results: OrderedDict[str, Result] = OrderedDict()

    @property
    def metric(self) -> Metric:
        """What is measured."""
        return self._scorer.metric

    @property
    def reference(self) -> float:
        """The float model's score."""
        return self._scorer.reference

    @property
    def target(self) -> Target:
        """The backend."""
        return get_target(self.recipe.target)

    @cached_property
    def first(self) -> Result:
        """The model quantized by the recipe that tuning starts with."""
        return self.quantized(self.recipe)

    @cached_property
    def layers(self) -> Sequence[str]:
        """The nodes that compute with codes, in topological order."""
        return tuple(d.node for d in self.first.plan.decisions if d.role == "quantized")

    @cached_property
    def weight_bytes(self) -> Mapping[str, int]:
        """By layer, how many bytes its weights take more in float."""
        graph = self._prepared(self.first)
        found: dict[str, int] = {}
        for weight in self.first.plan.weights:
            shape = graph.shape(graph.tensor(weight.tensor)) or ()
            count = math.prod(size if isinstance(size, int) else 1 for size in shape)
            found[weight.node] = found.get(weight.node, 0) + count * (32 - weight.spec.bits) // 8
        return found

    @cached_property
    def costs(self) -> LayerCosts:
        """What the layers cost, measured once for all runs that share a state."""
        if self._state.costs is None:
            self._tell("measuring layers")
            first, feed = self.first, self._scorer.sample()
            costs = self._machine.costs(self._prepared(first), _runnable(first), first.plan, feed)
            self._state.set_costs(costs)
            return costs
        return self._state.costs

    def evaluate(self, recipe: Recipe) -> Outcome:
        """Quantize and measure.

        Raises:
            OnnxqError: If the recipe that tuning starts with, the data or the user's metric cannot be used.
        """
        start = self._clock()
        try:
            result = self.quantized(recipe)
            rating = self._scorer.rate(_runnable(result))
        except _REFUSALS as err:
            if recipe == self.recipe:
                raise
            return Outcome(math.nan, math.inf, 0, self._clock() - start, str(err))
        return Outcome(rating.score, rating.damage, _bytes(result), self._clock() - start)

    def score(self, result: Result) -> float:
        """The score of a model."""
        return self._scorer.score(_runnable(result))

    def rank(self, recipe: Recipe) -> Mapping[str, float]:
        """How much each layer damages the model."""
        found = rank_layers(
            self._measured_for(recipe),
            self._scorer.guide,
            recipe=recipe,
            threads=self._threads,
            progress=self._progress,
        )
        return {row.layer: row.effect for row in found.rows}

    def times(self, recipes: Sequence[Recipe]) -> Sequence[float] | None:
        """Times of the models that these recipes make, taking turns."""
        self._tell("measuring latency")
        graphs = [_runnable(self.quantized(recipe)) for recipe in recipes]
        return self._machine.times(graphs, self._scorer.sample())

    def times_to_float(self, results: Sequence[Result]) -> Sequence[float] | None:
        """Times of the float model and of quantized ones, taking turns."""
        self._tell("measuring latency")
        return self._machine.times([self._graph, *map(_runnable, results)], self._scorer.sample())

    def changes(self) -> Sequence[Change]:
        """Changes of the whole recipe to try, cheap ones first."""
        return ladder(self.first.plan, self.target)

    def repairs(self, layer: str) -> Sequence[Repair]:
        """Repairs of a layer to try, cheap ones first."""
        return repairs_for(layer, self.first.plan, self.target)

    def wide(self) -> Repair | None:
        """The repair that gives a layer activations of 16 bits."""
        return wide_repair(self.first.plan, self.target)

    def quantized(self, recipe: Recipe) -> Result:
        """The model quantized by a recipe; what is measured of activations is taken again where it can be.

        Raises:
            OnnxqError: If the recipe cannot be used.
        """
        digest = recipe.digest()
        if digest not in self._results:
            self._results[digest] = self._quantize(recipe)
            while len(self._results) > _RESULTS_KEPT:
                self._results.popitem(last=False)
        self._results.move_to_end(digest)
        return self._results[digest]

    def from_scratch(self, recipe: Recipe) -> Result:
        """The model that `onnxq.quantize` makes of a recipe."""
        return quantize(self._model, self._data, recipe=recipe, threads=self._threads, progress=self._progress)

    def _quantize(self, recipe: Recipe) -> Result:
        if _balanced(recipe):
            return self.from_scratch(recipe)  # which layers stay float decides what is balanced
        return self._measured_for(recipe).quantize(recipe)

    def _measured_for(self, recipe: Recipe) -> stages.Measured:
        """Statistics of the float model in the form that a recipe wants it in."""
        if _balanced(recipe):
            return self._measure(recipe)
        form = recipe.replace(rules=self.recipe.rules, skip=self.recipe.skip, refine=self.recipe.refine)
        form = form.replace(activations=self.recipe.activations, weights=self.recipe.weights)
        key = form.digest()
        if key not in self._measured:
            also = [r for r in self._later(form) if r.equalize == form.equalize and r.balance is None]
            self._measured[key] = self._measure(form, also)
        return self._measured[key]

    def _measure(self, recipe: Recipe, also: Sequence[Recipe] = ()) -> stages.Measured:
        return stages.measure(
            self._model, self._data, recipe=recipe, also=also, threads=self._threads, progress=self._progress
        )

    def _later(self, start: Recipe) -> list[Recipe]:
        """Recipes that are likely to be tried, so that their statistics come from the same run."""
        found = []
        for change in ladder(Plan(), self.target):
            with contextlib.suppress(RecipeError):
                found.append(change.apply(start))
        return found

    def _prepared(self, result: Result) -> GraphModel:
        return result.prepared or result.original or self._graph

    def _tell(self, what: str) -> None:
        if self._progress is not None:
            self._progress(what, 0, None)


def _balanced(recipe: Recipe) -> bool:
    return recipe.balance is not None or any(rule.balance is not None for rule in recipe.rules)


def _runnable(result: Result) -> GraphModel:
    """What runs here."""
    if not result.changed and result.original is not None:
        return result.original
    return result.twin or result.graph


def _bytes(result: Result) -> int:
    """Size of the model's file, without serializing its weights."""
    graph = result.graph if result.changed or result.original is None else result.original
    return int(graph.skeleton().ByteSize()) + graph.weight_bytes
