"""``onnxq pack`` and ``onnxq unpack`` as a user sees them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnxq.cli.app import app
from tests.test_packing import packed_model, save

SEPARATE = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    save(packed_model(6), tmp_path / "model.onnx")
    return tmp_path


def call(*words: str, code: int = 0) -> tuple[str, str]:
    found = CliRunner(**SEPARATE).invoke(app, list(words))
    assert found.exit_code == code, found.stderr
    return found.stdout, found.stderr


def test_there_and_back(here: Path) -> None:
    out, _ = call("pack", "model.onnx", "-o", "model.packed")
    lines = [line.split() for line in out.splitlines()]
    (weight,) = (line for line in lines if line[:1] == ["W"])
    assert weight[1:3] == ["6", "3,000"]
    assert any(line[:2] == ["all", "codes"] for line in lines)
    assert "times smaller" in out
    out, _ = call("unpack", "model.packed", "-o", "back.onnx")
    assert "back.onnx" in out
    assert (here / "back.onnx").read_bytes() == (here / "model.onnx").read_bytes()


def test_json(here: Path) -> None:
    report = json.loads(call("pack", "model.onnx", "-o", "model.packed", "--json")[0])
    assert report["after"] == (here / "model.packed").stat().st_size
    assert report["ratio"] == pytest.approx(report["before"] / report["after"])
    (weight,) = report["weights"]
    assert (weight["name"], weight["bits"], weight["codes"], weight["before"]) == ("W", 6, 3000, 2250)
    assert weight["bound"] == pytest.approx(weight["entropy"] * 3000 / 8)
    assert weight["bound"] < weight["after"]
    assert report["total"]["bound"] == pytest.approx(weight["bound"])
    parts = weight["after"] + report["rest"]["after"]
    assert parts < report["after"] < parts + 700
    written = json.loads(call("unpack", "model.packed", "-o", "back.onnx", "--json")[0])
    assert written == {"files": [{"path": "back.onnx", "bytes": report["before"]}]}


def test_problems_are_one_line(here: Path) -> None:
    _, err = call("pack", "missing.onnx", "-o", "p", code=2)
    assert err == "error: there is no model file missing.onnx\n"
    _, err = call("pack", "model.onnx", "-o", "model.onnx", code=2)
    assert "is the same file as MODEL" in err
    _, err = call("unpack", "model.onnx", "-o", "back.onnx", code=2)
    assert err == "error: model.onnx is not a file that 'onnxq pack' has written\n"
    call("pack", "model.onnx", "-o", "p")
    (here / "p").write_bytes((here / "p").read_bytes()[:-5])
    _, err = call("unpack", "p", "-o", "back.onnx", code=2)
    assert "damaged or was cut short" in err
    assert sorted(p.name for p in here.iterdir()) == ["model.onnx", "p"]
