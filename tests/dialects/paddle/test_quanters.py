"""Paddle's and PaddleSlim's quanters: arguments, what they mean for a recipe, what training begins with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxq.dialects.paddle.factories import QuanterFactory
from onnxq.dialects.paddle.moving import MovingAbsMax, WarmUp
from onnxq.dialects.paddle.quanters import (
    ActLSQplusQuanter,
    FakeQuanterChannelWiseAbsMaxObserver,
    FakeQuanterWithAbsMaxObserver,
    PACTQuanter,
    WeightLSQplusQuanter,
)
from onnxq.errors import RecipeError
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.insert_fake_quant import InsertFakeQuant
from onnxq.recipe import ARQ, LSQ, PACT, ULQ, ActivationConfig, LSQPlus, Recipe, WeightConfig
from tests.dialects.paddle import references
from tests.graphs import apply, build, normal
from tests.passes.ptq import planned

Array = NDArray[np.float32]
LSQ_PLUS = {
    "quant_bits": 8, "sign": True, "symmetric": True, "per_channel": False, "batch_init": 20, "quant_linear": False,
    "channel_num": None, "reduce_type": None, "dtype": "float32", "name": None,
}  # fmt: skip


def peaks(*values: float) -> list[Array]:
    """Batches of two samples with these largest magnitudes."""
    return [np.float32([[v, -v / 2], [v / 4, 0.0]]) for v in values]


def prepared(
    batches: Sequence[Array],
    weight: Array,
    activations: ActivationConfig | None = None,
    weights: WeightConfig | None = None,
) -> Any:
    """The training graph of one MatMul, and its context."""
    model = build("g (float[N,K] x) => (float[N,M] y) { [fc] y = MatMul (x, W) }", W=weight)
    recipe = Recipe(
        target="ort", activations=activations or ActivationConfig(method="minmax"), weights=weights or WeightConfig()
    )
    graph, ctx = planned(model, data=[{"x": b} for b in batches], recipe=recipe)
    apply(graph, Calibrate(), ChooseParams(), InsertFakeQuant(), ctx=ctx)
    return graph, ctx


def start_of(quanter: QuanterFactory, batches: Sequence[Array]) -> tuple[float, int, dict[str, float], Any]:
    """Scale and zero point of the activation where training begins, its parameters, and what is learned of it."""
    graph, ctx = prepared(batches, normal(batches[0].shape[1], 3), quanter.activation_config())
    (learned,) = (r for r in ctx.ranges_learned if r.group == "x")
    values = {name: np.asarray(graph.value(graph.tensor(name))) for name in learned.parameters}
    found = learned.grid(values).params(learned.spec)
    numbers = {name: float(value[0]) for name, value in values.items()}
    return float(found.scale), int(found.zero_point), numbers, learned


# ---- arguments


@pytest.mark.parametrize(
    ("quanter", "arguments"),
    [
        (FakeQuanterWithAbsMaxObserver, {"moving_rate": 0.9, "bit_length": 8, "dtype": "float32", "name": None}),
        (FakeQuanterChannelWiseAbsMaxObserver, {"bit_length": 8, "dtype": "float32", "name": None}),
        (WeightLSQplusQuanter, LSQ_PLUS),
        (ActLSQplusQuanter, LSQ_PLUS),
    ],
)
def test_positional_arguments_and_defaults_are_upstreams(quanter: Any, arguments: dict[str, object]) -> None:
    given = {
        name: p.default for name, p in inspect.signature(quanter).parameters.items() if p.kind is not p.KEYWORD_ONLY
    }
    assert given == arguments
    assert list(given) == list(arguments)
    assert quanter().trains


def test_pact_takes_a_quanter_first() -> None:
    names = list(inspect.signature(PACTQuanter).parameters)
    assert names[:3] == ["quanter", "init_value", "learning_rate"]
    assert (PACTQuanter().init_value, PACTQuanter().learning_rate) == (100.0, 1000.0)
    inner = FakeQuanterWithAbsMaxObserver(bit_length=4)
    assert PACTQuanter(inner).activation_config().bits == 4
    assert PACTQuanter(FakeQuanterWithAbsMaxObserver).activation_config().trained == PACT()  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="quanter found 8; must be a quanter"):
        PACTQuanter(8).activation_config()  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="init_value found 0; must be > 0"):
        PACTQuanter(inner, 0).activation_config()


def test_wrong_arguments_and_wrong_places_are_refused() -> None:
    with pytest.raises(RecipeError, match="moving_rate found 1; must be >= 0 and < 1"):
        FakeQuanterWithAbsMaxObserver(1).activation_config()
    with pytest.raises(RecipeError, match="batch_init found 0; must be a whole number >= 1"):
        ActLSQplusQuanter(batch_init=0).activation_config()
    with pytest.raises(RecipeError, match="an activation has one scale; leave out per_channel"):
        ActLSQplusQuanter(per_channel=True).activation_config()
    with pytest.raises(RecipeError, match="FakeQuanterChannelWiseAbsMaxObserver is for weights"):
        FakeQuanterChannelWiseAbsMaxObserver().activation_config()
    with pytest.raises(RecipeError, match="PACTQuanter is for activations"):
        PACTQuanter().weight_config()


def test_what_is_trained() -> None:
    config = FakeQuanterWithAbsMaxObserver().activation_config()
    assert (config.type, config.symmetric, config.trained) == ("int8", True, ULQ())
    weights = FakeQuanterWithAbsMaxObserver(bit_length=4).weight_config()
    assert (weights.type, weights.bits, weights.granularity, weights.trained) == ("int8", 4, "per_tensor", ARQ())
    weights = FakeQuanterChannelWiseAbsMaxObserver().weight_config()
    assert (weights.granularity, weights.trained) == ("per_axis", ARQ())
    assert ActLSQplusQuanter(4, False).activation_config().trained == LSQPlus()
    assert (ActLSQplusQuanter(4, False).activation_config().type, ActLSQplusQuanter(4).codes()["bits"]) == ("uint8", 4)
    weights = WeightLSQplusQuanter(4, per_channel=True).weight_config()
    assert (weights.bits, weights.granularity, weights.trained) == (4, "per_axis", LSQ(init="moments"))


def test_strict_lsq_plus_always_has_8_bits_with_a_sign() -> None:
    config = ActLSQplusQuanter(4, False, strict_compat=True).activation_config()
    assert (config.type, config.bits) == ("int8", None)
    weights = WeightLSQplusQuanter(4, False, strict_compat=True).weight_config()
    assert (weights.type, weights.bits) == ("int8", None)


# ---- the moving average of the largest magnitudes


def test_the_recursion_gives_paddles_numbers() -> None:
    observer, found = MovingAbsMax(), []
    assert observer.range() == (-0.001, 0.001)
    for batch in peaks(2.0, 3.0, 1.0):
        observer.observe(batch)
        found.append(observer.threshold)
    assert found == pytest.approx([1.5263, 2.0701, 1.7589], abs=5e-5)
    assert found == pytest.approx([references.moving_absmax(peaks(2.0, 3.0, 1.0)[:n]) for n in (1, 2, 3)])


def test_training_begins_where_the_average_stands() -> None:
    scale, zero_point, parameters, learned = start_of(
        FakeQuanterWithAbsMaxObserver(strict_compat=True), peaks(2.0, 3.0, 1.0)
    )
    assert scale * 127 == pytest.approx(1.7589, abs=5e-5)
    assert zero_point == 0
    assert learned.method == "ulq"
    assert list(parameters) == ["x.clip_max"]


def test_by_default_the_average_is_over_samples() -> None:
    batches = peaks(2.0, 3.0, 1.0)
    samples = [sample[None] for batch in batches for sample in batch]
    expected = references.moving_absmax(samples, 0.5)
    for data in (batches, samples, [np.concatenate(batches)]):
        scale, *_ = start_of(FakeQuanterWithAbsMaxObserver(0.5), data)
        assert scale * 127 == pytest.approx(expected, rel=1e-5)


# ---- PACT


def test_pact_begins_with_the_calibrated_end() -> None:
    quanter = FakeQuanterWithAbsMaxObserver(strict_compat=True)
    scale, zero_point, parameters, learned = start_of(PACTQuanter(quanter), peaks(2.0, 3.0, 1.0))
    assert scale * 127 == pytest.approx(1.7589, abs=5e-5)
    assert zero_point == 0
    assert learned.method == "pact"
    assert parameters == {"x.alpha": pytest.approx(1.0)}  # moved by parts of what it begins with


def test_pact_begins_with_a_value_of_ones_own() -> None:
    scale, _, parameters, learned = start_of(PACTQuanter(init_value=8.0, learning_rate=2.0), peaks(2.0, 3.0))
    assert scale * 127 == pytest.approx(8.0)
    assert learned.factor == pytest.approx(2.0)
    assert parameters == {"x.alpha": pytest.approx(4.0)}


def test_strict_pact_begins_with_100_and_moves_far() -> None:
    scale, _, parameters, learned = start_of(PACTQuanter(strict_compat=True), peaks(2.0, 3.0))
    assert scale * 127 == pytest.approx(100.0)
    assert learned.factor == pytest.approx(1000.0)
    assert parameters == {"x.alpha": pytest.approx(0.1)}


# ---- LSQ+


def lopsided(count: int) -> list[Array]:
    return [np.abs(normal(2, 6, seed=i, scale=1.0 + i)) - np.float32(0.4) for i in range(count)]


@pytest.mark.parametrize("slip", [False, True])
@pytest.mark.parametrize("batch_init", [1, 3, 20])
def test_the_warm_up_of_step_and_offset(slip: bool, batch_init: int) -> None:
    observer = WarmUp(symmetric=False, batch_init=batch_init, scale_for_offset=slip)
    for batch in lopsided(5):
        observer.observe(batch)
    step, offset = references.lsq_plus_start(lopsided(5), -128, 255, batch_init, slip=slip)
    assert (observer.step, observer.offset) == pytest.approx((step, offset))
    assert observer.range() == pytest.approx((-128 * step + offset, 127 * step + offset))


def test_the_slip_moves_the_offset_far() -> None:
    right, wrong = WarmUp(symmetric=False), WarmUp(symmetric=False, scale_for_offset=True)
    for batch in lopsided(4):
        right.observe(batch)
        wrong.observe(batch)
    assert abs(wrong.offset - right.offset) > 0.3 * abs(right.offset)
    assert wrong.step == right.step


def test_training_begins_with_the_step_of_lsq_plus() -> None:
    batches = lopsided(3)
    step, _ = references.lsq_plus_start(batches, -128, 255, 20, slip=False)
    scale, zero_point, parameters, learned = start_of(ActLSQplusQuanter(strict_compat=True), batches)
    assert scale == pytest.approx(step, rel=1e-5)
    assert zero_point == 0
    assert learned.method == "lsq_plus"
    assert list(parameters) == ["x.log_step"]


def test_training_begins_with_the_offset_of_lsq_plus() -> None:
    samples = [sample[None] for batch in lopsided(3) for sample in batch]
    step, offset = references.lsq_plus_start(samples, -128, 255, 20, slip=False)
    scale, zero_point, parameters, _ = start_of(ActLSQplusQuanter(symmetric=False), lopsided(3))
    assert scale == pytest.approx(step, rel=1e-4)
    assert zero_point == pytest.approx(-offset / step, abs=0.51)
    assert list(parameters) == ["x.log_step", "x.offset"]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_begin_with_their_moments(strict: bool, per_channel: bool) -> None:
    weight = normal(40, 3, seed=2) + np.float32([0.0, 1.0, -2.0])
    config = WeightLSQplusQuanter(per_channel=per_channel, strict_compat=strict).weight_config()
    graph, ctx = prepared([normal(2, 40)], weight, weights=config)
    (scale,) = ctx.scales_learned
    found = np.exp(np.asarray(graph.value(graph.tensor(scale.parameter)))).reshape(-1)
    expected = []
    for values in [weight[:, c] for c in range(3)] if per_channel else [weight.reshape(-1)]:
        mean = sum(map(float, values)) / len(values)
        deviation = (sum((float(v) - mean) ** 2 for v in values) / len(values)) ** 0.5
        expected.append(max(abs(mean - 3 * deviation), abs(mean + 3 * deviation)) / (255 if strict else 128))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_by_absolute_maximum_follow_the_weights() -> None:
    weight = normal(10, 3, seed=4)
    for quanter, shape in ((FakeQuanterChannelWiseAbsMaxObserver(), (3,)), (FakeQuanterWithAbsMaxObserver(), ())):
        _, ctx = prepared([normal(2, 10)], weight, weights=quanter.weight_config())
        (scale,) = ctx.scales_learned
        assert (scale.method, scale.parameter) == ("arq", "")
        for factor in (1, 3):
            params = scale.params(weight * np.float32(factor), {})
            assert params is not None
            largest = np.abs(weight).max(axis=0 if shape else None)
            np.testing.assert_allclose(params.scale * 127, factor * largest, rtol=1e-6)
