"""Weights that are stored as codes and decoded to floats: which inputs they are, which axis has their channels."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from onnxq.algos import weight as weight_methods
from onnxq.algos.weight.absmax import AbsMaxConfig
from onnxq.algos.weight.codes import WeightCodes
from onnxq.algos.weight.fixed_bit import find_codes
from onnxq.algos.weight.mse import MseConfig
from onnxq.errors import CalibrationError, GraphError, RecipeError
from onnxq.graph import GraphModel, Node
from onnxq.passes._decoders import FIRST_WITH_BLOCKS, oldest_opset
from onnxq.passes._weights import weight_value
from onnxq.plan import WeightPlan
from onnxq.recipe import (
    AbsMax,
    BiasCorrection,
    Recipe,
    TensorConfig,
    WeightConfig,
    WeightMethod,
    WeightMSE,
    WeightOnly,
)
from onnxq.spec import PerAxis, PerTensor, QType, QuantSpec
from onnxq.targets import Target

WEIGHT_INPUTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "Conv": (1,),
        "ConvTranspose": (1,),
        "Gemm": (0, 1),
        "MatMul": (0, 1),
        "Gather": (0,),
        "LSTM": (1, 2),
        "GRU": (1, 2),
        "RNN": (1, 2),
    }
)
"""Inputs that are weights where they are constant, by operator type."""


def channel_axis(node: Node, index: int, rank: int) -> int:
    """The axis of a weight whose slices have scales of their own.

    It is the axis of the output channels wherever one axis alone counts them. A Gather has one scale for each row it
    can pick. The kernel of a ConvTranspose with groups counts its outputs in two axes; axis 0 then gives each slice
    to one group. W and R of recurrent layers, ``(directions, gates * hidden, inputs)``, have one for each gate and
    hidden unit, which both directions share.

    Args:
        node: One of `WEIGHT_INPUTS`.
        index: Which input.
        rank: Rank of the weight, at least 2.
    """
    match node.op:
        case "ConvTranspose":
            return 1 if int(node.attrs.get("group", 1)) == 1 else 0
        case "Gemm":
            rows_first = not node.attrs.get("transA", 0) if index == 0 else bool(node.attrs.get("transB", 0))
            return 0 if rows_first else 1
        case "MatMul":
            return rank - 2 if index == 0 else rank - 1
        case "Gather":
            return int(node.attrs.get("axis", 0)) % rank
        case "LSTM" | "GRU" | "RNN":
            return 1
    return 0


def stored_spec(config: WeightConfig, axis: int | None) -> QuantSpec:
    """How a weight becomes codes: 8 bits, asymmetric and per channel where the recipe leaves it open.

    Args:
        config: What the recipe says.
        axis: The axis with a scale for each slice, None for one scale.
    """
    bits = config.bits or 0
    qtype = QType.parse(config.type) if config.type else QType.container(max(bits or 8, 2), signed=True)
    whole = axis is None or config.granularity == "per_tensor"
    granularity = PerTensor() if axis is None or whole else PerAxis(axis)
    return QuantSpec(qtype, granularity, bool(config.symmetric), bits or qtype.bits)


def stored_method(config: WeightConfig) -> WeightMethod:
    """How the range of a weight is chosen."""
    return config.method or AbsMax()


def stored_opsets(recipe: Recipe, scheme: WeightOnly, target: Target) -> tuple[int, int]:
    """The operator set wanted for stored weights, and the oldest one that will do.

    Args:
        recipe: What is wanted.
        scheme: Its scheme.
        target: The backend.
    """
    configs = [recipe.weights, *(rule.weights for rule in recipe.rules if rule.weights is not None)]
    bits = [stored_spec(config, None).bits for config in configs] + [16] * (scheme.mixed is not None)
    bits += [2] * (scheme.average_bits is not None)
    oldest = oldest_opset(scheme.storage, 8)
    if scheme.storage == "native" and scheme.method is not None:
        oldest = max(oldest, FIRST_WITH_BLOCKS)
    return max(target.opset, oldest, *(oldest_opset(scheme.storage, width) for width in bits)), oldest


def gain_threshold(bits: int) -> int:
    """A scale and a mean of its own pay for a channel of more elements than this."""
    return 256 // (32 - bits)


def fixed_codes(graph: GraphModel, weight: WeightPlan, *, correction: bool) -> WeightCodes:
    """The codes of a planned weight, of the width the plan says.

    Args:
        graph: The graph.
        weight: Which weight.
        correction: Give each channel back its mean and variance.

    Raises:
        GraphError: If it holds NaN or infinity.
    """
    method = weight_methods.config_from_dict(weight.method.name, weight.method.parameters())
    if not isinstance(method, AbsMaxConfig | MseConfig):
        raise RecipeError(f"weights.method: {weight.method.name} needs activations; use absmax or mse")
    try:
        return find_codes(weight_value(graph, weight), weight.spec, method, correction=correction)
    except CalibrationError as err:
        raise unusable(weight, err) from err


def unusable(weight: WeightPlan, err: CalibrationError) -> GraphError:
    """The error of a weight that cannot become codes."""
    return GraphError(f"weight {weight.tensor!r} of node {weight.node!r}: {err}; mend it, or skip the node")


def check_weight_only(recipe: Recipe) -> None:
    """Refuse what has no meaning where only weights have codes.

    What a recipe has by default is no demand: bias correction and equalization in front of depthwise convolutions
    are left out.

    Raises:
        RecipeError: If the recipe asks for something that has no effect here; it names all of it.
    """
    problems = [*_about_activations(recipe), *_about_steps(recipe), *_about_scheme(recipe)]
    configs = [("weights", recipe.weights)]
    configs += [(f"rules[{i}].weights", r.weights) for i, r in enumerate(recipe.rules) if r.weights is not None]
    mixed = getattr(recipe.scheme, "mixed", None) is not None
    for where, config in configs:
        if mixed and _says_something(config):
            problems.append(f"{where}: scheme.mixed searches one step for each weight; leave it out")
        else:
            problems += [f"{where}.{text}" for text in _about_weights(config)]
    if problems:
        raise RecipeError("scheme weight_only: " + "; ".join(problems))


def _about_scheme(recipe: Recipe) -> list[str]:
    """What does not go together within the scheme."""
    scheme = recipe.scheme
    if not isinstance(scheme, WeightOnly):
        return []
    problems, size = [], scheme.block_size
    if scheme.storage == "blocks" and isinstance(size, int) and not (16 <= size <= 256 and size & (size - 1) == 0):
        problems.append(f"block_size: found {size}; MatMulNBits has powers of 2 from 16 to 256")
    if scheme.method is None:
        wrong = {"average_bits": scheme.average_bits is not None, "block_size: row": size == "row"}
        problems += [f"{name}: needs scales of blocks; set scheme.method" for name, is_so in wrong.items() if is_so]
        return problems
    if scheme.mixed is not None:
        problems.append("mixed: one step for each weight and method do not go together; use average_bits")
    configs = [recipe.weights, *(rule.weights for rule in recipe.rules if rule.weights is not None)]
    if scheme.average_bits is not None and any(c.bits is not None or c.type is not None for c in configs):
        problems.append("average_bits: chooses the width of every weight; leave out weights.bits and weights.type")
    if any(c.granularity is not None for c in configs):
        problems.append("weights.granularity: with scheme.method scales are those of blocks; set scheme.block_size")
    return problems


def _about_activations(recipe: Recipe) -> list[str]:
    text = "activations stay float; leave it out, or use scheme static"
    found = ["activations"] if _says_something(recipe.activations) else []
    for number, rule in enumerate(recipe.rules):
        found += [f"rules[{number}].{key}" for key in ("activations", "inputs", "balance") if getattr(rule, key)]
    found += [key for key in ("balance", "fp16_scales") if getattr(recipe, key)]
    return [f"{where}: {text}" for where in found]


def _about_steps(recipe: Recipe) -> list[str]:
    if recipe.refine in ((), (BiasCorrection(),)):
        return []
    kinds = ", ".join(step.kind for step in recipe.refine)
    return [f"refine: {kinds} needs a static scheme; means are given back by scheme.correction"]


def _about_weights(config: WeightConfig) -> list[str]:
    problems = []
    if not isinstance(config.method, AbsMax | WeightMSE | None):
        problems.append(f"method: {config.method.name} needs a static scheme; use absmax or mse")
    elif isinstance(config.method, AbsMax) and config.method.full_range:
        problems.append("method.full_range: all codes are in use anyway; leave it out")
    if config.narrow:
        problems.append("narrow: decoded weights lose nothing by the lowest code; leave it out")
    if config.granularity not in (None, "per_tensor", "per_axis"):
        problems.append("granularity: scales of blocks are what scheme.storage blocks makes; set scheme.block_size")
    return problems


def _says_something(config: TensorConfig) -> bool:
    return any(getattr(config, name) is not None for name in type(config).model_fields)
