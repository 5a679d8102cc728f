"""quantize() and plan_model() as a user calls them: what goes in, what comes out, what is said if it cannot be done."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.instruments import Timing
from onnxq.pipeline import Result
from tests.bundled import FEED_FORWARD
from tests.graphs import build, feeds_for, normal, ops, run, session

MODELS = Path(__file__).resolve().parents[1] / "models"
CALIBRATION = MODELS / "data" / "digits_calib.npz"

NET = """g (float[N,3,8,8] x) => (float[N,4] y) {
    [c1] a = Conv <pads=[1,1,1,1]> (x, W1)
    [relu] r = Relu (a)
    [pool] p = GlobalAveragePool (r)
    [flat] f = Flatten (p)
    [fc] y = Gemm (f, W2) }"""


def net() -> onnx.ModelProto:
    return build(NET, W1=normal(5, 3, 3, 3), W2=normal(5, 4))


def data(count: int = 12) -> dict[str, Any]:
    return {"x": normal(count, 3, 8, 8)}


def float_only() -> onnx.ModelProto:
    """Nothing in it can be quantized."""
    return build("g (float[N,4] x) => (float[N,4] y) { [first] a = Erf (x) [second] y = Exp (a) }")


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


# ---- accuracy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FEED_FORWARD, ids=lambda p: p.stem)
def test_bundled_models_lose_a_point_at_the_most(path: Path) -> None:
    images = dict(np.load(MODELS / "data" / "digits_test.npz"))
    labels = np.load(MODELS / "data" / "digits_test_labels.npy")
    result = onnxq.quantize(path, CALIBRATION)

    def accuracy(model: onnx.ModelProto) -> float:
        return float((session(model, optimize=True).run(None, images)[0].argmax(axis=1) == labels).mean())

    before, after = accuracy(onnx.load(path)), accuracy(result.model)
    assert before > 0.97
    assert after >= before - 0.01
    assert result.plan.counts()["quantized"] >= 10
    assert len(result.model.SerializeToString()) < 0.75 * path.stat().st_size or "transformer" in path.name


# ---- what goes in ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["path", "string", "proto", "graph"])
def test_the_model_is_not_changed(form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(net(), path)
    forms: dict[str, Any] = {"path": path, "string": str(path), "proto": net(), "graph": onnxq.load_model(path)}
    model = forms[form]

    def content() -> bytes:
        if isinstance(model, onnx.ModelProto):
            return model.SerializeToString()
        return model.to_proto().SerializeToString() if form == "graph" else path.read_bytes()

    before = content()
    result = onnxq.quantize(model, data())
    assert result.changed
    assert content() == before
    assert result.source == (path if form in ("path", "string") else None)
    assert "QuantizeLinear" in ops(result.model)


def test_the_samples_are_not_changed() -> None:
    samples = data()
    kept = samples["x"].copy()
    samples["x"].flags.writeable = False
    onnxq.quantize(net(), samples)
    np.testing.assert_array_equal(samples["x"], kept)


def test_recipes_by_path_mapping_and_object(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("activations: {method: minmax}\nskip: [c1]\n")
    (tmp_path / "r.json").write_text('{"activations": {"method": "minmax"}, "skip": ["c1"]}')
    mapping = {"activations": {"method": "minmax"}, "skip": ["c1"]}
    forms = [mapping, tmp_path / "r.yaml", str(tmp_path / "r.json"), onnxq.Recipe.from_dict(mapping)]
    results = [onnxq.quantize(net(), data(), recipe=form) for form in forms]
    assert len({r.model.SerializeToString(deterministic=True) for r in results}) == 1
    assert results[0].plan.left_float()[0].node == "c1"
    assert results[0].model.SerializeToString() != onnxq.quantize(net(), data()).model.SerializeToString()


def test_the_target_may_be_given_beside_the_recipe() -> None:
    result = onnxq.quantize(net(), data(), recipe={"target": "ort"}, target="tensorrt")
    assert result.recipe.target == "tensorrt"
    assert metadata(result.model)["onnxq.target"] == "tensorrt"
    types = {t.data_type for t in result.model.graph.initializer if t.name.endswith("_zero_point")}
    assert onnx.TensorProto.UINT8 not in types


def test_samples_may_be_limited() -> None:
    result = onnxq.quantize(net(), data(20), recipe={"calibration": {"samples": 7}})
    assert result.samples == 7
    assert metadata(result.model)["onnxq.calibration_samples"] == "7"


@pytest.mark.parametrize("batch", [1, 4, 16, 40])
def test_a_model_with_a_fixed_batch(batch: int) -> None:
    model = build(
        f"""g (float[{batch},3,8,8] x) => (float[{batch},4,4,4] y) {{
            c = Conv (x, W) r = Clip (c, lo, hi) d = Conv (r, V) y = Clip (d, lo, hi) }}""",
        W=normal(5, 3, 3, 3), V=normal(4, 5, 3, 3), lo=np.float32(0), hi=np.float32(6),
    )  # fmt: skip
    x = normal(80, 3, 8, 8)
    expected = onnxq.quantize(model, {"x": x})
    assert expected.samples == 80
    again = onnxq.quantize(model, [{"x": row[None]} for row in x])
    assert again.model.SerializeToString() == expected.model.SerializeToString()
    feed = {"x": x[:batch]}
    wanted, found = run(model, feed)["y"], run(expected.model, feed)["y"]
    assert np.abs(found - wanted).mean() < 0.05


def test_several_inputs() -> None:
    model = build(
        "g (float[N,6] a, float[N,6] b) => (float[N,4] y) { s = MatMul (a, W) t = MatMul (b, W) y = Add (s, t) }",
        W=normal(6, 4),
    )  # fmt: skip
    x = {"a": normal(30, 6), "b": normal(30, 6, seed=1)}
    result = onnxq.quantize(model, x)
    wanted, found = run(model, x)["y"], run(result.model, x)["y"]
    assert float(((wanted - found) ** 2).mean() / (wanted**2).mean()) < 1e-3


# ---- what comes out ----------------------------------------------------------------------------


def test_the_result_computes_nearly_the_same(tmp_path: Path) -> None:
    model, x = net(), data(64)
    result = onnxq.quantize(model, x)
    wanted = run(model, x)["y"]
    for optimize in (True, False):
        found = run(result.model, x, optimize=optimize)["y"]
        assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 30
    assert [v.name for v in result.model.graph.input] == ["x"]
    assert [v.name for v in result.model.graph.output] == ["y"]
    path = result.save(tmp_path / "q.onnx")
    assert path == tmp_path / "q.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert onnx.load(path).SerializeToString() == result.model.SerializeToString()


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = build("g (float[N,64] x) => (float[N,512] y) { y = MatMul (x, W) }", W=normal(64, 512))
    result = onnxq.quantize(model, {"x": normal(8, 64)})
    path = result.save(tmp_path / "q.onnx", external_data=True)
    assert {p.name for p in tmp_path.iterdir()} == {"q.onnx", "q.onnx.data"}
    feed = {"x": normal(4, 64, seed=2)}
    found = onnxq.quantize(model, {"x": normal(8, 64)}).model
    loaded = onnx.load(path)
    np.testing.assert_array_equal(run(loaded, feed)["y"], run(found, feed)["y"])


def test_saving_where_it_cannot_be_saved(tmp_path: Path) -> None:
    result = onnxq.quantize(net(), data())
    with pytest.raises(onnxq.ModelError, match="nowhere"):
        result.save(tmp_path / "nowhere" / "q.onnx")


def test_the_summary_is_plain_json() -> None:
    result = onnxq.quantize(net(), data(), recipe={"skip": ["fc"]})
    summary = json.loads(json.dumps(result.to_dict()))
    assert summary["changed"] is True
    assert summary["counts"] == result.plan.counts()
    assert sum(summary["counts"].values()) == 5
    assert {f["node"]: f["op_type"] for f in summary["float"]}["fc"] == "Gemm"
    assert all(f["reason"] for f in summary["float"])
    assert [p["name"] for p in summary["passes"]] == [r.name for r in result.reports]
    assert summary["samples"] == 12
    assert onnxq.Recipe.from_dict(summary["recipe"]) == result.recipe


def test_metadata_say_where_the_model_came_from(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = net()
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, path)
    found = metadata(onnxq.quantize(path, data()).model)
    assert found["author"] == "somebody"
    assert found["onnxq.version"] == onnxq.__version__
    assert found["onnxq.target"] == "ort"
    assert found["onnxq.recipe_sha256"] == onnxq.Recipe().digest()
    assert found["onnxq.model_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["onnxq.calibration_samples"] == "12"
    assert len(found["onnxq.calibration_sha256"]) == 64
    assert "onnxq.calibration_data" not in found
    other = metadata(onnxq.quantize(path, data(13)).model)
    assert other["onnxq.calibration_sha256"] != found["onnxq.calibration_sha256"]


def test_scales_are_in_the_result() -> None:
    result = onnxq.quantize(net(), data())
    assert set(result.plan.activations) <= set(result.params)
    scales = {
        t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name.endswith("_scale")
    }
    assert scales["x_scale"] == result.params["x"].scale


def test_every_bias_has_the_scale_of_its_products() -> None:
    """Backends add int32 biases to int32 sums of products, whatever scale the model gives them."""
    model = build(
        NET.replace("(x, W1)", "(x, W1, B1)").replace("(f, W2)", "(f, W2, B2)"),
        W1=normal(5, 3, 3, 3), W2=normal(5, 4), B1=normal(5) * 10, B2=normal(4) * 5,
    )  # fmt: skip
    x = data(32)
    result = onnxq.quantize(model, x, recipe={"refine": []})
    makers = {n.output[0]: n for n in result.model.graph.node}
    values = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    biases = {"c1": normal(5) * 10, "fc": normal(4) * 5}
    scales = set()
    for node in result.model.graph.node:
        if node.name in biases:
            scale_x, scale_w, scale_b = (values[makers[name].input[1]] for name in node.input)
            np.testing.assert_array_equal(scale_b, scale_x * scale_w)
            codes = values[makers[node.input[2]].input[0]]
            assert codes.dtype == np.int32
            np.testing.assert_array_equal(codes, np.rint(biases[node.name] / scale_b.astype(np.float64)))
            scales.add(float(scale_x))
    assert len(scales) == 2
    plain, fused = run(result.model, x)["y"], run(result.model, x, optimize=True)["y"]
    step = float(result.params["f"].scale)  # sums that end near the middle between two codes may go either way
    np.testing.assert_allclose(fused, plain, atol=1.01 * step * np.abs(normal(5, 4)).sum(axis=0).max())


@pytest.mark.parametrize("clamp", ["Relu (a)", "Clip (a, zero, six)"])
def test_a_clamp_stays_where_others_read_what_is_in_front_of_it(clamp: str) -> None:
    model = build(
        f"""g (float[N,3,8,8] x) => (float[N,4,8,8] y) {{
            [c1] a = Conv (x, W1) [clamp] r = {clamp} [c2] b = Conv (r, W2)
            [sum] s = Add (a, b) [c3] y = Conv (s, W3) }}""",
        W1=normal(4, 3, 1, 1), W2=normal(4, 4, 1, 1), W3=normal(4, 4, 1, 1, seed=1),
        zero=np.float32(0), six=np.float32(6),
    )  # fmt: skip
    x = data(32)
    result = onnxq.quantize(model, x)
    assert ops(result.model).count(clamp.split()[0]) == 1
    wanted, found = run(model, x)["y"], run(result.model, x)["y"]
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 30


# ---- nothing to do -----------------------------------------------------------------------------


def assert_passed_through(result: Result) -> None:
    assert not result.changed
    assert result.notes[-1] == "nothing in this model can be quantized: it is passed through unchanged"
    assert result.to_dict()["changed"] is False


def test_a_model_with_nothing_to_quantize_is_copied_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(float_only(), path)
    path.write_bytes(path.read_bytes() + b"\xf2\x3e\x02hi")  # a field no version of ONNX knows
    result = onnxq.quantize(path, {"x": normal(4, 4)})
    assert_passed_through(result)
    assert {d.node: bool(d.reason) for d in result.plan.left_float()} == {"first": True, "second": True}
    out = result.save(tmp_path / "out.onnx")
    assert out.read_bytes() == path.read_bytes()
    assert result.save(path).read_bytes() == out.read_bytes()  # onto itself
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "out.onnx"]


def test_it_needs_no_data_then() -> None:
    result = onnxq.quantize(float_only())
    assert_passed_through(result)
    assert result.samples == 0
    assert ops(result.model) == ["Erf", "Exp"]
    assert metadata(result.model) == {}


def test_a_model_given_as_an_object_is_saved_as_it_was(tmp_path: Path) -> None:
    result = onnxq.quantize(float_only(), {"x": normal(4, 4)})
    out = result.save(tmp_path / "out.onnx")
    assert onnx.load(out).graph == float_only().graph


def test_a_model_that_is_quantized_already(tmp_path: Path) -> None:
    path = onnxq.quantize(net(), data()).save(tmp_path / "q.onnx")
    again = onnxq.quantize(path, data())
    assert_passed_through(again)
    assert any("quantized already" in note for note in again.notes)
    assert again.save(tmp_path / "q2.onnx").read_bytes() == path.read_bytes()


def test_everything_skipped() -> None:
    result = onnxq.quantize(net(), data(), recipe={"skip": ["*"]})
    assert_passed_through(result)
    assert "BatchNormalization" not in ops(result.model)


def test_float16_models_are_told_why() -> None:
    model = build(
        "g (float16[N,4] x) => (float16[N,3] y) { [fc] y = MatMul (x, W) }", W=normal(4, 3).astype(np.float16)
    )
    result = onnxq.quantize(model, {"x": normal(4, 4).astype(np.float16)})
    assert_passed_through(result)
    assert "float16" in result.plan.left_float()[0].reason


# ---- errors ------------------------------------------------------------------------------------


def test_missing_data_is_told_as_itself() -> None:
    with pytest.raises(
        onnxq.DataError, match=r"need calibration data and none were given; give samples \(--data\)"
    ) as caught:
        onnxq.quantize(net())
    assert caught.type is onnxq.DataError
    assert "pass " not in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"z": normal(4, 3, 8, 8)}, "'z' is not an input of the model"),
        ({"x": normal(4, 2, 8, 8)}, "has 2 at axis 1"),
        ({"x": np.full((4, 3, 8, 8), np.nan, np.float32)}, "NaN"),
        ([], "sample"),
    ],
)
def test_data_that_do_not_fit(samples: Any, message: str) -> None:
    with pytest.raises((onnxq.DataError, onnxq.CalibrationError), match=message) as caught:
        onnxq.quantize(net(), samples)
    assert not isinstance(caught.value, onnxq.PassError)


def test_infinity_inside_the_model_is_a_calibration_error_without_a_pass() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { [log] a = Log (x) [fc] y = MatMul (a, W) }", W=normal(4, 4))
    x = np.abs(normal(6, 4)) + 1
    x[4, 1] = 0
    with pytest.raises(onnxq.CalibrationError, match="tensor 'a' holds NaN or infinity; the first node") as caught:
        onnxq.quantize(model, {"x": x})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_unknown_target() -> None:
    with pytest.raises(onnxq.RecipeError, match=r"unknown target 'tensorrd'.*tensorrt"):
        onnxq.quantize(net(), data(), target="tensorrd")


def test_a_name_in_the_recipe_that_matches_nothing() -> None:
    with pytest.raises(onnxq.RecipeError, match=r"'c11' matches nothing in the model.*c1"):
        onnxq.quantize(net(), data(), recipe={"skip": ["c11"]})


@pytest.mark.parametrize("target", ["ort", "tensorrt", "ascend"])
def test_weight_rounding_is_a_step_of_static_recipes(target: str) -> None:
    content = {"target": target, "refine": ["weight_rounding", "bias_correction"]}
    notes = [r.notes for r in onnxq.quantize(net(), data(), recipe=content).reports if r.name == "RoundWeights"]
    assert any("outputs compensated" in note for note in notes[0])
    with pytest.raises(onnxq.RecipeError, match="weight_rounding needs a static scheme"):
        onnxq.quantize(net(), data(), recipe={"scheme": "weight_only", "refine": ["weight_rounding"]})


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(onnxq.ModelError, match="missing"):
        onnxq.quantize(tmp_path / "missing.onnx", data())


def test_a_bug_of_a_pass_keeps_its_traceback() -> None:
    class Broken(onnxq.Instrument):
        def before_pass(self, position: int, step: Any, graph: Any, ctx: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        onnxq.quantize(net(), data(), instruments=[Broken()])


# ---- random data -------------------------------------------------------------------------------


def test_random_data_are_used_only_when_asked_for_by_name() -> None:
    result = onnxq.quantize(net(), recipe={"calibration": {"random": True, "random_samples": 5}})
    assert result.samples == 5
    assert any("random data" in note for note in result.notes)
    assert metadata(result.model)["onnxq.calibration_data"] == "random"
    other = onnxq.quantize(net(), recipe={"calibration": {"random": True, "random_samples": 5, "seed": 1}})
    assert other.model.SerializeToString() != result.model.SerializeToString()
    with pytest.raises(onnxq.RecipeError, match="decide for one"):
        onnxq.quantize(net(), data(), recipe={"calibration": {"random": True}})


# ---- passes ------------------------------------------------------------------------------------


def names(recipe: dict[str, object] | None = None, **options: Any) -> list[str]:
    manager = onnxq.build(onnxq.Recipe.from_dict(recipe or {}), onnxq.get_target("ort"), **options)
    return [step.name for step in manager.passes]


def before(order: list[str], *wanted: str) -> bool:
    places = [order.index(name) for name in wanted]
    return places == sorted(places)


def test_the_default_passes_are_in_the_right_order() -> None:
    order = names()
    assert before(
        order, "AssignNames", "LiftConstants", "FoldConstants", "InferShapes", "FuseBatchNorm", "SelectLayers"
    )
    assert before(order, "NormalizeGemm", "SelectLayers", "Calibrate", "SpreadChannels", "SearchRanges", "ChooseParams")
    assert before(order, "ChooseParams", "CorrectBias", "InsertQdq", "Sweep", "Stamp")
    assert order[-1] == "Stamp"
    assert "EqualizeLayers" not in order
    assert len(set(order)) == len(order)


def test_the_recipe_decides_which_passes_there_are() -> None:
    assert "EqualizeLayers" in names({"equalize": {"enabled": True}})
    assert before(names({"equalize": {"enabled": True}}), "FuseBatchNorm", "EqualizeLayers", "SelectLayers")
    assert "FuseBatchNorm" not in names({"fuse": {"batchnorm": False}})
    assert "SpreadChannels" not in names({"equalize": {"depthwise": False}})
    assert "CorrectBias" not in names({"refine": []})
    assert names({"refine": ["bias_correction", "bias_correction"]}).count("CorrectBias") == 2


def test_every_combination_is_a_possible_order() -> None:
    """The manager checks the facts when it is constructed."""
    for enabled in (True, False):
        for depthwise in (True, False):
            for refine in ([], ["bias_correction"]):
                for fuse in (True, False):
                    if enabled and not fuse:
                        continue
                    recipe = {
                        "equalize": {"enabled": enabled, "depthwise": depthwise},
                        "refine": refine,
                        "fuse": {"batchnorm": fuse},
                    }
                    manager = onnxq.build(onnxq.Recipe.from_dict(recipe), onnxq.get_target("ort"))
                    assert onnxq.Fact.QUANTIZED in manager.provides
                    assert not manager.requires


def test_equalization_without_folding_is_refused() -> None:
    with pytest.raises(onnxq.RecipeError, match=r"^equalize.enabled needs folded weights: set fuse.batchnorm: true"):
        names({"equalize": {"enabled": True}, "fuse": {"batchnorm": False}})


def test_planning_needs_no_data_and_gives_the_same_plan() -> None:
    assert names(plan_only=True)[-1] == "SelectLayers"
    plan = onnxq.plan_model(net()).plan
    result = onnxq.quantize(net(), data())
    assert plan.decisions == result.plan.decisions
    assert [w.node for w in plan.weights] == ["c1", "fc"]
    assert set(plan.activations) == set(result.plan.activations)
    assert "QuantizeLinear" not in ops(onnxq.plan_model(net()).graph)


def test_instruments_see_every_pass() -> None:
    seen: list[tuple[str, int, str]] = []

    class Watch(onnxq.Instrument):
        def before_pass(self, position: int, step: Any, graph: Any, ctx: Any) -> None:
            seen.append(("before", position, step.name))

        def after_pass(self, position: int, step: Any, report: Any, graph: Any, ctx: Any) -> None:
            seen.append(("after", position, step.name))

    timing = Timing()
    result = onnxq.quantize(net(), data(), instruments=[Watch(), timing])
    expected = [(what, i, name) for i, name in enumerate(names()) for what in ("before", "after")]
    assert seen == expected
    assert [name for name, _ in timing.rows] == [r.name for r in result.reports] == names()


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int | None]] = []
    onnxq.quantize(net(), data(30), progress=lambda *values: told.append(values))
    calibrating = [(done, total) for what, done, total in told if what == "calibrating"]
    assert calibrating[-1] == (30, 30)
    assert {"calibrating", "correcting biases"} <= {what for what, _, _ in told}


def test_quantizing_leaves_the_passes_of_a_float_model_alone() -> None:
    """What is fused and normalized on the way computes the same: only Q/DQ may change numbers."""
    model = onnx.load(MODELS / "digits_mobilenet.onnx")
    planned = onnxq.plan_model(model)
    feed = feeds_for(model, dims={"N": 3})
    np.testing.assert_allclose(run(planned.graph, feed)["logits"], run(model, feed)["logits"], rtol=1e-3, atol=1e-4)
    assert "BatchNormalization" not in ops(planned.graph)
