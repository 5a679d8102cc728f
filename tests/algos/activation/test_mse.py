"""MSE against brute force on the values."""

import numpy as np
import pytest

from onnxq.algos.activation._histogram import Moments, affine_levels
from onnxq.algos.activation.mse import MseConfig, find_range
from onnxq.spec import QType, QuantSpec
from onnxq.stats import Histogram
from tests.algos.activation.samples import ARRAYS, SPECS, squared_error, stats_of


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("spec", SPECS)
def test_error_from_moments_equals_error_of_every_centre(name, spec):
    spec = SPECS[spec]
    stats = stats_of(ARRAYS[name])
    centers, counts = stats.histogram.nonzero()
    moments = Moments.of(stats.histogram)
    for ratio in (1.0, 0.63, 0.2):
        low, high = ratio * min(stats.low, 0), ratio * max(stats.high, 0)
        scale, lowest, highest = affine_levels(np.array([low]), np.array([high]), spec.bounds)
        levels = np.clip(np.rint(centers / scale), lowest, highest)
        expected = (counts * (levels * scale - centers) ** 2).sum()
        found = moments.errors(scale, lowest, highest)[0] * moments.width**2
        assert found == pytest.approx(expected, rel=1e-6)


def test_levels_are_those_of_the_affine_map():
    scale, lowest, highest = affine_levels(np.array([-1.0, 0.0]), np.array([3.0, 5.1]), (0, 255))
    np.testing.assert_allclose(scale, [4 / 255, 5.1 / 255])
    assert lowest.tolist() == [-64, 0]
    assert highest.tolist() == [191, 255]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("spec", SPECS)
def test_result_is_within_a_percent_of_the_best_of_a_dense_grid(name, spec):
    x, spec = ARRAYS[name], SPECS[spec]
    low, high = find_range(stats_of(x), spec, MseConfig())
    found = squared_error(x, low, high, spec)
    factors = np.exp2(-np.arange(0, 3, 1 / 12))
    least, most = min(x.min(), 0), max(x.max(), 0)
    if spec.symmetric:
        top = max(-least, most)
        best = min(squared_error(x, -top * f, top * f, spec) for f in factors)
    elif least == 0 or most == 0:
        best = min(squared_error(x, least * f, most * f, spec) for f in factors)
    else:
        best = min(squared_error(x, least * f, most * g, spec) for f in factors[::2] for g in factors[::2])
    assert found <= best * 1.01


def test_clipping_is_never_worse_than_not_clipping():
    for x in ARRAYS.values():
        for spec in SPECS.values():
            found = squared_error(x, *find_range(stats_of(x), spec, MseConfig()), spec)
            assert found <= squared_error(x, x.min(), x.max(), spec) * 1.0001


def test_fewer_bits_clip_more():
    stats = stats_of(ARRAYS["gauss"])
    clips = [find_range(stats, QuantSpec(QType.INT16, bits=b), MseConfig())[1] for b in (2, 3, 4, 6, 8, 10, 12)]
    assert clips == sorted(clips)
    # the published optimum for a normal distribution (Banner et al. 2019: 2.83 sigma at 4 bits; symmetric codes -7..7)
    assert clips[2] == pytest.approx(2.4, abs=0.2)


def test_sixteen_bits_use_the_noise_model():
    """The error inside the range is scale**2 / 12 of every value, what lies outside pays its distance."""
    x = np.random.default_rng(0).uniform(-1, 1, 20_000).astype(np.float32)
    h = Histogram.from_array(x)
    moments = Moments.of(h)
    scale, lowest, highest = affine_levels(np.array([-0.5]), np.array([0.5]), (0, 65535))
    found = moments.errors(scale, lowest, highest)[0] * moments.width**2
    outside = np.maximum(np.abs(x.astype(np.float64)) - 0.5, 0)
    assert found == pytest.approx((outside**2).sum(), rel=1e-3)
    wide = moments.errors(scale * 2, lowest, highest)[0] * moments.width**2
    assert wide == pytest.approx(x.size * (2 * scale[0]) ** 2 / 12, rel=0.2)


def test_config_limits_the_search():
    low, high = find_range(stats_of(ARRAYS["outlier"]), SPECS["int4"], MseConfig(smallest=0.5))
    assert high >= 0.5 * 60 * 0.999
    assert low == -high
