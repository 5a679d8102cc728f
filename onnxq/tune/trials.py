"""What a search works with: it asks for trials by variant, and is told when there is no time for another one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from onnxq.errors import RecipeError
from onnxq.recipe import Recipe
from onnxq.tune.constraint import Constraint
from onnxq.tune.costs import LayerCosts
from onnxq.tune.history import Outcome, State, Trial
from onnxq.tune.metrics_builtin import Metric
from onnxq.tune.repairs import Change, Repair, Variant

Objective = Literal["latency", "size"]
_RANKING = 3.0
"""How many times as long as an evaluation it takes to rank the layers, about."""


class Prober(Protocol):
    """Quantizes a model by one recipe or another and measures what becomes of it."""

    @property
    def recipe(self) -> Recipe:
        """The recipe that tuning starts with."""
        ...

    @property
    def metric(self) -> Metric:
        """What is measured."""
        ...

    @property
    def reference(self) -> float:
        """The float model's score."""
        ...

    @property
    def layers(self) -> Sequence[str]:
        """What can be left float, in topological order."""
        ...

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        """By layer, how many bytes it takes more in float."""
        ...

    @property
    def costs(self) -> LayerCosts:
        """What the layers cost."""
        ...

    def evaluate(self, recipe: Recipe) -> Outcome:
        """Quantize and measure."""
        ...

    def rank(self, recipe: Recipe) -> Mapping[str, float]:
        """How much each layer damages the model."""
        ...

    def times(self, recipes: Sequence[Recipe]) -> Sequence[float] | None:
        """Times of the models that these recipes make, taking turns; None where they cannot be measured here."""
        ...

    def changes(self) -> Sequence[Change]:
        """Changes of the whole recipe to try, cheap ones first."""
        ...

    def repairs(self, layer: str) -> Sequence[Repair]:
        """Repairs of a layer to try, cheap ones first."""
        ...

    def wide(self) -> Repair | None:
        """The repair that gives a layer activations of 16 bits."""
        ...


class OutOfTime(Exception):  # noqa: N818 - it is no error
    """There is no time for what the search wanted next."""


class Trials:
    """Runs trials, each recipe once.

    Args:
        prober: Measures.
        state: What is known already.
        constraint: What a model must keep.
        objective: What is to be least.
        budget: Seconds; None for as long as it takes.
        clock: Seconds since any moment.
        on_trial: Is told of each trial.
    """

    def __init__(
        self,
        prober: Prober,
        state: State,
        constraint: Constraint,
        objective: Objective = "latency",
        *,
        budget: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
        on_trial: Callable[[Trial], None] | None = None,
    ) -> None:
        self.prober = prober
        self.objective: Objective = objective
        self.evaluations = 0
        self.history: list[Trial] = []
        self.out_of_time = False
        self._state = state
        self._constraint = constraint
        self._budget = budget
        self._clock = clock
        self._started = clock() if started is None else started
        self._on_trial = on_trial
        self._known: dict[str, Trial] = {}
        self._set_aside: set[str] = set()
        self._typical = 0.0
        if missing := constraint.missing(prober.reference, prober.reference, prober.metric):
            raise RecipeError(
                f"the float model itself has a {prober.metric.name} of {prober.metric.text(prober.reference)}, "
                f"{missing:g} short of {constraint}: no quantized model can be asked for more"
            )

    def run(self, variant: Variant, what: str) -> Trial:
        """Try a variant; what is known is not tried again.

        Args:
            variant: What to do.
            what: What is new about it, in a few words.

        Raises:
            OutOfTime: If there is no time for it.
        """
        try:
            recipe = variant.recipe(self.prober.recipe, self.prober.layers)
        except RecipeError as err:
            return self._trial(variant, what, "", Outcome(math.nan, math.inf, 0, 0.0, str(err)))
        digest = recipe.digest()
        if digest in self._known:
            return self._known[digest]
        outcome = self._state.outcome(digest)
        if outcome is None:
            self._require_time(variant.slow)
            outcome = self.prober.evaluate(recipe)
            self.evaluations += 1
            self._state.add_outcome(digest, outcome)
        if not outcome.refused:
            self._typical = max(self._typical, outcome.seconds / variant.slow)
        self._known[digest] = self._trial(variant, what, digest, outcome)
        return self._known[digest]

    def rank(self, variant: Variant) -> Mapping[str, float]:
        """How much each layer damages a variant.

        Raises:
            OutOfTime: If there is no time for it.
        """
        recipe = variant.recipe(self.prober.recipe, self.prober.layers)
        digest = recipe.digest()
        found = self._state.ranking(digest)
        if found is None:
            self._require_time(_RANKING)
            found = self.prober.rank(recipe)
            self._state.set_ranking(digest, found)
        return found

    def is_faster(self, one: Trial, other: Trial) -> bool:
        """Whether a model is faster than another one, as measured in turn; taken for granted where it cannot be."""
        pair = (other.digest, one.digest)
        times = self._state.times(pair)
        if times is None:
            recipes = [t.variant.recipe(self.prober.recipe, self.prober.layers) for t in (other, one)]
            times = self.prober.times(recipes)
            if times is None:
                return True
            self._state.set_times(pair, times)
        return times[1] < times[0]

    def may_cost_less(self, one: Variant, other: Variant) -> bool:
        """Whether a variant may turn out to cost less than another one; of sizes that is known only afterwards."""
        costs = self.prober.costs
        return self.objective == "size" or costs.total(one.floats, one.wide) < costs.total(other.floats, other.wide)

    def set_aside(self, trial: Trial) -> None:
        """Do not take a trial for the result: its costs turned out to be wrong."""
        self._set_aside.add(trial.digest)

    def best(self) -> Trial | None:
        """The cheapest trial that meets the constraint; None if none does."""
        met = [t for t in self.history if t.met and t.digest not in self._set_aside]
        return min(met, key=lambda t: (t.cost, t.outcome.damage, t.number), default=None)

    def closest(self) -> Trial | None:
        """The trial with the best score; None if no recipe could be used."""
        sign = -1.0 if self.prober.metric.higher_is_better else 1.0
        usable = [t for t in self.history if not t.outcome.refused]
        return min(usable, key=lambda t: (sign * t.outcome.score, t.outcome.damage, t.number), default=None)

    def _trial(self, variant: Variant, what: str, digest: str, outcome: Outcome) -> Trial:
        latency = self.prober.costs.total(variant.floats, variant.wide)
        met = not outcome.refused and self._constraint.met(
            outcome.score, self.prober.reference, self.prober.metric
        )  # fmt: skip
        cost = latency if self.objective == "latency" else float(outcome.size)
        trial = Trial(len(self.history) + 1, what, variant, digest, outcome, met, cost, latency)
        self.history.append(trial)
        if self._on_trial is not None:
            self._on_trial(trial)
        return trial

    @property
    def time_left(self) -> float:
        """Seconds of the budget that are left; infinite without one."""
        return math.inf if self._budget is None else self._budget - (self._clock() - self._started)

    def time_for(self, count: float, variant: Variant) -> bool:
        """Whether there is time for so many trials of variants like this one; noted where there is not."""
        if (count * variant.slow + 1.0) * self._typical <= self.time_left:
            return True
        self.out_of_time = True
        return False

    def _require_time(self, factor: float) -> None:
        """Leave time for what is to be done next, and for making the result."""
        if self.history and (factor + 1.0) * self._typical > self.time_left:
            self.out_of_time = True
            raise OutOfTime
