"""Fixed numbers in place of free dimensions of a model's inputs.

fixed = onnxq.shapes.fix_shapes("model.onnx", {"image": (1, 3, 224, 224)})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxq.errors import ModelError, nearest
from onnxq.graph import GraphModel, Tensor
from onnxq.pipeline import ModelLike, open_model

__all__ = ["fix_shapes"]

FREE = -1
"""Stands for a dimension that stays as it is."""


def fix_shapes(model: ModelLike, shapes: Mapping[str, Sequence[int]]) -> GraphModel:
    """A copy of a model with the free dimensions of some inputs fixed.

    A dimension with a name is fixed wherever the model uses the name.

    Args:
        model: The model; it is not changed.
        shapes: By input name one number for each dimension, or -1 to leave it as it is.

    Raises:
        ModelError: If the model cannot be read, has no such input, or has another rank or size there; or if one
            named dimension is to be two numbers.
    """
    graph, _ = open_model(model)
    inputs = {str(tensor.name): tensor for tensor in graph.inputs}
    symbols: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            hint = nearest(name, inputs) or f"; its inputs are {', '.join(map(repr, inputs))}"
            raise ModelError(f"a shape is given for {name!r}, which is not an input of the model{hint}")
        _fix(graph, inputs[name], tuple(shape), symbols)
    _replace(graph, {symbol: value for symbol, (value, _) in symbols.items()})
    return graph


def _fix(graph: GraphModel, tensor: Tensor, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> None:
    name, found = str(tensor.name), graph.shape(tensor)
    given = f"input {name!r}: shape {list(shape)} is given"
    if any(size < 1 and size != FREE for size in shape):
        raise ModelError(f"{given}; a dimension is a number from 1, or {FREE} to leave it as it is")
    dims = found if found is not None else (None,) * len(shape)
    if len(dims) != len(shape):
        raise ModelError(f"{given}, but the model has {len(dims)} dimensions there: {_told(dims)}")
    for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
        if size == FREE:
            continue
        if isinstance(dim, int) and dim != size:
            raise ModelError(
                f"{given}, but dimension {axis} is {dim} in the model: {_told(dims)}; give {dim} or {FREE}"
            )
        if isinstance(dim, str):
            value, other = symbols.setdefault(dim, (size, name))
            if value != size:
                raise ModelError(f"{given}, but dimension {axis} is {dim!r}, which is {value} for input {other!r}")
    fixed = tuple(dim if size == FREE else size for dim, size in zip(dims, shape, strict=True))
    graph.set_type(tensor, graph.dtype(tensor), fixed)


def _told(dims: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"


def _replace(graph: GraphModel, values: Mapping[str, int]) -> None:
    """Put numbers in place of named dimensions everywhere."""
    if not values:
        return
    for tensor in graph.tensors().values():
        shape = None if graph.is_constant(tensor) else graph.shape(tensor)
        if shape is not None and any(dim in values for dim in shape if isinstance(dim, str)):
            fixed = [values.get(dim, dim) if isinstance(dim, str) else dim for dim in shape]
            graph.set_type(tensor, graph.dtype(tensor), fixed)
