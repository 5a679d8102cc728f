"""Calibration methods: each turns the statistics of an activation into the range to quantize.

A method is a module with a frozen configuration class and ``find_range(stats, spec, config) -> (low, high)``;
`onnxq.algos.affine.params_from_range` turns the range into a scale and a zero point. `METHODS` is the list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from onnxq.algos._fields import build_config
from onnxq.algos.activation import avg, emd, hfmg, ifmr, kl, minmax, mse, percentile, removal_outlier
from onnxq.errors import RecipeError, nearest
from onnxq.spec import QuantSpec
from onnxq.stats import TensorStats

#: Configuration of any method; the method's own class when it is called.
Config = (
    minmax.MinMaxConfig
    | percentile.PercentileConfig
    | kl.KlConfig
    | mse.MseConfig
    | ifmr.IfmrConfig
    | hfmg.HfmgConfig
    | removal_outlier.RemovalOutlierConfig
    | avg.AvgConfig
    | emd.EmdConfig
)


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A calibration method.

    Attributes:
        name: What recipes call it.
        config: Its configuration class; all fields have defaults.
        find_range: Its search.
        needs_histogram: Whether the range of the tensor alone is not enough.
        needs_quantiles: Whether it takes order statistics, those that its configuration calls `shares`.
        needs_peaks: Whether it takes the largest magnitude of every sample.
    """

    name: str
    config: type[Config]
    find_range: Callable[[TensorStats, QuantSpec, Any], tuple[float, float]]
    needs_histogram: bool
    needs_quantiles: bool = False
    needs_peaks: bool = False

    @property
    def joins_ranges(self) -> bool:
        """Whether tensors that share a scale take the union of their ranges: its statistics are of one tensor."""
        return self.needs_quantiles or self.needs_peaks


METHODS: Mapping[str, MethodInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            MethodInfo("minmax", minmax.MinMaxConfig, minmax.find_range, needs_histogram=False),
            MethodInfo("percentile", percentile.PercentileConfig, percentile.find_range, needs_histogram=True),
            MethodInfo("kl", kl.KlConfig, kl.find_range, needs_histogram=True),
            MethodInfo("mse", mse.MseConfig, mse.find_range, needs_histogram=True),
            MethodInfo("ifmr", ifmr.IfmrConfig, ifmr.find_range, needs_histogram=True),
            MethodInfo("hfmg", hfmg.HfmgConfig, hfmg.find_range, needs_histogram=True),
            MethodInfo(
                "removal_outlier",
                removal_outlier.RemovalOutlierConfig,
                removal_outlier.find_range,
                needs_histogram=False,
                needs_quantiles=True,
            ),
            MethodInfo("avg", avg.AvgConfig, avg.find_range, needs_histogram=False, needs_peaks=True),
            MethodInfo("emd", emd.EmdConfig, emd.find_range, needs_histogram=True),
        )
    }
)


def method_info(name: str) -> MethodInfo:
    """Return the method called `name`.

    Raises:
        RecipeError: If there is none.
    """
    if name not in METHODS:
        raise RecipeError(f"unknown calibration method {name!r}{nearest(name, METHODS)}; known: {', '.join(METHODS)}")
    return METHODS[name]


def config_from_dict(name: str, fields: Mapping[str, object]) -> Config:
    """Return the configuration of the method `name` with these fields set.

    Raises:
        RecipeError: If the method or a field is unknown, or a value is not allowed.
    """
    return build_config(method_info(name).config, name, fields)


def shares_of(name: str, fields: Mapping[str, object]) -> tuple[float, ...]:
    """Return the order statistics that the method `name` needs of every round; none where it needs none.

    Raises:
        RecipeError: If the method or a field is unknown, or a value is not allowed.
    """
    if not method_info(name).needs_quantiles:
        return ()
    config = config_from_dict(name, fields)
    return config.shares if isinstance(config, removal_outlier.RemovalOutlierConfig) else ()


def find_range(stats: TensorStats, spec: QuantSpec, config: Config) -> tuple[float, float]:
    """Run the method that `config` belongs to.

    Raises:
        CalibrationError: If the statistics are empty or lack the histogram the method needs.
    """
    info = next(m for m in METHODS.values() if m.config is type(config))
    return info.find_range(stats, spec, config)
