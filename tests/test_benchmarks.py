"""The benchmarks measure what they say, on small sizes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import onnxq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy  # noqa: E402
import calibration  # noqa: E402
import datasets  # noqa: E402
import dynamic  # noqa: E402
import encoders  # noqa: E402
import generated  # noqa: E402
import graph_work  # noqa: E402
import ladder  # noqa: E402
import latency  # noqa: E402
import lowbit  # noqa: E402
import memory  # noqa: E402
import observers  # noqa: E402
import peer  # noqa: E402
import pruning  # noqa: E402
import sensitivity  # noqa: E402
import tools  # noqa: E402
import tuning  # noqa: E402
import weights  # noqa: E402

needs_peer = pytest.mark.skipif(
    importlib.util.find_spec("sympy") is None, reason="onnxruntime.quantization needs sympy: pip install -e '.[bench]'"
)
MOBILENET = ROOT / "models" / "digits_mobilenet.onnx"


@pytest.fixture
def digits(tmp_path) -> str:
    """A file with 40 calibration samples."""
    with np.load(ROOT / "models" / "data" / "digits_calib.npz") as file:
        np.savez(tmp_path / "digits.npz", image=file["image"][:40])
    return str(tmp_path / "digits.npz")


# ---- tools


def test_a_child_returns_figures_and_its_own_peak(tmp_path):
    ballast = np.ones(60_000_000)  # 480 MB of this process are none of the child's
    row = tools.in_child(graph_work.run_once, model=str(MOBILENET))
    assert row["seconds"] > 0
    assert 20 < row["peak_mb"] < ballast.nbytes / 2**20


def test_a_child_that_fails_tells_why():
    with pytest.raises(tools.ChildError, match=r"absent\.onnx"):
        tools.in_child(graph_work.run_once, model="absent.onnx")


def test_alternated_measurements_take_turns_and_stop_where_they_fail():
    calls = []

    def note(name):
        calls.append(name)
        if name == "c":
            raise tools.ChildError("it broke")
        return {"x": len(calls)}

    found = tools.alternate({name: lambda name=name: note(name) for name in "abc"}, 3)
    assert "".join(calls) == "abcabab"
    assert tools.failed(found["c"]) == "failed: it broke"
    assert tools.failed(found["a"]) is None
    assert tools.median(found["a"], "x") == 4


def test_a_table_has_the_columns_of_all_its_rows(capsys):
    from rich.console import Console

    table = tools.Table("Title", [{"a": "x"}, {"a": "y", "b": 1.234}], ["a note"])
    assert table.columns == ["a", "b"]
    table.show(Console(width=80))
    shown = capsys.readouterr().out
    assert "1.23" in shown
    assert "a note" in shown


@needs_peer
def test_a_benchmark_alone_writes_json(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "accuracy.py"), "--only", "digits_cnn", "--json"]
    done = subprocess.run([*command, str(tmp_path / "out.json")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    ours, theirs = content["tables"][0]["rows"]
    assert (ours["by"], theirs["by"]) == ("onnxq", "onnxruntime")
    assert ours["SQNR dB"] > 30
    assert ours["drop"] < 1
    assert "SQNR dB" in theirs


# ---- models and data


@pytest.mark.parametrize("count", [20, 200])
def test_the_model_of_many_nodes_runs(count):
    model = generated.many_nodes(count)
    assert len(model.graph.node) == count
    assert {n.op_type for n in model.graph.node} == {"Conv", "BatchNormalization", "Relu", "Add", "Concat"}
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    found = session.run(None, {"image": np.ones((2, generated.CHANNELS, 4, 4), np.float32)})[0]
    assert np.isfinite(found).all()
    assert found.std() > 0


def test_the_model_of_many_weights_keeps_them_in_a_file(tmp_path):
    generated.many_weights(tmp_path / "m.onnx", 3 * 4 * 64 * 64 / 1e9, width=64)
    assert (tmp_path / "m.onnx.data").stat().st_size == 3 * 4 * 64 * 64
    assert (tmp_path / "m.onnx").stat().st_size < 2000
    session = ort.InferenceSession(str(tmp_path / "m.onnx"))
    found = session.run(None, {"x": np.ones((1, 64), np.float32)})[0]
    assert np.isfinite(found).all()
    assert found.any()


def test_calibration_and_evaluation_data_are_disjoint():
    for case in datasets.cases(tools.Options(zoo=None)):
        known = {feed["image"].tobytes() for feed in case.calib()}
        evaluation, labels = case.evaluation()
        others = [x for feed in evaluation for x in feed["image"]]
        assert len(others) == len(labels)
        assert not known & {x[np.newaxis].tobytes() for x in others}


def test_joined_feeds_hold_the_same_samples():
    feeds = [{"x": np.full((1, 2), k), "y": np.full((1,), -k)} for k in range(5)]
    found = datasets.joined(feeds, 2)
    assert [len(f["x"]) for f in found] == [2, 2, 1]
    assert np.concatenate([f["y"] for f in found]).tolist() == [0, -1, -2, -3, -4]


# ---- what is measured


def scaled(factor: float) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    weight = onnx.numpy_helper.from_array(np.array([factor], np.float32), "w")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["logits"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_distance_of_models_that_differ_by_a_known_factor(tmp_path):
    for name, factor in (("a", 1.0), ("b", 1.1), ("c", -1.0)):
        onnx.save(scaled(factor), tmp_path / f"{name}.onnx")
    feeds = [{"x": np.array([[1.0, 2.0, 3.0]], np.float32)}, {"x": np.array([[3.0, 2.0, 1.0]], np.float32)}]
    reference = accuracy.Float(tmp_path / "a.onnx", feeds, np.array([2, 1]), 1)
    row = reference.distance(tmp_path / "b.onnx")
    assert row["SQNR dB"] == pytest.approx(20.0, abs=0.01)
    assert (row["agree %"], row["float top-1"], row["drop"]) == (100.0, 50.0, 0.0)
    opposite = reference.distance(tmp_path / "c.onnx")
    assert opposite["SQNR dB"] == pytest.approx(-6.02, abs=0.01)
    assert (opposite["agree %"], opposite["drop"]) == (0.0, 50.0)
    assert reference.distance(tmp_path / "a.onnx")["SQNR dB"] == float("inf")


def test_steps_of_graph_work_add_up(tmp_path):
    onnx.save(generated.many_nodes(100), tmp_path / "m.onnx")
    row = graph_work.quantize_nodes(str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"))
    steps = {k: v for k, v in row.items() if k not in ("whole", "graph work")}
    assert sum(steps.values()) == pytest.approx(row["whole"], rel=0.01)
    assert row["graph work"] == pytest.approx(
        row["whole"] - row["Calibrate"] - row["SearchRanges"] - row["CorrectBias"]
    )
    ops = [n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node]
    assert "BatchNormalization" not in ops
    assert ops.count("QuantizeLinear") > 20


def test_weights_are_quantized_with_given_ranges(tmp_path):
    generated.many_weights(tmp_path / "m.onnx", 4 * 4 * 64 * 64 / 1e9, width=64)
    graph_work.quantize_weights(str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"))
    model = onnx.load(tmp_path / "q.onnx")
    coded = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert len(coded) == 4
    assert all(onnx.numpy_helper.to_array(t).any() for t in coded)


@pytest.mark.parametrize("method", ["minmax", "output_mse"])
def test_the_timed_passes_give_the_parameters(method, digits):
    row = calibration.passes(str(MOBILENET), digits, method, 2)
    assert 0 < row["seconds"] <= row["ranges"]
    assert row["batch"] == 32


def test_the_bare_loop_runs_all_feeds(digits):
    assert len(calibration.load(digits)) == 40
    assert calibration.bare(str(MOBILENET), digits, 8, 2)["seconds"] > 0


@needs_peer
def test_the_peer_is_timed_on_the_same_feeds(digits, tmp_path):
    peer.preprocess(MOBILENET, tmp_path / "p.onnx")
    row = tools.in_child(
        calibration.peer_calibrator, prepared=str(tmp_path / "p.onnx"), data=digits, batch=8, method="entropy",
        scratch=str(tmp_path / "a.onnx"),
    )  # fmt: skip
    assert row["seconds"] > 0


def test_observers_are_timed_and_weighed(digits, tmp_path):
    row = observers.observed(str(MOBILENET), digits, "KLObserver", 2)
    assert row["seconds"] > 0
    assert row["batch"] >= 1
    assert row["tensors"] > 10
    out = tmp_path / "q.onnx"
    assert observers.calibrated(str(MOBILENET), digits, "AVGObserver", 5, str(out), 2) == {"samples": 5}
    assert out.is_file()


def test_mixtures_are_the_same_each_time_and_not_kept():
    base = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    data = memory.Mixtures("x", base, 50)
    first, second = ([feed["x"] for feed in data] for _ in range(2))
    assert len(first) == 50
    assert np.array_equal(np.concatenate(first), np.concatenate(second))
    assert first[0].dtype == np.float32
    assert len({x.tobytes() for x in first}) > 40


def test_latency_is_a_ratio_of_alternated_runs(digits, tmp_path):
    onnxq.quantize(MOBILENET, digits).save(tmp_path / "q.onnx")
    row = latency.alternated({"float": str(MOBILENET), "onnxq": str(tmp_path / "q.onnx")}, 1, 0.3)
    assert row["turns"] * latency.RUNS > 10
    assert row["onnxq / float"] == pytest.approx(row["onnxq"] / row["float"], rel=0.5)


# ---- dynamic quantization


def test_the_encoder_is_one_that_onnx_runtime_takes_apart_as_a_transformer(tmp_path):
    encoders.write(
        tmp_path / "e.onnx", encoders.Size(layers=1, hidden=24, intermediate=48, heads=2, words=16, tokens=8)
    )
    session = ort.InferenceSession(str(tmp_path / "e.onnx"))
    found = session.run(None, {"ids": np.arange(8)[None]})[0]
    assert found.shape == (1, 8, 24)
    assert np.isfinite(found).all()
    assert found.std() > 0.1
    counts = onnxq.plan_model(tmp_path / "e.onnx", recipe={"scheme": "dynamic"}).plan.counts()
    assert counts["quantized"] == 7  # six products and the embedding


@needs_peer
def test_dynamic_quantization_is_measured_beside_onnxruntimes(tmp_path):
    (case,) = dynamic.cases(tools.Options(zoo=None, only=("digits",)))
    rows = dynamic.measure(case, tools.Options(zoo=None, rounds=1, threads=1, quick=True), tmp_path)
    assert [row["quantizer"] for row in rows] == ["onnxq", "onnxq, exact ranges", "onnxruntime"]
    for row in rows:
        assert float(str(row["cosine"])) > 0.99
        assert float(row["over float"] or 0) > 0
    assert float(rows[0]["smaller by"] or 0) > 2


def test_sizes_of_packed_weights_add_up(tmp_path):
    onnxq.quantize(MOBILENET, recipe=weights.recipe(5)).save(tmp_path / "m.onnx")
    found = weights.sizes(tmp_path / "m.onnx")
    count = sum(
        int(np.prod(t.dims)) for t in onnx.load(MOBILENET).graph.initializer if len(t.dims) > 1 and np.prod(t.dims) > 1
    )
    assert count * 5 / 8 <= found["codes"] <= count * 5 / 8 * 1.01
    assert found["file"] == (tmp_path / "m.onnx").stat().st_size == sum(found[k] for k in found if k != "file")


def test_perplexity_is_that_of_the_next_tokens(tmp_path):
    """A model whose logits are a table: the probability of each next token is known."""
    table = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], np.float32))
    node = helper.make_node("Gather", ["E", "tokens"], ["logits"])
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "T"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "T", 3])]
    graph = helper.make_graph([node], "g", inputs, outputs, [onnx.numpy_helper.from_array(table, "E")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    tokens = np.random.default_rng(0).integers(0, 3, (lowbit.CALIBRATE + 40, 9))
    judged = tokens[lowbit.CALIBRATE :]
    wanted = np.exp(-table[judged[:, :-1], judged[:, 1:]].mean())
    assert lowbit.Texts(tokens, 1).perplexity(tmp_path / "m.onnx") == pytest.approx(wanted, rel=1e-6)


def test_the_large_model_is_quantized_from_its_file(tmp_path):
    row = lowbit.large(str(tmp_path / "m.onnx"), 64, 3)
    assert row["bytes"] == 3 * 64 * 64 * 4
    assert len(onnx.load(tmp_path / "m.onnx", load_external_data=False).SerializeToString()) < 4096
    content = json.dumps(lowbit.recipe("gptq", 4, 32))
    lowbit.quantize_large(str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), content, 64, 1)
    assert [n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node].count("MatMulNBits") == 3
    assert (tmp_path / "q.onnx.data").stat().st_size < row["bytes"] / 4


def test_pruned_models_are_measured_beside_what_they_came_from(tmp_path):
    result = onnxq.prune(MOBILENET, recipe=pruning.channels(0.5))
    row = pruning.row("digits", "50 %", result, MOBILENET, tmp_path / "p.onnx", tools.Options(quick=True))
    assert 0.2 < row["parameters"] < 0.6
    assert 0.2 < row["FLOPs"] < 0.6
    assert row["latency"] > 0
    assert pruning.top1(tmp_path / "p.onnx") < pruning.top1(MOBILENET)
    onnxq.prune(MOBILENET, recipe={"prune": "2:4"}).save(tmp_path / "s.onnx")
    assert pruning.sparsity(tmp_path / "s.onnx") == "0.5 to 0.5"


@pytest.mark.parametrize("rung", ladder.LADDER, ids=lambda rung: rung.name)
def test_every_rung_of_the_ladder_is_a_recipe(rung):
    for bits in ladder.WIDTHS:
        for granularity in ladder.GRANULARITIES:
            recipe = onnxq.Recipe.model_validate(rung.recipe(bits, granularity, quick=True))
            assert recipe.weights.bits == bits


def test_a_rung_of_the_ladder_is_measured(tmp_path):
    """With 2 bits little is left, which the figures must show."""
    options = tools.Options(quick=True, threads=1, only=("digits_cnn",))
    (case,) = datasets.cases(options)
    feeds, labels = case.evaluation()
    reference = accuracy.Float(case.model, feeds, labels, 1)
    many, few = (
        ladder.measure(ladder.LADDER[0], case, reference, case.calib()[:20], bits, "per_axis", options)
        for bits in (8, 2)
    )
    assert many["steps"] == "nearest"
    assert many["SQNR dB"] > few["SQNR dB"] + 10


# ---- tuning


@pytest.fixture
def digits_task() -> tuning.Task:
    """Half of 40 digits to search with, the other half held out."""

    def load(split: str, count: int) -> np.ndarray:
        with np.load(ROOT / "models" / "data" / f"digits_{split}.npz") as file:
            return file["image"][:count]

    labels = np.load(ROOT / "models" / "data" / "digits_test_labels.npy")[:40]
    case = datasets.Case(
        "digits_cnn",
        ROOT / "models" / "digits_cnn.onnx",
        "",
        lambda: datasets.cut("image", load("calib", 8)),
        lambda: (datasets.cut("image", load("test", 40), 5), labels),
    )
    return tuning.Task.of(case, tools.Options(threads=1))


def test_tuning_sees_every_second_feed_with_its_labels(digits_task):
    task = digits_task
    assert (task.seen.samples, task.held_out.samples) == (20, 20)
    assert task.seen.reference > 90  # labels of other samples would be right one time in ten
    assert task.held_out.reference > 90
    assert task.seen.digest != task.held_out.digest


def test_rollback_is_measured_beside_the_default_recipe(digits_task):
    rows = [digits_task.row(by, tuning.METHODS[by](digits_task)[0]) for by in ("default", "AMCT's rollback")]
    assert rows[0]["score"] == rows[1]["score"]  # nothing has to be rolled back
    assert [row["meets"] for row in rows] == ["yes", "yes"]
    prober = tuning.Rollback(digits_task)
    ranking = prober.sensitivities()
    assert set(ranking) <= {d.node for d in onnxq.plan_model(MOBILENET.with_name("digits_cnn.onnx")).plan.decisions}
    assert all(0.9 < value <= 1 for value in ranking.values())


# ---- sensitivity


def test_the_estimate_is_held_against_one_layer_at_a_time():
    (case,) = (case for case in datasets.cases(tools.Options(only=("digits_mobilenet",))))
    row = sensitivity.measure(case, tools.Options(quick=True, threads=1))
    assert row["model"] == "digits_mobilenet"
    assert row["layers"] == 15
    assert 0.5 < row["rho"] <= 1
    assert 1 <= row["of the 5 worst"] <= 5
    assert all(row[key] > 0 for key in ("estimate CPU s", "one by one CPU s", "whole CPU s"))
