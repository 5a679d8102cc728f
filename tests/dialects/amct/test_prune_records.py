"""Pruning in a record: bits and ranges written and read back; AMCT's calls for pruning."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxq.dialects import amct
from onnxq.dialects.amct.prune_records import PrunedChannels, PrunedNode, SelectiveMask, from_messages, to_messages
from onnxq.dialects.amct.record import Record, format_record, parse_record
from onnxq.errors import RecipeError, RecordError
from onnxq.qat.trainer import TrainOptions
from tests.dialects.amct.retrain_configs import COMPRESSED1, COMPRESSED2, PRUNE, SELECTIVE, named
from tests.graphs import build
from tests.qat.runtime import training_runtime

CHANNELS = PrunedChannels(
    (PrunedNode("a", "Conv", 0, 8, (1, 5)), PrunedNode("b", "Conv", 8, 16, (9,))), (PrunedNode("c", "Gemm", 0, 16),)
)
MASK = np.arange(2 * 6 * 1 * 1).reshape(2, 6, 1, 1) % 3 == 0
TEXT = """prune_record {
  selective_prune {
    name: "d"
    attr {
      name: "mask_shape"
      type: INTS
      ints: 2
      ints: 6
      ints: 1
      ints: 1
    }
    attr {
      name: "selective_mask"
      type: INTS
      ints: 146
      ints: 64
    }
  }
}
"""


def test_round_trip():
    text = format_record(Record({}, prune=to_messages([CHANNELS, SelectiveMask("d", MASK)])))
    channels, mask = from_messages(parse_record(text).prune)
    assert channels == CHANNELS
    assert mask.name == "d"
    np.testing.assert_array_equal(mask.mask, MASK)
    assert format_record(parse_record(text)) == text


def test_bits_are_packed_as_amct_packs_them():
    assert format_record(Record({}, prune=to_messages([SelectiveMask("d", MASK)]))) == TEXT
    assert "".join(str(int(bit)) for bit in MASK.ravel()) == "100100100100"  # 146 is 10010010, 64 is 0100 0000


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("ints: 64\n", "", "selective_mask has 1 numbers, which is no mask of shape"),
        ("ints: 146", "ints: 300", "selective_mask holds eight bits in each number"),
        ('name: "mask_shape"', 'name: "shape"', "mask_shape is missing; must be of type INTS"),
        ("type: INTS\n      ints: 146", "type: INT\n      ints: 146", "selective_mask is INT; must be of type INTS"),
    ],
)
def test_a_mask_that_does_not_fit(old, new, problem):
    assert old in TEXT
    with pytest.raises(RecordError, match="layer 'd'") as error:
        from_messages(parse_record(TEXT.replace(old, new)).prune)
    assert problem in str(error.value)


def test_channels_that_do_not_fit():
    for node, problem in (
        (PrunedNode("a", "Conv", 4, 4), "its channels go from 4 to 4"),
        (PrunedNode("a", "Conv", 0, 4, (4,)), "prune_index leaves channels 0 to 3"),
    ):
        with pytest.raises(RecordError, match=problem):
            from_messages(to_messages([PrunedChannels((node,))]))


# ---- the calls


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    text = """agraph (float[N, 4, 6, 6] image) => (float[N, 3] logits) {
      a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w)
      b = Conv <kernel_shape = [1, 1]> (image, x)
      s = Add (a, b)
      r = Relu (s)
      c = Conv <kernel_shape = [3, 3]> (r, v)
      q = Relu (c)
      p = GlobalAveragePool (q)
      f = Flatten (p)
      logits = Gemm (f, m, n)
    }"""
    shapes = {"w": (32, 4, 3, 3), "x": (32, 4, 1, 1), "v": (32, 32, 3, 3), "m": (32, 3), "n": (3,)}
    proto = build(text, **{k: (0.2 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()})
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def batches():
    training_runtime()
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 48)
    image = rng.standard_normal((48, 4, 6, 6)).astype(np.float32) + labels[:, None, None, None].astype(np.float32)
    return {"image": image, "labels": labels}


def weights(path):
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def run(path, batches):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": batches["image"]})[0]


def written(folder, text, layer="c", **changes):
    text = named(text, layer, "AvgPool2d", layer)
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "prune.cfg").write_text(text)
    return folder / "prune.cfg"


OPTIONS = TrainOptions(epochs=2, batch_size=8, learning_rate=1e-2)


def test_channels_are_removed_and_recorded(tmp_path, model, batches):
    settings = written(tmp_path, PRUNE.replace("0.3", "0.5"), layer="logits")
    trained = amct.create_prune_retrain_model(model, batches["image"], settings, tmp_path / "record.txt")
    rows = trained.train(batches, options=OPTIONS)
    assert rows[-1].loss < rows[0].loss
    outputs = trained.infer(batches)["logits"]
    amct.save_prune_retrain_model(trained, tmp_path / "net", batches["image"])
    deploy, fake = tmp_path / "net_deploy_model.onnx", tmp_path / "net_fake_quant_model.onnx"
    assert deploy.read_bytes() == fake.read_bytes()
    np.testing.assert_allclose(run(deploy, batches), outputs, atol=1e-5)
    shapes = {name: array.shape for name, array in weights(deploy).items()}
    assert (shapes["w"], shapes["v"]) == ((16, 4, 3, 3), (16, 16, 3, 3))
    record = amct.read_record(tmp_path / "record.txt")
    assert not record.layers
    found = {f.producers[0].name: f for f in from_messages(record.prune)}
    assert set(found) == {"a", "b", "c"}
    assert found["a"].producers[0].removed == found["b"].producers[0].removed
    assert [len(f.producers[0].removed) for f in found.values()] == [16, 16, 16]
    assert [c.name for c in found["a"].consumers] == ["c"]
    assert [(c.name, c.end) for c in found["c"].consumers] == [("logits", 32)]
    again = amct.restore_prune_retrain_model(
        model, None, settings, tmp_path / "record.txt", trained.directory / "checkpoint.last"
    )
    np.testing.assert_array_equal(again.infer(batches)["logits"], outputs)


@pytest.mark.parametrize("frequency", [0, 2])
def test_two_of_four_weights_stay_and_are_recorded(tmp_path, model, batches, frequency):
    settings = written(tmp_path, SELECTIVE.replace("update_freq: 0", f"update_freq: {frequency}"), layer="logits")
    trained = amct.create_prune_retrain_model(model, None, settings, tmp_path / "record.txt")
    trained.train(batches, options=OPTIONS)
    trained.infer()
    amct.save_prune_retrain_model(trained, tmp_path / "net")
    found = {f.name: f.mask for f in from_messages(amct.read_record(tmp_path / "record.txt").prune)}
    assert set(found) == {"a", "b", "c"}
    values = weights(tmp_path / "net_deploy_model.onnx")
    for layer, name in (("a", "w"), ("b", "x"), ("c", "v")):
        np.testing.assert_array_equal(values[name] != 0, found[layer])
        groups = np.moveaxis(found[layer], 1, -1).reshape(-1, 4)
        assert (groups.sum(axis=1) == 2).all()


@pytest.mark.parametrize("text", [COMPRESSED1, COMPRESSED2], ids=["channels", "two_of_four"])
def test_both_at_once(tmp_path, model, batches, text):
    settings = written(tmp_path, text.replace("prune_ratio : 0.3", "prune_ratio : 0.5"), layer="a")
    record = tmp_path / "record.txt"
    trained = amct.create_compressed_retrain_model(model, batches, settings, record)
    trained.train(batches, options=OPTIONS)
    outputs = trained.infer(batches)["logits"]
    amct.save_compressed_retrain_model(trained, record, tmp_path / "net", batches["image"])
    np.testing.assert_allclose(run(tmp_path / "net_fake_quant_model.onnx", batches), outputs, atol=1e-5)
    found = amct.read_record(record)
    assert list(found.layers) == ["b", "c", "logits"]  # a is in quant_skip_layers
    pruned = {f.name if isinstance(f, SelectiveMask) else f.producers[0].name for f in from_messages(found.prune)}
    assert {"a", "b", "c"} <= pruned
    codes = weights(tmp_path / "net_deploy_model.onnx")["v"]
    assert codes.dtype == np.int8
    if text == COMPRESSED1:
        assert codes.shape == (16, 16, 3, 3)
    else:
        assert ((np.moveaxis(codes, 1, -1).reshape(-1, 4) != 0).sum(axis=1) <= 2).all()
    again = amct.restore_compressed_retrain_model(
        model, None, settings, record, trained.save_checkpoint(tmp_path / "x.ckpt")
    )
    np.testing.assert_array_equal(again.infer(batches)["logits"], outputs)


def test_a_configuration_without_pruning_is_refused(tmp_path, model):
    (tmp_path / "quant.cfg").write_text("retrain_weight_quant_config { arq_retrain { } }")
    for call in (amct.create_prune_retrain_model, amct.create_compressed_retrain_model):
        with pytest.raises(RecipeError, match=r"quant\.cfg: nothing is to be pruned; give a prune_config"):
            call(model, None, tmp_path / "quant.cfg", tmp_path / "record.txt")
