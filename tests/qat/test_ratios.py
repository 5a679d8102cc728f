"""Ratios that meet a target, by what channels matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import onnxq
from onnxq.cli.app import app
from onnxq.errors import DataError, RecipeError, TrainingError
from onnxq.qat.ratios import _sensitivity, find_ratios
from tests.graphs import build, graph_of, normal, run

MODELS = Path(__file__).parents[2] / "models"
TRAIN = MODELS / "data" / "digits_train.npz"


def network() -> tuple[str, dict[str, NDArray[Any]]]:
    text = (
        "g (float[N,6] x) => (float[N,3] y) "
        "{ a = Gemm(x, A, ab) r = Relu(a) b = MatMul(r, B) s = Relu(b) y = MatMul(s, C) }"
    )
    constants = {"A": normal(6, 10), "ab": normal(10), "B": normal(10, 12, seed=1), "C": normal(12, 3, seed=2)}
    constants["B"][:, :6] *= 2  # large norms ...
    constants["C"][:6] = 0  # ... that nothing reads
    return text, constants


def test_sensitivity_is_weight_times_gradient(overlay: Any) -> None:
    text, constants = network()
    data = {"x": normal(16, 6, seed=3), "labels": np.arange(16) % 3}
    found, labelled = _sensitivity(graph_of(text, **constants), data, overlay, None)
    assert labelled
    layers = list(found)

    def loss(**changed: NDArray[Any]) -> float:
        values = {n: v.astype(np.float64) for n, v in {**constants, **changed}.items()}
        hidden = np.maximum(data["x"].astype(np.float64) @ values["A"] + values["ab"], 0)
        logits = np.maximum(hidden @ values["B"], 0) @ values["C"]
        logits -= logits.max(axis=1, keepdims=True)
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), data["labels"]]).mean())

    for layer, name in zip(layers, ("A", "B", "C"), strict=True):
        weight, gradient = constants[name], np.zeros(constants[name].shape)
        for place in np.ndindex(*weight.shape):
            step = np.zeros(weight.shape)
            step[place] = 1e-6
            gradient[place] = (loss(**{name: weight + step}) - loss(**{name: weight - step})) / 2e-6
        expected = np.abs(weight * gradient).sum(axis=0)
        np.testing.assert_allclose(found[layer], expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert (found[layers[1]][:6] == 0).all()


@pytest.mark.parametrize("labels", [True, False])
def test_layers_that_matter_little_lose_more(overlay: Any, labels: bool) -> None:
    text, constants = network()
    constants["B"][:, :6] /= 100
    model = build(text, **constants)
    data: dict[str, Any] = {"x": normal(64, 6, seed=3)} | ({"labels": np.arange(64) % 3} if labels else {})
    found = find_ratios(model, data, flops=0.75, overlay=overlay)
    assert found.flops <= 0.75
    assert bool(found.notes) != labels
    result = onnxq.prune(model, recipe=found.recipe)
    first, second, _ = result.layers
    assert first.after == first.before
    assert second.after in (7, 8)  # nothing reads half of it
    feed = {"x": normal(8, 6, seed=9)}
    np.testing.assert_allclose(run(result.model, feed)["y"], run(model, feed)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flops", [0.8, 0.5])
def test_a_target_of_operations_is_met_closely(overlay: Any, flops: float) -> None:
    found = find_ratios(MODELS / "digits_mobilenet.onnx", TRAIN, flops=flops, multiple=4, overlay=overlay)
    assert flops - 0.1 < found.flops <= flops + 1e-9
    layers = onnxq.prune(MODELS / "digits_mobilenet.onnx", recipe=found.recipe).layers
    assert {layer.after % 4 for layer in layers if layer.after < layer.before} == {0}


def test_spared_layers_are_not_touched(overlay: Any) -> None:
    rules = [{"match": {"name": "block3*"}, "prune": "none"}]
    found = find_ratios(MODELS / "digits_cnn.onnx", TRAIN, recipe={"rules": rules}, flops=0.7, overlay=overlay)
    for layer in onnxq.prune(MODELS / "digits_cnn.onnx", recipe=found.recipe).layers:
        assert layer.after == layer.before or not layer.node.startswith("block3")


@pytest.mark.slow
def test_a_target_of_latency(overlay: Any) -> None:
    text = (
        "g (float[1,64] x) => (float[1,3] y) "
        "{ a = MatMul(x, A) r = Relu(a) b = MatMul(r, B) s = Relu(b) y = MatMul(s, C) }"
    )
    model = build(text, A=normal(64, 2048), B=normal(2048, 2048, seed=1), C=normal(2048, 3))
    found = find_ratios(model, {"x": normal(16, 64)}, latency=0.6, multiple=64, threads=1, overlay=overlay)
    assert found.latency is not None
    assert found.latency <= 0.6
    assert 0.05 < found.flops < 0.8


def test_what_cannot_be_is_told(overlay: Any) -> None:
    text, constants = network()
    model = build(text, **constants)
    data = {"x": normal(8, 6)}
    with pytest.raises(TrainingError, match="of the operations are left when all layers that can be are pruned"):
        find_ratios(model, data, flops=0.01, overlay=overlay)
    with pytest.raises(RecipeError, match="give one target"):
        find_ratios(model, data, overlay=overlay)
    with pytest.raises(RecipeError, match=r"flops: found 1\.5"):
        find_ratios(model, data, flops=1.5, overlay=overlay)
    with pytest.raises(DataError, match="the samples lack 'x'; found z"):
        find_ratios(model, {"z": data["x"]}, flops=0.5, overlay=overlay)


def test_the_command_finds_ratios(tmp_path: Path, overlay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_CACHE", str(overlay.path.parent))
    words = [
        "prune",
        MODELS / "digits_cnn.onnx",
        "-o",
        tmp_path / "p.onnx",
        "--target-flops",
        0.6,
        "--data",
        TRAIN,
        "--json",
    ]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["search"]["flops"] == pytest.approx(content["after"]["flops"] / content["before"]["flops"])
    assert content["search"]["flops"] <= 0.6
