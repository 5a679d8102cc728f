"""What a model file holds, without running it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from onnxq.graph import Dim, GraphModel, Tensor
from onnxq.modelio import load_model
from onnxq.report.files import disk_bytes


@dataclass(frozen=True, slots=True)
class ValueFacts:
    """An input or output of a model.

    Attributes:
        name: Its name.
        dtype: Its element type; empty where it is not known or it is no tensor.
        shape: Its dimensions; None where not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype or 'unknown type'}, unknown rank"
        return f"{self.dtype or 'unknown type'} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        shape = None if self.shape is None else list(self.shape)
        return {"name": self.name, "dtype": self.dtype or None, "shape": shape}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model file holds.

    Attributes:
        path: The file.
        file_bytes: Its size with its external data.
        external_data: Whether weights are in files of their own.
        opset: Version of the default operator set.
        domains: Versions of all other operator sets.
        ir_version: Version of the file format.
        producer: What wrote the file.
        inputs: What the model must be fed.
        outputs: What it gives.
        op_types: How many nodes of each operator type, the most frequent first.
        parameters: How many numbers its constants hold, initializers and Constant nodes alike.
        weight_bytes: Their bytes.
        metadata: Its `metadata_props`.
        notes: What loading found, a sentence each.
    """

    path: Path
    file_bytes: int
    external_data: bool
    opset: int
    domains: dict[str, int]
    ir_version: int
    producer: str
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]
    op_types: dict[str, int]
    parameters: int
    weight_bytes: int
    metadata: dict[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        values: dict[str, object] = {key: getattr(self, key) for key in self.__slots__}
        return {
            **values,
            "path": str(self.path),
            "inputs": [value.to_dict() for value in self.inputs],
            "outputs": [value.to_dict() for value in self.outputs],
            "nodes": sum(self.op_types.values()),
            "notes": list(self.notes),
        }


def model_facts(path: Path) -> ModelFacts:
    """Read a model file.

    Raises:
        ModelError: If it is not a valid model.
    """
    graph = load_model(path)
    header = graph.skeleton()
    counts = Counter(node.op if not node.domain else f"{node.domain}::{node.op}" for node in graph.nodes())
    for node in graph.nodes("Constant"):
        graph.lift(node)  # their numbers are parameters like any initializer's
    return ModelFacts(
        path=path,
        file_bytes=disk_bytes(path, graph),
        external_data=graph.external_data,
        opset=graph.opset,
        domains={entry.domain: entry.version for entry in header.opset_import if entry.domain not in ("", "ai.onnx")},
        ir_version=graph.ir_version,
        producer=" ".join(filter(None, [header.producer_name, header.producer_version])),
        inputs=tuple(_value(graph, tensor) for tensor in graph.inputs),
        outputs=tuple(_value(graph, tensor) for tensor in graph.outputs),
        op_types=dict(counts.most_common()),
        parameters=sum(math.prod(_sizes(graph, tensor)) for tensor in graph.constants()),
        weight_bytes=graph.weight_bytes,
        metadata=dict(graph.metadata),
        notes=tuple(graph.notes),
    )


def _sizes(graph: GraphModel, tensor: Tensor) -> list[int]:
    return [dim for dim in graph.shape(tensor) or () if isinstance(dim, int)]


def _value(graph: GraphModel, tensor: Tensor) -> ValueFacts:
    dtype = graph.dtype(tensor)
    return ValueFacts(tensor.name, "" if dtype is None else dtype.name, graph.shape(tensor))
