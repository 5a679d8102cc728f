"""A reader of debug reports that shares nothing with what writes them: csv, numpy, onnx and ONNX Runtime only."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

ROUND_HEADER = (
    ",NodeName,NodeType,TensorName,InOutFlag,DataTypeFlag,TensorTypeFlag,Min,Q1,Median,Q3,Max,Mean,Var,Sparsity,Clip,"
    "CosineSimilarity,"
)
SUMMARY_HEADER = "Round,TensorName,CosineSimilarity,"
PARAM_HEADER = "NodeName,NodeType,TensorName,ElementsNum,Dims,Scale,ZeroPoint,Bits,CorrectionVar,CorrectionMean,"


def read(path: Path, header: str) -> list[dict[str, str]]:
    """The rows of a file, which must have this header and a comma at the end of every line."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[0] == header
    assert lines.pop() == ""
    assert all(line.endswith(",") for line in lines)
    rows = list(csv.DictReader(line[:-1] for line in lines))
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


def all_tensors(model: onnx.ModelProto, feed: dict[str, NDArray[Any]], names: list[str]) -> dict[str, NDArray[Any]]:
    """The values of tensors, initializers among them."""
    known = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | feed
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    made = {name for node in model.graph.node for name in node.output}
    wanted = [n for n in dict.fromkeys(names) if n in made]
    present = {o.name for o in model.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in present)
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    return known | dict(zip(wanted, session.run(wanted, feed), strict=True))


@dataclass
class Expected:
    """What one row must say."""

    node: str
    op_type: str
    tensor: str
    output: bool
    weight: bool
    origin: str
    dequant: str


def expected_places(model: onnx.ModelProto, reference: onnx.ModelProto) -> list[Expected]:
    """Inputs and outputs of the nodes of a Q/DQ model in its order, and the tensors both models have there."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    known = {n for node in reference.graph.node for n in node.output} | {i.name for i in reference.graph.input}
    places = []
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        other = next((n for n in reference.graph.node if n.name == node.name), None)
        for index, name in enumerate(node.input):
            maker = makers.get(name)
            source, weight = name, name in floats
            if maker is not None and maker.op_type == "DequantizeLinear":
                inner = makers.get(maker.input[0])
                weight = inner is None
                source = name if inner is None or name in known else inner.input[0]
            if weight:
                assert other is not None
                source = other.input[index]
            if weight or source in known:
                places.append(Expected(node.name, node.op_type, source, False, weight, source, name))
        for name in node.output:
            seen = name
            readers = [n for n in graph.node if name in n.input]
            if readers and all(n.op_type == "QuantizeLinear" for n in readers):
                codes = readers[0].output[0]
                seen = next(n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == codes).output[0]
            source = seen if seen in known else name
            places.append(Expected(node.name, node.op_type, source, True, False, source, seen))
    return places


def figures(values: NDArray[Any]) -> dict[str, float]:
    """The columns from Min to Sparsity."""
    ordered = sorted(values.ravel().tolist())
    n = len(ordered)
    mean = math.fsum(ordered) / n
    return {
        "Min": ordered[0],
        "Q1": ordered[int(0.25 * n)],
        "Median": ordered[int(0.5 * n)],
        "Q3": ordered[int(0.75 * n)],
        "Max": ordered[-1],
        "Mean": mean,
        "Var": math.sqrt(math.fsum((x - mean) ** 2 for x in ordered) / n),
        "Sparsity": sum(x == 0 for x in ordered) / n,
    }


def clip(origin: NDArray[Any], dequant: NDArray[Any]) -> float:
    """The share of `origin` beyond what `dequant` has."""
    return float(((origin < dequant.min()) | (origin > dequant.max())).mean())


def cosine(origin: NDArray[Any], dequant: NDArray[Any]) -> float:
    """Of two arrays that are not zero."""
    a, b = origin.ravel().astype(np.float64), dequant.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def same(cell: str, value: float) -> bool:
    """Whether a cell is a number to six digits."""
    assert cell == format(float(cell), "g"), cell
    return math.isclose(float(cell), value, rel_tol=6e-6, abs_tol=1e-7)
