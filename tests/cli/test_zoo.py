"""``onnxq zoo`` as a user and as another program sees it; what it measures is tested in tests/zoo_runs."""

from __future__ import annotations

import inspect
import json

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxq.cli.app import app
from onnxq.zoo import workers
from tests.graphs import build, normal

SEPARATE = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
NET = """g (float[N, 8] x) => (float[N, 5] y) {
    a = Gemm(x, A)
    y = Relu(a)
}"""
ZOO = """\
baseline: b.json
defaults: {metrics: sqnr, timings: false}
recipes: {static: {}, few: {recipe: {scheme: weight_only, weights: {bits: 6}}}}
models: {net: {model: net.onnx, calibration: d.npz, evaluation: d.npz}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a zoo; the current one. Entries are measured in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    measure_all = workers.measure_all
    monkeypatch.setattr("onnxq.zoo.run.measure_all", lambda *args, jobs, **more: measure_all(*args, jobs=0, **more))
    onnx.save(build(NET, A=normal(8, 5)), "net.onnx")
    np.savez("d.npz", x=normal(12, 8))
    (tmp_path / "zoo.yaml").write_text(ZOO, encoding="utf-8")
    return tmp_path


def run(*args, code=0):
    result = CliRunner(**SEPARATE).invoke(app, ["zoo", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_from_nothing_to_a_regression(here):
    missing = run("run", "zoo.yaml", code=2)
    assert missing.stderr == "error: b.json: there is no such baseline; make it with 'onnxq zoo bless'\n"
    first = run("bless", "zoo.yaml", "--yes")
    assert [line[:16] for line in first.stdout.splitlines()] == [
        "+ net x few: SQN",
        "+ net x static: ",
        "written b.json",
    ]
    good = run("run", "zoo.yaml")
    assert good.stdout.startswith("2 of 2 measured, no regression; ")
    assert good.stderr == ""
    (here / "zoo.yaml").write_text(ZOO.replace("bits: 6", "bits: 3"), encoding="utf-8")
    bad = run("run", "zoo.yaml", "--jobs", "2", "--out", "kept", "--report", "r.html", "--junit", "j.xml", code=1)
    assert bad.stderr.startswith("regression: net x few: SQNR is ")
    assert ", allowed 1.00 dB\n" in bad.stderr
    assert "2 of 2 measured, 1 regression; " in bad.stdout
    row = next(line for line in bad.stdout.splitlines() if line.split()[:1] == ["few"])
    assert row.split()[1] == "worse"
    assert "static" not in bad.stdout
    assert "  static " in run("run", "zoo.yaml", "--verbose", code=1).stdout
    assert {path.name for path in here.iterdir()} >= {"kept", "r.html", "j.xml"}
    assert sorted(path.name for path in (here / "kept").iterdir()) == ["net", "results.json"]


def test_json_is_one_document(here):
    run("bless", "zoo.yaml", "--yes")
    content = json.loads(run("run", "zoo.yaml", "--json").stdout)
    assert [(e["model"], e["recipe"], e["status"]) for e in content["entries"]] == [
        ("net", "static", "ok"),
        ("net", "few", "ok"),
    ]
    assert content["failed"] == []
    (here / "zoo.yaml").write_text(ZOO.replace("bits: 6", "bits: 3"), encoding="utf-8")
    content = json.loads(run("run", "zoo.yaml", "--json", code=1).stdout)
    assert len(content["failed"]) == 1
    change = content["findings"][0]["change"]
    assert change["metric"] == "sqnr"
    assert change["worse_by"] == pytest.approx(change["baseline"] - change["value"])
    listed = json.loads(run("list", "zoo.yaml", "--only", "few", "--json").stdout)
    assert listed == {"entries": [{"model": "net", "recipe": "few", "skipped": ""}]}


def test_bless_asks_before_it_writes(here, monkeypatch):
    refused = run("bless", "zoo.yaml", code=2)
    assert "nobody can be asked; give --yes" in refused.stderr
    assert not (here / "b.json").exists()
    monkeypatch.setattr("onnxq.cli.zoo_tables.can_ask", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda text, **_: False)
    assert run("bless", "zoo.yaml").stdout.endswith("b.json stays as it is\n")
    assert not (here / "b.json").exists()
    monkeypatch.setattr("typer.confirm", lambda text, **_: True)
    run("bless", "zoo.yaml", "--only", "few")
    run("run", "zoo.yaml", "--json", "--out", "kept")
    again = run("bless", "zoo.yaml", "--from", "kept/results.json", "--yes", "--json")
    assert [line[:14] for line in json.loads(again.stdout)["diff"]] == ["+ net x static"]
    assert run("bless", "zoo.yaml", "--yes").stdout == "b.json stays as it is\n"


def test_what_cannot_be_blessed_is_told(here):
    (here / "d.npz").unlink()
    np.savez(here / "d.npz", x=normal(12, 9))
    failed = run("bless", "zoo.yaml", "--yes", code=1)
    assert failed.stdout == "b.json stays as it is\n"
    assert [line.split(":")[:2] for line in failed.stderr.splitlines()] == [
        ["failed", " net x static"],
        ["failed", " net x few"],
    ]
