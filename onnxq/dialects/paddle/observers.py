"""PaddleSlim's observers, under their names and with their arguments and defaults.

Each says what it means for a recipe; the work is done by the calibration engine. By default the definition is the sane
one: statistics of all samples together, so that neither the batches nor their order change the result. With
``strict_compat=True`` the observer does what PaddleSlim's does, batch by batch (see `onnxq.dialects.paddle.strict`).

PaddleSlim's scale is the threshold t of the range (-t, t). ONNX's is the step, ``t / 127`` at 8 bits, with the zero
point 0: `onnxq.dialects.paddle.factories.threshold_of` goes back. Codes of activations are int8 and symmetric, as
PaddleSlim's. ONNX Runtime executes them as fast as its own uint8; behind a Relu they use half of the codes, so
``sign=False, symmetric=False`` gives better accuracy there. TensorRT and Ascend want them as they are.

Source: PaddleSlim, paddleslim/quant/observers; Paddle, python/paddle/quantization/observers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from onnxq.dialects.paddle.factories import CustomObserver, ObserverFactory, codes
from onnxq.dialects.paddle.strict import top_code
from onnxq.errors import RecipeError
from onnxq.recipe import (
    AVG,
    EMD,
    KL,
    AbsMax,
    ActivationConfig,
    ActivationMethod,
    ActivationMSE,
    BlockShape,
    Blockwise,
    Custom,
    MinMax,
    Percentile,
    WeightConfig,
    WeightMethod,
    WeightMSE,
)

__all__ = [
    "AVGObserver",
    "AbsMaxChannelWiseWeightObserver",
    "AbsmaxObserver",
    "CustomObserver",
    "EMDObserver",
    "GroupWiseWeightObserver",
    "HistObserver",
    "KLObserver",
    "MSEChannelWiseWeightObserver",
    "MSEObserver",
]

_STRICT = "onnxq.dialects.paddle.strict"


@dataclass(frozen=True)
class _Activations(ObserverFactory):
    """Base of observers of activations.

    Attributes:
        quant_bits: Width of the codes.
        strict_compat: Do what PaddleSlim does, to the letter.
    """

    quant_bits: int = 8
    strict_compat: bool = field(default=False, kw_only=True)

    strict_name: ClassVar[str] = ""

    def activation_config(self) -> ActivationConfig:
        """What it means for an activation.

        Raises:
            RecipeError: If an argument is not allowed.
        """
        method = self.strict_method() if self.strict_compat else self.method()
        return ActivationConfig(**self.codes(), method=method)

    def codes(self) -> dict[str, Any]:
        """The codes, as a recipe says it."""
        return codes(self.quant_bits, sign=True, symmetric=True)

    def method(self) -> ActivationMethod:
        """How the range is chosen."""
        return MinMax()

    def strict_method(self) -> ActivationMethod:
        """The same to the letter."""
        options = dict(self.strict_options())
        return Custom(observer=f"{_STRICT}:{self.strict_name}", options=options, batches="data")

    def strict_options(self) -> Mapping[str, Any]:
        """Arguments of the observer to the letter."""
        return {}

    def _of_one_scale(self, method: WeightMethod) -> WeightConfig:
        return WeightConfig(**self.codes(), granularity="per_tensor", method=method)


@dataclass(frozen=True)
class _Plain(_Activations):
    """Base of observers that take symmetric int8 in PaddleSlim; here others can be asked for by keyword.

    Attributes:
        sign: Whether codes are signed.
        symmetric: Whether the zero point is in the middle.
    """

    sign: bool = field(default=True, kw_only=True)
    symmetric: bool = field(default=True, kw_only=True)

    def codes(self) -> dict[str, Any]:
        """The codes, as a recipe says it."""
        return codes(self.quant_bits, sign=self.sign, symmetric=self.symmetric)


@dataclass(frozen=True)
class AbsmaxObserver(_Plain):
    """The largest magnitude of all values; for a weight, one scale for all of it.

    Strict: it is 1e-7 at the least.
    """

    strict_name: ClassVar[str] = "AbsMax"

    def weight_config(self) -> WeightConfig:
        """What it means for a weight."""
        return self._of_one_scale(AbsMax())


@dataclass(frozen=True)
class AVGObserver(_Plain):
    """The mean of the samples' largest magnitudes.

    Strict: the mean over the batches of the mean over their samples; in a short batch a sample counts more.
    """

    strict_name: ClassVar[str] = "AVG"

    def method(self) -> ActivationMethod:
        """How the range is chosen."""
        return AVG()


@dataclass(frozen=True)
class MSEObserver(_Plain):
    """The threshold of least mean squared error; for a weight, one scale for all of it.

    The search is finer than PaddleSlim's 35 candidates, and over the same parts from 0.3.
    Strict: the last batch decides, with the least loss of all batches as the bar: it may be none of the candidates.
    """

    strict_name: ClassVar[str] = "MSE"

    def method(self) -> ActivationMethod:
        """How the range is chosen."""
        return ActivationMSE(smallest=0.3)

    def strict_options(self) -> Mapping[str, Any]:
        """Arguments of the observer to the letter."""
        return {"quant_bits": self.quant_bits}

    def weight_config(self) -> WeightConfig:
        """What it means for a weight."""
        return self._of_one_scale(_weight_mse(strict=self.strict_compat))


@dataclass(frozen=True)
class EMDObserver(_Plain):
    """The threshold whose rounded values have the closest mean and standard deviation.

    Strict: as MSEObserver's; and thresholds are sought below the largest value, not the largest magnitude.
    """

    strict_name: ClassVar[str] = "EMD"

    def method(self) -> ActivationMethod:
        """How the range is chosen."""
        return EMD()

    def strict_options(self) -> Mapping[str, Any]:
        """Arguments of the observer to the letter."""
        return {"quant_bits": self.quant_bits}


@dataclass(frozen=True)
class HistObserver(_Activations):
    """Both ends cut by the same share of the values; of a symmetric range the wider one decides.

    The streaming histogram has bins of its own, 16384 of them. Strict: `bins_count` bins whose counts are spread anew
    whenever the range grows; batches of equal values are ignored; the ends lie half a bin below an edge; and an
    unsigned asymmetric range has one step more than codes.

    Attributes:
        bins_count: Bins, in strict mode.
        percent: Share of the values below the upper end, and above the lower one.
    """

    strict_name: ClassVar[str] = "Hist"

    bins_count: int = 2048
    percent: float = 0.999
    sign: bool = True
    symmetric: bool = True

    def codes(self) -> dict[str, Any]:
        """The codes, as a recipe says it."""
        return codes(self.quant_bits, sign=self.sign, symmetric=self.symmetric)

    def method(self) -> ActivationMethod:
        """How the range is chosen.

        Raises:
            RecipeError: If `percent` is no such share.
        """
        if not 0.5 < self.percent <= 1:
            raise RecipeError(f"percent found {self.percent}; must be a share > 0.5 and <= 1, such as 0.999")
        return Percentile(percentile=100 * self.percent, both_ends=True)

    def strict_options(self) -> Mapping[str, Any]:
        """Arguments of the observer to the letter."""
        return {
            "quant_bits": self.quant_bits,
            "bins_count": self.bins_count,
            "percent": self.percent,
            "sign": self.sign,
            "symmetric": self.symmetric,
        }


@dataclass(frozen=True)
class KLObserver(_Plain):
    """The threshold whose rounded histogram of magnitudes diverges least.

    Strict: the histogram has signs, and the threshold is measured from the smallest value: for data on both sides of
    zero it means nothing.

    Attributes:
        bins_count: Bins of the histogram.
    """

    strict_name: ClassVar[str] = "KL"

    bins_count: int = 2048

    def method(self) -> ActivationMethod:
        """How the range is chosen."""
        return KL(num_bins=self.bins_count)

    def strict_options(self) -> Mapping[str, Any]:
        """Arguments of the observer to the letter.

        Raises:
            RecipeError: If half of the bins are fewer than the levels.
        """
        if top_code(self.quant_bits) > self.bins_count // 2:
            raise RecipeError(
                f"KLObserver: {self.bins_count} bins are too few for {self.quant_bits} bits; "
                f"use {2 * top_code(self.quant_bits)} or more"
            )
        return {"quant_bits": self.quant_bits, "bins_count": self.bins_count}


@dataclass(frozen=True)
class AbsMaxChannelWiseWeightObserver(ObserverFactory):
    """The largest magnitude of each output channel. A channel of zeros gets scale 1.

    Attributes:
        quant_bits: Width of the codes.
        strict_compat: Has no effect: there is nothing odd but the 1e-8 of channels of zeros, whose codes are 0.
    """

    quant_bits: int = 8
    strict_compat: bool = field(default=False, kw_only=True)

    def weight_config(self) -> WeightConfig:
        """What it means for a weight."""
        return WeightConfig(
            **codes(self.quant_bits, sign=True, symmetric=True), granularity="per_axis", method=AbsMax()
        )


@dataclass(frozen=True)
class MSEChannelWiseWeightObserver(ObserverFactory):
    """For each output channel the part of the largest magnitude that has the least squared error.

    Strict: it is never all of it, 0.98 at the most; codes go down to -128.

    Attributes:
        quant_bits: Width of the codes.
        strict_compat: Do what PaddleSlim does, to the letter.
    """

    quant_bits: int = 8
    strict_compat: bool = field(default=False, kw_only=True)

    def weight_config(self) -> WeightConfig:
        """What it means for a weight."""
        return WeightConfig(
            **codes(self.quant_bits, sign=True, symmetric=True),
            narrow=False if self.strict_compat else None,
            granularity="per_axis",
            method=_weight_mse(strict=self.strict_compat),
        )


@dataclass(frozen=True)
class GroupWiseWeightObserver(ObserverFactory):
    """The largest magnitude of each group of weights along the input channels.

    A last group may be smaller than the others.

    Attributes:
        quant_bits: Width of the codes.
        group_size: 64 or 128.
        strict_compat: Has no effect: PaddleSlim refuses a last group that is smaller, and does the same otherwise.
    """

    quant_bits: int = 8
    group_size: int = 128
    strict_compat: bool = field(default=False, kw_only=True)

    def weight_config(self) -> WeightConfig:
        """What it means for a weight.

        Raises:
            RecipeError: If `group_size` is another number.
        """
        if self.group_size not in (64, 128):
            raise RecipeError(f"group_size found {self.group_size!r}; must be 64 or 128")
        return WeightConfig(
            **codes(self.quant_bits, sign=True, symmetric=True),
            granularity=Blockwise(per_block=BlockShape(size=self.group_size)),
            method=AbsMax(),
        )


def _weight_mse(*, strict: bool) -> WeightMSE:
    return WeightMSE(search_range=(0.3, 0.98 if strict else 1.0), search_step=0.02)
