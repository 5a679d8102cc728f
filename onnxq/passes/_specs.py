"""From what the recipe leaves open and what a target prefers to complete specifications."""

from __future__ import annotations

from typing import TypeVar

from onnxq.errors import RecipeError
from onnxq.graph import GraphModel, Node
from onnxq.opinfo import weight_axis
from onnxq.recipe import (
    EMD,
    HFMG,
    IFMR,
    KL,
    NUQ,
    AbsMax,
    ActivationConfig,
    ActivationMethod,
    AdaRound,
    Blockwise,
    OutputMSE,
    TensorConfig,
    WeightConfig,
    WeightMethod,
)
from onnxq.spec import Granularity, PerAxis, PerBlock, PerTensor, QType, QuantSpec
from onnxq.targets import Target

DEFAULT_METHOD = OutputMSE()
"""How ranges of activations are chosen where nobody says."""
FIRST_PER_AXIS = 13
"""The first operator set whose DequantizeLinear takes one scale per channel."""

_EQUAL_STEPS = (KL, IFMR, HFMG, EMD, AdaRound, NUQ)
_ANY_STEPS = {"activations": "minmax, percentile, mse or output_mse", "weights": "absmax or mse"}

V = TypeVar("V")


def activation_spec(config: ActivationConfig, target: Target) -> QuantSpec:
    """How an activation is quantized.

    Raises:
        RecipeError: If the target does not execute the type, or the granularity is not per_tensor.
    """
    if config.granularity not in (None, "per_tensor"):
        raise RecipeError("activations.granularity: an activation has one scale; use per_tensor")
    qtype = _activation_type(config, target)
    if qtype.floating:
        _check_method(config.method, "activations", qtype)
        return QuantSpec(qtype)
    symmetric = _or(config.symmetric, target.activation_symmetric)
    narrow = _or(config.narrow, symmetric and qtype.signed and not target.full_range)
    return QuantSpec(qtype, PerTensor(), symmetric, config.bits or 0, narrow)


def _check_method(method: ActivationMethod | WeightMethod | None, where: str, qtype: QType) -> None:
    """Refuse what searches among steps that are all of one length.

    Raises:
        RecipeError: If the method does.
    """
    if isinstance(method, _EQUAL_STEPS):
        raise RecipeError(
            f"{where}.method: {method.name} is for integers, whose steps are all alike, not for {qtype.label}; "
            f"use {_ANY_STEPS[where]}"
        )


def activation_method(config: ActivationConfig) -> ActivationMethod:
    """How the range of an activation is chosen."""
    return config.method or DEFAULT_METHOD


def weight_method(config: WeightConfig, target: Target) -> WeightMethod:
    """How the scale of a weight is chosen."""
    return config.method or AbsMax(full_range=target.full_range)


def weight_spec(graph: GraphModel, node: Node, index: int, config: WeightConfig, target: Target) -> QuantSpec:
    """How the weight at input `index` of `node` is quantized.

    Raises:
        RecipeError: If the target does not execute the type, or the granularity does not fit.
    """
    qtype = _qtype(config, target.activation if stands_for_activation(node, index) else target.weight)
    if qtype not in target.weight_types:
        known = ", ".join(sorted(t.label for t in target.weight_types))
        raise RecipeError(f"weights.type: {target.title} does not execute {qtype.label} weights; use {known}")
    granularity = _granularity(graph, node, index, config, target)
    if qtype.floating:
        _check_method(config.method, "weights", qtype)
        return QuantSpec(qtype, granularity)
    symmetric = _or(config.symmetric, qtype.signed)
    narrow = _or(config.narrow, target.weight_narrow and symmetric and qtype.signed)
    if not target.standard and (not symmetric or narrow or isinstance(granularity, PerBlock)):
        raise RecipeError(
            f"weights: {target.title} takes symmetric ones with all codes and one scale for each tensor or channel; "
            "leave out symmetric: false, narrow: true and per_block"
        )
    return QuantSpec(qtype, granularity, symmetric, config.bits or 0, narrow)


def computes_float8(config: ActivationConfig, target: Target) -> bool:
    """Whether the activations of a node are to be floating point numbers of 8 bits.

    Raises:
        RecipeError: If the target does not execute the type.
    """
    return _activation_type(config, target).floating


def _activation_type(config: ActivationConfig, target: Target) -> QType:
    qtype = _qtype(config, target.activation)
    if qtype not in target.activation_types:
        known = ", ".join(sorted(t.label for t in target.activation_types))
        raise RecipeError(f"activations.type: {target.title} does not execute {qtype.label} activations; use {known}")
    return qtype


def beside(config: WeightConfig, activations: ActivationConfig, target: Target) -> WeightConfig:
    """What holds for weights beside such activations: float8 beside float8, E4M3 where nothing is said.

    Raises:
        RecipeError: If one of both is float8 and the other is not.
    """
    floating = computes_float8(activations, target)
    if floating and config.type is None and config.bits is None:
        return config.replace(type=QType.FLOAT8E4M3FN.label)
    if _qtype(config, target.weight).floating != floating:
        kinds = ("activations", "weights") if floating else ("weights", "activations")
        raise RecipeError(
            f"{kinds[0]}.type is float8 and {kinds[1]}.type is an integer type; a product takes both of one kind: set "
            f"{kinds[1]}.type: {QType.FLOAT8E4M3FN.label} as well, or leave the other out"
        )
    return config if floating else exactly_added(config, activations, target)


def exactly_added(config: WeightConfig, activations: ActivationConfig, target: Target) -> WeightConfig:
    """As `config`, with a type whose products no processor of the target saturates.

    Where two products of uint8 and int8 are added in 16 bits, larger scales make room for symmetric weights. Those with
    a zero point of their own may have all their codes at one end: as uint8 they are multiplied exactly.
    """
    free = config.type is None and config.symmetric is False and config.bits in (None, 8)
    if not (free and target.safe_pairs) or activation_spec(activations, target).qtype.signed:
        return config
    return config.replace(type=QType.UINT8.label)


def stands_for_activation(node: Node, index: int) -> bool:
    """Whether kernels take the constant at input `index` for an activation: a left factor, or a table of rows."""
    return index == 0 and node.op in ("MatMul", "Gather")


def keeps_codes(spec: QuantSpec, target: Target) -> bool:
    """Whether rows of a table of this kind can go on as codes: one scale, and a type activations have."""
    return isinstance(spec.granularity, PerTensor) and spec.qtype == target.activation and spec.bits == spec.qtype.bits


def _granularity(graph: GraphModel, node: Node, index: int, config: WeightConfig, target: Target) -> Granularity:
    rank = graph.rank(node.inputs[index]) or 0
    axis = _channel_axis(node, index, rank)
    wanted = config.granularity
    if isinstance(wanted, Blockwise):
        default = _sum_axis(node, axis)
        block_axis = default if wanted.per_block.axis is None else wanted.per_block.axis
        if not -rank <= block_axis < rank:
            raise RecipeError(
                f"weights.granularity: node {node.name!r} has a weight of rank {rank}, no axis {block_axis}"
            )
        return PerBlock(block_axis % rank, wanted.per_block.size)
    if axis is None or (target.standard and graph.opset < FIRST_PER_AXIS) or wanted == "per_tensor":
        return PerTensor()
    return PerAxis(axis) if wanted == "per_axis" or node.op in target.per_axis else PerTensor()


def _channel_axis(node: Node, index: int, rank: int) -> int | None:
    if node.op == "MatMul" and index == 0:
        return None
    return weight_axis(
        str(node.op), rank, transposed=bool(node.attrs.get("transB", 0)), groups=int(node.attrs.get("group", 1))
    )


def _sum_axis(node: Node, channel_axis: int | None) -> int:
    """The axis a linear operator sums over; the rows of an embedding are cut along their length."""
    if node.op == "Conv" or channel_axis == 0:
        return 1
    return 1 if node.op == "Gather" else 0


def _qtype(config: TensorConfig, default: QType) -> QType:
    if config.type is not None:
        return QType.parse(config.type)
    if config.bits is not None and config.bits > default.bits:
        return QType.container(config.bits, signed=default.signed)
    return default


def _or(value: V | None, default: V) -> V:
    return default if value is None else value


def needed_opset(configs: list[TensorConfig], target: Target) -> int:
    """The oldest operator set that can express what these configurations ask for."""
    needed = target.opset
    for config in configs if target.standard else ():
        needed = max(needed, _qtype(config, target.weight).min_opset)
        if isinstance(config.granularity, Blockwise):
            needed = max(needed, 21)
    return needed
