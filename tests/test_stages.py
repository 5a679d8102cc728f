"""Measuring, choosing and inserting one after the other, and the loop a user runs by himself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import stages
from onnxq.calib.feeds import Feed
from onnxq.calib.readers import as_reader
from onnxq.errors import CalibrationError, DataError, RecipeError, RecordError
from onnxq.live import LiveCalibration
from onnxq.passes._inputs import inputs_of
from onnxq.result import twin_path
from tests.graphs import build, normal, run

NET = """g (float[N,3,8,8] x) => (float[N,4] y) {
    [c1] a = Conv <pads=[1,1,1,1]> (x, W1)
    [bn] b = BatchNormalization (a, s, o, m, v)
    [relu] r = Relu (b)
    [pool] p = GlobalAveragePool (r)
    [flat] f = Flatten (p)
    [fc] y = Gemm (f, W2) }"""
MODELS = Path(__file__).parents[1] / "models"
AMCT = {"target": "ascend", "activations": {"method": "ifmr"}, "refine": [], "equalize": {"depthwise": False}}


def net() -> onnx.ModelProto:
    one = np.ones(5, np.float32)
    return build(NET, W1=normal(5, 3, 3, 3), W2=normal(5, 4), s=2 * one, o=one, m=0 * one, v=one)


def data(count: int = 12) -> dict[str, np.ndarray]:
    return {"x": normal(count, 3, 8, 8)}


def sqnr(model: onnx.ModelProto, twin: onnx.ModelProto) -> float:
    a, b = run(model, data(30))["y"], run(twin, data(30))["y"]
    return float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum()))


def test_stages_give_what_quantize_gives() -> None:
    whole = onnxq.quantize(net(), data(), recipe=AMCT)
    chosen = stages.measure(net(), data(), recipe=AMCT).choose()
    assert list(chosen.factors) == list(whole.factors) == ["c1", "fc"]
    for name, factors in chosen.factors.items():
        assert (factors.scale_d, factors.offset_d) == (whole.factors[name].scale_d, whole.factors[name].offset_d)
    inserted = stages.insert(chosen.graph, chosen.factors)
    assert [n.op_type for n in inserted.deploy.to_proto().graph.node] == [n.op_type for n in whole.model.graph.node]
    assert whole.twin is not None
    assert sqnr(net(), whole.twin.to_proto()) > 30


def test_factors_fit_the_model_they_came_from_as_well_as_the_folded_one() -> None:
    chosen = stages.measure(net(), data(), recipe=AMCT).choose()
    folded = stages.insert(chosen.graph, chosen.factors)
    original = stages.insert(net(), chosen.factors)
    assert folded.deploy.to_proto().SerializeToString() == original.deploy.to_proto().SerializeToString()


def test_a_layer_that_must_not_be_fused_stays_unfused() -> None:
    chosen = stages.measure(net(), data(), recipe=AMCT).choose()
    kept = {name: replace(f, skip_fusion=name == "c1") for name, f in chosen.factors.items()}
    assert "BatchNormalization" in [n.op_type for n in stages.insert(net(), kept).deploy.to_proto().graph.node]


def test_another_recipe_chooses_anew_from_the_same_statistics() -> None:
    measured = stages.measure(net(), data(), recipe=AMCT)
    measured.context.reader = None  # nothing is run again
    first = measured.choose()
    symmetric = measured.choose(AMCT | {"activations": {"method": "hfmg", "symmetric": True}, "skip": ["fc"]})
    assert list(symmetric.factors) == ["c1"]
    assert symmetric.factors["c1"].offset_d == 0 != first.factors["fc"].offset_d
    assert list(measured.choose().factors) == ["c1", "fc"]  # and the first choice is not disturbed


def test_rounded_weights_are_taken_again_where_that_is_wanted() -> None:
    recipe = AMCT | {"weights": {"bits": 4, "method": {"name": "adaround", "num_iteration": 20}}}
    measured = stages.measure(net(), data(), recipe=recipe)
    known: stages.Rounded = {}
    first = measured.choose(rounded=known)
    assert {node for node, _, _ in known} == {"c1", "fc"}
    measured.context.reader = as_reader(data(1), inputs_of(measured.graph))  # others, so that new ones would differ
    again = measured.choose(rounded=known)
    both = [stages.insert(c.graph, c.factors).deploy.to_proto().SerializeToString() for c in (first, again)]
    assert both[0] == both[1]
    anew = measured.choose()
    assert stages.insert(anew.graph, anew.factors).deploy.to_proto().SerializeToString() != both[0]


def test_what_was_done_before_measuring_cannot_differ() -> None:
    measured = stages.measure(net(), data(), recipe=AMCT)
    with pytest.raises(RecipeError, match="fuse: differs from the recipe that the model was measured for"):
        measured.choose(AMCT | {"fuse": {"batchnorm": False}})


def trained(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    with np.load(MODELS / "data" / "digits_calib.npz") as calib:
        return onnx.load(MODELS / f"{name}.onnx"), {n: calib[n][:24] for n in calib.files}


def content(result: onnxq.Result) -> list[bytes]:
    graphs = [result.graph, *([] if result.twin is None else [result.twin])]
    return [graph.to_proto().SerializeToString() for graph in graphs]


RECIPES: dict[str, dict[str, object]] = {
    "default": {},
    "per tensor": {"weights": {"granularity": "per_tensor", "bits": 4}, "refine": []},
    "minmax": {"activations": {"method": "minmax"}},
    "percentile": {"activations": {"method": "percentile", "symmetric": True}},
    "peaks": {"activations": {"method": "avg"}},
    "16 bits": {"activations": {"bits": 16}},
}


@pytest.mark.parametrize(
    ("model", "target", "names"),
    [
        ("digits_cnn", "ort", (*RECIPES, "dynamic", "weights")),
        ("digits_mobilenet", "ort", ("default", "minmax", "per tensor")),
        ("digits_transformer", "ort", ("default", "percentile", "weights")),
        ("digits_cnn", "tensorrt", ("default", "minmax")),
        ("digits_mobilenet", "qnn", ("default", "peaks")),
        ("digits_mobilenet", "ascend", ("default", "per tensor")),
    ],
)
def test_quantizing_what_is_measured_gives_the_bytes_of_quantize(
    model: str, target: str, names: tuple[str, ...]
) -> None:
    proto, calib = trained(model)
    known = RECIPES | {"dynamic": {"scheme": "dynamic"}, "weights": {"scheme": "weight_only"}}
    recipes = [known[name] | {"target": target} for name in names]
    measured = stages.measure(proto, calib, recipe=recipes[0], also=recipes[1:])
    for recipe in (*recipes, recipes[0]):
        expected, found = onnxq.quantize(proto, calib, recipe=recipe), measured.quantize(recipe)
        assert content(found) == content(expected), recipe
        assert (found.notes, found.samples, found.plan) == (expected.notes, expected.samples, expected.plan)
        assert [r.name for r in found.reports] == [r.name for r in expected.reports]
        assert found.original is not None
    assert measured.quantize().recipe == onnxq.Recipe.from_dict(recipes[0])


def test_layers_left_float_have_the_same_numbers_elsewhere() -> None:
    proto, calib = trained("digits_cnn")
    recipe = {"skip": ["Add"]}  # the runtime adds up inside a convolution there, and rounds in another place
    expected = onnxq.quantize(proto, calib, recipe=recipe)
    found = stages.measure(proto, calib).quantize(recipe)
    assert found.params.keys() == expected.params.keys()
    for key, params in expected.params.items():
        np.testing.assert_allclose(found.params[key].scale, params.scale, rtol=1e-6)
        np.testing.assert_array_equal(found.params[key].zero_point, params.zero_point)


class Runs:
    """Data that count how often they are read."""

    def __init__(self, calib: dict[str, np.ndarray]) -> None:
        self.calib = calib
        self.count = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.count += 1
        yield self.calib


def test_what_other_recipes_need_is_measured_in_the_same_run() -> None:
    wanted = {"activations": {"method": "kl"}, "refine": []}
    runs = Runs(data())
    measured = stages.measure(net(), runs, recipe={"activations": {"method": "minmax"}, "refine": []}, also=[wanted])
    before = runs.count
    result = measured.quantize(wanted)
    assert runs.count == before
    assert content(result) == content(onnxq.quantize(net(), data(), recipe=wanted))


def test_what_nobody_named_is_measured_once_when_it_is_asked_for() -> None:
    wanted = {"activations": {"method": "kl"}, "refine": []}
    runs = Runs(data())
    measured = stages.measure(net(), runs, recipe={"activations": {"method": "minmax"}, "refine": []})
    before = runs.count
    first, second = measured.quantize(wanted), measured.quantize(wanted)
    assert runs.count > before
    assert content(first) == content(second) == content(onnxq.quantize(net(), data(), recipe=wanted))
    again = runs.count
    measured.quantize(wanted)
    assert runs.count == again


def test_what_has_to_be_measured_needs_data() -> None:
    measured = stages.measure(net(), data(), recipe={"activations": {"method": "minmax"}, "refine": []})
    measured.context.reader = None
    assert measured.quantize().changed
    with pytest.raises(DataError, match="need calibration data"):
        measured.quantize({"activations": {"method": "kl"}})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"target": "qnn"}, "target"),
        ({"equalize": {"enabled": True}}, "equalize"),
        ({"balance": {}}, "balance"),
        ({"rules": [{"match": {"node": "fc"}, "balance": {}}]}, r"rules \(balance, prune\)"),
    ],
)
def test_recipes_for_another_float_model_are_refused(change: dict[str, object], part: str) -> None:
    measured = stages.measure(net(), data())
    with pytest.raises(RecipeError, match=f"{part}: differs from the recipe"):
        measured.quantize(change)
    with pytest.raises(RecipeError, match=f"{part}: differs from the recipe"):
        stages.measure(net(), data(), also=[change])
    with pytest.raises(RecipeError, match="takes no measured numbers; use quantize"):
        measured.choose({"scheme": "dynamic"})


def test_balanced_models_keep_their_balance() -> None:
    recipe = {"balance": {}, "refine": []}
    measured = stages.measure(net(), data(), recipe=recipe)
    assert content(measured.quantize()) == content(onnxq.quantize(net(), data(), recipe=recipe))
    rest = measured.quantize(recipe | {"skip": ["c1"]})
    assert [d.role for d in rest.plan.decisions if d.node == "c1"] == ["float"]


def test_numbers_are_chosen_for_every_target() -> None:
    chosen = stages.measure(net(), data()).choose()
    assert chosen.factors == {}
    assert {w.key for w in chosen.plan.weights} <= chosen.params.keys()
    assert chosen.prepared is not None
    expected, found = (run(g.to_proto(), data())["y"] for g in (chosen.prepared, chosen.graph))
    np.testing.assert_allclose(run(net(), data())["y"], expected, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(expected, found)  # biases are corrected in the other one


def test_factors_of_unknown_layers_are_refused() -> None:
    chosen = stages.measure(net(), data(), recipe=AMCT).choose()
    with pytest.raises(RecordError, match=r"c11.*did you mean 'c1'"):
        stages.insert(net(), {"c11": chosen.factors["c1"]})
    with pytest.raises(RecipeError, match="takes no records; use ascend"):
        stages.insert(net(), chosen.factors, recipe={"target": "ort"})


def test_the_twin_is_saved_beside_the_model(tmp_path: Path) -> None:
    result = onnxq.quantize(net(), data(), recipe=AMCT)
    result.save(tmp_path / "net_deploy_model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net_deploy_model.onnx", "net_fake_quant_model.onnx"]
    assert twin_path(Path("a/deploy_model.onnx")) == Path("a/fake_quant_model.onnx")
    assert twin_path(Path("a/b.onnx")) == Path("a/b_fake_quant_model.onnx")


# ---- the user's own loop -------------------------------------------------------------------------


def live(batches: int) -> tuple[LiveCalibration, list[Callable[[], Iterator[Feed]]]]:
    found: list[Callable[[], Iterator[Feed]]] = []
    return LiveCalibration(net(), batches, found.append), found


def test_a_loop_calibrates_with_what_it_ran() -> None:
    x = data(6)["x"]
    seen: list[np.ndarray] = []
    model = LiveCalibration(net(), 3, lambda feeds: seen.extend(feed["x"] for feed in feeds()))
    for start in (0, 2, 4):
        assert not model.finished
        buffer = x[start : start + 2].copy()
        outputs = model.run(None, {"x": buffer})
        np.testing.assert_allclose(outputs[0], run(net(), {"x": buffer})["y"], rtol=1e-5, atol=1e-5)
        buffer[:] = 0  # the loop may reuse its arrays
    assert model.finished
    np.testing.assert_array_equal(np.concatenate(seen), x)


def test_runs_after_the_last_batch_only_run() -> None:
    model, found = live(1)
    for _ in range(3):
        model.run(["y"], data(2))
    assert len(found) == 1


def test_too_few_batches_are_told() -> None:
    model, _ = live(3)
    model.run(None, data(2))
    with pytest.raises(CalibrationError, match="needs 3 batches and was run on 1; run the model on 2 more"):
        model.require_finished()


def test_without_a_number_of_batches_the_caller_says_when() -> None:
    model, x = LiveCalibration(net(), None), data(6)["x"]
    for count in (1, 2, 3):
        model.run(None, {"x": x[2 * count - 2 : 2 * count]})
        for _ in range(2):  # as often as wanted
            np.testing.assert_array_equal(np.concatenate([f["x"] for f in model.feeds()]), x[: 2 * count])
        assert (model.batches_fed, model.finished) == (count, False)
    model.require_finished()


def test_a_wrong_feed_is_refused_and_does_not_count() -> None:
    model, _ = live(2)
    with pytest.raises(DataError):
        model.run(None, {"z": data(2)["x"]})
    assert model.batches_left == 2


def test_it_looks_like_a_session_of_onnxruntime() -> None:
    model, _ = live(1)
    assert [(i.name, i.shape, i.type) for i in model.get_inputs()] == [("x", ["N", 3, 8, 8], "tensor(float)")]
    assert [o.name for o in model.get_outputs()] == ["y"]
