"""Tuning: from a float model and a constraint to the cheapest quantized model that meets it.

tuned = onnxq.tune.tune("model.onnx", "calib.npz", Evaluation("eval.npz", labels="labels.csv"), "0.5%")
tuned.save("model.int8.onnx")
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.calib.readers import DataLike
from onnxq.errors import RecipeError
from onnxq.graph import GraphModel
from onnxq.modelio import file_sha256
from onnxq.pipeline import ModelLike, Progress, RecipeLike, Result, open_model, reader_for, recipe_of
from onnxq.recipe import Recipe
from onnxq.targets import get_target
from onnxq.tune.constraint import Constraint
from onnxq.tune.costs import LayerCosts
from onnxq.tune.evaluation import Evaluation, Metric, Scorer
from onnxq.tune.history import State, Trial, pareto
from onnxq.tune.prober import Elsewhere, Machine, ModelProber, ThisMachine
from onnxq.tune.search import Search
from onnxq.tune.trials import Objective, Trials

THOROUGH = Search()
FLOAT = "float"
"""What stands for the float model where digests of recipes name models."""
_MEASURING = 3.0
"""Seconds that it takes to run the models in turn, about."""


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one inference of models that took turns.

    Attributes:
        float_ms: Of the float model.
        default_ms: Of the model quantized by the recipe that tuning started with.
        tuned_ms: Of the tuned model.
    """

    float_ms: float
    default_ms: float
    tuned_ms: float

    def to_dict(self) -> dict[str, float]:
        """Content for JSON."""
        times = {"float_ms": self.float_ms, "default_ms": self.default_ms, "tuned_ms": self.tuned_ms}
        return {**times, "ratio": self.tuned_ms / self.float_ms, "default_ratio": self.default_ms / self.float_ms}


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        result: The model; the float model where `quantized` is false.
        recipe: What makes it: ``onnxq.quantize`` with it and the same data gives the same bytes.
        quantized: Whether a quantized model was found that can be used.
        met: Whether the model meets the constraint; a float model does.
        constraint: What was to be kept.
        metric: What was measured.
        reference: The float model's score.
        threshold: The worst score that is good enough.
        score: The model's score, measured once more on what `result` is.
        objective: What was to be least.
        first: What came of the recipe that tuning started with.
        chosen: The trial that was taken; None for the float model.
        history: All trials in order, those known from an earlier run as well.
        front: The trials that no other one beats in both score and cost, the cheapest first.
        costs: What the layers cost.
        evaluations: How many models were quantized and evaluated in this run, the float model and the result included.
        resumed: How many evaluations were known from an earlier run.
        seconds: How long it took.
        out_of_time: Whether the budget cut the search short.
        times: Measured times; None where the backend does not run here, or the budget leaves no time for it.
        samples: How many samples the score is of.
        notes: What a user should know, a sentence each.
    """

    result: Result = field(repr=False)
    recipe: Recipe
    quantized: bool
    met: bool
    constraint: Constraint
    metric: Metric
    reference: float
    threshold: float
    score: float
    objective: Objective
    first: Trial
    chosen: Trial | None
    history: tuple[Trial, ...]
    front: tuple[Trial, ...]
    costs: LayerCosts = field(repr=False)
    evaluations: int
    resumed: int
    seconds: float
    out_of_time: bool
    times: Times | None
    samples: int
    notes: tuple[str, ...] = ()

    @property
    def left_float(self) -> tuple[str, ...]:
        """Layers that the recipe which tuning started with quantizes, and this one does not."""
        if self.chosen is None:
            return tuple(self.costs.integer_cost)
        return tuple(name for name in self.costs.integer_cost if name in self.chosen.variant.floats)

    @property
    def drop(self) -> float:
        """Points of the metric that are lost; negative where some were gained."""
        if math.isinf(self.reference) or self.score == self.reference:
            return 0.0 if self.score == self.reference else math.inf
        return self.reference - self.score if self.metric.higher_is_better else self.score - self.reference

    @property
    def missing(self) -> float:
        """How many points the score is short of what is good enough; 0 where the constraint is met."""
        return self.constraint.missing(self.score, self.reference, self.metric)

    def save(self, path: str | Path, *, external_data: bool | None = None) -> Path:
        """Write the model; as `Result.save`."""
        return self.result.save(path, external_data=external_data)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        finite = {
            key: value if math.isfinite(value) else None
            for key, value in (
                ("reference", self.reference), ("threshold", self.threshold), ("score", self.score),
                ("drop", self.drop), ("missing", self.missing), ("default_score", self.first.outcome.score),
            )
        }  # fmt: skip
        return {
            "met": self.met,
            "quantized": self.quantized,
            "constraint": str(self.constraint),
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "higher_is_better": self.metric.higher_is_better,
            **finite,
            "samples": self.samples,
            "objective": self.objective,
            "left_float": list(self.left_float),
            "layers": len(self.costs.integer_cost),
            "times": None if self.times is None else self.times.to_dict(),
            "evaluations": self.evaluations,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "out_of_time": self.out_of_time,
            "chosen": None if self.chosen is None else self.chosen.number,
            "history": [trial.to_dict() for trial in self.history],
            "front": [trial.number for trial in self.front],
            "notes": list(self.notes),
            "recipe": self.recipe.to_dict(defaults=False),
        }


def tune(
    model: ModelLike,
    data: DataLike | None,
    evaluation: Evaluation,
    constraint: Constraint | str,
    *,
    recipe: RecipeLike | None = None,
    objective: Objective = "latency",
    budget: float | None = None,
    state: str | Path | None = None,
    threads: int = 0,
    search: Search = THOROUGH,
    machine: Machine | None = None,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Tuned:
    """Find the fastest or smallest quantized model that is good enough.

    Args:
        model: The float model; it is not changed.
        data: Calibration samples, as for `onnxq.quantize`.
        evaluation: What the model must be good at.
        constraint: How much it may lose; a text as for `Constraint.parse`.
        recipe: What to start with; by default the best known recipe.
        objective: What is to be least. The latency is that of this machine, or counted in operations where the
            recipe's backend does not run here.
        budget: Seconds after which no evaluation is begun that would not end in time; the first one always is.
        state: File of what is known: read if it is there, and written after each evaluation. A search that goes on
            from it repeats none, and takes the same measured times.
        threads: Threads of ONNX Runtime, 0 for all cores.
        search: How much to try.
        machine: Where times come from; by default this machine.
        clock: Seconds since any moment.
        progress: Is told how far it is.
        on_trial: Is told of each trial.

    Raises:
        RecipeError: If the constraint has no meaning for the metric, or the recipe is not one of static quantization.
        DataError: If the data, the user's metric or the state cannot be used.
        OnnxqError: If the model cannot be used.
    """
    started = clock()
    wanted = constraint if isinstance(constraint, Constraint) else Constraint.parse(constraint)
    base = recipe_of(recipe, None)
    if base.scheme.kind != "static":
        raise RecipeError(f"scheme: tuning searches recipes of scheme static, not {base.scheme.kind}")
    graph, source = open_model(model)
    scorer = evaluation.prepare(graph, guided=True, progress=progress)
    target = get_target(base.target)
    known = State(_key(graph, source, data, base, scorer), None if state is None else Path(state))
    used = machine or (ThisMachine(threads) if target.runs_here else Elsewhere())
    prober = ModelProber(model, graph, data, base, scorer, known, used, threads=threads, clock=clock, progress=progress)
    trials = Trials(prober, known, wanted, objective, budget=budget, clock=clock, started=started, on_trial=on_trial)
    search.run(trials)
    return _Finish(prober, trials, known, scorer, wanted, used).tuned(clock, started)


def _key(graph: GraphModel, source: Path | None, data: DataLike | None, base: Recipe, scorer: Scorer) -> dict[str, str]:
    """What outcomes depend on besides the recipe that is tried."""
    if source is not None:
        model = file_sha256(source)
    else:
        model = hashlib.sha256(graph.skeleton(keep=1 << 20).SerializeToString()).hexdigest()
    reader, _ = reader_for(graph, data, base)
    return {
        "model": model,
        "calibration data": "" if reader is None else reader.digest(),
        "evaluation": scorer.digest,
        "recipe": base.digest(),
    }


@dataclass(frozen=True)
class _Finish:
    """Makes the result of what a search has found."""

    prober: ModelProber
    trials: Trials
    state: State
    scorer: Scorer
    constraint: Constraint
    machine: Machine

    def tuned(self, clock: Callable[[], float], started: float) -> Tuned:
        """The result."""
        trials, prober = self.trials, self.prober
        chosen = trials.best()
        if chosen is None and trials.out_of_time:
            chosen = trials.closest()
        base = prober.recipe
        recipe = base.replace(skip=("*",)) if chosen is None else chosen.variant.recipe(base, prober.layers)
        result = prober.from_scratch(recipe)
        score = self.scorer.reference if chosen is None else prober.score(result)
        met = self.constraint.met(score, self.scorer.reference, self.scorer.metric)
        times = None if chosen is None else self._times(chosen, result)
        return Tuned(
            result=result,
            recipe=recipe,
            quantized=result.changed,
            met=met,
            constraint=self.constraint,
            metric=self.scorer.metric,
            reference=self.scorer.reference,
            threshold=self.constraint.threshold(self.scorer.reference, self.scorer.metric),
            score=score,
            objective=trials.objective,
            first=trials.history[0],
            chosen=chosen,
            history=tuple(trials.history),
            front=pareto(trials.history, higher_is_better=self.scorer.metric.higher_is_better),
            costs=prober.costs,
            evaluations=trials.evaluations + 1 + (chosen is not None),
            resumed=self.state.resumed,
            seconds=clock() - started,
            out_of_time=trials.out_of_time,
            times=times,
            samples=self.scorer.samples,
            notes=(*self._notes(chosen, times, met, changed=result.changed), *self.scorer.notes),
        )

    def _times(self, chosen: Trial, result: Result) -> Times | None:
        digests = (FLOAT, self.trials.history[0].digest, chosen.digest)
        times = self.state.times(digests)
        if times is None:
            if self.trials.time_left < _MEASURING:
                return None
            same = digests[1] == digests[2]  # one model is not to have two latencies
            times = self.prober.times_to_float([result] if same else [self.prober.first, result])
            if times is None:
                return None
            times = (*times, times[-1]) if same else times
            self.state.set_times(digests, times)
        return Times(*times)

    def _notes(self, chosen: Trial | None, times: Times | None, met: bool, *, changed: bool) -> Sequence[str]:
        found = []
        if not self.prober.layers:
            found.append("nothing in this model can be quantized: it stays as it is")
        elif chosen is None or not changed:
            tried = len(self.trials.history)
            found.append(
                f"no quantized model keeps to {self.constraint} ({tried} were tried): all layers stay float, and the "
                "result is the float model"
            )
        if chosen is not None and chosen.met and not met:
            found.append("the result scores less than its trial did: the runtime's sums depend on how the model is cut")
        if times is not None and changed and times.tuned_ms > times.float_ms:
            ratio = times.tuned_ms / times.float_ms
            found.append(
                f"the float model is faster on this machine (the tuned one takes {ratio:.2f} times as long); quantize "
                "for its size, or tune where it is to run"
            )
        if self.prober.costs.unit != "µs":
            found.append(f"{self.prober.target.title} does not run here: costs of layers are counted in operations")
        return found
