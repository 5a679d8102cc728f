"""Training from artifacts to a quantized model: it learns, goes on where it stopped, and ranks stay equal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxq.errors import DataError, TrainingError
from onnxq.qat.artifacts import create
from onnxq.qat.manifest import Manifest
from onnxq.qat.ranks import Ranks
from onnxq.qat.save import quantized, trained_values
from onnxq.qat.schedules import Schedule
from onnxq.qat.trainer import LAST, QatTrainer, TrainOptions, saved_options
from onnxq.qat.worker_client import Worker
from tests.graphs import build, normal, run

OPTIONS = TrainOptions(epochs=3, batch_size=16, learning_rate=3e-3)


def network() -> onnx.ModelProto:
    weights = {
        "W1": normal(8, 1, 3, 3, seed=1, scale=0.4), "b1": normal(8, seed=2, scale=0.1),
        "W2": normal(3, 8 * 36, seed=3, scale=0.1), "b2": normal(3, seed=4, scale=0.1),
    }  # fmt: skip
    return build(
        "g (float[N,1,8,8] x) => (float[N,3] logits) "
        "{ a = Conv(x, W1, b1) r = Relu(a) f = Flatten(r) logits = Gemm <transB=1> (f, W2, b2) }",
        **weights,
    )


def samples(count: int = 120) -> dict[str, NDArray[Any]]:
    """Images whose brightest third says their class."""
    labels = np.arange(count) % 3
    images = normal(count, 1, 8, 8, seed=5) * 0.5
    for image, label in zip(images, labels, strict=True):
        image[0, :, 3 * label : 3 * label + 2] += 1.0
    return {"x": images, "labels": labels.astype(np.int64)}


def artifacts(folder: Path, overlay: Any, **recipe: Any) -> Path:
    create(network(), {"x": samples()["x"][:32]}, folder, recipe={"refine": [], **recipe}, overlay=overlay)
    return folder


def accuracy(model: onnx.ModelProto) -> float:
    data = samples()
    return float((run(model, {"x": data["x"]})["logits"].argmax(1) == data["labels"]).mean())


def test_training_makes_a_better_quantized_model(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay, weights={"bits": 4})
    before = accuracy(quantized(folder, trained_values(folder, overlay=overlay)).model)
    rows = QatTrainer(folder, OPTIONS, overlay=overlay).fit(samples(), evaluation=samples())
    result = quantized(folder, trained_values(folder, overlay=overlay))
    assert before < 0.8
    assert accuracy(result.model) > 0.97
    assert rows[-1].loss < 0.5 * rows[0].loss
    assert rows[-1].figures["accuracy"] == pytest.approx(accuracy(result.model), abs=0.02)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"weights": {"bits": 4}, "activations": {"bits": 4}},
        {"weights": {"trained": "arq"}, "activations": {"trained": "pact"}},
    ],
    ids=["8 bits", "4 bits", "arq and pact"],
)
def test_the_quantized_model_gives_what_the_eval_model_gives(
    tmp_path: Path, overlay: Any, recipe: dict[str, Any]
) -> None:
    folder = artifacts(tmp_path / "art", overlay, target="tensorrt" if not recipe else "ort", **recipe)
    QatTrainer(folder, replace(OPTIONS, epochs=1), overlay=overlay).fit(samples())
    data = samples(24)
    with Worker(overlay) as worker:
        worker.open(folder, folder / LAST)
        expected = worker.evaluate(data, ["logits"])["logits"]
        result = quantized(folder, worker.parameters())
    found = run(result.model, {"x": data["x"]})["logits"]
    step = np.abs(expected).max() / 127
    if not result.notes:  # no scale had to be enlarged
        assert np.abs(found - expected).max() <= 2 * step
        assert np.median(np.abs(found - expected)) <= 0.05 * step
    assert np.abs(found - expected).mean() <= 2 * step


def test_distillation_needs_no_labels(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay, weights={"bits": 3}, training={"loss": "distillation"})
    images = samples()["x"]
    rows = QatTrainer(folder, replace(OPTIONS, epochs=8), overlay=overlay).fit({"x": images})
    assert Manifest.read(folder).loss_inputs[0].teacher
    assert rows[-1].loss < rows[0].loss
    wanted = run(network(), {"x": images})["logits"].argmax(1)
    found = run(quantized(folder, trained_values(folder, overlay=overlay)).model, {"x": images})["logits"].argmax(1)
    assert (found == wanted).mean() > 0.9


@pytest.mark.parametrize("loss", ["mse", "l1", "bce"])
def test_other_losses(tmp_path: Path, overlay: Any, loss: str) -> None:
    folder = artifacts(tmp_path / "art", overlay, training={"loss": loss})
    data = samples()
    targets = np.eye(3, dtype=np.float32)[data["labels"]]
    rows = QatTrainer(folder, OPTIONS, overlay=overlay).fit({"x": data["x"], "labels": targets})
    assert rows[-1].loss < 0.8 * rows[0].loss
    with Worker(overlay) as worker:
        worker.open(folder)
        found = worker.evaluate({"x": data["x"], "labels": targets})
    x, t = found["logits"].astype(np.float64), targets
    expected = {
        "mse": ((x - t) ** 2).mean(), "l1": np.abs(x - t).mean(), "bce": (np.logaddexp(0, x) - x * t).mean(),
    }[loss]  # fmt: skip
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_ones_own(tmp_path: Path, overlay: Any) -> None:
    own = build("g (float[N,3] logits, float[N,3] wanted) => (float l) "
                "{ d = Sub(logits, wanted) a = Abs(d) l = ReduceMean <keepdims=0> (a) }")  # fmt: skip
    onnx.save(own, tmp_path / "loss.onnx")
    loss = {"kind": "model", "path": str(tmp_path / "loss.onnx")}
    folder = artifacts(tmp_path / "art", overlay, training={"loss": loss})
    data = samples()
    wanted = np.eye(3, dtype=np.float32)[data["labels"]]
    rows = QatTrainer(folder, OPTIONS, overlay=overlay).fit({"x": data["x"], "wanted": wanted})
    assert rows[-1].loss < 0.8 * rows[0].loss


def test_whole_numbers_of_a_loss_of_ones_own_are_no_classes_of_the_output(tmp_path: Path, overlay: Any) -> None:
    own = build("g (float[N,3] logits, int64[N,1] many) => (float l) "
                "{ m = Cast <to=1> (many) d = Sub(logits, m) a = Abs(d) l = ReduceMean <keepdims=0> (a) }")  # fmt: skip
    onnx.save(own, tmp_path / "loss.onnx")
    loss = {"kind": "model", "path": str(tmp_path / "loss.onnx")}
    folder = artifacts(tmp_path / "art", overlay, training={"loss": loss})
    data = samples()
    many = 7 + data["labels"][:, np.newaxis]
    found = {"x": data["x"], "many": many}
    rows = QatTrainer(folder, OPTIONS, overlay=overlay).fit(found, evaluation=found)
    assert rows[-1].loss < rows[0].loss
    assert set(rows[-1].figures) == {"loss"}


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path, overlay: Any) -> None:
    options = replace(OPTIONS, checkpoint_every=3, epochs=4)
    whole = artifacts(tmp_path / "whole", overlay)
    QatTrainer(whole, options, overlay=overlay).fit(samples(), evaluation=samples(30))
    broken = artifacts(tmp_path / "broken", overlay)
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, time\n"
        "from onnxq.qat.trainer import QatTrainer, TrainOptions\n"
        "from tests.qat.test_trainer import samples\n"
        "options = TrainOptions(epochs=4, batch_size=16, learning_rate=3e-3, checkpoint_every=3)\n"
        "def tick(done, total):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(0.05)\n"
        "QatTrainer(sys.argv[1], options).fit(samples(), evaluation=samples(30), tick=tick)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "ONNXQ_CACHE": str(overlay.path.parent)}
    with subprocess.Popen(
        [sys.executable, str(script), str(broken)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 13:  # in the middle of the second epoch
                process.send_signal(signal.SIGKILL)
                break
    assert saved_options(broken) == options
    QatTrainer(broken, options, overlay=overlay).fit(samples(), evaluation=samples(30), resume=True)
    for checkpoint in (None, "checkpoint.last"):
        expected = trained_values(whole, checkpoint and whole / checkpoint, overlay=overlay)
        found = trained_values(broken, checkpoint and broken / checkpoint, overlay=overlay)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    first, second = (quantized(f, trained_values(f, overlay=overlay)).model for f in (whole, broken))
    assert first.SerializeToString() == second.SerializeToString()
    rows = [
        [
            {k: v for k, v in row.items() if k != "samples_per_second"}
            for row in json.loads((f / "history.json").read_text())
        ]
        for f in (whole, broken)
    ]
    assert rows[0] == rows[1]


def test_going_on_with_something_else_is_refused(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay)
    with pytest.raises(TrainingError, match="has not reached its first checkpoint"):
        QatTrainer(folder, OPTIONS, overlay=overlay).fit(samples(), resume=True)
    QatTrainer(folder, OPTIONS, overlay=overlay).fit(samples())
    with pytest.raises(TrainingError, match="batch_size was 16"):
        QatTrainer(folder, replace(OPTIONS, batch_size=8), overlay=overlay).fit(samples(), resume=True)
    with pytest.raises(TrainingError, match="not the data this training began with"):
        QatTrainer(folder, OPTIONS, overlay=overlay).fit(samples(60), resume=True)


def test_ranks_stay_equal_and_average_gradients(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay, training={"optimizer": "sgd"})
    data = samples(31)
    with Ranks(folder, 2, overlay=overlay) as two, Ranks(folder, 1, overlay=overlay) as one:
        losses = [ranks.steps([[data]] * 5, [0.05] * 5) for ranks in (two, one)]
        first, second = two.parameters_of_each()
        alone = one.parameters_of_each()[0]
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)
        np.testing.assert_allclose(alone[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_accumulated_batches_are_one_batch(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay, training={"optimizer": "sgd"})
    data = samples(32)
    parts = [{name: array[i : i + 8] for name, array in data.items()} for i in range(0, 32, 8)]
    with Ranks(folder, overlay=overlay) as many, Ranks(folder, overlay=overlay) as once:
        many.steps([parts], [0.05])
        once.steps([[data]], [0.05])
        for name, value in once.parameters_of_each()[0].items():
            np.testing.assert_allclose(many.parameters_of_each()[0][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_training_stops_when_nothing_gets_better(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay)
    options = replace(OPTIONS, epochs=12, patience=2)
    rows = QatTrainer(folder, options, overlay=overlay).fit(samples(), evaluation=samples())
    assert len(rows) < 12
    assert not rows[-1].best
    assert not rows[-2].best
    best = max(rows, key=lambda r: (r.figures["accuracy"], -r.epoch))
    assert best.best


def test_bad_data(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay)
    trainer = QatTrainer(folder, OPTIONS, overlay=overlay)
    good = samples(12)
    for bad, text in (
        ({"x": good["x"]}, "labels missing; found x"),
        ({**good, "labels": good["labels"] + 1}, "labels go from 1 to 3; the model has 3 classes, 0 to 2"),
        ({**good, "labels": good["labels"][:5]}, "found x: 12, labels: 5"),
        ({**good, "labels": good["labels"] * 0.5}, "labels are float64; must be whole numbers"),
        ({**good, "x": good["x"] * np.nan}, "x holds NaN or infinity"),
    ):
        with pytest.raises(DataError, match=text):
            trainer.fit(bad)
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        trainer.fit(tmp_path / "none.npz")


def test_a_loss_that_explodes_is_told(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay, training={"optimizer": "sgd"})
    with pytest.raises(TrainingError, match="use a smaller learning rate"):
        QatTrainer(folder, replace(OPTIONS, learning_rate=1e12), overlay=overlay).fit(samples())


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear", "step"])
def test_schedules(shape: Any) -> None:
    schedule = Schedule(0.1, 100, shape, warmup=10)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    ends = {"constant": 0.1, "cosine": 0.0, "linear": 0.0, "step": 0.001}
    assert rates[-1] == pytest.approx(ends[shape], abs=2e-3)


def test_a_float_model_can_be_trained_too(tmp_path: Path, overlay: Any) -> None:
    made = create(network(), None, tmp_path / "art", quantize=False, overlay=overlay)
    assert set(made.manifest.trained) == {"W1", "b1", "W2", "b2"}
    QatTrainer(made.directory, OPTIONS, overlay=overlay).fit(samples(), evaluation=samples())
    result = quantized(made.directory, trained_values(made.directory, overlay=overlay))
    assert not result.changed
    result.save(tmp_path / "trained.onnx")
    saved = onnx.load(tmp_path / "trained.onnx")
    assert accuracy(network()) < 0.8
    assert accuracy(saved) > 0.97
    assert {n.op_type for n in saved.graph.node} == {"Conv", "Relu", "Flatten", "Gemm"}


@pytest.mark.parametrize(
    "recipe", [{}, {"weights": {"granularity": "per_tensor", "trained": "arq"}}], ids=["lsq", "arq"]
)
def test_trained_batch_normalization_is_folded_in_the_end(tmp_path: Path, overlay: Any, recipe: dict[str, Any]) -> None:
    weights = {
        "W1": normal(8, 1, 3, 3, seed=1, scale=0.4), "s": normal(8, seed=6) + 0.2, "t": normal(8, seed=7, scale=0.1),
        "m": normal(8, seed=8, scale=0.1), "v": np.abs(normal(8, seed=9)) + 0.5,
        "W2": normal(3, 8 * 36, seed=3, scale=0.1), "b2": normal(3, seed=4, scale=0.1),
    }  # fmt: skip
    model = build(
        "g (float[N,1,8,8] x) => (float[N,3] logits) { a = Conv(x, W1) n = BatchNormalization(a, s, t, m, v) "
        "r = Relu(n) f = Flatten(r) logits = Gemm <transB=1> (f, W2, b2) }",
        **weights,
    )
    wanted = {"training": {"batchnorm": "train"}, "target": "tensorrt", **recipe}
    folder = create(model, {"x": samples()["x"][:32]}, tmp_path / "art", recipe=wanted, overlay=overlay).directory
    assert {"m", "v"} <= set(Manifest.read(folder).frozen)
    assert {"s", "t", "W1"} <= set(Manifest.read(folder).trained)
    QatTrainer(folder, OPTIONS, overlay=overlay).fit(samples())
    data = samples(24)
    with Worker(overlay) as worker:
        worker.open(folder, folder / LAST)
        values = worker.parameters()
        expected = worker.evaluate(data, ["logits"])["logits"]
    assert np.abs(values["m"] - weights["m"]).max() > 0.01  # the statistics have been moved
    result = quantized(folder, values)
    assert "BatchNormalization" not in {n.op_type for n in result.model.graph.node}
    found = run(result.model, {"x": data["x"]})["logits"]
    assert np.abs(found - expected).max() <= 2 * np.abs(expected).max() / 127
    assert np.median(np.abs(found - expected)) <= 1e-3 * np.abs(expected).max()
