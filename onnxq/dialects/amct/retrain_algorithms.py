"""What AMCT trains and prunes with: its algorithms, under its names and with its defaults, and what it allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnxq.dialects.amct._limits import Complaint

PAIRS = ((8, 8), (8, 4), (4, 4), (16, 8))
"""Widths of activations and weights that go together."""


@dataclass(frozen=True, slots=True)
class Ulq:
    """ULQ for activations: both ends of the range are learned.

    Attributes:
        clip_max: The upper end to begin with; None where calibration gives it.
        clip_min: The lower end to begin with; both are given or none.
        fixed_min: Whether the lower end stays 0; None: where the tensor comes from a Relu.
        num_bits: 4, 8 or 16.
    """

    clip_max: float | None = None
    clip_min: float | None = None
    fixed_min: bool | None = None
    num_bits: int = 8

    def __str__(self) -> str:
        ends = "" if self.clip_max is None or self.clip_min is None else f", {self.clip_min:g} to {self.clip_max:g}"
        fixed = {None: "", True: ", from 0", False: ", both ends learned"}[self.fixed_min]
        return f"ulq, {self.num_bits} bits{ends}{fixed}"


@dataclass(frozen=True, slots=True)
class ArqRetrain:
    """ARQ for weights: the scale follows from the weights in every step.

    Attributes:
        channel_wise: One scale for each output channel; None where the type of the layer decides.
        num_bits: 4 or 8.
    """

    channel_wise: bool | None = None
    num_bits: int = 8

    def __str__(self) -> str:
        return f"arq, {self.num_bits} bits, per {'channel' if self.channel_wise else 'tensor'}"


@dataclass(frozen=True, slots=True)
class UlqRetrain:
    """ULQ for weights: the scale is learned.

    Attributes:
        channel_wise: One scale for each output channel; None where the type of the layer decides.
        num_bits: 4 or 8.
    """

    channel_wise: bool | None = None
    num_bits: int = 8

    def __str__(self) -> str:
        return f"ulq, {self.num_bits} bits, per {'channel' if self.channel_wise else 'tensor'}"


@dataclass(frozen=True, slots=True)
class FilterPrune:
    """BalancedL2NormFilterPruner: output channels with small norms are removed.

    Attributes:
        prune_ratio: Part of the channels that is removed.
        ascend_optimized: What is left is a multiple of 16.
    """

    prune_ratio: float
    ascend_optimized: bool = True

    def __str__(self) -> str:
        return f"channels, {self.prune_ratio:g}{', multiples of 16' if self.ascend_optimized else ''}"


@dataclass(frozen=True, slots=True)
class SelectivePrune:
    """L1SelectivePruner: of every four weights along the input channels the two largest are kept.

    Attributes:
        update_freq: They are chosen anew every so many batches; 0: once.
    """

    update_freq: int = 0

    def __str__(self) -> str:
        return f"2:4, {f'anew every {self.update_freq} batches' if self.update_freq else 'chosen once'}"


WeightRetrain = ArqRetrain | UlqRetrain
Pruning = FilterPrune | SelectivePrune


def complaints(found: Ulq | WeightRetrain | Pruning) -> Iterator[Complaint]:
    """Everything about the values that AMCT does not allow."""
    match found:
        case Ulq():
            yield from _ulq(found)
        case ArqRetrain() | UlqRetrain():
            if found.num_bits not in (4, 8):
                yield "dst_type", f"found INT{found.num_bits}; weights are INT4 or INT8"
        case FilterPrune():
            if not 0 < found.prune_ratio < 1:
                yield "prune_ratio", f"found {found.prune_ratio:g}; must be in (0, 1), both ends excluded"
        case SelectivePrune():
            if found.update_freq < 0:
                yield "update_freq", f"found {found.update_freq}; must be at least 0"


def _ulq(found: Ulq) -> Iterator[Complaint]:
    if (found.clip_max is None) != (found.clip_min is None):
        key = "clip_max" if found.clip_max is None else "clip_min"
        yield key, "clip_max and clip_min go together; give both or none"
    if found.clip_max is not None and not 0 < found.clip_max < math.inf:
        yield "clip_max", f"found {found.clip_max:g}; must be > 0 and finite"
    if found.clip_min is not None and not -math.inf < found.clip_min < 0:
        yield "clip_min", f"found {found.clip_min:g}; must be < 0 and finite (fixed_min: true keeps 0)"


def bad_pair(data: Ulq, weight: WeightRetrain) -> str:
    """What is wrong with the widths of a layer's activations and weights; empty where nothing is."""
    if (data.num_bits, weight.num_bits) in PAIRS:
        return ""
    known = ", ".join(f"INT{a} with INT{w}" for a, w in PAIRS)
    return (
        f"activations of INT{data.num_bits} with weights of INT{weight.num_bits}: AMCT refuses this pair; its pairs of "
        f"activations and weights are {known}"
    )
