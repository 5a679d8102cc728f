"""What is measured of an entry of a zoo, which way is better, and how much worse is still good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from onnxq._recipe.base import Model

Limit = Annotated[float, Field(strict=True, ge=0)]


class Tolerance(Model):
    """How much worse than the baseline a number may be: by either limit, where both are given.

    Attributes:
        absolute: In the unit of the metric.
        relative: As a fraction of the baseline's number.
    """

    absolute: Limit | None = None
    relative: Limit | None = None

    @property
    def informational(self) -> bool:
        """Whether no difference is a regression."""
        return self.absolute is None and self.relative is None

    def allowed(self, baseline: float) -> float:
        """How much worse a number may be, in the unit of the metric.

        Args:
            baseline: The baseline's number.
        """
        if self.informational:
            return math.inf
        relative = (self.relative or 0.0) * abs(baseline)
        return max(self.absolute or 0.0, relative if math.isfinite(relative) else 0.0)

    def __str__(self) -> str:
        if self.informational:
            return "informational"
        parts = [] if self.absolute is None else [f"{self.absolute:g}"]
        parts += [] if self.relative is None else [f"{100 * self.relative:g} %"]
        return " or ".join(parts)


INFORMATIONAL = Tolerance()


@dataclass(frozen=True, slots=True)
class Measure:
    """Something measured of every entry.

    Attributes:
        name: Its name.
        title: What people read.
        higher_is_better: Whether a larger number is better.
        tolerance: What holds where nothing else is said.
        kind: What a number of it is: percent, decibels, bytes, a count, a ratio of times, or nothing of these.
    """

    name: str
    title: str
    higher_is_better: bool
    tolerance: Tolerance
    kind: Literal["percent", "decibels", "bytes", "count", "ratio", "plain"] = "plain"

    def text(self, value: float) -> str:
        """A number of it for people."""
        if math.isnan(value):
            return "not a number"
        if math.isinf(value):
            return "equal" if self.kind == "decibels" and value > 0 else f"{value:g}"
        match self.kind:
            case "percent":
                return f"{value:.2f} %"
            case "decibels":
                return f"{value:.2f} dB"
            case "bytes":
                return f"{value:,.0f} B"
            case "count":
                return f"{value:.0f}"
            case "ratio":
                return f"{value:.2f}"
        return f"{value:.5g}"

    def difference(self, value: float) -> str:
        """A difference of two numbers of it for people, with its sign."""
        sign = "-" if value < 0 else "+"
        text = self.text(abs(value)) if math.isfinite(value) else f"{abs(value):g}"
        return sign + (text.replace(" %", " points") if self.kind == "percent" else text)

    def allowance(self, tolerance: Tolerance) -> str:
        """A tolerance for people, in the unit of the metric."""
        if tolerance.informational:
            return "informational"
        parts = [] if tolerance.absolute is None else [self.difference(tolerance.absolute)[1:]]
        parts += [] if tolerance.relative is None else [f"{100 * tolerance.relative:g} % of the baseline"]
        return " or ".join(parts)


SCORES: Mapping[str, Measure] = {
    m.name: m
    for m in (
        Measure("top1", "top-1 accuracy", True, Tolerance(absolute=1.0), "percent"),
        Measure("agreement", "equal first classes", True, Tolerance(absolute=1.5), "percent"),
        Measure("sqnr", "SQNR", True, Tolerance(absolute=1.0), "decibels"),
        Measure("kl", "KL divergence", False, Tolerance(absolute=1e-3, relative=0.25)),
        Measure("perplexity", "perplexity", False, Tolerance(relative=0.02)),
    )
}
"""What a manifest may ask for by name; a function of the user's, ``file.py:function``, is higher where it is better."""

ALWAYS: Mapping[str, Measure] = {
    m.name: m
    for m in (
        Measure("size", "size", False, Tolerance(relative=0.01), "bytes"),
        Measure("quantized", "quantized nodes", True, Tolerance(absolute=0.0), "count"),
    )
}
"""What is known of every quantized model."""

TIMES: Mapping[str, Measure] = {
    m.name: m
    for m in (
        Measure("calibration_ratio", "calibration over bare runs", False, INFORMATIONAL, "ratio"),
        Measure("latency_ratio", "latency over float", False, INFORMATIONAL, "ratio"),
    )
}
"""What another run on the same machine finds other numbers for."""


def measure_of(name: str) -> Measure:
    """What is known about a metric.

    Args:
        name: One of the tables' above, or a function of the user's.
    """
    found = SCORES.get(name) or ALWAYS.get(name) or TIMES.get(name)
    return found or Measure(name, name, True, Tolerance(relative=0.01))
