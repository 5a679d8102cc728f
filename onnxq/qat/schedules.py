"""Learning rates by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnxq.errors import TrainingError

Shape = Literal["constant", "cosine", "linear", "step"]
SHAPES: tuple[Shape, ...] = ("constant", "cosine", "linear", "step")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate of every step of a training.

    Attributes:
        rate: The highest rate.
        steps: How many steps there are.
        shape: ``cosine`` and ``linear`` fall to 0; ``step`` is divided by 10 after a half and after three quarters.
        warmup: In so many steps the rate rises to the highest.

    Raises:
        TrainingError: If a number is not allowed.
    """

    rate: float
    steps: int
    shape: Shape = "cosine"
    warmup: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise TrainingError(f"the learning rate is {self.rate}; give a positive number, such as 0.001")
        if self.shape not in SHAPES:
            raise TrainingError(f"there is no schedule {self.shape!r}; use one of {', '.join(SHAPES)}")
        if not 0 <= self.warmup <= self.steps:
            raise TrainingError(f"{self.warmup} warm-up steps do not fit into {self.steps} steps of training")

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        part = (step - self.warmup) / max(self.steps - self.warmup, 1)
        match self.shape:
            case "constant":
                return self.rate
            case "cosine":
                return self.rate * 0.5 * (1 + math.cos(math.pi * part))
            case "linear":
                return self.rate * (1 - part)
            case "step":
                return self.rate * (1.0 if part < 0.5 else 0.1 if part < 0.75 else 0.01)
