"""What a backend executes, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from onnxq.spec import QType


@dataclass(frozen=True, slots=True)
class Target:
    """What a backend executes with codes, and how it wants to be told.

    Attributes:
        name: What recipes call it.
        title: What people call it.
        activation: Default type of activations.
        activation_symmetric: Whether the zero point of activations is fixed in the middle by default.
        activation_types: Types of activations it executes.
        weight: Default type of weights.
        weight_types: Types of weights it executes.
        weight_narrow: Leave out the lowest code of weights by default.
        per_axis: Operators whose weight may have a scale for each output.
        compute: Operators it executes with codes.
        passive: Operators it executes on codes without knowing the scale.
        slower: Operators it executes in float only, or slower with codes, and why; quantized only if forced.
        float_result: Operators that take codes and may give floats at no cost.
        clamps: Operators that the saturation of the codes can replace.
        bias_codes: Whether biases are given as int32 codes.
        both_addends: Whether an Add wants codes of both inputs. If not, a linear operator in front of the
            Add keeps its float result: the backend fuses the Add into it.
        all_codes: Whether floats cost more than anything else, so that every operator it computes gets codes
            even where the neighbours have none.
        safe_pairs: Whether some of its processors add two products in 16 bits, so that the scales of 8-bit
            weights must leave room; see `onnxq.algos.weight.pair_sums`.
        full_range: Where the negative side of a symmetric range is the wider one, the lowest code stands for it,
            instead of leaving that code out.
        opset: Oldest operator set it is written in.
        insertion: Which operators carry the scales.
    """

    name: str
    title: str
    activation: QType
    activation_symmetric: bool
    activation_types: frozenset[QType]
    weight: QType
    weight_types: frozenset[QType]
    weight_narrow: bool
    per_axis: frozenset[str]
    compute: frozenset[str]
    passive: frozenset[str]
    slower: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    float_result: frozenset[str] = frozenset()
    clamps: frozenset[str] = frozenset({"Relu", "Clip"})
    bias_codes: bool = True
    both_addends: bool = True
    all_codes: bool = False
    safe_pairs: bool = False
    full_range: bool = False
    opset: int = 13
    insertion: str = "qdq"
