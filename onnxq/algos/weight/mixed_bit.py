"""One step for a whole weight, as large as a relative error allows: the width of the codes follows from it.

Sources: MindSpore Lite's mixed-bit weight quantization (specs of MindSpore Lite, section A5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight._groups import pieces
from onnxq.algos.weight.codes import WeightCodes, encode
from onnxq.algos.weight.mean_variance import variance_ratio
from onnxq.errors import CalibrationError
from onnxq.spec import PerTensor

TOLERANCE = 0.01
"""How far the error may be from what is wanted, relatively."""
MAX_TRIALS = 100
"""How often the range of steps is halved at the most."""
WIDEST = 16
"""Most bits a code may have."""
_CONSTANT = 1e-5
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class FoundStep:
    """The step of one weight and what it leads to.

    Attributes:
        step: The step, rounded to float32.
        variance: Factor that gives the standard deviation back.
        mean: What gives the mean back.
        error: ``norm(weight - decoded) / norm(weight)``, 0 for a weight of zeros.
        low: The smallest code.
        high: The largest code.
        entropy: Shannon entropy of the codes in bits: what an entropy coder needs for each.
        elements: How many weights there are.
        trials: How many steps were tried.
        reason: Why the step cannot be used; empty where it can.
    """

    step: float
    variance: float
    mean: float
    error: float
    low: int
    high: int
    entropy: float
    elements: int
    trials: int
    reason: str = ""

    @property
    def bits(self) -> int:
        """The smallest width that holds all codes, 1 at least."""
        return max(1, (self.high - self.low).bit_length())

    def codes(self) -> WeightCodes:
        """The codes of this step.

        Raises:
            ValueError: If they are wider than 16 bits.
        """
        scale, variance, mean = (np.array(v, np.float32) for v in (self.step, self.variance, self.mean))
        return WeightCodes(self.bits, self.low, None, scale, np.array(0, np.int32), variance, mean)


class _Weight:
    """A weight and the sums that the error of any step follows from."""

    def __init__(self, weight: NDArray[np.float32], *, correction: bool) -> None:
        self.weight = weight
        self.correction = correction
        self.trials = 0
        self.low, self.high = np.inf, -np.inf
        total = 0.0
        for _, part in pieces(weight, PerTensor()):
            self.low, self.high = min(self.low, float(part.min())), max(self.high, float(part.max()))
            total += float(part.sum(dtype=np.float64))
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise CalibrationError("the weight holds NaN or infinity; repair or leave out this layer")
        self.count = weight.size
        self.mean = total / self.count
        gaps = (np.subtract(part, self.mean, dtype=np.float64) for _, part in pieces(weight, PerTensor()))
        squares = (float(np.square(gap).sum()) for gap in gaps)
        self.variance = 0.0 if self.low == self.high else sum(squares) / self.count
        self.power = self.variance + self.mean * self.mean

    def judge(self, step: float) -> tuple[float, float, float]:
        """The relative error of a step, the factor for the variance, and what is added for the mean."""
        from onnxq.algos.weight._codes_kernels import step_sums

        self.trials += 1
        width = np.float32(step)
        sums = np.zeros(3)
        for _, part in pieces(self.weight, PerTensor()):
            sums += step_sums(part.reshape(-1), width)
        code_mean, code_power, product = sums / self.count
        spread = max(code_power - code_mean * code_mean, 0.0)
        ratio = self._ratio(float(width) * math.sqrt(spread))
        factor = float(width * ratio)
        mean = float(np.float32(self.mean - code_mean * factor)) if self.correction else 0.0
        together = product - self.mean * code_mean
        bias = self.mean - code_mean * factor - mean
        error = self.variance - 2 * factor * together + factor * factor * spread + bias * bias
        return math.sqrt(max(error, 0.0) / self.power) if self.power else 0.0, float(ratio), mean

    def _ratio(self, deviation: float) -> np.float32:
        if not self.correction:
            return np.float32(1)
        before = np.array([math.sqrt(self.variance)])
        return np.float32(variance_ratio(before, np.array([deviation]))[0])


def find_step(weight: NDArray[np.float32], wanted: float, *, correction: bool = True) -> FoundStep:
    """Return the step whose relative error is within 1 % of `wanted`.

    From a first guess the step is doubled until it is too large and halved until it is not, and the space between is
    bisected. Where the error jumps over what is wanted, because there are few weights, the largest step tried whose
    error is below it is taken.

    Args:
        weight: float32, any shape; a memmap is read in pieces, once for each step tried.
        wanted: Relative error, between 0 and 1.
        correction: Give the mean and the variance back, and measure the error behind that.

    Returns:
        The step; one with a `reason` where codes of more than 16 bits would be needed.

    Raises:
        CalibrationError: If the weight holds NaN or infinity.
    """
    known = _Weight(weight, correction=correction)
    if known.high < known.low + _CONSTANT:
        step = abs(known.high) + _CONSTANT
        if known.judge(step)[0] <= wanted:
            return _found(known, step)
    start, largest = (known.high - known.low) * wanted, 2 * max(abs(known.low), abs(known.high))
    return _found(known, _bisect(lambda value: known.judge(value)[0], wanted, start, largest))


def closed_form_step(weight: NDArray[np.float32], wanted: float, *, correction: bool = True) -> FoundStep:
    """Return the step that follows from the norm of a weight, without a search.

    Args:
        weight: float32, any shape.
        wanted: The part of the norm that the step is; there is more to it for weights with few elements.
        correction: Give the mean and the variance back.

    Raises:
        CalibrationError: If the weight holds NaN or infinity.
    """
    known = _Weight(weight, correction=correction)
    norm = math.sqrt(known.power * known.count)
    return _found(known, max((wanted + TOLERANCE * math.sqrt(24 / known.count)) * norm, _CONSTANT * 2.0**-20))


def _bisect(error: Callable[[float], float], wanted: float, start: float, largest: float) -> float:
    right = 2 * start
    while error(right) < wanted:
        if right > largest:
            return right  # even a single code is good enough
        right *= 2
    left = start / 2
    for _ in range(_HALVINGS):
        if error(left) <= wanted:
            break
        left /= 2
    step = start if left < start < right else (left + right) / 2
    for _ in range(MAX_TRIALS):
        found = error(step)
        if abs(found - wanted) / wanted < TOLERANCE:
            return step
        left, right = (left, step) if found > wanted else (step, right)
        if np.float32(left) == np.float32(right):
            break
        step = (left + right) / 2
    return left


def _found(known: _Weight, step: float) -> FoundStep:
    width = np.float32(step)
    error, ratio, mean = known.judge(float(width))
    low, high = (int(_rounded(bound / float(width))) for bound in (known.low, known.high))
    bits = (high - low).bit_length()
    reason = f"codes of {bits} bits would be needed, {WIDEST} are the most" if bits > WIDEST else ""
    plain = FoundStep(float(width), ratio, mean, error, low, high, 0.0, known.count, known.trials, reason)
    entropy = 0.0 if reason else _entropy(known.weight, plain.codes())
    return FoundStep(float(width), ratio, mean, error, low, high, entropy, known.count, known.trials, reason)


def _rounded(value: float) -> float:
    return math.trunc(value + math.copysign(0.5, value))


def _entropy(weight: NDArray[np.float32], codes: WeightCodes) -> float:
    """Bits per code that an ideal entropy coder needs."""
    counts = np.zeros(1 << codes.bits, np.int64)
    for _, part in pieces(weight, PerTensor()):
        counts += np.bincount(encode(part.reshape(-1), codes) - codes.low, minlength=counts.size)
    share = counts[counts > 0] / weight.size
    return max(0.0, float(-(share * np.log2(share)).sum()))
