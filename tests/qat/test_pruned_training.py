"""Pruning and quantization-aware training together: channels stay away, zeros stay zeros, accuracy comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxq
from onnxq.modelio import load_model
from onnxq.qat.artifacts import create
from onnxq.qat.manifest import TEACHER_MODEL, Manifest
from onnxq.qat.save import quantized, trained_values
from onnxq.qat.trainer import QatTrainer, TrainOptions
from onnxq.qat.worker_client import Worker
from onnxq.result import Result
from tests.graphs import build, normal, run

MODELS = Path(__file__).parents[2] / "models"
OPTIONS = TrainOptions(epochs=3, batch_size=32, learning_rate=3e-3)
CHANNELS = {"kind": "channels", "ratio": 0.3}


def digits(part: str) -> dict[str, NDArray[Any]]:
    with np.load(MODELS / "data" / f"digits_{part}.npz", allow_pickle=False) as content:
        found = {name: content[name] for name in content.files}
    if part == "test":
        found["labels"] = np.load(MODELS / "data" / "digits_test_labels.npy", allow_pickle=False)
    return found


def accuracy(model: onnx.ModelProto) -> float:
    data = digits("test")
    return float((run(model, {"image": data["image"]})["logits"].argmax(1) == data["labels"]).mean())


def trained(folder: Path, overlay: Any, recipe: dict[str, Any], **options: Any) -> tuple[Result, Result]:
    """What comes out without training, and with it."""
    data = None if options.get("quantize") is False else {"image": digits("calib")["image"][:64]}
    create(MODELS / "digits_cnn.onnx", data, folder, recipe=recipe, overlay=overlay, **options)
    before = quantized(folder, trained_values(folder, overlay=overlay))
    QatTrainer(folder, OPTIONS, overlay=overlay).fit(digits("train"))
    return before, quantized(folder, trained_values(folder, overlay=overlay))


def density(result: Result) -> list[float]:
    """Share of zeros in every four weights along the input channels, one number per layer; -1 where groups differ."""
    found = []
    for node in onnx.load_from_string(result.model.SerializeToString()).graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        maker = {out: n for n in result.model.graph.node for out in n.output}.get(node.input[1])
        name = node.input[1] if maker is None else maker.input[0]
        weight = next(onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name == name)
        channels = weight.shape[1]
        if channels % 4 == 0:
            groups = (np.moveaxis(weight, 1, -1).reshape(-1, 4) != 0).sum(axis=1)
            found.append(float(groups.max()) / 4)
    return found


@pytest.mark.slow
def test_channels_and_8_bits(tmp_path: Path, overlay: Any) -> None:
    before, after = trained(tmp_path / "art", overlay, {"prune": CHANNELS})
    weights = {t.name: tuple(t.dims) for t in after.model.graph.initializer if len(t.dims) == 4}
    assert {shape[0] for shape in weights.values()} <= {11, 22, 45}
    assert any(n.op_type == "QuantizeLinear" for n in after.model.graph.node)
    assert accuracy(before.model) < 0.9
    assert accuracy(after.model) > 0.94


@pytest.mark.slow
@pytest.mark.parametrize("update_freq", [0, 10])
def test_two_of_four_and_8_bits(tmp_path: Path, overlay: Any, update_freq: int) -> None:
    folder = tmp_path / "art"
    before, after = trained(folder, overlay, {"prune": {"kind": "2:4", "update_freq": update_freq}})
    manifest = Manifest.read(folder)
    assert len(manifest.masks) >= 8
    values = trained_values(folder, overlay=overlay)
    start = {
        t.name: load_model(folder / "float_model.onnx").value(t)
        for t in load_model(folder / "float_model.onnx").constants()
    }
    moved = 0
    for mask in manifest.masks:
        rows = np.moveaxis(values[mask.mask], mask.axis, -1)
        assert (rows.reshape(-1, 4).sum(axis=1) == 2).all()
        moved += int(((start[mask.weight] != 0) != (values[mask.mask] != 0)).sum())
    assert (moved > 0) == bool(update_freq)
    assert set(density(after)) == {0.5}
    assert accuracy(after.model) > 0.97
    assert accuracy(after.model) >= accuracy(before.model)


@pytest.mark.slow
def test_float_models_are_fine_tuned_too(tmp_path: Path, overlay: Any) -> None:
    before, after = trained(
        tmp_path / "art", overlay, {"prune": CHANNELS, "training": {"loss": "distillation"}}, quantize=False
    )
    assert (tmp_path / "art" / TEACHER_MODEL).is_file()  # the teacher has all channels
    assert not any(n.op_type == "QuantizeLinear" for n in after.model.graph.node)
    assert accuracy(before.model) < 0.9
    assert accuracy(after.model) > 0.94


def test_gradients_of_masked_weights(tmp_path: Path, overlay: Any) -> None:
    """The gradient of what is masked is 0, that of the rest is what the quantizer lets through."""
    model = build(
        "g (float[N,8] x) => (float[N,3] logits) { logits = Gemm <transB=1> (x, W, b) }", W=normal(3, 8), b=normal(3)
    )
    data = {"x": normal(16, 8, seed=3)}
    create(model, data, tmp_path / "art", recipe={"prune": "2:4", "training": {"loss": "mse"}}, overlay=overlay)
    manifest = Manifest.read(tmp_path / "art")
    (mask,) = manifest.masks
    assert (mask.weight, mask.axis) == ("W", 1)
    assert mask.mask in manifest.frozen
    with Worker(overlay) as worker:
        worker.open(tmp_path / "art")
        found = worker.accumulate({**data, "labels": np.zeros((16, 3), np.float32)}, ["logits"])
        gradient = worker.gradients(["W"])["W"]
        kept = worker.parameters([mask.mask])[mask.mask]
    assert (gradient[kept == 0] == 0).all()
    expected = (2 * found.outputs["logits"] / found.outputs["logits"].size).T @ data["x"] * kept
    close = np.abs(gradient - expected) <= 0.02 * np.abs(expected).max()
    assert close.mean() > 0.8  # not where the activation or the weight is cut off
    assert (gradient[kept == 1] != 0).mean() > 0.7


def test_onnxq_quantize_prunes_first() -> None:
    result = onnxq.quantize(
        MODELS / "digits_cnn.onnx", {"image": digits("calib")["image"][:32]}, recipe={"prune": CHANNELS}
    )
    dense = onnxq.quantize(MODELS / "digits_cnn.onnx", {"image": digits("calib")["image"][:32]})
    assert result.graph.weight_bytes < 0.6 * dense.graph.weight_bytes
    assert result.plan.counts()["quantized"] == dense.plan.counts()["quantized"]


def test_weights_that_calibration_has_renamed_are_masked_too(tmp_path: Path, overlay: Any) -> None:
    """The channels in front of depthwise convolutions are spread, and the weights get new names."""
    data = {"image": digits("calib")["image"][:32]}
    create(MODELS / "digits_mobilenet.onnx", data, tmp_path / "art", recipe={"prune": "2:4"}, overlay=overlay)
    manifest = Manifest.read(tmp_path / "art")
    assert len(manifest.masks) == 8
    assert {m.weight for m in manifest.masks} <= set(manifest.trained)
