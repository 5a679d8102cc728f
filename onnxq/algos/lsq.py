"""Quantizers whose scales are learned: what they compute, their gradients, and the scales that training left.

Every function here says in numpy what the same quantizer computes in a training graph, operation by operation in
float32, so that trained numbers mean the same in the quantized model. Gradients are those of the straight-through
estimator: rounding is taken for the identity.

Sources: Jain et al. 2019 (trained thresholds) and AMCT's ULQ for ranges; Choi et al. 2018 (PACT); Esser et al. 2020
(LSQ); Bhalgat et al. 2020 (LSQ+).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.affine import params_from_range
from onnxq.spec import PerAxis, QuantParams, QuantSpec

Array = NDArray[np.float32]
Exact = NDArray[np.float64]

TINY = np.float32(1e-8)
"""The smallest upper end of a range."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The reals that codes stand for: ``step * k`` for whole ``k`` from `first` to `last`.

    Attributes:
        step: float32, > 0.
        first: The lowest code less the zero point, at most 0.
        last: The highest code less the zero point, at least 0.
    """

    step: np.float32
    first: int
    last: int

    @property
    def low(self) -> np.float32:
        """The smallest real."""
        return np.float32(np.float32(self.first) * self.step)

    @property
    def high(self) -> np.float32:
        """The largest real."""
        return np.float32(np.float32(self.last) * self.step)

    def params(self, spec: QuantSpec) -> QuantParams:
        """The scale and zero point of these reals."""
        return QuantParams(spec, np.asarray(self.step), np.asarray(spec.bounds[0] - self.first, np.int32))

    def round(self, x: Array) -> Array:
        """The nearest of these reals, ties to the even multiple."""
        limited = np.minimum(np.maximum(x, self.low), self.high)
        return np.rint(limited / self.step) * self.step


# ---- ranges ------------------------------------------------------------------------------


def range_grid(high: float, low: float, spec: QuantSpec) -> Grid:
    """The grid of a range whose ends are learned.

    Args:
        high: Upper end; at least `TINY` is taken.
        low: Lower end; at most 0 is taken. A symmetric specification does not look at it.
        spec: The codes.
    """
    qmin, qmax = spec.bounds
    top = max(np.float32(high), TINY)
    if spec.symmetric:
        return Grid(np.float32(top / np.float32(qmax - spec.middle)), qmin - spec.middle, qmax - spec.middle)
    bottom = min(np.float32(low), np.float32(0))
    levels = qmax - qmin
    step = np.float32(np.float32(top - bottom) / np.float32(levels))
    first = int(np.rint(np.float32(bottom / step)))
    return Grid(step, first, first + levels)


@dataclass(frozen=True, slots=True)
class RangeGradient:
    """Gradients of a learned range.

    Attributes:
        x: By the tensor, float64, its shape.
        high: By the upper end.
        low: By the lower end; of a symmetric range it is part of `high`.
    """

    x: Exact
    high: float
    low: float


def ulq_gradient(x: Array, upstream: Array, high: float, low: float, spec: QuantSpec) -> RangeGradient:
    """Gradients of `Grid.round` of `range_grid`.

    With e the error of rounding in steps, over the number of steps: the upper end gets e inside the range and 1 above,
    the lower end -e inside and 1 below.

    Source: specs of AMCT, section 1.8.
    """
    grid = range_grid(high, low, spec)
    above, below, inside, error = _parts(x, grid)
    g = upstream.astype(np.float64)
    if spec.symmetric:
        steps = grid.last
        at_high = np.where(inside, error / steps, np.where(above, 1.0, grid.first / steps))
        return RangeGradient(g * inside, float((g * at_high).sum()), 0.0)
    steps = grid.last - grid.first
    at_high = np.where(inside, error / steps, above)
    at_low = np.where(inside, -error / steps, below)
    return RangeGradient(g * inside, float((g * at_high).sum()), float((g * at_low).sum()))


def pact_gradient(x: Array, upstream: Array, high: float, low: float, spec: QuantSpec) -> RangeGradient:
    """Gradients of PACT: the ends get what is cut off, and nothing of the rounding."""
    above, below, inside, _ = _parts(x, range_grid(high, low, spec))
    g = upstream.astype(np.float64)
    return RangeGradient(g * inside, float((g * above).sum()), float((g * below).sum()))


def _parts(x: Array, grid: Grid) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], Exact]:
    above, below = x > grid.high, x < grid.low
    steps = x.astype(np.float64) / float(grid.step)
    return above, below, ~(above | below), np.rint(steps) - steps


# ---- steps -------------------------------------------------------------------------------


def step_grid(log_step: float, offset: float, spec: QuantSpec) -> Grid:
    """The grid of a learned step and offset.

    Args:
        log_step: Natural logarithm of the step.
        offset: The real in the place of code 0, or of the middle code where the specification is symmetric, where it
            is not looked at.
        spec: The codes.
    """
    qmin, qmax = spec.bounds
    step = np.exp(np.float32(log_step))
    if spec.symmetric:
        return Grid(step, qmin - spec.middle, qmax - spec.middle)
    shift = np.rint(np.float32(offset) / step)
    shift = int(min(max(shift, np.float32(-qmax)), np.float32(-qmin)))
    return Grid(step, qmin + shift, qmax + shift)


@dataclass(frozen=True, slots=True)
class StepGradient:
    """Gradients of a learned step.

    Attributes:
        x: By the tensor, float64, its shape.
        log_step: By the logarithm of the step, float64, the shape of the steps.
        offset: By the offset.
    """

    x: Exact
    log_step: Exact
    offset: float = 0.0


def lsq_plus_gradient(x: Array, upstream: Array, log_step: float, offset: float, spec: QuantSpec) -> StepGradient:
    """Gradients of `Grid.round` of `step_grid`: the offset gets what is cut off, unless it has gone as far as codes go.

    Source: Bhalgat et al., "LSQ+", CVPR workshops 2020, equations 3 and 4, by the logarithm of the step.
    """
    grid = step_grid(log_step, offset, spec)
    above, below, inside, error = _parts(x, grid)
    step, g = float(grid.step), upstream.astype(np.float64)
    fixed = spec.symmetric or not -spec.bounds[1] <= np.rint(np.float64(offset) / step) <= -spec.bounds[0]
    moved = 0.0 if fixed else float(np.float64(offset) / step)
    outside = np.where(above, grid.last, grid.first) - moved
    by_step = np.where(inside, error, outside) * step
    cut = 0.0 if fixed else float((g * (above | below)).sum())
    return StepGradient(g * inside, np.asarray((g * by_step).sum()), cut)


def lsq(weight: Array, log_scale: Array, spec: QuantSpec) -> Array:
    """A weight in the reals its codes stand for.

    Args:
        weight: float32.
        log_scale: Natural logarithm of the scale, float32, of a shape that broadcasts against `weight`.
        spec: The codes, symmetric and signed.
    """
    scale = np.exp(log_scale.astype(np.float32))
    qmin, qmax = spec.bounds
    return np.rint(np.clip(weight / scale, np.float32(qmin), np.float32(qmax))) * scale


def lsq_gradient(weight: Array, upstream: Array, log_scale: Array, spec: QuantSpec) -> StepGradient:
    """Gradients of `lsq`.

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 3 and 5; by the logarithm of the step.
    """
    scale = np.exp(log_scale.astype(np.float64))
    qmin, qmax = spec.bounds
    steps = weight.astype(np.float64) / scale
    inside = (steps >= qmin) & (steps <= qmax)
    by_scale = np.where(inside, np.rint(steps) - steps, np.clip(steps, qmin, qmax)) * scale
    g = upstream.astype(np.float64)
    axes = tuple(i for i, size in enumerate(_padded(log_scale.shape, weight.ndim)) if size == 1)
    return StepGradient(g * inside, (g * by_scale).sum(axis=axes, keepdims=True).reshape(log_scale.shape))


def gradient_scale(size: int, scales: int, spec: QuantSpec) -> float:
    """What LSQ multiplies the gradient of a step with: ``1 / sqrt(weights per step * largest code)``.

    Source: Esser et al. 2020, section 2.2.
    """
    return 1.0 / math.sqrt(max(size // max(scales, 1), 1) * max(spec.bounds[1] - spec.middle, 1))


def moments_step(weight: Array, spec: QuantSpec, *, narrow: bool = False) -> Array:
    """The step that LSQ+ begins with: the larger of ``|mean - 3 std|`` and ``|mean + 3 std|`` over the codes.

    Args:
        weight: float32.
        spec: The codes, one step or one per channel.
        narrow: Over ``2**bits - 1`` codes, as PaddleSlim does, and not over the ``2**(bits - 1)`` on one side of zero.

    Returns:
        float32, the shape of the scales.

    Source: Bhalgat et al. 2020, section 3.2; PaddleSlim, quant/quanters/lsq_weight.py.
    """
    axis = spec.granularity.axis if isinstance(spec.granularity, PerAxis) else None
    rest = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    mean, deviation = (f(axis=rest, dtype=np.float64) for f in (weight.mean, weight.std))
    reach = np.maximum(np.abs(mean - 3 * deviation), np.abs(mean + 3 * deviation))
    codes = (1 << spec.bits) - 1 if narrow else 1 << (spec.bits - 1)
    step: Array = np.maximum(reach / codes, float(TINY)).astype(np.float32)
    return step


def _padded(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + shape


# ---- scales that follow from the weights -----------------------------------------------------


def arq_params(weight: Array, spec: QuantSpec, *, full_range: bool = False) -> QuantParams:
    """The scales that ARQ takes from a weight, as a training graph computes them.

    Args:
        weight: float32.
        spec: The codes, symmetric and signed, one scale or one per channel.
        full_range: Where the negative side is the wider one, the lowest code stands for it.
    """
    axis = spec.granularity.axis if isinstance(spec.granularity, PerAxis) else None
    rest = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    low = np.minimum(weight.min(axis=rest), np.float32(0))
    high = np.maximum(weight.max(axis=rest), np.float32(0))
    qmin, qmax = spec.bounds
    scale = np.maximum(high, -low) / np.float32(qmax)
    if full_range:
        scale = np.where(high >= -low, high / np.float32(qmax), -low / np.float32(-qmin))
    scale = np.maximum(scale.astype(np.float32), TINY)
    return QuantParams(spec, scale, np.zeros(scale.shape, np.int32))


def log_params(log_scale: Array, spec: QuantSpec) -> QuantParams:
    """The scales whose logarithms training has left.

    Args:
        log_scale: float32, one number or one per channel, in any shape of so many elements.
        spec: The codes, symmetric and signed.
    """
    shape = (-1,) if isinstance(spec.granularity, PerAxis) else ()
    scale = np.exp(np.asarray(log_scale, np.float32)).reshape(shape)
    return QuantParams(spec, scale, np.zeros(scale.shape, np.int32))


def start_of_range(params: QuantParams, *, fixed_min: bool) -> tuple[float, float]:
    """The ends that a range has where training begins: those that calibration gave.

    Returns:
        Upper and lower end.
    """
    if fixed_min and not params.spec.symmetric:
        params = params_from_range(0.0, max(float(params.high), float(TINY)), params.spec)
    return float(params.high), float(params.low)
