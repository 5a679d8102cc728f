"""Puts the protobuf of a whole model together from its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnxq._graph.exporter import export_info, export_node
from onnxq._graph.weights import SparseWeights, weights_of

if TYPE_CHECKING:
    from onnxq._graph.view import GraphView, Tensor

_MADE_ANEW = ("graph", "metadata_props", "opset_import", "functions", "ir_version")


def assemble(view: GraphView, *, keep: int) -> onnx.ModelProto:
    """The model with weights of up to `keep` bytes inside and stubs for the others.

    Raises:
        GraphError: If the graph has a cycle, or an attribute or a type cannot be written.
    """
    view._ensure_sorted()
    source = view._source
    proto = onnx.ModelProto(ir_version=view.ir_version)
    for descriptor, value in source.ListFields():
        if descriptor.name in _MADE_ANEW:
            continue
        if isinstance(value, int | str):
            setattr(proto, descriptor.name, value)
        else:
            getattr(proto, descriptor.name).extend(value)
    _write_domains(view, proto)
    for key, text in view.metadata.items():
        proto.metadata_props.add(key=key, value=text)
    _write_graph(view, proto.graph, keep)
    return proto


def _write_domains(view: GraphView, proto: onnx.ModelProto) -> None:
    domains = dict(view._domains)
    used = {node.domain or "" for node in view._nodes.values()}
    default = {"", "ai.onnx"}
    for domain in sorted(used - domains.keys()):
        if domain not in default or not default & domains.keys():
            domains[domain] = 1
    known = {entry.domain: entry for entry in view._source.opset_import}
    for domain, version in domains.items():
        entry = proto.opset_import.add()
        entry.CopyFrom(known.get(domain) or onnx.OperatorSetIdProto(domain=domain))
        entry.version = version


def _write_graph(view: GraphView, graph: onnx.GraphProto, keep: int) -> None:
    source = view._source.graph
    graph.SetInParent()
    if source.HasField("name"):
        graph.name = source.name
    if source.HasField("doc_string"):
        graph.doc_string = source.doc_string
    graph.metadata_props.extend(source.metadata_props)
    graph.quantization_annotation.extend(
        note for note in source.quantization_annotation if note.tensor_name in view._tensors
    )
    graph.node.extend(export_node(node) for node in view._nodes.values())
    graph.input.extend(_input_infos(view))
    graph.output.extend(info for t in view.outputs if (info := export_info(t, "output")) is not None)
    for tensor in view.constants():
        weights = weights_of(tensor)
        if isinstance(weights, SparseWeights):
            graph.sparse_initializer.append(weights.sparse_proto(tensor.name))
            continue
        small = weights.nbytes <= keep or not weights.streams
        graph.initializer.append(weights.proto(tensor.name) if small else weights.stub(tensor.name))
    ends = view._input_ids | view._output_ids
    for tensor in view._tensors.values():
        if id(tensor) not in ends and view._is_live(tensor) and (info := export_info(tensor, "value")) is not None:
            graph.value_info.append(info)
    graph.value_info.extend(info for info in view._imported.loose if info.name not in view._tensors)


def _input_infos(view: GraphView) -> list[onnx.ValueInfoProto]:
    """Inputs in the order of the source, with those of initializers that the source listed."""
    inputs: dict[str, onnx.ValueInfoProto | None] = {t.name: export_info(t, "input") for t in view.inputs}
    constants: dict[str, Tensor] = {t.name: t for t in view.constants()}
    overridable = view._imported.overridable
    inputs.update((name, info) for name, info in overridable.items() if name in constants)
    if view.ir_version < 4:  # before IR version 4 every initializer is an input too
        for name, tensor in constants.items():
            inputs.setdefault(name, export_info(tensor, "input"))
    order = [name for name in view._imported.input_order if name in inputs]
    known = set(order)
    order.extend(name for name in inputs if name not in known)
    return [info for info in map(inputs.__getitem__, order) if info is not None]
