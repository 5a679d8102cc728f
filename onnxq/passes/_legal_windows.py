"""Convolutions and pools, and their transposes, in the forms that the training runtime derives rightly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import Tensor
from onnxq.passes._legal_site import END, LegalChain, Rewrite, Site, Size


def conv(site: Site) -> bool:
    """Pads in numbers: the runtime takes automatic ones for none when it derives."""
    return _explicit_pads(site, _kernel(site, 1))


def average_pool(site: Site) -> Tensor | bool:
    """Pads in numbers, as for Conv; a Conv of equal weights where the runtime derives wrongly.

    That is where windows are dilated, or have three axes and overlap, and where the length of an axis, such as the
    batch, is free: then the gradient has no shape, and the process may be killed.
    """
    kernel = site.integers("kernel_shape", ())
    changed = _explicit_pads(site, kernel)
    n, strides = len(kernel), site.integers("strides", [1] * len(kernel))
    dilations, pads = site.integers("dilations", [1] * n), site.integers("pads", [0] * 2 * n)
    shape = site.graph.shape(site.input())
    free = shape is None or not all(isinstance(d, int) for d in shape)
    if n < 3 and all(d == 1 for d in dilations) and not free:
        return changed
    apart = any(pads) and not site.attr("count_include_pad", 0)
    if site.attr("ceil_mode", 0) or (apart and (n > 2 or any(d != 1 for d in dilations))):
        site.refuse(
            "its gradient is wrong with dilations, three axes or a free batch", "export it without pads and ceil_mode"
        )
    channels, chain = site.length(1, "how many windows there are"), site.chain
    weight = np.full((channels, 1, *kernel), 1 / math.prod(kernel), np.float32)
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    y = chain.op("Conv", site.input(), chain.real(weight), group=channels, **attrs)
    return chain.op("Mul", y, chain.real(_shares(site, kernel, strides, pads))) if apart else y


def _shares(site: Site, kernel: list[int], strides: list[int], pads: list[int]) -> NDArray[np.float64]:
    """By how much the mean of a window with its padding is too small, for every window."""
    n, shares = len(kernel), np.ones(1)
    for i, (k, s, begin, end) in enumerate(zip(kernel, strides, pads[:n], pads[n:], strict=True)):
        size = site.length(i + 2, "how many values a window at the edge has")
        starts = np.arange(0, size + begin + end - k + 1, s) - begin
        counts = np.minimum(starts + k, size) - np.maximum(starts, 0)
        shares = np.multiply.outer(shares, k / counts)
    return shares[np.newaxis]


def _kernel(site: Site, weight: int) -> list[int]:
    shape = site.graph.shape(site.input(weight))
    if shape is None or not all(isinstance(d, int) for d in shape):
        site.refuse("the shape of its weight is not known", "export the model with shapes")
    return [int(d) for d in shape[2:]]  # type: ignore[arg-type] # they are numbers


def _explicit_pads(site: Site, kernel: Sequence[int]) -> bool:
    node, mode = site.node, str(site.attr("auto_pad", "NOTSET"))
    if mode == "NOTSET":
        return False
    begins, ends = [0] * len(kernel), [0] * len(kernel)
    if mode.startswith("SAME"):
        strides = site.integers("strides", [1] * len(kernel))
        dilations = site.integers("dilations", [1] * len(kernel))
        for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
            size = 1 if s == 1 else site.length(i + 2, f"auto_pad {mode} with stride {s}")
            total = (k - 1) * d if s == 1 else max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            begins[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            ends[i] = total - begins[i]
    node.attrs.pop("auto_pad")
    node.attrs["pads"] = [*begins, *ends]
    return True


@dataclass(frozen=True)
class _Transposed:
    """The numbers of a ConvTranspose, a value per spatial axis."""

    group: int
    inputs: int
    outputs: int
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]
    more: list[int]

    @property
    def is_shuffle(self) -> bool:
        """Whether every output comes from a single input."""
        plain = not any([*self.begins, *self.ends, *self.more]) and all(d == 1 for d in self.dilations)
        return plain and self.kernel == self.strides


def _read(site: Site) -> _Transposed:
    kernel = _kernel(site, 1)
    n, group = len(kernel), int(site.attr("group", 1))
    inputs, per_group = (int(d) for d in (site.graph.shape(site.input(1)) or (0, 0))[:2])  # type: ignore[arg-type]
    strides, dilations = site.integers("strides", [1] * n), site.integers("dilations", [1] * n)
    more, pads = site.integers("output_padding", [0] * n), site.integers("pads", [0] * 2 * n)
    begins, ends = pads[:n], pads[n:]
    mode, wanted = str(site.attr("auto_pad", "NOTSET")), site.integers("output_shape", ())[-n:]
    if mode == "VALID":
        begins, ends = [0] * n, [0] * n
    if mode.startswith("SAME") or wanted:
        for i in range(n):
            reach = (kernel[i] - 1) * dilations[i] + 1 + more[i]
            total = reach - strides[i]
            if wanted:
                total += strides[i] * site.length(i + 2, "output_shape") - wanted[i]
            if total < 0:
                site.refuse("its output is larger than what it computes", "export it with output_padding")
            begins[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            ends[i] = total - begins[i]
    return _Transposed(group, inputs, per_group * group, kernel, strides, dilations, begins, ends, more)


def conv_transpose(site: Site) -> Tensor:
    """A Conv: of one value per kernel and a shuffle where kernels do not overlap, else of the input spread by zeros."""
    what = _read(site)
    site.rank()
    return _shuffled(site, what) if what.is_shuffle else _spread(site, what)


def _shuffled(site: Site, what: _Transposed) -> Tensor:
    chain, n, kernel = site.chain, len(what.kernel), what.kernel
    weight = chain.reshape(site.input(1), [what.group, what.inputs // what.group, -1])
    weight = chain.reshape(chain.transpose(weight, 0, 2, 1), [-1, what.inputs // what.group, *[1] * n])
    x = site.input()
    sizes = chain.sizes(x)[2:]
    y = chain.op("Conv", x, weight, group=what.group, kernel_shape=[1] * n)
    y = chain.reshape(y, [0, what.outputs, *kernel, *sizes])
    order = [axis for i in range(n) for axis in (2 + n + i, 2 + i)]
    y = chain.transpose(y, 0, 1, *order)
    y = chain.reshape(y, [0, what.outputs, *(chain.times(s, k) for s, k in zip(sizes, kernel, strict=True))])
    bias = site.given(2)
    return y if bias is None else chain.op("Add", y, chain.per_channel(bias, n + 2))


def _spread(site: Site, what: _Transposed) -> Tensor:
    chain, n = site.chain, len(what.kernel)
    x = _with_zeros(chain, site.input(), what)
    pads: list[list[int]] = [[], []]
    for k, d, s, b, e, m in zip(
        what.kernel, what.dilations, what.strides, what.begins, what.ends, what.more, strict=True
    ):
        pads[0].append((k - 1) * d - b)
        pads[1].append((k - 1) * d - e + m - (s - 1))
    bias = [site.input(2)] if site.given(2) is not None else []
    y = chain.op(
        "Conv", x, _turned(chain, site.input(1), what), *bias, group=what.group, dilations=what.dilations,
        kernel_shape=what.kernel, pads=[max(p, 0) for p in (*pads[0], *pads[1])],
    )  # fmt: skip
    for i in range(n):
        begin, end = max(-pads[0][i], 0), max(-pads[1][i], 0)
        if begin or end:
            y = chain.slice(y, i + 2, begin, -end if end else END)
    return y


def _with_zeros(chain: LegalChain, x: Tensor, what: _Transposed) -> Tensor:
    """Every value followed by the zeros of its stride."""
    n, strides = len(what.kernel), what.strides
    if all(s == 1 for s in strides):
        return x
    sizes: list[Size] = chain.sizes(x)[2:]
    wide = chain.unsqueeze(x, *(3 + 2 * i for i in range(n)))
    rank = 2 + 2 * n
    pads = [0] * 2 * rank
    for i, s in enumerate(strides):
        pads[rank + 3 + 2 * i] = s - 1
    padded = chain.op("Pad", wide, chain.ints(*pads), chain.real(0))
    return chain.reshape(padded, [0, what.inputs, *(chain.times(z, s) for z, s in zip(sizes, strides, strict=True))])


def _turned(chain: LegalChain, weight: Tensor, what: _Transposed) -> Tensor:
    """The weight of the Conv: outputs first, and every kernel back to front."""
    per_group, count = what.inputs // what.group, math.prod(what.kernel)
    flat = chain.reshape(weight, [what.group, per_group, what.outputs // what.group, count])
    turned = chain.gather(chain.transpose(flat, 0, 2, 1, 3), range(count - 1, -1, -1), 3)
    return chain.reshape(turned, [what.outputs, per_group, *what.kernel])


def global_max_pool(site: Site) -> Tensor:
    """A MaxPool with a kernel as large as its input; TopK where that is not known."""
    chain, x = site.chain, site.input()
    sizes = (site.graph.shape(x) or ())[2:]
    site.rank()
    if all(isinstance(s, int) for s in sizes) and len(sizes) <= 3:
        return chain.op("MaxPool", x, kernel_shape=list(sizes))
    flat = chain.reshape(x, [0, 0, -1])
    return chain.reshape(chain.top(flat, 2), [0, 0, *[1] * len(sizes)])


WINDOWS: Mapping[str, Rewrite] = MappingProxyType(
    {
        "Conv": conv,
        "AveragePool": average_pool,
        "ConvTranspose": conv_transpose,
        "GlobalMaxPool": global_max_pool,
    }
)
