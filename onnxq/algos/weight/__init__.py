"""Weight methods: each turns a weight into the `QuantParams` to quantize it with.

A method is a module with a frozen configuration class and ``find_params(weight, spec, config) -> QuantParams``.
`METHODS` is the list of them. Weights may be memmaps larger than the memory: they are read in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.algos import affine
from onnxq.algos._fields import build_config
from onnxq.algos.weight import absmax, adaround, mse, nuq
from onnxq.errors import RecipeError, nearest
from onnxq.spec import QuantParams, QuantSpec

#: Configuration of any method; the method's own class when it is called.
Config = absmax.AbsMaxConfig | mse.MseConfig | adaround.AdaRoundConfig | nuq.NuqConfig


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A weight method.

    Attributes:
        name: What recipes call it.
        config: Its configuration class; all fields have defaults.
        find_params: Its search.
    """

    name: str
    config: type[Config]
    find_params: Callable[[NDArray[np.generic], QuantSpec, Any], QuantParams]


METHODS: Mapping[str, MethodInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            MethodInfo("absmax", absmax.AbsMaxConfig, absmax.find_params),
            MethodInfo("mse", mse.MseConfig, mse.find_params),
            MethodInfo("adaround", adaround.AdaRoundConfig, adaround.find_params),
            MethodInfo("nuq", nuq.NuqConfig, nuq.find_params),
        )
    }
)


def method_info(name: str) -> MethodInfo:
    """Return the method called `name`.

    Raises:
        RecipeError: If there is none.
    """
    if name not in METHODS:
        raise RecipeError(f"unknown weight method {name!r}{nearest(name, METHODS)}; known: {', '.join(METHODS)}")
    return METHODS[name]


def config_from_dict(name: str, fields: Mapping[str, object]) -> Config:
    """Return the configuration of the method `name` with these fields set.

    Raises:
        RecipeError: If the method or a field is unknown, or a value is not allowed.
    """
    return build_config(method_info(name).config, name, fields)


def find_params(weight: NDArray[np.generic], spec: QuantSpec, config: Config) -> QuantParams:
    """Run the method that `config` belongs to.

    Args:
        weight: Any float type, any shape, memmaps included.
        spec: Granularity, width and symmetry.
        config: Parameters.

    Raises:
        CalibrationError: If the weight holds NaN or infinity, or lacks the axis.
    """
    info = next(m for m in METHODS.values() if m.config is type(config))
    return info.find_params(weight, spec, config)


def quantize_weight(weight: NDArray[np.generic], params: QuantParams) -> NDArray[np.integer]:
    """Return the codes of a weight; needs memory for the codes and one piece of the weight.

    Args:
        weight: Any float type, the shape the scales were found for.
        params: Scales and zero points.

    Raises:
        CalibrationError: If the shape of the scales does not fit the weight.
    """
    affine.check_layout(weight.shape, params)
    if not weight.shape:
        return affine.quantize(np.asarray(weight, np.float32), params)
    granularity = params.spec.granularity
    codes = np.empty(weight.shape, affine.code_dtype(params.spec))
    for rows in affine.row_slices(weight.shape, granularity):
        own = affine.scale_rows(rows, weight.ndim, granularity)
        part = params if own is None else QuantParams(params.spec, params.scale[own], params.zero_point[own])
        codes[rows] = affine.quantize(np.asarray(weight[rows], np.float32), part)
    return codes
