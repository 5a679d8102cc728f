# SPDX-License-Identifier: Apache-2.0
"""The bundled models are what their README says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tests.bundled import DATA, FILES, MODELS, data_of, labels_of, metrics, name_of, samples

OPSETS = {11, 13, 17, 21}
CLASSIFIERS = [path for path in FILES if data_of(path) == "digits"]


@dataclass(frozen=True)
class Wanted:
    """What a model is measured by, the least it has to reach, and how the README says it."""

    metric: str
    least: float
    unit: float = 1.0


WANTED = dict.fromkeys(
    ("digits_cnn", "digits_mobilenet", "digits_transformer", "digits_lstm", "digits_gru", "digits_prototypes"),
    Wanted("accuracy", 0.97, 100),
) | {
    "ink_unet": Wanted("overlap", 0.83, 100),
    "pairs_answer": Wanted("right_answers", 0.97, 100),
    "tones_conv1d": Wanted("accuracy", 0.9, 100),
    "sketch_decoder": Wanted("likelihood", -1.7, -1),
    "sketch_decoder_with_past": Wanted("likelihood", -1.65, -1),
}

MAX_MODEL_BYTES = 300_000
MAX_TOTAL_BYTES = 4_500_000
MAX_IR_VERSION = 10

_ROW = re.compile(
    r"^\| `(?P<file>[\w.]+)` \| (?P<opset>\d+) \| (?P<ir>\d+) \| (?P<parameters>\d+) "
    r"\| (?P<bytes>\d+) \| (?P<result>[\d.]+)(?P<unit>[^|]+) \| `(?P<sha256>[0-9a-f]{64})` \|$",
    re.MULTILINE,
)


def _rows() -> dict[str, dict[str, str]]:
    text = (MODELS / "README.md").read_text(encoding="utf-8")
    return {match["file"]: match.groupdict() for match in _ROW.finditer(text)}


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _outputs(path: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, dict(feeds))), strict=True))


def _op_types(name: str) -> set[str]:
    return {node.op_type for node in onnx.load(MODELS / name).graph.node}


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@each_file
def test_model_is_valid(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= MAX_IR_VERSION
    assert path.stat().st_size < MAX_MODEL_BYTES


@pytest.mark.parametrize("path", CLASSIFIERS, ids=lambda path: path.stem)
def test_classifiers_read_pictures(path: Path) -> None:
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["image"]
    assert graph.output[0].name == "logits"
    dims = graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "N"
    assert [dim.dim_value for dim in dims[1:]] == [1, 8, 8]


@each_file
def test_data_fit_the_interface(path: Path) -> None:
    wanted = {value.name: value.type.tensor_type for value in onnx.load(path).graph.input}
    counts = set()
    for part in ("calib", "test"):
        arrays = samples(path, part)
        assert set(wanted) <= set(arrays)
        for name, tensor in wanted.items():
            assert arrays[name].dtype == onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            fixed = [dim.dim_value or size for dim, size in zip(tensor.shape.dim, arrays[name].shape, strict=True)]
            assert list(arrays[name].shape) == fixed
        counts.add((part, *{len(arrays[name]) for name in wanted}))
    assert dict(counts)["test"] == len(labels_of(path))


@each_file
def test_node_names_are_present_and_unique(path: Path) -> None:
    """Only the constants of `pairs_answer` have none."""
    nodes = onnx.load(path).graph.node
    names = [node.name for node in nodes if name_of(path) != "pairs_answer" or node.op_type != "Constant"]
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
def test_result(path: Path) -> None:
    wanted = WANTED[name_of(path)]
    found = getattr(metrics(), wanted.metric)(_outputs(path, samples(path, "test")), labels_of(path))
    assert found >= wanted.least
    # The README has two decimals.
    assert wanted.unit * found == pytest.approx(float(_rows()[path.name]["result"]), abs=0.0051)


@each_file
@pytest.mark.parametrize("batch", [1, 7])
def test_batch_size_is_free(path: Path, batch: int) -> None:
    feeds = samples(path, "test", 12)
    whole = _outputs(path, feeds)
    for name, found in _outputs(path, {key: value[:batch] for key, value in feeds.items()}).items():
        np.testing.assert_allclose(found, whole[name][:batch], rtol=1e-3, atol=1e-3)


def test_readme_lists_exactly_the_files() -> None:
    assert set(_rows()) == {path.name for path in FILES}
    assert {f"{name}.onnx" for name in WANTED} <= set(_rows())
    assert {name_of(path) for path in FILES} == set(WANTED)


def test_opsets_are_represented() -> None:
    assert {_opset(onnx.load(path)) for path in FILES} == OPSETS


REEXPORTS = [path for path in FILES if "_opset" in path.stem]


@pytest.mark.parametrize("path", REEXPORTS, ids=lambda path: path.stem)
def test_reexports_agree(path: Path) -> None:
    feeds = samples(path, "test")
    expected = _outputs(MODELS / f"{name_of(path)}.onnx", feeds)
    for name, found in _outputs(path, feeds).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-3, atol=1e-3)


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


ONE_OF_EACH = {data_of(path): path for path in FILES}


@pytest.mark.parametrize("path", ONE_OF_EACH.values(), ids=ONE_OF_EACH.keys())
def test_calibration_has_nothing_of_the_test(path: Path) -> None:
    calibration, test = samples(path), samples(path, "test")
    assert len(next(iter(calibration.values()))) >= 32

    def whole(arrays: dict[str, NDArray[Any]], index: int) -> bytes:
        return b"".join(values[index].tobytes() for values in arrays.values())

    counts = [len(next(iter(arrays.values()))) for arrays in (calibration, test)]
    seen = {whole(calibration, index) for index in range(counts[0])}
    assert not any(whole(test, index) in seen for index in range(counts[1]))


def test_pictures() -> None:
    for part in ("calib", "test"):
        images = samples(MODELS / "digits_cnn", part)["image"]
        assert images.shape[1:] == (1, 8, 8)
        assert images.min() >= 0.0
        assert images.max() <= 1.0
    assert set(labels_of(MODELS / "digits_cnn").tolist()) == set(range(10))


def test_binaries_stay_small() -> None:
    assert sum(path.stat().st_size for path in [*FILES, *DATA.iterdir()]) < MAX_TOTAL_BYTES
