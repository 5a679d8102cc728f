"""``onnxq benchmark`` as a user and as another program sees it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import DataError
from onnxq.report.benchmark_job import BenchmarkOptions, run_benchmark
from tests.cli.test_cli import CONV, run, wide  # noqa: F401 - a fixture
from tests.graphs import build, normal


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a float model, its quantized form, one with another input, and data."""
    folder = tmp_path_factory.mktemp("benchmark")
    model = build(CONV, W=normal(4, 3, 3, 3), G=normal(4, 4))
    for node, name in zip(model.graph.node, ("conv", "relu", "pool", "flat", "head"), strict=True):
        node.name = name
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "d.npz", x=normal(12, 3, 8, 8))
    onnxq.quantize(folder / "m.onnx", folder / "d.npz", threads=1).save(folder / "q.onnx")
    onnx.save(build("g (float[N, 4] z) => (float[N, 4] y) { y = Relu(z) }"), folder / "other.onnx")
    return folder


@pytest.fixture
def here(models, monkeypatch):
    monkeypatch.chdir(models)
    return models


def benchmark(*args, code=0):
    return run("benchmark", *args, "--threads", 1, "--rounds", 2, code=code)


def document(*args, code=0):
    return json.loads(benchmark(*args, "--json", code=code).stdout)


def test_times_ratios_and_kernels_of_two_models(here):
    shown = benchmark("m.onnx", "q.onnx").stdout
    for text in ("A  m.onnx", "B  q.onnx", "quartiles", "samples/s", "QLinearConv", "1 thread", "2 turns each"):
        assert text in shown
    assert "node of the model" not in shown


def test_the_document_holds_what_the_tables_show_and_more(here):
    found = document("m.onnx", "q.onnx", "--batch", 2, "--profile")
    assert [m["path"] for m in found["models"]] == ["m.onnx", "q.onnx"]
    assert found["samples_per_inference"] == 2
    assert found["feeds"] == "random numbers, x 2x3x8x8"
    quantized = found["models"][1]
    assert quantized["kernels"]["integer"]["QLinearConv"] == 1
    assert quantized["providers"] == ["CPUExecutionProvider"]
    assert len(quantized["turns_ms"]) == 2
    assert {n["layer"] for n in quantized["profile"]["nodes"]} >= {"conv", "head"}
    assert found["ratios"][0]["interval"]["coverage"] == 0.5


def test_the_profile_is_shown_by_operator_and_by_node(here):
    shown = benchmark("q.onnx", "--profile").stdout
    assert "A: operators" in shown
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["conv"])
    assert "QLinearConv" in row


def test_data_of_the_user_are_used(here):
    assert document("m.onnx", "--data", "d.npz", "--batch", 4)["feeds"] == "3 feeds of 12 samples from d.npz"


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["m.onnx", "other.onnx"], "other.onnx has the inputs 'z', and m.onnx has 'x'"),
        (["none.onnx"], "none.onnx"),
        (["m.onnx", "--shape", "x"], "--shape 'x'"),
        (["m.onnx", "--shape", "w:1,3,8,8"], "'w' is no input of the model"),
        (["m.onnx", "--shape", "x:1,3,9,9"], "the model wants float32[N, 3, 8, 8]"),
        (["m.onnx", "--data", "d.npz", "--shape", "x:1,3,8,8"], "has no effect on --data"),
        (["m.onnx", "--data", "d.npz", "--batch", "13"], "fewer samples"),
        (["m.onnx", "--batch", "0"], "--batch"),
        (["m.onnx", "--report", "none/r.html"], "none/r.html"),
        ([], "MODEL"),
    ],
    ids=["inputs", "file", "shape", "name", "size", "both", "few", "batch", "report", "nothing"],
)
def test_bad_input_is_one_line_and_exit_code_2(here, args, problem):
    result = benchmark(*args, code=2)
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert problem in line


def test_nodes_left_float_between_codes_are_named(tmp_path):
    text = """g (float[1, 4] x) => (float[1, 4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        [curve] e = Erf(d)
        u = QuantizeLinear(e, s, z)
        y = DequantizeLinear(u, s, z)
    }"""
    onnx.save(build(text, s=np.float32(0.1), z=np.uint8(128)), tmp_path / "m.onnx")
    found = run_benchmark([tmp_path / "m.onnx"], BenchmarkOptions(threads=1, rounds=1))
    assert found.models[0].unfused == ("curve",)
    assert found.notes[-1].endswith("no integer kernel for them: curve")


def test_a_model_is_required():
    with pytest.raises(DataError, match="one model"):
        run_benchmark([], BenchmarkOptions())


def test_the_report_is_one_page_with_all_sections(here):
    benchmark("m.onnx", "q.onnx", "--profile", "--report", "r.html")
    text = (here / "r.html").read_text(encoding="utf-8")
    for words in ("Latency", "Kernels", "Profile of m.onnx", "Profile of q.onnx", "QLinearConv", "conv"):
        assert words in text


def test_a_report_does_not_overwrite_a_model(here):
    result = benchmark("m.onnx", "--report", "m.onnx", code=2)
    assert "--report m.onnx is the same file as the model m.onnx" in result.stderr


def test_a_model_that_random_numbers_do_not_suit_says_what_to_give(tmp_path):
    """The shape is an input: a 0 or a 1 in its place is none."""
    text = "g (int64[N] x, float[N, T] w) => (float[N, T] y) { y = Reshape(w, x) }"
    onnx.save(build(text, check=False), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"m\.onnx: ONNX Runtime failed on this feed .*: give --shape, or samples"):
        run_benchmark([tmp_path / "m.onnx"], BenchmarkOptions(rounds=1))


def test_one_model_has_no_ratio(here):
    assert "ratio" not in benchmark("m.onnx").stdout
