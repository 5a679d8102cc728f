"""AdaRound's optimization: soft roundings that are driven to up or down while the output's error is kept low.

Output channels do not depend on each other, so threads handle them in chunks, each of which stays in a core's cache.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight.adaround import AdaRoundConfig

if TYPE_CHECKING:
    from onnxq.algos.weight.rounding import Choices, Layer

Matrix = NDArray[np.float32]

_PRODUCTS = 1 << 21
"""A minibatch is made so small that a step takes about so many products."""
_SMALLEST, _LARGEST = 32, 256
_CHUNK_PRODUCTS = 250_000
"""OpenBLAS shares larger matrix products among threads of its own, which only disturb each other here."""
_MOST_ROWS = 64
_CHECKS = 20
_PATIENCE = 4
_GAIN = 1e-3
_HOPELESS = 1.2
"""So much larger an error than a search found before is not made up for any more once the regulariser is on."""
_CHECKED = 4096
_REACH = 10.0
_RATES = (1e-3, 1e-1)


@dataclass
class State:
    """The variables of the optimizer, all of shape (rows, K), float32, C contiguous."""

    alpha: Matrix
    first: Matrix
    second: Matrix
    sigmoid: Matrix
    weight: Matrix


@dataclass(frozen=True)
class Batches:
    """The inputs of a layer, packed by minibatch.

    Attributes:
        inputs: shape (N, G, K, B).
        targets: shape (N, R, B).
    """

    inputs: Matrix
    targets: Matrix

    @staticmethod
    def of(layer: Layer) -> Batches:
        """Pack; samples that do not fill a minibatch are left out."""
        groups, columns, count = layer.inputs.shape
        rows = layer.target.shape[0]
        size = int(min(max(_PRODUCTS / (rows * columns), _SMALLEST), _LARGEST, count))
        number = count // size
        x = layer.inputs[:, :, : number * size].reshape(groups, columns, number, size)
        t = layer.target[:, : number * size].reshape(rows, number, size)
        return Batches(np.ascontiguousarray(x.transpose(2, 0, 1, 3)), np.ascontiguousarray(t.transpose(1, 0, 2)))


def run(
    layer: Layer, choices: Choices, config: AdaRoundConfig, rng: np.random.Generator, *,
    rival: NDArray[np.uint8] | None = None, workers: int = 1,
) -> tuple[NDArray[np.uint8], int]:  # fmt: skip
    """Anneal from the soft roundings that reproduce the float weight.

    A chunk of channels ends early where hardening its roundings has not given a smaller error for a while, or where it
    is far from what is known already.

    Args:
        layer: Inputs and targets.
        choices: The codes.
        config: The schedule.
        rng: Decides on the order of minibatches.
        rival: Roundings that are known already, shape (R, K).
        workers: Threads; they do not change the result.

    Returns:
        1 where a weight is to be rounded up, shape (R, K), the best that any check found; and how many steps the chunk
        that took longest made.
    """
    batches = Batches.of(layer)
    order = rng.permutation(len(batches.inputs))
    rows, columns = choices.base.shape
    size = max(1, min(_MOST_ROWS, _CHUNK_PRODUCTS // (columns * batches.inputs.shape[3])))
    chunks = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]

    def work(part: slice) -> tuple[NDArray[np.uint8], int]:
        own, chunk = choices.part(part), Chunk(layer, batches, part)
        known = math.inf if rival is None else float(chunk.losses(own.weights(rival[part])).sum())
        return _anneal(chunk, own, order, config, known)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        found = list(pool.map(work, chunks))
    return np.concatenate([up for up, _ in found]), max(steps for _, steps in found)


def _anneal(
    chunk: Chunk, choices: Choices, order: NDArray[np.int64], config: AdaRoundConfig, known: float
) -> tuple[NDArray[np.uint8], int]:
    state = start(choices)
    best = harden(state)
    losses = chunk.losses(choices.weights(best))
    every = max(1, config.num_iteration // _CHECKS)
    total, since = float(losses.sum()), 0
    for number in range(config.num_iteration):
        reg, beta = schedule(config, number)
        gradient = chunk.gradient(state.weight, int(order[number % len(order)]))
        advance(state, choices, gradient, config, number, reg, beta)
        if number % every == every - 1 or number == config.num_iteration - 1:
            up = harden(state)
            found = chunk.losses(choices.weights(up))
            best = np.where((found < losses)[:, None], up, best)
            losses = np.minimum(found, losses)
            improved = float(losses.sum()) < total * (1 - _GAIN)
            total, since = float(losses.sum()), 0 if improved or not reg else since + 1
            if since >= _PATIENCE or (reg and total > _HOPELESS * known):
                return best, number + 1
    return best, config.num_iteration


def start(choices: Choices) -> State:
    """Variables with which each soft rounding is the fractional part."""
    span = np.where(choices.step > 0, choices.step, np.float32(1))
    share = np.clip((choices.weight - choices.base) / span, 0.0, 1.0).astype(np.float32)
    sigmoid = np.clip((share + np.float32(0.1)) / np.float32(1.2), 1e-6, 1 - 1e-6).astype(np.float32)
    alpha = np.log(sigmoid / (1 - sigmoid)).astype(np.float32)
    zeros = np.zeros_like(alpha)
    return State(alpha, zeros, zeros.copy(), sigmoid, (choices.base + share * choices.step).astype(np.float32))


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


def advance(
    state: State, choices: Choices, gradient: Matrix, config: AdaRoundConfig, number: int, reg: float, beta: float
) -> None:
    """One step of Adam.

    Args:
        state: Changed.
        choices: The codes.
        gradient: Of the reconstruction error by the weight, shape (rows, K); overwritten.
        config: Its `num_iteration` sets the learning rate.
        number: Of the step, from 0.
        reg: Weight of the regulariser.
        beta: Its exponent.
    """
    from onnxq.algos.weight._adaround_kernels import adam_step

    first, second = 1 - 0.9 ** (number + 1), 1 - 0.999 ** (number + 1)
    adam_step(
        state.alpha.reshape(-1), state.first.reshape(-1), state.second.reshape(-1), state.sigmoid.reshape(-1),
        gradient.reshape(-1), choices.base.reshape(-1), choices.step.reshape(-1), state.weight.reshape(-1),
        rate(config) / first, 1 / math.sqrt(second), reg, beta, 1e-8,
    )  # fmt: skip


def soft(state: State) -> Matrix:
    """The rectified sigmoids, shape (rows, K)."""
    result: Matrix = np.clip(np.float32(1.2) * state.sigmoid - np.float32(0.1), 0.0, 1.0)
    return result


def harden(state: State) -> NDArray[np.uint8]:
    """1 where a weight is rather up, shape (rows, K)."""
    return (state.sigmoid >= 0.5).astype(np.uint8)


class Chunk:
    """Some output channels of a layer.

    Args:
        layer: The whole layer.
        batches: Its inputs.
        part: Which output channels.
    """

    def __init__(self, layer: Layer, batches: Batches, part: slice) -> None:
        rows = part.stop - part.start
        _, groups, columns, size = batches.inputs.shape
        self._batches = batches
        self._part = part
        self._grouped = groups > 1
        self._per = layer.target.shape[0] // groups
        self._after = layer.activation.part(part)
        self._bias = layer.bias[part]
        self._share = 2.0 / size
        self._z = np.empty((rows, size), np.float32)
        self._out = np.empty((rows, columns), np.float32)

    def gradient(self, weight: Matrix, number: int) -> Matrix:
        """Gradient of a minibatch's mean squared error by the weight, shape (rows, K)."""
        from onnxq.algos.weight._adaround_kernels import error_gradient, grouped_gradient

        self._multiply(weight, number)
        after, target = self._after, self._batches.targets[number, self._part]
        error_gradient(self._z, target, after.kind, after.p, after.q, self._bias, self._share)
        x = self._batches.inputs[number]
        if self._grouped:
            grouped_gradient(x, self._z, self._out, self._per, self._part.start)
        else:
            np.matmul(self._z, x[0].T, out=self._out)
        return self._out

    def losses(self, weight: Matrix) -> NDArray[np.float64]:
        """Squared error of each channel over some thousand samples, shape (rows,)."""
        from onnxq.algos.weight._adaround_kernels import add_errors

        found = np.zeros(len(weight))
        after = self._after
        for number in range(min(len(self._batches.inputs), max(_CHECKED // self._z.shape[1], 1))):
            self._multiply(weight, number)
            target = self._batches.targets[number, self._part]
            add_errors(self._z, target, after.kind, after.p, after.q, self._bias, found)
        return found

    def _multiply(self, weight: Matrix, number: int) -> None:
        from onnxq.algos.weight._adaround_kernels import grouped_product

        x = self._batches.inputs[number]
        if self._grouped:
            grouped_product(x, weight, self._z, self._per, self._part.start)
        else:
            np.matmul(weight, x[0], out=self._z)
