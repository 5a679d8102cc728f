"""From the edited graphsurgeon objects back to protobuf, with everything the source had beside them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxq._graph import dtypes
from onnxq._graph.importer import OpaqueAttribute
from onnxq._graph.weights import ArrayWeights, weights_of
from onnxq.errors import GraphError

Attr = onnx.AttributeProto
_DEFAULT_DOMAINS = ("", "ai.onnx", None)


def export_node(node: Any) -> onnx.NodeProto:  # noqa: ANN401 - gs is untyped
    """One node; fields graphsurgeon does not know are taken from the node it was read from."""
    source = node.__dict__.get("onnxq_proto")
    proto = onnx.NodeProto()
    if source is not None:
        for name in ("doc_string", "overload"):
            if source.HasField(name):
                setattr(proto, name, getattr(source, name))
        for name in ("metadata_props", "device_configurations"):
            if hasattr(source, name):
                getattr(proto, name).extend(getattr(source, name))
    proto.op_type = node.op
    if node.name or (source is not None and source.HasField("name")):
        proto.name = node.name
    if node.domain is not None:
        proto.domain = node.domain
    proto.input.extend([t.name for t in node.inputs])
    proto.output.extend([t.name for t in node.outputs])
    sources = {} if source is None else {attr.name: attr for attr in source.attribute}
    try:
        for name, value in node.attrs.items():
            _export_attribute(proto.attribute.add(), name, value, sources.get(name) or _schema_type(node, name))
    except (TypeError, ValueError) as err:
        raise GraphError(f"node {node.name!r} ({node.op}): attribute {name!r} = {value!r}: {err}") from err
    return proto


def _schema_type(node: Any, name: str) -> int:  # noqa: ANN401 - gs is untyped
    if node.domain in _DEFAULT_DOMAINS:
        return _schema_types(node.op).get(name, Attr.UNDEFINED)
    return int(Attr.UNDEFINED)


@functools.cache
def _schema_types(op: str) -> Mapping[str, int]:
    if not onnx.defs.has(op):
        return {}
    kinds: Mapping[str, Any] = {name: attr.type for name, attr in onnx.defs.get_schema(op).attributes.items()}
    return {name: int(kind.value) for name, kind in kinds.items()}


def _export_attribute(proto: onnx.AttributeProto, name: str, value: Any, source: onnx.AttributeProto | int) -> None:  # noqa: ANN401 - any attribute value
    if isinstance(value, OpaqueAttribute):
        proto.CopyFrom(value.proto)
        proto.name = name
        return
    if isinstance(value, np.dtype | type):
        value = dtypes.to_onnx(np.dtype(value))
    wanted = source if isinstance(source, int) else source.type
    if not isinstance(source, int) and source.doc_string:
        proto.doc_string = source.doc_string
    proto.name = name
    kind = _attribute_type(value, wanted)
    proto.type = kind  # type: ignore[assignment] # the stubs want an enum
    if kind == Attr.FLOAT:
        proto.f = float(value)
    elif kind == Attr.INT:
        proto.i = int(value)
    elif kind == Attr.STRING:
        proto.s = value.encode() if isinstance(value, str) else value
    elif kind == Attr.TENSOR:
        proto.t.CopyFrom(_tensor_value(value))
    elif kind == Attr.GRAPH:
        proto.g.CopyFrom(value)
    elif kind == Attr.FLOATS:
        proto.floats.extend(float(item) for item in value)
    elif kind == Attr.INTS:
        proto.ints.extend(int(item) for item in value)
    else:
        proto.strings.extend(i.encode() if isinstance(i, str) else i for i in value)


def _attribute_type(value: object, wanted: int) -> int:
    if isinstance(value, bool | int | float | np.integer | np.floating | np.bool_):
        whole = not isinstance(value, float | np.floating) or (wanted == Attr.INT and float(value).is_integer())
        return Attr.INT if whole and wanted != Attr.FLOAT else Attr.FLOAT
    if isinstance(value, str | bytes):
        return Attr.STRING
    if isinstance(value, gs.Constant | onnx.TensorProto):
        return Attr.TENSOR
    if isinstance(value, onnx.GraphProto):
        return Attr.GRAPH
    if isinstance(value, np.ndarray) and (wanted == Attr.TENSOR or value.ndim != 1):
        return Attr.TENSOR
    if not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"ONNX has no attribute type for {type(value).__name__}")
    if not len(value):
        if wanted not in (Attr.FLOATS, Attr.INTS, Attr.STRINGS):
            raise ValueError("the type of an empty list is not known; leave the attribute out")
        return wanted
    if all(isinstance(item, str | bytes) for item in value):
        return Attr.STRINGS
    if wanted == Attr.FLOATS or any(isinstance(item, float | np.floating) for item in value):
        return Attr.FLOATS
    return Attr.INTS


def _tensor_value(value: Any) -> onnx.TensorProto:  # noqa: ANN401 - any tensor value
    if isinstance(value, onnx.TensorProto):
        return value
    if isinstance(value, np.ndarray):
        return ArrayWeights(value).proto("")
    return weights_of(value).proto(value.name)


def export_info(tensor: Any, role: str) -> onnx.ValueInfoProto | None:  # noqa: ANN401 - gs is untyped
    """What is known about a tensor as ``input``, ``output`` or ``value``; None for a value of which nothing is."""
    infos = tensor.__dict__.get("onnxq_infos", {})
    is_tensor = isinstance(tensor, gs.Variable) and tensor.type == "tensor_type"
    now = known_type(tensor) if is_tensor else (None, None)
    if role == "value" and role not in infos and now == (None, None):
        return None
    info = onnx.ValueInfoProto()
    source = infos.get(role) or next(iter(infos.values()), None)
    if source is not None:
        info.CopyFrom(source)
    info.name = tensor.name
    if is_tensor and (now != tensor.__dict__.get("onnxq_seen", (None, None)) or role not in infos):
        _write_type(info.type, *now)
    elif isinstance(tensor, gs.Constant) and source is None:
        weights = weights_of(tensor)
        _write_type(info.type, weights.dtype, weights.shape)
    return info


def known_type(tensor: Any) -> tuple[Any, tuple[int | str | None, ...] | None]:  # noqa: ANN401 - gs is untyped
    """Element type and shape of a variable as they are now."""
    return tensor.dtype, None if tensor.shape is None else tuple(tensor.shape)


def _write_type(proto: onnx.TypeProto, dtype: Any, shape: tuple[int | str | None, ...] | None) -> None:  # noqa: ANN401
    tensor = proto.tensor_type
    if dtype is not None:
        tensor.elem_type = dtype if isinstance(dtype, int) else dtypes.to_onnx(np.dtype(dtype))
    old = {i: dim.denotation for i, dim in enumerate(tensor.shape.dim)}
    same_rank = shape is not None and len(old) == len(shape)
    tensor.ClearField("shape")
    if shape is None:
        return
    tensor.shape.SetInParent()
    for i, size in enumerate(shape):
        dim = tensor.shape.dim.add()
        if isinstance(size, str):
            dim.dim_param = size
        elif size is not None and size >= 0:
            dim.dim_value = int(size)
        if same_rank and old[i]:
            dim.denotation = old[i]
