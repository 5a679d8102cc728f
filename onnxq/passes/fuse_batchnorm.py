"""Batch normalization, and constant scales and shifts, merged into the layer before them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.errors import RecipeError, nearest
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._affine import Affine, read_affine
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._linear import (
    LINEAR_OPS,
    Linear,
    Vector,
    describe,
    label,
    read_linear,
    why_shared,
    write_bias,
    write_weight,
)

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_SUFFIX = "fused"


@dataclass(slots=True)
class _Chain:
    """A layer, the affine nodes behind it that can be merged, and why the next one cannot."""

    linear: Linear
    affine: Affine
    nodes: list[Node] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    @property
    def only_shifts(self) -> bool:
        """Whether nothing but constant Adds and Subs follow."""
        return not any(n.op == "BatchNormalization" for n in self.nodes) and bool((self.affine.scale == 1.0).all())


@dataclass(frozen=True)
class FuseBatchNorm(Pass):
    """``BN(W x + b)`` becomes ``(k W) x + (k (b - mean) + beta)``, k = gamma / sqrt(variance + epsilon).

    Given:
        Conv, ConvTranspose, Gemm or MatMul, followed by any chain of BatchNormalization and of Mul,
        Add, Sub and Div with one constant per channel.
    Result:
        the layer alone, with new weight and bias constants, and the name of the chain's last tensor.
        A MatMul, which has no bias, is followed by one Add; a MatMul followed by Adds only is left alone.

    k has one value per output channel; everything is computed in float64 and rounded once. A chain
    ends where a tensor is read elsewhere or is a graph output. Old constants stay for their other readers.

    Attributes:
        skip_layers: Names or globs of nodes that take no part, neither as layer nor as what is merged.
    """

    skip_layers: tuple[str, ...] = ()

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_LIFTED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.BN_FUSED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `RecipeError` if an entry of `skip_layers` matches no node."""
        names = [label(n) for n in graph.nodes()]
        for pattern in self.skip_layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise RecipeError(f"skip_layers: {pattern!r} matches no node{nearest(pattern, names)}")

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Merge every chain; what cannot be merged is reported with the reason.

        Arithmetic behind a MatMul is not: there it is mostly part of a GELU or an embedding.
        """
        changed = 0
        skipped: list[Skip] = []
        for node in graph.nodes(*LINEAR_OPS):
            linear = self._listed(node) or read_linear(graph, node)
            if isinstance(linear, str):
                skipped += _behind(graph, node, linear)
                continue
            chain = self._follow(graph, linear)
            reason = _merge(graph, chain)
            skipped += chain.skipped if reason is None else [Skip(label(n), reason) for n in chain.nodes]
            changed += len(chain.nodes) if reason is None else 0
        if changed:
            graph.sort()
        known = {s.node for s in skipped}
        alone = [n for n in graph.nodes("BatchNormalization") if label(n) not in known]
        return PassReport(changed, (*skipped, *(Skip(label(n), _why_alone(graph, n)) for n in alone)))

    def _listed(self, node: Node) -> str | None:
        for pattern in self.skip_layers:
            if fnmatchcase(label(node), pattern):
                return f"skip_layers lists {describe(node)} ({pattern!r})"
        return None

    def _follow(self, graph: GraphModel, linear: Linear) -> _Chain:
        """The longest chain behind `linear`."""
        chain = _Chain(linear, Affine.identity(linear.layout.out_channels))
        tail: Tensor | None = linear.node.outputs[0]
        while tail is not None:
            tail = self._extend(graph, chain, tail)
        if linear.node.op == "MatMul" and chain.only_shifts:
            return _Chain(linear, Affine.identity(linear.layout.out_channels), skipped=chain.skipped)
        return chain

    def _extend(self, graph: GraphModel, chain: _Chain, tail: Tensor) -> Tensor | None:
        """Add the reader of `tail` to `chain` and return its output; None where the chain ends."""
        shared = why_shared(graph, tail)
        for use in graph.consumers(tail):
            affine = read_affine(graph, use.node, tail, chain.linear)
            if affine is None:
                continue
            reason = affine if isinstance(affine, str) else self._listed(use.node) or shared
            if reason is not None:
                if use.node.op == "BatchNormalization" or chain.linear.node.op != "MatMul":
                    chain.skipped.append(Skip(label(use.node), reason))
            elif isinstance(affine, Affine):
                chain.nodes.append(use.node)
                chain.affine = chain.affine.then(affine)
                return use.node.outputs[0]
        return None


def _merge(graph: GraphModel, chain: _Chain) -> str | None:
    """Write `chain` into its layer; returns why not if the numbers do not allow it."""
    if not chain.nodes:
        return None
    linear, scale = chain.linear, chain.affine.scale
    bias = chain.affine.shift if linear.bias is None else linear.bias * scale + chain.affine.shift
    weight = linear.layout.scaled(graph.value(linear.weight), outputs=scale)
    if not (np.isfinite(weight).all() and (np.abs(bias) <= np.finfo(np.float32).max).all()):
        return f"the merged weight or bias of {describe(linear.node)} would not be finite in float32"
    last = chain.nodes[-1].outputs[0]
    for node in chain.nodes:
        graph.remove_node(node)
    if not (scale == 1.0).all():
        write_weight(graph, linear, weight, _SUFFIX)
    if linear.node.op == "MatMul":
        _end_matmul(graph, linear, bias, last)
        return None
    if linear.bias is not None or bias.any():
        write_bias(graph, linear, bias, _SUFFIX)
    graph.replace_output(linear.node, 0, last)
    return None


def _end_matmul(graph: GraphModel, linear: Linear, bias: Vector, last: Tensor) -> None:
    if not bias.any():
        graph.replace_output(linear.node, 0, last)
        return
    name = graph.unique_name(f"{label(linear.node)}_bias")
    constant = graph.add_constant(name, bias.astype(np.float32))
    graph.add_node("Add", [linear.node.outputs[0], constant], name=f"{label(linear.node)}_add", outputs=[last])


def _behind(graph: GraphModel, node: Node, reason: str) -> list[Skip]:
    """The BatchNormalizations that read `node`, which cannot take them in because of `reason`."""
    readers = [u.node for u in graph.consumers(node.outputs[0])]
    return [Skip(label(n), f"{describe(node)}: {reason}") for n in readers if n.op == "BatchNormalization"]


def _why_alone(graph: GraphModel, node: Node) -> str:
    maker = graph.producer(node.inputs[0])
    origin = "is a graph input" if maker is None else f"comes from {describe(maker)}"
    return f"its input {origin}, not from a Conv, ConvTranspose, Gemm or MatMul"
