"""Which channels of a graph can be removed, and in which sets they are chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel, Node
from onnxq.passes._channel_layers import is_layer, normalise, pass_layer
from onnxq.passes._channel_rules import RULES, Rule
from onnxq.passes._channel_units import Labels, Layer, Trace
from onnxq.passes._channel_views import VIEWS
from onnxq.passes._linear import kind

_RULES: dict[str, Rule] = {
    **RULES,
    **VIEWS,
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), pass_layer),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), normalise),
}


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Channels that one choice is made of: all are channels of the same layers.

    Attributes:
        roots: The units that stand for them, sorted.
        layers: Indexes of their layers.
        chain: Blocks with the same number keep equally many: those of one grouped convolution.
        equals: How many blocks of the chain have as many channels.
    """

    roots: Labels
    layers: tuple[int, ...]
    chain: int
    equals: int


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """The channels of a graph.

    Attributes:
        trace: Where they are, and what depends on them.
        roots: For each unit the one that stands for all it is tied to.
        blocks: Those that can be removed.
    """

    trace: Trace
    roots: Labels
    blocks: tuple[Block, ...]

    @property
    def layers(self) -> list[Layer]:
        """The layers that make channels."""
        return self.trace.layers

    def why_fixed(self, layer: Layer) -> str | None:
        """Why none of a layer's channels can be removed, or None."""
        reasons = [self.trace.units.why_fixed(int(u)) for u in layer.units]
        return None if any(r is None for r in reasons) else next((r for r in reasons if r is not None), None)

    def sums(self, scores: dict[int, NDArray[np.float64]], block: Block) -> NDArray[np.float64]:
        """The sum of the scores of all channels that are tied together, for each of a block.

        Args:
            scores: One number per channel, by index of the layer.
            block: The block.

        Returns:
            float64, one for each of ``block.roots``.
        """
        found: NDArray[np.float64] = np.zeros(len(block.roots))
        for index in block.layers:
            tied = self.roots[self.layers[index].units]
            where = np.searchsorted(block.roots, tied)
            where = np.minimum(where, len(block.roots) - 1)
            mine = block.roots[where] == tied
            np.add.at(found, where[mine], scores[index][mine])
        return found


def find_channels(graph: GraphModel) -> Channels:
    """Follow all channels through a graph.

    Args:
        graph: Named, with lifted constants and known shapes; it is not changed.
    """
    trace = Trace(graph)
    for node in graph.nodes():
        pass_node(trace, node)
    return settle(trace)


def pass_node(trace: Trace, node: Node) -> None:
    """Let the channels that a node reads pass, or fix them."""
    rule = _RULES.get(kind(node))
    if is_layer(node) or (rule is not None and trace.labelled(node)):
        (rule or pass_layer)(trace, node)
    else:
        trace.fix_inputs(node, "is an operator that channels are not followed through")


def settle(trace: Trace) -> Channels:
    """Find the blocks; groups of a convolution that would get different sizes are fixed first."""
    while True:
        roots = trace.units.roots(np.arange(len(trace.units)))
        blocks = _blocks(trace, roots)
        problems = [(parts, why) for parts, why in trace.groups if not _even(parts, roots, blocks)]
        if not problems:
            return Channels(trace, roots, _linked(trace, roots, blocks))
        for parts, why in problems:
            for part in parts:
                trace.units.fix(part, why)


_Signature = tuple[int, ...]


def _blocks(trace: Trace, roots: Labels) -> dict[_Signature, list[int]]:
    """The removable channels by what they belong to: layers, groups, parts of a Split."""
    marks: list[list[int]] = [[] for _ in range(len(roots))]
    number = 0
    for layer in trace.layers:
        for root in roots[layer.units].tolist():
            marks[root].append(number)
        number += 1
    for part in (*trace.parts, *(p for parts, _ in trace.groups for p in parts)):
        for root in sorted(set(trace.units.roots(part).tolist())):
            if root >= 0:
                marks[root].append(number)
        number += 1
    found: dict[_Signature, list[int]] = {}
    for root, mark in enumerate(marks):
        if roots[root] == root and trace.units.why_fixed(root) is None:
            found.setdefault(tuple(mark), []).append(root)
    return found


def _even(parts: list[Labels], roots: Labels, blocks: dict[_Signature, list[int]]) -> bool:
    """Whether all groups of a convolution lose equally many channels, whatever part of each block is removed."""
    home = {root: (number, len(members)) for number, members in enumerate(blocks.values()) for root in members}
    sizes = []
    for part in parts:
        found = Counter(home[r] for r in roots[part[part >= 0]].tolist() if r in home)
        sizes.append(sorted((size, seen) for (_, size), seen in found.items()))
    return all(s == sizes[0] and all(size == seen for size, seen in s) for s in sizes)


def _linked(trace: Trace, roots: Labels, blocks: dict[_Signature, list[int]]) -> tuple[Block, ...]:
    home = {root: number for number, members in enumerate(blocks.values()) for root in members}
    chain = list(range(len(blocks)))

    def first(number: int) -> int:
        while chain[number] != number:
            number = chain[number]
        return number

    for parts, _ in trace.groups:
        ends = {first(home[r]) for part in parts for r in roots[part[part >= 0]].tolist() if r in home}
        for end in ends:
            chain[end] = min(ends)
    sizes = Counter((first(number), len(members)) for number, members in enumerate(blocks.values()))
    layers = len(trace.layers)
    return tuple(
        Block(
            np.asarray(members), tuple(dict.fromkeys(m for m in mark if m < layers)), first(number),
            sizes[first(number), len(members)],
        )
        for number, (mark, members) in enumerate(blocks.items())
    )  # fmt: skip
