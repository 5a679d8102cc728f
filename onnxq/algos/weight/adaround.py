"""AdaRound: each weight is rounded up or down, whichever keeps the layer's output closest to the float model's.

`find_params` chooses the scale beforehand; `onnxq.algos.weight.rounding` chooses the roundings, for which it needs the
layer's inputs.

Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.algos._fields import check_choice, check_number, check_whole
from onnxq.algos.weight import _adaround_kl, absmax, mse
from onnxq.errors import RecipeError
from onnxq.spec import QuantParams, QuantSpec


@dataclass(frozen=True, slots=True)
class AdaRoundConfig:
    """Parameters of AdaRound.

    Attributes:
        scale: How the scale is chosen: ``mse``, ``kl`` (AMCT's search) or ``absmax`` (with all codes in use).
        num_iteration: Steps per layer; 0 rounds to nearest.
        reg_param: Weight of the regulariser, which drives each rounding to up or down.
        beta_start: Its exponent at first.
        beta_end: Its exponent in the end.
        warm_start: Part of the steps without it.
    """

    scale: Literal["mse", "kl", "absmax"] = "mse"
    num_iteration: int = 10000
    reg_param: float = 0.01
    beta_start: float = 20.0
    beta_end: float = 2.0
    warm_start: float = 0.2

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, ("mse", "kl", "absmax"))
        check_whole("num_iteration", self.num_iteration, 0, 10**9)
        check_number("reg_param", self.reg_param, 0, 1, open_low=True)
        check_number("beta_end", self.beta_end, 0, 1000, open_low=True)
        check_number("beta_start", self.beta_start, 0, 1000, open_low=True)
        check_number("warm_start", self.warm_start, 0, 1, open_low=True)
        if self.beta_start <= self.beta_end:
            raise RecipeError(f"beta_start {self.beta_start:g} must be above beta_end {self.beta_end:g}")


def find_params(weight: NDArray[np.generic], spec: QuantSpec, config: AdaRoundConfig) -> QuantParams:
    """Return the scales to round with.

    Args:
        weight: Any float type, any shape; a memmap is read in pieces.
        spec: Granularity, width and symmetry.
        config: Parameters; only ``scale`` counts here.

    Raises:
        CalibrationError: If the weight holds NaN or infinity, or lacks the axis.
    """
    if config.scale == "kl":
        return _adaround_kl.find_params(weight, spec)
    if config.scale == "absmax":
        return absmax.find_params(weight, spec, absmax.AbsMaxConfig(full_range=True))
    return mse.find_params(weight, spec, mse.MseConfig())
