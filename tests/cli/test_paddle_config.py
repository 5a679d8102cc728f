"""--config with a QuantConfig in a Python file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxq
from onnxq.cli.app import app
from onnxq.dialects.paddle.files import load_python_config
from tests.dialects.paddle.models import scoped
from tests.graphs import normal

CONFIG = """
from onnxq.dialects.paddle import QuantConfig, nn
from onnxq.dialects.paddle.observers import HistObserver, MSEChannelWiseWeightObserver

q_config = QuantConfig()
q_config.add_type_config(nn.Conv2D, HistObserver(), MSEChannelWiseWeightObserver())
other = 3
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    onnx.save(scoped(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=normal(16, 3, 8, 8))
    (tmp_path / "my_config.py").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("name", ["my_config.py:q_config", "my_config.py"])
def test_it_quantizes_as_python_does(files: Path, name: str) -> None:
    options = ["-o", files / "q.onnx", "--config", files / name, "--data", files / "d.npz"]
    done = run("quantize", files / "m.onnx", *options)
    assert done.exit_code == 0, done.output
    recipe = load_python_config(files / name).to_recipe(files / "m.onnx")
    reference = onnxq.quantize(files / "m.onnx", files / "d.npz", recipe=recipe)
    assert (files / "q.onnx").read_bytes() == reference.save(files / "r.onnx").read_bytes()


def test_inspect_tells_what_would_be_quantized(files: Path) -> None:
    options = ["--config", files / "my_config.py:q_config", "--json"]
    nodes = json.loads(run("inspect", files / "m.onnx", *options).stdout)["plan"]["nodes"]
    assert {n["node"] for n in nodes if n["role"] == "quantized"} == {"net/block1/conv", "net/block2/conv"}
    assert (
        json.loads(run("inspect", files / "m.onnx", *options, "--target", "ascend").stdout)["plan"]["target"]
        == "ascend"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.py:q_config", "no.py does not exist"),
        ("my_config.py:q_confg", "has no variable 'q_confg'; did you mean 'q_config'?"),
        ("my_config.py:other", "other is int; must be a QuantConfig"),
        ("wrong.py:q_config", "ZeroDivisionError: division by zero"),
        ("two.py", "found 2 QuantConfigs (a, b); name one"),
        ("typo.py:q", "'net/block3' is not in the model"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(files: Path, name: str, message: str) -> None:
    start = "from onnxq.dialects.paddle import QuantConfig\n"
    (files / "wrong.py").write_text("1 / 0", encoding="utf-8")
    (files / "two.py").write_text(f"{start}a, b = QuantConfig(), QuantConfig()", encoding="utf-8")
    (files / "typo.py").write_text(f"{start}q = QuantConfig()\nq.add_name_config('net/block3')", encoding="utf-8")
    done = run("inspect", files / "m.onnx", "--config", files / name)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_method_beside_it_has_no_effect_and_is_refused(files: Path) -> None:
    options = ["-o", files / "q.onnx", "--config", files / "my_config.py", "--data", files / "d.npz", "--method", "kl"]
    done = run("quantize", files / "m.onnx", *options)
    assert done.exit_code == 2
    assert "--method has no effect" in done.output
