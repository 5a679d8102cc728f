"""QAT: a model that is trained by steps or epochs, saved, gone on with, and converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxq.dialects.paddle import QAT, Model, QuantConfig, nn
from onnxq.dialects.paddle.observers import AbsMaxChannelWiseWeightObserver, MSEObserver
from onnxq.dialects.paddle.quanters import ActLSQplusQuanter, WeightLSQplusQuanter
from onnxq.errors import DataError, ModelError, TrainingError
from onnxq.qat.trainer import TrainOptions
from onnxq.recipe import Recipe
from tests.graphs import build, normal
from tests.qat.runtime import training_runtime

BATCH = 16


@pytest.fixture(scope="module")
def overlay() -> Any:
    return training_runtime()


def network() -> onnx.ModelProto:
    weights = {
        "W1": normal(8, 1, 3, 3, seed=1, scale=0.4), "b1": normal(8, seed=2, scale=0.1),
        "W2": normal(3, 8 * 36, seed=3, scale=0.1), "b2": normal(3, seed=4, scale=0.1),
    }  # fmt: skip
    return build(
        "g (float[N,1,8,8] x) => (float[N,3] logits) "
        "{ [c] a = Conv(x, W1, b1) [r] r = Relu(a) [f] f = Flatten(r) [g] logits = Gemm <transB=1> (f, W2, b2) }",
        **weights,
    )


def samples(count: int = 96) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images whose brightest third says their class, and the classes."""
    labels = np.arange(count) % 3
    images = normal(count, 1, 8, 8, seed=5) * 0.5
    for image, label in zip(images, labels, strict=True):
        image[0, :, 3 * label : 3 * label + 2] += 1.0
    return images, labels.astype(np.int64)


def config(bits: int = 4) -> QuantConfig:
    return QuantConfig(MSEObserver(), AbsMaxChannelWiseWeightObserver(quant_bits=bits))


def begun(overlay: Any, made: QuantConfig | None = None, **options: Any) -> tuple[QAT, Model]:
    qat = QAT(made or config(), recipe=Recipe(refine=()), overlay=overlay)
    return qat, qat.quantize(Model(network()).train(), **options)


def stepped(model: Model, rounds: int = 1, *, rate: float = 3e-3) -> list[float]:
    images, labels = samples()
    starts = [start for _ in range(rounds) for start in range(0, len(images), BATCH)]
    return [model.train_step((images[s : s + BATCH], labels[s : s + BATCH]), rate) for s in starts]


def accuracy(model: Model) -> float:
    images, labels = samples()
    return float((np.asarray(model(images)).argmax(1) == labels).mean())


def test_steps_make_a_better_quantized_model(overlay: Any, tmp_path: Path) -> None:
    qat, model = begun(overlay)
    before = accuracy(model)
    losses = stepped(model, 3)
    assert np.mean(losses[-6:]) < 0.2 * np.mean(losses[:2])
    converted = qat.convert(model)
    assert (model.form, converted.form, converted.training) == ("trained", "converted", False)
    assert accuracy(converted) > max(before + 0.1, 0.95)
    np.testing.assert_array_equal(converted(samples()[0]), model(samples()[0]))
    np.testing.assert_array_equal(Model(converted.save(tmp_path / "q.onnx"))(samples()[0]), converted(samples()[0]))
    floats = qat.convert(model, remain_weight=True)
    np.testing.assert_allclose(floats(samples()[0]), converted(samples()[0]), atol=1e-5)


def test_a_state_that_is_loaded_is_gone_on_with(overlay: Any, tmp_path: Path) -> None:
    _, straight = begun(overlay)
    stepped(straight)
    straight.save_state(tmp_path / "state")
    ahead = stepped(straight)
    _, other = begun(overlay, data={"x": samples()[0][:BATCH]})
    other.load_state(tmp_path / "state")
    assert stepped(other) == ahead
    np.testing.assert_array_equal(straight(samples()[0]), other(samples()[0]))


def test_epochs_go_on_from_steps(overlay: Any) -> None:
    _, model = begun(overlay)
    losses = stepped(model)
    options = TrainOptions(epochs=2, batch_size=BATCH, learning_rate=1e-3)
    rows = model.fit(samples(), evaluation=samples(), options=options)
    assert rows[0].loss < losses[0]
    assert rows[-1].figures["accuracy"] == pytest.approx(accuracy(model), abs=0.03)
    after = rows[-1].loss
    assert model.fit(samples(), options=options)[-1].loss < after


def test_quanters_say_how_scales_are_learned(overlay: Any) -> None:
    made = QuantConfig()
    made.add_type_config([nn.Conv2D, nn.Linear], ActLSQplusQuanter(), WeightLSQplusQuanter(per_channel=True))
    qat, model = begun(overlay, made, data={"x": samples()[0]})
    first = qat.convert(model).result.params["W1"].scale
    losses = stepped(model, 2)
    assert losses[-1] < losses[0]
    assert not np.array_equal(qat.convert(model).result.params["W1"].scale, first)


def test_in_place_and_a_folder_of_ones_own(overlay: Any, tmp_path: Path) -> None:
    qat, model = QAT(config(), overlay=overlay), Model(network()).train()
    folder = tmp_path / "artifacts"
    assert qat.quantize(model, inplace=True, data={"x": samples()[0]}, directory=folder) is model
    assert (folder / "training_model.onnx").is_file()
    assert qat.convert(model, inplace=True) is model
    assert (model.form, model.training) == ("converted", False)
    assert model.result.plan.counts()["quantized"] == 2


def test_calls_out_of_order_are_refused(overlay: Any, tmp_path: Path) -> None:
    qat, model = begun(overlay)
    with pytest.raises(TrainingError, match="no scales yet"):
        qat.convert(model)
    with pytest.raises(TrainingError, match="no scales yet"):
        model.save_state(tmp_path / "state")
    with pytest.raises(DataError, match="the data lack x"):
        model.train_step({"image": samples()[0], "labels": samples()[1]})
    stepped(model)
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        model.load_state(tmp_path / "nothing")
    with pytest.raises(ModelError, match="the model is in eval mode"):
        model.eval().train_step(samples())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QAT(config()).quantize(Model(network())), r"call its train\(\) before QAT.quantize"),
        (lambda: QAT(config()).convert(Model(network())), "found a model that is float"),
        (lambda: QAT(config()).convert("model.onnx"), "found str"),
    ],
)
def test_other_models_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call()
