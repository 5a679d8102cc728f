"""Whole models: what is trained computes what the model does, its gradients are right, and a step can be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.errors import OnnxqError
from onnxq.qat._trainable import trainable
from onnxq.qat.artifacts import create
from onnxq.qat.losses import add_loss
from onnxq.qat.trainer import QatTrainer, TrainOptions
from onnxq.qat.worker_client import Worker
from onnxq.recipe import Recipe
from tests.bundled import FILES, samples
from tests.graphs import build, deviation, normal, positive, run
from tests.qat.finite_differences import check_gradients
from tests.qat.legal_case import F32, legal, prepared

MODELS = Path(__file__).parents[2] / "models"
DATA = MODELS / "data"
IMAGES = {"image": normal(3, 1, 8, 8)}
SMOOTH = build(
    """g (float[N,2,6,6] x) => (float[N,3] y) {
        c = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, cw, cb)
        i = InstanceNormalization(c, iw, ib)
        s = Softplus(i)
        t = ConvTranspose<strides=[2,2],pads=[1,1,1,1],output_padding=[1,1]>(s, tw)
        e = Mish(t)
        r = Resize<mode="linear">(e, , scales)
        d = DepthToSpace<blocksize=2>(r)
        a, b = Split<axis=1>(d, parts)
        m = Mul(a, b)
        v = GlobalAveragePool(m)
        f = Flatten(v)
        k = Where(mask, f, other)
        y = Gemm<transB=1>(k, gw, gb)
    }""",
    opset=18, cw=normal(4, 2, 3, 3, scale=0.3), cb=normal(4), iw=positive(4), ib=normal(4),
    tw=normal(4, 8, 3, 3, scale=0.3), scales=F32([1, 1, 4 / 3, 4 / 3]), parts=np.int64([1, 1]),
    mask=np.array([[True]]), other=normal(1), gw=normal(3, 1), gb=normal(3),
)  # fmt: skip


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "pairs_answer"], ids=lambda p: p.stem)
def test_bundled_models_stay_what_they_are(path: Path) -> None:
    model = onnx.load(path)
    graph = legal(model, trainable(prepared(model)))
    feed = samples(path, count=3)
    assert deviation(run(model, feed), run(graph, feed)) < 2e-6
    before = {t.name for t in model.graph.initializer}
    after = {t.name for t in graph.constants()}
    assert {name for name in trainable(prepared(model)) if name in before} <= after


def test_an_if_of_a_bundled_model_is_refused_by_name() -> None:
    model = onnx.load(MODELS / "pairs_answer.onnx")
    names = trainable(prepared(model))
    with pytest.raises(OnnxqError, match=r"^1 nodes .*'features/squeeze' \(If\): gradients cannot enter its body"):
        legal(model, names)
    behind = tuple(name for name in names if name.startswith("compare/"))
    assert {"compare/slope", "compare/dense/bias"} <= set(behind)
    graph = legal(model, behind)
    feed = samples(MODELS / "pairs_answer.onnx", count=3)
    assert deviation(run(model, feed), run(graph, feed)) < 2e-6


@pytest.mark.parametrize("name", ["digits_transformer", "digits_transformer_opset11"])
def test_gradients_of_a_transformer(worker: Worker, name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    names = trainable(prepared(model))
    graph = legal(model, names)
    chosen = names[:: max(1, len(names) // 8)]
    assert len(chosen) >= 8
    check_gradients(worker, model, graph, chosen, IMAGES, smallest=1.0)


def test_gradients_of_a_network_of_what_is_rewritten(worker: Worker) -> None:
    names = trainable(prepared(SMOOTH))
    assert {"cw", "cb", "iw", "ib", "tw", "gw"} <= set(names)
    feed = {"x": normal(3, 2, 6, 6)}
    graph = legal(SMOOTH, names)
    assert deviation(run(SMOOTH, feed), run(graph, feed)) < 2e-6
    check_gradients(worker, SMOOTH, graph, names, feed, smallest=0.01)


def test_binary_cross_entropy_of_codes_that_are_0(worker: Worker) -> None:
    model = build("g (float[5] x) => (float[5] y) { y = Identity(x) }")
    add_loss(model, Recipe.from_dict({"training": {"loss": "bce"}}).training)
    x, labels = F32([-3, 0, 0, 1e-3, 90]), F32([0, 0, 1, 1, 0.5])
    found = worker.gradient(model.SerializeToString(), ("x",), {"x": x, "labels": labels})["x"]
    np.testing.assert_allclose(found, (1 / (1 + np.exp(-x)) - labels) / 5, rtol=1e-5, atol=1e-7)


LOSSES = {
    "HardSwish": "g (float[N,10] logits, float[N,1] weight) => (float loss) "
    "{ h = HardSwish(logits) m = Mul(h, weight) loss = ReduceL2<keepdims=0>(m) }",
    "Atan": "g (float[N,10] logits) => (float loss) { a = Atan(logits) loss = ReduceMean<keepdims=0>(a) }",
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_users_are_looked_at_as_well(overlay: object, tmp_path: Path, name: str) -> None:
    path = tmp_path / "loss.onnx"
    onnx.save(build(LOSSES[name], opset=17), path)
    recipe = {"training": {"loss": {"kind": "model", "path": str(path)}}}
    network = MODELS / "digits_mobilenet.onnx"
    if name == "Atan":
        with pytest.raises(OnnxqError, match=r"\(Atan\): the training runtime has no verified gradient"):
            create(network, DATA / "digits_calib.npz", tmp_path / "artifacts", recipe=recipe)
        return
    made = create(network, DATA / "digits_calib.npz", tmp_path / "artifacts", recipe=recipe)
    with Worker() as worker:
        worker.open(made.directory)
        feeds = {"image": normal(4, 1, 8, 8), "weight": np.ones((4, 1), np.float32)}
        losses = [worker.train_step(feeds, 1e-3).loss for _ in range(3)]
    assert losses[2] < losses[0]


@pytest.mark.parametrize("name", ["digits_transformer", "digits_transformer_opset11", "digits_mobilenet_opset11"])
def test_bundled_models_learn(overlay: object, tmp_path: Path, name: str) -> None:
    create(MODELS / f"{name}.onnx", DATA / "digits_calib.npz", tmp_path)
    with np.load(DATA / "digits_train.npz", allow_pickle=False) as data:
        few = {key: data[key][:256] for key in data.files}
    losses = [p.loss for p in QatTrainer(tmp_path, TrainOptions(epochs=3, learning_rate=1e-3)).fit(few)]
    assert losses[-1] < losses[0]
