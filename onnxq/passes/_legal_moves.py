"""Operators that move values, in forms that the training runtime derives rightly."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from onnxq.graph import Tensor
from onnxq.passes._legal_site import LegalChain, Rewrite, Site


def transpose(site: Site) -> bool:
    """With its order written out."""
    if "perm" in site.node.attrs:
        return False
    site.node.attrs["perm"] = list(range(site.rank()))[::-1]
    return True


def split(site: Site) -> bool:
    """Slices for the parts that the loss depends on, if it does not depend on all.

    The runtime would put together their gradients alone. The node stays for the other parts, else the runtime would
    take the Slices for a Split.
    """
    node, graph, chain = site.node, site.graph, site.chain
    outputs = list(node.outputs)
    needed = [site.needed(i) for i in range(len(outputs))]
    if all(needed):
        return False
    axis = int(site.attr("axis", 0)) % site.rank()
    lengths = [(graph.shape(t) or [None] * (axis + 1))[axis] for t in outputs]
    if not all(isinstance(n, int) for n in lengths):
        site.refuse("how long its parts are is not known before the model runs", "export it with Slices")
    x, start = site.input(), 0
    for tensor, length, wanted in zip(outputs, lengths, needed, strict=True):
        end = start + int(length or 0)
        if wanted:
            graph.replace_output(graph.producer(chain.slice(x, axis, start, end)), 0, tensor)
        start = end
    return True


def slices(site: Site) -> Tensor | bool:
    """Gather, where it goes backwards."""
    steps = site.values(4, "steps")
    if steps is None or (steps > 0).all():
        return False
    rank, y = site.rank(), site.input()
    starts, ends, axes = (site.values(i, "bounds") for i in (1, 2, 3))
    if starts is None or ends is None:
        site.refuse("it has no bounds", "the model is not valid")
    for i, step in enumerate(steps.reshape(-1)):
        axis = int(axes.reshape(-1)[i]) % rank if axes is not None else i
        length = site.length(axis, "a Slice that goes backwards")
        begin, end = int(starts.reshape(-1)[i]), int(ends.reshape(-1)[i])
        y = site.chain.gather(y, np.arange(length)[_range(begin, end, int(step), length)], axis)
    return y


def _range(start: int, end: int, step: int, length: int) -> slice:
    """Python's form of a range of ONNX, where an end far below 0 is in front of the first value."""
    if step > 0:
        return slice(max(start, -length), end, step)
    return slice(start, None if end < -length else end, step)


def pad(site: Site) -> Tensor | bool:
    """Edges and reflections by Gather; pads of all axes where only some are named."""
    mode, rank, chain = str(site.attr("mode", "constant")), site.rank(), site.chain
    if site.learns(2):
        site.refuse("the value it pads with is trained", "name it in training.freeze")
    if mode == "constant":
        if site.given(3) is None:
            return False
        pads = _pads(site, rank)
        return chain.op("Pad", site.input(), chain.ints(*(p[side] for side in (0, 1) for p in pads)), site.given(2))
    y = site.input()
    for axis, (before, after) in enumerate(_pads(site, rank)):
        if before < 0 or after < 0:
            site.refuse(f"it pads by negative numbers with mode {mode}", "export it with Slices")
        if before or after:
            y = _padded(chain, y, axis, mode, before, after)
    return chain.identity(y) if y is site.input() else y


def _pads(site: Site, rank: int) -> list[tuple[int, int]]:
    values, axes = site.values(1, "pads"), site.values(3, "axes")
    numbers = [] if values is None else [int(v) for v in values.reshape(-1)]
    named = range(rank) if axes is None else [int(a) % rank for a in axes.reshape(-1)]
    pads = [(0, 0)] * rank
    for i, axis in enumerate(named):
        pads[axis] = (numbers[i], numbers[i + len(numbers) // 2])
    return pads


def _padded(chain: LegalChain, x: Tensor, axis: int, mode: str, before: int, after: int) -> Tensor:
    """Indexes from the end are negative, so lengths need not be known."""
    if mode == "reflect":
        first, last = list(range(before, 0, -1)), [-2 - i for i in range(after)]
    elif mode == "edge":
        first, last = [0] * before, [-1] * after
    else:
        first, last = list(range(-before, 0)), list(range(after))
    parts = [chain.gather(x, first, axis)] if first else []
    parts.append(x)
    parts += [chain.gather(x, last, axis)] if last else []
    return chain.op("Concat", *parts, axis=axis)


def depth_to_space(site: Site) -> Tensor:
    """Reshape, Transpose, Reshape."""
    chain, x, b = site.chain, site.input(), int(site.attr("blocksize", 1))
    channels = site.length(1, "its result") // (b * b)
    _, _, height, width = chain.sizes(x)
    if str(site.attr("mode", "DCR")) == "DCR":
        y = chain.transpose(chain.reshape(x, [0, b, b, channels, height, width]), 0, 3, 4, 1, 5, 2)
    else:
        y = chain.transpose(chain.reshape(x, [0, channels, b, b, height, width]), 0, 1, 4, 2, 5, 3)
    return chain.reshape(y, [0, channels, chain.times(height, b), chain.times(width, b)])


def space_to_depth(site: Site) -> Tensor:
    """Reshape, Transpose, Reshape."""
    chain, x, b = site.chain, site.input(), int(site.attr("blocksize", 1))
    channels = site.length(1, "its result")
    height, width = (site.length(axis, "its result") // b for axis in (2, 3))
    y = chain.transpose(chain.reshape(x, [0, channels, height, b, width, b]), 0, 3, 5, 1, 2, 4)
    return chain.reshape(y, [0, channels * b * b, height, width])


MOVES: Mapping[str, Rewrite] = MappingProxyType(
    {
        "Transpose": transpose,
        "Split": split,
        "Slice": slices,
        "Pad": pad,
        "DepthToSpace": depth_to_space,
        "SpaceToDepth": space_to_depth,
    }
)
