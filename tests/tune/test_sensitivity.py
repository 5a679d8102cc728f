"""What quantizing each layer does to the output: copies that share a prefix, the estimate, and the ranking."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxq
from onnxq import stages
from onnxq.errors import DataError, RecipeError
from onnxq.runtime import make_session
from onnxq.tune.evaluation import Evaluation
from onnxq.tune.metrics_builtin import Metric
from onnxq.tune.prefixes import Copies
from onnxq.tune.ranking import LayerEffect, Sensitivity, rank_correlation, ranked
from onnxq.tune.sensitivity import rank_layers
from tests.graphs import build, normal, run

PLAIN: dict[str, Any] = {"refine": [], "equalize": {"depthwise": False}}
RESIDUAL = """g (float[N,4,8,8] x) => (float[N,4,8,8] mid, float[N,5] y) {
    [c1] a = Conv <pads=[1,1,1,1]> (x, W)
    [r1] b = Relu (a)
    [c2] c = Conv <pads=[1,1,1,1]> (b, W)
    [add] d = Add (c, b)
    [square] mid = Mul (d, d)
    [c3] e = Conv <pads=[1,1,1,1], auto_pad="NOTSET"> (mid, V)
    [pool] p = GlobalAveragePool (e)
    [flat] f = Flatten (p)
    [fc] y = Gemm (f, G, h) }"""
BODIES = """g (float[N,4] x, bool sure) => (float[N,3] y) {
    [m1] a = MatMul (x, A)
    [t] b = Tanh (a)
    [branch] c = If (sure) <
        then_branch = yes () => (float[N,4] t1) { t1 = Mul (b, b) },
        else_branch = no () => (float[N,4] e1) { e1 = Identity (a) }
    >
    [m2] d = MatMul (c, A)
    [m3] y = MatMul (d, B) }"""


def residual() -> onnx.ModelProto:
    return build(
        RESIDUAL, W=normal(4, 4, 3, 3, scale=0.2), V=normal(3, 4, 3, 3), G=normal(3, 5, scale=0.1), h=normal(5)
    )


def pictures(count: int = 12) -> dict[str, NDArray[Any]]:
    return {"x": normal(count, 4, 8, 8)}


def chain() -> onnx.ModelProto:
    """Five layers."""
    weights = {f"W{k}": normal(8, 8, seed=k, scale=0.35) for k in range(5)}
    text = "\n".join(
        f"[m{k}] a{k} = MatMul ({'x' if k == 0 else f't{k - 1}'}, W{k})\n[t{k}] t{k} = Tanh (a{k})" for k in range(5)
    )
    return build(f"g (float[N,8] x) => (float[N,8] y) {{ {text}\n y = Identity (t4) }}", **weights)


PER_TENSOR = PLAIN | {"weights": {"granularity": "per_tensor", "bits": 6}, "activations": {"method": "minmax"}}


def spoilt(bad: int) -> dict[str, Any]:
    """One layer gets fewer bits."""
    return PER_TENSOR | {"rules": [{"match": {"node": f"m{bad}"}, "weights": {"bits": 3}}]}


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [False, True])
def test_a_copy_beside_the_model_computes_what_a_whole_copy_computes(start: bool) -> None:
    copies = Copies(stages.measure(residual(), pictures()).choose())
    everything = frozenset(layer.name for layer in copies.layers)
    assert {"c1", "c2", "add", "square", "c3", "fc"} <= everything
    feed = pictures(3)
    for layer in copies.layers:
        shared = everything if start else frozenset[str]()
        quantized = shared ^ {layer.name}
        copies.fresh()
        whole = copies.write(quantized, range(len(copies.protos)), {}, "whole")
        expected = outputs(copies, whole, feed)
        copies.fresh()
        names = copies.write(shared, range(len(copies.protos)), {}, "start") if start else {}
        made = copies.write(quantized, layer.nodes, names, "copy")
        assert len(layer.nodes) < len(copies.protos) or layer.name == "c1"
        found = outputs(copies, {**names, **made}, feed)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{layer.name}: {name}")


def outputs(copies: Copies, names: Mapping[str, str], feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    wanted = [names.get(name, name) for name in copies.outputs]
    session = make_session(copies.graph, threads=1, optimize=False, outputs=wanted, extra=copies.nodes)
    return dict(zip(copies.outputs, session.run(wanted, feed), strict=True))


def test_only_what_depends_on_a_layer_is_copied() -> None:
    copies = Copies(stages.measure(residual(), pictures()).choose())
    by_name = {layer.name: {copies.protos[p].name for p in layer.nodes} for layer in copies.layers}
    assert by_name["fc"] == {"fc"}
    assert by_name["c3"] == {"c3", "pool", "flat", "fc"}
    assert "r1" in by_name["c1"] and "r1" not in by_name["c2"]  # noqa: PT018


def test_a_copy_with_everything_quantized_is_as_good_as_the_quantized_model() -> None:
    measured = stages.measure(residual(), pictures(32))
    scorer = Evaluation(pictures(16), "sqnr", threads=1).prepare(measured.graph)
    found = rank_layers(measured, Evaluation(pictures(16), "sqnr", threads=1), method="one")
    assert found.quantized == pytest.approx(scorer.score(measured.quantize().graph), abs=1.0)
    assert found.reference == math.inf


def test_a_layer_alone_does_what_it_does_in_a_model_where_the_rest_is_skipped() -> None:
    measured = stages.measure(residual(), pictures(32), recipe=PLAIN)
    wanted = Evaluation(pictures(16), "sqnr", threads=1)
    scores = {row.layer: row.score for row in rank_layers(measured, wanted, method="one").rows}
    scorer = wanted.prepare(measured.graph)
    for name in ("c1", "c2", "c3", "fc"):
        skip = [node for node in ("c1", "c2", "add", "square", "c3", "pool", "fc") if node != name]
        alone = scorer.score(measured.quantize(PLAIN | {"skip": skip}).graph)
        if name == "fc":
            assert scores[name] == pytest.approx(alone, abs=0.1)
        else:  # its output gets codes there as well; they count for the layer that reads them
            assert alone < scores[name] < alone + 6, name


@pytest.mark.parametrize("target", ["ascend", "tensorrt"])
def test_every_target_has_layers_that_can_be_ranked(target: str) -> None:
    measured = stages.measure(residual(), pictures(), recipe={"target": target})
    for method in ("first_order", "one"):
        found = rank_layers(measured, method=method)  # type: ignore[arg-type]
        assert {"c1", "c2", "c3", "fc"} <= set(found.layers)
        assert all(row.effect > 0 for row in found.rows)


def test_bodies_read_the_copies() -> None:
    model = build(BODIES, A=normal(4, 4), B=normal(4, 3))
    feeds = [{"x": normal(1, 4, seed=k), "sure": np.array(True)} for k in range(8)]
    measured = stages.measure(model, feeds, recipe=PLAIN)
    one = rank_layers(measured, method="one")
    assert set(one.layers) == {"m1", "m2", "m3"}
    assert one.effect("m1") > 0  # what m1 gives goes through the body only
    estimate = rank_layers(measured)
    assert set(estimate.layers) == {"m1", "m2", "m3"}
    assert estimate.effect("m1") > 0
    assert any("1 layers were measured on 8 samples: no slopes are known through If" in n for n in estimate.notes)


def test_corrected_biases_belong_to_the_layers_they_were_corrected_for() -> None:
    text = """g (float[N,3,4] x) => (float[N,3,4] y) {
        [m1] a = MatMul (x, A)
        [a1] b = Add (a, h)
        [t] c = Tanh (b)
        [m2] y = MatMul (c, A) }"""
    model, data = build(text, A=normal(4, 4), h=normal(4)), {"x": normal(16, 3, 4) + 1}
    recipe = {"weights": {"bits": 3}, "refine": [{"kind": "bias_correction", "inputs": "float"}]}
    copies = Copies(stages.measure(model, data, recipe=recipe).choose())
    m1 = copies.layers[0]
    assert [copies.protos[p].name for p in copies.unit(m1)] == ["m1", "a1"]
    means = []
    for quantized in (frozenset({"m1"}), frozenset[str]()):
        copies.fresh()
        made = copies.write(quantized, copies.unit(m1), {}, "copy")
        session = make_session(copies.graph, threads=1, outputs=[made["b"]], extra=copies.nodes)
        means.append(session.run([made["b"]], data)[0].mean(axis=(0, 1)))
    np.testing.assert_allclose(means[0], means[1], atol=1e-4)  # that is what the correction is for


def test_outputs_that_leave_as_codes_have_their_values() -> None:
    copies = Copies(stages.measure(residual(), pictures()).choose())
    values = {}
    for quantized in (frozenset({"square"}), frozenset[str]()):
        copies.fresh()
        made = copies.write(quantized, range(len(copies.protos)), {}, "copy")
        values[bool(quantized)] = outputs(copies, made, pictures())["mid"]
    assert len(np.unique(values[True])) <= 256 < len(np.unique(values[False]))


# ---- effects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["first_order", "one", "all_but_one"])
@pytest.mark.parametrize("bad", [0, 3])
def test_a_layer_with_few_bits_comes_first(method: Any, bad: int) -> None:
    measured = stages.measure(chain(), {"x": normal(32, 8)}, recipe=spoilt(bad))
    assert rank_layers(measured, method=method).layers[0] == f"m{bad}"


@pytest.mark.parametrize("metric", ["sqnr", "kl"])
def test_the_estimate_is_near_what_is_measured(metric: str) -> None:
    measured = stages.measure(residual(), pictures(64))
    one = rank_layers(measured, metric, method="one", samples=64)
    estimate = rank_layers(measured, metric, samples=64)
    assert estimate.metric == one.metric
    if metric == "kl":  # y has the only scores; for sqnr the worst of two outputs counts, not their sum
        for row in one.rows:
            if row.effect > 1e-7:
                assert estimate.effect(row.layer) == pytest.approx(row.effect, rel=0.6), row.layer
    shared = [row for row in one.rows if row.effect > 1e-7]
    assert rank_correlation([r.effect for r in shared], [estimate.effect(r.layer) for r in shared]) > 0.7


def test_slopes_come_together_from_all_readers() -> None:
    text = """g (float[N,4,6,6] x) => (float[N,6,12,12] y, float[N,2,1,1] z) {
        [c] a = Conv (x, W)
        b, d, e = Split <axis=1> (a, sizes)
        [up] f = Resize <mode="nearest"> (d, , twice)
        [down] z = GlobalAveragePool (b)
        [wide] k = Resize <mode="nearest"> (a, , twice)
        [gone] q = Mul (k, k2)
        [both] y = Concat <axis=1> (f, q) }"""
    shapes = {"sizes": np.array([2, 2, 0], np.int64), "twice": np.array([1, 1, 2, 2], np.float32)}
    model = build(text, W=normal(4, 4, 1, 1), k2=normal(4, 1, 1), **shapes)
    measured = stages.measure(model, {"x": normal(48, 4, 6, 6)}, recipe=PLAIN)
    found = rank_layers(measured, samples=48)
    assert "c" in found.layers
    copies = Copies(measured.choose())
    c = next(layer for layer in copies.layers if layer.name == "c")
    made = copies.write({"c"}, c.nodes, {}, "copy")
    noise = 0.0
    for name in copies.outputs:
        wanted = [name, made[name]]
        pair = make_session(copies.graph, threads=1, outputs=wanted, extra=copies.nodes).run(
            wanted, {"x": normal(48, 4, 6, 6)}
        )
        noise += float(np.square(pair[1] - pair[0]).sum() / np.square(pair[0]).sum())
    assert found.effect("c") == pytest.approx(noise, rel=0.4)


def test_one_layer_is_exact_to_first_order_where_it_is_the_last() -> None:
    measured = stages.measure(build("g (float[N,6] x) => (float[N,2] y) { [fc] y = MatMul (x, W) }", W=normal(6, 2)),
                              {"x": normal(64, 6)}, recipe=PER_TENSOR)  # fmt: skip
    one, estimate = rank_layers(measured, method="one"), rank_layers(measured, samples=64)
    assert estimate.effect("fc") == pytest.approx(one.effect("fc"), rel=0.5)


def test_the_same_bytes_whatever_the_threads() -> None:
    for method in ("first_order", "one", "all_but_one"):
        texts = set()
        for threads in (1, 2, 1):
            measured = stages.measure(residual(), pictures(), threads=threads)
            texts.add(rank_layers(measured, method=method, threads=threads).to_csv())  # type: ignore[arg-type]
        assert len(texts) == 1, method


def test_the_users_own_metric_counts() -> None:
    def first(found: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> float:
        assert labels is None
        return -float(np.abs(found["mid"] - expected).max())

    measured = stages.measure(residual(), pictures())
    expected = run(residual(), pictures(4))["mid"]
    found = rank_layers(measured, Evaluation(pictures(4), first), method="one")
    assert found.reference == pytest.approx(0, abs=1e-4)
    assert found.effect("c1") > 0.01
    assert found.effect("c3") == found.effect("fc") == pytest.approx(0, abs=1e-4)  # mid does not depend on them


def test_classes_are_ranked_by_the_divergence_where_slopes_are_asked_for() -> None:
    measured = stages.measure(residual(), pictures())
    found = rank_layers(measured, Evaluation(pictures(), "top1", labels=np.zeros(12, np.int64)))
    assert found.metric.name == "kl"
    assert "top1 has no slopes: effects are those on kl" in found.notes
    assert "the function has no slopes: effects are those on sqnr" in (
        rank_layers(measured, Evaluation(pictures(), lambda found, labels: 1.0)).notes
    )


def test_statistics_are_used_again() -> None:
    runs: list[int] = []

    def data() -> Iterator[dict[str, NDArray[Any]]]:
        runs.append(1)
        yield {"x": normal(32, 8)}

    measured = stages.measure(chain(), data, recipe=spoilt(1))
    before = len(runs)
    assert rank_layers(measured, recipe=PER_TENSOR).effect("m1") < 0.1 * rank_layers(measured).effect("m1")
    assert len(runs) <= before + 4  # each ranking looks at the first sample, and at all of them
    chosen = measured.choose(PER_TENSOR)
    assert rank_layers(measured, chosen=chosen).to_csv() == rank_layers(measured, recipe=PER_TENSOR).to_csv()


def test_nothing_to_rank() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { [r] y = Relu (x) }")
    for method in ("first_order", "one"):
        assert rank_layers(stages.measure(model, {"x": normal(4, 4)}), method=method).rows == ()  # type: ignore[arg-type]


def test_what_cannot_be_ranked_is_said() -> None:
    measured = stages.measure(chain(), {"x": normal(4, 8)}, recipe=PER_TENSOR)
    with pytest.raises(RecipeError, match="there is no method 'hessian'; use first_order, one, all_but_one"):
        rank_layers(measured, method="hessian")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"there is no metric 'sqrn'.*did you mean 'sqnr'"):
        rank_layers(measured, "sqrn")
    with pytest.raises(RecipeError, match="scheme: dynamic takes no measured numbers"):
        rank_layers(measured, recipe={"scheme": "dynamic"})
    measured.context.reader = None
    with pytest.raises(DataError, match="effects on the output need data"):
        rank_layers(measured)
    whole = stages.measure(residual(), pictures())
    with pytest.raises(DataError, match="metric perplexity needs"):
        rank_layers(whole, "perplexity", method="one")


# ---- the ranking ---------------------------------------------------------------------------------


def test_larger_effects_come_first_and_equal_ones_as_they_came() -> None:
    rows = ranked([("a", "Conv", 1.0, 3.0), ("b", "Add", -2.0, 9.0), ("c", "Conv", 3.0, 1.0), ("d", "Conv", 1.0, 3.0)])
    assert [row.layer for row in rows] == ["c", "a", "d", "b"]
    assert [row.share for row in rows] == [0.6, 0.2, 0.2, 0.0]
    ruined = ranked([("a", "Conv", 1.0, 3.0), ("b", "Add", math.nan, 9.0)])
    assert [(row.layer, row.effect, row.share) for row in ruined] == [("b", math.inf, 1.0), ("a", 1.0, 0.0)]


def test_tables_hold_every_row(tmp_path: Path) -> None:
    rows = ranked([('odd, "name"', "Conv", 0.5, 3.0), ("b", "Add", math.nan, math.nan)])
    found = Sensitivity(rows, "one", Metric("sqnr", higher_is_better=True, unit="dB"), math.inf, 3.0, 7, ("a note",))
    found.save_csv(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes().split(b"\r\n") == [
        b"rank,layer,op_type,effect,share,score",
        b"1,b,Add,inf,1,",
        b'2,"odd, ""name""",Conv,0.5,0,3',
        b"",
    ]
    found.save_json(tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)
    assert content["reference"] is None
    assert content["layers"][0] == {
        "rank": 1, "layer": "b", "op_type": "Add", "effect": None, "share": 1.0, "score": None
    }  # fmt: skip
    assert found.layers == ("b", 'odd, "name"')
    assert found.effect("nowhere") == 0.0
    assert found.rows[1] == LayerEffect('odd, "name"', "Conv", 0.5, 0.0, 3.0)


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    assert rank_correlation([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)
    assert math.isnan(rank_correlation([1, 1], [1, 2]))


def test_bundled_models_are_ranked_alike_by_both_methods() -> None:
    folder = Path(__file__).parents[2] / "models"
    with np.load(folder / "data" / "digits_calib.npz") as calib:
        data = {name: calib[name][:64] for name in calib.files}
    measured = stages.measure(folder / "digits_mobilenet.onnx", data)
    one, estimate = rank_layers(measured, method="one"), rank_layers(measured)
    assert onnxq.plan_model(folder / "digits_mobilenet.onnx").plan.counts()["quantized"] == len(one.rows)
    assert rank_correlation([r.effect for r in one.rows], [estimate.effect(r.layer) for r in one.rows]) > 0.9
