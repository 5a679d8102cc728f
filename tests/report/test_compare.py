"""Comparison of two models against numbers worked out by hand with plain sessions."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import onnx
import pytest

from onnxq.errors import DataError, GraphError
from onnxq.graph import GraphModel
from onnxq.modelio import load_model
from onnxq.report import layers as layers_module
from onnxq.report.compare import Options, compare
from onnxq.report.latency import measure
from onnxq.report.pairs import find_pairs
from tests.graphs import build, normal, run

FLOAT = """g (float[N, 6] x) => (float[N, 4] y) {
    h = MatMul(x, W)
    r = Relu(h)
    y = MatMul(r, V)
}"""
QUANT = """g (float[N, 6] x) => (float[N, 4] y) {
    h = MatMul(x, W)
    q = QuantizeLinear(h, s, z)
    h_dq = DequantizeLinear(q, s, z)
    y = MatMul(h_dq, V)
}"""


def weights():
    return {"W": normal(6, 5), "V": normal(5, 4)}


def codes(zero_point=0, scale=0.05):
    return {"s": np.float32(scale), "z": np.uint8(zero_point)}


@pytest.fixture
def files(tmp_path):
    onnx.save(build(FLOAT, **weights()), tmp_path / "float.onnx")
    onnx.save(build(QUANT, **weights(), **codes()), tmp_path / "quant.onnx")
    np.savez(tmp_path / "data.npz", x=normal(21, 6, seed=5))
    return tmp_path


def compared(files, reference="float.onnx", quantized="quant.onnx", **options):
    given = {"latency": False, "threads": 1, **options}
    return compare(files / reference, files / quantized, Options(files / "data.npz", **given))


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_outputs_are_those_of_plain_runs_whatever_the_batch(files, batch):
    found = compared(files, batch_size=batch)
    x = {"x": normal(21, 6, seed=5)}
    a, b = (run(onnx.load(files / f"{n}.onnx"), x)["y"].astype(np.float64) for n in ("float", "quant"))
    metrics = found.outputs[0].metrics
    assert found.samples == 21
    assert metrics.count == 84
    assert metrics.sqnr_db == pytest.approx(10 * math.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-3)
    assert metrics.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-4)
    assert found.accuracy is not None
    assert found.accuracy.agreement == (a.argmax(1) == b.argmax(1)).mean()
    assert found.accuracy.reference is None


def test_a_model_against_itself_is_equal(files):
    found = compared(files, quantized="float.onnx", layers=True)
    assert found.worst.metrics.identical
    assert all(layer.metrics.identical for layer in found.layers)
    assert [layer.pair.reference for layer in found.layers] == ["h", "r", "y"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_labels_give_accuracy_and_the_gate(files):
    x = {"x": normal(21, 6, seed=5)}
    reference = run(onnx.load(files / "float.onnx"), x)["y"].argmax(1)
    np.save(files / "labels.npy", reference)
    found = compared(files, labels=files / "labels.npy")
    assert found.accuracy is not None
    assert found.accuracy.reference == 1.0
    assert found.accuracy.quantized == found.accuracy.agreement
    drop = found.accuracy.drop_points
    assert found.failures(max_drop=drop) == ()
    (text,) = found.failures(max_drop=drop - 0.01)
    assert f"drops by {drop:.2f} points" in text


def test_sqnr_gate(files):
    found = compared(files)
    sqnr = found.worst.metrics.sqnr_db
    assert found.failures(min_sqnr=sqnr) == ()
    assert "'y' has an SQNR" in found.failures(min_sqnr=sqnr + 0.01)[0]
    with pytest.raises(DataError, match="--labels"):
        found.failures(max_drop=1)


def test_nan_fails_the_gate(files):
    broken = weights() | {"V": np.full((5, 4), np.nan, np.float32)}
    onnx.save(build(FLOAT, **broken), files / "nan.onnx")
    found = compared(files, quantized="nan.onnx")
    assert found.failures(min_sqnr=-1000.0)
    assert found.failures(min_sqnr=math.nan)


@pytest.mark.parametrize("count", [20, 22])
def test_too_few_or_too_many_labels(files, count):
    np.save(files / "labels.npy", np.zeros(count, np.int64))
    with pytest.raises(DataError, match=f"there are {count} labels for .*21 samples|there are {count} labels"):
        compared(files, labels=files / "labels.npy")


def test_labels_may_be_left_over_where_samples_are_limited(files):
    np.save(files / "labels.npy", np.zeros(21, np.int64))
    found = compared(files, labels=files / "labels.npy", samples=10)
    assert found.samples == found.accuracy.samples == 10


def test_labels_outside_the_classes(files):
    np.save(files / "labels.npy", np.full(21, 4))
    with pytest.raises(DataError, match="the model has the classes 0 to 3"):
        compared(files, labels=files / "labels.npy")


def test_labels_need_scores(files):
    text = "g (float[N, 6] x) => (float[N] y) { y = ReduceMax<axes=[1], keepdims=0>(x) }"
    onnx.save(build(text), files / "max.onnx")
    np.save(files / "labels.npy", np.zeros(21, np.int64))
    with pytest.raises(DataError, match=r"no output is \[samples, classes\]: 'y'"):
        compared(files, "max.onnx", "max.onnx", labels=files / "labels.npy")
    assert compared(files, "max.onnx", "max.onnx").accuracy is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("g (float[N, 6] x) => (float[N, 4] z) { z = MatMul(x, A) }", "outputs differ: 'y' and 'z'"),
        ("g (float[N, 6] w) => (float[N, 4] y) { y = MatMul(w, A) }", "inputs differ: 'x' and 'w'"),
        ("g (float[N, 6] x) => (float[N, 3] y) { y = MatMul(x, B) }", r"\[8, 4\] in the first model and \[8, 3\]"),
        ("g (float[N, 7] x) => (float[N, 4] y) { y = MatMul(x, C) }", r"'x' is float32\[N, 6\] in the first"),
    ],
)
def test_models_that_do_not_belong_together(files, text, match):
    matrices = {"A": normal(6, 4), "B": normal(6, 3), "C": normal(7, 4)}
    used = {name: m for name, m in matrices.items() if f", {name})" in text}
    onnx.save(build(text, **used), files / "other.onnx")
    with pytest.raises(GraphError, match=match):
        compared(files, quantized="other.onnx")


def test_string_outputs_are_left_out_with_a_note(files):
    text = """g (float[N, 6] x) => (float[N, 6] y, string[N, 6] t) {
        y = Relu(x)
        t = Cast<to=8>(x)
    }"""
    onnx.save(build(text), files / "s.onnx")
    found = compared(files, "s.onnx", "s.onnx")
    assert [o.name for o in found.outputs] == ["y"]
    assert found.notes == ("output 't' is no tensor of numbers and was not compared",)


# ---- layers --------------------------------------------------------------------------------------


def pairs(reference, quantized):
    a, b = (GraphModel.from_proto(m) for m in (reference, quantized))
    return [(p.reference, p.quantized) for p in find_pairs(a, b)]


def test_what_the_next_layer_sees_is_compared_with_the_relu_it_replaces():
    assert pairs(build(FLOAT, **weights()), build(QUANT, **weights(), **codes())) == [("r", "h_dq"), ("y", "y")]


def test_a_tensor_somebody_reads_unrounded_is_compared_itself():
    text = QUANT.replace("y = MatMul(h_dq, V)", "m = MatMul(h_dq, V)\n    k = MatMul(h, V)\n    y = Add(m, k)")
    assert pairs(build(FLOAT, **weights()), build(text, **weights(), **codes())) == [("h", "h"), ("y", "y")]


def test_layer_numbers(files):
    found = compared(files, layers=True)
    x = normal(21, 6, seed=5).astype(np.float64)
    r = np.maximum(x @ weights()["W"], 0)
    rounded = np.clip(np.round(r / np.float64(np.float32(0.05))), 0, 255) * np.float64(np.float32(0.05))
    layer = found.layers[0]
    assert (layer.pair.op_type, layer.pair.reference, layer.pair.quantized) == ("Relu", "r", "h_dq")
    assert layer.metrics.count == 105
    assert layer.metrics.sqnr_db == pytest.approx(10 * math.log10((r**2).sum() / ((r - rounded) ** 2).sum()), abs=0.05)
    assert layer.metrics.max_abs <= 0.0251


def sessions_made(files, monkeypatch, **options):
    """The layers, and how many outputs each session had after the two of the probe."""
    made = []
    original = layers_module.make_session

    def counted(*args, **kwargs):
        made.append(len(kwargs["outputs"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(layers_module, "make_session", counted)
    graphs = (load_model(files / name) for name in ("float.onnx", "quant.onnx"))
    x = normal(21, 6, seed=5)
    found = layers_module.compare_layers(*graphs, lambda: [{"x": x[:8]}, {"x": x[8:]}], {"x": x[:1]}, **options)
    return [layer.to_dict() for layer in found], made[2:]


def test_layers_do_not_depend_on_how_they_are_packed(files, monkeypatch):
    whole, made = sessions_made(files, monkeypatch)
    assert made == [2, 2]
    one = (5 + 5 + 4 + 4) * 4  # bytes of both layers in both models for one sample
    for budget, batch, expected in (
        (one, 1, [2, 2]),
        (one - 1, 1, [1] * 4),
        (8 * one - 1, 8, [1] * 4),
        (1, 1, [1] * 4),
    ):
        split, made = sessions_made(files, monkeypatch, budget=budget, batch=batch)
        assert made == expected
        assert split == whole


def test_a_graph_output_is_compared_itself():
    reference = build(
        "g (float[N, 6] x) => (float[N, 5] h, float[N, 5] r) { h = MatMul(x, W)\n r = Relu(h) }", W=normal(6, 5)
    )
    text = """g (float[N, 6] x) => (float[N, 5] h, float[N, 5] d) {
        h = MatMul(x, W)
        q = QuantizeLinear(h, s, z)
        d = DequantizeLinear(q, s, z)
    }"""
    assert pairs(reference, build(text, W=normal(6, 5), **codes())) == [("h", "h")]


def test_the_worst_output_decides(files):
    text = "g (float[N, 6] x) => (float[N, 6] a, float[N, 6] b) { a = Mul(x, P)\n b = Mul(x, Q) }"
    for name, p, q in (("one", 1.0, 1.0), ("two", 1.01, 1.1)):
        onnx.save(build(text, P=np.float32([p]), Q=np.float32([q])), files / f"{name}.onnx")
    found = compared(files, "one.onnx", "two.onnx")
    assert [round(o.metrics.sqnr_db) for o in found.outputs] == [40, 20]
    assert found.worst.name == "b"
    assert "output 'b'" in found.failures(min_sqnr=30)[0]


class Slow:
    """Stands in for a session that takes its time."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.runs = 0

    def run(self, names, feed):
        self.runs += 1
        time.sleep(self.seconds)
        return []


def test_each_model_gets_its_own_time_and_as_many_runs():
    slow, fast = Slow(0.006), Slow(0.002)
    found = measure(slow, fast, {}, seconds=0.0)
    assert found.reference_ms >= 6
    assert 2 <= found.quantized_ms < found.reference_ms
    assert found.ratio < 1
    assert slow.runs == fast.runs


def test_latency_is_measured_of_both(files, monkeypatch):
    monkeypatch.setattr("onnxq.report.latency._ROUNDS", (3, 5))
    found = compared(files, latency=True)
    assert found.latency.rounds in (3, 4, 5)
    assert found.latency.reference_ms > 0
    assert found.latency.ratio == found.latency.quantized_ms / found.latency.reference_ms
    assert found.latency.threads == 1


def test_progress_ends_where_the_samples_do(files):
    seen = []
    options = Options(files / "data.npz", layers=True, latency=False, batch_size=8)
    compare(files / "float.onnx", files / "quant.onnx", options, progress=lambda *args: seen.append(args))
    assert [s for s in seen if s[0] == "comparing outputs"] == [
        ("comparing outputs", 8, 21),
        ("comparing outputs", 16, 21),
        ("comparing outputs", 21, 21),
    ]
    assert seen[-1] == ("comparing layers", 1, 1)


def test_external_data_count(files):
    big = {"W": normal(6, 5000), "V": normal(5000, 4)}
    model = build(FLOAT, **big)
    onnx.save(model, files / "inline.onnx")
    onnx.save(model, files / "ext.onnx", save_as_external_data=True, location="ext.bin", size_threshold=0)
    found = compared(files, "inline.onnx", "ext.onnx")
    total = sum((files / name).stat().st_size for name in ("ext.onnx", "ext.bin"))
    assert found.bytes_quantized == total > 200_000
    assert found.bytes_reference == (files / "inline.onnx").stat().st_size


def test_lossy_kernels_are_told(files, monkeypatch):
    """The runtime's own model may be less exact than the one that is written; here it is made so."""
    from onnxq.report import compare as module

    original = module.make_session

    def lossy(model, *, optimize=True, **options):
        name = "worse.onnx" if optimize and str(model).endswith("quant.onnx") else model
        return original(files / name, optimize=optimize, **options)

    onnx.save(build(QUANT, **weights(), **codes(scale=0.6)), files / "worse.onnx")
    monkeypatch.setattr(module, "make_session", lossy)
    (note,) = compared(files).notes
    assert "less exactly on this processor" in note
