"""The search for what to leave in float: what a strategy chooses from, tries, and is told.

A strategy sees no model. It is given a `Prober`, which can measure the model for any choice by layer, and the user's
verdict on two metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from onnxq.dialects.amct.sensitivity import ranking
from onnxq.errors import CalibrationError


class Fix(Enum):
    """Something to try on a layer before giving it up, cheapest first."""

    HFMG = "hfmg"
    """The range of its input by HFMG."""
    TWO_SIDED = "two_sided"
    """The range of its input by IFMR with both ends searched."""
    MAX_RANGE = "max_range"
    """The whole range of its input."""
    PER_CHANNEL = "per_channel"
    """A scale per channel of its weight."""
    BIAS_CORRECTION = "bias_correction"
    """The mean error of its output taken out of its bias."""
    ADAROUND = "adaround"
    """The rounding of its weight learned."""

    @property
    def part(self) -> str:
        """What it changes; of two fixes of one part only one can be."""
        return "range" if self in (Fix.HFMG, Fix.TWO_SIDED, Fix.MAX_RANGE) else self.value


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with a layer.

    Attributes:
        quantize: Whether to quantize it.
        fixes: What to do otherwise than the configuration says.
    """

    quantize: bool = True
    fixes: frozenset[Fix] = frozenset()

    def with_fix(self, fix: Fix) -> Choice:
        """The same with `fix`, in place of one of the same part."""
        return Choice(self.quantize, frozenset({fix, *(f for f in self.fixes if f.part != fix.part)}))


AS_CONFIGURED = Choice()
ROLLED_BACK = Choice(quantize=False)

Settings = Mapping[str, Choice]
"""Choices by layer; a layer that is not in it is quantized as configured."""
MetricEval = Callable[[object, object], object]
"""Of the original's metric and another one: whether that is good enough, and how much is lost."""


class Prober(Protocol):
    """Measures a model that is quantized in one way or another; statistics are collected once and kept."""

    @property
    def calibrations(self) -> int:
        """How often the calibration data have been run through the model so far."""
        ...

    def original(self) -> object:
        """The metric of the float model."""
        ...

    def probe(self, settings: Settings) -> object:
        """The metric of the model quantized by `settings`."""
        ...

    def sensitivities(self) -> Mapping[str, float]:
        """Of each layer that is to be quantized, how similar its output stays; see `similarity`."""
        ...

    def fixes(self, layer: str) -> Collection[Fix]:
        """What can be tried on a layer."""
        ...


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to quantize the model, and what came of it.

    Attributes:
        settings: What was done, without what is as configured.
        ok: Whether the user's `metric_eval` was satisfied.
        loss: The loss it gave; NaN where it gave none.
        metric: What it was given.
    """

    settings: Settings
    ok: bool
    loss: float
    metric: object = field(default=None, repr=False)

    @property
    def rolled_back(self) -> tuple[str, ...]:
        """The layers left in float."""
        return tuple(layer for layer, choice in self.settings.items() if not choice.quantize)


class Strategy(Protocol):
    """Looks for the best way to quantize a model that loses too much."""

    def search(self, trials: Trials) -> Trial | None:
        """What to do; None if all that is left is the float model."""
        ...


class Trials:
    """What a strategy works with: the layers, and what has been tried.

    Args:
        prober: Measures.
        metric_eval: The user's verdict.
        on_trial: Is told of each trial.

    Raises:
        CalibrationError: If the user's functions do not work for the float model.
    """

    def __init__(
        self, prober: Prober, metric_eval: MetricEval, on_trial: Callable[[Trial], None] | None = None
    ) -> None:
        self._prober = prober
        self._metric_eval = metric_eval
        self._on_trial = on_trial
        self._known: dict[frozenset[tuple[str, Choice]], Trial] = {}
        self.evaluations = 1
        self.history: list[Trial] = []
        self.original = prober.original()
        if self.original is None:
            raise CalibrationError("evaluate() gave None for the original model; it must return the metric")
        ok, self.base = self._verdict(self.original)
        if math.isnan(self.base):
            raise CalibrationError("metric_eval(original, original) gives a loss of NaN: is the metric a number?")
        if not ok:
            raise CalibrationError(
                f"metric_eval(original, original) is not satisfied (loss {self.base:g}): no model can be good "
                "enough then; correct metric_eval()"
            )
        self.first = self.run({})
        self.ranking = ranking(prober.sensitivities())
        self.layers = tuple(name for name, _ in self.ranking)

    def fixes(self, layer: str) -> Collection[Fix]:
        """What can be tried on a layer."""
        return self._prober.fixes(layer)

    def run(self, settings: Settings, *, again: bool = False) -> Trial:
        """Measure; what has been measured is known.

        Args:
            settings: What to do.
            again: Measure it whether it is known or not.
        """
        short = {layer: choice for layer, choice in settings.items() if choice != AS_CONFIGURED}
        key = frozenset(short.items())
        if again or key not in self._known:
            metric = self._prober.probe(MappingProxyType(short))
            self.evaluations += 1
            self._known[key] = self._add(Trial(MappingProxyType(short), *self._verdict(metric), metric))
        return self._known[key]

    def give_up(self) -> None:
        """Note that all layers would have to be rolled back; that is the original, and need not be measured."""
        settings = dict.fromkeys(self.layers, ROLLED_BACK)
        self._add(Trial(MappingProxyType(settings), *self._verdict(self.original), self.original))

    def damage(self, trial: Trial) -> float:
        """How much is lost against the original, whichever way the user's loss counts; infinite for NaN."""
        if math.isnan(trial.loss):
            return math.inf
        worse = -1.0 if self.first.loss < self.base else 1.0
        return worse * (trial.loss - self.base)

    def _add(self, trial: Trial) -> Trial:
        self.history.append(trial)
        if self._on_trial is not None:
            self._on_trial(trial)
        return trial

    def _verdict(self, metric: object) -> tuple[bool, float]:
        found = self._metric_eval(self.original, metric)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise CalibrationError(f"metric_eval() gave {found!r}; it must return two values: (satisfied, loss)")
        try:
            loss = float(found[1])
        except (TypeError, ValueError) as err:
            raise CalibrationError(f"metric_eval() gave the loss {found[1]!r}, which is no number") from err
        return bool(found[0]) and not math.isnan(loss), loss


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        settings: The choice for every layer; all rolled back where nothing was found.
        found: Whether there is a quantized model that is good enough.
        trial: The one to use; None where nothing was found.
        original: The float model's metric.
        first: The trial in which all layers were quantized as configured.
        ranking: Layers and their similarity, the one that suffers most first.
        history: All trials in order.
        evaluations: How many models were evaluated, the float model included.
        calibrations: How often the calibration data were run.
    """

    settings: Settings
    found: bool
    trial: Trial | None
    original: object
    first: Trial
    ranking: tuple[tuple[str, float], ...]
    history: tuple[Trial, ...]
    evaluations: int
    calibrations: int

    @property
    def rolled_back(self) -> tuple[str, ...]:
        """The layers left in float, the one that suffers most first."""
        return tuple(layer for layer, choice in self.settings.items() if not choice.quantize)

    @property
    def fixed(self) -> Mapping[str, frozenset[Fix]]:
        """The layers that are quantized otherwise than configured."""
        return {layer: choice.fixes for layer, choice in self.settings.items() if choice.fixes}


def auto_calibrate(
    prober: Prober,
    metric_eval: MetricEval,
    strategy: Strategy,
    *,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """Find out what has to stay in float for a model to be good enough.

    Args:
        prober: Measures the model.
        metric_eval: Of the original's metric and another one: whether that is good enough, and how much is lost.
            A loss of NaN is never good enough.
        strategy: How to search.
        on_trial: Is told of each trial.

    Raises:
        CalibrationError: If the user's functions do not work for the float model, or what they return is not
            what they must return.
    """
    trials = Trials(prober, metric_eval, on_trial)
    if trials.first.ok:
        chosen: Trial | None = trials.first
    else:
        chosen = strategy.search(trials) if trials.layers else None
    rest = ROLLED_BACK if chosen is None else AS_CONFIGURED
    done: Settings = {} if chosen is None else chosen.settings
    return SearchResult(
        settings=MappingProxyType({layer: done.get(layer, rest) for layer in trials.layers}),
        found=chosen is not None,
        trial=chosen,
        original=trials.original,
        first=trials.first,
        ranking=trials.ranking,
        history=tuple(trials.history),
        evaluations=trials.evaluations,
        calibrations=prober.calibrations,
    )
