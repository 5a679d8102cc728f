"""MatchMeans: corrections equal those of a slow reference that feeds each layer with its own float input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxq.passes.match_means as match_means
from onnxq.algos.affine import fake_quantize
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.match_means import MatchMeans
from onnxq.pipeline import quantize
from onnxq.recipe import Recipe
from onnxq.spec import QuantParams
from tests.graphs import apply, build, normal, run
from tests.passes.ptq import planned

MINMAX = {"activations": {"method": "minmax"}}

NET = """g (float[N,3,6,6] x) => (float[N,7] y) {
    [c1] a = Conv <pads=[1,1,1,1]> (x, W1, B1)
    r = Relu (a)
    [c2] b = Conv <strides=[2,2], group=2> (r, W2)
    [up] u = ConvTranspose <strides=[2,2]> (b, W3, B3)
    s = Relu (u)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    [fc] g = Gemm <transB=1> (f, W4, B4)
    h = Relu (g)
    [mm] m = MatMul (h, W5)
    [plus] y = Add (m, B5) }"""


def net() -> onnx.ModelProto:
    return build(
        NET,
        W1=normal(4, 3, 3, 3), B1=normal(4), W2=normal(6, 2, 3, 3), W3=normal(6, 5, 2, 2), B3=normal(5),
        W4=normal(8, 5), B4=normal(8), W5=normal(8, 7), B5=normal(7),
    )  # fmt: skip


def prepared(model: onnx.ModelProto, feeds: Any, *, threads: int = 1, **recipe: Any) -> Any:
    graph, ctx = planned(model, data=feeds, recipe={**MINMAX, **recipe}, threads=threads)
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    return graph, ctx


FORCED = {"rules": [{"match": {"node": "up"}, "quantize": True}]}


def values(model: onnx.ModelProto, feed: Any, names: list[str]) -> dict[str, Any]:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return run(wide, feed)


def conv(x: Any, w: Any, *, pads: int = 0, stride: int = 1, groups: int = 1) -> Any:
    """A convolution of one sample, (Cin, H, W), by its definition."""
    x = np.pad(x, ((0, 0), (pads, pads), (pads, pads)))
    size = (x.shape[1] - w.shape[2]) // stride + 1
    out = np.zeros((w.shape[0], size, size))
    per_group, inputs = w.shape[0] // groups, w.shape[1]
    for o in range(w.shape[0]):
        part = x[o // per_group * inputs :][:inputs]
        for i, j in np.ndindex(size, size):
            rows, columns = slice(i * stride, i * stride + w.shape[2]), slice(j * stride, j * stride + w.shape[3])
            out[o, i, j] = (part[:, rows, columns] * w[o]).sum()
    return out


def upsample(x: Any, w: Any) -> Any:
    """A transposed convolution of one sample with stride 2 and a 2 x 2 kernel."""
    out = np.zeros((w.shape[1], 2 * x.shape[1], 2 * x.shape[2]))
    for i, j in np.ndindex(x.shape[1:]):
        out[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] += np.einsum("c,cokl->okl", x[:, i, j], w)
    return out


LAYERS: dict[str, tuple[str, str, Any]] = {
    "c1": ("x", "W1", lambda x, w: conv(x, w, pads=1).mean((1, 2))),
    "c2": ("r", "W2", lambda x, w: conv(x, w, stride=2, groups=2).mean((1, 2))),
    "up": ("b", "W3", lambda x, w: upsample(x, w).mean((1, 2))),
    "fc": ("f", "W4", lambda x, w: w @ x),
    "mm": ("h", "W5", lambda x, w: x @ w),
}
BIASES = {"c1": "B1", "c2": "", "up": "B3", "fc": "B4", "mm": "B5"}
"""`mm` and the Add behind it are one Gemm when the plan is made."""


def reference(model: onnx.ModelProto, x: Any, ctx: Any) -> dict[str, Any]:
    """The shift of each layer: sample by sample, every layer by loops and in float64."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    plans = {w.node: w for w in ctx.plan.weights}
    total = {name: np.float64(0) for name in LAYERS}
    for sample in x:
        found = values(model, {"x": sample[None]}, ["r", "b", "f", "h"]) | {"x": sample[None]}
        for name, (source, weight, mean) in LAYERS.items():
            plan = plans[name]
            rounded = fake_quantize(found[source], ctx.params[plan.input_key])[0]
            coded = fake_quantize(weights[weight], ctx.params[plan.key])
            value = found[source][0].astype(np.float64)
            total[name] = total[name] + mean(value, weights[weight]) - mean(rounded.astype(np.float64), coded)
    return {name: t / len(x) for name, t in total.items()}


def biases(graph: Any) -> dict[str, Any]:
    return {layer: np.asarray(graph.value(graph.node(layer).inputs[2])) for layer in BIASES}


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("inline", [True, False])
def test_corrections_are_those_of_the_slow_reference(inline: bool, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not inline:
        monkeypatch.setattr(match_means, "_MOST_WEIGHTS", 64)  # every layer in a run of its own
    model, x = net(), normal(9, 3, 6, 6)
    method = {"name": "percentile", "percentile": 99.0}  # cuts values off, so that the last code of all counts
    graph, ctx = prepared(model, {"x": x}, **FORCED, activations={"bits": bits, "method": method})
    expected = reference(model, x, ctx)
    report = apply(graph, MatchMeans(), ctx=ctx)
    assert report.changed == 5
    assert report.notes == ("5 biases corrected over 9 samples, each layer fed with its own float input",)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for layer, bias in biases(graph).items():
        old = BIASES[layer]
        shift = bias - (weights[old] if old else 0)
        np.testing.assert_allclose(shift, expected[layer], atol=2e-6 * max(1, np.abs(bias).max()), rtol=1e-3)
        assert np.abs(expected[layer]).max() > 1e-4


def test_only_so_many_samples_are_run() -> None:
    model, x = net(), normal(9, 3, 6, 6)
    graph, ctx = prepared(model, {"x": x})
    few, ctx_few = prepared(model, {"x": x})
    for weight in ctx_few.plan.weights:
        assert ctx.params[weight.key].scale.tobytes() == ctx_few.params[weight.key].scale.tobytes()
    apply(graph, MatchMeans(4), ctx=ctx)
    ctx_few.reader = planned(model, data={"x": x[:4]}, recipe=MINMAX)[1].reader
    apply(few, MatchMeans(), ctx=ctx_few)
    assert all(np.array_equal(a, b) for a, b in zip(_three(graph), _three(few), strict=True))


def _three(graph: Any) -> list[Any]:
    return [np.asarray(graph.value(graph.node(n).inputs[2])) for n in ("c1", "c2", "fc")]


def test_neither_batches_nor_threads_change_a_bit() -> None:
    model, x = net(), normal(21, 3, 6, 6)
    found = []
    for size, threads in ((1, 1), (4, 2), (21, 3)):
        graph, ctx = prepared(model, [{"x": x[i : i + size]} for i in range(0, len(x), size)], threads=threads)
        apply(graph, MatchMeans(), ctx=ctx)
        found.append([b.tobytes() for b in _three(graph)])
    assert found[0] == found[1] == found[2]


def test_a_product_of_sequences_is_corrected_in_the_add_behind_it() -> None:
    model = build(
        "g (float[N,5,8] x) => (float[N,5,6] y) { [mm] m = MatMul (x, W) [plus] y = Add (B, m) }",
        W=normal(8, 6), B=normal(6),
    )  # fmt: skip
    x = normal(11, 5, 8)
    graph, ctx = prepared(model, {"x": x})
    apply(graph, MatchMeans(), ctx=ctx)
    plan = ctx.plan.weights[0]
    w = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    rounded = fake_quantize(x, ctx.params[plan.input_key]).astype(np.float64) @ fake_quantize(
        w.astype(np.float32), ctx.params[plan.key]
    )
    expected = (x @ w - rounded).mean((0, 1))
    shift = np.asarray(graph.value(graph.node("plus").inputs[0])) - onnx.numpy_helper.to_array(
        model.graph.initializer[1]
    )
    np.testing.assert_allclose(shift, expected, atol=1e-6)


def test_a_product_without_an_add_is_left_alone() -> None:
    model = build("g (float[N,8] x) => (float[N,6] y) { [mm] y = MatMul (x, W) }", W=normal(8, 6))
    graph, ctx = prepared(model, {"x": normal(4, 8)})
    report = apply(graph, MatchMeans(), ctx=ctx)
    assert report.changed == 0
    assert [(s.node, s.reason) for s in report.skipped] == [("mm", "MatMul has no bias that could be corrected")]


def test_a_bias_whose_code_would_be_too_large_is_left_as_it_was() -> None:
    model = build("g (float[N,3,4,4] x) => (float[N,2,4,4] y) { [c] y = Conv (x, W, B) }",
                  W=normal(2, 3, 1, 1), B=np.float32([0.5, -50]))  # fmt: skip
    graph, ctx = prepared(model, {"x": normal(6, 3, 4, 4)})
    plan = ctx.plan.weights[0]
    params = ctx.params[plan.key]
    tiny = np.array([params.scale[0], 50 / float(ctx.params[plan.input_key].scale) / (0.7 * 2**31)], np.float32)
    ctx.params[plan.key] = QuantParams(params.spec, tiny, params.zero_point)
    report = apply(graph, MatchMeans(), ctx=ctx)
    bias = np.asarray(graph.value(graph.node("c").inputs[2]))
    assert bias[0] != np.float32(0.5)
    assert bias[1] == np.float32(-50)
    assert report.notes[0] == "c: 1 biases left as they were: their codes would be too large"


def test_recipe_asks_for_it_and_the_mean_of_the_outputs_is_kept() -> None:
    model = build("g (float[N,3,6,6] x) => (float[N,5,4,4] y) { [c] y = Conv (x, W) }", W=_rounded_down())
    x = np.abs(normal(16, 3, 6, 6))
    expected = run(model, {"x": x})["y"].mean((0, 2, 3))
    errors = {}
    for name, refine in (("none", []), ("float", [{"kind": "bias_correction", "inputs": "float"}])):
        result = quantize(model, {"x": x}, recipe={**MINMAX, "refine": refine}, threads=1)
        errors[name] = np.abs(run(result.model, {"x": x})["y"].mean((0, 2, 3)) - expected).max()
    assert errors["float"] < 0.1 * errors["none"]


def _rounded_down() -> Any:
    w = np.random.default_rng(3).integers(-20, 21, (5, 3, 3, 3)) + 0.4
    w.reshape(5, -1)[:, 0] = 127
    return (w / 127).astype(np.float32)


def test_the_recipe_keeps_what_it_says() -> None:
    recipe = Recipe.from_dict({"refine": [{"kind": "bias_correction", "inputs": "float"}]})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    few = Recipe.from_dict({"refine": [{"kind": "bias_correction", "inputs": "float", "samples": 7}]})
    assert few.digest() != recipe.digest()
