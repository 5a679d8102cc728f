"""Cross-layer equalization: neighbouring layers share the spread of their channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.algos.equalize import equalization_scales
from onnxq.errors import GraphError, RecipeError
from onnxq.graph import GraphModel, Node
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._channel_path import Path, find_path
from onnxq.passes._linear import LINEAR_OPS, Linear, Vector, describe, label, read_linear, write_bias, write_weight
from onnxq.passes._rescaled import between, note_rescaled

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_SUFFIX = "equalized"


class _Ranges:
    """The largest weights of one layer per pair of channels, and the factors of its channels.

    Attributes:
        linear: The layer.
        matrix: ``max |w|`` over the kernel with the factors found so far, shape (groups, a, b) of
            `WeightLayout.view`; float32, since it only steers: the factors are exact.
        outputs: Factor of each output channel of the weight and the bias, shape (out_channels,).
        inputs: Factor of each input channel of the weight, shape (in_channels,).
    """

    def __init__(self, graph: GraphModel, linear: Linear) -> None:
        self.linear = linear
        self.matrix = linear.layout.absmax(graph.value(linear.weight))
        self.outputs: Vector = np.ones(linear.layout.out_channels)
        self.inputs: Vector = np.ones(linear.layout.in_channels)

    def of_outputs(self) -> Vector:
        """Largest ``|w|`` of each output channel, shape (out_channels,)."""
        return self._largest(2 if self.linear.layout.out_first else 1)

    def of_inputs(self) -> Vector:
        """Largest ``|w|`` of each input channel, shape (in_channels,)."""
        return self._largest(1 if self.linear.layout.out_first else 2)

    def _largest(self, over: int) -> Vector:
        result: Vector = self.matrix.max(axis=over, initial=0.0).reshape(-1).astype(np.float64)
        return result

    def scale_outputs(self, factors: Vector) -> None:
        """Multiply each output channel by a factor, shape (out_channels,)."""
        self.outputs = self.outputs * factors
        self.matrix *= self.linear.layout.per_output(factors)[..., 0]

    def scale_inputs(self, factors: Vector) -> None:
        """Multiply each input channel by a factor, shape (in_channels,)."""
        self.inputs = self.inputs * factors
        self.matrix *= self.linear.layout.per_input(factors)[..., 0]


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """``W2 f(W1 x + b1)`` becomes ``(W2 S) f((W1 x + b1) / S)`` with S that flattens both weights.

    Given:
        two layers (Conv, depthwise Conv, ConvTranspose, Gemm, MatMul) with nothing between them but
        operations that let a positive factor per channel pass: Relu, LeakyRelu, PRelu, pooling, zero
        padding, flattening.
    Result:
        the same nodes with other weights; channel i of the first is divided and channel i of the
        second multiplied by ``s_i = sqrt(r1_i / r2_i)``, r the largest absolute weights of the channel,
        so that both become ``sqrt(r1_i * r2_i)``. Repeated over all pairs until no factor is further
        from 1 than `tolerance`; through a depthwise layer this equalizes all three.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
    2019. A channel whose weights are all 0 on either side is left alone.

    Attributes:
        iterations: How often to go over all pairs at the most.
        tolerance: How far from 1 a factor may stay, as ``|ln s|``.
        drop_clips: Turn a ``Clip(0, u)`` between two layers into a Relu. The function then changes where
            the Clip cut something off; by default such a pair is left alone.
    """

    iterations: int = 200
    tolerance: float = 0.01
    drop_clips: bool = False

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_LIFTED, Fact.BN_FUSED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS})
    preserves_function: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise RecipeError(f"equalization: iterations must be at least 1, got {self.iterations}")
        if not self.tolerance > 0.0:
            raise RecipeError(f"equalization: tolerance must be above 0, got {self.tolerance}")
        object.__setattr__(self, "preserves_function", not self.drop_clips)

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Equalize all pairs; each layer that starts none is reported with the reason."""
        paths: list[Path] = []
        skipped: list[Skip] = []
        ranges: dict[int, _Ranges] = {}
        for node in graph.nodes(*LINEAR_OPS):
            path = self._path(graph, node, ranges)
            if isinstance(path, Path):
                paths.append(path)
            else:
                skipped.append(Skip(label(node), path))
        changed, notes = self._equalize(paths, ranges)
        if changed:
            for path in changed:
                _rewrite_between(graph, path, ranges[id(path.first.node)].outputs)
                note_rescaled(ctx, between(graph, path.first.node, path.second.node))
            for layer in ranges.values():
                _rewrite_layer(graph, layer)
            graph.sort()
        return PassReport(len(changed), tuple(skipped), notes)

    def _path(self, graph: GraphModel, node: Node, ranges: dict[int, _Ranges]) -> Path | str:
        """The pair that begins with `node`, or why there is none; adds what is new to `ranges`."""
        linear = read_linear(graph, node)
        path = linear if isinstance(linear, str) else find_path(graph, linear, drop_clips=self.drop_clips)
        if isinstance(path, str):
            return path
        for part in (path.first, path.second):
            if id(part.node) not in ranges:
                ranges[id(part.node)] = _Ranges(graph, part)
            if not np.isfinite(ranges[id(part.node)].matrix).all():
                return f"the weight of {describe(part.node)} holds NaN or infinity"
        return path

    def _equalize(self, paths: list[Path], ranges: dict[int, _Ranges]) -> tuple[list[Path], tuple[str, ...]]:
        """Find the factors; returns the pairs that have any and a note.

        Starts only if a factor exceeds `tolerance` but then goes on to half of it, so that a second
        run finds nothing to do.
        """
        changed: dict[int, Path] = {}
        worst = max((_spread(_factors(path, ranges)) for path in paths), default=0.0)
        if worst <= self.tolerance:
            return [], ()
        rounds = 0
        while worst > self.tolerance / 2 and rounds < self.iterations:
            rounds, worst = rounds + 1, 0.0
            for position, path in enumerate(paths):
                factors = _factors(path, ranges)
                spread = _spread(factors)
                worst = max(worst, spread)
                if spread > self.tolerance / 2:
                    ranges[id(path.first.node)].scale_outputs(1.0 / factors)
                    ranges[id(path.second.node)].scale_inputs(np.repeat(factors, path.repeat))
                    changed[position] = path
        state = (
            "" if worst <= self.tolerance / 2 else f"; not settled yet, the largest last factor was {np.exp(worst):.3g}"
        )
        return list(changed.values()), (f"equalized {len(changed)} pairs of layers in {rounds} rounds{state}",)


def _factors(path: Path, ranges: dict[int, _Ranges]) -> Vector:
    """What to divide each channel of the first layer by, shape (C,)."""
    second = ranges[id(path.second.node)].of_inputs().reshape(-1, path.repeat).max(axis=1, initial=0.0)
    return equalization_scales(ranges[id(path.first.node)].of_outputs(), second)


def _spread(factors: Vector) -> float:
    return float(np.abs(np.log(factors)).max(initial=0.0))


def _rewrite_layer(graph: GraphModel, layer: _Ranges) -> None:
    linear = layer.linear
    if (layer.outputs == 1.0).all() and (layer.inputs == 1.0).all():
        return
    weight = linear.layout.scaled(graph.value(linear.weight), outputs=layer.outputs, inputs=layer.inputs)
    bias = None if linear.bias is None else linear.bias * layer.outputs
    limit = np.finfo(np.float32).max
    if not (np.isfinite(weight).all() and (bias is None or (np.abs(bias) <= limit).all())):
        raise GraphError(f"{describe(linear.node)}: equalizing makes its weight or bias overflow float32; leave it out")
    write_weight(graph, linear, weight, _SUFFIX)
    if bias is not None and not (layer.outputs == 1.0).all():
        write_bias(graph, linear, bias, _SUFFIX)


def _rewrite_between(graph: GraphModel, path: Path, outputs: Vector) -> None:
    """Scale the Add behind a MatMul and let Clips go."""
    for clip in path.clips:
        source, result = clip.inputs[0], clip.outputs[0]
        graph.remove_node(clip)
        graph.add_node("Relu", [source], name=f"{label(clip)}_relu", outputs=[result])
    if path.bias_add is not None:
        index = 0 if graph.is_constant(path.bias_add.inputs[0]) else 1
        constant = path.bias_add.inputs[index]
        values = (graph.value(constant).astype(np.float64) * outputs).astype(np.float32)
        name = graph.unique_name(f"{constant.name}_{_SUFFIX}")
        graph.set_input(path.bias_add, index, graph.add_constant(name, values))
