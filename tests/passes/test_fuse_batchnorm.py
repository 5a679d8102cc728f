"""FuseBatchNorm: numbers against ONNX Runtime, the node list, the count and every reason.

Tolerance: float32 has a relative spacing of 1.2e-7. Sums of at most 100 products are reordered by the
fusion, so 100 * 1.2e-7 of the output's range bounds the deviation; seen are 3e-7.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.errors import RecipeError
from onnxq.graph import GraphModel
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from tests.graphs import apply, assert_same_function, build, normal, ops, positive, reasons, run

RTOL = 1.2e-5
BN = "BatchNormalization"


def bn(channels: int, *, seed: int = 1, **changes: Any) -> dict[str, Any]:
    """Constants s, b, m, v of a BatchNormalization with no number near its neutral value."""
    values = {
        "s": normal(channels, seed=seed) + 2,
        "b": normal(channels, seed=seed + 10) + 1,
        "m": normal(channels, seed=seed + 20) - 1,
        "v": positive(channels, seed=seed + 30),
    }
    return values | changes


def fused(model: onnx.ModelProto, *, changed: int, left: list[str], skip_layers: tuple[str, ...] = ()) -> Any:
    """Run the pass, check function, node list and count; return the report and the graph."""
    graph = GraphModel.from_proto(model)
    report = apply(graph, FuseBatchNorm(skip_layers))
    assert ops(graph) == left
    assert report.changed == changed
    assert_same_function(model, graph, rtol=RTOL)
    return report, graph


# ---- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(
    ("op", "spatial"), [("Conv", 1), ("Conv", 2), ("Conv", 3), ("ConvTranspose", 1), ("ConvTranspose", 2)]
)
def test_convolutions_of_any_rank_group_and_layout(op: str, spatial: int, group: int, bias: bool) -> None:
    kernel = (3, 2, 1)[:spatial]
    shape = (8, 4 // group, *kernel) if op == "Conv" else (4, 8 // group, *kernel)
    dims = ",".join("5" * spatial)
    out = ",".join(["?"] * spatial)
    model = build(
        f"""g (float[N,4,{dims}] x) => (float[N,8,{out}] y) {{
            c = {op} <group={group}> (x, W{", B" if bias else ""})
            y = {BN} <epsilon=0.3> (c, s, b, m, v) }}""",
        W=normal(*shape),
        **({"B": normal(8, seed=5)} if bias else {}),
        **bn(8),
    )
    report, graph = fused(model, changed=1, left=[op])
    assert report.skipped == ()
    assert graph.outputs[0].name == "y"


@pytest.mark.parametrize("bias", [(), (1,), (6,), (1, 6), (1, 1), None])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_with_any_transposition_alpha_beta_and_bias(
    trans_a: int, trans_b: int, bias: tuple[int, ...] | None
) -> None:
    x = "float[4,3] x" if trans_a else "float[3,4] x"
    model = build(
        f"""g ({x}) => (float[3,6] y) {{
            c = Gemm <transA={trans_a}, transB={trans_b}, alpha=0.5, beta=-2.0> (x, W{"" if bias is None else ", B"})
            y = {BN} (c, s, b, m, v) }}""",
        W=normal(6, 4) if trans_b else normal(4, 6),
        **({} if bias is None else {"B": normal(*bias, seed=7)}),
        **bn(6),
    )
    _, graph = fused(model, changed=1, left=["Gemm"])
    assert "beta" not in graph.nodes()[0].attrs
    assert graph.nodes()[0].attrs["alpha"] == 0.5


def test_gemm_with_beta_zero_ignores_its_bias() -> None:
    model = build(
        f"g (float[3,4] x) => (float[3,6] y) {{ c = Gemm <beta=0.0> (x, W, B) y = {BN} (c, s, b, m, v) }}",
        W=normal(4, 6),
        B=normal(6) + 100,
        **bn(6),
    )
    fused(model, changed=1, left=["Gemm"])


def test_matmul_gets_a_scaled_weight_and_one_add() -> None:
    model = build(
        f"g (float[N,4] x) => (float[N,6] y) {{ [fc] c = MatMul(x, W) [bn] y = {BN} (c, s, b, m, v) }}",
        W=normal(4, 6),
        **bn(6),
    )
    _, graph = fused(model, changed=1, left=["MatMul", "Add"])
    assert [n.name for n in graph.nodes()] == ["fc", "fc_add"]
    assert [t.name for t in graph.nodes()[1].inputs] == ["c", "fc_bias"]


def test_matmul_add_mul_of_three_axes_becomes_matmul_add() -> None:
    model = build(
        "g (float[N,5,4] x) => (float[N,5,6] y) { c = MatMul(x, W) d = Add(B, c) y = Mul(d, K) }",
        W=normal(4, 6),
        B=normal(6),
        K=np.float32(0.125),
    )
    fused(model, changed=2, left=["MatMul", "Add"])


def test_matmul_mul_needs_no_add() -> None:
    model = build("g (float[N,4] x) => (float[N,6] y) { c = MatMul(x, W) y = Mul(c, K) }", W=normal(4, 6), K=normal(6))
    fused(model, changed=1, left=["MatMul"])


@pytest.mark.parametrize("tail", ["y = Add(c, B)", "y = Add(B, c)", "d = Add(c, B) y = Sub(d, B)"])
def test_matmul_add_stays_as_it_is(tail: str) -> None:
    model = build(f"g (float[N,4] x) => (float[N,6] y) {{ c = MatMul(x, W) {tail} }}", W=normal(4, 6), B=normal(6))
    before = GraphModel.from_proto(model).to_proto().SerializeToString()
    report, graph = fused(model, changed=0, left=ops(model))
    assert report.skipped == ()
    assert graph.to_proto().SerializeToString() == before


# ---- chains ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "shape"),
    [
        ("y = Mul(c, K)", (4, 1, 1)),
        ("y = Mul(K, c)", (1, 4, 1, 1)),
        ("y = Add(c, K)", (1, 4, 1, 1)),
        ("y = Add(c, K)", ()),
        ("y = Mul(c, K)", (1,)),
        ("y = Sub(c, K)", (4, 1, 1)),
        ("y = Sub(K, c)", (4, 1, 1)),
        ("y = Div(c, K)", (4, 1, 1)),
        ("d = Mul(c, K) y = Add(d, K)", (4, 1, 1)),
        ("d = Add(c, K) y = Mul(d, K)", (4, 1, 1)),
        (f"d = {BN} (c, s, b, m, v) e = Mul(d, K) y = Add(e, K)", (1, 4, 1, 1)),
        (f"d = Mul(c, K) e = Add(K, d) y = {BN} (e, s, b, m, v)", (4, 1, 1)),
        (f"d = {BN} (c, s, b, m, v) y = {BN} (d, s, b, m, v)", (4, 1, 1)),
    ],
)
def test_chains_behind_a_convolution(tail: str, shape: tuple[int, ...]) -> None:
    constants = bn(4) if BN in tail else {}
    model = build(
        f"g (float[N,3,6,6] x) => (float[N,4,4,4] y) {{ c = Conv(x, W, B) {tail} }}",
        W=normal(4, 3, 3, 3),
        B=normal(4, seed=9),
        K=normal(*shape, seed=3) + np.float32(1.5),
        **constants,
    )
    report, graph = fused(model, changed=len(ops(model)) - 1, left=["Conv"])
    assert report.skipped == ()
    assert graph.outputs[0].name == "y"


def test_a_scale_of_one_keeps_the_weight() -> None:
    model = build(
        "g (float[N,3,6,6] x) => (float[N,4,4,4] y) { [conv] c = Conv(x, W) y = Add(c, K) }",
        W=normal(4, 3, 3, 3),
        K=normal(4, 1, 1),
    )
    _, graph = fused(model, changed=1, left=["Conv"])
    assert [t.name for t in graph.node("conv").inputs] == ["x", "W", "conv_bias"]


def test_names_of_new_constants_and_of_the_output() -> None:
    model = build(
        f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {{
            [conv] c = Conv(x, W, B) [bn] z = {BN} (c, s, b, m, v) y = Relu(z) }}""",
        W=normal(4, 3, 3, 3),
        B=normal(4),
        **bn(4),
    )
    _, graph = fused(model, changed=1, left=["Conv", "Relu"])
    assert [t.name for t in graph.node("conv").inputs] == ["x", "W_fused", "B_fused"]
    assert graph.node("conv").outputs[0].name == "z"


def test_default_epsilon_is_1e_5() -> None:
    model = build(
        f"g (float[N,3,6,6] x) => (float[N,4,4,4] y) {{ c = Conv(x, W) y = {BN} (c, s, b, m, v) }}",
        W=normal(4, 3, 3, 3),
        **bn(4, v=np.full(4, 1e-5, np.float32)),
    )
    fused(model, changed=1, left=["Conv"])


def test_statistics_are_computed_in_float64() -> None:
    """beta - mean * scale cancels to almost nothing; in float32 the rest would be noise."""
    scale, mean = np.float64(np.float32(1.1)), np.float64(np.float32(12345.678))
    beta = np.float32(scale * mean)
    model = build(
        f"""g (float[N,1,4,4] x) => (float[N,1,4,4] y) {{
            [conv] c = Conv(x, W) y = {BN} <epsilon=0.0> (c, s, b, m, v) }}""",
        W=normal(1, 1, 1, 1),
        s=np.float32([1.1]),
        b=np.float32([beta]),
        m=np.float32([12345.678]),
        v=np.float32([1.0]),
    )
    graph = GraphModel.from_proto(model)
    apply(graph, FuseBatchNorm())
    exact = np.float64(beta) - mean * scale
    np.testing.assert_allclose(graph.value(graph.node("conv").inputs[2]), [exact], rtol=1e-6)


# ---- sharing -----------------------------------------------------------------------------------


def test_shared_weight_and_bias_get_constants_of_their_own() -> None:
    model = build(
        f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {{
            c = Conv(x, W, B) y = {BN} (c, s, b, m, v) z = Conv(x, W, B) }}""",
        W=normal(4, 3, 3, 3),
        B=normal(4),
        **bn(4),
    )
    fused(model, changed=1, left=["Conv", "Conv"])


def test_two_convolutions_with_the_same_weight_and_the_same_statistics() -> None:
    model = build(
        f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {{
            c = Conv(x, W) y = {BN} (c, s, b, m, v) d = Conv(x, W) z = {BN} (d, s, b, m, v) }}""",
        W=normal(4, 3, 3, 3),
        **bn(4),
    )
    _, graph = fused(model, changed=2, left=["Conv", "Conv"])
    assert [n.inputs[1].name for n in graph.nodes()] == ["W_fused", "W_fused_1"]


def test_weight_that_is_a_graph_input_with_a_default_value() -> None:
    model = build(
        f"""g (float[N,3,6,6] x, float[4,3,3,3] W) => (float[N,4,4,4] y) {{
            c = Conv(x, W) y = {BN} (c, s, b, m, v) }}""",
        W=normal(4, 3, 3, 3),
        **bn(4),
    )
    fused(model, changed=1, left=["Conv"])


def test_function_survives_old_opset_with_attributes_and_required_bias() -> None:
    model = build(
        f"g (float[3,4] x) => (float[3,6] y) {{ c = Gemm <alpha=2.0, transB=1> (x, W, B) y = {BN} (c, s, b, m, v) }}",
        opset=9,
        ir_version=4,
        W=normal(6, 4),
        B=normal(6),
        **bn(6),
    )
    fused(model, changed=1, left=["Gemm"])


# ---- refusals ----------------------------------------------------------------------------------

CONV = "g (float[N,3,6,6] x) => (float[N,4,4,4] y) {{ [conv] c = Conv(x, W) {} }}"
CONV_BN = f"[bn] y = {BN} (c, s, b, m, v)"


def refused(
    text: str, expected: dict[str, str], *, opset: int = 17, skip_layers: tuple[str, ...] = (), **constants: Any
) -> None:
    """The pass leaves every byte of the model alone and gives exactly the reasons `expected`."""
    model = build(text, opset=opset, **constants)
    before = GraphModel.from_proto(model).to_proto().SerializeToString()
    graph = GraphModel.from_proto(model)
    report = apply(graph, FuseBatchNorm(skip_layers))
    assert report.changed == 0
    assert reasons(report) == expected
    assert graph.to_proto().SerializeToString() == before


W = normal(4, 3, 3, 3)


def test_refuses_when_the_output_is_read_elsewhere() -> None:
    text = f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {{
        [conv] c = Conv(x, W) [bn] y = {BN} (c, s, b, m, v) [relu] z = Relu(c) }}"""
    refused(text, {"bn": "'c' is read 2 times, by BatchNormalization 'bn', Relu 'relu'"}, W=W, **bn(4))


def test_refuses_when_the_output_is_a_graph_output() -> None:
    text = f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] c) {{
        [conv] c = Conv(x, W) [bn] y = {BN} (c, s, b, m, v) }}"""
    refused(text, {"bn": "'c' is a graph output"}, W=W, **bn(4))


def test_refuses_when_a_body_reads_the_output() -> None:
    text = f"""g (float[N,3,6,6] x, bool p) => (float[N,4,4,4] y, float[N,4,4,4] z) {{
        [conv] c = Conv(x, W) [bn] y = {BN} (c, s, b, m, v)
        z = If (p) <then_branch = t () => (float[N,4,4,4] t1) {{ t1 = Relu(c) }},
                    else_branch = e () => (float[N,4,4,4] e1) {{ e1 = Abs(c) }}> }}"""
    refused(text, {"bn": "'c' is read inside the body of an If, Loop or Scan"}, W=W, **bn(4))


def test_stops_at_a_tensor_that_is_read_elsewhere_and_merges_what_is_before_it() -> None:
    model = build(
        f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {{
            c = Conv(x, W) d = {BN} (c, s, b, m, v) [mul] y = Mul(d, K) [relu] z = Relu(d) }}""",
        W=W,
        K=np.float32(2),
        **bn(4),
    )
    report, _ = fused(model, changed=1, left=["Conv", "Mul", "Relu"])
    assert reasons(report) == {"mul": "'d' is read 2 times, by Mul 'mul', Relu 'relu'"}


def test_x_times_x_is_not_a_constant_factor() -> None:
    refused(CONV.format("y = Mul(c, c)"), {}, W=W)


@pytest.mark.parametrize("tail", ["y = Div(K, c)", "y = Add(c, c2) c2 = Relu(x4)", "y = Max(c, K)", "y = Add(c, x4)"])
def test_other_arithmetic_is_left_alone_without_a_word(tail: str) -> None:
    text = f"g (float[N,3,6,6] x, float[N,4,4,4] x4) => (float[N,4,4,4] y) {{ c = Conv(x, W) {tail} }}"
    if "Relu" in tail:
        text = text.replace(tail, "c2 = Relu(x4) y = Add(c, c2)")
    constants = {"K": np.float32(2)} if "K" in tail else {}
    refused(text, {}, W=W, **constants)


def test_arithmetic_behind_a_matmul_is_left_alone_without_a_word() -> None:
    """The Div and the second reader are how GELU begins."""
    text = """g (float[N,4] x) => (float[N,6] y) {
        c = MatMul(x, W) d = Div(c, K) e = Erf(d) y = Mul(e, c) }"""
    refused(text, {}, W=normal(4, 6), K=np.float32(1.414))


def test_an_operator_of_another_domain_is_not_taken_for_the_standard_one() -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
        g (float[N,3,6,6] x) => (float[N,4,4,4] y) {{ [conv] c = Conv(x, W) [bn] y = custom.{BN} (c, s, b, m, v) }}"""
    refused(text, {}, W=W, **bn(4))


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4), (2, 1, 1, 1), (1, 4, 4, 1), (1, 1, 4)])
def test_refuses_a_constant_that_is_not_per_channel(shape: tuple[int, ...]) -> None:
    text = "g (float[2,3,6,6] x) => (float[2,4,4,4] y) { c = Conv(x, W) [mul] y = Mul(c, K) }"
    reason = f"its constant 'K' of shape {shape} is not one number per channel"
    refused(text, {"mul": reason}, W=W, K=normal(*shape))


@pytest.mark.parametrize("shape", [(1, 1, 4, 1, 1), (1, 1, 1, 1, 1), (3, 1, 1)])
def test_refuses_a_constant_that_makes_the_output_larger(shape: tuple[int, ...]) -> None:
    """One output channel against three factors, or a fifth axis: the result has another shape."""
    channels = 1 if len(shape) == 3 else 4
    text = "g (float[2,3,6,6] x) => (float[A,B,C,D] y) { c = Conv(x, W) [mul] y = Mul(c, K) }"
    if len(shape) == 5:
        text = text.replace("[A,B,C,D]", "[A,B,C,D,E]")
    reason = f"its constant 'K' of shape {shape} is not one number per channel"
    refused(text, {"mul": reason}, W=normal(channels, 3, 3, 3), K=normal(*shape))


def test_refuses_training_mode() -> None:
    text = f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y) {{
        [conv] c = Conv(x, W) [bn] y, rm, rv = {BN} <training_mode=1> (c, s, b, m, v) }}"""
    reason = "it is in training mode: its statistics depend on the batch; export the model in evaluation mode"
    refused(text, {"bn": reason}, W=W, **bn(4))


def test_refuses_several_outputs() -> None:
    """Before opset 14, more than one output meant training."""
    text = CONV.format(f"[bn] y, rm, rv, sm, sv = {BN} (c, s, b, m, v)")
    reason = "it has 5 outputs, so it is in training mode; export the model in evaluation mode"
    refused(text, {"bn": reason}, opset=9, W=W, **bn(4))


def test_unnamed_optional_outputs_do_not_count() -> None:
    model = build(CONV.format(f"[bn] y, rm = {BN} (c, s, b, m, v)"), opset=9, W=W, check=False, **bn(4))
    model.graph.node[1].output[1] = ""
    graph = GraphModel.from_proto(model)
    assert apply(graph, FuseBatchNorm()).changed == 1


@pytest.mark.parametrize(("name", "role"), [("s", "scale"), ("b", "bias"), ("m", "mean"), ("v", "variance")])
def test_refuses_statistics_that_are_not_constant(name: str, role: str) -> None:
    constants = {k: v for k, v in bn(4).items() if k != name}
    text = f"g (float[N,3,6,6] x, float[4] {name}) => (float[N,4,4,4] y) {{ [conv] c = Conv(x, W) {CONV_BN} }}"
    refused(text, {"bn": f"its {role} {name!r} is not a constant: it is a graph input"}, W=W, **constants)


def test_refuses_a_weight_that_is_not_constant() -> None:
    text = f"""g (float[N,3,6,6] x, float[4,3,3,3] w0) => (float[N,4,4,4] y) {{
        [abs] W = Abs(w0) [conv] c = Conv(x, W) {CONV_BN} }}"""
    refused(text, {"bn": "Conv 'conv': its weight 'W' is not a constant: it comes from Abs 'abs'"}, **bn(4))


def test_refuses_a_bias_that_is_not_constant() -> None:
    text = f"g (float[N,3,6,6] x, float[4] B) => (float[N,4,4,4] y) {{ [conv] c = Conv(x, W, B) {CONV_BN} }}"
    refused(text, {"bn": "Conv 'conv': its bias 'B' is not a constant: it is a graph input"}, W=W, **bn(4))


def test_refuses_a_gemm_bias_that_differs_from_row_to_row() -> None:
    text = f"g (float[3,4] x) => (float[3,6] y) {{ [fc] c = Gemm(x, W, B) {CONV_BN} }}"
    reason = "Gemm 'fc': its bias 'B' of shape (3, 1) is not one number per output channel"
    refused(text, {"bn": reason}, W=normal(4, 6), B=normal(3, 1), **bn(6))


def test_refuses_float16() -> None:
    text = f"g (float16[N,3,6,6] x) => (float16[N,4,4,4] y) {{ [conv] c = Conv(x, W) {CONV_BN} }}"
    half = {k: v.astype(np.float16) for k, v in bn(4).items()}
    refused(
        text, {"bn": "Conv 'conv': its weight 'W' is float16; only float32 is handled"}, W=W.astype(np.float16), **half
    )


def test_refuses_a_negative_variance() -> None:
    constants = bn(4, v=np.float32([1, 1, -2, 1]))
    refused(
        CONV.format(CONV_BN), {"bn": "its variance plus epsilon is not positive in every channel"}, W=W, **constants
    )


def test_refuses_nan_statistics() -> None:
    constants = bn(4, v=np.float32([1, np.nan, 1, 1]))
    refused(
        CONV.format(CONV_BN), {"bn": "its variance plus epsilon is not positive in every channel"}, W=W, **constants
    )


def test_refuses_numbers_that_overflow() -> None:
    reason = "the merged weight or bias of Conv 'conv' would not be finite in float32"
    refused(CONV.format(CONV_BN), {"bn": reason}, W=W * np.float32(1e37), **bn(4, s=np.full(4, 1e6, np.float32)))


def test_refuses_a_division_by_zero() -> None:
    refused(CONV.format("[div] y = Div(c, K)"), {"div": "it divides by zero"}, W=W, K=np.float32(0))


def test_refuses_statistics_per_position() -> None:
    """Opset 7 and 8 had ``spatial=0``: one scale per channel and position."""
    text = CONV.format(f"[bn] y = {BN} <spatial=0> (c, s, b, m, v)")
    constants = {name: positive(4, 4, 4, seed=i) for i, name in enumerate("sbmv")}
    refused(text, {"bn": "its scale 's' has shape (4, 4, 4), expected (4,)"}, opset=8, W=W, **constants)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "its input is a graph input, not from a Conv, ConvTranspose, Gemm or MatMul"),
        ("[relu] c = Relu(x)", "its input comes from Relu 'relu', not from a Conv, ConvTranspose, Gemm or MatMul"),
    ],
)
def test_a_batchnorm_behind_no_layer_is_left_alone(before: str, expected: str) -> None:
    source = "c" if before else "x"
    text = f"g (float[N,4,6,6] x) => (float[N,4,6,6] y) {{ {before} [bn] y = {BN} ({source}, s, b, m, v) }}"
    refused(text, {"bn": expected}, **bn(4))


def test_refuses_matmul_whose_channels_are_not_axis_1() -> None:
    text = f"g (float[N,6,4] x) => (float[N,6,6] y) {{ [fc] c = MatMul(x, W) {CONV_BN} }}"
    reason = "its channels are axis 1 of 3 axes, those of MatMul are the last"
    refused(text, {"bn": reason}, W=normal(4, 6), **bn(6))


def test_refuses_matmul_with_the_constant_first() -> None:
    text = f"g (float[4,6] x) => (float[3,6] y) {{ [fc] c = MatMul(W, x) {CONV_BN} }}"
    reason = "MatMul 'fc': its first input is the constant one, so its channels are not on the last axis"
    refused(text, {"bn": reason}, W=normal(3, 4), **bn(6))


def test_refuses_batched_weights() -> None:
    text = f"g (float[2,6,4] x) => (float[2,6,6] y) {{ [fc] c = MatMul(x, W) {CONV_BN} }}"
    refused(
        text,
        {"bn": "MatMul 'fc': its weight has shape (2, 4, 6), which does not fit a MatMul"},
        W=normal(2, 4, 6),
        **bn(6),
    )


# ---- skip_layers -------------------------------------------------------------------------------

TWO = f"""g (float[N,3,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {{
    [a_conv] c = Conv(x, W) [a_bn] y = {BN} (c, s, b, m, v)
    [b_conv] d = Conv(x, W) [b_bn] z = {BN} (d, s, b, m, v) }}"""


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a_conv", "Conv 'a_conv': skip_layers lists Conv 'a_conv' ('a_conv')"),
        ("a_bn", "skip_layers lists BatchNormalization 'a_bn' ('a_bn')"),
        ("a_*", "Conv 'a_conv': skip_layers lists Conv 'a_conv' ('a_*')"),
        ("?_b[n]", None),
    ],
)
def test_skip_layers_takes_names_and_globs_of_either_node(pattern: str, reason: str | None) -> None:
    model = build(TWO, W=W, **bn(4))
    if reason is None:
        report, _ = fused(model, changed=0, left=["Conv", BN, "Conv", BN], skip_layers=(pattern,))
        assert set(reasons(report)) == {"a_bn", "b_bn"}
    else:
        report, _ = fused(model, changed=1, left=["Conv", BN, "Conv"], skip_layers=(pattern,))
        assert reasons(report) == {"a_bn": reason}


def test_skip_layers_that_match_nothing_are_an_error_with_a_hint() -> None:
    graph = GraphModel.from_proto(build(TWO, W=W, **bn(4)))
    with pytest.raises(RecipeError, match=r"skip_layers: 'a_cnv' matches no node; did you mean 'a_conv'"):
        apply(graph, FuseBatchNorm(("a_cnv",)))


def test_old_constants_are_gone_after_a_sweep() -> None:
    graph = GraphModel.from_proto(build(CONV.format(CONV_BN), W=W, **bn(4)))
    apply(graph, FuseBatchNorm())
    graph.sweep()
    proto = graph.to_proto()
    assert [t.name for t in proto.graph.initializer] == ["W_fused", "conv_bias"]
    assert list(run(proto)) == ["y"]
