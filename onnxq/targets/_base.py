"""What a backend executes, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from onnxq.spec import QType


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backend demands of one operator, beyond its type, to compute it with codes.

    Attributes:
        ranks: Ranks its weight may have, or its input where it has no weight; empty for any.
        plain: By that rank, the spatial axes along which its dilation must be 1.
        symmetric: Ranks for which the zero point of the activation must be in the middle.
        attributes: Values that attributes must have.
        wide: Whether it takes activations of more than 8 bits: never, with a bias only, or always.
        variables: Whether it multiplies two activations; both are symmetric and have 8 bits then.
    """

    ranks: frozenset[int] = frozenset()
    plain: Mapping[int, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    symmetric: frozenset[int] = frozenset()
    attributes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    wide: Literal["never", "with_bias", "always"] = "never"
    variables: bool = False


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
        float8: Operators it computes with float8 codes; what they give are floats.
        float8_kept: Whether its optimizer takes float8 codes for integers and merges pairs of them with what is around,
            into something that it cannot execute.
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
        alone: Each operator converts its own input and gives floats, so that it gets codes whatever its
            neighbours do; what is neither in `compute` nor in `slower` cannot be forced.
        limits: What it demands of single operators.
        opset: Oldest operator set it is written in.
        newest_opset: The newest operator set it reads; 0 for any.
        codes_weights: Operators whose float weights it turns into codes of its own, one scale for all channels, where
            the input comes out of a DequantizeLinear.
        copies_decoders: Whether every reader of a DequantizeLinear gets one of its own, before it looks for what it can
            fuse.
        softmax_room: What the range of 8-bit codes behind a Softmax must reach at least, times the number of values
            that it is taken over: its kernel overflows where codes are finer.
        insertion: Which operators carry the scales.
        schemes: What kinds of quantization it runs; see `onnxq.recipe.Scheme`.
        runs_here: Whether it is what runs models on this machine, so that its speed can be measured.
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
    float8: frozenset[str] = frozenset()
    float8_kept: bool = False
    slower: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    float_result: frozenset[str] = frozenset()
    clamps: frozenset[str] = frozenset({"Relu", "Clip"})
    bias_codes: bool = True
    both_addends: bool = True
    all_codes: bool = False
    safe_pairs: bool = False
    full_range: bool = False
    alone: bool = False
    limits: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    opset: int = 13
    newest_opset: int = 0
    codes_weights: frozenset[str] = frozenset()
    copies_decoders: bool = False
    softmax_room: float = 0.0
    insertion: str = "qdq"
    schemes: frozenset[str] = frozenset({"static"})
    runs_here: bool = False

    @property
    def standard(self) -> bool:
        """Whether ONNX's own operators carry the scales, whose versions say what types and shapes these have."""
        return self.insertion == "qdq"
