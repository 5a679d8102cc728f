"""The training worker with the real training runtime."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxq.errors import TrainingError
from onnxq.qat.worker_client import ArtifactRequest, Worker
from tests.qat.models import CLASSIFIER, NORMALIZED, ROUNDED, model

REQUEST = ArtifactRequest(("w", "v"), frozen=("mask",), outputs=("logits", "h"), clip_grad_norm=1.0, weight_decay=0.01)


def batches(count, seed=0, size=8):
    rng = np.random.default_rng(seed)
    return [
        {"x": rng.normal(size=(size, 4)).astype(np.float32), "label": rng.integers(0, 3, size)} for _ in range(count)
    ]


@pytest.fixture(scope="module")
def artifacts(worker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    worker.generate(model(CLASSIFIER), REQUEST, folder)
    return folder


@pytest.fixture
def session(worker, artifacts):
    worker.open(artifacts)
    return worker


def reference(parameters, feeds):
    """Loss, logits and gradients of the classifier by hand."""
    x, label = feeds["x"].astype(np.float64), feeds["label"]
    w, v = (parameters[name].astype(np.float64) for name in ("w", "v"))
    h = x @ (w * parameters["mask"])
    r = np.maximum(h, 0)
    logits = r @ v
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(x)), label]).mean()
    d = (p - np.eye(3)[label]) / len(x)
    return loss, logits, {"v": r.T @ d, "w": x.T @ ((d @ v.T) * (h > 0)) * parameters["mask"]}


def test_artifacts(worker, artifacts):
    assert sorted(p.name for p in artifacts.iterdir()) == [
        "checkpoint", "eval_model.onnx", "optimizer_model.onnx", "training_model.onnx",
    ]  # fmt: skip
    for path in artifacts.glob("*.onnx"):
        assert onnx.load(path).ir_version <= 10
    info = worker.open(artifacts)
    assert (set(info.inputs), info.outputs) == ({"x", "label"}, ("loss", "logits", "h"))
    assert (set(info.trained), info.frozen, dict(info.properties)) == ({"w", "v"}, ("mask",), {})
    assert worker.version == "1.19.2"


def test_loss_outputs_and_gradients(session):
    feeds = batches(1)[0]
    start = session.parameters()
    loss, logits, expected = reference(start, feeds)
    step = session.accumulate(feeds, None)
    assert step.loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(step.outputs["logits"], logits, rtol=1e-5, atol=1e-6)
    found = session.gradients()
    assert set(found) == {"w", "v"}
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-7)
    evaluated = session.evaluate(feeds)
    assert set(evaluated) == {"loss", "logits", "h"}
    assert float(evaluated["loss"]) == pytest.approx(loss, rel=1e-5)
    assert set(session.evaluate(feeds, ["h"])) == {"loss", "h"}
    other = session.value_and_gradient(model(CLASSIFIER), ["w", "v"], feeds, outputs=["logits"])
    np.testing.assert_allclose(other[0]["logits"], logits, rtol=1e-5, atol=1e-6)
    for name in expected:
        np.testing.assert_allclose(other[1][name], expected[name], rtol=1e-4, atol=1e-7)


def test_gradients_add_up_until_they_are_reset(session):
    one, two = batches(2)
    session.reset_gradients()
    session.accumulate(one)
    first = session.gradients(["w"])["w"]
    session.accumulate(two)
    both = session.gradients(["w"])["w"]
    session.reset_gradients()
    session.accumulate(two)
    np.testing.assert_allclose(both - session.gradients(["w"])["w"], first, rtol=1e-4, atol=1e-7)
    assert np.abs(first).max() > 1e-3


def test_a_step_of_sgd_is_the_rate_times_the_gradient(worker, tmp_path):
    worker.generate(model(CLASSIFIER), ArtifactRequest(("w", "v"), optimizer="sgd"), tmp_path)
    worker.open(tmp_path)
    start = worker.parameters()
    worker.train_step(batches(1)[0], 0.25)
    gradients, end = worker.gradients(), worker.parameters()
    for name in ("w", "v"):
        np.testing.assert_allclose(end[name], start[name] - 0.25 * gradients[name], rtol=1e-6)
        assert np.any(end[name] != start[name])


def test_steps_in_one_message_equal_single_steps(worker, artifacts):
    feeds, rates = batches(5), [0.01, 0.02, 0.005, 0.01, 0.003]
    worker.open(artifacts)
    together = worker.train_steps(feeds, rates)
    weights = worker.parameters()
    worker.open(artifacts)
    for batch, rate, step in zip(feeds, rates, together, strict=True):
        assert worker.train_step(batch, rate) == step
    worker.open(artifacts)
    for batch, rate, step in zip(feeds, rates, together, strict=True):
        worker.reset_gradients()
        assert worker.accumulate(batch).loss == step.loss
        worker.optimizer_step(rate)
    for name, value in worker.parameters().items():
        np.testing.assert_array_equal(value, weights[name])


def test_after_a_step_gradients_start_anew(worker, artifacts):
    one, two = batches(2)
    worker.open(artifacts)
    worker.train_step(one, 0.0)
    worker.accumulate(two)
    found = worker.gradients()
    worker.open(artifacts)
    worker.accumulate(two)
    for name, value in worker.gradients().items():
        np.testing.assert_array_equal(found[name], value)


def test_the_mean_of_the_halves_gradients_is_the_whole_batchs(worker, artifacts):
    """What data-parallel training is made of."""
    whole = batches(1)[0]
    halves = [{name: value[part] for name, value in whole.items()} for part in (slice(0, 4), slice(4, 8))]
    worker.open(artifacts)
    worker.train_step(whole, 0.01)
    expected = worker.parameters()
    found = []
    for half in halves:
        worker.open(artifacts)
        worker.accumulate(half)
        found.append(worker.gradients())
    worker.open(artifacts)
    worker.set_gradients({name: (found[0][name] + found[1][name]) / 2 for name in found[0]})
    worker.optimizer_step(0.01)
    for name, value in worker.parameters().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6)


def test_masks_and_weights_can_be_set(session):
    feeds = batches(1)[0]
    values = {"mask": np.array([0, 1, 0, 1, 0], np.float32), "v": np.ones((5, 3), np.float32)}
    session.set_parameters(values)
    found = session.parameters(["v", "mask", "w"])
    assert list(found) == ["v", "mask", "w"]
    np.testing.assert_array_equal(found["mask"], values["mask"])
    loss, logits, expected = reference(found, feeds)
    step = session.accumulate(feeds, ["logits"])
    assert step.loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(step.outputs["logits"], logits, rtol=1e-5, atol=1e-6)
    gradient = session.gradients()["w"]
    assert np.all(gradient[:, [0, 2, 4]] == 0)
    np.testing.assert_allclose(gradient, expected["w"], atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_saved_run_goes_on_bit_by_bit(worker, tmp_path, optimizer):
    request = replace(REQUEST, optimizer=optimizer, weight_decay=0.01 if optimizer == "adamw" else 0.0)
    worker.generate(model(CLASSIFIER), request, tmp_path / "a")
    worker.open(tmp_path / "a")
    feeds, rates = batches(17), [0.01 / (i + 1) for i in range(17)]
    worker.train_steps(feeds[:7], rates[:7])
    properties = {"step": 7, "rate": 0.1 + 0.2, "schedule": "cosine", "huge": 2**62, "small": 1e-300, "large": -1e300}
    saved = worker.save_checkpoint(tmp_path / "saved", properties)
    expected = worker.train_steps(feeds[7:], rates[7:])
    end = worker.parameters()
    info = worker.open(tmp_path / "a", saved)
    assert dict(info.properties) == properties
    assert worker.train_steps(feeds[7:], rates[7:]) == expected
    for name, value in worker.parameters().items():
        np.testing.assert_array_equal(value, end[name])
    fresh = worker.open(tmp_path / "a")
    assert fresh.properties == {}
    assert worker.train_steps(feeds[7:], rates[7:]) != expected


def test_properties_stay_until_they_are_given_again(session, artifacts, tmp_path):
    session.save_checkpoint(tmp_path / "one", {"a": 1, "b": 0.1})
    session.open(artifacts, tmp_path / "one")
    session.save_checkpoint(tmp_path / "two", {"b": 0.7})
    assert session.open(artifacts, tmp_path / "two").properties == {"a": 1, "b": 0.7}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("value", [True, None, float("nan"), 2**63, [1]])
def test_properties_that_a_checkpoint_cannot_hold(session, tmp_path, value):
    with pytest.raises(TrainingError, match="property 'it'"):
        session.save_checkpoint(tmp_path / "c", {"it": value})
    assert not any(tmp_path.iterdir())


def test_running_statistics_are_updated_and_used(worker, tmp_path):
    """The generator's own eval model of a BatchNormalization in training mode is not valid."""
    worker.generate(model(NORMALIZED), ArtifactRequest(("gamma", "beta"), frozen=("mean", "var")), tmp_path)
    worker.open(tmp_path)
    x = np.random.default_rng(0).normal(3, 2, size=(16, 2, 3, 3)).astype(np.float32)
    for _ in range(40):
        worker.accumulate({"x": x})
    found = worker.parameters()
    np.testing.assert_allclose(found["mean"], x.mean((0, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(found["var"], x.var((0, 2, 3)), rtol=1e-2)
    other = 0.5 * x + 1
    normal = (other - found["mean"][:, None, None]) / np.sqrt(found["var"][:, None, None] + 1e-5)
    y = normal * np.float32([1, 2])[:, None, None] + np.float32([0, 1])[:, None, None]
    gradients = worker.gradients()
    assert float(worker.evaluate({"x": other})["loss"]) == pytest.approx(float((y**2).mean()), rel=1e-4)
    np.testing.assert_array_equal(worker.parameters()["mean"], found["mean"])
    np.testing.assert_array_equal(worker.gradients()["gamma"], gradients["gamma"])
    worker.train_step({"x": other}, 0.01)
    assert np.all(worker.parameters()["gamma"] != found["gamma"])
    assert np.all(worker.parameters()["mean"] != found["mean"])


def test_gradients_by_inputs_and_with_other_values(worker):
    feeds = batches(1)[0]
    values = {name: worker.gradient(model(CLASSIFIER), ["x", name], feeds) for name in ("w", "v")}
    assert set(values["w"]) == {"x", "w"}
    step = 1e-2
    up, down = ({**feeds, "x": feeds["x"] + sign * step * np.eye(8, 4, dtype=np.float32)} for sign in (1, -1))
    losses = [worker.value_and_gradient(model(CLASSIFIER), ["w"], f)[0]["loss"] for f in (up, down)]
    slope = float(losses[0] - losses[1]) / (2 * step)
    assert slope == pytest.approx(float(np.trace(values["w"]["x"][:4])), rel=2e-2)
    other = worker.gradient(model(CLASSIFIER), ["v"], {**feeds, "v": np.zeros((5, 3), np.float32)})["v"]
    assert not np.allclose(other, values["v"]["v"])


def newer(text, opset):
    proto = onnx.load_from_string(model(text))
    proto.opset_import[0].version = opset
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("data", "request_", "words"),
    [
        (model(CLASSIFIER), ArtifactRequest(("ww",)), "no initializer 'ww'; did you mean 'w'"),
        (model(CLASSIFIER), ArtifactRequest(("w",), frozen=("w",)), "'w' cannot be trained and frozen"),
        (model(CLASSIFIER), ArtifactRequest(("w",), outputs=("logit",)), "'logit'; did you mean 'logits'"),
        (model(CLASSIFIER), ArtifactRequest(("w",), outputs=("loss",)), "'loss' is the loss"),
        (model(ROUNDED), ArtifactRequest(("w",)), "generate: the training runtime says.*Round"),
        (newer(CLASSIFIER, 22), ArtifactRequest(("w",)), "opset 22 and the training runtime knows 21"),
        (b"nonsense", ArtifactRequest(("w",)), "generate: the training runtime says"),
    ],
)  # fmt: skip
def test_what_no_artifacts_can_be_made_of(worker, tmp_path, data, request_, words):
    with pytest.raises(TrainingError, match=f"(?s){words}"):
        worker.generate(data, request_, tmp_path)
    assert not any(tmp_path.iterdir())
    assert not worker.closed


def test_a_newer_file_format_is_no_obstacle(worker, tmp_path):
    proto = onnx.load_from_string(model(CLASSIFIER))
    proto.ir_version = 13
    assert len(worker.generate(proto.SerializeToString(), REQUEST, tmp_path)) == 4
    assert worker.open(tmp_path).trained


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adam"}, "no optimizer 'adam'"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "SGD has no weight decay"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm is 0.0"),
        ({"requires_grad": ()}, "no parameter"),
    ],
)
def test_requests_that_make_no_sense(options, words):
    with pytest.raises(TrainingError, match=words):
        ArtifactRequest(**{"requires_grad": ("w",), **options})


def test_what_cannot_be_derived(worker):
    with pytest.raises(TrainingError, match="Round"):
        worker.gradient(model(ROUNDED), ["w"], {"x": np.ones(3, np.float32)})
    with pytest.raises(TrainingError, match="no initializer or input 'u'"):
        worker.gradient(model(CLASSIFIER), ["u"], batches(1)[0])
    with pytest.raises(TrainingError, match="no input 'y'"):
        worker.gradient(model(CLASSIFIER), ["w"], {**batches(1)[0], "y": np.ones(3)})
    with pytest.raises(TrainingError, match="no output 'logs'; did you mean 'logits'"):
        worker.gradient(model(CLASSIFIER), ["w"], batches(1)[0], "logs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lable": None}, "no input 'lable'; did you mean 'label'"),
        ({"x": np.zeros((8, 4))}, r"tensor\(double\)"),
        ({"x": np.zeros((8, 5), np.float32)}, "Got: 5 Expected: 4"),
        ({"x": None}, "needs 'x' too; the feeds hold 'label'"),
    ],
)
def test_feeds_that_do_not_fit_change_nothing(session, change, words):
    good = batches(1)[0]
    before = session.parameters()
    feeds = {name: value for name, value in {**good, **change}.items() if value is not None or name == "lable"}
    with pytest.raises(TrainingError, match=words):
        session.train_step(feeds, 0.1)
    for name, value in session.parameters().items():
        np.testing.assert_array_equal(value, before[name])
    assert session.train_step(good, 0.1).loss > 0


def test_parameters_that_do_not_fit_change_nothing(session):
    before = session.parameters()
    good = np.zeros((5, 3), np.float32)
    for bad, words in [
        ({"w": np.zeros((4, 4), np.float32)}, r"parameter 'w' is float32 \[4, 5\]; found float32 \[4, 4\]"),
        ({"w": np.zeros((4, 5))}, r"found float64 \[4, 5\]"),
        ({"masc": np.zeros(5, np.float32)}, "no parameter 'masc'; did you mean 'mask'"),
    ]:
        with pytest.raises(TrainingError, match=words):
            session.set_parameters({"v": good, **bad})
    with pytest.raises(TrainingError, match="'mask' is not trained"):
        session.gradients(["mask"])
    with pytest.raises(TrainingError, match=r"gradient 'v' is float32 \[5, 3\]"):
        session.set_gradients({"v": np.zeros((3, 5), np.float32)})
    for name, value in session.parameters().items():
        np.testing.assert_array_equal(value, before[name])


def test_what_cannot_be_opened(overlay, artifacts, tmp_path):
    with Worker(overlay) as worker:
        with pytest.raises(TrainingError, match="no training session is open"):
            worker.train_step(batches(1)[0], 0.1)
        with pytest.raises(TrainingError, match=r"no file .*training_model\.onnx"):
            worker.open(tmp_path)
        (tmp_path / "damaged").write_bytes((artifacts / "checkpoint").read_bytes()[:50])
        with pytest.raises(TrainingError, match="open: the training runtime says"):
            worker.open(artifacts, tmp_path / "damaged")
        with pytest.raises(TrainingError, match="no training session is open"):
            worker.evaluate(batches(1)[0])
        worker.open(artifacts)
        with pytest.raises(TrainingError, match="no folder"):
            worker.save_checkpoint(tmp_path / "nowhere" / "c")
        assert worker.train_step(batches(1)[0], 0.1).loss > 0


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_death_in_the_middle_of_a_step(overlay, artifacts):
    with Worker(overlay) as worker:
        worker.open(artifacts)
        many = batches(500, size=64) * 40
        killer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL))
        killer.start()
        start = time.monotonic()
        with pytest.raises(TrainingError, match="ended during 'train_steps': killed by SIGKILL"):
            worker.train_steps(many, [0.0] * len(many))
        assert time.monotonic() - start < 30
        assert worker.closed
        with pytest.raises(TrainingError, match="closed"):
            worker.parameters()


BARE = """
import os, sys, types
sys.path.insert(0, sys.argv[1])
import numpy as np
import onnxruntime
package = types.ModuleType("onnxruntime.training")
package.__path__ = [os.path.join(os.path.dirname(onnxruntime.__file__), "training")]
sys.modules["onnxruntime.training"] = package
from onnxruntime.training.api import CheckpointState, Module, Optimizer

os.chdir(sys.argv[2])
state = CheckpointState.load_checkpoint("checkpoint")
module = Module("training_model.onnx", state, "eval_model.onnx")
optimizer = Optimizer("optimizer_model.onnx", module)
feeds = {"x": np.ones((2, 4), np.float32), "label": np.array([0, 2])}
losses = []
for _ in range(3):
    losses.append(float(module(*(feeds[name] for name in module.input_names()))[0]))
    optimizer.step()
    module.lazy_reset_grad()
assert losses[2] < losses[0] and "onnxq" not in sys.modules
"""


def test_the_artifacts_need_nothing_of_onnxq(overlay, artifacts, tmp_path):
    command = [overlay.python, "-c", BARE, overlay.path, artifacts]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
