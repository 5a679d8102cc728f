"""AdaRound's optimization: soft roundings that are driven to up or down while the output's error is kept low."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.adaround import AdaRoundConfig

if TYPE_CHECKING:
    from onnxq.algos.weight.rounding import Choices, Layer

Gradient = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""From a weight, shape (R, K), and the number of a minibatch to the gradient of the reconstruction error."""

_FLOPS = 4e7
"""A minibatch is made so small that a step takes about so many operations."""
_SMALLEST, _LARGEST = 32, 256
_CHECKS = 50
_DECIDED = 0.02
_REACH = 10.0
_RATES = (1e-3, 1e-1)


@dataclass
class State:
    """The variables of the optimizer, all of shape (R, K), float32."""

    alpha: NDArray[np.float32]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    sigmoid: NDArray[np.float32]
    weight: NDArray[np.float32]


def run(
    layer: Layer, choices: Choices, config: AdaRoundConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], int]:
    """Anneal from the soft roundings that reproduce the float weight.

    Returns:
        1 where a weight is to be rounded up, shape (R, K), and how many steps were made: fewer than asked for where
        all roundings are decided before.
    """
    state = start(choices)
    gradient, batches = make_gradient(layer)
    order = rng.permutation(batches)
    every = max(1, config.num_iteration // _CHECKS)
    for number in range(config.num_iteration):
        reg, beta = schedule(config, number)
        step(state, choices, gradient(state.weight, order[number % batches]), config, number, reg, beta)
        if number % every == every - 1 and reg and decided(state, choices):
            return harden(state), number + 1
    return harden(state), config.num_iteration


def start(choices: Choices) -> State:
    """Variables with which each soft rounding is the fractional part."""
    span = np.where(choices.step > 0, choices.step, np.float32(1))
    soft = np.clip((choices.weight - choices.base) / span, 0.0, 1.0).astype(np.float32)
    sigmoid = np.clip((soft + np.float32(0.1)) / np.float32(1.2), 1e-6, 1 - 1e-6).astype(np.float32)
    alpha = np.log(sigmoid / (1 - sigmoid)).astype(np.float32)
    zeros = np.zeros_like(alpha)
    return State(alpha, zeros, zeros.copy(), sigmoid, (choices.base + soft * choices.step).astype(np.float32))


def schedule(config: AdaRoundConfig, number: int) -> tuple[float, float]:
    """Weight and exponent of the regulariser in a step: off at first, then from steep to flat along a cosine."""
    warm = config.warm_start * config.num_iteration
    if number < warm:
        return 0.0, config.beta_start
    share = (number - warm) / max(config.num_iteration - warm, 1)
    swing = 0.5 * (config.beta_start - config.beta_end) * (1 + math.cos(math.pi * share))
    return config.reg_param, config.beta_end + swing


def rate(config: AdaRoundConfig) -> float:
    """Adam's learning rate: AMCT's for its 10000 steps, larger where fewer must come as far."""
    return min(max(_REACH / config.num_iteration, _RATES[0]), _RATES[1])


def step(
    state: State, choices: Choices, gradient: NDArray[np.float32], config: AdaRoundConfig,
    number: int, reg: float, beta: float,
) -> None:  # fmt: skip
    """One step of Adam.

    Args:
        state: Changed.
        choices: The codes.
        gradient: Of the reconstruction error by the weight, shape (R, K).
        config: Its `num_iteration` sets the learning rate.
        number: Of the step, from 0.
        reg: Weight of the regulariser.
        beta: Its exponent.
    """
    from onnxq.algos.weight._adaround_kernels import adam_step

    arrays = (state.alpha, state.first, state.second, state.sigmoid, gradient, choices.base, choices.step, state.weight)
    first, second = 1 - 0.9 ** (number + 1), 1 - 0.999 ** (number + 1)
    adam_step(*(a.reshape(-1) for a in arrays), rate(config) / first, 1 / math.sqrt(second), reg, beta, 1e-8)


def soft(state: State) -> NDArray[np.float32]:
    """The rectified sigmoids, shape (R, K)."""
    result: NDArray[np.float32] = np.clip(1.2 * state.sigmoid - 0.1, 0.0, 1.0).astype(np.float32)
    return result


def harden(state: State) -> NDArray[np.uint8]:
    """1 where a weight is rather up, shape (R, K)."""
    return (state.sigmoid >= 0.5).astype(np.uint8)


def decided(state: State, choices: Choices) -> bool:
    """Whether every rounding with a choice is up or down."""
    h = soft(state)
    return not ((h > _DECIDED) & (h < 1 - _DECIDED) & (choices.step > 0)).any()


def make_gradient(layer: Layer) -> tuple[Gradient, int]:
    """How a layer's gradient is computed at the least cost, and over how many different minibatches.

    Without an activation the loss is a quadratic form, whose gradient needs the Gram matrix only and sees all samples.
    """
    groups, columns, count = layer.inputs.shape
    rows = layer.target.shape[0]
    batch = int(min(max(_FLOPS / (4 * rows * columns), _SMALLEST), _LARGEST, count))
    if layer.activation.name == "identity" and groups == 1 and columns <= 2 * batch:
        gram, cross = layer.gram()
        return lambda weight, _: 2 * (weight @ gram[0] - cross), 1
    if groups > 1:
        return _grouped(layer, batch), max(1, count // batch)
    return _dense(layer, batch), max(1, count // batch)


def _grouped(layer: Layer, batch: int) -> Gradient:
    from onnxq.algos.weight._adaround_kernels import grouped_gradient

    after = layer.activation
    out = np.empty((layer.target.shape[0], layer.inputs.shape[1]), np.float32)

    def gradient(weight: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        begin = int(number) * batch
        target = layer.target[:, begin : begin + batch]
        grouped_gradient(layer.inputs, begin, batch, weight, layer.bias, target, after.kind, after.p, after.q, out)
        return out

    return gradient


def _dense(layer: Layer, batch: int) -> Gradient:
    from onnxq.algos.weight._adaround_kernels import residuals

    after = layer.activation
    losses = np.empty(layer.target.shape[0])

    def gradient(weight: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        part = slice(int(number) * batch, (int(number) + 1) * batch)
        x = layer.inputs[0, :, part]
        z = weight @ x
        z += layer.bias[:, None]
        residuals(z, layer.target[:, part], after.kind, after.p, after.q, losses)
        z *= np.float32(1 / batch)
        return z @ x.T

    return gradient
