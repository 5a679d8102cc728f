"""onnxq amct, and what quantize and compare do with Ascend's models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxq.cli.app import app

MODELS = Path(__file__).resolve().parents[2] / "models"
CNN = MODELS / "digits_cnn.onnx"
TEST = MODELS / "data" / "digits_test.npz"
CALIB = MODELS / "data" / "digits_calib.npz"


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "bins").mkdir()
    images = np.load(CALIB)["image"]
    for k in range(4):
        images[16 * k : 16 * k + 16].astype("<f4").tofile(tmp_path / "bins" / f"{k}.bin")
    return tmp_path


DATA = ("--input_shape", "image:16,1,8,8", "--data_dir", "bins")


def test_calibration_from_binary_files(here: Path) -> None:
    output = run("amct", "calibration", "--model", CNN, "--save_path", "net", *DATA, "--batch_num", 3)
    assert "samples: 48" in output
    names = {p.name for p in here.glob("net*")}
    assert names == {"net_deploy_model.onnx", "net_fake_quant_model.onnx", "net_quant.json", "net_record.txt"}


def test_the_record_alone_gives_the_same_model(here: Path) -> None:
    run("amct", "calibration", "--model", CNN, "--save_path", "net", *DATA)
    run("amct", "save", "--model", CNN, "--record", "net_record.txt", "--save_path", "again")
    assert (here / "again_deploy_model.onnx").read_bytes() == (here / "net_deploy_model.onnx").read_bytes()


def test_a_deploy_model_is_simulated_compared_and_brought_back(here: Path) -> None:
    run("quantize", CNN, "-o", "d.onnx", "--data", CALIB, "--target", "ascend")
    output = run("compare", CNN, "d.onnx", "--data", TEST, "--json")
    found = json.loads(output[output.index("{") :])
    assert found["outputs"][0]["sqnr_db"] > 30
    run("amct", "simulate", "d.onnx", "-o", "s.onnx")
    assert "ConvInteger" in {n.op_type for n in onnx.load("s.onnx").graph.node}
    run("amct", "to-qdq", "d.onnx", "-o", "q.onnx")
    run("amct", "convert", "--model", "q.onnx", "--save_path", "back", "--record", "back.txt")
    assert (here / "back_deploy_model.onnx").exists()
    assert "head" in (here / "back.txt").read_text()


def test_quantize_writes_everything_beside_the_model(here: Path) -> None:
    output = run("quantize", CNN, "-o", "d.onnx", "--data", CALIB, "--target", "ascend", "--json")
    beside = json.loads(output[output.index("{") :])["beside"]
    assert beside == ["d_fake_quant_model.onnx", "d_quant.json", "d_record.txt"]
    assert all((here / name).exists() for name in beside)


def test_the_model_is_not_overwritten_by_a_twin(here: Path) -> None:
    (here / "d_fake_quant_model.onnx").write_bytes(CNN.read_bytes())
    message = run("quantize", "d_fake_quant_model.onnx", "-o", "d.onnx", "--data", CALIB, "--target", "ascend", code=2)
    assert "same file" in message
    assert (here / "d_fake_quant_model.onnx").read_bytes() == CNN.read_bytes()


EVALUATOR = """
import numpy as np, onnxruntime as ort
from onnxq.dialects.amct import AutoCalibrationEvaluatorBase

class Mine(AutoCalibrationEvaluatorBase):
    images = np.load({calib!r})["image"]

    def calibration(self, model):
        model.run(None, {{"image": self.images[:16]}})

    def evaluate(self, model):
        return float(np.abs(ort.InferenceSession(model).run(None, {{"image": self.images}})[0]).mean())

    def metric_eval(self, original, new):
        return abs(new - original) < {most} * original, abs(new - original)
"""


def test_an_evaluator_of_the_user(here: Path) -> None:
    (here / "ev.py").write_text(EVALUATOR.format(calib=str(CALIB), most=0.1))
    output = run("amct", "calibration", "--model", CNN, "--save_path", "net", "--evaluator", "ev.py", "--json")
    assert json.loads(output[output.index("{") :])["calibrations"] == 1
    (here / "ev.py").write_text(EVALUATOR.format(calib=str(CALIB), most=1e-12))
    output = run("amct", "calibration", "--model", CNN, "--save_path", "no", "--evaluator", "ev.py", code=1)
    assert "everything would have to stay float" in output
    assert not list(here.glob("no_*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "calibration needs data"),
        (("--evaluator", "missing.py"), "there is no Python file of that name"),
        (("--evaluator", "broken.py"), "does not run: ZeroDivisionError"),
        (("--evaluator", "empty.py"), "needs one class derived from AutoCalibrationEvaluatorBase; found none"),
        (("--evaluator", "empty.py", "--data_dir", "bins"), "leave out --data_dir"),
        (("--data_dir", "bins", "--input_shape", "image:16,1,8,9"), "takes 4608"),
    ],
)
def test_bad_input_is_told(here: Path, arguments: tuple[str, ...], message: str) -> None:
    (here / "broken.py").write_text("1 / 0")
    (here / "empty.py").write_text("")
    assert message in run("amct", "calibration", "--model", CNN, "--save_path", "net", *arguments, code=2)
    assert not list(here.glob("net*"))


def test_the_configuration_as_json(here: Path) -> None:
    run("amct", "config", "--model", CNN, "-o", "c.json", "--skip", "head", "--batch_num", 2)
    content = json.loads((here / "c.json").read_text())
    assert content["batch_num"] == 2
    assert content["head"]["quant_enable"] is False
