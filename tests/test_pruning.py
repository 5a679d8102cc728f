"""`onnxq.prune`, what it says of costs, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxq
from onnxq.cli.app import app
from onnxq.costs import model_cost
from onnxq.errors import RecipeError
from onnxq.modelio import load_model, save_model
from onnxq.pruning import sparing
from onnxq.recipe import Recipe
from tests.bundled import FEED_FORWARD
from tests.graphs import build, feeds_for, graph_of, normal, run
from tests.passes.masked import masked

MODELS = Path(__file__).parents[1] / "models"
CNN = MODELS / "digits_cnn.onnx"
HALF: dict[str, Any] = {"prune": {"kind": "channels", "ratio": 0.5}}


def command(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize("path", FEED_FORWARD, ids=lambda p: p.stem)
def test_bundled_models_are_what_they_were_with_channels_masked(path: Path) -> None:
    result = onnxq.prune(path, recipe=HALF)
    onnx.checker.check_model(result.model, full_check=True)
    before = onnx.load(path)
    rng = np.random.default_rng(0)
    feed = {"image": rng.uniform(0, 1, (3, 1, 8, 8)).astype(np.float32)}
    kept = {}
    for layer in result.layers:
        if layer.after < layer.before:
            kept[layer.node] = _kept(before, result.model, layer.node)
    assert len(kept) >= 2
    expected, found = run(masked(before, kept, feed), feed), run(result.model, feed)
    scale = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-5 * scale)


def _kept(before: onnx.ModelProto, after: onnx.ModelProto, name: str) -> Any:
    """The rows of the old bias or norm that are left, found by their numbers."""

    def rows(model: onnx.ModelProto) -> Any:
        node = next(n for n in model.graph.node if n.name == name)
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        values = constants[node.input[1]]
        if node.op_type == "MatMul":
            values = values.T
        return values.astype(np.float64)

    old, new = rows(before), rows(after)
    order, position = [], 0
    for row in new:  # rows are kept in order; input channels may be gone as well, so that sets of numbers are compared
        wanted = set(row.reshape(-1).tolist())
        while not wanted <= set(old[position].reshape(-1).tolist()):
            position += 1
        order.append(position)
        position += 1
    return np.asarray(order)


def test_what_costs_what() -> None:
    graph = graph_of(
        "g (float[N,3,8,8] x) => (float[N,5] y) { a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, A, ab) r = Relu(a)"
        " d = Conv <group=8> (r, D) u = ConvTranspose(d, U) m = GlobalAveragePool(u) f = Flatten(m)"
        " y = Gemm <transB=1> (f, G, gb) }",
        A=normal(8, 3, 3, 3), ab=normal(8), D=normal(8, 1, 3, 3), U=normal(8, 6, 2, 2), G=normal(5, 6), gb=normal(5),
    )  # fmt: skip
    shapes = {"a": (4, 4), "d": (2, 2), "u": (3, 3)}
    assert shapes["u"] == (3, 3)
    from onnxq.passes.infer_shapes import InferShapes
    from tests.graphs import apply, context

    apply(graph, InferShapes(), ctx=context())
    cost = model_cost(graph)
    macs = {n.op_type + str(i): n.macs for i, n in enumerate(cost.nodes)}
    assert macs["Conv0"] == 8 * 16 * 27
    assert macs["Conv2"] == 8 * 4 * 9
    assert macs["ConvTranspose3"] == 8 * 4 * 6 * 4
    assert macs["Gemm6"] == 30
    assert cost.parameters == 8 * 27 + 8 + 72 + 8 * 6 * 4 + 30 + 5
    assert cost.elementwise == 128 + 128 + 6 + 5  # biases, Relu, pooling
    assert cost.flops == 2 * cost.macs + cost.elementwise
    assert model_cost(graph, sizes={"N": 3}).macs == 3 * cost.macs


def test_recurrent_layers_count_every_step() -> None:
    graph = graph_of(
        "g (float[7,2,3] x) => (float[7,1,2,5] y) { y = LSTM <hidden_size=5> (x, W, R) }",
        W=normal(1, 20, 3), R=normal(1, 20, 5),
    )  # fmt: skip
    assert model_cost(graph).macs == 7 * 2 * (20 * 3 + 20 * 5)


def test_weights_in_files_are_pruned(tmp_path: Path) -> None:
    model = build("g (float[N,64] x) => (float[N,3] y) { a = MatMul(x, A) r = Relu(a) y = MatMul(r, B) }",
                  A=normal(64, 512), B=normal(512, 3))  # fmt: skip
    save_model(onnxq.GraphModel.from_proto(model), tmp_path / "m.onnx", external_data=True)
    result = onnxq.prune(tmp_path / "m.onnx", recipe=HALF)
    result.save(tmp_path / "p.onnx")
    assert (tmp_path / "p.onnx.data").stat().st_size < 0.51 * (tmp_path / "m.onnx.data").stat().st_size
    feed = feeds_for(model)
    found = run(load_model(tmp_path / "p.onnx").to_proto(), feed)["y"]
    a, b = normal(64, 512), normal(512, 3)
    norms = np.linalg.norm(a, axis=0)
    best = np.sort(np.argsort(-norms, kind="stable")[:256])
    np.testing.assert_allclose(found, np.maximum(feed["x"] @ a[:, best], 0) @ b[best], rtol=1e-4, atol=1e-4)


def test_a_recipe_that_prunes_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="the recipe prunes nothing: give it prune"):
        onnxq.prune(CNN, recipe=Recipe())
    with pytest.raises(RecipeError, match="'block1/first/con' matches nothing in the model; did you mean"):
        onnxq.prune(CNN, recipe={"rules": [{"match": {"node": "block1/first/con"}, "prune": "2:4"}]})


def test_layers_can_be_spared() -> None:
    recipe = sparing(Recipe.from_dict(HALF), CNN, ["block1*", "Gemm"])
    layers = {layer.node: layer for layer in onnxq.prune(CNN, recipe=recipe).layers}
    assert layers["block1/first/conv"].after == layers["block1/first/conv"].before
    assert layers["block2/first/conv"].after < layers["block2/first/conv"].before
    with pytest.raises(RecipeError, match="matches nothing"):
        sparing(Recipe.from_dict(HALF), CNN, ["no such layer"])


def test_the_command(tmp_path: Path) -> None:
    done = command("prune", CNN, "-o", tmp_path / "p.onnx", "--ratio", 0.5, "--multiple", 8, "--json",
                   "--recipe-out", tmp_path / "r.yaml")  # fmt: skip
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["changed"]
    assert 0.2 < content["after"]["flops"] / content["before"]["flops"] < 0.5
    assert {layer["after"] % 8 for layer in content["layers"] if layer["after"] < layer["before"]} == {0}
    again = onnxq.prune(CNN, recipe=tmp_path / "r.yaml")
    assert again.model.SerializeToString() == load_model(tmp_path / "p.onnx").to_proto().SerializeToString()


def test_two_of_four_and_skip(tmp_path: Path) -> None:
    done = command("prune", CNN, "-o", tmp_path / "p.onnx", "--two-of-four", "--skip", "block3*", "--json")
    layers = {layer["node"]: layer for layer in json.loads(done.stdout)["layers"]}
    assert layers["block2/first/conv"]["sparse"]
    assert layers["block3/first/conv"]["reason"] == "the recipe does not prune it"
    weight = load_model(tmp_path / "p.onnx")
    values = np.moveaxis(weight.value(weight.node("block2/first/conv").inputs[1]), 1, -1).reshape(-1, 4)
    assert ((values != 0).sum(axis=1) == 2).all()


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    out = tmp_path / "p.onnx"
    for words, text in (
        (["--two-of-four", "--ratio", 0.5], "--two-of-four keeps all channels"),
        (["--data", CNN], "--data has an effect with --target-flops"),
        (["--target-flops", 0.5], "need samples"),
        (["--target-flops", 0.5, "--target-latency", 0.5], "exclude each other"),
        (["--ratio", 1.5], "ratio"),
        (["--skip", "nothing*"], "matches nothing"),
    ):
        done = command("prune", CNN, "-o", out, *words)
        assert done.exit_code == 2, done.output
        assert text in done.stderr
        assert not out.exists()
