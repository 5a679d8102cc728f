"""REMOVAL_OUTLIER: order statistics of every round, against sorting; sums that no order of adding changes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.algos.activation import shares_of
from onnxq.algos.activation.removal_outlier import RemovalOutlierConfig, find_range
from onnxq.algos.ranks import order_statistics
from onnxq.errors import CalibrationError
from onnxq.stats import RoundQuantiles, TensorStats
from tests.algos.activation.samples import ARRAYS, ASYMMETRIC, DEGENERATE, SHARES

VALUES = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def quantiles_of(rounds, shares=SHARES):
    total = RoundQuantiles.empty(shares)
    for x in rounds:
        total = total.add(order_statistics(x, total.ranks(x.size)))
    return total


@pytest.mark.parametrize("name", [*ARRAYS, *DEGENERATE])
def test_order_statistics_are_those_of_sorting(name):
    x = {**ARRAYS, **DEGENERATE}[name]
    ranks = sorted({0, x.size // 10000, x.size // 3, x.size // 2, x.size - 1 - x.size // 10000, x.size - 1})
    np.testing.assert_array_equal(order_statistics(x, ranks), np.sort(x)[ranks])


def test_order_statistics_of_unlucky_probes():
    x = np.ones(1 << 16, np.float32)  # every probe lies among the ones
    x[1 : 1 << 14 : 2] = np.arange(1 << 13)
    for rank in (0, 3, 1 << 12, (1 << 16) - 5000, (1 << 16) - 1):
        assert order_statistics(x, [rank])[0] == np.sort(x)[rank]
        assert order_statistics(-x, [rank])[0] == np.sort(-x)[rank]


def test_range_is_the_mean_of_the_rounds_bounds():
    rounds = [ARRAYS["gauss"] * scale for scale in np.float32([1, 3, 0.5])]
    stats = replace(TensorStats.from_array(np.concatenate(rounds)), quantiles=quantiles_of(rounds))
    ordered = [np.sort(x).astype(np.float64) for x in rounds]
    n = ordered[0].size
    low, high = find_range(stats, ASYMMETRIC, RemovalOutlierConfig())
    assert low == pytest.approx(np.mean([x[int(0.0001 * n)] for x in ordered]), rel=1e-12)
    assert high == pytest.approx(np.mean([x[int(0.9999 * n)] for x in ordered]), rel=1e-12)
    assert stats.low < low < high < stats.high


def test_small_rounds_lose_nothing_and_odd_rounds_little():
    small = replace(TensorStats(-1.0, 3.0, 2), quantiles=quantiles_of([DEGENERATE["two"]]))
    assert find_range(small, ASYMMETRIC, RemovalOutlierConfig()) == (-1.0, 3.0)
    rounds = [np.float32([0, 1])] * 9 + [np.float32([0, 101])]
    odd = replace(TensorStats(0.0, 101.0, 20), quantiles=quantiles_of(rounds))
    assert find_range(odd, ASYMMETRIC, RemovalOutlierConfig()) == (0.0, 11.0)


def test_other_quantiles_and_the_last_value():
    x = np.arange(10, dtype=np.float32)
    shares = (0.2, 1.0)
    stats = replace(TensorStats.from_array(x), quantiles=quantiles_of([x], shares))
    assert find_range(stats, ASYMMETRIC, RemovalOutlierConfig(*shares)) == (2.0, 9.0)
    with pytest.raises(CalibrationError, match=r"share 0\.0001"):
        find_range(stats, ASYMMETRIC, RemovalOutlierConfig())


@settings(max_examples=60)
@given(st.lists(VALUES, min_size=2, max_size=5))
def test_no_order_of_merging_changes_a_bit(rounds):
    parts = [quantiles_of([x], (0.1, 0.5, 0.9)) for x in rounds]
    found = set()
    for order in itertools.islice(itertools.permutations(parts), 12):
        total = order[0]
        for part in order[1:]:
            total = total.merge(part)
        found.add(total)
        pair = order[0].merge(order[1])
        found.add(pair.merge(_all(order[2:])) if order[2:] else pair)
    assert found == {quantiles_of(rounds, (0.1, 0.5, 0.9))}


def _all(parts):
    total = RoundQuantiles.empty(parts[0].shares)
    for part in parts:
        total = total.merge(part)
    return total


def test_different_order_statistics_do_not_merge():
    with pytest.raises(ValueError, match="do not merge"):
        RoundQuantiles.empty((0.1,)).merge(RoundQuantiles.empty((0.2,)))


def test_shares_are_those_of_the_configuration():
    assert shares_of("removal_outlier", {}) == (0.0001, 0.9999)
    assert shares_of("removal_outlier", {"low_quantile": 0.01}) == (0.01, 0.9999)
    assert shares_of("kl", {}) == ()
