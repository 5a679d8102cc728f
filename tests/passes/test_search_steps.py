"""SearchSteps in whole models: every layer has the error that was wanted, auto_tune keeps the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.algos.weight.codes import decode, encode
from onnxq.algos.weight.init_scale import mean_cosine
from onnxq.errors import CalibrationError, DataError, GraphError
from onnxq.pipeline import Result
from tests.graphs import build, normal, run

MODELS = Path(__file__).resolve().parents[2] / "models"
CALIBRATION = MODELS / "data" / "digits_calib.npz"
NAMES = ("digits_cnn", "digits_mobilenet", "digits_transformer")
NET = """g (float[N,16] x) => (float[N,12] y) {
    [a] p = MatMul(x, W) [r] q = Relu(p) [b] s = MatMul(q, V) [c] y = Gemm(s, U) }"""


def net(**constants: Any) -> onnx.ModelProto:
    return build(NET, **({"W": normal(16, 64), "V": normal(64, 64), "U": normal(64, 12)} | constants))


def mixed(**fields: Any) -> dict[str, Any]:
    return {"scheme": {"kind": "weight_only", "mixed": fields}}


def errors(result: Result) -> dict[str, float]:
    """Relative error of every weight, from the float model and the codes alone."""
    assert result.prepared is not None
    found = {}
    for plan in result.plan.weights:
        w = np.asarray(result.prepared.value(result.prepared.node(plan.node).inputs[plan.index]))
        codes = result.weight_codes[plan.key]
        gap = (decode(encode(w, codes), codes) - w).astype(np.float64)
        found[plan.key] = float(np.linalg.norm(gap) / np.linalg.norm(w.astype(np.float64)))
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wanted", [0.02, 0.1])
def test_every_layer_has_the_error_that_was_wanted(name: str, wanted: float) -> None:
    result = onnxq.quantize(MODELS / f"{name}.onnx", recipe=mixed(init_scale=wanted))
    assert len(result.steps) >= 8
    for key, error in errors(result).items():
        step = result.steps[key]
        assert error == pytest.approx(wanted, rel=0.01)
        assert step.error == pytest.approx(error, rel=1e-3)
        assert 0 < step.entropy <= step.bits == result.weight_codes[key].bits


def test_the_width_follows_from_the_error() -> None:
    fine, coarse = (onnxq.quantize(net(), recipe=mixed(init_scale=e)) for e in (0.005, 0.1))
    assert all(fine.steps[k].bits > coarse.steps[k].bits for k in fine.steps)
    assert len(fine.model.SerializeToString()) > len(coarse.model.SerializeToString())
    notes = " ".join(coarse.notes)
    assert "bits wide on average, their entropy is" in notes


def test_the_model_computes_with_decoded_weights() -> None:
    result = onnxq.quantize(
        build("g (float[N,9] x) => (float[N,8] y) { y = MatMul(x, W) }", W=normal(9, 8)), recipe=mixed()
    )
    codes = result.weight_codes["W"]
    expected = decode(encode(normal(9, 8), codes), codes)
    np.testing.assert_array_equal(run(result.model, {"x": np.eye(9, dtype=np.float32)})["y"], expected)


def test_a_weight_that_would_need_too_many_bits_gets_eight() -> None:
    v = normal(64, 64)
    v[0, 0] = 1e5
    result = onnxq.quantize(net(V=v), recipe=mixed(init_scale=2e-4))
    codes = result.weight_codes["V"]
    assert (codes.bits, codes.low, codes.axis) == (8, -128, 1)
    assert "bits would be needed" in result.steps["V"].reason
    assert any("need more than 16 bits" in note and "V" in note for note in result.notes)
    assert result.weight_codes["W"].axis is None


def test_weights_that_are_not_finite_name_their_node() -> None:
    with pytest.raises(GraphError, match=r"weight 'V' of node 'b': .*NaN"):
        onnxq.quantize(net(V=np.full((64, 64), np.nan, np.float32)), recipe=mixed())


# ---- auto_tune ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_cnn", "digits_transformer"])
@pytest.mark.parametrize("correction", [True, False])
def test_auto_tune_keeps_the_cosine_of_the_outputs(name: str, correction: bool) -> None:
    recipe = mixed(auto_tune=True)
    recipe["scheme"]["correction"] = correction
    path = MODELS / f"{name}.onnx"
    result = onnxq.quantize(path, CALIBRATION, recipe=recipe)
    assert result.samples == 1
    with np.load(CALIBRATION, allow_pickle=False) as data:
        feed = {"image": data["image"][:1]}
    before, after = (list(run(m, feed).values()) for m in (onnx.load(path), result.model))
    assert 0.995 - 1e-5 <= mean_cosine(before, after) < 0.99999
    assert sum(s.entropy * s.elements for s in result.steps.values()) < 7 * sum(
        s.elements for s in result.steps.values()
    )
    assert any("auto_tune: init_scale 1/" in note for note in result.notes)


def test_auto_tune_without_data_takes_random_numbers_and_always_the_same() -> None:
    one, two = (onnxq.quantize(net(), recipe=mixed(auto_tune=True), threads=t) for t in (1, 2))
    assert one.model.SerializeToString() == two.model.SerializeToString()
    assert one.samples == 0
    other = onnxq.quantize(net(), recipe=mixed(auto_tune=True) | {"calibration": {"seed": 5}})
    assert {k: s.step for k, s in other.steps.items()} != {k: s.step for k, s in one.steps.items()}


def test_auto_tune_takes_one_sample_only() -> None:
    given: list[int] = []

    def samples() -> Any:
        for number in range(50):
            given.append(number)
            yield {"x": normal(1, 16, seed=number)}

    assert onnxq.quantize(net(), samples, recipe=mixed(auto_tune=True)).samples == 1
    assert set(given) <= {0, 1}


def test_auto_tune_wants_data_that_fit() -> None:
    with pytest.raises(DataError, match="'x'"):
        onnxq.quantize(net(), {"x": normal(2, 15)}, recipe=mixed(auto_tune=True))
    free = build("g (float[N,M,16] x) => (float[N,M,64] y) { y = MatMul(x, W) }", W=normal(16, 64))
    with pytest.raises(DataError, match=r"x\[1\]"):
        onnxq.quantize(free, recipe=mixed(auto_tune=True))


def test_auto_tune_that_finds_nothing_says_what_to_do() -> None:
    """The outputs are nothing but rounding errors."""
    text = "g (float[N,16] x) => (float[N,8] y) { a = MatMul(x, W) b = MatMul(x, V) y = Sub(a, b) }"
    w = normal(16, 8)
    close = (w + normal(16, 8, seed=3, scale=1e-4)).astype(np.float32)
    with pytest.raises(CalibrationError, match=r"no init_scale gives outputs with a mean cosine of 0\.995.*skip"):
        onnxq.quantize(build(text, W=w, V=close), recipe=mixed(auto_tune=True))


def test_recurrent_layers_and_tables_are_tuned_too() -> None:
    text = """g (int64[N,5] i) => (float[5,1,N,3] y) {
        e = Gather(E, i) t = Transpose <perm=[1,0,2]> (e) y = LSTM <hidden_size=3> (t, W, R) }"""
    model = build(text, E=normal(9, 6), W=normal(1, 12, 6), R=normal(1, 12, 3))
    result = onnxq.quantize(model, recipe=mixed(auto_tune=True))
    assert set(result.steps) == {"E", "W", "R"}
