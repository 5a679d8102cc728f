"""The step of a weight: its error, its width and its entropy, recomputed from the decoded weight."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxq.algos.weight.codes import decode, encode
from onnxq.algos.weight.init_scale import mean_cosine, search_inverse
from onnxq.algos.weight.mixed_bit import FoundStep, closed_form_step, find_step
from onnxq.errors import CalibrationError

F = np.float32


def weight(*shape: int, kind: str = "normal", scale: float = 0.1, seed: int = 0) -> NDArray[np.float32]:
    return (getattr(np.random.default_rng(seed), kind)(size=shape) * scale).astype(F)


def recomputed(w: NDArray[np.float32], found: FoundStep) -> tuple[float, float]:
    """Relative error and entropy, from the codes alone."""
    codes = found.codes()
    values = encode(w, codes)
    gap = (w - decode(values, codes)).astype(np.float64)
    share = [count / w.size for count in Counter(values.reshape(-1).tolist()).values()]
    return float(np.linalg.norm(gap) / np.linalg.norm(w.astype(np.float64))), -sum(p * math.log2(p) for p in share)


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform"])
@pytest.mark.parametrize("wanted", [0.3, 0.02, 0.001])
@pytest.mark.parametrize("correction", [True, False])
def test_the_error_is_what_was_wanted(kind: str, wanted: float, correction: bool) -> None:
    w = weight(64, 16, 3, 3, kind=kind)
    found = find_step(w, wanted, correction=correction)
    error, entropy = recomputed(w, found)
    assert error == pytest.approx(wanted, rel=0.01)
    assert found.error == pytest.approx(error, rel=1e-3)
    assert found.entropy == pytest.approx(entropy, abs=1e-9)
    values = encode(w, found.codes())
    assert (values.min(), values.max()) == (found.low, found.high)
    assert 2 ** (found.bits - 1) < found.high - found.low + 1 <= 2**found.bits
    assert found.entropy < found.bits
    assert found.elements == w.size
    if correction:
        back = decode(values, found.codes())
        assert back.mean() == pytest.approx(w.mean(), abs=1e-6)
        assert back.std() == pytest.approx(w.std(), rel=1e-5)
    else:
        assert (found.variance, found.mean) == (1.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000), st.floats(1e-3, 0.5), st.sampled_from([1e-4, 1.0, 100.0]))
def test_few_weights_are_never_worse_than_wanted(count: int, seed: int, wanted: float, scale: float) -> None:
    """The error jumps there; where it cannot be met it is smaller."""
    w = weight(count, 1, scale=scale, seed=seed)
    found = find_step(w, wanted)
    assert not found.reason
    assert recomputed(w, found)[0] <= wanted * 1.011


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0, 1e-7])
def test_equal_weights_need_one_code(value: float) -> None:
    w = np.full((3, 5), value, F)
    found = find_step(w, 0.02)
    assert (found.bits, found.low - found.high, found.entropy) == (1, 0, 0.0)
    assert found.step == pytest.approx(abs(value) + 1e-5, rel=1e-6)
    np.testing.assert_allclose(decode(encode(w, found.codes()), found.codes()), w, rtol=1e-6)


def test_weights_that_hardly_differ_need_one_code() -> None:
    """The mean alone is closer than wanted."""
    w = F(1) + weight(30, 30, scale=1e-3)
    found = find_step(w, 0.02)
    assert found.bits == 1
    assert recomputed(w, found)[0] == pytest.approx(1e-3, rel=0.1)


def test_tiny_weights_are_not_taken_for_equal_ones() -> None:
    w = weight(30, 30, scale=1e-8)
    assert recomputed(w, find_step(w, 0.02))[0] == pytest.approx(0.02, rel=0.01)


def test_a_larger_error_gives_larger_steps_and_fewer_bits() -> None:
    found = [find_step(weight(50, 50), wanted) for wanted in (0.001, 0.01, 0.02, 0.1, 0.3)]
    assert [f.step for f in found] == sorted(f.step for f in found)
    assert [f.entropy for f in found] == sorted((f.entropy for f in found), reverse=True)


def test_more_than_sixteen_bits_are_refused_with_the_reason() -> None:
    w = weight(2000, 2)
    w[0, 0] = 1e4
    assert find_step(w, 1e-4).reason == "codes of 18 bits would be needed, 16 are the most"
    assert find_step(w, 6e-4).reason == ""


def test_pieces_do_not_change_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight(64, 40)
    whole = find_step(w, 0.02)
    monkeypatch.setattr("onnxq.algos.affine.row_slices.__kwdefaults__", {"elements": 200})
    cut = find_step(w, 0.02)
    assert cut.step == whole.step
    assert (cut.low, cut.high) == (whole.low, whole.high)
    assert cut.entropy == pytest.approx(whole.entropy)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    w = weight(3, 3)
    w[1, 1] = bad
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        find_step(w, 0.02)


def test_the_closed_form() -> None:
    w = weight(20, 30)
    found = closed_form_step(w, 0.01)
    norm = float(np.linalg.norm(w.astype(np.float64)))
    assert found.step == pytest.approx((0.01 + 0.01 * math.sqrt(24 / 600)) * norm, rel=1e-6)
    assert found.error == pytest.approx(recomputed(w, found)[0], rel=1e-4)
    assert closed_form_step(np.zeros((2, 2), F), 0.01).bits == 1


# ---- the search over a whole model --------------------------------------------------------------


def test_cosine_of_several_outputs() -> None:
    a = [np.array([1.0, 0.0], F), np.array([[2, 2]]), np.array(["x"], object), np.zeros(2, F)]
    b = [np.array([1.0, 1.0], F), np.array([[2, 2]]), np.array(["y"], object), np.zeros(2, F)]
    assert mean_cosine(a, b) == pytest.approx((math.sqrt(0.5) + 1 + 1) / 3)
    assert mean_cosine([np.ones(2)], [np.full(2, np.nan)]) == -1
    assert mean_cosine([np.ones(2)], [np.zeros(2)]) == 0


@pytest.mark.parametrize("threshold", [1, 2, 57, 3000, 4711, 29000])
def test_the_first_good_scale_is_found_finely(threshold: int) -> None:
    tried: list[int] = []

    def cosine(s: int) -> float:
        tried.append(s)
        return 1.0 if s >= threshold else 0.9

    found = search_inverse(cosine, 10_000)
    assert found >= threshold
    assert found - threshold <= max(40, 0.02 * threshold)
    assert len(tried) == len(set(tried)) < 80


def test_the_first_grid() -> None:
    tried: list[int] = []

    def cosine(s: int) -> float:
        tried.append(s)
        return 0.0

    with pytest.raises(CalibrationError, match=r"best of 2\d is 0\.00000"):
        search_inverse(cosine, 10_000)
    assert tried[:11] == [1 + 2999 * i for i in range(11)]
    assert max(tried) <= 4 * 30000


def test_large_weights_extend_the_first_grid() -> None:
    end = int(1 / math.sqrt(24e-6 / 1_000_000))
    assert end > 200_000
    assert search_inverse(lambda s: float(s >= 150_000), 1_000_000) == pytest.approx(150_000, rel=0.02)


def test_a_second_grid_behind_the_first() -> None:
    assert search_inverse(lambda s: float(s >= 100_000), 100) == pytest.approx(100_000, rel=0.02)


def test_nothing_found_says_what_to_do() -> None:
    with pytest.raises(CalibrationError, match=r"mean cosine of 0\.995.*set init_scale, skip the most sensitive nodes"):
        search_inverse(lambda s: 1 - 1 / math.log(s + 2), 100)
