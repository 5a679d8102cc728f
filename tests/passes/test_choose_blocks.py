"""Scales of blocks in whole models: what every method and storage gives, and what is left to codes of channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.errors import DataError, GraphError, RecipeError
from onnxq.passes import choose_blocks
from onnxq.passes._block_stream import BlockStream
from tests.graphs import build, normal, run

NORM = """m = ReduceMean<axes=[-1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps)
    s = Sqrt(e) n = Div(c, s) g = Mul(n, gamma) h = Add(g, beta)"""
DECODER = f"""g (int64[N,T] t) => (float[N,T,40] y) {{
    [table] x = Gather(E, t)
    {NORM}
    [up] u = MatMul(h, U) [gate] w = MatMul(h, W) a = Sigmoid(w) b = Mul(a, w)
    [product] p = Mul(b, u) [down] d = MatMul(p, D) [sum] r = Add(x, d)
    [head] y = Gemm<transB=1>(rr, H, B) }}"""
"""Embedding, norm, gated product, residual; `down` has its inputs from a product with `up`."""


def decoder(seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    text = DECODER.replace("[sum] r = Add(x, d)", "[sum] r = Add(x, d) [flat] rr = Reshape(r, shape)")
    text = text.replace("float[N,T,40] y", "float[R,40] y")
    uneven = np.exp(1.5 * normal(64, seed=seed + 1))
    return build(
        text, opset=opset, ir_version=10, shape=np.array([-1, 64]), eps=np.array(1e-5, np.float32),
        E=normal(50, 64, seed=seed), gamma=uneven, beta=normal(64, seed=3) * 0.1, U=normal(64, 96, seed=4) * 0.1,
        W=normal(64, 96, seed=5) * 0.1, D=normal(96, 64, seed=6) * 0.1, H=normal(40, 64, seed=7) * 0.1, B=normal(40),
    )  # fmt: skip


TOKENS = {"t": np.random.default_rng(0).integers(0, 50, (24, 16))}
OTHERS = {"t": np.random.default_rng(1).integers(0, 50, (24, 16))}


def recipe(method: object, bits: int | None = 4, storage: str = "blocks", **scheme: object) -> dict[str, object]:
    content: dict[str, object] = {
        "scheme": {"kind": "weight_only", "method": method, "storage": storage, "compute": "float32", **scheme}
    }
    return content | ({} if bits is None else {"weights": {"bits": bits}})


def quantized(model: onnx.ModelProto, *args: Any, data: Any = TOKENS, **scheme: Any) -> onnxq.Result:
    return onnxq.quantize(model, data, recipe=recipe(*args, **scheme), threads=1)


def error(model: onnx.ModelProto, result: onnxq.Result, data: Any = OTHERS) -> float:
    expected, found = run(model, data)["y"], run(result.model, data)["y"]
    return float(np.square(expected - found).sum() / np.square(expected).sum())


def operators(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def constant(model: onnx.ModelProto, name: str) -> Any:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def with_floats(model: onnx.ModelProto, floats: Mapping[str, Any]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in floats:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(floats[tensor.name]), tensor.name))
    return changed


def rounded_floats(model: onnx.ModelProto, *args: Any, **scheme: Any) -> dict[str, Any]:
    """What the codes of each weight stand for: those of storage rounded."""
    result = quantized(model, *args, storage="rounded", **scheme).model
    return {
        t.name.removesuffix("_rounded"): numpy_helper.to_array(t)
        for t in result.graph.initializer
        if t.name.endswith("_rounded")
    }


# ---- storages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("storage", ["packed", "native", "blocks"])
def test_every_storage_computes_with_the_same_floats(storage: str, bits: int, symmetric: bool) -> None:
    model = decoder()
    content = recipe("rtn", bits, storage)
    content["weights"] = {"bits": bits, "symmetric": symmetric}
    result = onnxq.quantize(model, recipe=content)
    content["scheme"] = {**content["scheme"], "storage": "rounded"}  # type: ignore[dict-item]
    expected = run(onnxq.quantize(model, recipe=content).model, OTHERS)["y"]
    np.testing.assert_allclose(run(result.model, OTHERS)["y"], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [16, 24, 32, 64, 1000, "row"])
@pytest.mark.parametrize("storage", ["packed", "native"])
def test_blocks_of_any_size_where_no_operator_minds(storage: str, size: Any) -> None:
    model = decoder()
    expected = run(with_floats(model, rounded_floats(model, "rtn", block_size=size)), OTHERS)["y"]
    found = run(quantized(model, "rtn", storage=storage, block_size=size).model, OTHERS)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_the_operators_and_bytes_of_each_storage() -> None:
    model = decoder()
    blocks = quantized(model, "rtn").model
    found = operators(blocks)
    assert (found.count("MatMulNBits"), found.count("GatherBlockQuantized")) == (4, 1)
    assert not {"MatMul", "Gemm", "Gather"} & set(found)
    assert constant(blocks, "U_blocks").nbytes == 64 * 96 // 2
    assert constant(blocks, "E_blocks").shape == (50, 32)
    for bits in (2, 3, 5):
        packed = quantized(model, "rtn", bits, storage="packed").model
        stored = [numpy_helper.to_array(t).nbytes for t in packed.graph.initializer if t.name.startswith("U_packed")]
        assert sum(stored) == 64 * 96 * bits // 8
        assert "MatMulNBits" not in operators(packed)
    native = quantized(model, "rtn", storage="native").model
    assert operators(native).count("DequantizeLinear") == 5
    assert "Gemm" not in operators(native)
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in native.graph.initializer}
    assert kinds["U_quantized"] == "INT4"
    assert max(o.version for o in native.opset_import if not o.domain) >= 21


def test_compute_decides_what_matmulnbits_multiplies() -> None:
    model = decoder()
    levels = {}
    for compute in ("float32", "int8", None):
        made = quantized(model, "rtn", compute=compute).model
        nodes = [n for n in made.graph.node if n.op_type == "MatMulNBits"]
        levels[compute] = {a.i for n in nodes for a in n.attribute if a.name == "accuracy_level"}
    assert levels == {"float32": set(), "int8": {4}, None: {4}}
    assert error(model, quantized(model, "rtn", 8, compute="int8")) < 1e-3


def test_symmetric_blocks_need_no_zero_points_where_the_middle_is_meant() -> None:
    content = recipe("rtn")
    content["weights"] = {"bits": 4, "symmetric": True}
    made = onnxq.quantize(decoder(), recipe=content).model
    assert not [t.name for t in made.graph.initializer if t.name == "U_zero_points"]


# ---- methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_methods_are_better_than_rounding_on_other_data(bits: int) -> None:
    model = decoder()
    errors = {m: error(model, quantized(model, m, bits)) for m in ("rtn", "hqq", "awq", "gptq", "awq+gptq")}
    for method in ("awq", "gptq", "awq+gptq"):
        assert errors[method] < 0.9 * errors["rtn"], errors
    assert errors["hqq"] < 1.1 * errors["rtn"], errors


def test_awq_scales_in_front_of_the_layers_and_changes_nothing_else() -> None:
    model = decoder()
    result = quantized(model, "awq", 8, storage="rounded")
    made = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    gamma = next(v for k, v in made.items() if k.startswith("gamma") and k != "gamma")
    factors = constant(model, "gamma") / gamma
    assert np.ptp(factors) > 0.1
    np.testing.assert_allclose(
        constant(model, "beta") / next(v for k, v in made.items() if k.startswith("beta")), factors, rtol=1e-5
    )
    wanted = constant(model, "U") * factors[:, None]
    found = made["U_rounded"]
    ratios = np.median(found / np.where(wanted == 0, 1, wanted), axis=0)  # the product divides what `down` reads
    np.testing.assert_allclose(found, wanted * ratios, atol=0.02 * np.abs(wanted).max())
    assert error(model, result) < 1e-3
    assert any("inputs of 2 of 3 groups" in note for note in result.notes)
    assert any("'flat'" in note and "cannot be moved through" in note for note in result.notes)


TWO_READERS = """g (float[N,64] x) => (float[N,96] y) {
    h = Mul(x, g) z = MatMul(h, W) k = Tanh(x) l = MatMul(k, W) y = Add(z, l) }"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N,64] x) => (float[N,96] y) { y = MatMul(x, W) }", "is a graph input"),
        ("g (float[N,64] x) => (float[N,96] y, float[N,64] h) { h = Mul(x, g) y = MatMul(h, W) }", "has readers"),
        ("g (float[N,64] x) => (float[N,96] y) { h = Mul(x, g) k = Relu(h) l = Add(h, k) y = MatMul(l, W) }",
         "a sum of two activations"),
        ("g (float[N,64] x) => (float[N,96] y) { h = Mul(x, s) y = MatMul(h, W) }", "is not one number for each"),
        ("g (float[N,64] x) => (float[N,96] y) { h = Tanh(x) y = MatMul(h, W) }", "comes from Tanh"),
        (TWO_READERS, "a weight has other readers"),
    ],
)  # fmt: skip
def test_awq_says_why_it_does_not_scale(text: str, reason: str) -> None:
    model = build(
        text,
        W=normal(64, 96),
        **{n: v for n, v in (("g", normal(64) + 2), ("s", np.float32([2]))) if f"x, {n}" in text},
    )
    data = {"x": normal(32, 64) * np.exp(normal(64))}
    result = quantized(model, "awq", data=data)
    assert any("is not scaled" in note and reason in note for note in result.notes), result.notes
    assert error(model, result, data) < 0.05


@pytest.mark.parametrize("front", ["Relu", "LeakyRelu", "Identity"])
def test_awq_moves_factors_into_the_layer_in_front(front: str) -> None:
    model = build(
        f"g (float[N,32] x) => (float[N,48] y) {{ h = Gemm<transB=1>(x, V, B) k = {front}(h) y = MatMul(k, W) }}",
        V=normal(64, 32) * np.exp(1.5 * normal(64, 1, seed=9)), B=normal(64), W=normal(64, 48),
    )  # fmt: skip
    data, other = {"x": normal(200, 32)}, {"x": normal(200, 32, seed=5)}
    result = quantized(model, "awq", 3, data=data)
    assert any("inputs of 1 of 2 groups" in note for note in result.notes)
    assert error(model, result, other) < error(model, quantized(model, "rtn", 3, data=data), other)


def test_gptq_counts_what_earlier_layers_lost() -> None:
    """Codes of the second layer depend on the width of the first, as its inputs do."""
    model = decoder()
    rules = [{"match": {"node": "up"}, "weights": {"bits": 2}}]
    found = []
    for extra in ({}, {"rules": rules}):
        result = onnxq.quantize(model, TOKENS, recipe={**recipe("gptq"), **extra}, threads=1)
        found.append(constant(result.model, "D_blocks"))
    assert not np.array_equal(*found)


def test_threads_and_the_batches_of_the_data_do_not_change_a_byte() -> None:
    model = decoder()
    batches = [{"t": TOKENS["t"][i : i + 5]} for i in range(0, 24, 5)]
    first = onnxq.quantize(model, TOKENS, recipe=recipe("awq+gptq"), threads=1)
    second = onnxq.quantize(model, batches, recipe=recipe("awq+gptq"), threads=3)
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_a_search_of_the_range_is_the_default_of_gptq_and_an_offer_to_rtn() -> None:
    model = decoder()
    plain, searched = (
        onnxq.quantize(model, recipe={**recipe("rtn", 3), "weights": {"bits": 3, **extra}})
        for extra in ({}, {"method": "mse"})
    )
    assert error(model, searched) < error(model, plain)
    own, absmax = (
        onnxq.quantize(model, TOKENS, recipe={**recipe("gptq", 2), "weights": {"bits": 2, **extra}})
        for extra in ({}, {"method": "absmax"})
    )
    assert not np.array_equal(constant(own.model, "U_scales"), constant(absmax.model, "U_scales"))


# ---- weights that several read --------------------------------------------------------------------


def test_tied_embeddings_have_the_same_codes_in_both_places() -> None:
    model = build("g (int64[N] t) => (float[N,50] y) { x = Gather(E, t) y = Gemm<transB=1>(x, E) }", E=normal(50, 64))
    result = quantized(model, "gptq")
    assert sorted(operators(result.model)) == ["GatherBlockQuantized", "MatMulNBits"]
    codes = constant(result.model, "E_blocks").reshape(-1)
    other = next(t for t in result.model.graph.initializer if t.name.startswith("E_blocks") and t.name != "E_blocks")
    np.testing.assert_array_equal(numpy_helper.to_array(other).reshape(-1), codes)


def test_a_weight_read_in_both_directions_and_one_with_an_alpha() -> None:
    model = build(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, W) b = Gemm<transB=1>(a, W) "
        "y = Gemm<alpha=2.0>(b, W) }",
        W=normal(64, 64) * 0.1,
    )  # fmt: skip
    data = {"x": normal(40, 64)}
    result = quantized(model, "gptq", 8, data=data)
    assert operators(result.model).count("MatMulNBits") == 2
    assert "Gemm" in operators(result.model)
    assert any("a Gemm with alpha" in note for note in result.notes)
    assert error(model, result, data) < 1e-3


def test_a_shared_weight_is_chosen_once() -> None:
    model = build(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, W) b = Relu(a) y = MatMul(b, W) }", W=normal(64, 64)
    )
    result = quantized(model, "gptq", data={"x": normal(40, 64)})
    assert operators(result.model).count("MatMulNBits") == 2
    assert len([t for t in result.model.graph.initializer if t.name.endswith("_blocks")]) == 1


def test_what_others_need_as_floats_stays_so() -> None:
    text = """g (float[N,64] x, bool c) => (float[N,64] y, float[64,64] V) {
        h = MatMul(x, W) z = MatMul(h, V)
        y = If (c) <then_branch = a () => (float[N,64] p) { p = MatMul(z, W) },
                   else_branch = b () => (float[N,64] q) { q = Identity(z) }> }"""
    model = build(text, W=normal(64, 64), V=normal(64, 64), check=False)
    result = quantized(model, "gptq", data={"x": normal(8, 64), "c": np.array(True)})
    reasons = {d.node: d.reason for d in result.plan.left_float()}
    assert any("inside the body" in reason for reason in reasons.values())
    assert any("is a graph output" in reason for reason in reasons.values())
    assert not result.changed


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        ("g (float[N,3,50,64] x) => (float[N,3,50,32] y) { y = MatMul(x, W) }", (3, 64, 32), "2-D float32"),
        ("g (float[64,N] x) => (float[N,32] y) { y = Gemm<transA=1>(x, W) }", (64, 32), "transA"),
        ("g (int64[N] x) => (float[64,N] y) { y = Gather<axis=1>(W, x) }", (64, 32), "columns"),
        ("g (int64[N] x) => (float[N,30] y) { y = Gather(W, x) }", (64, 30), "a multiple of 4"),
        ("g (float[64] x) => (float[32] y) { y = MatMul(x, W) }", (64, 32), "rank 1"),
        ("g (float[N,64] x) => (float[64,N] y) { t = Transpose(x) y = MatMul(W, t) }", (64, 64), "second inputs"),
    ],
)  # fmt: skip
def test_what_has_no_such_blocks_keeps_codes_of_channels(text: str, weight: tuple[int, ...], reason: str) -> None:
    model = build(text, W=normal(*weight))
    result = quantized(model, "hqq", 8, data=None)
    assert any("codes of whole channels" in note and reason in note for note in result.notes), result.notes
    assert result.changed
    feed = {i.name: np.zeros([d.dim_value or 2 for d in i.type.tensor_type.shape.dim],
            np.int64 if i.type.tensor_type.elem_type == 7 else np.float32) + 1 for i in model.graph.input}  # fmt: skip
    np.testing.assert_allclose(run(result.model, feed)["y"], run(model, feed)["y"], atol=0.2)


# ---- widths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("storage", "average"), [("blocks", 4.0), ("packed", 3.0), ("native", 3.0)])
def test_widths_meet_the_average_and_beat_one_width(storage: str, average: float) -> None:
    model = decoder()
    result = quantized(model, "gptq", None, storage=storage, average_bits=average)
    average_bits = 2 if storage == "native" else int(average)  # native has no 3 bits
    note = next(n for n in result.notes if "wide on average" in n)
    assert float(note.split()[2]) <= average
    assert error(model, result) <= error(model, quantized(model, "gptq", average_bits, storage=storage))


LOUD = """g (float[N,64] x) => (float[N,64] y) {
    [quiet] a = MatMul(x, V) b = Mul(a, small) [loud] c = MatMul(x, W) y = Add(b, c) }"""


def widths_of(result: onnxq.Result) -> dict[str, int]:
    nodes = {n.name: n for n in result.model.graph.node if n.op_type == "MatMulNBits"}
    return {name: next(a.i for a in node.attribute if a.name == "bits") for name, node in nodes.items()}


def test_what_the_outputs_hear_more_of_gets_more_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model does not fit into the budget, layers are told apart by their own outputs alone."""
    model = build(LOUD, V=normal(64, 64), W=normal(64, 64, seed=1), small=np.float32([0.01]))
    data = {"x": normal(32, 64)}
    assert widths_of(quantized(model, "gptq", None, data=data, average_bits=5.0)) == {"quiet": 2, "loud": 8}
    monkeypatch.setattr(onnxq.graph.GraphModel, "weight_bytes", 1 << 40)
    found = widths_of(quantized(model, "gptq", None, data=data, average_bits=4.0))
    assert found == {"quiet": 4, "loud": 4}


def test_without_the_whole_model_hard_layers_get_more_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxq.graph.GraphModel, "weight_bytes", 1 << 40)
    spiky = normal(64, 64) * np.exp(2 * normal(64, 64, seed=3))
    easy = np.random.default_rng(0).integers(-2, 2, (64, 64)).astype(np.float32)  # 2 bits hold these
    model = build(LOUD, V=spiky, W=easy, small=np.float32([1]))
    found = widths_of(quantized(model, "gptq", None, data={"x": normal(32, 64)}, average_bits=3.0))
    assert found == {"quiet": 4, "loud": 2}


def test_widths_without_data_are_those_of_the_weights_alone() -> None:
    model = decoder()
    result = quantized(model, "hqq", None, data=None, average_bits=4.0)
    assert any("wide on average" in n for n in result.notes)
    assert error(model, result) < error(model, quantized(model, "hqq", 2, data=None))


# ---- memory ---------------------------------------------------------------------------------------


def test_one_layer_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many layers a model has, the weights of one piece and the squares of one group are asked for together."""
    count = 8
    body = " ".join(f"h{i + 1} = MatMul(h{i}, W{i}) " for i in range(count))
    model = build(
        f"g (float[N,64] h0) => (float[N,64] h{count}) {{ {body} }}",
        **{f"W{i}": normal(64, 64, seed=i) * 0.1 for i in range(count)},
    )  # fmt: skip
    order: list[str] = []
    made = BlockStream._weight_of

    def weight_of(self: Any, coded: Any) -> Any:
        inner = made(self, coded)
        return lambda name: order.append(f"read {name.split('/')[-2]}") or inner(name)

    visited = choose_blocks._Chooser._visit

    def visit(self: Any, group: Any) -> Any:
        order.append(f"visit {group.layers[0].plan.tensor}")
        return visited(self, group)

    monkeypatch.setattr(BlockStream, "_weight_of", weight_of)
    monkeypatch.setattr(choose_blocks._Chooser, "_visit", visit)
    quantized(model, "gptq", data={"h0": normal(16, 64)})
    wanted = ["visit W0"]
    for i in range(1, count):
        wanted += [f"read W{i - 1}", f"visit W{i}"]
    assert order == wanted


def test_inputs_too_many_for_the_budget_are_taken_in_spans() -> None:
    model = build(
        "g (float[N,1200] x) => (float[N,24] y) { h = Mul(x, g) y = MatMul(h, W) }",
        W=normal(1200, 24),
        g=np.exp(normal(1200)),
    )
    data = {"x": normal(64, 1200)}
    small = {**recipe("awq+gptq"), "calibration": {"memory_budget_mb": 16}}
    result = onnxq.quantize(model, data, recipe=small, threads=1)
    assert error(model, result, data) < 0.7 * error(model, quantized(model, "rtn", data=data), data)


# ---- problems -------------------------------------------------------------------------------------


def test_gptq_without_data_is_refused() -> None:
    for method in ("gptq", "awq", "awq+gptq"):
        with pytest.raises(DataError, match="looks at the inputs of layers: give calibration data, or use hqq or rtn"):
            onnxq.quantize(decoder(), recipe=recipe(method))


@pytest.mark.parametrize(
    ("scheme", "weights", "wanted"),
    [
        ({"block_size": 48, "storage": "blocks"}, {}, "block_size: found 48; MatMulNBits has powers of 2 from 16"),
        ({"block_size": 512, "storage": "blocks"}, {}, "block_size: found 512"),
        ({"mixed": {}}, None, "mixed: one step for each weight and method do not go together"),
        ({"average_bits": 3.0}, {"bits": 4}, "average_bits: chooses the width of every weight"),
        ({}, {"granularity": "per_tensor"}, "weights.granularity: with scheme.method"),
        ({"method": None, "average_bits": 3.0}, None, "average_bits: needs scales of blocks; set scheme.method"),
        ({"method": None, "block_size": "row"}, None, "block_size: row: needs scales of blocks; set scheme.method"),
        ({"average_bits": 9.0}, None, "average_bits"),
        ({"block_size": 0}, None, "block_size"),
        ({"method": {"name": "gptq", "damping": 1.5}}, None, "damping"),
        ({"method": {"name": "hqq", "power": 0}}, None, "power"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(scheme: Any, weights: Any, wanted: str) -> None:
    content: dict[str, Any] = {"scheme": {"kind": "weight_only", "method": "rtn", **scheme}}
    if weights is not None:
        content["weights"] = weights
    with pytest.raises(RecipeError, match=wanted):
        onnxq.quantize(decoder(), TOKENS, recipe=content)


def test_more_bits_than_blocks_have_are_left_to_channels() -> None:
    result = quantized(decoder(), "rtn", 10, storage="packed")
    assert any("codes of 10 bits" in note for note in result.notes)


def test_weights_and_activations_that_are_no_numbers_are_refused() -> None:
    model = build("g (float[N,64] x) => (float[N,32] y) { h = Relu(x) y = MatMul(h, W) }", W=normal(64, 32))
    with pytest.raises(onnxq.OnnxqError, match=r"holds? NaN or infinity"):
        quantized(model, "gptq", data={"x": np.full((4, 64), np.inf, np.float32)})
    broken = normal(64, 32).copy()
    broken[0, 0] = np.nan
    model = build("g (float[N,64] x) => (float[N,32] y) { y = MatMul(x, W) }", W=broken)
    with pytest.raises(GraphError, match=r"weight 'W' of node '.*': the weight holds NaN or infinity"):
        quantized(model, "gptq", data={"x": normal(4, 64)})
