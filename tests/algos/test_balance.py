"""DMQ's factors against the rules spelled out channel by channel."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.algos.balance import EPS, balance_factors
from onnxq.errors import CalibrationError, RecipeError


def reference(act, weight, s):
    """The rules of the published algorithm, one channel at a time."""
    pairs = [(0.0, 0.0) if max(a, w) <= EPS else (a, w) for a, w in zip(act, weight, strict=True)]
    act, weight = ([p[i] for p in pairs] for i in (0, 1))
    if max(act) <= EPS or max(weight) <= EPS:
        return [1.0] * len(act)
    found = {
        c: math.pow(a, s) / math.pow(w, 1 - s) for c, (a, w) in enumerate(zip(act, weight, strict=True)) if a and w
    }
    if not found:
        return [1.0] * len(act)
    a_outlier = max(act[c] / f for c, f in found.items())
    w_outlier = max(weight[c] * f for c, f in found.items())
    result = []
    for c, (a, w) in enumerate(zip(act, weight, strict=True)):
        if a and w:
            result.append(found[c])
        elif a:
            result.append(a / a_outlier)
        elif w:
            result.append(w_outlier / w)
        else:
            result.append(1.0)
    return result


MAGNITUDES = st.lists(st.tuples(*[st.one_of(st.just(0.0), st.floats(1e-4, 1e3))] * 2), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(MAGNITUDES, st.floats(0.2, 0.8))
def test_factors_follow_the_rules(pairs, strength):
    act, weight = (list(side) for side in zip(*pairs, strict=True))
    expected = reference(act, weight, strength)
    if any(not EPS < np.float32(f) < 1 / EPS for f in expected):
        with pytest.raises(CalibrationError, match="channel"):
            balance_factors(act, weight, strength)
        return
    found = balance_factors(act, weight, strength)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(MAGNITUDES, st.floats(0.2, 0.8))
def test_channels_that_are_zero_on_one_side_decide_nothing(pairs, strength):
    act, weight = (np.array(side) for side in zip(*pairs, strict=True))
    both = (act > 0) & (weight > 0)
    if not both.any():
        assert (balance_factors(act, weight, strength) == 1).all()
        return
    try:
        f = balance_factors(act, weight, strength).astype(np.float64)
    except CalibrationError:
        return
    assert (act / f).max() <= (act / f)[both].max() * (1 + 1e-6)
    assert (weight * f).max() <= (weight * f)[both].max() * (1 + 1e-6)


@given(st.floats(0.2, 0.8), st.integers(0, 1000))
def test_unevenness_is_shared(strength, seed):
    """The spread of the activation's channels shrinks to its power 1 - s where the weights are even."""
    act = np.exp(np.random.default_rng(seed).uniform(-3, 3, 16))
    f = balance_factors(act, np.ones(16), strength).astype(np.float64)
    before, after = act.max() / act.min(), (act / f).max() / (act / f).min()
    assert after == pytest.approx(before ** (1 - strength), rel=1e-5)
    assert (act / f).max() / np.median(act / f) <= act.max() / np.median(act) * (1 + 1e-6)


def test_at_one_half_both_sides_become_equal():
    act, weight = np.array([8.0, 0.5, 3.0]), np.array([0.5, 2.0, 3.0])
    f = balance_factors(act, weight, 0.5)
    np.testing.assert_allclose(act / f, weight * f, rtol=1e-6)
    np.testing.assert_allclose(f, [4.0, 0.5, 1.0], rtol=1e-6)


def test_zero_rules_by_numbers():
    act, weight = [4.0, 0.0, 2.0, 0.0], [1.0, 0.5, 0.0, 0.0]
    # the one valid channel: f = 2, a / f = 2, w * f = 2
    np.testing.assert_allclose(balance_factors(act, weight, 0.5), [2.0, 4.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("act", "weight"),
    [([0, 0], [1, 2]), ([1, 2], [0, 0]), ([0, 0], [0, 0]), ([1, 0], [0, 1]), ([1e-8, 1e-9], [1, 1]), ([], [])],
)
def test_nothing_to_balance_gives_ones(act, weight):
    found = balance_factors(np.array(act, float), np.array(weight, float), 0.5)
    assert found.dtype == np.float32
    assert found.tolist() == [1.0] * len(act)


def test_channels_next_to_zero_on_both_sides_count_as_zero():
    """As a convolution in front of a dead Relu has them: weights of 1e-12 that nothing reads."""
    found = balance_factors([4.0, 0.0, 1e-9, 1e-9], [1.0, 9e-13, 1e-10, 0.5], 0.5)
    np.testing.assert_allclose(found, [2.0, 1.0, 1.0, math.sqrt(1e-9 / 0.5)], rtol=1e-6)


def test_factors_out_of_bounds_name_the_channel():
    with pytest.raises(CalibrationError, match=r"channel 2: the balance factor would be 1e\+09.*weight 1e-12"):
        balance_factors([1.0, 1.0, 1e6], [1.0, 1.0, 1e-12], 0.5)
    with pytest.raises(CalibrationError, match=r"channel 1: the balance factor would be 1e-09"):
        balance_factors([1.0, 1e-12, 0.0], [1.0, 1e6, 0.0], 0.5)


def test_refusals():
    with pytest.raises(CalibrationError, match=r"shapes \(2,\) and \(3,\)"):
        balance_factors([1, 2], [1, 2, 3])
    with pytest.raises(CalibrationError, match="channel 1: the largest activation is nan"):
        balance_factors([1, math.nan], [1, 2])
    with pytest.raises(CalibrationError, match="channel 0: the largest weight is -1"):
        balance_factors([1, 2], [-1, 2])
    for strength in (0.19, 0.81, math.nan, True):
        with pytest.raises(RecipeError, match="strength must be"):
            balance_factors([1], [1], strength)
