"""Making constants: from arrays, from codes, and from Constant nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq._graph import dtypes
from onnxq._graph.importer import OpaqueAttribute
from onnxq._graph.weights import ArrayWeights, LazyArray, LazyWeights, SparseWeights, Spill, Weights
from onnxq.spec import QType


def weights_for(array: NDArray[Any] | LazyArray, qtype: QType | None, spill: Spill) -> Weights:
    """Weights with a private copy of `array`, or that compute it when it is needed.

    Raises:
        ValueError: If a code is out of range, or ONNX has no such element type.
    """
    if isinstance(array, LazyArray):
        return LazyWeights(array if qtype is None else _lazy_codes(array, qtype))
    array = np.asarray(array)
    return spill.keep(array if qtype is None else as_codes(array, qtype))


def as_codes(array: NDArray[Any], qtype: QType) -> NDArray[Any]:
    """Integer codes in the element type of `qtype`, shape unchanged; those of a float8 type are its bits, uint8.

    Raises:
        ValueError: If they are not integers or one is out of range.
    """
    dtype = dtypes.of_qtype(qtype)
    if array.dtype == dtype:
        return array
    if qtype.floating:
        if array.dtype != np.uint8:
            raise ValueError(f"{qtype.label} codes must be its bits as uint8, got {array.dtype}")
        return np.asarray(array, order="C").view(dtype)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{qtype.label} codes must be integers, got {array.dtype}")
    low, high = qtype.bounds
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        raise ValueError(f"codes {array.min()}..{array.max()} are outside {qtype.label}'s {low}..{high}")
    return array.astype(dtype)


def _lazy_codes(lazy: LazyArray, qtype: QType) -> LazyArray:
    return LazyArray(lazy.shape, dtypes.of_qtype(qtype), lambda: as_codes(np.asarray(lazy.make()), qtype))


def of_node(node: Any) -> Any:  # noqa: ANN401 - a gs.Constant or None; gs is untyped
    """What a Constant node computes, as a constant without a name; None if its form is not known."""
    if len(node.attrs) != 1 or len(node.outputs) != 1:
        return None
    ((form, value),) = node.attrs.items()
    if form == "value" and isinstance(value, gs.Constant):
        return value
    if form == "sparse_value" and isinstance(value, OpaqueAttribute) and not value.proto.ref_attr_name:
        return gs.Constant("", SparseWeights(value.proto.sparse_tensor))
    dtype = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_string": object,
        "value_strings": object,
    }.get(form)
    if dtype is None or isinstance(value, OpaqueAttribute):
        return None
    return gs.Constant("", ArrayWeights(np.array(value, dtype=dtype)))


def become_constant(variable: Any, weights: Weights) -> None:  # noqa: ANN401 - gs is untyped
    """Turn a `gs.Variable` without producer into a `gs.Constant`, the same object to all its readers."""
    for name in ("dtype", "shape", "type"):
        variable.__dict__.pop(name, None)
    variable.__dict__.pop("onnxq_infos", None)
    variable.__class__ = gs.Constant
    variable._values = weights
    variable.data_location = None
    variable._export_dtype = None
