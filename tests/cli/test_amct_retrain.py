"""AMCT's configurations of training and pruning on the command line."""

import json

import pytest
from typer.testing import CliRunner

from onnxq.cli.app import app
from tests.cli.test_qat import SEPARATE
from tests.dialects.amct.retrain_configs import COMPRESSED1, PRUNE, QUANT, named
from tests.dialects.amct.test_prune_search import CNN, MODELS
from tests.qat.runtime import training_runtime


def run(*args, code=0):
    done = CliRunner(**SEPARATE).invoke(app, [*map(str, args)])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture
def config(tmp_path):
    def write(text, name="retrain.cfg"):
        (tmp_path / name).write_text(named(text, "stem/conv", "AvgPool2d"))
        return tmp_path / name

    return write


def test_inspect_tells_what_holds_for_each_layer(config):
    found = run("inspect", CNN, "--config", config(COMPRESSED1), "--json")
    layers = found["amct"]["layers"]
    assert not layers["stem/conv"]["retrain_enable"]
    assert layers["head"]["retrain_weight_config"]["channel_wise"] is False
    assert layers["block1/first/conv"]["regular_prune_config"]["prune_ratio"] == 0.3
    assert found["plan"]["counts"]["quantized"] == 8


def test_create_takes_a_configuration_of_training(config, tmp_path):
    training_runtime()
    data = MODELS / "data" / "digits_calib.npz"
    text = "batch_num: 2\n" + QUANT
    found = run("qat", "create", CNN, "--config", config(text), "-o", tmp_path / "art", "--data", data, "--json")
    assert found["counts"]["quantized"] == 8
    assert len([name for name in found["trained"] if name.endswith((".clip_max", ".clip_min"))]) >= 7


def test_prune_takes_a_configuration_of_pruning(config, tmp_path):
    text = PRUNE.replace("0.3", "0.5")
    found = run("prune", CNN, "--config", config(text, "prune.cfg"), "-o", tmp_path / "small.onnx", "--json")
    left = {layer["node"]: (layer["before"], layer["after"]) for layer in found["layers"]}
    assert left["stem/conv"] == (16, 16)
    assert left["block3/first/conv"] == (32, 16)  # multiples of 16


def test_a_mistake_is_told_with_its_line(config, tmp_path):
    path = config(QUANT.replace("clip_max: 6.0", "clip_max: -6.0"))
    error = run("qat", "create", CNN, "--config", path, "-o", tmp_path / "art", "--json", code=2)["error"]
    assert "retrain.cfg: line 5: clip_max_min.clip_max: found -6; must be > 0" in error["message"]
    assert not (tmp_path / "art").exists()
