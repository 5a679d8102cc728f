"""Balancing from end to end: the bundled transformer with planted outliers, and records on either model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import stages
from tests.graphs import deviation, run

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import dmq  # noqa: E402
import tools  # noqa: E402

SAMPLES = 48


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(dmq.MODEL)


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    return dmq.load("calib")[:SAMPLES], dmq.load("test")[:SAMPLES]


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def runnable(result: onnxq.Result) -> onnx.ModelProto:
    return (result.graph if result.twin is None else result.twin).to_proto()


def test_planting_keeps_the_function_and_makes_outliers(model, images):
    changed = dmq.planted(model, 64.0)
    feed = {"image": images[1]}
    assert deviation(run(model, feed), run(changed, feed)) < 1e-5
    for proto in (model, changed):
        proto.graph.output.append(onnx.ValueInfoProto(name="layer1/mlp_norm/out"))
    before, after = (np.abs(run(m, feed)["layer1/mlp_norm/out"]).max(axis=(0, 1)) for m in (model, changed))
    del model.graph.output[-1]
    assert np.sum(after > 50 * before) == dmq.CHANNELS


@pytest.mark.parametrize("target", ["ort", "ascend"])
def test_balancing_undoes_planted_outliers(model, images, target):
    planted, (calib, test) = dmq.planted(model, 100.0), images
    expected = run(planted, {"image": test})["logits"]
    found = {}
    for name, recipe in (("plain", {}), ("balanced", {"balance": {}})):
        result = onnxq.quantize(planted, {"image": calib}, recipe={"target": target, **recipe})
        found[name] = sqnr(expected, run(runnable(result), {"image": test}, optimize=True)["logits"])
    assert found["plain"] < 10
    assert found["balanced"] > 28


def test_a_record_fits_the_balanced_and_the_float_model(model, images):
    calib, test = images
    chosen = stages.measure(model, {"image": calib}, recipe={"target": "ascend", "balance": {}}).choose()
    assert sum(f.balance is not None for f in chosen.factors.values()) == 14
    expected = run(model, {"image": test})["logits"]
    outputs = []
    for source in (chosen.graph, model):
        inserted = stages.insert(source, chosen.factors)
        outputs.append(run(inserted.fake_quant, {"image": test})["logits"])
        assert sqnr(expected, outputs[-1]) > 28
    muls = [n.name for n in inserted.deploy.nodes("Mul") if n.name.endswith(".mul")]
    assert len(muls) == 14
    assert sqnr(outputs[0], outputs[1]) > 45


def test_the_benchmark_runs():
    (table,) = dmq.run(tools.Options(quick=True, threads=1))
    assert {row["target"] for row in table.rows} == {"ort", "ascend"}
    assert all(row["SQNR dB"] > 20 for row in table.rows)
