"""Conversion to a newer version of the default operator set.

The work is done by `onnx.version_converter`, on a model without its big weights. What the converter
loses (metadata, names of nodes it makes, types of some outputs) is put back here, and a result that
onnx's checker refuses is never used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.version_converter

from onnxq._graph.assemble import assemble
from onnxq._graph.bodies import bodies_of, nodes_of
from onnxq._graph.weights import is_stub
from onnxq.errors import GraphError

if TYPE_CHECKING:
    from onnxq._graph.view import GraphView, Node

_KEEP = 1 << 16
"""Constants of up to this many bytes take part: the converter reads axes, pads and the like."""
_DEFAULT = ("", "ai.onnx")
_WRONG = {"Hardmax": 13, "GroupNormalization": 21}
"""Operators whose meaning changed with a version, which onnx's converter does not heed."""
_MENDED = {"Upsample": 11, "Resize": 11}
"""The same, but mended here where they are in the main graph."""


def converted(view: GraphView, version: int) -> onnx.ModelProto:
    """The model's skeleton at another version of the default operator set.

    Raises:
        GraphError: If the version is older or unknown, or the model cannot be converted.
    """
    newest = onnx.defs.onnx_opset_version()
    if not view.opset < version <= newest:
        raise GraphError(f"cannot convert opset {view.opset} to {version}: it must be newer, and at most {newest}")
    where = f"cannot convert the model from opset {view.opset} to {version}"
    _check_operators(view, version, where)
    source = assemble(view, keep=_KEEP)
    try:
        result = onnx.version_converter.convert_version(_with_inputs(source), version)
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError, IndexError) as err:
        raise GraphError(f"{where}: onnx's converter says {_short(err)}; export it with opset {version}") from err
    if view.opset < 11 <= version:
        _keep_old_resize(view, result.graph, where)
    try:
        onnx.checker.check_model(_checkable(result))
    except onnx.checker.ValidationError as err:
        raise GraphError(
            f"{where}: onnx's converter makes an invalid model ({_short(err)}); export it with opset {version}"
        ) from err
    return _restored(source, result)


def _check_operators(view: GraphView, version: int, where: str) -> None:
    inside = [node for outer in view.nodes() for body in bodies_of(outer.attrs) for node in nodes_of(body)]
    suspects = [(node.op, node.name, _WRONG) for node in view.nodes(*_WRONG)]
    suspects += [(node.op_type, node.name, {**_WRONG, **_MENDED}) for node in inside if node.domain in _DEFAULT]
    for op, name, changes in suspects:
        if view.opset < changes.get(op, 0) <= version:
            raise GraphError(
                f"{where}: onnx's converter does not heed that {op} (node {name!r}) changed with opset {changes[op]}; "
                f"export it with opset {version}"
            )


def _keep_old_resize(view: GraphView, graph: onnx.GraphProto, where: str) -> None:
    """Say in Resize's attributes what Upsample and Resize did before opset 11; the converter leaves that out."""
    for node in graph.node:
        old = view.producer(view.tensor(node.output[0])) if node.op_type == "Resize" else None
        if old is None:
            continue
        values = {"coordinate_transformation_mode": "asymmetric"}
        if old.attrs.get("mode", "nearest") == "nearest":
            values["nearest_mode"] = _old_rounding(view, old, where)
        kept = [attr for attr in node.attribute if attr.name not in values]
        node.ClearField("attribute")
        node.attribute.extend(kept)
        node.attribute.extend(onnx.helper.make_attribute(key, text) for key, text in values.items())


def _old_rounding(view: GraphView, node: Node, where: str) -> str:
    """Which neighbour ONNX Runtime took before opset 11: the lower one, but the upper one when shrinking."""
    if node.op == "Upsample":
        return "floor"
    scales = node.inputs[1]
    if view.is_constant(scales):
        values = view.value(scales)
        if (values >= 1).all() or (values <= 1).all():
            return "floor" if (values >= 1).all() else "ceil"
    raise GraphError(
        f"{where}: Resize {node.name!r} enlarges and shrinks, or its scales are not constant; export it anew"
    )


def _checkable(result: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with a shape wherever the checker wants one, although ONNX Runtime does not."""
    model = onnx.ModelProto()
    model.CopyFrom(result)
    model.graph.ClearField("value_info")
    for info in (*model.graph.input, *model.graph.output):
        if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()
    return model


def _short(err: Exception) -> str:
    return " ".join(str(err).split())[:300]


def _with_inputs(source: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the converter: weights that it cannot read are graph inputs, the default domain has no name."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    model.ir_version = max(model.ir_version, 4)
    graph = model.graph
    known = {info.name for info in graph.input}
    unread = [(t.name, t.data_type, t.dims) for t in graph.initializer if is_stub(t)]
    unread += [(s.values.name, s.values.data_type, s.dims) for s in graph.sparse_initializer]
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx_type, list(dims))
        for name, onnx_type, dims in unread
        if name not in known
    )
    graph.ClearField("sparse_initializer")
    for holder in (*model.opset_import, *nodes_of(graph)):
        if holder.domain == "ai.onnx":
            holder.domain = ""
    kept = [tensor for tensor in graph.initializer if not is_stub(tensor)]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
    return model


def _restored(source: onnx.ModelProto, result: onnx.ModelProto) -> onnx.ModelProto:
    """`source` with the nodes of `result`."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    for domain in model.opset_import:
        if domain.domain in _DEFAULT:
            domain.version = next(entry.version for entry in result.opset_import if entry.domain in _DEFAULT)
    graph = model.graph
    before = {name: node for node in graph.node for name in node.output if name}
    graph.ClearField("node")
    for node in result.graph.node:
        old = next((before[name] for name in node.output if name in before), None)
        if old is not None and old.op_type == node.op_type:
            for name in ("metadata_props", "device_configurations"):
                if hasattr(old, name) and not getattr(node, name):
                    getattr(node, name).extend(getattr(old, name))
            if old.HasField("doc_string"):
                node.doc_string = old.doc_string
            if old.HasField("overload"):
                node.overload = old.overload
        graph.node.append(node)
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in result.graph.initializer if tensor.name not in known)
    return model
