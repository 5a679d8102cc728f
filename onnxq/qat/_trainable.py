"""Which constants of a model are parameters."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np

from onnxq.errors import TrainingError, nearest
from onnxq.graph import GraphModel, Node, Tensor

_SLOTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Gather": (0,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
}
"""The inputs of operators that are parameters where they are constants."""
_ARITHMETIC = frozenset({"Add", "Sub", "Mul"})
_MASKING = 1e3
"""Constants as large as this are no parameters: they mask something out."""


def trainable(graph: GraphModel, freeze: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of the constants that training can change, in topological order of their readers.

    These are weights and biases of layers, scales and shifts of normalizations, tables that rows are picked of, and
    constants of more than one number that are added or multiplied.

    Args:
        graph: A model.
        freeze: Names or globs of constants that are not to be trained.

    Raises:
        TrainingError: If an entry of `freeze` matches no constant.
    """
    constants = [str(t.name) for t in graph.constants()]
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in constants):
            raise TrainingError(f"training.freeze: {pattern!r} matches no initializer{nearest(pattern, constants)}")
    found = dict.fromkeys(str(t.name) for node in graph.nodes() for t in _parameters(graph, node))
    return tuple(name for name in found if not any(fnmatchcase(name, pattern) for pattern in freeze))


def _parameters(graph: GraphModel, node: Node) -> Iterator[Tensor]:
    for index in _SLOTS.get(str(node.op), ()):
        if index >= len(node.inputs):
            continue
        tensor = node.inputs[index]
        if (
            tensor.name
            and graph.is_constant(tensor)
            and graph.is_float32(tensor)
            and _is_parameter(graph, node, tensor)
        ):
            yield tensor


def _is_parameter(graph: GraphModel, node: Node, tensor: Tensor) -> bool:
    if graph.is_output(tensor) or graph.read_by_subgraph(tensor):
        return False
    if node.op not in _ARITHMETIC:
        return True
    values = np.asarray(graph.value(tensor))
    return values.size > 1 and bool(np.isfinite(values).all()) and float(np.abs(values).max()) < _MASKING
