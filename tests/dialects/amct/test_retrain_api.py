"""AMCT's calls of training, from the configuration to the files for ATC, on a small network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxq.ascend import simulate_model
from onnxq.dialects import amct
from onnxq.dialects.amct.retrain_job import is_retrain_config, load_retrain_config
from onnxq.errors import DataError, RecipeError, RecordError, TrainingError
from onnxq.qat.artifacts import create
from onnxq.qat.save import quantized, trained_values
from onnxq.qat.trainer import TrainOptions
from onnxq.qat.worker_client import Worker
from tests.dialects.amct.retrain_configs import QUANT, named
from tests.graphs import build
from tests.qat.runtime import training_runtime

OPTIONS = TrainOptions(epochs=2, batch_size=8, learning_rate=1e-2, checkpoint_every=4)
PAIRS = [(8, 8), (8, 4), (4, 4), (16, 8)]


@pytest.fixture(scope="module", autouse=True)
def overlay():
    return training_runtime()


def network():
    rng = np.random.default_rng(0)
    text = """agraph (float[N, 2, 6, 6] image) => (float[N, 3] logits) {
      a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w, b)
      r = Relu (a)
      c = Conv <kernel_shape = [3, 3], strides = [2, 2]> (r, v, d)
      s = Relu (c)
      p = GlobalAveragePool (s)
      f = Flatten (p)
      logits = Gemm (f, m, n)
    }"""
    shapes = {"w": (8, 2, 3, 3), "b": (8,), "v": (8, 8, 3, 3), "d": (8,), "m": (8, 3), "n": (3,)}
    proto = build(text, **{k: (0.4 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()})
    for node in proto.graph.node:
        node.name = node.output[0]
    proto.graph.node[-1].name = "head"
    return proto


@pytest.fixture
def model(tmp_path):
    onnx.save(network(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 64)
    image = rng.standard_normal((64, 2, 6, 6)).astype(np.float32) + labels[:, None, None, None].astype(np.float32)
    return {"image": image, "labels": labels}


def config(folder, act=8, wts=8, algo="arq_retrain", extra=""):
    text = (
        f"{extra} batch_num: 2 retrain_data_quant_config {{ ulq_quantize {{ dst_type: INT{act} }} }} "
        f"retrain_weight_quant_config {{ {algo} {{ dst_type: INT{wts} }} }}"
    )
    (folder / "retrain.cfg").write_text(text)
    return folder / "retrain.cfg"


def run(path, feed):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def simulated(path, feed):
    proto = simulate_model(path).model
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def evaluated(trained, batches):
    """What the eval model of the artifacts gives for the trained parameters."""
    found = trained.directory / "checkpoint.last"
    with Worker() as worker:
        worker.open(trained.directory, found)
        return worker.evaluate(batches, ["logits"])["logits"]


@pytest.mark.parametrize(
    ("act", "wts", "algo"),
    [(8, 8, "arq_retrain"), (8, 4, "ulq_retrain"), (4, 4, "arq_retrain"), (16, 8, "ulq_retrain")],
)
def test_from_the_configuration_to_the_files(tmp_path, model, batches, act, wts, algo):
    amct.create_quant_retrain_config(
        tmp_path / "config.json", model, batches["image"], config_defination=config(tmp_path, act, wts, algo)
    )
    feeds = [{"image": batches["image"][i : i + 16]} for i in (0, 16, 32)]
    trained = amct.create_quant_retrain_model(tmp_path / "config.json", model, tmp_path / "record.txt", feeds)
    rows = trained.train(batches, options=OPTIONS)
    assert rows[-1].loss < rows[0].loss
    feed = {"image": batches["image"]}
    outputs = trained.infer(batches)["logits"]
    amct.save_quant_retrain_model(tmp_path / "config.json", trained, tmp_path / "record.txt", tmp_path / "net")

    twin = run(tmp_path / "net_fake_quant_model.onnx", feed)
    exact = simulated(tmp_path / "net_deploy_model.onnx", feed)
    np.testing.assert_allclose(twin, outputs, atol=1e-5)
    tolerance = 1e-3 * np.abs(twin).max()
    np.testing.assert_allclose(exact, twin, atol=tolerance)
    steps = 2 * float(trained.result.factors["head"].scale_d) * 8
    np.testing.assert_allclose(evaluated(trained, batches), twin, atol=max(tolerance, steps))
    agreement = (evaluated(trained, batches).argmax(1) == twin.argmax(1)).mean()
    assert agreement >= 0.95

    ops = [node.op_type for node in onnx.load(tmp_path / "net_deploy_model.onnx").graph.node]
    assert ops.count("AscendQuant") == ops.count("AscendDequant") == 3
    assert ops.count("AscendWeightQuant") == (3 if wts == 4 else 0)
    assert ops.count("Cast") == (3 if act == 4 else 0)
    record = amct.read_record(tmp_path / "record.txt")
    assert list(record.layers) == ["a", "c", "head"]
    assert {(f.act_bits, f.wts_bits) for f in record.layers.values()} == {(act, wts)}
    assert [f.scale_w.size for f in record.layers.values()] == [8, 8, 1]


def test_the_record_has_what_was_learned(tmp_path, model, batches):
    text = (
        "retrain_data_quant_config { ulq_quantize { clip_max_min { clip_max: 6 clip_min: -2 } } } "
        "retrain_weight_quant_config { ulq_retrain { } }"
    )
    (tmp_path / "retrain.cfg").write_text(text)
    trained = amct.create_quant_retrain_model(tmp_path / "retrain.cfg", model, tmp_path / "record.txt", batches)
    trained.infer()
    before = amct.read_record(tmp_path / "record.txt").layers
    assert before["a"].scale_d == pytest.approx(8 / 255, rel=1e-6)
    assert before["a"].offset_d == round(2 / (8 / 255)) - 128
    assert before["c"].scale_d == pytest.approx(6 / 255, rel=1e-6)  # from a Relu: the lower end is 0
    assert before["c"].offset_d == -128
    trained.train({**batches}, options=OPTIONS)
    trained.infer()
    after = amct.read_record(tmp_path / "record.txt").layers
    values = trained.values
    learned = {key: r for r in trained.manifest.ranges for key in r.keys}
    for name, key in (("a", "image"), ("c", "r")):
        grid = next(r for k, r in learned.items() if k.split(":")[0].endswith(key) or key in r.group).grid(values)
        assert after[name].scale_d != before[name].scale_d
        assert after[name].scale_d == pytest.approx(float(grid.step), rel=1e-6)
    scale = next(s for s in trained.manifest.scales if s.weight == "w")
    np.testing.assert_allclose(after["a"].scale_w, np.exp(values[scale.parameter].ravel() * scale.rate), rtol=1e-5)
    assert not np.allclose(after["a"].scale_w, before["a"].scale_w)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, model, batches):
    settings = config(tmp_path, 8, 4)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = amct.create_quant_retrain_model(settings, model, tmp_path / "whole/record.txt", batches["image"])
    whole.train(batches, options=OPTIONS)
    whole.infer()
    amct.save_quant_retrain_model(settings, whole, tmp_path / "whole/record.txt", tmp_path / "whole/net")

    def stop(step, steps):
        if step > steps / 2:
            raise InterruptedError

    record = tmp_path / "broken/record.txt"
    broken = amct.create_quant_retrain_model(settings, model, record, batches["image"])
    with pytest.raises(InterruptedError):
        broken.train(batches, options=OPTIONS, tick=stop)
    checkpoint = broken.save_checkpoint(tmp_path / "newest.ckpt")
    for path in broken.directory.iterdir():  # on another machine there are no artifacts
        path.unlink()
    restored = amct.restore_quant_retrain_model(settings, model, record, batches["image"], checkpoint)
    assert len(restored.train(batches, options=OPTIONS)) == 1
    restored.infer()
    amct.save_quant_retrain_model(settings, model, record, tmp_path / "broken/net")  # AMCT's manual gives the model
    for name in ("record.txt", "net_deploy_model.onnx", "net_fake_quant_model.onnx", "net_quant.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_other_options_than_before_are_refused(tmp_path, model, batches):
    settings = config(tmp_path)
    trained = amct.create_quant_retrain_model(settings, model, tmp_path / "record.txt", batches["image"])
    trained.train(batches, options=OPTIONS)
    restored = amct.restore_quant_retrain_model(
        settings, model, tmp_path / "record.txt", None, trained.directory / "checkpoint.last"
    )
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.01 when this training began, and is 0\.5"):
        restored.train(batches, options=TrainOptions(2, 8, 0.5))


def test_a_loop_of_ones_own(tmp_path, model, batches):
    settings = config(tmp_path)
    record = tmp_path / "record.txt"
    with amct.create_quant_retrain_model(settings, model, record, batches["image"]) as trained:
        parts = [{k: v[i : i + 16] for k, v in batches.items()} for i in range(0, 64, 16)]
        losses = [trained.step(part, 1e-2) for _ in range(4) for part in parts]
        assert losses[-1] < losses[0]
        trained.save_checkpoint(tmp_path / "mine.ckpt")
        trained.infer()
    mine, other = tmp_path / "mine.ckpt", tmp_path / "b.txt"
    again = amct.restore_quant_retrain_model(settings, model, other, batches["image"], mine)
    again.infer()
    assert other.read_bytes() == record.read_bytes()


def test_a_new_training_forgets_the_old_one(tmp_path, model, batches):
    settings, record = config(tmp_path), tmp_path / "record.txt"
    trained = amct.create_quant_retrain_model(settings, model, record, batches["image"])
    trained.infer()
    begun = record.read_bytes()
    trained.train(batches, evaluation=batches, options=OPTIONS)
    trained.infer()
    assert record.read_bytes() != begun
    amct.create_quant_retrain_model(settings, model, record, batches["image"]).infer()
    assert record.read_bytes() == begun


def test_scales_of_float16(tmp_path, model, batches):
    settings = config(tmp_path, extra="fakequant_precision_mode: FORCE_FP16_QUANT")
    trained = amct.create_quant_retrain_model(settings, model, tmp_path / "record.txt", batches["image"])
    trained.train(batches, options=OPTIONS)
    trained.infer()
    amct.save_quant_retrain_model(settings, trained, tmp_path / "record.txt", tmp_path / "net")
    record = amct.read_record(tmp_path / "record.txt")
    assert record.fp16 == {"a", "c", "head"}
    assert all(np.float16(f.scale_d) == np.float32(f.scale_d) for f in record.layers.values())
    words = {t.name: t for t in onnx.load(tmp_path / "net_deploy_model.onnx").graph.initializer}
    word = onnx.numpy_helper.to_array(words["a.dequant.param"])
    assert not (word & np.uint64(0x1FFF)).any()


def test_the_manuals_sample_trains(tmp_path, model, batches):
    (tmp_path / "quant.cfg").write_text(named(QUANT, "c", "Linear"))
    amct.create_quant_retrain_config(tmp_path / "config.json", model, config_defination=tmp_path / "quant.cfg")
    content = json.loads((tmp_path / "config.json").read_text())
    assert [name for name, layer in content.items() if isinstance(layer, dict) and layer["retrain_enable"]] == ["a"]
    assert is_retrain_config(tmp_path / "config.json")
    trained = amct.create_quant_retrain_model(tmp_path / "config.json", model, tmp_path / "r.txt", batches["image"])
    trained.train(batches, options=OPTIONS)
    trained.infer()
    assert list(amct.read_record(tmp_path / "r.txt").layers) == ["a"]


def test_without_a_configuration_everything_has_eight_bits(tmp_path, model):
    amct.create_quant_retrain_config(tmp_path / "config.json", model)
    content = json.loads((tmp_path / "config.json").read_text())
    assert list(content) == ["version", "batch_num", "a", "c", "head"]
    assert content["head"] == {
        "retrain_enable": True,
        "retrain_data_config": {"algo": "ulq_quantize", "dst_type": "INT8"},
        "retrain_weight_config": {"algo": "arq_retrain", "channel_wise": False, "dst_type": "INT8"},
    }


@pytest.mark.parametrize(("act", "wts"), PAIRS)
def test_the_same_configuration_for_onnx_runtime(tmp_path, model, batches, act, wts):
    job = load_retrain_config(config(tmp_path, act, wts), model)
    create(model, {"image": batches["image"]}, tmp_path / "art", recipe=job.recipe, target="ort")
    result = quantized(tmp_path / "art", trained_values(tmp_path / "art"))
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    floats = run(model, {"image": batches["image"]})
    found = session.run(None, {"image": batches["image"]})[0]
    assert "DequantizeLinear" in {node.op_type for node in result.model.graph.node}
    assert (found.argmax(1) == floats.argmax(1)).mean() >= (0.9 if act > 4 else 0.6)


@pytest.mark.parametrize("arrays", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"image": x}])
def test_input_data_as_amct_takes_them(tmp_path, model, batches, arrays):
    trained = amct.create_quant_retrain_model(
        config(tmp_path), model, tmp_path / "record.txt", arrays(batches["image"][:32])
    )
    trained.infer()
    reference = amct.create_quant_retrain_model(
        config(tmp_path), model, tmp_path / "other.txt",
        [{"image": batches["image"][i : i + 16]} for i in range(0, 64, 16)],
    )  # fmt: skip
    reference.infer()  # two batches of them
    assert (tmp_path / "record.txt").read_bytes() == (tmp_path / "other.txt").read_bytes()


def test_what_goes_wrong_is_said(tmp_path, model, batches):
    settings, record = config(tmp_path), tmp_path / "record.txt"
    with pytest.raises(DataError, match=r"input_data has 2 arrays; the model has 1 inputs: image"):
        amct.create_quant_retrain_model(settings, model, record, (batches["image"], batches["image"]))
    with pytest.raises(DataError, match="training begins with calibration"):
        amct.create_quant_retrain_model(settings, model, record)
    trained = amct.create_quant_retrain_model(settings, model, record, batches["image"])
    with pytest.raises(RecordError, match=r"there is no record .*record\.txt; it is written by infer"):
        amct.save_quant_retrain_model(settings, trained, record, tmp_path / "net")
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        amct.restore_quant_retrain_model(settings, model, record, None, tmp_path / "none.ckpt")
    with pytest.raises(DataError, match="the feed lacks image; found picture"):
        trained.infer({"picture": batches["image"]})
    (tmp_path / "prune.cfg").write_text("prune_config { n_out_of_m_pruner { } }")
    with pytest.raises(RecipeError, match="loss"):
        amct.create_quant_retrain_model(settings, model, record, batches["image"], training={"loss": "huber"})


def test_the_optimizer_and_the_loss_can_be_said(tmp_path, model, batches):
    trained = amct.create_quant_retrain_model(
        config(tmp_path),
        model,
        tmp_path / "r.txt",
        batches["image"],
        training={"loss": "distillation", "optimizer": "sgd"},
    )
    assert trained.manifest.recipe.training.optimizer == "sgd"
    rows = trained.train({"image": batches["image"]}, options=OPTIONS)
    assert np.isfinite(rows[-1].loss)
    assert Path(trained.directory).name == "r.retrain"
