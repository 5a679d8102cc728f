"""Tries out a configuration on a model: one calibration, then as many fake-quant models as the search asks for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from onnxq import save_model, stages
from onnxq.dialects.amct.job import AmctJob
from onnxq.dialects.amct.search import AS_CONFIGURED, Fix, Settings
from onnxq.dialects.amct.sensitivity import similarity
from onnxq.live import LiveCalibration
from onnxq.recipe import (
    HFMG,
    IFMR,
    ActivationConfig,
    AdaRound,
    BiasCorrection,
    MinMax,
    Recipe,
    Rule,
    Selector,
    WeightConfig,
)
from onnxq.tune.single_layer import compare_layers

Feeds = Callable[[], Iterator[dict[str, NDArray[Any]]]]


_ROUNDING = AdaRound(num_iteration=200, samples=32)
"""As the search tries it: few steps, because nearly all of the gain is that of the local search behind them."""


class Evaluator(Protocol):
    """What `AutoCalibrationEvaluatorBase` has."""

    def calibration(self, model: Any) -> object:  # noqa: ANN401 - the user's own
        """Run batches through the model."""
        ...

    def evaluate(self, model: Any) -> object:  # noqa: ANN401 - the user's own
        """The metric of a model."""
        ...


class ModelProber:
    """Measures a model by the user's evaluator.

    Args:
        model_file: The float model.
        job: The configuration made ready for it.
        evaluator: The user's.
        folder: Where the models that are tried are written.
    """

    def __init__(self, model_file: Path, job: AmctJob, evaluator: Evaluator, folder: Path) -> None:
        self._model_file = model_file
        self._job = job
        self._evaluator = evaluator
        self._folder = folder
        self._calibrations = 0
        self._rounded: stages.Rounded = {}
        self._chosen: dict[frozenset[tuple[str, object]], stages.Chosen] = {}

    @property
    def calibrations(self) -> int:
        """How often the calibration data have been run through the model so far."""
        return self._calibrations

    @cached_property
    def _measured(self) -> stages.Measured:
        found: list[stages.Measured] = []

        def finish(feeds: Feeds) -> None:
            data = list(feeds())  # the folder they are in goes away; inputs of a few batches are small
            found.append(stages.measure(self._model_file, data, recipe=self._job.recipe))
            self._calibrations += 1

        model = LiveCalibration(self._model_file, self._job.batch_num, finish)
        self._evaluator.calibration(model)
        model.require_finished()
        return found[0]

    def original(self) -> object:
        """The metric of the float model."""
        return self._evaluator.evaluate(str(self._model_file))

    def chosen(self, settings: Settings) -> stages.Chosen:
        """The model and its numbers, quantized by `settings`."""
        key = frozenset((layer, choice) for layer, choice in settings.items() if choice != AS_CONFIGURED)
        if key not in self._chosen:
            self._chosen.clear()  # the last one is asked for again when it is the best
            self._chosen[key] = self._measured.choose(self.recipe(settings), rounded=self._rounded)
        return self._chosen[key]

    def probe(self, settings: Settings) -> object:
        """The metric of the model quantized by `settings`."""
        chosen = self.chosen(settings)
        twin = stages.insert(chosen.graph, chosen.factors, recipe=chosen.recipe).fake_quant
        path = self._folder / "fake_quant_model.onnx"
        save_model(twin, path)
        return self._evaluator.evaluate(str(path))

    def sensitivities(self) -> Mapping[str, float]:
        """How similar the output of each layer stays if it alone is quantized, on the calibration data."""
        found: dict[str, list[float]] = defaultdict(list)
        reader = self._measured.context.reader
        if reader is not None:
            for layer, reference, quantized in compare_layers(self.chosen({}), reader):
                found[layer].append(similarity([reference], [quantized]))
        return {layer: math.fsum(values) / len(values) for layer, values in found.items()}

    def fixes(self, layer: str) -> Collection[Fix]:
        """What can be tried on a layer."""
        settings = self._job.settings[layer]
        ranges = (Fix.HFMG, Fix.TWO_SIDED, Fix.MAX_RANGE)
        if settings.weight is None or self._job.layers.quantizable[layer].op_type == "AveragePool":
            return ranges
        linear = self._job.layers.quantizable[layer].op_type in ("Gemm", "MatMul")
        return (*ranges, *((Fix.PER_CHANNEL,) if linear else ()), Fix.BIAS_CORRECTION, Fix.ADAROUND)

    def recipe(self, settings: Settings) -> Recipe:
        """The configuration's recipe with what `settings` says."""
        base = self._job.recipe
        rules = [rule for layer, choice in settings.items() for rule in _rules(layer, choice.quantize, choice.fixes)]
        corrected = any(Fix.BIAS_CORRECTION in choice.fixes for choice in settings.values())
        refine = base.refine or ((BiasCorrection(),) if corrected else ())
        return base.replace(rules=(*base.rules, *rules), refine=refine)


def _rules(layer: str, quantize: bool, fixes: Collection[Fix]) -> Iterator[Rule]:
    match = Selector(node=layer)
    if not quantize:
        yield Rule(match=match, skip=True)
        return
    methods: dict[Fix, HFMG | IFMR | MinMax] = {
        Fix.HFMG: HFMG(),
        Fix.TWO_SIDED: IFMR(two_sided=True),
        Fix.MAX_RANGE: MinMax(),
    }
    for fix in sorted(fixes, key=lambda f: f.value):
        if fix in methods:
            yield Rule(match=match, activations=ActivationConfig(method=methods[fix]))
        elif fix is Fix.PER_CHANNEL:
            yield Rule(match=match, weights=WeightConfig(granularity="per_axis"))
        elif fix is Fix.ADAROUND:
            yield Rule(match=match, weights=WeightConfig(method=_ROUNDING))
