"""Zoos that are run: numbers, processes, crashes, planted defects, blessings, reports."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.errors import ManifestError
from onnxq.zoo import measuring, run
from onnxq.zoo.baseline import read_baseline
from onnxq.zoo.job import Options, check_zoo, prepare_blessing
from onnxq.zoo.manifest import read_manifest
from onnxq.zoo.run import run_zoo
from tests.zoo_runs.conftest import ZOO, write

HERE = Options(jobs=0)


def timeless(content):
    """What is in a JSON document without its times."""
    if isinstance(content, dict):
        return {key: timeless(value) for key, value in content.items() if key != "timings"}
    return [timeless(item) for item in content] if isinstance(content, list) else content


def test_what_is_measured(zoo):
    text = (zoo / "zoo.yaml").read_text().replace("timings: false", "timings: true, latency_seconds: 0")
    found = run_zoo(read_manifest(write(zoo, text.replace("[top1, sqnr]", "[top1, sqnr, 'metric.py:good']"))), jobs=0)
    static, weights, *_ = found.outcomes
    assert [o.name for o in found.outcomes] == ["net/static", "net/weight4", "wide/static", "wide/weight4"]
    assert {o.status for o in found.outcomes} == {"ok"}
    assert static.metrics["top1"] == pytest.approx(100 * static.metrics["metric.py:good"])
    assert static.metrics["sqnr"] > 30
    assert static.metrics["sqnr"] > weights.metrics["sqnr"] > 10
    assert static.reference["top1"] == 100.0
    assert static.reference["size"] == (zoo / "net.onnx").stat().st_size
    assert static.times.keys() == {"calibration_ratio", "latency_ratio"}
    assert weights.times.keys() == {"latency_ratio"}
    assert all(value > 0 for o in found.outcomes for value in o.times.values())


def test_scores_are_those_of_the_model_that_is_kept(zoo, tmp_path):
    options = dataclasses.replace(HERE, out=tmp_path / "out", only=("net/static",), compared=False)
    checked = check_zoo(zoo / "zoo.yaml", options)
    kept = zoo / "out" / "net" / "static.onnx"
    own = onnxq.quantize(zoo / "net.onnx", zoo / "d.npz")
    assert kept.read_bytes() == own.save(tmp_path / "own.onnx").read_bytes()
    assert checked.run.outcomes[0].metrics["size"] == kept.stat().st_size
    assert timeless(json.loads((zoo / "out" / "results.json").read_text())) == timeless(checked.to_dict())


def test_models_for_ascend_are_simulated_and_their_twins_are_part_of_the_bytes(zoo, tmp_path):
    text = ZOO.replace("static: {}", "static: {targets: [ascend]}")
    manifest = read_manifest(write(zoo, text))
    found = run_zoo(manifest, jobs=0, only=["net/static@ascend"], out=tmp_path / "out").outcomes[0]
    assert found.metrics["sqnr"] > 30
    files = sorted(path.name for path in (tmp_path / "out" / "net").iterdir())
    assert files == ["static@ascend.onnx", "static@ascend_fake_quant_model.onnx"]
    before = measuring._digest(tmp_path / "out" / "net" / files[0])
    assert before == found.sha256
    (tmp_path / "out" / "net" / files[1]).unlink()
    assert measuring._digest(tmp_path / "out" / "net" / files[0]) != before


def test_kernels_are_the_runtimes_or_those_that_are_written(zoo, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "onnxq.tune.evaluation.make_session",
        lambda model, *, optimize=True, **options: asked.append(optimize) or run.runtime.make_session(model, **options),
    )
    text = ZOO.replace("weight4: {", "weight4: {kernels: written, ").replace("[top1, sqnr]", "[sqnr]")
    run_zoo(read_manifest(write(zoo, text)), jobs=0, only=["net"])
    assert asked == [True, True, True, False]  # the float model for each, then the quantized one


def test_one_process_or_two_make_no_difference(blessed, capfd):
    path = write(
        blessed, (blessed / "zoo.yaml").read_text() + "overrides: [{match: net/*, metrics: 'metric.py:loud'}]\n"
    )
    prepare_blessing(path, Options(jobs=0, only=("net",))).write()
    capfd.readouterr()
    one, two = (check_zoo(path, Options(jobs=jobs)) for jobs in (1, 2))
    assert capfd.readouterr().out == ""
    assert timeless(one.to_dict()) == timeless(two.to_dict())
    assert two.run.to_dict()["timings"]["jobs"] == 2
    assert not two.verdict.findings
    assert two.run.outcomes == tuple(
        dataclasses.replace(a, seconds=b.seconds) for a, b in zip(one.run.outcomes, two.run.outcomes, strict=True)
    )


def test_what_crashes_hangs_or_fails_is_one_entry(zoo):
    path = write(
        zoo,
        (zoo / "zoo.yaml").read_text()
        + """overrides:
  - {match: net/static, metrics: "metric.py:none"}
  - {match: net/weight4, metrics: "metric.py:crash"}
  - {match: wide/weight4, metrics: "metric.py:hang", timeout: 3}
""",
    )
    told = []
    found = run_zoo(read_manifest(path), jobs=1, told=told.append)
    assert {o.name for o in told} == {o.name for o in found.outcomes}
    states = {o.name: (o.status, o.message) for o in found.outcomes}
    assert states["net/static"][0] == "failed"
    assert "metric.py has no 'none'" in states["net/static"][1]
    assert states["net/weight4"] == ("failed", "the process that measured it was ended by signal 9 (Killed)")
    assert states["wide/static"] == ("ok", "")
    assert states["wide/weight4"] == ("failed", "took longer than 3 seconds and was stopped")


def test_defects_are_told_with_the_place_and_the_rest_is_measured(zoo, monkeypatch):
    quantize = onnxq.quantize

    def defect(model, *args, recipe, **options):
        if recipe.scheme.kind == "weight_only":
            raise ZeroDivisionError("by nothing")
        return quantize(model, *args, recipe=recipe, **options)

    monkeypatch.setattr(measuring, "quantize", defect)
    found = run_zoo(read_manifest(zoo / "zoo.yaml"), jobs=0, only=["net"])
    good, bad = found.outcomes
    assert good.status == "ok"
    assert bad.message == "ZeroDivisionError: by nothing"
    assert "in defect" in bad.details


def test_nothing_is_left_when_it_is_interrupted(zoo):
    path = write(zoo, ZOO.replace("[top1, sqnr]", "'metric.py:hang'"))
    os.mkfifo(zoo / "hanging")
    told = os.open(zoo / "hanging", os.O_RDWR | os.O_NONBLOCK)
    code = "from onnxq.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "zoo", "run", str(path), "--no-baseline"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    try:
        child = int(line_of(told))
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        os.close(told)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert err.splitlines() == ["interrupted"]
    assert out == ""
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def line_of(pipe):
    """The first line that comes out of a pipe."""
    text = ""
    while not text.endswith("\n"):
        ready, _, _ = select.select([pipe], [], [], 300)
        assert ready, "nothing was started"
        text += os.read(pipe, 100).decode()
    return text


# ---- the baseline -------------------------------------------------------------------------------


def swap_scales(result):
    """A quantized model with two activations' scales in each other's place."""
    proto = result.graph.to_proto()
    scales = [t for t in proto.graph.initializer if t.name.endswith("scale") and not t.dims]
    first, second = (numpy_helper.to_array(t).copy() for t in scales[:2])
    assert first != second
    for tensor, value in zip(scales[:2], (second, first), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return dataclasses.replace(result, graph=onnxq.GraphModel.from_proto(proto))


def test_a_swapped_scale_fails_the_run_and_is_named(blessed, monkeypatch):
    quantize = onnxq.quantize

    def planted(model, *args, recipe, **options):
        result = quantize(model, *args, recipe=recipe, **options)
        return swap_scales(result) if model.name == "wide.onnx" and recipe.scheme.kind == "static" else result

    assert not check_zoo(blessed / "zoo.yaml", HERE).verdict.bad
    monkeypatch.setattr(measuring, "quantize", planted)
    checked = check_zoo(blessed / "zoo.yaml", HERE)
    assert {(f.model, f.recipe, f.kind) for f in checked.verdict.bad} == {("wide", "static", "regression")}
    assert "sqnr" in {f.change.metric for f in checked.verdict.bad}
    text = next(str(f) for f in checked.verdict.bad if f.change.metric == "sqnr")
    assert text.startswith("wide x static: SQNR is ")
    assert text.endswith(", allowed 1.00 dB")
    assert "bytes" in {f.kind for f in checked.verdict.of("wide/static")}
    assert "1 regression" in checked.summary or "2 regressions" in checked.summary


def test_bless_shows_what_changes_and_merges_what_was_run(blessed):
    before = read_baseline(blessed / "baseline.json")
    text = (blessed / "zoo.yaml").read_text().replace("bits: 4", "bits: 8")
    path = write(blessed, text.replace("static: {}", "static: {}\n  dynamic: {recipe: {scheme: dynamic}}"))
    blessing = prepare_blessing(path, Options(jobs=0, only=("net",)))
    assert [line.split(":")[0] for line in blessing.diff] == ["+ net x dynamic", "~ net x weight4"]
    assert "SQNR" in blessing.diff[1]
    assert "other bytes" in blessing.diff[1]
    assert read_baseline(blessed / "baseline.json") == before
    blessing.write()
    after = read_baseline(blessed / "baseline.json")
    assert after.entries.keys() == {*before.entries, "net/dynamic"}
    assert after.entries["wide/weight4"] == before.entries["wide/weight4"]
    assert after.entries["net/weight4"] != before.entries["net/weight4"]
    assert after.entries["net/static"] == before.entries["net/static"]


def test_bless_takes_an_earlier_run_and_leaves_out_what_failed(blessed, tmp_path):
    path = write(blessed, (blessed / "zoo.yaml").read_text() + "overrides: [{match: net/static, metrics: 'm.py:f'}]\n")
    checked = check_zoo(path, dataclasses.replace(HERE, out=tmp_path / "out"))
    assert [f.kind for f in checked.verdict.bad] == ["failed"]
    blessing = prepare_blessing(path, HERE, results=tmp_path / "out" / "results.json")
    assert [o.name for o in blessing.failed] == ["net/static"]
    assert blessing.diff == ()
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ManifestError, match="is not the result of 'onnxq zoo run --json'"):
        prepare_blessing(path, HERE, results=tmp_path / "r.json")


def test_junit_says_what_the_verdict_says(blessed, tmp_path):
    text = (blessed / "zoo.yaml").read_text().replace("bits: 4", "bits: 2")
    text = text.replace("wide.onnx,", "$NOWHERE/wide.onnx, optional: true,")
    path = write(blessed, text + "overrides: [{match: net/static, metrics: 'm.py:f'}]\n")
    checked = check_zoo(path, dataclasses.replace(HERE, junit=tmp_path / "j.xml"))
    assert len(checked.verdict.bad) >= 2
    root = ET.parse(tmp_path / "j.xml").getroot()
    counts = {key: int(root.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 4, "failures": 1, "errors": 1, "skipped": 2}
    cases = {f"{case.get('classname')}/{case.get('name')}": case for case in root.iter("testcase")}
    assert "SQNR is" in cases["net/weight4"].find("failure").get("message")
    assert "m.py" in cases["net/static"].find("error").get("message")
    assert cases["wide/static"].find("skipped").get("message") == checked.run.outcomes[2].message
    assert [s.get("name") for s in root] == ["net", "wide"]


def test_the_report_is_a_matrix_that_marks_what_got_worse(blessed, tmp_path):
    path = write(blessed, (blessed / "zoo.yaml").read_text().replace("bits: 4", "bits: 2"))
    check_zoo(path, dataclasses.replace(HERE, report=tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<th scope="row">wide</th>' in text
    assert "<span>weight4</span>" in text
    assert 'class="bad marked"' in text


def test_a_missing_baseline_is_told_before_anything_is_run(zoo, monkeypatch):
    monkeypatch.setattr("onnxq.zoo.job.run_entries", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(ManifestError, match=r"baseline\.json: there is no such baseline"):
        check_zoo(zoo / "zoo.yaml", HERE)
    with pytest.raises(ManifestError, match="names no baseline"):
        check_zoo(write(zoo, ZOO.replace("baseline: baseline.json\n", "")), HERE)


def test_labels_of_any_shape_reach_a_function(zoo):
    np.save(zoo / "labels.npy", np.ones((40, 3), np.float32))
    (zoo / "shape.py").write_text("def of(outputs, labels):\n    return float(labels.size)\n", encoding="utf-8")
    manifest = read_manifest(write(zoo, ZOO.replace("[top1, sqnr]", "['shape.py:of', sqnr]")))
    found = run_zoo(manifest, jobs=0, only=["net/static"]).outcomes[0]
    assert found.metrics["shape.py:of"] == 120.0


def test_data_may_come_from_a_function(zoo):
    (zoo / "data.py").write_text(
        "import numpy as np\n\ndef some():\n    return {'x': np.ones((4, 8), np.float32)}\n\ndef no():\n    1 / 0\n",
        encoding="utf-8",
    )
    text = (zoo / "zoo.yaml").read_text().replace("evaluation: d.npz", "evaluation: 'data.py:some'")
    text = text.replace("[top1, sqnr]", "[sqnr]")
    assert run_zoo(read_manifest(write(zoo, text)), jobs=0, only=["net/static"]).outcomes[0].status == "ok"
    found = run_zoo(read_manifest(write(zoo, text.replace(":some", ":no"))), jobs=0, only=["net/static"]).outcomes[0]
    assert found.message.endswith("data.py:no: ZeroDivisionError: division by zero")
    assert onnx.__version__
