"""What is known of activations without data: the mean and the spread that batch normalization gives each channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from onnxq.algos.moments import Moments, Vector
from onnxq.graph import GraphModel, Node
from onnxq.passes._linear import kind, optional_input

_KEEP = ("Identity", "Dropout", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Squeeze")


def read_moments(graph: GraphModel) -> dict[str, Moments]:
    """What every BatchNormalization says of its output, by the name of that output."""
    found = {}
    for node in graph.nodes("BatchNormalization"):
        scale, shift = (node.inputs[i] for i in (1, 2))
        if graph.is_constant(scale) and graph.is_constant(shift) and not node.attrs.get("training_mode", 0):
            mean, deviation = (np.asarray(graph.value(t), np.float64).reshape(-1) for t in (shift, scale))
            found[node.outputs[0].name] = Moments(mean, np.abs(deviation))
    return found


def follow(graph: GraphModel, known: Mapping[str, Moments]) -> dict[str, Moments]:
    """What follows for the tensors behind those that are known: activations, averages, sums and joins.

    Args:
        graph: A graph with sorted nodes.
        known: What is known, by names of tensors; names that the graph lacks do no harm.
    """
    found = dict(known)
    for node in graph.nodes():
        result = node.outputs[0].name if node.outputs else ""
        inputs = [found.get(t.name) for t in node.inputs]
        if result in found or not inputs or inputs[0] is None:
            continue
        moments = _behind(graph, node, inputs[0], inputs)
        if moments is not None:
            found[result] = moments
    return found


def _behind(graph: GraphModel, node: Node, first: Moments, inputs: Iterable[Moments | None]) -> Moments | None:
    op = kind(node)
    if op in _KEEP:
        return first
    if op == "Clip":
        bounds = [optional_input(node, i) for i in (1, 2)]
        if any(b is not None and not graph.is_constant(b) for b in bounds):
            return None
        low, high = (d if b is None else graph.value(b) for b, d in zip(bounds, (-np.inf, np.inf), strict=True))
        return first.through(lambda x: np.clip(x, low, high))
    if op in _FUNCTIONS:
        return first.through(_FUNCTIONS[op])
    all_known = [m for m in inputs if m is not None]
    if len(all_known) != len(node.inputs):
        return None
    if op == "Add" and len({m.mean.size for m in all_known}) == 1:
        spread = np.sqrt(sum((m.deviation**2 for m in all_known), np.zeros(1)))
        return Moments(sum((m.mean for m in all_known), np.zeros(1)), spread)
    if op == "Concat" and int(node.attrs["axis"]) == 1:
        return Moments(*(np.concatenate([getattr(m, key) for m in all_known]) for key in ("mean", "deviation")))
    return None


_FUNCTIONS: dict[str, Callable[[Vector], Vector]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-np.clip(x, -60, 60))),
    "Tanh": np.tanh,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}
