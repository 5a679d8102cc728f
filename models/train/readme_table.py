# SPDX-License-Identifier: Apache-2.0
"""Measures model files and keeps the table of the README in step with them."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from builder import INPUT_NAME, OUTPUT_NAME
from digits_data import DigitsSplit

BEGIN_MARK = "<!-- table:begin -->"
END_MARK = "<!-- table:end -->"

_HEADER = "| file | opset | IR | parameters | bytes | float accuracy | sha256 |\n|---|---|---|---|---|---|---|\n"


def describe(path: Path, split: DigitsSplit) -> str:
    """One row of the table, with the accuracy measured on the test split."""
    model = onnx.load(path)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    parameters = sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT
    )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    accuracy = 100.0 * _accuracy(path, split)
    return (
        f"| `{path.name}` | {opset} | {model.ir_version} | {parameters} | {len(content)} "
        f"| {accuracy:.2f} % | `{digest}` |"
    )


def update_readme(readme: Path, split: DigitsSplit) -> None:
    """Rewrite the table between the marks with the model files beside the README.

    Raises:
        ValueError: If the README lacks the marks.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN_MARK not in text or END_MARK not in text:
        raise ValueError(f"{readme} lacks the marks {BEGIN_MARK} and {END_MARK}")
    before, rest = text.split(BEGIN_MARK, 1)
    after = rest.split(END_MARK, 1)[1]
    rows = "\n".join(describe(path, split) for path in sorted(readme.parent.glob("*.onnx")))
    table = f"{BEGIN_MARK}\n{_HEADER}{rows}\n{END_MARK}"
    readme.write_text(before + table + after, encoding="utf-8")


def _accuracy(path: Path, split: DigitsSplit) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run([OUTPUT_NAME], {INPUT_NAME: split.test_images})[0])
    return float((logits.argmax(axis=1) == split.test_labels).mean())
