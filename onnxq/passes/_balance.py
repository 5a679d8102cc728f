"""What balancing passes share: which layers, their channels, and how a graph shows that a layer is balanced."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.opinfo import OPS
from onnxq.passes._base import Skip
from onnxq.passes._linear import Linear, Vector, describe, kind, label, read_linear, write_weight
from onnxq.plan import Plan
from onnxq.recipe import BalanceConfig

if TYPE_CHECKING:
    from onnxq.context import QuantContext

FOLDED = "onnxq.balance_folded"
"""Key of the model's metadata: a JSON list of the layers whose input is divided where it is computed."""
SUFFIX = "balanced"
_WITHOUT_CHANNELS = ("AveragePool", "GlobalAveragePool")


@dataclass(frozen=True, slots=True, eq=False)
class BalancedLayer:
    """A layer whose input channels are to be balanced.

    Attributes:
        linear: The layer.
        strength: How much of the unevenness goes into the weight.
        axis: Axis of the input's channels: 1, or -1 for a MatMul.
        mul: Whether a Mul may divide its input.
    """

    linear: Linear
    strength: float
    axis: int
    mul: bool

    @property
    def node(self) -> Node:
        """The node."""
        return self.linear.node

    @property
    def name(self) -> str:
        """Its name."""
        return label(self.node)

    @property
    def tensor(self) -> Tensor:
        """What it reads."""
        return self.node.inputs[0]

    @property
    def channels(self) -> int:
        """Number of input channels, over all groups."""
        return self.linear.layout.in_channels


def layers_to_balance(graph: GraphModel, ctx: QuantContext) -> tuple[list[BalancedLayer], list[Skip]]:
    """The planned layers the recipe wants balanced, in topological order, and those that cannot be, with reasons."""
    plan = Plan() if ctx.plan is None else ctx.plan
    found: list[BalancedLayer] = []
    skipped: list[Skip] = []
    axes: dict[str, int] = {}
    for decision in plan.decisions:
        if decision.role != "quantized":
            continue
        node = graph.node(decision.node)
        settings = ctx.recipe.resolve(label(node), kind(node))
        if settings.balance is None or not _has_products(node):
            continue
        layer = _layer(graph, node, settings.balance)
        if isinstance(layer, BalancedLayer):
            axis = layer.axis % (graph.rank(layer.tensor) or 1)
            if axes.setdefault(layer.tensor.name, axis) == axis:
                found.append(layer)
                continue
            layer = f"another layer reads {layer.tensor.name!r} with its channels on another axis"
        skipped.append(Skip(label(node), f"not balanced: {layer}"))
    return found, skipped


def _has_products(node: Node) -> bool:
    info = OPS.get(kind(node))
    return info is not None and (info.kind == "linear" or node.op in _WITHOUT_CHANNELS)


def _layer(graph: GraphModel, node: Node, config: BalanceConfig) -> BalancedLayer | str:
    linear = balanceable(graph, node)
    if isinstance(linear, str):
        return linear
    done = balanced_already(graph, node)
    if done is not None:
        return done
    return BalancedLayer(linear, config.strength, -1 if node.op == "MatMul" else 1, config.mul)


def balanceable(graph: GraphModel, node: Node) -> Linear | str:
    """The layer `node` is, if its input channels can be balanced, or why not."""
    if node.op in _WITHOUT_CHANNELS:
        return f"an {node.op} has no weight that could take the factors"
    if node.op == "MatMul" and not any(graph.is_constant(t) for t in node.inputs):
        return "both factors of the MatMul are activations; there is no weight that could take the factors"
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return "transA puts the channels on the first axis, where the samples are"
    if graph.rank(node.inputs[0]) is None:
        return f"the rank of its input {node.inputs[0].name!r} is not known"
    return read_linear(graph, node)


def input_absmax(graph: GraphModel, linear: Linear) -> Vector:
    """Largest ``|w|`` of each input channel, over all groups, shape (in_channels,)."""
    over = 1 if linear.layout.out_first else 2
    largest: Vector = linear.layout.absmax(graph.value(linear.weight)).max(axis=over, initial=0.0).astype(np.float64)
    return largest.reshape(-1)


def channel_shape(graph: GraphModel, node: Node, channels: int) -> tuple[int, ...]:
    """The shape in which one number per input channel broadcasts against the input of `node`."""
    rank = graph.rank(node.inputs[0]) or 1
    axis = rank - 1 if node.op == "MatMul" else 1
    return tuple(channels if a == axis else 1 for a in range(rank))


# ---- what a balanced graph looks like


def mul_name(node: Node) -> str:
    """Name of the Mul in front of a balanced layer."""
    return f"{label(node)}.mul"


def balanced_already(graph: GraphModel, node: Node) -> str | None:
    """How the graph shows that a layer is balanced; None if it is not."""
    if label(node) in folded_layers(graph):
        return "its input is divided where it is computed already"
    return None if written_factors(graph, node) is None else f"{mul_name(node)!r} in front of it balances it already"


def folded_layers(graph: GraphModel) -> frozenset[str]:
    """The layers whose input is divided where it is computed.

    Raises:
        GraphError: If the model's metadata hold something else than a list of names.
    """
    text = graph.metadata.get(FOLDED, "[]")
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise GraphError(f"metadata {FOLDED!r} must be a JSON list of node names, found {text[:80]!r}")
    return frozenset(names)


def note_folded(graph: GraphModel, names: Iterable[str]) -> None:
    """Remember in the model that these layers are balanced."""
    graph.metadata[FOLDED] = json.dumps(sorted(folded_layers(graph) | set(names)))


def written_factors(graph: GraphModel, node: Node) -> NDArray[np.float32] | None:
    """The constant of the Mul in front of a layer, one over the factors, shape (C,); None if there is no such Mul."""
    before = graph.producer(node.inputs[0])
    if before is None or kind(before) != "Mul" or before.name != mul_name(node):
        return None
    constants = [t for t in before.inputs if graph.is_constant(t)]
    return np.asarray(graph.value(constants[0]), np.float32).reshape(-1) if len(constants) == 1 else None


def write_mul(graph: GraphModel, node: Node, factors: NDArray[np.float32]) -> None:
    """Divide the input of a layer by factors, shape (C,), with a Mul of its own, as AMCT writes it."""
    source = node.inputs[0]
    inverse = (1.0 / factors.astype(np.float64)).astype(np.float32).reshape(channel_shape(graph, node, factors.size))
    constant = graph.add_constant(f"{label(node)}.tensor_balance_factor", inverse)
    mul = graph.add_node(
        "Mul", [source, constant], name=mul_name(node), dtype=np.float32, shape=graph.shape(source)
    )  # fmt: skip
    graph.set_input(node, 0, mul.outputs[0])


def scale_weight(graph: GraphModel, linear: Linear, factors: NDArray[np.float32]) -> None:
    """Multiply the input channels of a weight by factors, shape (C,).

    Raises:
        GraphError: If a weight overflows float32.
    """
    weight = linear.layout.scaled(graph.value(linear.weight), inputs=factors.astype(np.float64))
    if not np.isfinite(weight).all():
        raise GraphError(f"{describe(linear.node)}: balancing makes its weight overflow float32; leave it out")
    write_weight(graph, linear, weight, SUFFIX)
