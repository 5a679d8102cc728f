"""What is a regression, what is only told, and what a new baseline takes over."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from onnxq.errors import ManifestError
from onnxq.zoo.baseline import Baseline, Kept, blessed, read_baseline, write_baseline
from onnxq.zoo.comparison import Change, compare
from onnxq.zoo.matrix import Effective, Entry
from onnxq.zoo.measuring import Outcome
from onnxq.zoo.run import Run
from onnxq.zoo.tolerances import Tolerance


def entry(name, **settings):
    model, recipe = name.split("/")
    return Entry(model, recipe, Path(), {}, Effective(("sqnr",), **settings))


def outcome(name, status="ok", message="", sha256="s", times=(), **metrics):
    model, recipe = name.split("/")
    return Outcome(model, recipe, status, message, metrics=metrics, sha256=sha256, times=dict(times))


def run(*outcomes):
    return Run(Path("zoo.yaml"), outcomes, {"onnxq": "1"})


def verdict(found, kept, **settings):
    baseline = Baseline({found.name: kept})
    return compare(run(found), baseline, [entry(found.name, **settings)])


@pytest.mark.parametrize(
    ("metric", "baseline", "value", "tolerance", "kind"),
    [
        ("sqnr", 30.0, 29.1, Tolerance(absolute=1.0), "same"),
        ("sqnr", 30.0, 29.0, Tolerance(absolute=1.0), "same"),
        ("sqnr", 30.0, 28.9, Tolerance(absolute=1.0), "regression"),
        ("sqnr", 30.0, 31.1, Tolerance(absolute=1.0), "better"),
        ("sqnr", math.inf, math.inf, Tolerance(absolute=1.0), "same"),
        ("sqnr", math.inf, 90.0, Tolerance(absolute=1.0), "regression"),
        ("sqnr", math.inf, 90.0, Tolerance(relative=0.5), "regression"),
        ("sqnr", 90.0, math.inf, Tolerance(absolute=1.0), "better"),
        ("sqnr", 30.0, math.nan, Tolerance(absolute=1.0), "regression"),
        ("sqnr", 30.0, -math.inf, Tolerance(absolute=1.0), "regression"),
        ("size", 1000.0, 1010.0, Tolerance(relative=0.01), "same"),
        ("size", 1000.0, 1011.0, Tolerance(relative=0.01), "regression"),
        ("size", 1000.0, 900.0, Tolerance(relative=0.01), "better"),
        ("size", 1000.0, 1015.0, Tolerance(relative=0.01, absolute=20.0), "same"),
        ("perplexity", 3.0, 3.2, Tolerance(absolute=0.0), "regression"),
        ("latency_ratio", 1.0, 9.0, Tolerance(), "same"),
        ("m.py:f", -2.0, -2.03, Tolerance(relative=0.01), "regression"),
        ("m.py:f", -2.0, -2.01, Tolerance(relative=0.01), "same"),
    ],
)  # fmt: skip
def test_what_is_a_regression(metric, baseline, value, tolerance, kind):
    assert Change(metric, baseline, value, tolerance).kind == kind


def test_rounding_of_the_baseline_is_no_regression():
    assert Change("top1", 99.55556, 99.55555555555556, Tolerance(absolute=0.0)).kind == "same"


def test_a_regression_names_all_that_is_needed():
    found = verdict(outcome("net/static", sqnr=25.0, size=10.0), Kept({"sqnr": 30.0, "size": 10.0}, "s"))
    assert [str(finding) for finding in found.bad] == [
        "net x static: SQNR is 25.00 dB, the baseline has 30.00 dB: -5.00 dB, allowed 1.00 dB"
    ]


def test_failures_are_regressions_also_of_new_entries():
    found = compare(run(outcome("a/b", "failed", "boom")), Baseline(), [entry("a/b")])
    assert [str(finding) for finding in found.bad] == ["a x b: boom"]
    assert compare(run(outcome("a/b", "failed", "boom")), None, [entry("a/b")]).bad


def test_what_is_only_told():
    entries = [entry("a/new"), entry("a/skipped"), entry("a/bytes")]
    outcomes = run(outcome("a/new", sqnr=1.0), outcome("a/skipped", "skipped", "gone"), outcome("a/bytes", sqnr=2.0))
    before = Kept({"sqnr": 2.0, "top1": 3.0, "latency_ratio": 1.0}, "other")
    found = compare(outcomes, Baseline({"a/bytes": before, "a/lost": before}), entries)
    assert [(f.kind, f"{f.model}/{f.recipe}") for f in found.findings] == [
        ("new", "a/new"),
        ("skipped", "a/skipped"),
        ("missing", "a/bytes"),
        ("bytes", "a/bytes"),
        ("missing", "a/lost"),
    ]
    assert not found.bad


def test_entries_that_were_not_asked_for_are_not_missing():
    before = Baseline({"a/b": Kept({"sqnr": 1.0}, "s"), "a/c": Kept({}, "")})
    found = compare(run(outcome("a/b", sqnr=1.0)), before, [entry("a/b")], [entry("a/b"), entry("a/c")])
    assert found.findings == ()


@pytest.mark.parametrize(("digest", "kinds"), [("ignored", []), ("told", ["bytes"]), ("strict", ["regression"])])
def test_bytes(digest, kinds):
    found = verdict(outcome("a/b", sqnr=1.0, sha256="x"), Kept({"sqnr": 1.0}, "y"), digest=digest)
    assert [finding.kind for finding in found.findings] == kinds


def test_a_new_baseline_takes_over_what_was_measured():
    old = Baseline({n: Kept({"sqnr": 1.0}, "s") for n in ("a/ran", "a/failed", "a/not_run", "a/gone")}, {"onnxq": "0"})
    outcomes = run(outcome("a/ran", sqnr=2.0), outcome("a/failed", "failed", "boom"), outcome("a/new", sqnr=3.0))
    new = blessed(old, outcomes, {"a/ran", "a/failed", "a/not_run", "a/new"})
    assert {name: kept.metrics["sqnr"] for name, kept in new.entries.items()} == {
        "a/ran": 2.0, "a/failed": 1.0, "a/not_run": 1.0, "a/new": 3.0,
    }  # fmt: skip
    assert new.made_with == {"onnxq": "1"}


def test_other_times_alone_change_no_baseline():
    old = Baseline({"a/b": Kept({"sqnr": 1.0, "latency_ratio": 0.5}, "s")}, {"onnxq": "0"})
    assert blessed(old, run(outcome("a/b", sqnr=1.0, times={"latency_ratio": 2.0})), {"a/b"}) == old


def test_a_baseline_is_read_as_it_was_written(tmp_path):
    kept = Baseline({"b/c": Kept({"sqnr": math.inf, "top1": 99.5}, "s"), "a/b": Kept({"x": -math.inf})}, {"onnxq": "1"})
    path = tmp_path / "b.json"
    write_baseline(path, kept)
    assert read_baseline(path) == kept
    assert [line.split('"')[1] for line in path.read_text().splitlines() if "metrics" in line] == ["a/b", "b/c"]
    assert sorted(json.loads(path.read_text())) == ["entries", "made_with", "version"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version": 1, "made_with": {}, "entries": 3}'])
def test_what_is_no_baseline(text, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(ManifestError, match=r"b\.json: (is not a baseline|has version 2)"):
        read_baseline(path)
    with pytest.raises(ManifestError, match="make it with 'onnxq zoo bless'"):
        read_baseline(tmp_path / "none.json")
