"""What a tuned model must keep, and how long the search may take, as users write it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from onnxq.errors import RecipeError
from onnxq.tune.metrics_builtin import Metric

_SLACK = 1e-9
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True, slots=True)
class Constraint:
    """How much worse than the float model a model may be, or what it must reach.

    Attributes:
        max_drop: How much of the score may be lost: points of the metric, or a part of the float model's score.
        relative: Whether it is a part: 0.005 is 0.5 %.
        min_score: The score that must be reached, whatever the float model's is; None where only the drop counts.
    """

    max_drop: float | None = None
    relative: bool = False
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is None and self.min_score is None:
            raise RecipeError("a constraint needs the largest drop, or the score that must be reached")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise RecipeError(f"the largest drop is {self.max_drop:g}; it must be a finite number, 0 or more")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise RecipeError(f"the score that must be reached is {self.min_score:g}; it must be a finite number")

    @staticmethod
    def parse(drop: str | None, min_score: float | None = None) -> Constraint:
        """Read a constraint.

        Args:
            drop: ``0.5%``: half a percent of the float model's score; ``0.5``: half a point of the metric.
            min_score: The score that must be reached.

        Raises:
            RecipeError: If it is neither.
        """
        if drop is None:
            return Constraint(None, relative=False, min_score=min_score)
        text = drop.strip()
        number = text.removesuffix("%").strip()
        try:
            value = float(number)
        except ValueError:
            raise RecipeError(
                f"max-drop {drop!r}: write a part of the float model's score such as 0.5%, or points such as 0.5"
            ) from None
        relative = text.endswith("%")
        return Constraint(value / 100 if relative else value, relative, min_score)

    def threshold(self, reference: float, metric: Metric) -> float:
        """The worst score that is good enough.

        Args:
            reference: The float model's score.
            metric: What is measured.

        Raises:
            RecipeError: If a drop has no meaning for that score.
        """
        bounds = [] if self.min_score is None else [self.min_score]
        if self.max_drop is not None:
            if math.isinf(reference):
                raise RecipeError(
                    f"the float model's {metric.name} is infinite, a drop from it has no meaning; say what must be "
                    "reached instead (--min-score 30)"
                )
            if self.relative and reference == 0:
                raise RecipeError(
                    f"the float model's {metric.name} is 0, so there is no part of it to lose; give the drop in points"
                )
            drop = self.max_drop * abs(reference) if self.relative else self.max_drop
            bounds.append(reference - drop if metric.higher_is_better else reference + drop)
        return max(bounds) if metric.higher_is_better else min(bounds)

    def met(self, score: float, reference: float, metric: Metric) -> bool:
        """Whether a score is good enough."""
        return self.missing(score, reference, metric) <= 0

    def missing(self, score: float, reference: float, metric: Metric) -> float:
        """How many points of the metric a score is short of what is good enough; 0 if it is good enough."""
        threshold = self.threshold(reference, metric)
        short = threshold - score if metric.higher_is_better else score - threshold
        if math.isnan(short):
            return math.inf
        return short if short > _SLACK * max(1.0, abs(threshold)) else 0.0

    def __str__(self) -> str:
        parts = []
        if self.max_drop is not None:
            parts.append(f"a drop of {100 * self.max_drop:g} %" if self.relative else f"a drop of {self.max_drop:g}")
        if self.min_score is not None:
            parts.append(f"a score of {self.min_score:g}")
        return " and ".join(parts)


def parse_budget(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m``, ``1h30m``.

    Raises:
        RecipeError: If it is none of these, or no time at all.
    """
    found = _DURATION.fullmatch(text.strip())
    parts = found.groups() if found else (None, None, None)
    hours, minutes, seconds = (float(part) if part else 0.0 for part in parts)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise RecipeError(f"budget {text!r}: write a time such as 10m, 90s or 1h30m")
    return total
