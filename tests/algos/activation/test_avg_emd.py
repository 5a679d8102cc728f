"""The mean of the samples' largest magnitudes; the range of the closest mean and standard deviation."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.algos.activation import config_from_dict, find_range
from onnxq.algos.activation.avg import AvgConfig
from onnxq.algos.activation.emd import EmdConfig
from onnxq.errors import RecipeError
from onnxq.stats import HALF_LOG2, RoundPeaks, TensorStats
from tests.algos.activation.samples import ASYMMETRIC, SYMMETRIC


def centred(seed: int, *, shift: float = 0.0) -> np.ndarray:
    """Values in the middle of bins of a histogram to 4: counted, nothing of them is lost."""
    rng = np.random.default_rng(seed)
    values = np.clip(rng.standard_t(4, 400) * 0.4 + shift, -3.9, 3.9)
    width = 2.0 ** (2 - HALF_LOG2)
    values[0] = 3.9
    return (np.floor(values / width) + 0.5) * width


def plain_distances(x: np.ndarray, symmetric: bool) -> dict[float, float]:
    """By the formulas, candidate by candidate."""
    low, high = float(x.min()), float(x.max())
    found = {}
    for step in range(36):
        part = 1.0 - 0.02 * step
        if symmetric:
            clip = part * max(-low, high)
            scale, zero, bounds = clip / 127, 0, (-128, 127)
        else:
            scale = part * (high - low) / 255
            zero, bounds = round(-part * low / scale), (0, 255)
        codes = [min(max(round(float(np.float64(v) / np.float32(scale))) + zero, bounds[0]), bounds[1]) for v in x]
        rounded = np.array([(c - zero) * float(np.float32(scale)) for c in codes])
        found[part] = abs(x.mean() - rounded.mean()) + abs(x.std() - rounded.std())
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("symmetric", [True, False])
def test_emd_takes_the_closest_of_36_parts(seed: int, symmetric: bool) -> None:
    x = centred(seed, shift=0.3 * seed)
    spec = SYMMETRIC if symmetric else ASYMMETRIC
    low, high = find_range(TensorStats.from_array(x), spec, EmdConfig())
    distances = plain_distances(x, symmetric)
    best = min(distances, key=distances.__getitem__)
    assert high == pytest.approx(best * float(x.max() if not symmetric else np.abs(x).max()), rel=1e-9)
    assert low == pytest.approx(-high if symmetric else best * float(x.min()), rel=1e-9)


def test_emd_of_parts_of_ones_own() -> None:
    stats = TensorStats.from_array(centred(1))
    found = find_range(stats, SYMMETRIC, EmdConfig(0.5, 0.6, 0.1))[1] / stats.absmax
    assert found in (pytest.approx(0.5), pytest.approx(0.6))
    for fields, message in (
        ({"search_start": 1.0}, "search_start 1.0 must be below search_end 1.0"),
        ({"search_step": 1e-6}, "search_step must be a number >= 0.001"),
        ({"search_start": 0}, "search_start must be a number > 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            config_from_dict("emd", fields)


def test_avg_cuts_both_ends_at_the_mean() -> None:
    peaks = RoundPeaks().add(1.0).add(2.0).merge(RoundPeaks().add(4.5))
    assert find_range(TensorStats(-4.5, 2.0, 30, peaks=peaks), SYMMETRIC, AvgConfig()) == (-2.5, 2.0)
    assert find_range(TensorStats(-0.5, 4.5, 30, peaks=peaks), ASYMMETRIC, AvgConfig()) == (-0.5, 2.5)


def test_peaks_are_added_exactly() -> None:
    values = [float(np.float32(v)) for v in (3e38, 1e-45, 0.1, 7.7)]
    orders = ([0, 1, 2, 3], [3, 1, 0, 2])
    sums = []
    for order in orders:
        total = RoundPeaks()
        for index in order:
            total = total.add(values[index])
        sums.append(total)
    assert sums[0] == sums[1]
    assert sums[0].merge(sums[1]).rounds == 8
    assert RoundPeaks().add(values[1]).mean == values[1]
