"""onnxq converter_lite, and what quantize, inspect and compare do with its configurations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from onnxq.cli.app import app

MODELS = Path(__file__).resolve().parents[2] / "models"
CNN = MODELS / "digits_cnn.onnx"
CALIB = MODELS / "data" / "digits_calib.npz"
FULL = (
    "[common_quant_param]\nquant_type=FULL_QUANT\nskip_quant_node=head\n"
    "[data_preprocess_param]\ncalibrate_path=image:bins\ncalibrate_size=10\ninput_type=BIN\n"
)
WEIGHTS = "[common_quant_param]\nquant_type=WEIGHT_QUANT\nbit_num=5\n"


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def convert(*others: str, config: str | None = "quant.cfg", fmk: str = "ONNX", code: int = 0) -> str:
    given = [] if config is None else [f"--configFile={config}"]
    return run("converter_lite", f"--fmk={fmk}", f"--modelFile={CNN}", "--outputFile=out", *given, *others, code=code)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "bins").mkdir()
    for number, image in enumerate(np.load(CALIB)["image"][:12]):
        image.transpose(1, 2, 0).astype("<f4").tofile(tmp_path / "bins" / f"{number:02}.bin")
    (tmp_path / "quant.cfg").write_text(FULL)
    return tmp_path


def test_what_a_conversion_tells(here: Path) -> None:
    output = convert()
    assert "written    out.onnx" in output
    assert "FULL_QUANT, MAX_MIN, no target_device" in output
    assert "10 samples" in output
    assert "skip_quant_node names it" in output
    assert (here / "out.onnx").exists()


def test_roles_of_weights_alone_and_of_dynamic_codes(here: Path) -> None:
    (here / "quant.cfg").write_text(WEIGHTS)
    assert "have weights that are stored as codes" in convert()
    (here / "quant.cfg").write_text("[common_quant_param]\nquant_type=DYNAMIC_QUANT\n")
    assert "compute with codes that activations get as they come" in convert()


def test_json(here: Path) -> None:
    (here / "quant.cfg").write_text(FULL + "[acl_option_cfg_param]\ndevice_id=0\n[common_quant_param]\nbit_num=8\n")
    output = convert("--json", "--fp16=on")
    found = json.loads(output[output.index("{") : output.rindex("}") + 1])
    assert (found["output"], found["files"], found["quant_type"]) == ("out.onnx", ["out.onnx"], "FULL_QUANT")
    assert (found["changed"], found["samples"], found["debug"]) == (True, 10, None)
    assert found["bytes_after"] < found["bytes_before"]
    told = "\n".join(found["notes"])
    assert "--fp16=on: weights without codes stay float32" in told
    assert "[acl_option_cfg_param] is not about quantization" in told


def test_without_a_configuration_nothing_is_quantized(here: Path) -> None:
    output = convert("--inputShape=image:4,1,8,8", config=None)
    assert "note: there is no configFile: nothing is quantized" in output
    assert "asked for  nothing" in output


def test_debug_reports(here: Path) -> None:
    (here / "quant.cfg").write_text(FULL.replace("skip_quant_node=head", "debug_info_save_path=debug"))
    assert "debug, 10 rounds" in convert()
    assert len(list((here / "debug").iterdir())) == 12


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ({"fmk": "TFLITE"}, "--fmk=TFLITE: only ONNX models are read; export it first: python -m tf2onnx.convert"),
        ({"fmk": "PYTORCH"}, "torch.onnx.export"),
        ({"config": "quant.cgf"}, "there is no configuration file quant.cgf; did you mean 'quant.cfg'?"),
    ],
)
def test_errors(here: Path, others: dict[str, str], told: str) -> None:
    output = convert(code=2, **others)
    assert output.startswith("error: ")
    assert told in output
    assert not (here / "out.onnx").exists()


def test_an_option_that_is_none_is_a_usage_error(here: Path) -> None:
    assert "see 'onnxq converter_lite --help'" in convert("--modelfile=x", code=2)


def test_the_help_names_every_option_of_the_converter() -> None:
    output = run("converter_lite", "--help")
    for name in ("fmk", "modelFile", "outputFile", "configFile", "inputDataFormat", "inputShape", "weightFile", "fp16"):
        assert f"--{name}" in output


def test_quantize_reads_the_configuration_and_its_data(here: Path) -> None:
    convert()
    output = run("quantize", CNN, "-o", "same.onnx", "--config", "quant.cfg")
    assert "10 samples" in output
    assert (here / "same.onnx").read_bytes() == (here / "out.onnx").read_bytes()


def test_options_are_laid_over_the_configuration(here: Path) -> None:
    assert "7 samples" in run("quantize", CNN, "-o", "a.onnx", "--config", "quant.cfg", "--samples", 7)
    output = run("quantize", CNN, "-o", "b.onnx", "--config", "quant.cfg", "--data", CALIB)
    assert "10 samples" in output
    assert "calibrate_path is not read: there are other data" in output
    (here / "quant.cfg").write_text(FULL.replace("calibrate_path=image:bins", "calibrate_path=image:nowhere"))
    assert "3 samples" in run("quantize", CNN, "-o", "c.onnx", "--config", "quant.cfg", "--random", 3)


def test_quantize_writes_the_debug_report_of_the_configuration(here: Path) -> None:
    (here / "quant.cfg").write_text(FULL.replace("skip_quant_node=head", "debug_info_save_path=debug"))
    run("quantize", CNN, "-o", "a.onnx", "--config", "quant.cfg", "--samples", 2)
    assert (here / "debug" / "round_1.csv").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[common_quant_param]\nbit_num=8\n", "quant.cfg: has no quant_type in [common_quant_param]"),
        ("[common_quant_param]\nquant_type=FULL_QUANT\n", "quant.cfg: calibrate_path: is missing"),
        (FULL.replace("head", "hea"), "quant.cfg: line 3: skip_quant_node: 'hea' matches nothing in the model"),
        (FULL.replace("image:", "imag:"), "quant.cfg: line 5: calibrate_path: a folder is given for 'imag'"),
        (FULL + "size=1\n", "quant.cfg: line 8: size: unknown key in [data_preprocess_param]"),
    ],
)
def test_errors_of_quantize(here: Path, text: str, told: str) -> None:
    (here / "quant.cfg").write_text(text)
    assert told in run("quantize", CNN, "-o", "a.onnx", "--config", "quant.cfg", code=2)
    assert not (here / "a.onnx").exists()


def test_inspect_needs_no_data(here: Path) -> None:
    (here / "quant.cfg").write_text("[common_quant_param]\nquant_type=FULL_QUANT\nskip_quant_node=head\n")
    assert "skip_quant_node names it" in run("inspect", CNN, "--config", "quant.cfg")
    (here / "quant.cfg").write_text(WEIGHTS)
    assert "have weights that are stored as codes" in run("inspect", CNN, "--config", "quant.cfg")
    (here / "quant.cfg").write_text(FULL.replace("head", "hea"))
    assert "quant.cfg: line 3: skip_quant_node" in run("inspect", CNN, "--config", "quant.cfg", code=2)


def test_configurations_of_amct_are_still_what_they_were(here: Path) -> None:
    (here / "amct.cfg").write_text("batch_num : 1\n")
    assert "Layers, 1 batches" in run("inspect", CNN, "--config", "amct.cfg")
