"""``onnxq quantize --debug-dir`` and ``onnxq report`` as a user sees them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import onnxq
from onnxq.cli.app import app

MODELS = Path(__file__).resolve().parents[2] / "models"
MODEL, CALIBRATION = MODELS / "digits_cnn.onnx", MODELS / "data" / "digits_calib.npz"
RUINED = ["block2/first/conv", "block2/second/conv", "block2/add"]
SEPARATE: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner(**SEPARATE).invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A debug report of a model two layers of which have ranges that cut much off."""
    folder = tmp_path_factory.mktemp("ruined")
    recipe = {
        "calibration": {"samples": 8},
        "rules": [
            {
                "match": {"node": "block2/second/conv"},
                "activations": {"method": {"name": "percentile", "percentile": 90.0}},
            }
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = run(
        *("quantize", MODEL, "-o", folder / "out.onnx", "--data", CALIBRATION, "--config", folder / "recipe.yaml"),
        *("--debug-dir", folder / "debug", "--json"),
    )
    assert json.loads(done.stdout)["debug"] == str(folder / "debug")
    return folder / "debug"


def test_quantize_writes_one_round_per_sample(debug: Path) -> None:
    names = {path.name for path in debug.iterdir()}
    assert names == {"output_summary.csv", "quant_param.csv", *(f"round_{i}.csv" for i in range(8))}


def test_quantize_refuses_a_folder_in_no_folder_before_it_starts(tmp_path: Path) -> None:
    done = run(
        *("quantize", MODEL, "-o", tmp_path / "out.onnx", "--data", CALIBRATION),
        *("--debug-dir", tmp_path / "missing" / "debug"),
        code=2,
    )
    assert "there is no folder" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_advice_names_nodes_figures_and_what_to_write(debug: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run("report", debug, "--advise").stdout
    assert "12.1 % of block2/first/relu/out is cut off (> 1 %)" in " ".join(text.split())
    lines = text.splitlines()
    (line,) = [line for line in lines if line.startswith("skip_quant_node=")]
    names = line.removeprefix("skip_quant_node=").split(",")
    assert names[:3] == RUINED
    listed = yaml.safe_load("\n".join(lines[lines.index("skip:") : lines.index("skip:") + 1 + len(names)]))
    assert listed == {"skip": names}
    onnxq.Recipe.from_dict(listed)


def test_lines_to_copy_are_not_broken(debug: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = run("report", debug, "--advise").stdout
    assert any(line.startswith(f"skip_quant_node={','.join(RUINED)}") for line in text.splitlines())


def test_advice_as_json(debug: Path) -> None:
    content = json.loads(run("report", debug, "--advise", "--json").stdout)
    assert content["rounds"] == 8
    assert 0 < content["outputs"]["logits"]["worst"] <= content["outputs"]["logits"]["mean"] <= 1
    assert content["skip"] == [c["node"] for c in content["condemned"]]
    first = content["condemned"][0]
    assert (first["node"], first["op_type"]) == ("block2/first/conv", "Conv")
    clip = next(charge for charge in first["charges"] if charge["rule"] == "clip")
    assert clip["tensor"] == "block2/first/relu/out"
    assert clip["figure"] > clip["limit"] == 0.01
    assert clip["worst_round"] in clip["bad_rounds"]


def test_says_so_when_there_is_nothing_to_condemn(debug: Path) -> None:
    done = run("report", debug, "--advise", "--max-clip", "1", "--min-cosine", "0.5")
    assert "No node has to be left float" in done.stdout
    assert "skip_quant_node" not in done.stdout


def test_without_advise_it_shows_the_outputs(debug: Path) -> None:
    done = run("report", debug)
    assert "logits" in done.stdout
    assert "skip_quant_node" not in done.stdout
    assert "--advise" in done.stderr


@pytest.mark.parametrize("missing", ["output_summary.csv", "round_0.csv"])
def test_missing_files_are_bad_input(debug: Path, tmp_path: Path, missing: str) -> None:
    for path in debug.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert missing in run("report", tmp_path, "--advise", code=2).stderr


def test_limits_out_of_bounds_are_usage_errors(debug: Path) -> None:
    assert "--max-clip" in run("report", debug, "--advise", "--max-clip", "2", code=2).stderr


def test_two_models_give_an_html_report(debug: Path, tmp_path: Path) -> None:
    data = MODELS / "data" / "digits_calib.npz"
    options = ("--data", data, "--samples", 4, "--no-latency", "--json")
    done = run("report", MODEL, debug.parent / "out.onnx", *options, "-o", tmp_path / "r.html")
    found = json.loads(done.stdout)
    assert found["report"] == str(tmp_path / "r.html")
    assert found["samples"] == 4
    assert len(found["layers"]) > 5
    compared = run("compare", MODEL, debug.parent / "out.onnx", *options, "--report", tmp_path / "c.html")
    assert json.loads(compared.stdout)["layers"] == []
    assert (tmp_path / "c.html").read_text() == (tmp_path / "r.html").read_text()


def test_advice_as_html(debug: Path, tmp_path: Path) -> None:
    run("report", debug, "-o", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert all(name in text for name in RUINED)


def test_a_report_that_cannot_be_written_is_refused_first(debug: Path, tmp_path: Path) -> None:
    for command in (
        ("report", MODEL, debug.parent / "out.onnx", "--data", tmp_path / "none.npz", "-o"),
        ("compare", MODEL, debug.parent / "out.onnx", "--data", tmp_path / "none.npz", "--report"),
        ("quantize", MODEL, "-o", tmp_path / "q.onnx", "--data", tmp_path / "none.npz", "--report"),
    ):
        assert "there is no folder" in run(*command, tmp_path / "no" / "r.html", code=2).stderr
