"""Trainable quantizers in a graph: where they are, what they are called, and that they compute what Q/DQ computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxq.context import QuantContext
from onnxq.errors import RecipeError
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, PassManager
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.insert_fake_quant import InsertFakeQuant
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.sweep import Sweep
from tests.graphs import build, normal, run
from tests.passes.ptq import planned

CHOSEN = frozenset({Fact.PLAN, Fact.PARAMS})
NETWORK = """g (float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, W1, b1)
    r = Relu(a)
    p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
    c = Conv (p, W2, b2)
    f = Flatten(c)
    y = Gemm <transB=1> (f, W3, b3)
}"""


def network(**changed: Any) -> onnx.ModelProto:
    weights: dict[str, Any] = {
        "W1": normal(4, 3, 3, 3, seed=1), "b1": normal(4, seed=2), "W2": normal(6, 4, 4, 4, seed=3),
        "b2": normal(6, seed=4), "W3": normal(5, 6, seed=5), "b3": normal(5, seed=6),
    }  # fmt: skip
    return build(NETWORK, **(weights | changed))


def data(count: int = 16) -> NDArray[np.float32]:
    return normal(count, 3, 8, 8, seed=9)


def chosen(
    model: onnx.ModelProto, recipe: dict[str, object] | None = None, feed: Any = None
) -> tuple[GraphModel, QuantContext]:
    graph, ctx = planned(model, data={"x": data()} if feed is None else feed, recipe=recipe)
    steps = [Calibrate(), ChooseParams()]
    PassManager(steps, initial=frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES, Fact.PLAN})).run_each(
        graph, ctx
    )
    return graph, ctx


def learning(graph: GraphModel, ctx: QuantContext) -> GraphModel:
    PassManager([InsertFakeQuant()], initial=CHOSEN).run_each(graph, ctx)
    return graph


def parameters(graph: GraphModel, ctx: QuantContext) -> dict[str, NDArray[np.float32]]:
    names = [n for r in ctx.ranges_learned for n in r.parameters] + [
        s.parameter for s in ctx.scales_learned if s.parameter
    ]
    return {name: np.asarray(graph.value(graph.tensor(name))) for name in names}


def quantized(original: GraphModel, graph: GraphModel, ctx: QuantContext) -> GraphModel:
    """The Q/DQ model with the numbers that the parameters stand for."""
    values, params = parameters(graph, ctx), dict(ctx.params)
    for learned in ctx.ranges_learned:
        params |= dict.fromkeys(learned.keys, learned.grid(values).params(learned.spec))
    for scale in ctx.scales_learned:
        found = scale.params(np.asarray(graph.value(graph.tensor(scale.weight))), values)
        params[scale.key] = params[scale.key] if found is None else found
    ctx.params = params
    PassManager([InsertQdq(), Sweep()], initial=CHOSEN).run_each(original, ctx)
    return original


RECIPES: dict[str, dict[str, object]] = {
    "default": {},
    "pact and arq": {"activations": {"trained": "pact"}, "weights": {"trained": "arq"}},
    "lsq_plus": {"activations": {"trained": "lsq_plus"}},
    "symmetric": {"target": "tensorrt"},
    "symmetric steps": {"target": "tensorrt", "activations": {"trained": "lsq_plus"}, "weights": {"trained": "arq"}},
    "4 bit weights": {"weights": {"bits": 4}},
    "per tensor": {"weights": {"granularity": "per_tensor"}},
    "rates": {"training": {"scale_rate": 3.0, "optimizer": "sgd"}},
    "asymmetric weights": {"weights": {"type": "uint8", "symmetric": False, "granularity": "per_tensor"}},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_computes_what_the_quantized_model_computes(recipe: dict[str, object]) -> None:
    graph, ctx = chosen(network(), recipe)
    original = graph.copy()
    found = run(learning(graph, ctx).to_proto(), {"x": data(4)}, optimize=False)["y"]
    expected = run(quantized(original, graph, ctx).to_proto(), {"x": data(4)}, optimize=False)["y"]
    step = np.abs(expected).max() / 255
    assert np.abs(found - expected).max() <= 2 * step
    assert np.median(np.abs(found - expected)) <= 1e-5 * np.abs(expected).max()


def test_parameters_begin_where_calibration_ended() -> None:
    graph, ctx = chosen(network())
    learning(graph, ctx)
    values = parameters(graph, ctx)
    for learned in ctx.ranges_learned:
        params = ctx.params[learned.keys[0]]
        assert float(learned.grid(values).step) == pytest.approx(float(params.scale), rel=1e-5)
    for scale in ctx.scales_learned:
        trained = scale.params(np.asarray(graph.value(graph.tensor(scale.weight))), values)
        assert trained is not None
        np.testing.assert_allclose(trained.scale, ctx.params[scale.key].scale, rtol=1e-5)


def test_given_ends_are_taken() -> None:
    recipe = {"activations": {"trained": {"name": "ulq", "clip_max": 6.0, "clip_min": -6.0, "fixed_min": True}}}
    graph, ctx = chosen(network(), recipe)
    values = parameters(learning(graph, ctx), ctx)
    for learned in ctx.ranges_learned:
        assert learned.fixed_min
        assert len(learned.parameters) == 1
        assert float(learned.grid(values).high) == pytest.approx(6.0)


def test_a_relu_fixes_the_lower_end_and_a_shared_range_is_one() -> None:
    graph, ctx = chosen(network())
    learning(graph, ctx)
    by_key = {key: r for r in ctx.ranges_learned for key in r.keys}
    assert by_key["r"].fixed_min
    assert not by_key["x"].fixed_min
    assert by_key["r"] is by_key["p"]
    assert [r.parameters for r in ctx.ranges_learned if r.group == "r"] == [("r.clip_max",)]
    names = {n.name for n in graph.nodes()}
    assert "r/fake_quant/round" in names
    assert "p/fake_quant/round" not in names  # the pool picks values that are rounded already


def test_a_shared_weight_has_one_quantizer() -> None:
    text = "g (float[N,4] x) => (float[N,4] z) { y = MatMul(x, W) z = MatMul(y, W) }"
    graph, ctx = chosen(build(text, W=normal(4, 4)), feed={"x": normal(8, 4)})
    learning(graph, ctx)
    assert [s.key for s in ctx.scales_learned] == ["W"]
    assert sum(n.name.startswith("W/fake_quant/round") for n in graph.nodes()) == 1
    first, second = graph.nodes("MatMul")
    assert first.inputs[1] is second.inputs[1]


def test_outputs_keep_their_names() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = MatMul(x, W) z = MatMul(y, V) }"
    graph, ctx = chosen(build(text, W=normal(4, 4), V=normal(4, 4, seed=1)), feed={"x": normal(8, 4)})
    learning(graph, ctx)
    assert [t.name for t in graph.outputs] == ["y", "z"]
    assert set(run(graph.to_proto(), {"x": normal(2, 4)})) == {"y", "z"}


def test_blocks_are_refused() -> None:
    recipe = {"weights": {"granularity": {"per_block": {"size": 2}}}}
    graph, ctx = chosen(build("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, W) }", opset=21, ir_version=10,
                              W=normal(4, 4)), recipe, {"x": normal(8, 4)})  # fmt: skip
    with pytest.raises(RecipeError, match="blocks cannot be trained"):
        InsertFakeQuant().run(graph, ctx)
