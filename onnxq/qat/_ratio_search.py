"""Greedy choice of how many channels each set of layers keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.prune import kept_channels, remaining, together
from onnxq.costs import ModelCost, NodeCost
from onnxq.errors import TrainingError
from onnxq.passes._channel_groups import Block, Channels
from onnxq.passes._channel_units import Labels, count
from onnxq.passes._linear import label
from onnxq.passes.remove_channels import scores_of

Scores = NDArray[np.float64]
Alive = NDArray[np.bool_]
_MOST_LEVELS = 64
"""In so many steps at the most a layer loses all its channels; larger layers lose several in a step."""


@dataclass(slots=True, eq=False)
class _Part:
    """Layers that get the same ratio.

    Attributes:
        layers: Their names.
        size: Channels of the largest choice among them.
        step: What is left is a multiple of this.
        levels: For each step which units are gone, and what that changes the loss by.
        nodes: Nodes whose cost depends on it, as indexes.
        at: How many steps are made.
    """

    layers: tuple[str, ...]
    size: int
    levels: list[tuple[float, Labels, float]]
    nodes: tuple[int, ...]
    at: int = 0


class Search:
    """Removes channels where they cost most for what they matter.

    Args:
        channels: Of the model.
        cost: Of the model.
        sensitivity: What each output channel matters, by name of the layer.
        eligible: Names of layers that may lose channels.
        how: What is left of a layer is a multiple of the first; the largest ratio of a layer is the second.
    """

    def __init__(
        self,
        channels: Channels,
        cost: ModelCost,
        sensitivity: Mapping[str, Scores],
        eligible: set[str],
        how: tuple[int, float],
    ) -> None:
        multiple, self._most = how
        self._channels = channels
        self._cost = cost
        self._labels = [self._of(node) for node in cost.nodes]
        self._sensitivity = sensitivity
        self._parts = self._find(eligible, multiple)

    def _of(self, cost: NodeCost) -> tuple[Labels | None, Labels | None]:
        """Units of a node's outputs and of its inputs, where its cost is a product of both."""
        trace = self._channels.trace
        node = trace.graph.node(cost.node)
        out = trace.at(node.outputs[0]) if node.outputs else None
        first = trace.at(node.inputs[0]) if node.inputs and cost.macs else None
        if cost.macs and out is not None and first is not None and int(node.attrs.get("group", 1)) > 1:
            shape = trace.graph.shape(node.inputs[1]) or ()
            if len(shape) > 1 and shape[1 if node.op == "Conv" else 0] == (
                1 if node.op == "Conv" else len(first.labels)
            ):
                first = None  # depthwise: only the number of channels counts
        return (None if out is None else out.labels, None if first is None else first.labels)

    def _flops(self, index: int, alive: Alive) -> float:
        cost, (out, first) = self._cost.nodes[index], self._labels[index]
        outputs = 1.0 if out is None else count(out, alive) / len(out)
        inputs = 1.0 if first is None else count(first, alive) / len(first)
        return 2 * (cost.macs or 0) * outputs * inputs + cost.elementwise * outputs

    def _find(self, eligible: set[str], multiple: int) -> list[_Part]:
        channels = self._channels
        parent = list(range(len(channels.layers)))

        def first(index: int) -> int:
            while parent[index] != index:
                index = parent[index]
            return index

        chains: dict[int, int] = {}
        for block in channels.blocks:
            ends = {first(i) for i in block.layers} | {first(i) for i in [chains.get(block.chain, block.layers[0])]}
            for end in ends:
                parent[end] = min(ends)
            chains.setdefault(block.chain, block.layers[0])
        blocks: dict[int, list[Block]] = {}
        for block in channels.blocks:
            blocks.setdefault(first(block.layers[0]), []).append(block)
        readers = self._readers()
        parts = [self._part(members, multiple, readers) for members in blocks.values()]
        return [p for p in parts if p.levels and set(p.layers) <= eligible]

    def _readers(self) -> dict[int, set[int]]:
        """The nodes whose cost depends on a unit, by the unit that stands for it."""
        roots = self._channels.roots
        found: dict[int, set[int]] = {}
        for index, pair in enumerate(self._labels):
            for labels in pair:
                for root in set() if labels is None else set(roots[labels[labels >= 0]].tolist()):
                    found.setdefault(root, set()).add(index)
        return found

    def _part(self, blocks: list[Block], multiple: int, readers: Mapping[int, set[int]]) -> _Part:
        channels = self._channels
        indexes = sorted({i for b in blocks for i in b.layers})
        names = tuple(label(channels.layers[i].node) for i in indexes)
        norms = {i: scores_of(channels.trace.graph, channels.layers[i]) for i in indexes}
        matters = {
            i: self._sensitivity.get(n, np.zeros(len(channels.layers[i].units)))
            for i, n in zip(indexes, names, strict=True)
        }
        unknown = [n for n in names if n not in self._sensitivity]
        sums = [(channels.sums(norms, block), channels.sums(matters, block)) for block in blocks]
        size, step = max((len(b.roots) * b.equals, together(multiple, b.equals)) for b in blocks)
        step *= -(-size // (step * _MOST_LEVELS))
        levels = []
        for left in range((size - 1) // step * step, 0, -step):
            ratio = (size - left) / size
            if ratio > self._most:
                break
            gone, loss = [], 0.0
            for block, (norm, matter) in zip(blocks, sums, strict=True):
                mine = len(block.roots)
                stay = remaining(mine * block.equals, ratio, together(multiple, block.equals)) // block.equals
                removed = np.delete(np.arange(mine), kept_channels(norm, stay))
                gone.append(block.roots[removed])
                loss += float(matter[removed].sum())
            levels.append((ratio, np.concatenate(gone), loss))
        nodes = tuple(sorted({n for b in blocks for r in b.roots.tolist() for n in readers.get(r, ())}))
        return _Part(names, size, [] if unknown else levels, nodes)

    def reach(self, target: float) -> dict[str, float]:
        """Ratios by layer with which at most this part of the operations is left.

        Raises:
            TrainingError: If that cannot be reached.
        """
        roots = self._channels.roots
        alive_roots = np.ones(len(roots), np.bool_)
        for part in self._parts:
            part.at = 0
        total = sum(self._flops(i, alive_roots[roots]) for i in range(len(self._labels)))
        now = total
        while now > target * total:
            best = self._best(alive_roots)
            if best is None:
                raise TrainingError(
                    f"{now / total:.3g} of the operations are left when all layers that can be are pruned as far as "
                    f"possible, more than the {target:g} wanted"
                )
            part, saved = best
            alive_roots[part.levels[part.at][1]] = False
            part.at += 1
            now -= saved
        return {name: part.levels[part.at - 1][0] for part in self._parts if part.at for name in part.layers}

    def _best(self, alive_roots: Alive) -> tuple[_Part, float] | None:
        """The step that changes the loss least for the operations it saves, and these."""
        roots = self._channels.roots
        alive = alive_roots[roots]
        found: tuple[float, _Part, float] | None = None
        for part in self._parts:
            if part.at == len(part.levels):
                continue
            _, gone, loss = part.levels[part.at]
            before = part.levels[part.at - 1][2] if part.at else 0.0
            after = alive_roots.copy()
            after[gone] = False
            tried = after[roots]
            saved = sum(self._flops(i, alive) - self._flops(i, tried) for i in part.nodes)
            density = max(loss - before, 0.0) / max(saved, 1e-9)
            if saved > 0 and (found is None or density < found[0]):
                found = density, part, saved
        return None if found is None else (found[1], found[2])
