import json

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxq.cli.app import app
from onnxq.cli.options import Method, RecipeOptions, Target
from onnxq.errors import RecipeError
from tests.graphs import build, normal

CONFIG = """# global quantize parameter
batch_num : 2
activation_offset : false
skip_layers : "head"
common_config : { arq_quantize : { quant_bits : 7 } hfmg_quantize : { num_of_bins : 1024 } dmq_balancer : { } }
override_layer_configs : { layer_name : "second" calibration_config : { ifmr_quantize : { search_step : 0.02 } } }
"""


@pytest.fixture
def files(tmp_path):
    text = """agraph (float[N, 3, 8, 8] x) => (float[N, 5] y) {
      c = Conv <kernel_shape = [3, 3]> (x, w)
      d = Conv <kernel_shape = [3, 3]> (c, v)
      f = Flatten (d)
      y = Gemm (f, m)
    }"""
    proto = build(text, w=normal(4, 3, 3, 3), v=normal(4, 4, 3, 3), m=normal(64, 5))
    for node, name in zip(proto.graph.node, ("first", "second", "flat", "head"), strict=True):
        node.name = name
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "quant.cfg").write_text(CONFIG)
    np.savez(tmp_path / "d.npz", x=normal(40, 3, 8, 8))
    return tmp_path


def run(*arguments: object):
    return CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(app, [str(a) for a in arguments])


def test_inspect_prints_the_settings_of_every_layer(files):
    done = run("inspect", files / "m.onnx", "--config", files / "quant.cfg")
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    first = "Conv      hfmg, 8 bits, symmetric, 1024 bins"
    second = "Conv      ifmr, 8 bits, symmetric, 0.7 to 1.3 by 0.02"
    assert first in rows["first"]
    assert second in rows["second"]
    assert all("arq, 7 bits, per channel" in rows[n] and rows[n].rstrip().endswith("0.5") for n in ("first", "second"))
    assert rows["head"].split()[1:] == ["Gemm", "float"]
    assert "Layers, 2 batches" in done.stdout


def test_inspect_gives_the_settings_as_json(files):
    done = run("inspect", files / "m.onnx", "--config", files / "quant.cfg", "--json")
    found = json.loads(done.stdout)
    assert found["plan"]["target"] == "ascend"
    assert found["amct"]["batch_num"] == 2
    assert found["amct"]["activation_offset"] is False
    layers = found["amct"]["layers"]
    assert {name: layer["quant_enable"] for name, layer in layers.items()} == {
        "first": True, "second": True, "head": False,
    }  # fmt: skip
    assert layers["first"]["activation_quant_params"] == {
        "num_bits": 8, "act_algo": "hfmg", "num_of_bins": 1024, "asymmetric": False,
    }  # fmt: skip
    assert layers["second"]["activation_quant_params"]["search_step"] == 0.02
    assert layers["second"]["dmq_balancer_param"] == 0.5
    assert [d["role"] for d in found["plan"]["nodes"]] == ["quantized", "quantized", "float", "float"]


def test_inspect_takes_the_json_configuration_too(files):
    text = '{"batch_num": 1, "second": {"quant_enable": true, "weight_quant_params": {"num_bits": 6}}}'
    (files / "config.json").write_text(text)
    found = json.loads(run("inspect", files / "m.onnx", "--config", files / "config.json", "--json").stdout)["amct"]
    assert {name: layer["quant_enable"] for name, layer in found["layers"].items()} == {
        "first": False, "second": True, "head": False,
    }  # fmt: skip
    assert found["layers"]["second"]["weight_quant_params"]["num_bits"] == 6


def test_notes_of_the_configuration_are_shown(files):
    (files / "quant.cfg").write_text("joint_quant: true")
    done = run("inspect", files / "m.onnx", "--config", files / "quant.cfg")
    assert "note: joint_quant has no effect" in done.stderr


def test_a_wrong_configuration_is_one_error_and_exit_code_2(files):
    (files / "quant.cfg").write_text('batch_num: 1\nskip_layers: "haed"')
    done = run("inspect", files / "m.onnx", "--config", files / "quant.cfg")
    assert done.exit_code == 2
    assert f"{files / 'quant.cfg'}: line 2: the model has no layer 'haed'; did you mean 'head'" in done.stderr
    assert "Traceback" not in done.output


def test_recipes_work_as_before(files):
    (files / "recipe.yaml").write_text("target: ort\nskip: [head]\n")
    found = json.loads(run("inspect", files / "m.onnx", "--config", files / "recipe.yaml", "--json").stdout)
    assert found["plan"]["target"] == "ort"
    assert "amct" not in found


@pytest.mark.parametrize(
    ("options", "samples", "note"),
    [
        ({"batch_size": 16}, 32, None),
        ({"batch_size": 4}, 8, "batch_num 2 times the batch size makes 8 for calibration; AMCT advises 16 to 32"),
        ({}, None, "batch_num 2 takes effect with --batch-size only; all samples of --data are used"),
        ({"samples": 5, "batch_size": 16}, 5, None),
    ],
)
def test_batches_become_samples(files, options, samples, note):
    wanted = RecipeOptions(config=files / "quant.cfg", has_data=True, **options).wanted(files / "m.onnx")
    assert wanted.recipe.calibration.samples == samples
    assert [n for n in wanted.notes if n.startswith("batch_num")] == ([note] if note else [])
    assert wanted.recipe.target == "ascend"


def test_options_over_the_configuration(files):
    options = RecipeOptions(config=files / "quant.cfg", target=Target.ORT, skip=("first",))
    recipe = options.wanted(files / "m.onnx").recipe
    assert recipe.target == "ort"
    assert recipe.resolve("first", "Conv").skip
    assert not recipe.resolve("second", "Conv").skip
    with pytest.raises(RecipeError, match="--method has no effect on"):
        RecipeOptions(config=files / "quant.cfg", method=Method.KL).wanted(files / "m.onnx")


def test_quantize_for_another_target(files):
    (files / "quant.cfg").write_text('batch_num: 2 skip_layers: "head"')
    out = files / "q.onnx"
    data = ("--data", files / "d.npz", "--batch-size", 8)
    config = ("--config", files / "quant.cfg", "--target", "ort")
    done = run("quantize", files / "m.onnx", "-o", out, *data, *config, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["samples"], found["target"]) == (16, "ort")
    assert "head" in [entry["node"] for entry in found["float"]]
    assert "QuantizeLinear" in [node.op_type for node in onnx.load(out).graph.node]
