"""What trainable quantizers compute and what their gradients are, in the training runtime, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxq.algos import lsq
from onnxq.graph import GraphModel
from onnxq.learned import LearnedRange, LearnedScale
from onnxq.passes._fake_quant_ranges import RangeWriter
from onnxq.passes._fake_quant_weights import WeightWriter
from onnxq.plan import WeightPlan
from onnxq.qat.worker_client import Worker
from onnxq.recipe import AbsMax
from onnxq.spec import PerAxis, PerTensor, QType, QuantParams, QuantSpec
from tests.graphs import graph_of, normal

UINT8 = QuantSpec(QType.UINT8, PerTensor(), symmetric=False)
UINT4 = QuantSpec(QType.UINT8, PerTensor(), symmetric=False, bits=4)
INT8 = QuantSpec(QType.INT8, PerTensor(), symmetric=True, narrow=True)
ASCEND = QuantSpec(QType.INT8, PerTensor(), symmetric=True)
INT16 = QuantSpec(QType.INT16, PerTensor(), symmetric=True, narrow=True)
RTOL = 1e-3

Found = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]


def gradients_of_range(
    worker: Worker, learned: LearnedRange, values: dict[str, float], x: NDArray[np.float32]
) -> Found:
    graph = graph_of(f"g (float[{x.shape[0]},{x.shape[1]}] x, float[{x.shape[0]},{x.shape[1]}] g) => (float loss) "
                     "{ r = Identity(x) m = Mul(r, g) loss = ReduceSum <keepdims=0> (m) }")  # fmt: skip
    for name, value in values.items():
        graph.add_constant(name, np.asarray([value], np.float32))
    tensor = graph.tensor("r")
    uses = graph.consumers(tensor)
    rounded = RangeWriter(graph, [learned]).apply(tensor, learned.group, "r")
    graph.replace_uses(tensor, rounded, uses)
    return _run(worker, graph, rounded.name, ("x", *values), {"x": x, "g": upstream(x)})


def _run(worker: Worker, graph: GraphModel, name: str, names: tuple[str, ...], feeds: dict[str, Any]) -> Found:
    graph.sort()
    graph.validate()
    model = graph.to_proto()
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return worker.value_and_gradient(model.SerializeToString(), names, feeds, outputs=(name,))


def rounded_of(values: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The quantizer's result among the outputs, which also hold the loss."""
    return next(value for value in values.values() if value.ndim == 2)


def upstream(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return normal(*x.shape, seed=7)


def samples(scale: float = 1.0) -> NDArray[np.float32]:
    return normal(37, 41, seed=3, scale=scale)


def learned(method: Any, spec: QuantSpec, *names: str, **others: Any) -> LearnedRange:
    return LearnedRange("r", method, spec, ("r",), names, **others)


@pytest.mark.parametrize("spec", [UINT8, UINT4], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_ulq(worker: Worker, spec: QuantSpec, factor: float) -> None:
    x, high, low = samples(), 1.7, -0.9
    what = learned("ulq", spec, "r.clip_max", "r.clip_min", factor=factor)
    values, found = gradients_of_range(worker, what, {"r.clip_max": high / factor, "r.clip_min": low / factor}, x)
    grid = what.grid({"r.clip_max": np.float32([high / factor]), "r.clip_min": np.float32([low / factor])})
    np.testing.assert_array_equal(rounded_of(values), grid.round(x))
    expected = lsq.ulq_gradient(x, upstream(x), high, low, spec)
    np.testing.assert_allclose(found["x"], expected.x, rtol=RTOL)
    np.testing.assert_allclose(found["r.clip_max"], [expected.high * factor], rtol=RTOL)
    np.testing.assert_allclose(found["r.clip_min"], [expected.low * factor], rtol=RTOL)


def test_ulq_moves_its_ends_as_finite_differences_say(worker: Worker) -> None:
    """Where nothing is rounded away (16 bits), the quantizer is nearly a clip, whose derivative needs no convention."""
    spec = QuantSpec(QType.UINT16, PerTensor(), symmetric=False)
    x, high, low, h = samples().astype(np.float64), 1.25, -0.75, 1e-4
    what = learned("ulq", spec, "r.clip_max", "r.clip_min")
    start = {"r.clip_max": high, "r.clip_min": low}
    _, found = gradients_of_range(worker, what, start, x.astype(np.float32))
    g = upstream(x.astype(np.float32)).astype(np.float64)
    for name, moved in (
        ("r.clip_max", lambda d: np.clip(x, low, high + d)),
        ("r.clip_min", lambda d: np.clip(x, low + d, high)),
    ):
        numeric = ((moved(h) - moved(-h)) * g).sum() / (2 * h)
        np.testing.assert_allclose(found[name], [numeric], rtol=1e-2)


@pytest.mark.parametrize("spec", [INT8, ASCEND, INT16], ids=["narrow", "full", "16 bits"])
def test_symmetric_ulq(worker: Worker, spec: QuantSpec) -> None:
    x, high = samples(), 0.8
    what = learned("ulq", spec, "r.clip_max")
    values, found = gradients_of_range(worker, what, {"r.clip_max": high}, x)
    grid = what.grid({"r.clip_max": np.float32([high])})
    np.testing.assert_array_equal(rounded_of(values), grid.round(x))
    expected = lsq.ulq_gradient(x, upstream(x), high, 0.0, spec)
    np.testing.assert_allclose(found["x"], expected.x, rtol=RTOL)
    np.testing.assert_allclose(found["r.clip_max"], [expected.high], rtol=RTOL)


def test_a_fixed_lower_end_and_bounds(worker: Worker) -> None:
    x = samples(4.0)
    what = learned("ulq", UINT8, "r.clip_max", fixed_min=True, bounds=(0.0, 6.0))
    for high, moves in ((5.0, True), (7.0, False)):
        values, found = gradients_of_range(worker, what, {"r.clip_max": high}, x)
        rounded = rounded_of(values)
        assert rounded.min() == 0.0
        assert rounded.max() == pytest.approx(min(high, 6.0))
        assert bool(found["r.clip_max"][0] != 0) is moves


@pytest.mark.parametrize("positive", [True, False])
def test_pact(worker: Worker, positive: bool) -> None:
    x, alpha = samples(), 0.8
    what = learned("pact", UINT8, "r.alpha", fixed_min=positive)
    values, found = gradients_of_range(worker, what, {"r.alpha": alpha}, x)
    low = 0.0 if positive else -alpha
    grid = what.grid({"r.alpha": np.float32([alpha])})
    np.testing.assert_allclose(rounded_of(values), grid.round(x), atol=1e-6)
    expected = lsq.pact_gradient(x, upstream(x), alpha, low, UINT8)
    np.testing.assert_allclose(found["x"], expected.x, rtol=RTOL)
    at_low = 0.0 if positive else -expected.low
    np.testing.assert_allclose(found["r.alpha"], [expected.high + at_low], rtol=RTOL)


@pytest.mark.parametrize("factor", [1.0, 1000.0], ids=["", "rate 1000"])
@pytest.mark.parametrize("spec", [INT8, INT16], ids=["8 bits", "16 bits"])
def test_pact_on_both_sides(worker: Worker, spec: QuantSpec, factor: float) -> None:
    """As PaddleSlim's: the end learns +1 from what lies above it and -1 from what lies below its negative."""
    x, alpha = samples(), 0.8
    what = learned("pact", spec, "r.alpha", factor=factor)
    values, found = gradients_of_range(worker, what, {"r.alpha": alpha / factor}, x)
    grid = what.grid({"r.alpha": np.float32([alpha / factor])})
    np.testing.assert_allclose(rounded_of(values), grid.round(x), atol=1e-6)
    above, below, g = x > alpha, x < -alpha, upstream(x).astype(np.float64)
    np.testing.assert_allclose(found["x"], g * ~(above | below), rtol=RTOL)
    np.testing.assert_allclose(found["r.alpha"], [(g[above].sum() - g[below].sum()) * factor], rtol=RTOL)


@pytest.mark.parametrize("offset", [-0.531, 0.531], ids=["inside", "as far as codes go"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("spec", [UINT8, UINT4, INT8], ids=["8 bits", "4 bits", "symmetric"])
def test_lsq_plus(worker: Worker, spec: QuantSpec, rate: float, offset: float) -> None:
    x, step = samples(), 0.013 * 2 ** (8 - spec.bits)
    names = ["r.log_step"] if spec.symmetric else ["r.log_step", "r.offset"]
    what = learned("lsq_plus", spec, *names, rate=rate, factor=2.0)
    start = {"r.log_step": np.log(step) / rate} | ({} if spec.symmetric else {"r.offset": offset / 2})
    values, found = gradients_of_range(worker, what, start, x)
    grid = what.grid({name: np.float32([value]) for name, value in start.items()})
    np.testing.assert_allclose(rounded_of(values), grid.round(x), rtol=1e-6, atol=1e-7)
    expected = lsq.lsq_plus_gradient(x, upstream(x), np.log(step), offset, spec)
    np.testing.assert_allclose(found["x"], expected.x, rtol=RTOL)
    np.testing.assert_allclose(found["r.log_step"], [float(expected.log_step) * rate], rtol=RTOL)
    if not spec.symmetric:
        np.testing.assert_allclose(found["r.offset"], [expected.offset * 2], rtol=RTOL)


# ---- weights


def gradients_of_weight(
    worker: Worker,
    scale: LearnedScale,
    weight: NDArray[np.float32],
    log_scale: NDArray[np.float32] | None,
    **others: Any,
) -> Found:
    shape = ",".join(map(str, weight.shape))
    graph = graph_of(f"g (float[{shape}] g) => (float loss) "
                     "{ r = Identity(w) m = Mul(r, g) loss = ReduceSum <keepdims=0> (m) }", w=weight)  # fmt: skip
    names = ["w"]
    if log_scale is not None:
        names.append(str(graph.add_constant(scale.parameter, log_scale).name))
    node = graph.nodes("Identity")[0]
    graph.rename_node(node, "layer")
    plan = WeightPlan("layer", 0, "w", "w", scale.spec, AbsMax())
    WeightWriter(graph, others.get("small", False), others.get("params", {})).write(plan, scale)
    return _run(worker, graph, "r", tuple(names), {"g": upstream(weight)})


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("small", [False, True])
def test_lsq(worker: Worker, bits: int, small: bool) -> None:
    spec = QuantSpec(QType.INT8, PerAxis(0), symmetric=True, bits=bits, narrow=bits == 8)
    weight = normal(6, 5, 3, 3, seed=1)
    start = np.log(np.abs(weight).reshape(6, -1).max(1) / max(spec.bounds[1], 1) * 0.6).astype(np.float32)
    log_scale = start.reshape(6, 1, 1, 1)
    what = LearnedScale("w", "w", "lsq", spec, "w.log_scale")
    values, found = gradients_of_weight(worker, what, weight, log_scale, small=small)
    np.testing.assert_allclose(values["r"], lsq.lsq(weight, log_scale, spec), rtol=1e-6)
    expected = lsq.lsq_gradient(weight, upstream(weight), log_scale, spec)
    factor = lsq.gradient_scale(weight.size, 6, spec) if small else 1.0
    np.testing.assert_allclose(found["w"], expected.x, rtol=RTOL)
    np.testing.assert_allclose(found["w.log_scale"], expected.log_step * factor, rtol=RTOL, atol=1e-5)
    assert found["w.log_scale"].shape == (6, 1, 1, 1)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("opset", [17, 21])
def test_arq_follows_the_weight_and_passes_gradients(
    worker: Worker, full_range: bool, axis: int | None, opset: int
) -> None:
    spec = QuantSpec(QType.INT8, PerTensor() if axis is None else PerAxis(axis), symmetric=True, narrow=not full_range)
    weight = normal(6, 5, seed=1)
    weight[2] *= -3
    what = LearnedScale("w", "w", "arq", spec, full_range=full_range)
    values, found = gradients_of_weight(worker, what, weight, None)
    params = lsq.arq_params(weight, spec, full_range=full_range)
    scale = params.scale.reshape((1, -1) if axis == 1 else ())
    codes = np.clip(np.rint(weight / scale), *spec.bounds)
    np.testing.assert_array_equal(values["r"], codes * scale)
    np.testing.assert_array_equal(found["w"], upstream(weight))


def test_a_fixed_scale_passes_gradients(worker: Worker) -> None:
    params = QuantParams(UINT8, np.float32(0.02), np.int32(100))
    weight = normal(6, 5, seed=1)
    values, found = gradients_of_weight(
        worker, LearnedScale("w", "w", "fixed", UINT8), weight, None, params={"w": params}
    )
    expected = (np.clip(np.rint(weight / np.float32(0.02)) + 100, 0, 255) - 100) * np.float32(0.02)
    np.testing.assert_allclose(values["r"], expected, rtol=1e-6)
    np.testing.assert_array_equal(found["w"], upstream(weight))
