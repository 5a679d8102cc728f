"""How ranges are chosen: the methods for activations and for weights, with their parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from onnxq._recipe.base import Flag, Model, Number, Share, Shorthand
from onnxq.observers import ObserverRequest

SearchRange = tuple[Number, Number]
Quantile = Annotated[float, Field(strict=True, ge=0, le=1)]


def _check_search(search_range: tuple[float, float], search_step: float) -> None:
    start, end = search_range
    if not 0 < start < end:
        raise ValueError(f"search_range found [{start}, {end}]; must be two numbers with 0 < start < end")
    if not 0 < search_step <= end - start:
        raise ValueError(
            f"search_step found {search_step}; must be > 0 and at most {end - start:g}, the length of search_range"
        )


class Method(Model):
    """A way to choose ranges or scales."""

    def parameters(self) -> dict[str, object]:
        """The parameters under the names the algorithm has for them."""
        fields: dict[str, Any] = {key: getattr(self, key) for key in type(self).model_fields if key != "name"}
        if "search_range" in fields:
            fields["search_start"], fields["search_end"] = fields.pop("search_range")
        return fields


class MinMax(Method):
    """The smallest and the largest value that was seen."""

    name: Literal["minmax"] = "minmax"


class Percentile(Method):
    """Cut the same share of the values off each end."""

    name: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(strict=True, gt=50, le=100)] = Field(
        default=99.99, description="How many percent of the values are kept at each end."
    )
    both_ends: Flag = Field(
        default=False, description="Of symmetric ranges too, cut each end by itself, as PaddleSlim does."
    )


class KL(Method):
    """The range whose quantized histogram differs least from the original (Kullback-Leibler)."""

    name: Literal["kl"] = "kl"
    num_bins: Annotated[int, Field(strict=True, ge=128, le=8192)] = Field(
        default=2048, description="Bins of the histogram the search runs on."
    )
    ignore_zeros: Flag = Field(default=True, description="Do not let the zeros behind a Relu decide.")
    split_bins: Flag = Field(
        default=False,
        description="Split bins at the borders of the levels, and let empty ones count, as MindSpore Lite does.",
    )


class ActivationMSE(Method):
    """The range with the least mean squared error."""

    name: Literal["mse"] = "mse"
    smallest: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default=1 / 128, description="Smallest part of the observed range that may be chosen."
    )


class OutputMSE(Method):
    """As `mse`; where a Clip follows, the range with the least squared error behind it."""

    name: Literal["output_mse"] = "output_mse"
    samples: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=8, description="How many samples the layers are run on for each candidate."
    )


class IFMR(Method):
    """Percentile start, then a search for the bound with the least mean squared error."""

    name: Literal["ifmr"] = "ifmr"
    search_range: SearchRange = Field(default=(0.7, 1.3), description="Smallest and largest ratio tried.")
    search_step: Number = Field(default=0.01, description="Distance of the ratios that are tried.")
    max_percentile: Share = Field(default=0.999999, description="Part of the values below the initial upper bound.")
    min_percentile: Share = Field(default=0.999999, description="Part of the values above the initial lower bound.")
    two_sided: Flag = Field(default=False, description="Also search the lower bound of an asymmetric range.")

    @model_validator(mode="after")
    def _check(self) -> IFMR:
        _check_search(self.search_range, self.search_step)
        return self


class HFMG(Method):
    """Shrink a histogram from both sides; keep the range with the least analytic squared error."""

    name: Literal["hfmg"] = "hfmg"
    num_of_bins: Literal[1024, 2048, 4096, 8192] = Field(default=4096, description="Bins of the histogram.")


class RemovalOutlier(Method):
    """Cut the outermost values off each sample; the mean of what is left of the samples' ranges."""

    name: Literal["removal_outlier"] = "removal_outlier"
    low_quantile: Quantile = Field(default=0.0001, description="Part of a sample's values below its lower bound.")
    high_quantile: Quantile = Field(default=0.9999, description="Part of a sample's values below its upper bound.")

    @model_validator(mode="after")
    def _check(self) -> RemovalOutlier:
        if not self.low_quantile < self.high_quantile:
            raise ValueError(f"low_quantile {self.low_quantile:g} must be below high_quantile {self.high_quantile:g}")
        return self


class AVG(Method):
    """The largest magnitude of every sample, averaged over the samples."""

    name: Literal["avg"] = "avg"


class EMD(Method):
    """The range whose rounded values have the closest mean and standard deviation."""

    name: Literal["emd"] = "emd"
    search_range: SearchRange = Field(default=(0.3, 1.0), description="Smallest and largest part of the range tried.")
    search_step: Annotated[float, Field(strict=True, ge=0.001)] = Field(
        default=0.02, description="Distance of the parts that are tried."
    )

    @model_validator(mode="after")
    def _check(self) -> EMD:
        _check_search(self.search_range, self.search_step)
        return self


class Custom(Method):
    """What an observer of your own chooses; see writing_an_observer.md. The file or module it names is run."""

    name: Literal["custom"] = "custom"
    observer: Annotated[str, Field(strict=True, min_length=1)] | SkipJsonSchema[Callable[..., object]] = Field(
        description="`file.py:Class` or `module:Class`; in Python also the class, or a function that makes one."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Its keyword arguments.")
    batches: Literal["sample", "data"] = Field(
        default="sample",
        description="What it sees at a time: sample, one sample; data, the batches as the data have them, which then "
        "change the result.",
    )

    @model_validator(mode="after")
    def _check(self) -> Custom:
        try:
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError) as err:
            raise ValueError(f"options must be mappings, lists, strings and numbers: {err}") from None
        return self

    @property
    def request(self) -> ObserverRequest:
        """Which observer is wanted."""
        return ObserverRequest.of(self.observer, self.options, batches=self.batches == "data")


class AbsMax(Method):
    """The largest magnitude; the smallest and largest value where the weights are asymmetric."""

    name: Literal["absmax"] = "absmax"
    full_range: Flag = Field(
        default=False, description="Where the negative side is the wider one, use the lowest code for it."
    )


class WeightMSE(Method):
    """The scale with the least mean squared error, searched for every scale by itself."""

    name: Literal["mse"] = "mse"
    search_range: SearchRange = Field(
        default=(0.3, 1.0), description="Smallest and largest part of the magnitude tried."
    )
    search_step: Number = Field(default=0.01, description="Distance of the ratios that are tried.")

    @model_validator(mode="after")
    def _check(self) -> WeightMSE:
        _check_search(self.search_range, self.search_step)
        return self


class AdaRound(Method):
    """Round each weight up or down, whichever keeps the layer's output closest to the float model's."""

    name: Literal["adaround"] = "adaround"
    scale: Literal["mse", "kl", "absmax"] = Field(default="mse", description="How the scale is chosen beforehand.")
    num_iteration: Annotated[int, Field(strict=True, ge=0)] = Field(default=10000, description="Steps per layer.")
    reg_param: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(
        default=0.01, description="Weight of the term that drives every rounding to up or down."
    )
    beta_range: tuple[Number, Number] = Field(default=(20.0, 2.0), description="That term's exponent, from and to.")
    warm_start: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(
        default=0.2, description="Part of the steps without that term."
    )
    samples: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=128, description="How many samples the layers' inputs are taken from."
    )

    @model_validator(mode="after")
    def _check(self) -> AdaRound:
        start, end = self.beta_range
        if not start > end > 0:
            raise ValueError(f"beta_range found [{start:g}, {end:g}]; must fall from the first to the second, both > 0")
        return self

    def parameters(self) -> dict[str, object]:
        """The parameters under the names the algorithm has for them."""
        fields = super().parameters()
        del fields["samples"]  # which data are run is not the algorithm's concern
        fields["beta_start"], fields["beta_end"] = self.beta_range
        del fields["beta_range"]
        return fields


class NUQ(Method):
    """Non-uniform: keep only 16 or 32 of the codes, those that lose least."""

    name: Literal["nuq"] = "nuq"
    num_steps: Literal[16, 32] = Field(default=32, description="How many different codes a layer may use.")
    num_of_iteration: Annotated[int, Field(strict=True, ge=0, le=5)] = Field(
        default=1, description="How often the scale is fitted to the chosen codes and these are chosen anew."
    )


def _activation_names() -> list[str]:
    return ["minmax", "percentile", "kl", "mse", "ifmr", "hfmg", "removal_outlier", "avg", "emd"]


def _weight_names() -> list[str]:
    return ["absmax", "mse", "adaround", "nuq"]


ActivationMethod = Annotated[
    MinMax | Percentile | KL | ActivationMSE | OutputMSE | IFMR | HFMG | RemovalOutlier | AVG | EMD | Custom,
    Field(discriminator="name"),
    Shorthand("name", _activation_names),
]
WeightMethod = Annotated[
    AbsMax | WeightMSE | AdaRound | NUQ, Field(discriminator="name"), Shorthand("name", _weight_names)
]
