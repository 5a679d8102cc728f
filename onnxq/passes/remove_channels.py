"""Removes the channels that matter least, with all that depends on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.prune import channel_norms, kept_channels, normalised, remaining, together
from onnxq.errors import GraphError
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._channel_groups import Block, Channels, find_channels
from onnxq.passes._channel_layers import is_layer
from onnxq.passes._channel_units import Layer, count, keep
from onnxq.passes._linear import kind, label
from onnxq.recipe import ChannelPrune

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel

_UNWANTED = "the recipe does not remove channels of it"


@dataclass(frozen=True)
class RemoveChannels(Pass):
    """Removes output channels of Conv, ConvTranspose, Gemm and MatMul, as `Recipe.prune` and its rules say.

    The channels of a layer are followed through the graph to all that reads them. What a channel is added to is
    removed with it; parameters of normalizations, depthwise convolutions and whatever else has a number for each
    channel shrink; the readers lose input channels. Where an operator mixes channels, or does not tell what it
    does, nothing is removed, and the report says so of each layer.

    The model computes what it did when the removed channels were taken for 0 by the layers that read them.

    Given:
        ``Conv(3 -> 32) -> BatchNormalization -> Relu -> Conv(32 -> 64)``, ratio 0.25 for the first
    Result:
        ``Conv(3 -> 24) -> BatchNormalization -> Relu -> Conv(24 -> 64)``; `ctx.kept` names the 24 channels.

    Channels are chosen by their balanced norms (see `onnxq.algos.prune`): those of layers that lose channels together
    are added up, the smallest of their ratios holds, and what is left is a multiple of what each of them asks for.

    Source: AMCT's BalancedL2NormFilterPruner (specs of AMCT, section 1.10).
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PRUNED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS, Fact.MOMENTS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Choose, and remove."""
        channels = find_channels(graph)
        wanted = [_wanted(layer, ctx) for layer in channels.layers]
        alive, told = _choose(channels, wanted)
        left = [(layer, keep(layer.units, alive)) for layer in channels.layers]
        kept = {label(layer.node): k for layer, k in left if len(k) < len(layer.units)}
        for edit in channels.trace.edits:
            if not _whole(edit.labels, alive):
                edit.apply(alive)
        for key, place in channels.trace.places.items():
            tensor = channels.trace.tensors[key]
            shape = list(graph.shape(tensor) or ())
            if shape:
                shape[place.axis] = count(place.labels, alive)
                graph.set_type(tensor, graph.dtype(tensor), shape)
        graph.sort()
        ctx.kept = kept
        return PassReport(len(kept), _skipped(graph, channels, wanted, kept, told))

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `GraphError` if a layer has not the channels that were kept."""
        for layer in find_channels(graph).layers:
            name = label(layer.node)
            if name in ctx.kept and len(ctx.kept[name]) != len(layer.units):
                raise GraphError(f"layer {name!r} has {len(layer.units)} channels, not the {len(ctx.kept[name])} kept")


def _whole(labels: NDArray[np.int64], alive: NDArray[np.bool_]) -> bool:
    return count(labels, alive) == len(labels)


def _wanted(layer: Layer, ctx: QuantContext) -> ChannelPrune | None:
    prune = ctx.recipe.resolve(label(layer.node), kind(layer.node)).prune
    return prune if isinstance(prune, ChannelPrune) else None


def scores_of(graph: GraphModel, layer: Layer) -> NDArray[np.float64]:
    """The balanced norms of a layer's channels, 0 to 1."""
    weight = np.asarray(graph.value(layer.weight))
    return normalised(channel_norms(weight.reshape(layer.layout.view), out_first=layer.layout.out_first))


def _choose(channels: Channels, wanted: list[ChannelPrune | None]) -> tuple[NDArray[np.bool_], dict[int, str]]:
    """Which units are kept, and why layers keep all of theirs, by index."""
    graph, layers = channels.trace.graph, channels.layers
    roots_kept = np.ones(len(channels.roots), np.bool_)
    told: dict[int, str] = {}
    scores: dict[int, NDArray[np.float64]] = {}
    chains: dict[int, list[Block]] = {}
    for block in channels.blocks:
        chains.setdefault(block.chain, []).append(block)
    for chain in chains.values():
        members = sorted({index for block in chain for index in block.layers})
        configs = [wanted[index] for index in members]
        asked = [c for c in configs if c is not None]
        if len(asked) < len(configs):
            odd = label(layers[members[configs.index(None)]].node)
            told |= dict.fromkeys(members, f"it loses channels together with {odd!r}, which keeps all of its own")
            continue
        ratio, multiple = min(c.ratio for c in asked), together(*(c.multiple for c in asked))
        for index in members:
            if index not in scores:
                scores[index] = scores_of(graph, layers[index])
        for block in chain:
            size = len(block.roots)
            left = remaining(size * block.equals, ratio, together(multiple, block.equals)) // block.equals
            if left == size:
                text = f"ratio {ratio:g} of {size} channels, rounded up to a multiple of {multiple}, leaves all of them"
                told |= dict.fromkeys(block.layers, text)
            best = kept_channels(channels.sums(scores, block), left)
            roots_kept[np.delete(block.roots, best)] = False
    return roots_kept[channels.roots], told


def _skipped(
    graph: GraphModel,
    channels: Channels,
    wanted: list[ChannelPrune | None],
    kept: dict[str, NDArray[np.int64]],
    told: dict[int, str],
) -> tuple[Skip, ...]:
    """Why layers have all their channels."""
    indexes = {id(layer.node): index for index, layer in enumerate(channels.layers)}
    found = []
    for node in graph.nodes():
        name = label(node)
        if not is_layer(node) or name in kept:
            continue
        index = indexes.get(id(node))
        if index is None:
            reason: str | None = channels.trace.reasons.get(id(node), "it makes no channels that could be removed")
        elif wanted[index] is None:
            reason = _UNWANTED
        else:
            reason = channels.why_fixed(channels.layers[index]) or told.get(index)
        found.append(Skip(name, reason or "all of its channels are needed"))
    return tuple(found)
