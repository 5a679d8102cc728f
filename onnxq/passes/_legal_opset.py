"""A model in an older version of the operator set, where its operators have not changed since but for their types."""

from __future__ import annotations

from typing import Any

import onnx

_DOMAINS = ("", "ai.onnx")


def lower_opset(model: onnx.ModelProto, newest: int) -> tuple[str, ...]:
    """Say that a model is of an older version of the default operator set, if it means the same there.

    Versions mostly add element types to an operator. Bodies are looked at as well.

    Args:
        model: The model; it is changed if all its nodes can be.
        newest: The version wanted, if the model's is newer.

    Returns:
        The nodes that stand against it, ``name (type)`` each; empty if the model has the version now.
    """
    entry = next((e for e in model.opset_import if e.domain in _DOMAINS), None)
    if entry is None or entry.version <= newest:
        return ()
    against = _changed(model.graph, entry.version, newest)
    if not against:
        entry.version = newest
    return tuple(against)


def _changed(graph: onnx.GraphProto, version: int, newest: int) -> list[str]:
    found: list[str] = []
    for node in graph.node:
        if node.domain in _DOMAINS and not _same(node.op_type, version, newest):
            found.append(f"{node.name} ({node.op_type})")
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
            found += [name for body in bodies for name in _changed(body, version, newest)]
    return found


def _same(op: str, version: int, newest: int) -> bool:
    try:
        return _form(onnx.defs.get_schema(op, version)) == _form(onnx.defs.get_schema(op, newest))
    except onnx.defs.SchemaError:
        return False


def _form(schema: onnx.defs.OpSchema) -> tuple[Any, ...]:
    """What a node of this type looks like: its inputs, outputs and attributes."""
    attributes = {
        name: (a.type, a.required, a.default_value.SerializeToString()) for name, a in schema.attributes.items()
    }
    inputs = [(i.name, i.option) for i in schema.inputs]
    return inputs, [(o.name, o.option) for o in schema.outputs], attributes
