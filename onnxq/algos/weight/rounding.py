"""Which weights of a layer to round up: the problem as arrays, its loss, and how AdaRound solves it.

A layer is a set of matrices: each output channel is a row of weights that is multiplied with the unfolded inputs of its
group. A weight has two codes to choose from, the ones around it, or a single one where it is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight import _adaround_anneal as anneal
from onnxq.algos.weight.adaround import AdaRoundConfig

Matrix = NDArray[np.float32]
Vector = NDArray[np.float32]

ActivationName = Literal["identity", "leaky", "clip", "sigmoid", "tanh", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[ActivationName, ...] = ("identity", "leaky", "clip", "sigmoid", "tanh", "gelu", "gelu_tanh")
"""In the order of the kernels' numbers."""

_DAMPING = 0.01
_CHUNK = 16
_SWEEPS = 4
_MOVES = 4
_SEARCHED = 8192
_MODELLED = 2048
_ROUNDS = 2
_FEW = 9
"""With so many weights in a channel, as in a depthwise 3 x 3 convolution, all roundings are tried."""
_OWN_PRODUCTS = 1 << 39


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """What follows a layer: its name and two numbers per output channel.

    Attributes:
        name: ``leaky`` is PRelu too, ``clip`` is Relu too.
        p: shape (R,), the slope below zero, or the lower bound.
        q: shape (R,), the upper bound.
    """

    name: ActivationName
    p: Vector
    q: Vector

    @property
    def kind(self) -> int:
        """The kernels' number."""
        return ACTIVATIONS.index(self.name)

    def part(self, rows: slice) -> Activation:
        """That of some output channels."""
        return Activation(self.name, self.p[rows], self.q[rows])

    @staticmethod
    def none(rows: int) -> Activation:
        """No activation."""
        return Activation("identity", np.zeros(rows, np.float32), np.zeros(rows, np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """The codes each weight may get, as reals.

    Attributes:
        weight: shape (R, K), float weights.
        base: shape (R, K), the lower choice.
        step: shape (R, K), what the upper one adds; 0 where there is none.
        nearest: shape (R, K), uint8, 1 where rounding to nearest takes the upper one.
    """

    weight: Matrix
    base: Matrix
    step: Matrix
    nearest: NDArray[np.uint8]

    @staticmethod
    def of(weight: Matrix, scale: Matrix, low: Matrix, high: Matrix) -> Choices:
        """The choices.

        Args:
            weight: shape (R, K).
            scale: As `weight`, the scale of each number.
            low: As `weight`, the lowest code, less the zero point.
            high: As `weight`, the highest.
        """
        real = weight / scale
        down = np.clip(np.floor(real), low, high)
        above = np.clip(np.floor(real) + 1, low, high)
        nearest = (np.clip(np.rint(real), low, high) > down).astype(np.uint8)
        return Choices(weight, down * scale, (above - down) * scale, nearest)

    def weights(self, up: NDArray[np.uint8]) -> Matrix:
        """The rounded weights, shape (R, K)."""
        return self.base + up * self.step

    def part(self, rows: slice) -> Choices:
        """Those of some output channels."""
        return Choices(self.weight[rows], self.base[rows], self.step[rows], self.nearest[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer and what it is to give.

    Attributes:
        inputs: shape (G, K, M), unfolded inputs of each group: what the rounded weights will be multiplied with.
        target: shape (R, M), the wanted outputs, behind the activation.
        bias: shape (R,).
        activation: What follows.
    """

    inputs: NDArray[np.float32]
    target: Matrix
    bias: Vector
    activation: Activation

    def first_samples(self, count: int) -> Layer:
        """The same layer over fewer samples; itself where it has no more."""
        if self.inputs.shape[2] <= count:
            return self
        inputs, target = (np.ascontiguousarray(v[..., :count]) for v in (self.inputs, self.target))
        return Layer(inputs, target, self.bias, self.activation)

    def outputs(self, weight: Matrix) -> Matrix:
        """Outputs before the activation, shape (R, M)."""
        out = self._products(weight)
        out += self.bias[:, None]
        return out

    def _products(self, weight: Matrix) -> Matrix:
        groups, columns, _ = self.inputs.shape
        out: Matrix = np.matmul(weight.reshape(groups, -1, columns), self.inputs)
        return out.reshape(len(weight), -1)

    def activated(self, weight: Matrix) -> Matrix:
        """Outputs behind the activation, shape (R, M)."""
        from onnxq.algos.weight._adaround_kernels import activate

        out = self.outputs(weight)
        activate(out, self.activation.kind, self.activation.p, self.activation.q)
        return out

    def losses(self, weight: Matrix) -> NDArray[np.float64]:
        """Mean squared error of each output channel behind the activation, shape (R,)."""
        from onnxq.algos.weight._adaround_kernels import add_errors

        found = np.zeros(weight.shape[0])
        after = self.activation
        add_errors(self._products(weight), self.target, after.kind, after.p, after.q, self.bias, found)
        found /= self.inputs.shape[2]
        return found

    def gram(self) -> tuple[NDArray[np.float32], Matrix]:
        """``X Xt / M``, shape (G, K, K), and ``(Y - b) Xt / M``, shape (R, K), for a layer without activation."""
        groups, columns, count = self.inputs.shape
        x = self.inputs
        wanted = (self.target - self.bias[:, None]).reshape(groups, -1, count)
        square = np.matmul(x, x.transpose(0, 2, 1)) / np.float32(count)
        cross = np.matmul(wanted, x.transpose(0, 2, 1)) / np.float32(count)
        return square, cross.reshape(-1, columns)


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """The roundings that were found.

    Attributes:
        up: shape (R, K), uint8.
        nearest_loss: Mean squared error, summed over the channels, of rounding to nearest.
        loss: The same of `up`; never larger.
        steps: How many steps of AdaRound were made.
    """

    up: NDArray[np.uint8]
    nearest_loss: float
    loss: float
    steps: int


def solve(
    layer: Layer, choices: Choices, config: AdaRoundConfig, rng: np.random.Generator, *, workers: int = 1
) -> Rounded:
    """Choose the roundings: local search from rounding to nearest, AdaRound, and local search from what it found.

    Each output channel gets the best of these; as the loss is a sum over channels, the layer is never worse than with
    rounding to nearest, on these data.

    Args:
        layer: Inputs and targets.
        choices: The codes.
        config: AdaRound's parameters; with ``num_iteration`` 0 weights are rounded to nearest.
        rng: Decides which samples a step sees.
        workers: Threads; they do not change the result.
    """
    best = choices.nearest
    losses = layer.losses(choices.weights(best))
    before = float(losses.sum())
    if not config.num_iteration or not choices.step.any():
        return Rounded(best, before, before, 0)
    searched = search(layer, choices, best, workers)
    start, steps = anneal.run(layer, choices, config, rng, rival=searched, workers=workers)
    for candidate in (searched, start, search(layer, choices, start, workers)):
        found = layer.losses(choices.weights(candidate))
        better = found < losses
        best = np.where(better[:, None], candidate, best)
        losses = np.where(better, found, losses)
    return Rounded(best, before, float(losses.sum()), steps)


def search(layer: Layer, choices: Choices, up: NDArray[np.uint8], workers: int = 1) -> NDArray[np.uint8]:
    """Improve roundings flip by flip: without an activation on the Gram matrix, else on the data.

    A little of the squared weight error is added to the loss: it decides where there are fewer samples than weights.

    Args:
        layer: Inputs and targets.
        choices: The codes.
        up: Where to start.
        workers: Threads.
    """
    found = up.copy()
    if layer.activation.name == "identity":
        return _on_gram(layer, choices, found, workers)
    return _on_rows(layer, choices, found, workers)


def _on_gram(layer: Layer, choices: Choices, up: NDArray[np.uint8], workers: int) -> NDArray[np.uint8]:
    from onnxq.algos.weight._adaround_search import search_gram

    gram, cross = layer.gram()
    groups, columns, _ = gram.shape
    ridge = _ridge(layer)
    gram[:, range(columns), range(columns)] += ridge
    cross += np.repeat(ridge, up.shape[0] // groups, axis=0) * choices.weight
    _by_rows(lambda a, b: search_gram(gram, cross, choices.base, choices.step, up, a, b, _MOVES), up.shape[0], workers)
    return up


def _on_rows(layer: Layer, choices: Choices, up: NDArray[np.uint8], workers: int) -> NDArray[np.uint8]:
    """Try all roundings of few weights.

    Of many, make flips on the data, then a few times: take the best of a quadratic model around them, flip from there.
    """
    layer = layer.first_samples(_SEARCHED)
    if up.shape[1] <= _FEW:
        return _all(layer, choices, up, workers)
    _flips(layer, choices, up, workers)
    losses = layer.losses(choices.weights(up))
    for _ in range(_ROUNDS):
        trial = _by_model(layer, choices, up, workers)
        _flips(layer, choices, trial, workers)
        found = layer.losses(choices.weights(trial))
        better = found < losses
        if not better.any():
            break
        up = np.where(better[:, None], trial, up)
        losses = np.where(better, found, losses)
    return up


def _all(layer: Layer, choices: Choices, up: NDArray[np.uint8], workers: int) -> NDArray[np.uint8]:
    from onnxq.algos.weight._adaround_search import search_all

    after, z = layer.activation, layer.outputs(choices.weights(up))
    args = (layer.inputs, layer.target, choices.step, up, z, after.kind, after.p, after.q, _FEW)
    _by_rows(lambda a, b: search_all(*args, a, b), up.shape[0], workers)
    return up


def _flips(layer: Layer, choices: Choices, up: NDArray[np.uint8], workers: int) -> None:
    from onnxq.algos.weight._adaround_search import search_rows

    z = layer.outputs(choices.weights(up))
    error = choices.base - choices.weight
    span = np.where(choices.step > 0, choices.step, 1)
    order = np.argsort(np.abs(-error / span - np.float32(0.5)), axis=1, kind="stable").astype(np.int32)
    ridge = _ridge(layer) * np.float32(z.shape[1])
    kind, p, q = layer.activation.kind, layer.activation.p, layer.activation.q
    args = (layer.inputs, layer.target, error, ridge, choices.base, choices.step, order, up, z, kind, p, q)
    _by_rows(lambda a, b: search_rows(*args, a, b, _SWEEPS), up.shape[0], workers)


def _by_model(layer: Layer, choices: Choices, up: NDArray[np.uint8], workers: int) -> NDArray[np.uint8]:
    """The best roundings where the activation is replaced by its tangents.

    Each output channel has a Gram matrix of its own then, as its tangents weigh the samples. Where these matrices would
    take too long, channels share the unweighted one.
    """
    from onnxq.algos.weight._adaround_kernels import tangents
    from onnxq.algos.weight._adaround_search import search_gram, search_model

    layer = layer.first_samples(max(_MODELLED, 4 * layer.inputs.shape[1]))
    groups, columns, count = layer.inputs.shape
    rows, per = up.shape[0], up.shape[0] // groups
    found, weight = up.copy(), choices.weights(up)
    pull = layer.outputs(weight)
    bend = np.empty_like(pull)
    tangents(pull, layer.target, layer.activation.kind, layer.activation.p, layer.activation.q, bend)
    slope = np.matmul(pull.reshape(groups, per, count), layer.inputs.transpose(0, 2, 1)).reshape(rows, columns)
    ridge = _ridge(layer)
    error = weight - choices.weight
    slope = slope / np.float32(count) + np.repeat(ridge, per, axis=0) * error
    if rows * columns * columns * count <= _OWN_PRODUCTS:
        args = (layer.inputs, bend, slope, ridge, weight, choices.base, choices.step, found)
        _by_rows(lambda a, b: search_model(*args, a, b, _MOVES), rows, workers)
        return found
    gram = np.matmul(layer.inputs, layer.inputs.transpose(0, 2, 1)) / np.float32(count)
    gram[:, range(columns), range(columns)] += ridge
    product = np.matmul(weight.reshape(groups, per, columns), gram).reshape(rows, columns)
    cross = product - slope / np.maximum(bend.mean(axis=1, keepdims=True), np.float32(1e-3))
    _by_rows(lambda a, b: search_gram(gram, cross, choices.base, choices.step, found, a, b, _MOVES), rows, workers)
    return found


def _ridge(layer: Layer) -> NDArray[np.float32]:
    """What a column's squared weight error costs, shape (G, K)."""
    power = np.einsum("gkm,gkm->gk", layer.inputs, layer.inputs) / np.float32(layer.inputs.shape[2])
    ridge: NDArray[np.float32] = np.repeat(
        np.float32(_DAMPING) * power.mean(axis=1, keepdims=True), power.shape[1], axis=1
    )
    return ridge


def _by_rows(work: Callable[[int, int], None], rows: int, workers: int) -> None:
    """Let threads handle rows in chunks; a row's result does not depend on its chunk."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for _ in pool.map(lambda start: work(start, min(start + _CHUNK, rows)), range(0, rows, _CHUNK)):
            pass
