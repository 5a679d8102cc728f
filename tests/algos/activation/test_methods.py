"""What every calibration method has in common, and the small ones."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.algos.activation import METHODS, config_from_dict, find_range, method_info
from onnxq.algos.activation.percentile import PercentileConfig
from onnxq.algos.affine import params_from_range
from onnxq.errors import CalibrationError, RecipeError
from onnxq.stats import TensorStats
from tests.algos.activation.samples import ARRAYS, ASYMMETRIC, DEGENERATE, SPECS, SYMMETRIC, stats_of

TAME = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-50, 50, width=32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", [*ARRAYS, *DEGENERATE])
def test_every_method_gives_a_usable_range(method, spec, name):
    x = {**ARRAYS, **DEGENERATE}[name]
    stats = stats_of(x)
    low, high = find_range(stats, SPECS[spec], METHODS[method].config())
    assert np.isfinite([low, high]).all()
    assert low <= high
    assert max(-low, high) <= 1.31 * stats.absmax
    params = params_from_range(low, high, SPECS[spec])
    if stats.low >= 0 and not SPECS[spec].symmetric:
        assert params.zero_point == 0
    if stats.absmax > 1e-20:
        assert max(-low, high) > 0


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(x=TAME)
def test_every_method_takes_any_small_tensor(method, x):
    for spec in (ASYMMETRIC, SYMMETRIC):
        low, high = find_range(stats_of(x), spec, METHODS[method].config())
        assert np.isfinite([low, high]).all()
        assert low <= high
        params_from_range(low, high, spec)


@pytest.mark.parametrize("method", METHODS)
def test_scaling_by_a_power_of_two_scales_the_range(method):
    for x in (ARRAYS["gauss"], ARRAYS["relu"]):
        for spec in SPECS.values():
            config = METHODS[method].config()
            low, high = find_range(stats_of(x), spec, config)
            assert find_range(stats_of(x * np.float32(64)), spec, config) == (64 * low, 64 * high)


@pytest.mark.parametrize("method", METHODS)
def test_methods_need_what_they_say(method):
    stats = TensorStats(-1.0, 2.0, 10)
    info = METHODS[method]
    if info.needs_histogram:
        with pytest.raises(CalibrationError, match="ask for HISTOGRAM"):
            find_range(stats, ASYMMETRIC, info.config())
    elif info.needs_quantiles:
        with pytest.raises(CalibrationError, match="ask for QUANTILES"):
            find_range(stats, ASYMMETRIC, info.config())
    elif info.needs_peaks:
        with pytest.raises(CalibrationError, match="ask for PEAKS"):
            find_range(stats, ASYMMETRIC, info.config())
    else:
        assert find_range(stats, ASYMMETRIC, info.config()) == (-1.0, 2.0)


def test_one_sided_data_keep_their_inner_end():
    for method in METHODS:
        assert find_range(stats_of(ARRAYS["relu"]), ASYMMETRIC, METHODS[method].config())[0] == 0


def test_registry_and_configs():
    assert list(METHODS) == ["minmax", "percentile", "kl", "mse", "ifmr", "hfmg", "removal_outlier", "avg", "emd"]
    for name, info in METHODS.items():
        assert info.name == name
        assert dataclasses.is_dataclass(info.config)
        assert config_from_dict(name, {}) == info.config()
        assert hash(info.config()) == hash(info.config())
        assert info.config.__dataclass_params__.frozen
    assert config_from_dict("percentile", {"percentile": 99.9}) == PercentileConfig(99.9)
    with pytest.raises(RecipeError, match="unknown calibration method 'mimax'; did you mean 'minmax'"):
        method_info("mimax")
    with pytest.raises(RecipeError, match="no field 'percent'; did you mean 'percentile'"):
        config_from_dict("percentile", {"percent": 1})
    with pytest.raises(RecipeError, match="its fields: none"):
        config_from_dict("minmax", {"bins": 1})


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("percentile", {"percentile": 50}, "percentile must be a number > 50 and <= 100, got 50"),
        ("percentile", {"percentile": "99"}, "got '99'"),
        ("percentile", {"percentile": float("nan")}, "got nan"),
        ("percentile", {"percentile": True}, "got True"),
        ("removal_outlier", {"low_quantile": -0.1}, "low_quantile must be a number >= 0 and <= 1, got -0.1"),
        ("removal_outlier", {"low_quantile": 0.9, "high_quantile": 0.1}, "low_quantile 0.9 must be below"),
        ("kl", {"num_bins": 100}, "integer from 128 to 8192, got 100"),
        ("kl", {"num_bins": 2048.0}, "integer from 128"),
        ("kl", {"ignore_zeros": 1}, "true or false, got 1"),
        ("mse", {"smallest": 0}, "smallest must be"),
        ("ifmr", {"max_percentile": 0.5}, "max_percentile must be"),
        ("ifmr", {"min_percentile": 1.1}, "min_percentile must be"),
        ("ifmr", {"search_start": 1.3}, "search_start 1.3 must be below search_end 1.3"),
        ("ifmr", {"search_step": 0.7}, "search_step 0.7 is wider"),
        ("ifmr", {"search_step": 1e-9}, "use at most 10000"),
        ("ifmr", {"two_sided": "yes"}, "two_sided must be true or false"),
        ("hfmg", {"num_of_bins": 1000}, "one of 1024, 2048, 4096, 8192, got 1000"),
    ],
)
def test_bad_fields_are_refused(method, fields, message):
    with pytest.raises(RecipeError, match=message):
        config_from_dict(method, fields)


def test_naming_a_method_does_not_import_the_compiler():
    code = "import sys, onnxq.algos.activation, onnxq.algos.affine, onnxq.algos.weight; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def reference_percentile(x, spec, percentile):
    """Sort, cut, look."""
    cut = int(np.floor(x.size * (1 - percentile / 100) + 1e-9))
    if spec.symmetric:
        clip = np.sort(np.abs(x))[x.size - 1 - cut]
        return max(x.min(), -clip), min(x.max(), clip)
    ordered = np.sort(x)
    low = ordered[cut] if x.min() < 0 else x.min()
    high = ordered[x.size - 1 - cut] if x.max() > 0 else x.max()
    return low, high


@pytest.mark.parametrize("percentile", [100, 99.99, 99.9, 90, 60])
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("spec", [ASYMMETRIC, SYMMETRIC])
def test_percentile_equals_sorting(percentile, name, spec):
    stats = stats_of(ARRAYS[name])
    found = find_range(stats, spec, PercentileConfig(percentile))
    expected = reference_percentile(ARRAYS[name], spec, percentile)
    np.testing.assert_allclose(found, expected, rtol=0, atol=stats.histogram.width / 2)
    if percentile == 100:
        assert found == (stats.low, stats.high)
