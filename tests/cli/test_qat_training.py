"""From the command line: artifacts, training, going on, and the quantized model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxq.cli.app import app
from tests.qat.runtime import training_runtime
from tests.qat.test_trainer import network, samples

SEPARATE: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    training_runtime()
    path = tmp_path_factory.mktemp("qat")
    onnx.save(network(), path / "model.onnx")
    data = samples()
    np.savez(path / "calib.npz", x=data["x"][:32])
    np.savez(path / "train.npz", **data)
    np.savez(path / "images.npz", x=data["x"])
    np.save(path / "labels.npy", data["labels"])
    return path


def run(*args: object, code: int = 0) -> Any:
    done = CliRunner(**SEPARATE).invoke(app, ["qat", *map(str, args)])
    assert done.exit_code == code, done.output
    return done


def test_all_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    art = folder / "art"
    made = json.loads(run("create", folder / "model.onnx", "-o", art, "--data", folder / "calib.npz", "--json").stdout)
    assert {"W1", "W2"} < set(made["trained"])
    assert {Path(f).name for f in made["files"]} >= {
        "training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint", "manifest.json",
    }  # fmt: skip
    options = ("--epochs", 3, "--batch-size", 16, "--lr", "0.003")
    labelled = ("--data", folder / "images.npz", "--labels", folder / "labels.npy", "--eval", folder / "train.npz")
    text = run("train", art, *labelled, *options).stdout
    assert "eval accuracy" in text
    assert "best" in text
    rows = json.loads(run("restore", art, *labelled, "--json").stdout)["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    out = folder / "quantized.onnx"
    found = json.loads(run("save", art, "-o", out, "--json").stdout)
    assert found["output"] == str(out)
    assert found["counts"]["quantized"] == 2
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in onnx.load(out).graph.node}


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("train", "{}/nothing", "--data", "{}/train.npz"), "make the artifacts with 'onnxq qat create'"),
        (("restore", "{}/nothing", "--data", "{}/train.npz"), "no training has begun there"),
        (("save", "{}/nothing", "-o", "{}/x.onnx"), "not one of training artifacts"),
        (("create", "{}/model.onnx", "-o", "{}/y"), "training begins with calibration"),
        (("create", "{}/none.onnx", "-o", "{}/y", "--random", "2"), "none.onnx"),
    ],
)
def test_bad_input(folder: Path, args: tuple[str, ...], text: str) -> None:
    done = run(*(arg.format(folder) for arg in args), code=2)
    assert text in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.output


def test_the_float_model_can_be_trained(folder: Path) -> None:
    art = folder / "float"
    run("create", folder / "model.onnx", "-o", art, "--no-quantize")
    run("train", art, "--data", folder / "train.npz", "--epochs", 1)
    run("save", art, "-o", folder / "float.onnx")
    before, after = onnx.load(folder / "model.onnx"), onnx.load(folder / "float.onnx")
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    weights = [{t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (before, after)]
    assert weights[0].keys() == weights[1].keys()
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
