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
from onnxq._graph.weights import is_stub
from onnxq.errors import GraphError

if TYPE_CHECKING:
    from onnxq._graph.view import GraphView

_KEEP = 1 << 16
"""Constants of up to this many bytes take part: the converter reads axes, pads and the like."""
_DEFAULT = ("", "ai.onnx")


def converted(view: GraphView, version: int) -> onnx.ModelProto:
    """The model's skeleton at another version of the default operator set.

    Raises:
        GraphError: If the version is older or unknown, or the model cannot be converted.
    """
    newest = onnx.defs.onnx_opset_version()
    if not view.opset < version <= newest:
        raise GraphError(f"cannot convert opset {view.opset} to {version}: it must be newer, and at most {newest}")
    source = assemble(view, keep=_KEEP)
    where = f"cannot convert the model from opset {view.opset} to {version}"
    try:
        result = onnx.version_converter.convert_version(_with_inputs(source), version)
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError, IndexError) as err:
        raise GraphError(f"{where}: onnx's converter says {_short(err)}; export it with opset {version}") from err
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as err:
        raise GraphError(
            f"{where}: onnx's converter makes an invalid model ({_short(err)}); export it with opset {version}"
        ) from err
    return _restored(source, result)


def _short(err: Exception) -> str:
    return " ".join(str(err).split())[:300]


def _with_inputs(source: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose big weights are graph inputs, since tools refuse initializers without numbers."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    model.ir_version = max(model.ir_version, 4)
    graph = model.graph
    known = {info.name for info in graph.input}
    stubs = [tensor for tensor in graph.initializer if is_stub(tensor)]
    for stub in stubs:
        if stub.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(stub.name, stub.data_type, list(stub.dims)))
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
