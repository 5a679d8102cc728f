"""``onnxq sensitivity`` as a user and as another program sees it."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from onnxq.tune.metrics_builtin import Metric
from onnxq.tune.ranking import Sensitivity, ranked
from onnxq.tune.sensitivity_page import concentration, effect_unit, sensitivity_page
from tests.cli.test_cli import document, here, run, wide  # noqa: F401 - fixtures
from tests.graphs import normal

METRIC = "def score(outputs, labels):\n    return -float(abs(outputs['y']).mean()) if labels is None else 1.0\n"


def test_layers_are_ranked(here):  # noqa: F811
    text = run("sensitivity", "m.onnx", "--data", "d.npz", "--csv", "s.csv", "--threads", 1).output
    assert "3 layers on 12 samples: estimated for all layers at once" in text
    assert all(name in text for name in ("conv", "pool", "head", "have 80 % of the effect"))
    with (here / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["layer"] for row in rows} == {"conv", "pool", "head"}
    effects = [float(row["effect"]) for row in rows]
    assert effects == sorted(effects, reverse=True)
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1)


def test_json_has_the_same(here):  # noqa: F811
    options = ("--data", "d.npz", "--method", "one", "--metric", "kl", "--eval-samples", 4, "--threads", 1)
    found = document("sensitivity", "m.onnx", *options, "--csv", "s.csv")
    assert (found["method"], found["metric"], found["samples"]) == ("one", {"name": "kl", "unit": "nats"}, 4)
    assert found["reference"] == 0
    assert found["quantized"] > 0
    with (here / "s.csv").open(newline="") as file:
        assert [row["layer"] for row in csv.DictReader(file)] == [row["layer"] for row in found["layers"]]


def test_labels_and_functions_count(here):  # noqa: F811
    (here / "mine.py").write_text(METRIC)
    np.savez("e.npz", x=normal(8, 3, 8, 8, seed=3))
    np.save("l.npy", np.zeros(8, np.int64))
    common = ("sensitivity", "m.onnx", "--data", "d.npz", "--eval", "e.npz", "--method", "all_but_one", "--threads", 1)
    assert document(*common, "--metric", "mine.py:score")["metric"]["name"] == "mine.py:score"
    found = document(*common, "--labels", "l.npy")
    assert (found["metric"]["name"], found["samples"]) == ("top1", 8)


def test_the_report_shows_all_layers(here):  # noqa: F811
    run("sensitivity", "m.onnx", "--data", "d.npz", "--report", "s.html", "--threads", 1)
    page = (here / "s.html").read_text()
    assert all(text in page for text in ("Sensitivity", "head", "most sensitive", "Effect on the output"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metric", "sqrn"), "there is no metric 'sqrn'"),
        (("--metric", "top1", "--method", "one"), "needs labels"),
        (("--metric", "none.py:score"), "none.py"),
        (("--csv", "nowhere/s.csv"), "nowhere"),
        (("--csv", "d.npz"), "d.npz"),
        (("--labels", "missing.npy"), "missing.npy"),
        (("--skip", "convv"), "'convv' matches nothing"),
        (("--method", "hessian"), "hessian"),
    ],
)
def test_what_the_user_can_mend_is_said(here, options, message):  # noqa: F811
    failed = run("sensitivity", "m.onnx", "--data", "d.npz", *options, "--threads", 1, code=2)
    assert failed.stderr.startswith("error: ")
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list(here.glob(".*"))


def test_a_model_without_layers_is_told(here):  # noqa: F811
    text = run("sensitivity", "m.onnx", "--data", "d.npz", "--skip", "*", "--threads", 1).output
    assert "nothing in this model would be quantized" in text


def test_a_page_says_what_is_measured():
    rows = ranked([("a", "Conv", 8.0, 1.0), ("b", "Conv", 1.0, 2.0), ("c", "Add", -1.0, math.nan)])
    found = Sensitivity(rows, "one", Metric("mine.py:fn", higher_is_better=True), 9.0, 1.0, 5, ("a note",))
    assert concentration(found) == 1
    assert effect_unit(found) == "points of mine.py:fn"
    page = sensitivity_page(found, "m.onnx", "ort")
    assert [card.value for card in page.cards] == ["3", "88.9 %", "1.00", "5"]
    assert json.dumps(page.sections[0].lead) == '"One layer quantized at a time, everything else float."'
    empty = sensitivity_page(Sensitivity((), "one", found.metric, 9.0), "m.onnx", "ort")
    assert [card.label for card in empty.cards] == ["layers", "samples"]
