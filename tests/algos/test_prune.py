"""Norms of channels and how many are left, against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.algos.prune import channel_norms, kept_channels, normalised, remaining, taylor_norms
from tests.graphs import normal


def slow_norms(weight: np.ndarray, groups: int, out_first: bool) -> list[float]:
    """Norms of a weight (groups, a, b, taps), one number at a time."""
    found = []
    outs = weight.shape[1 if out_first else 2]
    for g in range(groups):
        for channel in range(outs):
            part = weight[g, channel] if out_first else weight[g, :, channel]
            found.append(math.sqrt(math.fsum(float(v) ** 2 for v in part.reshape(-1))))
    return [n / (weight.size / len(found)) for n in found]


@pytest.mark.parametrize("out_first", [True, False])
@pytest.mark.parametrize("shape", [(1, 5, 3, 9), (2, 4, 3, 1), (4, 1, 2, 9)])
def test_norms(shape: tuple[int, ...], out_first: bool) -> None:
    weight = normal(*shape)
    np.testing.assert_allclose(
        channel_norms(weight, out_first=out_first), slow_norms(weight, shape[0], out_first), rtol=1e-12
    )


def test_taylor_norms_are_what_the_loss_changes_by() -> None:
    weight, gradient = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    found = taylor_norms(weight, gradient, out_first=False)
    assert found.shape == (8,)
    expected = [np.abs(weight[g, :, c] * gradient[g, :, c]).sum() for g in range(2) for c in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == pytest.approx(taylor_norms(weight.swapaxes(1, 2), gradient.swapaxes(1, 2), out_first=True)[0])


def test_normalised_scores_go_from_0_to_1() -> None:
    np.testing.assert_array_equal(normalised(np.array([3.0, 1.0, 2.0])), [1, 0, 0.5])
    np.testing.assert_array_equal(normalised(np.array([2.0, 2.0])), [0, 0])


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "left"),
    [(20, 0.25, 1, 15), (20, 0.25, 16, 16), (64, 0.3, 1, 45), (64, 0.3, 16, 48), (8, 0.5, 16, 8), (32, 0.9, 16, 16),
     (1, 0.9, 1, 1), (40, 0.1, 16, 40), (10, 0.05, 1, 10)],
)  # fmt: skip
def test_how_many_are_left(channels: int, ratio: float, multiple: int, left: int) -> None:
    """The first two are the example of AMCT's documentation."""
    assert remaining(channels, ratio, multiple) == left


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(1, 32))
def test_what_is_left_is_a_multiple_or_everything(channels: int, ratio: float, multiple: int) -> None:
    left = remaining(channels, ratio, multiple)
    assert 1 <= left <= channels
    assert left == channels or left % multiple == 0
    assert left >= min(channels, max(channels - round(channels * ratio), 1))


def test_the_largest_are_kept_in_order() -> None:
    assert kept_channels(np.array([0.5, 0.1, 0.5, 0.9, 0.2]), 3).tolist() == [0, 2, 3]
    assert kept_channels(np.array([1.0, 1.0, 1.0]), 2).tolist() == [0, 1]
