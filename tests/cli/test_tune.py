"""``onnxq tune`` as a user and as another program sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.recipe import Recipe
from onnxq.tune import prober
from tests.cli.test_cli import document, fails, here, run, wide
from tests.graphs import normal

__all__ = ["here", "wide"]

GIVEN = ("tune", "m.onnx", "-o", "t.onnx", "--data", "d.npz", "--eval", "e.npz")


@pytest.fixture(autouse=True)
def quick(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation data, and a few short turns where latency is measured."""
    np.savez("e.npz", x=normal(12, 3, 8, 8, seed=3))
    monkeypatch.setattr(prober, "ROUNDS", 1)


def test_a_model_and_the_recipe_that_makes_it_again(here: Path) -> None:
    result = run(*GIVEN, "--metric", "sqnr", "--min-score", 20)
    assert "sqnr equal on 12 samples" in result.stdout
    assert "as configured" in result.stdout
    assert sorted(p.name for p in here.iterdir()) == [
        "d.npz", "e.npz", "labels.npy", "m.onnx", "t.onnx", "t.recipe.yaml"
    ]  # fmt: skip
    run("quantize", "m.onnx", "-o", "again.onnx", "--data", "d.npz", "--config", "t.recipe.yaml")
    assert (here / "again.onnx").read_bytes() == (here / "t.onnx").read_bytes()


def test_json_report_and_state(here: Path) -> None:
    found = document(*GIVEN, "--labels", "labels.npy", "--max-drop", "100%", "--report", "r.html", "--resume", "s.json")
    assert (found["met"], found["quantized"], found["metric"], found["samples"]) == (True, True, "top1", 12)
    assert found["chosen"] in [trial["number"] for trial in found["history"]]
    assert Recipe.from_dict(found["recipe"]) == Recipe.from_file(here / "t.recipe.yaml")
    assert found["constraint"] == "a drop of 100 %"
    assert "<html" in (here / "r.html").read_text(encoding="utf-8")
    again = document(*GIVEN, "--labels", "labels.npy", "--max-drop", "100%", "--resume", "s.json")
    assert again["resumed"] == len(found["history"])
    assert again["evaluations"] == 2


def test_without_labels_classes_are_compared(here: Path) -> None:
    assert document(*GIVEN, "--max-drop", "100")["metric"] == "agreement"


def test_a_budget_that_is_too_short_gives_exit_code_1_and_says_how_far_it_came(here: Path) -> None:
    result = run(*GIVEN, "--metric", "sqnr", "--min-score", 90, "--budget", "0.001s", code=1)
    (failed,) = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert "short of 90.00 dB (a score of 90); 1 recipe was tried; the budget ended the search" in failed
    assert (here / "t.onnx").exists()


def test_a_metric_of_the_users(here: Path) -> None:
    Path("mine.py").write_text(
        "def worst(outputs, labels):\n    return float(-abs(outputs['y']).max())\n", encoding="utf-8"
    )
    found = document(*GIVEN, "--metric", "mine.py:worst", "--max-drop", "50%")
    assert found["metric"] == "mine.py:worst"
    assert found["reference"] < 0


BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "drop": (("--max-drop", "much"), "max-drop 'much': write a part"),
    "budget": (("--budget", "soon"), "budget 'soon': write a time such as 10m"),
    "metric": (("--metric", "top2"), "there is no metric 'top2'"),
    "file": (("--metric", "absent.py:f"), "there is no file absent.py"),
    "labels": (("--metric", "top1"), "needs labels"),
    "sqnr": (("--metric", "sqnr"), "say what must be reached instead (--min-score 30)"),
    "state": (("--resume", "m.onnx"), "is the same file as"),
    "output": (("--report", "t.onnx"), "is the same file as"),
    "objective": (("--objective", "beauty"), "beauty"),
    "scheme": (("--config", "w.yaml"), "tuning searches recipes of scheme static"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case: str, here: Path) -> None:
    options, message = BAD[case]
    Path("w.yaml").write_text("scheme: weight_only\n", encoding="utf-8")
    before = {p.name for p in here.iterdir()}
    assert message in fails(*GIVEN, *options)
    assert {p.name for p in here.iterdir()} == before


def test_what_is_not_the_state_of_a_search_is_left_alone(here: Path) -> None:
    Path("s.json").write_text(json.dumps({"my": "file"}), encoding="utf-8")
    assert "is not the state of a search" in fails(*GIVEN, "--max-drop", "100", "--resume", "s.json")
    assert json.loads(Path("s.json").read_text(encoding="utf-8")) == {"my": "file"}
    onnx.checker.check_model(onnx.load("m.onnx"))
