"""From protobuf to the graphsurgeon objects that passes edit.

graphsurgeon's own importer drops attributes, metadata and denotations and copies outer weights into
bodies; this one keeps every field that it does not understand beside the object it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxq._graph import dtypes
from onnxq._graph.weights import ProtoWeights, SparseWeights, Weights

Attr = onnx.AttributeProto
Locate = Callable[[onnx.TensorProto], Weights]


@dataclass(frozen=True, slots=True, eq=False)
class OpaqueAttribute:
    """An attribute that is carried through as it is: a body, a type, binary text, ...

    Attributes:
        proto: The attribute; owned by the graph, so do not edit it.
    """

    proto: onnx.AttributeProto


@dataclass
class Imported:
    """A GraphProto as graphsurgeon objects.

    Attributes:
        nodes: In the order of the file.
        inputs: Graph inputs that a caller must feed.
        outputs: Graph outputs.
        tensors: Everything with a name, in the order of the file.
        overridable: The graph inputs of initializers that a caller may override, by name.
        input_order: Names of all graph inputs, overridable ones too.
        loose: value_info of names that occur nowhere else in the main graph.
    """

    nodes: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)
    overridable: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    input_order: list[str] = field(default_factory=list)
    loose: list[onnx.ValueInfoProto] = field(default_factory=list)


def import_graph(graph: onnx.GraphProto, locate: Locate = ProtoWeights) -> Imported:
    """Build graphsurgeon objects; `graph` is kept alive and must not be changed afterwards.

    Args:
        graph: The main graph.
        locate: Says where the numbers of an initializer are.
    """
    result = Imported()
    for proto in graph.initializer:  # of two with one name the last one counts, as in ONNX Runtime
        result.tensors[proto.name] = gs.Constant(proto.name, locate(proto))
    for sparse in graph.sparse_initializer:
        result.tensors[sparse.values.name] = gs.Constant(sparse.values.name, SparseWeights(sparse))
    for info in graph.input:
        result.input_order.append(info.name)
        if info.name in result.tensors:
            result.overridable[info.name] = info
        else:
            result.inputs.append(_variable(info, "input", result.tensors))
    result.outputs = [_variable(info, "output", result.tensors) for info in graph.output]
    known = _names_of_nodes(graph) | result.tensors.keys()
    for info in graph.value_info:
        if info.name in known:
            _variable(info, "value", result.tensors)
        else:
            result.loose.append(info)
    result.nodes = [_import_node(node, result.tensors, locate) for node in graph.node]
    return result


def _names_of_nodes(graph: onnx.GraphProto) -> set[str]:
    names: set[str] = set()
    for node in graph.node:
        names.update(node.input)
        names.update(node.output)
    return names


def _variable(info: onnx.ValueInfoProto, role: str, tensors: dict[str, Any]) -> Any:  # noqa: ANN401 - gs is untyped
    tensor = tensors.get(info.name)
    if tensor is None:
        tensor = tensors[info.name] = gs.Variable(info.name)
    dtype, shape, kind = read_type(info.type)
    if isinstance(tensor, gs.Variable):
        if tensor.dtype is None:
            tensor.dtype, tensor.type = dtype, kind
        if tensor.shape is None:
            tensor.shape = shape
        if shape is not None or dtype is not None:
            tensor.onnxq_seen = (tensor.dtype, tensor.shape)
    tensor.__dict__.setdefault("onnxq_infos", {})[role] = info
    return tensor


def read_type(proto: onnx.TypeProto) -> tuple[Any, tuple[int | str | None, ...] | None, str]:
    """Element type, shape and kind (``tensor_type``, ``sequence_type``, ...) of a type.

    Only tensors have an element type and a shape here; all else is carried through unread.
    """
    kind = proto.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        return None, None, kind
    tensor = proto.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(_read_dim(dim) for dim in tensor.shape.dim)
    return dtypes.to_numpy(tensor.elem_type), shape, kind


def _read_dim(dim: Any) -> int | str | None:  # noqa: ANN401 - a nested protobuf message
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.dim_param else None


def _import_node(proto: onnx.NodeProto, tensors: dict[str, Any], locate: Locate) -> Any:  # noqa: ANN401 - gs is untyped
    def tensor(name: str) -> Any:  # noqa: ANN401 - gs is untyped
        if not name:
            return gs.Variable.empty()
        found = tensors.get(name)
        if found is None:
            found = tensors[name] = gs.Variable(name)
        return found

    node = gs.Node(
        op=proto.op_type,
        name=proto.name,
        attrs={attr.name: import_attribute(attr, locate) for attr in proto.attribute},
        inputs=[tensor(name) for name in proto.input],
        outputs=[tensor(name) for name in proto.output],
        domain=proto.domain if proto.HasField("domain") else None,
    )
    node.onnxq_proto = proto
    return node


def import_attribute(attr: onnx.AttributeProto, locate: Locate) -> Any:  # noqa: ANN401 - any attribute value
    """The Python value of an attribute, or an `OpaqueAttribute`."""
    if attr.ref_attr_name:
        return OpaqueAttribute(attr)
    if attr.type in (Attr.FLOAT, Attr.INT):
        return attr.f if attr.type == Attr.FLOAT else attr.i
    if attr.type in (Attr.FLOATS, Attr.INTS):
        return list(attr.floats if attr.type == Attr.FLOATS else attr.ints)
    if attr.type == Attr.TENSOR:
        return gs.Constant(attr.t.name, locate(attr.t))
    if attr.type in (Attr.STRING, Attr.STRINGS):
        try:
            return attr.s.decode() if attr.type == Attr.STRING else [item.decode() for item in attr.strings]
        except UnicodeDecodeError:
            return OpaqueAttribute(attr)
    return OpaqueAttribute(attr)
