"""PaddleSlim's observers: arguments, what they mean for a recipe, and their numbers against plain references."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxq.dialects.paddle import strict
from onnxq.dialects.paddle.factories import CustomObserver, ObserverFactory, as_factory, threshold_of
from onnxq.dialects.paddle.observers import (
    AbsMaxChannelWiseWeightObserver,
    AbsmaxObserver,
    AVGObserver,
    EMDObserver,
    GroupWiseWeightObserver,
    HistObserver,
    KLObserver,
    MSEChannelWiseWeightObserver,
    MSEObserver,
)
from onnxq.errors import RecipeError
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.recipe import Recipe
from onnxq.spec import QuantParams
from tests.dialects.paddle import references
from tests.graphs import apply, build, normal
from tests.passes.ptq import planned

Array = NDArray[np.float32]
ACTIVATIONS = [AbsmaxObserver, AVGObserver, MSEObserver, EMDObserver, HistObserver, KLObserver]
RELAXED = 2e-3
"""Bins of the streaming histogram are up to 1/4096 of the range wide."""


def chosen(
    factory: ObserverFactory, batches: Sequence[Array], *, threads: int = 1, target: str = "tensorrt"
) -> QuantParams:
    """The scale and zero point of a model's input after calibration on these batches."""
    model = build("g (float[N,K] x) => (float[N,M] y) { [fc] y = MatMul (x, W) }", W=normal(batches[0].shape[1], 3))
    config = Recipe.from_dict({"target": target}).replace(activations=factory.activation_config())
    graph, ctx = planned(model, data=[{"x": batch} for batch in batches], recipe=config.to_dict(), threads=threads)
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    return ctx.params["x"]


def threshold(factory: ObserverFactory, batches: Sequence[Array], **how: Any) -> float:
    return threshold_of(factory.activation_config(), float(chosen(factory, batches, **how).scale))


def batches_of(*rows: int, seed: int = 0, scale: float = 1.0, width: int = 50) -> list[Array]:
    """Batches of so many samples each, of different spreads, with tails."""
    found = [normal(n, width, seed=seed + i, scale=scale * (1 + 0.5 * i)) for i, n in enumerate(rows)]
    return [np.float32(0.3) * x + x**3 / np.float32(8) for x in found]


# ---- arguments


@pytest.mark.parametrize(
    ("observer", "arguments"),
    [
        (AbsmaxObserver, {"quant_bits": 8}),
        (AVGObserver, {"quant_bits": 8}),
        (MSEObserver, {"quant_bits": 8}),
        (EMDObserver, {"quant_bits": 8}),
        (HistObserver, {"quant_bits": 8, "bins_count": 2048, "percent": 0.999, "sign": True, "symmetric": True}),
        (KLObserver, {"quant_bits": 8, "bins_count": 2048}),
        (AbsMaxChannelWiseWeightObserver, {"quant_bits": 8}),
        (MSEChannelWiseWeightObserver, {"quant_bits": 8}),
        (GroupWiseWeightObserver, {"quant_bits": 8, "group_size": 128}),
    ],
)
def test_positional_arguments_and_defaults_are_upstreams(observer: Any, arguments: dict[str, object]) -> None:
    given = {
        name: p.default for name, p in inspect.signature(observer).parameters.items() if p.kind is not p.KEYWORD_ONLY
    }
    assert given == arguments
    assert list(given) == list(arguments)


def test_codes_are_symmetric_int8_unless_asked_for() -> None:
    config = MSEObserver().activation_config()
    assert (config.type, config.bits, config.symmetric) == ("int8", None, True)
    config = KLObserver(4, sign=False, symmetric=False).activation_config()
    assert (config.type, config.bits, config.symmetric) == ("uint8", 4, False)
    config = HistObserver(16, 2048, 0.999, False, True).activation_config()
    assert (config.type, config.bits, config.symmetric) == ("uint16", None, True)
    with pytest.raises(RecipeError, match="quant_bits found 1; must be a whole number from 2 to 16"):
        AVGObserver(1).activation_config()


def test_wrong_arguments_and_wrong_places_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"percent found 99\.9; must be a share > 0\.5 and <= 1"):
        HistObserver(percent=99.9).activation_config()
    with pytest.raises(RecipeError, match="group_size found 32; must be 64 or 128"):
        GroupWiseWeightObserver(group_size=32).weight_config()
    with pytest.raises(RecipeError, match="100 bins are too few for 8 bits; use 254 or more"):
        KLObserver(bins_count=100, strict_compat=True).activation_config()
    with pytest.raises(RecipeError, match="GroupWiseWeightObserver is for weights"):
        GroupWiseWeightObserver().activation_config()
    with pytest.raises(RecipeError, match="EMDObserver is for activations"):
        EMDObserver().weight_config()


def test_what_a_user_may_mean_by_an_observer() -> None:
    assert as_factory(None, where="activation") is None
    assert as_factory(MSEObserver, where="activation") == MSEObserver()
    assert as_factory(KLObserver(4), where="activation") == KLObserver(4)
    assert as_factory(strict.MSE, where="activation") == CustomObserver(strict.MSE)
    with pytest.raises(RecipeError, match="activation found 'mse'; must be an observer or a quanter"):
        as_factory("mse", where="activation")


# ---- activations, all samples together


@pytest.mark.parametrize("observer", ACTIVATIONS)
def test_batches_and_threads_do_not_change_a_bit(observer: Any) -> None:
    data = np.concatenate(batches_of(5, 3, 4))
    expected = chosen(observer(), [data])
    for cut, threads in ((1, 1), (5, 2), (7, 3)):
        found = chosen(observer(), np.array_split(data, cut), threads=threads)
        assert found.same_as(expected)
    assert int(expected.zero_point) == 0


def test_absmax() -> None:
    batches = batches_of(3, 2)
    assert threshold(AbsmaxObserver(), batches) == pytest.approx(max(np.abs(b).max() for b in batches), rel=1e-6)


def test_avg_is_the_mean_over_samples() -> None:
    batches = batches_of(1, 6)
    peaks = [np.abs(sample).max() for batch in batches for sample in batch]
    assert threshold(AVGObserver(), batches) == pytest.approx(sum(map(float, peaks)) / 7, rel=1e-6)


def test_avg_sums_exactly() -> None:
    """A float32 sum would lose the small one, a float64 sum the order."""
    peaks = [3.0e7, 1e-7, 0.1, 7.7, 3.0e7]
    batches = [np.full((1, 4), p, np.float32) for p in peaks]
    found = [chosen(AVGObserver(), [batches[i] for i in order]) for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2])]
    assert found[0].same_as(found[1])


def test_mse_is_no_worse_than_all_candidates() -> None:
    batches = batches_of(4, 4, seed=5)
    values = [float(v) for v in np.concatenate(batches).reshape(-1)]
    largest = max(map(abs, values))
    least = min(references.squared_error(values, s * largest) for s in (*references.factors(0.99), 1.0))
    found = threshold(MSEObserver(), batches)
    assert 0.3 * largest * 0.999 <= found <= largest * 1.001
    assert references.squared_error(values, found) <= least * 1.02


def test_emd_is_the_best_candidate_of_all_values() -> None:
    batches = batches_of(4, 4, seed=3)
    values = [float(v) for v in np.concatenate(batches).reshape(-1)]
    largest = max(map(abs, values))
    losses = {s: references.moved(values, s * largest, unbiased=False) for s in (*references.factors(0.99), 1.0)}
    found = threshold(EMDObserver(), batches) / largest
    nearest = min(losses, key=lambda s: abs(s - found))
    assert found == pytest.approx(nearest, rel=1e-5)
    assert losses[nearest] <= min(losses.values()) + RELAXED * largest


def test_hist_cuts_both_ends() -> None:
    batches = [*batches_of(40, 30, width=60), np.full((2, 60), 3.0, np.float32)]
    ordered = np.sort(np.concatenate(batches).reshape(-1))
    cut = int(ordered.size * 0.01)
    expected = max(-ordered[cut], ordered[-1 - cut])
    found = threshold(HistObserver(percent=0.99), batches)
    assert found == pytest.approx(float(expected), abs=RELAXED * float(np.abs(ordered).max()))
    assert found < 0.7 * np.abs(ordered).max()
    low = chosen(HistObserver(8, 2048, 0.99, True, False), batches)
    assert float(low.low) == pytest.approx(float(ordered[cut]), abs=2 * RELAXED * float(np.abs(ordered).max()))


def test_kl_looks_at_magnitudes() -> None:
    batches = batches_of(30, 30, seed=8)
    found = threshold(KLObserver(), batches)
    assert threshold(KLObserver(), [-b for b in batches]) == found
    assert found < 0.95 * max(np.abs(b).max() for b in batches)


# ---- activations, to the letter


def test_strict_absmax_begins_at_1e_7() -> None:
    assert threshold(AbsmaxObserver(strict_compat=True), [np.zeros((2, 4), np.float32)]) == pytest.approx(1e-7)
    batches = batches_of(3, 2)
    assert threshold(AbsmaxObserver(strict_compat=True), batches) == threshold(AbsmaxObserver(), batches)


def test_strict_avg_is_the_mean_over_batches() -> None:
    batches = batches_of(1, 6)
    found = threshold(AVGObserver(strict_compat=True), batches)
    assert found == pytest.approx(references.avg_strict(batches), rel=1e-6)
    assert found != pytest.approx(threshold(AVGObserver(), batches), rel=0.02)


def test_strict_candidates_are_35_and_never_all() -> None:
    assert len(list(strict.parts())) == 35
    assert list(strict.parts())[-1] == pytest.approx(0.98)
    even = [np.linspace(-1, 1, 50, dtype=np.float32).reshape(1, 50)]
    assert threshold(MSEObserver(strict_compat=True), even) == pytest.approx(0.98)
    assert threshold(MSEObserver(), even) == pytest.approx(1.0, rel=5e-3)


@pytest.mark.parametrize(("observer", "kind"), [(MSEObserver, "mse"), (EMDObserver, "emd")])
@pytest.mark.parametrize("rows", [(2,), (2, 2), (3, 1, 2)])
def test_strict_searches_keep_the_least_loss_and_not_its_scale(observer: Any, kind: str, rows: tuple[int, ...]) -> None:
    for seed in range(3):
        batches = batches_of(*rows, seed=10 * seed)
        expected = references.searched_strict(batches, kind)
        assert threshold(observer(strict_compat=True), batches) == pytest.approx(expected, rel=1e-5)


def test_strict_mse_leaves_the_largest_value_of_a_worse_batch() -> None:
    small, large = batches_of(2, scale=0.01), batches_of(2, scale=10.0)
    found = threshold(MSEObserver(strict_compat=True), [*small, *large])
    assert found == pytest.approx(float(np.abs(large[0]).max()), rel=1e-6)
    assert threshold(MSEObserver(strict_compat=True), [*large, *small]) < float(np.abs(small[0]).max())


def test_strict_emd_does_not_see_the_negative_side() -> None:
    batch = batches_of(2)[0]
    batch[0, 0] = -50.0
    found = threshold(EMDObserver(strict_compat=True), [batch])
    assert found == pytest.approx(references.searched_strict([batch], "emd"), rel=1e-5)
    assert found <= float(batch.max())
    assert threshold(EMDObserver(), [batch]) >= 0.3 * 50


@pytest.mark.parametrize("bins", [64, 2048])
@pytest.mark.parametrize("seed", [0, 4])
def test_strict_hist_spreads_counts_anew(bins: int, seed: int) -> None:
    batches = batches_of(5, 4, 3, seed=seed)
    batches.insert(1, np.full((1, 50), 99.0, np.float32))  # a batch of equal values is ignored
    batches.insert(0, np.zeros((1, 50), np.float32))
    low, high = references.hist_strict(batches, bins, 0.97)
    found = threshold(HistObserver(8, bins, 0.97, strict_compat=True), batches)
    assert found == pytest.approx(max(-low, high), rel=1e-6)


def test_strict_hist_counts_one_step_too_many_where_unsigned() -> None:
    batches = batches_of(5, 4, seed=2)
    low, high = references.hist_strict(batches, 256, 0.99)
    found = chosen(HistObserver(8, 256, 0.99, False, False, strict_compat=True), batches, target="ort")
    assert float(found.scale) == pytest.approx((high - low) / 256, rel=1e-6)
    assert int(found.zero_point) == round(-low / float(found.scale))
    signed = chosen(HistObserver(8, 256, 0.99, True, False, strict_compat=True), batches)
    assert float(signed.scale) == pytest.approx((high - low) / 255, rel=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_strict_kl_measures_from_the_smallest_value(signed: bool) -> None:
    batches = batches_of(20, 20, seed=6)
    batches = batches if signed else [np.abs(b) for b in batches]
    expected = references.kl_strict(batches, 512)
    found = threshold(KLObserver(8, 512, strict_compat=True), batches)
    assert found == pytest.approx(expected, rel=1e-6)
    if signed:
        assert found != pytest.approx(threshold(KLObserver(8, 512), batches), rel=0.1)


def test_strict_observers_of_a_constant_take_a_tiny_range() -> None:
    batches = [np.full((2, 4), 2.0, np.float32)]
    assert threshold(HistObserver(strict_compat=True), batches) == pytest.approx(1e-8)
    assert threshold(KLObserver(strict_compat=True), batches) == pytest.approx(1e-8)


def test_observers_that_are_joined_take_the_wider_range() -> None:
    one, other, third = strict.AbsMax(), strict.AbsMax(), strict.AbsMax()
    for observer, value in ((one, 1.0), (other, -3.0), (third, 2.0)):
        observer.observe(np.float32([value]))
    assert one.merge(other).merge(third).range() == (-3.0, 3.0)
    assert one.range() == (-1.0, 1.0)


# ---- weights


def weight_params(factory: ObserverFactory, weight: Array) -> QuantParams:
    """The scales of a MatMul's weight, shape (inputs, outputs)."""
    model = build("g (float[N,K] x) => (float[N,M] y) { [fc] y = MatMul (x, W) }", opset=21, ir_version=10, W=weight)
    config = Recipe(
        target="tensorrt", weights=factory.weight_config(), activations=AbsmaxObserver().activation_config()
    )
    graph, ctx = planned(model, data={"x": normal(2, len(weight))}, recipe=config.to_dict())
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    return ctx.params["W"]


def test_absmax_of_each_output_channel() -> None:
    weight = normal(20, 6, seed=1)
    found = weight_params(AbsMaxChannelWiseWeightObserver(), weight)
    np.testing.assert_allclose(found.scale * 127, np.abs(weight).max(axis=0), rtol=1e-6)
    assert not found.zero_point.any()
    single = weight_params(AbsmaxObserver(), weight)
    assert single.scale.shape == ()
    assert float(single.scale) * 127 == pytest.approx(float(np.abs(weight).max()), rel=1e-6)


def test_mse_of_each_output_channel() -> None:
    weight = normal(60, 4, seed=1) ** 3
    largest = np.abs(weight).max(axis=0)
    found = weight_params(MSEChannelWiseWeightObserver(), weight).scale * 127
    for column, scale, top in zip(weight.T, found, largest, strict=True):
        values = [float(v) for v in column]
        least = min(references.squared_error(values, s * float(top)) for s in (*references.factors(0.99), 1.0))
        assert references.squared_error(values, float(scale)) <= least * 1.001


def test_strict_mse_of_each_output_channel_is_never_all_of_it() -> None:
    weight = np.concatenate([normal(60, 4, seed=1) ** 3, np.linspace(-1, 1, 60, dtype=np.float32)[:, None]], axis=1)
    found = weight_params(MSEChannelWiseWeightObserver(strict_compat=True), weight)
    assert not found.spec.narrow
    expected = [references.channel_mse_strict(column) for column in weight.T]
    np.testing.assert_allclose(found.scale * 127, expected, rtol=1e-5)
    assert float(found.scale[-1]) * 127 == pytest.approx(0.98, rel=1e-5)
    whole = weight_params(MSEChannelWiseWeightObserver(), weight)
    assert float(whole.scale[-1]) * 127 == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("size", [64, 128])
def test_groups_along_the_inputs(size: int) -> None:
    weight = normal(256, 5, seed=2)
    found = weight_params(GroupWiseWeightObserver(group_size=size), weight)
    expected = np.abs(weight).reshape(256 // size, size, 5).max(axis=1)
    np.testing.assert_allclose(found.scale * 127, expected, rtol=1e-6)
