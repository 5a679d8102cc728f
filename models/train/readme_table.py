# SPDX-License-Identifier: Apache-2.0
"""Measures model files and keeps the table of the README in step with them."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import metrics

BEGIN_MARK = "<!-- table:begin -->"
END_MARK = "<!-- table:end -->"

_HEADER = "| file | opset | IR | parameters | bytes | float result | sha256 |\n|---|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Measure:
    """How a family of models is measured on its test data.

    Attributes:
        data: Name of the data files.
        score: Of `metrics`.
        text: The score as the table has it.
    """

    data: str
    score: Callable[[dict[str, NDArray[Any]], NDArray[Any]], float]
    text: Callable[[float], str]


_ACCURACY = Measure("digits", metrics.accuracy, lambda score: f"{100 * score:.2f} % correct")
_MEASURES = {
    "pairs": Measure("pairs", metrics.right_answers, lambda x: f"{100 * x:.2f} % correct"),
    "tones": Measure("tones", metrics.accuracy, lambda x: f"{100 * x:.2f} % correct"),
    "ink": Measure("ink", metrics.overlap, lambda x: f"{100 * x:.2f} % overlap"),
    "sketch_decoder_with_past": Measure("sketch_with_past", metrics.likelihood, lambda x: f"{-x:.2f} bits per token"),
    "sketch": Measure("sketch", metrics.likelihood, lambda x: f"{-x:.2f} bits per token"),
}
"""By what the names of models begin with; the first one that fits counts."""


def measure_of(name: str) -> Measure:
    """How a model file of this name is measured."""
    return next((found for start, found in _MEASURES.items() if name.startswith(start)), _ACCURACY)


def describe(path: Path, data: Path) -> str:
    """One row of the table, with the result on the test split.

    Args:
        path: The model.
        data: The folder of the data.
    """
    model = onnx.load(path)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    parameters = sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT
    )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    measure = measure_of(path.name)
    result = measure.text(_score(path, measure, data))
    return f"| `{path.name}` | {opset} | {model.ir_version} | {parameters} | {len(content)} | {result} | `{digest}` |"


def update_readme(readme: Path) -> None:
    """Rewrite the table between the marks with the model files beside the README.

    Raises:
        ValueError: If the README lacks the marks.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN_MARK not in text or END_MARK not in text:
        raise ValueError(f"{readme} lacks the marks {BEGIN_MARK} and {END_MARK}")
    before, rest = text.split(BEGIN_MARK, 1)
    after = rest.split(END_MARK, 1)[1]
    rows = "\n".join(describe(path, readme.parent / "data") for path in sorted(readme.parent.glob("*.onnx")))
    table = f"{BEGIN_MARK}\n{_HEADER}{rows}\n{END_MARK}"
    readme.write_text(before + table + after, encoding="utf-8")


def _score(path: Path, measure: Measure, data: Path) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    with np.load(data / f"{measure.data}_test.npz") as test:
        feeds = {value.name: test[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    outputs = {name: np.asarray(value) for name, value in zip(names, session.run(names, feeds), strict=True)}
    return measure.score(outputs, np.load(data / f"{measure.data}_test_labels.npy"))
