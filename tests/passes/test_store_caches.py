"""Caches of a decoder as codes: what is given, joined and given back, and what stays as it is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.passes.store_caches import METADATA
from onnxq.runtime import make_session
from tests.bundled import MODELS, samples
from tests.graphs import build, normal

CONSTANTS = {"K": normal(4, 6), "V": normal(4, 6, seed=2), "Q": normal(4, 6, seed=3), "O": normal(6, 4, seed=4)}
DECODER = """g (float[N,t,4] x, float[N,p,6] past_k, float[N,p,6] past_v)
    => (float[N,t,4] y, float[N,q,6] key, float[N,q,6] value) {
    k = MatMul(x, K) v = MatMul(x, V) a = MatMul(x, Q)
    [join_k] key = Concat <axis=1> (past_k, k) [join_v] value = Concat <axis=1> (past_v, v)
    z = Transpose <perm=[0,2,1]> (key) s = MatMul(a, z) w = Softmax <axis=-1> (s) m = MatMul(w, value)
    y = MatMul(m, O) }"""


def model_of(text: str = DECODER, **extra: Any) -> onnx.ModelProto:
    used = {name: value for name, value in (CONSTANTS | extra).items() if f", {name})" in text}
    return onnx.shape_inference.infer_shapes(build(text, check=False, **used))


def feeds(count: int = 4, tokens: int = 3) -> list[dict[str, Any]]:
    shapes = {"x": (2, tokens, 4), "past_k": (2, 5, 6), "past_v": (2, 5, 6)}
    return [{k: normal(*s, seed=seed * 7 + i) for i, (k, s) in enumerate(shapes.items())} for seed in range(count)]


def quantized(model: onnx.ModelProto, kind: str = "uint8", **recipe: Any) -> onnxq.Result:
    names = {i.name for i in model.graph.input}
    data = [{k: v for k, v in feed.items() if k in names} for feed in feeds()]
    return onnxq.quantize(model, data, recipe={"cache": {"type": kind}, **recipe}, threads=1)


def caches(model: onnx.ModelProto) -> dict[str, Any]:
    return json.loads({p.key: p.value for p in model.metadata_props}[METADATA])


def coded(values: Any, cache: dict[str, Any]) -> Any:
    low, high = np.iinfo(cache["type"]).min, np.iinfo(cache["type"]).max
    steps = np.rint(values / np.float32(cache["scale"])) + cache["zero_point"]
    return np.clip(steps, low, high).astype(cache["type"])


def decoded(codes: Any, cache: dict[str, Any]) -> Any:
    return (codes.astype(np.float32) - cache["zero_point"]) * np.float32(cache["scale"])


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_what_is_given_comes_back_unchanged_and_the_new_is_coded_behind_it(kind: str) -> None:
    model = model_of()
    result = quantized(model, kind).model
    onnx.checker.check_model(result, full_check=True)
    known = caches(result)
    assert {name: c["input"] for name, c in known.items()} == {"key": "past_k", "value": "past_v"}
    types = {t.name: t.type.tensor_type.elem_type for t in (*result.graph.input, *result.graph.output)}
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    assert types == dict.fromkeys(("past_k", "past_v", "key", "value"), element) | {"x": 1, "y": 1}
    feed = feeds()[1]
    wanted = make_session(model, threads=1).run(["y", "key", "value"], feed)
    given = {**feed, **{c["input"]: coded(feed[c["input"]], c) for c in known.values()}}
    for optimize in (False, True):
        y, *found = make_session(result, threads=1, optimize=optimize).run(["y", "key", "value"], given)
        assert np.abs(y - wanted[0]).max() < 0.05 * np.abs(wanted[0]).max()
        for name, codes, floats in zip(("key", "value"), found, wanted[1:], strict=True):
            np.testing.assert_array_equal(codes[:, :5], given[known[name]["input"]])
            error = np.abs(decoded(codes, known[name]) - floats)
            assert np.median(error) < known[name]["scale"]


def test_nothing_is_decoded_and_coded_again() -> None:
    """Exactly the new part passes a QuantizeLinear in front of each Concat."""
    graph = quantized(model_of()).model.graph
    made = {o: n for n in graph.node for o in n.output}
    for name in ("key", "value"):
        join = made[name]
        assert join.op_type == "Concat"
        assert join.input[0] in ("past_k", "past_v")
        assert made[join.input[1]].op_type == "QuantizeLinear"
        assert {n.op_type for n in graph.node if name in n.input} == {"DequantizeLinear"}


def test_many_steps_are_as_good_as_one() -> None:
    """The codes of the first tokens are the same after any number of steps."""
    model = model_of()
    result = quantized(model).model
    known, session = caches(result), make_session(result, threads=1)
    tokens = feeds(1, tokens=6)[0]["x"]
    state = {c["input"]: np.zeros((2, 0, 6), np.uint8) for c in known.values()}
    for step in range(6):
        _, key, value = session.run(["y", "key", "value"], {"x": tokens[:, step : step + 1], **state})
        state = {"past_k": key, "past_v": value}
    empty = {name: np.zeros((2, 0, 6), np.uint8) for name in state}
    _, *whole = session.run(["y", "key", "value"], {"x": tokens, **empty})
    for a, b in zip((key, value), whole, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1  # products of one token may round the other way


def test_the_bundled_decoder_keeps_its_accuracy_with_a_cache_of_codes() -> None:
    path = MODELS / "sketch_decoder_with_past.onnx"
    model, feed = onnx.load(path), samples(path, count=24)
    result = onnxq.quantize(model, feed, recipe={"cache": {}}, threads=1).model
    given = dict(feed)
    for cache in caches(result).values():
        given[cache["input"]] = coded(feed[cache["input"]], cache)
    wanted, found = (make_session(m, threads=1).run(["logits"], f)[0] for m, f in ((model, feed), (result, given)))
    noise = np.square(wanted.astype(np.float64) - found).sum()
    assert 10 * np.log10(np.square(wanted, dtype=np.float64).sum() / noise) > 26


def test_a_past_that_is_computed_with_stays_floats() -> None:
    text = DECODER.replace("float[N,t,4] y,", "float[N,t,4] y, float[N,p,6] e,").replace(
        "k = M", "e = Neg(past_k) k = M"
    )
    graph = quantized(model_of(text)).model.graph
    types = {t.name: t.type.tensor_type.elem_type for t in graph.input}
    assert types["past_k"] == onnx.TensorProto.FLOAT
    assert types["past_v"] == onnx.TensorProto.UINT8


def test_a_past_whose_length_is_asked_for_may_be_codes() -> None:
    text = DECODER.replace("float[N,t,4] y,", "float[N,t,4] y, int64[3] e,").replace("k = M", "e = Shape(past_k) k = M")
    types = {t.name: t.type.tensor_type.elem_type for t in quantized(model_of(text)).model.graph.input}
    assert types["past_k"] == onnx.TensorProto.UINT8


def test_bodies_go_on_reading_floats() -> None:
    text = DECODER.replace("x,", "x, bool flag,", 1).replace("float[N,t,4] y,", "float[N,t,4] y, float[N,q,6] e,")
    body = (
        " e = If(flag) <then_branch = t1 () => (float[N,q,6] e1) { e1 = Neg(key) },"
        " else_branch = t2 () => (float[N,q,6] e2) { e2 = Identity(key) }> }"
    )
    model = model_of(text.rstrip()[:-1] + body)
    data = [{**feed, "flag": np.array(True)} for feed in feeds()]
    result = onnxq.quantize(model, data, recipe={"cache": {}}, threads=1).model
    known = caches(result)
    given = {**data[0], **{c["input"]: coded(data[0][c["input"]], c) for c in known.values()}}
    wanted, found = (make_session(m, threads=1).run(["e"], f)[0] for m, f in ((model, data[0]), (result, given)))
    assert np.median(np.abs(wanted - found)) < known["key"]["scale"]


def test_codes_that_a_rule_gives_the_past_are_left_alone() -> None:
    rule = {"match": {"node": "join_k"}, "quantize": True}
    result = quantized(model_of(), rules=[rule])
    assert set(caches(result.model)) == {"value"}
    (report,) = [r for r in result.reports if r.name == "StoreCaches"]
    assert [s.node for s in report.skipped] == ["join_k"]
    assert "leave the rule out" in report.skipped[0].reason


def test_without_the_recipe_nothing_changes() -> None:
    result = onnxq.quantize(model_of(), feeds(), threads=1).model
    assert {t.type.tensor_type.elem_type for t in (*result.graph.input, *result.graph.output)} == {1}
    assert METADATA not in {p.key for p in result.metadata_props}


def test_refused() -> None:
    plain = model_of("g (float[N,t,4] x) => (float[N,t,6] y) { y = MatMul(x, K) }")
    with pytest.raises(RecipeError, match="cache: the model has none"):
        quantized(plain)
    with pytest.raises(RecipeError, match="codes of caches are for scheme static"):
        quantized(plain, scheme="weight_only")
    with pytest.raises(RecipeError, match="Huawei Ascend has no codes as outputs"):
        quantized(model_of(), target="ascend")
