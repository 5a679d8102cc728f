"""The bodies of If, Loop and Scan: which outer names they read, and renaming those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from onnxq._graph.importer import OpaqueAttribute

Attr = onnx.AttributeProto


def bodies_of(attrs: dict[str, Any]) -> Iterator[onnx.GraphProto]:
    """The graphs among a node's attributes."""
    for value in attrs.values():
        if isinstance(value, onnx.GraphProto):
            yield value
        elif isinstance(value, OpaqueAttribute):
            yield from bodies_of_attribute(value.proto)


def bodies_of_attribute(attr: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in an attribute."""
    if attr.type == Attr.GRAPH:
        yield attr.g
    elif attr.type == Attr.GRAPHS:
        yield from attr.graphs


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The initializers and tensor attributes of a graph and the graphs inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == Attr.TENSOR:
                yield attr.t
            yield from attr.tensors
            for body in bodies_of_attribute(attr):
                yield from tensors_of(body)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and the graphs inside it."""
    for node in graph.node:
        yield node
        for attr in node.attribute:
            for body in bodies_of_attribute(attr):
                yield from nodes_of(body)


def own_names(graph: onnx.GraphProto) -> set[str]:
    """The names a graph defines itself, without those of graphs inside it."""
    names = {info.name for info in graph.input}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
    names.discard("")
    return names


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor and node name in a graph and the graphs inside it."""
    names = own_names(graph) | outer_names(graph)
    for node in graph.node:
        names.add(node.name)
        for attr in node.attribute:
            for body in bodies_of_attribute(attr):
                names |= all_names(body)
    names.discard("")
    return names


def outer_names(graph: onnx.GraphProto) -> set[str]:
    """The names a graph (with the graphs inside it) reads and does not define."""
    names = {info.name for info in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attr in node.attribute:
            for body in bodies_of_attribute(attr):
                names |= outer_names(body)
    names -= own_names(graph)
    names.discard("")
    return names


def rename_outer(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let a graph (and the graphs inside it) read `new` where it read the outer `old`."""
    if old in own_names(graph):
        return
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for attr in node.attribute:
            for body in bodies_of_attribute(attr):
                rename_outer(body, old, new)
    for info in graph.output:
        if info.name == old:
            info.name = new
