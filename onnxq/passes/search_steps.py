"""Searches the step of every planned weight; the width of its codes follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.algos.weight.init_scale import WANTED, search_inverse
from onnxq.algos.weight.mixed_bit import FoundStep, closed_form_step, find_step
from onnxq.errors import CalibrationError
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._trial import Trial
from onnxq.passes._weight_only import fixed_codes, unusable
from onnxq.passes._weights import weight_value
from onnxq.plan import Plan, WeightPlan

if TYPE_CHECKING:
    from onnxq.algos.weight.codes import WeightCodes
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


@dataclass(frozen=True)
class SearchSteps(Pass):
    """Writes ``ctx.weight_codes`` and ``ctx.steps``: one step for each weight, and codes of the width that it needs.

    Each step is the largest whose relative error is `init_scale`. With `auto_tune` it is a part of the weight's norm
    instead, the same for all weights and as large as the outputs of the model allow: they are compared with those of
    the float model on one sample of ``ctx.reader``, or on uniform numbers from 0.1 to 1 where there are no data.

    A weight whose codes would be wider than 16 bits gets codes of 8 bits, as `ChooseWeightCodes` makes them.

    Given:
        a plan of weights.
    Result:
        the graph unchanged; `ctx.weight_codes` and `ctx.steps` by the keys of the plan.

    Attributes:
        init_scale: Relative error of each weight.
        auto_tune: Search it.
        max_iterations: Four times the trials of the first pass of that search.
        correction: Give each weight back its mean and variance.
    """

    init_scale: float = 0.02
    auto_tune: bool = False
    max_iterations: int = 40
    correction: bool = True

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Search.

        Raises:
            CalibrationError: If `auto_tune` finds nothing.
            DataError: If the sample does not fit the model, or the model cannot be run without data.
            GraphError: If a weight holds NaN or infinity.
        """
        weights = {w.key: w for w in (ctx.plan or Plan()).weights}
        if not weights:
            return PassReport()
        scale, notes = self._tuned(graph, ctx, weights) if self.auto_tune else (self.init_scale, ())
        ctx.steps = {key: self._step(graph, weight, scale) for key, weight in weights.items()}
        ctx.weight_codes = {key: self._codes(graph, weights[key], step) for key, step in ctx.steps.items()}
        failed = {key: step for key, step in ctx.steps.items() if step.reason}
        skipped = tuple(Skip(weights[key].node, f"{step.reason}; it gets 8 bits") for key, step in failed.items())
        if failed:
            names = ", ".join(sorted(failed)[:5])
            notes += (f"{len(failed)} weights need more than 16 bits at this step and get 8, for example {names}",)
        return PassReport(skipped=skipped, notes=(*notes, _summary(ctx.steps)))

    def _step(self, graph: GraphModel, weight: WeightPlan, scale: float) -> FoundStep:
        search = closed_form_step if self.auto_tune else find_step
        try:
            return search(weight_value(graph, weight), scale, correction=self.correction)
        except CalibrationError as err:
            raise unusable(weight, err) from err

    def _codes(self, graph: GraphModel, weight: WeightPlan, step: FoundStep) -> WeightCodes:
        return fixed_codes(graph, weight, correction=self.correction) if step.reason else step.codes()

    def _tuned(
        self, graph: GraphModel, ctx: QuantContext, weights: Mapping[str, WeightPlan]
    ) -> tuple[float, tuple[str, ...]]:
        trial = Trial(graph, ctx, weights)
        count = 0

        def cosine(inverse: int) -> float:
            nonlocal count
            count += 1
            if ctx.progress is not None:
                ctx.progress("searching init_scale", count, None)
            return trial.cosine(lambda w: self._codes(graph, w, self._step(graph, w, 1 / inverse)))

        largest = max(weight_value(graph, w).size for w in weights.values())
        inverse = search_inverse(cosine, largest, self.max_iterations)
        ctx.samples = max(ctx.samples, trial.samples)
        found = f"auto_tune: init_scale 1/{inverse} = {1 / inverse:.6g} keeps a mean cosine of {WANTED}"
        return 1 / inverse, (f"{found} ({count} runs of the model)",)


def _summary(steps: Mapping[str, FoundStep]) -> str:
    elements = np.array([s.elements for s in steps.values()], np.float64)
    width, entropy = (np.array([getattr(s, name) for s in steps.values()]) for name in ("bits", "entropy"))
    mean_width, mean_entropy = (float((v * elements).sum() / elements.sum()) for v in (width, entropy))
    return f"codes are {mean_width:.2f} bits wide on average, their entropy is {mean_entropy:.2f} bits"
