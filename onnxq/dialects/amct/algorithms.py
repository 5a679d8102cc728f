"""AMCT's algorithms with their parameters, under AMCT's names and with its defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ifmr:
    """IFMR, the default for activations: percentiles, then a search for the range with the least squared error.

    Attributes:
        search_range: First ratio tried, and where the ratios end.
        search_step: Distance of the ratios.
        max_percentile: Share of the values not above the initial upper end.
        min_percentile: Share of the values not below the initial lower end.
        asymmetric: Whether zero points are free; None where something weaker decides.
        num_bits: 8 or 16.
    """

    search_range: tuple[float, float] = (0.7, 1.3)
    search_step: float = 0.01
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    asymmetric: bool | None = None
    num_bits: int = 8

    def __str__(self) -> str:
        start, end = self.search_range
        search = f"{start:g} to {end:g} by {self.search_step:g}"
        return f"ifmr, {_activation(self.num_bits, self.asymmetric)}, {search}{self._percentiles()}"

    def _percentiles(self) -> str:
        if (self.max_percentile, self.min_percentile) == (0.999999, 0.999999):
            return ""
        return f", percentiles {self.max_percentile:.7g} and {self.min_percentile:.7g}"


@dataclass(frozen=True, slots=True)
class Hfmg:
    """HFMG for activations: shrink a histogram from both ends.

    Attributes:
        num_of_bins: Bins of the histogram.
        asymmetric: Whether zero points are free; None where something weaker decides.
        num_bits: 8.
    """

    num_of_bins: int = 4096
    asymmetric: bool | None = None
    num_bits: int = 8

    def __str__(self) -> str:
        return f"hfmg, {_activation(self.num_bits, self.asymmetric)}, {self.num_of_bins} bins"


@dataclass(frozen=True, slots=True)
class Arq:
    """ARQ, the default for weights: the largest magnitude decides.

    Attributes:
        channel_wise: One scale for each output channel; None where the type of the layer decides.
        num_bits: 6, 7 or 8; 4 in JSON only.
        asymmetric: Zero points of weights, which ATC knows for layers whose weights alone are quantized.
    """

    channel_wise: bool | None = None
    num_bits: int = 8
    asymmetric: bool = False

    def __str__(self) -> str:
        return f"arq, {self.num_bits} bits, {_channels(self.channel_wise)}"


@dataclass(frozen=True, slots=True)
class Ada:
    """AdaRound for weights: learn which ones are rounded up.

    Attributes:
        num_iteration: Steps per layer.
        reg_param: Weight of the term that drives every rounding to up or down.
        beta_range: That term's exponent, from and to.
        warm_start: Share of the steps without that term.
        channel_wise: One scale for each output channel; None where the type of the layer decides.
        num_bits: 8; 4, 6 and 7 in JSON only.
    """

    num_iteration: int = 10000
    reg_param: float = 0.01
    beta_range: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2
    channel_wise: bool | None = None
    num_bits: int = 8

    def __str__(self) -> str:
        return f"ada, {self.num_bits} bits, {_channels(self.channel_wise)}, {self.num_iteration} steps"


@dataclass(frozen=True, slots=True)
class Nuq:
    """NUQ for weights: keep 16 or 32 of the 256 codes; the type of the layer decides whether scales are per channel.

    Attributes:
        num_steps: How many codes are kept.
        num_of_iteration: How often the choice is refined.
        num_bits: 8.
    """

    num_steps: int = 32
    num_of_iteration: int = 1
    num_bits: int = 8

    def __str__(self) -> str:
        return f"nuq, {self.num_steps} steps, {self.num_of_iteration} iterations"


ActivationAlgorithm = Ifmr | Hfmg
WeightAlgorithm = Arq | Ada | Nuq


def _activation(bits: int, asymmetric: bool | None) -> str:
    return f"{bits} bits, {'asymmetric' if asymmetric else 'symmetric'}"


def _channels(channel_wise: bool | None) -> str:
    return "per channel" if channel_wise else "per tensor"
