# SPDX-License-Identifier: Apache-2.0
"""The bundled models are what their README says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = ("digits_cnn", "digits_mobilenet", "digits_transformer")
FILES = sorted(MODELS.glob("*.onnx"))
OPSETS = {11, 13, 17, 21}

MIN_ACCURACY = 0.97
MAX_MODEL_BYTES = 1_000_000
MAX_TOTAL_BYTES = 2_000_000
MAX_IR_VERSION = 10

_ROW = re.compile(
    r"^\| `(?P<file>[\w.]+)` \| (?P<opset>\d+) \| (?P<ir>\d+) \| (?P<parameters>\d+) "
    r"\| (?P<bytes>\d+) \| (?P<accuracy>[\d.]+) % \| `(?P<sha256>[0-9a-f]{64})` \|$",
    re.MULTILINE,
)


def _rows() -> dict[str, dict[str, str]]:
    text = (MODELS / "README.md").read_text(encoding="utf-8")
    return {match["file"]: match.groupdict() for match in _ROW.finditer(text)}


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _images(name: str) -> NDArray[np.float32]:
    with np.load(MODELS / "data" / f"digits_{name}.npz") as arrays:
        assert arrays.files == ["image"]
        return np.asarray(arrays["image"])


def _labels() -> NDArray[np.int64]:
    return np.asarray(np.load(MODELS / "data" / "digits_test_labels.npy"))


def _logits(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


def _op_types(name: str) -> set[str]:
    return {node.op_type for node in onnx.load(MODELS / name).graph.node}


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@each_file
def test_model_is_valid(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= MAX_IR_VERSION
    assert path.stat().st_size < MAX_MODEL_BYTES


@each_file
def test_interface(path: Path) -> None:
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["logits"]
    dims = graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "N"
    assert [dim.dim_value for dim in dims[1:]] == [1, 8, 8]


@each_file
def test_node_names_are_present_and_unique(path: Path) -> None:
    names = [node.name for node in onnx.load(path).graph.node]
    assert all(names)
    assert len(names) == len(set(names))


@each_file
def test_readme_row_matches(path: Path) -> None:
    row = _rows()[path.name]
    model = onnx.load(path)
    content = path.read_bytes()
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert int(row["bytes"]) == len(content)
    assert int(row["opset"]) == _opset(model)
    assert int(row["ir"]) == model.ir_version


@each_file
def test_accuracy(path: Path) -> None:
    correct = _logits(path, _images("test")).argmax(axis=1) == _labels()
    assert correct.mean() >= MIN_ACCURACY
    # Half a sample of room for the two decimals of the README.
    stated = float(_rows()[path.name]["accuracy"]) / 100
    assert abs(correct.mean() - stated) < 0.5 / len(correct)


@each_file
@pytest.mark.parametrize("batch", [1, 7])
def test_batch_size_is_free(path: Path, batch: int) -> None:
    images = _images("test")
    whole = _logits(path, images)[:batch]
    np.testing.assert_allclose(_logits(path, images[:batch]), whole, rtol=1e-3, atol=1e-3)


def test_readme_lists_exactly_the_files() -> None:
    assert set(_rows()) == {path.name for path in FILES}
    assert {f"{name}.onnx" for name in NAMES} <= set(_rows())


def test_opsets_are_represented() -> None:
    assert {_opset(onnx.load(path)) for path in FILES} == OPSETS


@pytest.mark.parametrize("name", NAMES)
def test_reexports_agree(name: str) -> None:
    images = _images("test")
    expected = _logits(MODELS / f"{name}.onnx", images)
    reexports = [path for path in FILES if path.stem.startswith(f"{name}_opset")]
    assert reexports
    for path in reexports:
        np.testing.assert_allclose(_logits(path, images), expected, rtol=1e-3, atol=1e-3)


def test_cnn_keeps_batch_normalization() -> None:
    assert {"Conv", "BatchNormalization", "Relu", "Add", "Gemm"} <= _op_types("digits_cnn.onnx")


def test_mobilenet_depthwise_channels_differ_widely() -> None:
    model = onnx.load(MODELS / "digits_mobilenet.onnx")
    depthwise = 0
    for tensor in model.graph.initializer:
        if tensor.name.endswith("depthwise/conv/weight"):
            ranges = np.abs(onnx.numpy_helper.to_array(tensor)).max(axis=(1, 2, 3))
            assert ranges.max() / ranges.min() > 30
            depthwise += 1
    assert depthwise == 3
    assert "Clip" in {node.op_type for node in model.graph.node}


def test_layer_norm_follows_the_opset() -> None:
    fused, decomposed = "LayerNormalization", {"Pow", "Sqrt", "Sub"}
    for suffix in ("", "_opset21"):
        assert fused in _op_types(f"digits_transformer{suffix}.onnx")
    for suffix in ("_opset11", "_opset13"):
        op_types = _op_types(f"digits_transformer{suffix}.onnx")
        assert fused not in op_types
        assert decomposed <= op_types


def test_data_splits() -> None:
    calibration, test, labels = _images("calib"), _images("test"), _labels()
    for images in (calibration, test):
        assert images.dtype == np.float32
        assert images.shape[1:] == (1, 8, 8)
        assert images.min() >= 0.0
        assert images.max() <= 1.0
    assert len(calibration) == 300
    assert labels.dtype == np.int64
    assert len(labels) == len(test)
    assert set(labels.tolist()) == set(range(10))
    seen = {image.tobytes() for image in calibration}
    assert not any(image.tobytes() in seen for image in test)


def test_binaries_stay_small() -> None:
    data = [path for path in (MODELS / "data").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in [*FILES, *data]) < MAX_TOTAL_BYTES
