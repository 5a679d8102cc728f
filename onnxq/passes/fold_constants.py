"""Weights that an exporter hid behind Identity, Cast, Transpose, Reshape, Squeeze or Unsqueeze."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._linear import describe, label, optional_input

if TYPE_CHECKING:
    from onnxq.context import QuantContext

Array = NDArray[Any]
Folder = Callable[[Array, Node, tuple[int, ...] | None], Array | str]


class FoldConstants(Pass):
    """A cheap view of a constant becomes a constant.

    Given:
        ``w16 -> Cast(float32) -> Transpose -> MatMul``
    Result:
        ``w16_transpose -> MatMul``

    Only Identity, Cast, Transpose, Reshape, Squeeze and Unsqueeze are folded, through chains of any
    length, and only where every input is a constant: nothing is computed that would make the model
    much larger than it was. A result that several nodes read is made once; equal views of one
    constant share one result. A DequantizeLinear is never folded.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_LIFTED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Fold in topological order, so that a chain disappears in one sweep."""
        changed = 0
        skipped: list[Skip] = []
        made: dict[tuple[object, ...], Tensor] = {}
        for node in graph.nodes(*_FOLDERS):
            if not graph.is_constant(node.inputs[0]):
                continue
            reason = _why_not(graph, node) or _fold(graph, node, made)
            if reason is not None:
                skipped.append(Skip(label(node), reason))
                continue
            changed += 1
        return PassReport(changed, tuple(skipped))


def _why_not(graph: GraphModel, node: Node) -> str | None:
    if graph.is_output(node.outputs[0]):
        return f"its result {node.outputs[0].name!r} is a graph output"
    second = optional_input(node, 1)
    if second is not None and not graph.is_constant(second):
        maker = graph.producer(second)
        origin = "is a graph input" if maker is None else f"is computed at run time by {describe(maker)}"
        return f"its second input {second.name!r} {origin}"
    return None


def _fold(graph: GraphModel, node: Node, made: dict[tuple[object, ...], Tensor]) -> str | None:
    """Replace the result of `node` by a constant and remove it; returns why not."""
    source, second = node.inputs[0], optional_input(node, 1)
    axes = None if second is None else tuple(int(v) for v in graph.value(second).reshape(-1))
    key = (id(source), node.op, axes, repr(sorted(node.attrs.items())))
    folded = source if node.op == "Identity" else made.get(key)
    if folded is None:
        values = _FOLDERS[node.op](np.asarray(graph.value(source)), node, axes)
        if isinstance(values, str):
            return values
        name = graph.unique_name(f"{source.name}_{node.op.lower()}")
        folded = made[key] = graph.add_constant(name, values)
    graph.replace_uses(node.outputs[0], folded)
    graph.remove_node(node)
    return None


def _cast(values: Array, node: Node, axes: tuple[int, ...] | None) -> Array | str:
    target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
    if values.dtype.kind not in "fiub" or target.kind not in "fiub":
        return f"a Cast from {values.dtype} to {target} is left to the runtime"
    if values.dtype.kind == "f" and target.kind in "iu":
        bounds = np.iinfo(target)
        whole = np.trunc(values.astype(np.float64))
        if not ((whole >= bounds.min) & (whole <= bounds.max)).all():
            return f"a value does not fit into {target}; what a Cast makes of it depends on the runtime"
    with np.errstate(over="ignore"):  # float64 to float16: infinity, as in the runtime
        result: Array = values.astype(target)
    return result


def _transpose(values: Array, node: Node, axes: tuple[int, ...] | None) -> Array | str:
    return np.transpose(values, node.attrs.get("perm") or None)


def _reshape(values: Array, node: Node, axes: tuple[int, ...] | None) -> Array | str:
    target = list(axes or ())
    if not node.attrs.get("allowzero", 0):
        target = [values.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return values.reshape(target)


def _squeeze(values: Array, node: Node, axes: tuple[int, ...] | None) -> Array | str:
    axes = axes if axes is not None else node.attrs.get("axes")
    return values.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(values: Array, node: Node, axes: tuple[int, ...] | None) -> Array | str:
    axes = axes if axes is not None else node.attrs["axes"]
    return np.expand_dims(values, tuple(axes))


_FOLDERS: dict[str, Folder] = {
    "Identity": lambda values, node, axes: values,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
