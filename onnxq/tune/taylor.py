"""What quantizing each layer does to the output, to first order, for all layers at once.

Quantizing a layer adds an error ``e`` to its output; to first order the model's output changes by ``J e``, J being the
derivative of the one with respect to the other. Of a random vector v of independent signs, ``(v . J e)**2`` has the
squared length of ``J e`` for its mean, and ``v J`` is one pass backwards through the model, which serves all layers
together. So one session computes the float model, each layer once more with codes and its own float inputs, and the
slopes ``v J``: the cost of about eight forward passes for a sample, however many layers there are. The mean over some
samples takes the chance out of v. For the divergence v is drawn with the covariance that its second derivative has.

Source: the stochastic estimate of a trace, Hutchinson 1989; error times slope as in Molchanov et al., "Importance
Estimation for Neural Network Pruning", CVPR 2019, and Dong et al., HAWQ, ICCV 2019, there with training frameworks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calib.chunks import rechunk
from onnxq.calib.feeds import Feed, batching, sample_count
from onnxq.calib.readers import as_reader
from onnxq.calib.segments import read_names
from onnxq.errors import DataError
from onnxq.passes._inputs import inputs_of
from onnxq.runtime import Session, make_session, thread_count
from onnxq.tune.evaluation import Evaluation
from onnxq.tune.metrics_builtin import Divergence, Metric, Sqnr, log_probabilities, scores_axis
from onnxq.tune.prefixes import Copies, Layer
from onnxq.tune.taylor_nodes import Shape, Slopes, attribute
from onnxq.tune.taylor_rules import RULES

T = TypeVar("T")
Progress = Callable[[str, int, int | None], None]
OLDEST = 13
"""The first operator set that the slopes are written in."""
_ABOUT_CLASSES = ("kl", "top1", "agreement", "perplexity")
_EFFECTS = "onnxq.effects"
_SMALL = 4096
_TINY = 1e-30
_AHEAD = 8
DRAWS = 32
"""Vectors are drawn for so many samples at least, for some of them several times where there are not so many."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Effects of layers.

    Attributes:
        effects: One per layer, in their order; None where an operator behind it has no known slope.
        metric: What they are effects on: ``sqnr`` as a ratio of noise to signal, or ``kl``.
        samples: How many samples were used.
        blocking: Operator types without a known slope.
    """

    effects: tuple[float | None, ...]
    metric: Metric
    samples: int
    blocking: tuple[str, ...] = ()


def estimate(copies: Copies, wanted: Evaluation, *, progress: Progress | None = None) -> Estimate:
    """Estimate the effect of every layer.

    Args:
        copies: The model and its layers.
        wanted: The data, and the metric that the effects are to stand for.
        progress: Is told how far it is.

    Raises:
        DataError: If there are no samples, or no output is a tensor of floats.
    """
    graph = copies.graph
    inputs = inputs_of(graph)
    reader = as_reader(
        wanted.data, inputs, preprocess=wanted.preprocess, layout=wanted.bin_layout, samples=wanted.samples
    )
    first = next((feed for _, feed in rechunk(reader, 1, inputs)), None)
    if first is None:
        raise DataError("there was not a single sample to look at")
    sketch = Sketch.of(copies, first)
    targets = _targets(sketch, wanted.metric)
    backward = _Backward(copies, sketch, targets.names)
    metric: Metric = Divergence.metric if targets.divergence else Sqnr.metric
    if not backward.effects:
        return Estimate((None,) * len(copies.layers), metric, 0, backward.blocking)
    kinds = [onnx.helper.make_tensor_value_info(f"onnxq.at/{n}", onnx.TensorProto.FLOAT, None) for n in targets.names]
    run = _Run(
        targets,
        make_session(graph, threads=1, outputs=targets.names),
        make_session(graph, threads=1, outputs=[_EFFECTS], extra=copies.nodes, fed=kinds),
        {name: array.shape for name, array in first.items()},
    )

    def batches() -> Iterator[tuple[int, Feed]]:
        return run.fitting(rechunk(reader, 1, inputs))

    with ThreadPoolExecutor(thread_count(wanted.threads)) as pool:
        if len(targets.names) > 1 and not targets.divergence:
            powers = sum(_in_order(pool, run.powers, batches()), np.zeros(len(targets.names)))
            run = replace(run, targets=replace(targets, powers=tuple(map(float, powers))))
        total, squares, turns, draws = 0.0, np.zeros(len(backward.effects)), 0, 0
        while draws < DRAWS:  # few samples are drawn for more than once
            turns += 1
            for weight, found in _in_order(pool, partial(run.effects, turns), batches()):
                total += weight
                squares += found
                draws += 1
                if progress is not None:
                    progress("estimating effects", draws, max(DRAWS, wanted.samples or 0))
    scale = (0.5 if targets.divergence else 1.0) / (turns if run.targets.powers else max(total, _TINY))
    by_layer = dict(zip(backward.effects, squares * scale, strict=True))
    effects = tuple(float(by_layer[layer.name]) if layer.name in by_layer else None for layer in copies.layers)
    rows = sample_count(first, batching(inputs).carried) or 1
    return Estimate(effects, metric, rows * draws // turns, backward.blocking)


@dataclass(frozen=True, slots=True)
class _Targets:
    """The outputs whose change counts.

    Attributes:
        names: Their names.
        divergence: Whether they are scores of classes, and the divergence counts.
        axis: The axis of the classes.
        powers: The sum of squares of each output over all samples, where there are several: each counts in parts of
            its own.
    """

    names: tuple[str, ...]
    divergence: bool
    axis: int = 1
    powers: tuple[float, ...] = ()

    def draw(self, outputs: Sequence[NDArray[Any]], seed: list[int]) -> tuple[dict[str, NDArray[np.float32]], float]:
        """Vectors for the outputs of one sample, and how much it weighs in the mean."""
        vectors: dict[str, NDArray[np.float32]] = {}
        total = 0.0
        for place, (name, value) in enumerate(zip(self.names, outputs, strict=True)):
            signs = 2.0 * np.random.default_rng([*seed, place]).integers(0, 2, value.shape) - 1.0
            if self.divergence:
                vector: NDArray[np.floating] = self._of_classes(value, signs)
                weight = value.size / value.shape[self.axis]
            else:
                vector = signs / math.sqrt(max(self.powers[place], _TINY)) if self.powers else signs
                weight = 0.0 if self.powers else power_of(value)
            vectors[f"onnxq.at/{name}"] = vector.astype(np.float32)
            total += weight
        return vectors, total

    def _of_classes(self, scores: NDArray[Any], signs: NDArray[np.floating]) -> NDArray[np.floating]:
        """Signs with the covariance of the divergence's second derivative."""
        p = np.exp(log_probabilities(scores, self.axis))
        if scores.min() >= 0 and np.allclose(scores.sum(axis=self.axis), 1.0, atol=1e-3):
            return np.asarray(signs / np.sqrt(np.maximum(p, 1e-9)))
        root = np.sqrt(p)
        return np.asarray(root * signs - p * (root * signs).sum(axis=self.axis, keepdims=True))


def _targets(sketch: Sketch, metric: object) -> _Targets:
    floats = {name: a for name, a in sketch.outputs.items() if a.dtype == np.float32 and a.size}
    if not floats:
        raise DataError("no output of the model is a tensor of floats: nothing can be said of effects on it")
    for name, value in floats.items():
        axis = scores_axis(value)
        if metric in _ABOUT_CLASSES and axis is not None:
            return _Targets((name,), True, axis)
    if metric == "kl":
        raise DataError(
            "metric kl needs an output of scores, [samples, classes] or [samples, places, classes]; use sqnr"
        )
    return _Targets(tuple(floats), False)


def power_of(value: NDArray[Any]) -> float:
    """The sum of squares."""
    return float(np.square(value, dtype=np.float64).sum())


@dataclass(frozen=True, slots=True)
class _Run:
    """Two sessions: of the float model, and of errors and slopes."""

    targets: _Targets
    forward: Session
    backward: Session
    shapes: Mapping[str, Shape]

    def fitting(self, batches: Iterable[tuple[int, Feed]]) -> Iterator[tuple[int, Feed]]:
        """The samples up to the first one with other shapes than those that the slopes are written for."""
        for number, feed in batches:
            if any(array.shape != self.shapes[name] for name, array in feed.items()):
                return
            yield number, feed

    def powers(self, number: int, feed: Feed) -> NDArray[np.float64]:
        """The sum of squares of each output of one sample."""
        del number
        return np.array([power_of(value) for value in self.forward.run(self.targets.names, feed)])

    def effects(self, turn: int, number: int, feed: Feed) -> tuple[float, NDArray[np.float64]]:
        """The weight of one sample and its squared effects."""
        outputs = self.forward.run(self.targets.names, feed)
        vectors, weight = self.targets.draw(outputs, [turn, number])
        found = self.backward.run([_EFFECTS], {**feed, **vectors})[0]
        return weight, np.square(found, dtype=np.float64)


def _in_order(
    pool: ThreadPoolExecutor, run: Callable[[int, Feed], T], feeds: Iterator[tuple[int, Feed]]
) -> Iterator[T]:
    """The results sample by sample, with few samples in memory."""
    while group := list(itertools.islice(feeds, _AHEAD)):
        yield from pool.map(lambda pair: run(*pair), group)


@dataclass(frozen=True, slots=True)
class Sketch:
    """What one run of one sample has shown of a model's tensors."""

    shapes: Mapping[str, Shape]
    sizes: Mapping[str, float]
    values: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]

    @staticmethod
    def of(copies: Copies, sample: Feed) -> Sketch:
        """Run a sample and look at every tensor."""
        graph = copies.graph
        names = [name for proto in copies.protos for name in proto.output if name]
        found = make_session(graph, threads=1, optimize=False, outputs=names).run(names, sample) if names else []
        arrays = {n: a for n, a in (*sample.items(), *zip(names, found, strict=True)) if isinstance(a, np.ndarray)}
        shapes = {name: array.shape for name, array in arrays.items()}
        for proto in copies.protos:
            for name in proto.input:
                if name and name not in shapes and graph.is_constant(graph.tensor(name)):
                    shapes[name] = tuple(graph.value(graph.tensor(name)).shape)
        sizes = {
            name: math.sqrt(float(np.square(a, dtype=np.float64).mean())) if a.size else 0.0
            for name, a in arrays.items()
            if a.dtype == np.float32
        }
        small = {n: a for n, a in arrays.items() if a.dtype.kind in "iub" and a.size <= _SMALL and n not in sample}
        outputs = {name: arrays[name] for name in copies.outputs if name in arrays}
        return Sketch(shapes, sizes, small, outputs)


class _Backward:
    """Writes errors and slopes beside a model.

    Attributes:
        effects: Names of the layers whose effects the session gives, in that order.
        blocking: Operator types that have no rule and lie between a layer and the output.
    """

    def __init__(self, copies: Copies, sketch: Sketch, targets: Sequence[str]) -> None:
        copies.fresh()
        self._copies = copies
        self._slopes = Slopes(copies, sketch.shapes, sketch.sizes, sketch.values)
        self._floats = frozenset(sketch.sizes)
        errors = {layer.name: self._errors(number, layer) for number, layer in enumerate(copies.layers)}
        wanted = {name for pairs in errors.values() for name, _ in pairs}
        self._at: dict[str, list[str]] = {name: [f"onnxq.at/{name}"] for name in targets}
        stopped = (
            self._backwards(self._relevant(wanted)) if copies.graph.opset >= OLDEST else set(range(len(copies.protos)))
        )
        self.blocking = tuple(sorted({copies.protos[position].op_type for position in stopped}))
        known = [layer for layer in copies.layers if stopped.isdisjoint(layer.nodes[1:])]
        self.effects = tuple(layer.name for layer in known)
        if known:
            parts = [self._effect(errors[layer.name]) for layer in known]
            copies.nodes.append(onnx.helper.make_node("Concat", parts, [_EFFECTS], axis=0))

    def _errors(self, number: int, layer: Layer) -> list[tuple[str, str]]:
        """Tensors, and what they become where only this layer is quantized and its inputs are float."""
        own = [p for p in layer.nodes if p in self._copies.unit(layer)]
        made = self._copies.write({layer.name}, own, {}, f"onnxq.twin{number}")
        read = {name for p in own for name in self._copies.protos[p].input}
        found = [(name, twin) for name, twin in made.items() if name not in read and name in self._floats]
        return found + self._copies.coded(layer, set(made))

    def _relevant(self, wanted: set[str]) -> set[str]:
        """Float tensors that depend on those that are asked for."""
        relevant = set(wanted)
        for proto in self._copies.protos:
            if relevant & read_names(proto):
                relevant |= self._floats.intersection(proto.output)
        return relevant

    def _backwards(self, relevant: set[str]) -> set[int]:
        """Write the slopes of all relevant tensors; the positions of nodes that have no rule."""
        stopped: set[int] = set()
        for position in reversed(range(len(self._copies.protos))):
            proto = self._copies.protos[position]
            slopes = [self._at_tensor(name) for name in proto.output]
            read = relevant & read_names(proto)
            if not any(slopes) or not read:
                continue
            if not read.issubset(proto.input):  # a body reads it
                stopped.add(position)
            for index, name in enumerate(proto.input):
                if name not in relevant:
                    continue
                found = self._through(proto, index, slopes)
                if found is None:
                    stopped.add(position)
                else:
                    self._at.setdefault(name, []).append(found)
        return stopped

    def _through(self, proto: onnx.NodeProto, index: int, slopes: list[str | None]) -> str | None:
        if proto.op_type == "Split" and index == 0:
            return self._split(proto, slopes)
        rule = RULES.get(proto.op_type)
        if rule is None or slopes[0] is None or any(slopes[1:]):
            return None
        return rule(self._slopes, proto, index, slopes[0])

    def _split(self, proto: onnx.NodeProto, slopes: list[str | None]) -> str:
        shapes = [self._slopes.shapes[name] for name in proto.output]
        parts = [
            slope or self._slopes.constant(np.zeros(shape, np.float32))
            for slope, shape in zip(slopes, shapes, strict=True)
        ]
        return self._slopes.node("Concat", *parts, axis=int(attribute(proto, "axis", 0)))

    def _at_tensor(self, name: str) -> str | None:
        """The slope at a tensor, all its parts together."""
        parts = self._at.get(name, [])
        if len(parts) > 1:
            self._at[name] = [self._slopes.node("Sum", *parts)]
        return self._at[name][0] if parts else None

    def _effect(self, errors: list[tuple[str, str]]) -> str:
        """Error times slope, over all places where the layer leaves an error."""
        parts: list[str] = []
        for name, twin in errors:
            slope = self._at_tensor(name)
            if slope is not None:
                product = self._slopes.node("Mul", self._slopes.node("Sub", twin, name), slope)
                parts.append(self._slopes.node("ReduceSum", product, keepdims=0))
        if not parts:
            return self._slopes.constant(np.zeros(1, np.float32))
        return self._slopes.reshape(parts[0] if len(parts) == 1 else self._slopes.node("Sum", *parts), [1])
