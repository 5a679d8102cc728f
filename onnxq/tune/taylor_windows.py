"""Slopes through convolutions and pooling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx

from onnxq.tune.taylor_nodes import Shape, Slopes, attribute

_NO_PADDING = ("NOTSET", "VALID")


@dataclass(frozen=True, slots=True)
class _Window:
    """Where the window of a convolution or a pool goes, per spatial dimension."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    begins: Shape
    ends: Shape

    @staticmethod
    def of(node: onnx.NodeProto, kernel: Shape, inner: Shape, outer: Shape) -> _Window:
        """That of a node, with paddings written out.

        Args:
            node: The node.
            kernel: Size of its window.
            inner: Spatial shape of the side that the window moves over.
            outer: Of the other side.
        """
        count = len(kernel)
        strides = tuple(int(n) for n in attribute(node, "strides", [1] * count))
        dilations = tuple(int(n) for n in attribute(node, "dilations", [1] * count))
        pads = [int(n) for n in attribute(node, "pads", [0] * 2 * count)]
        begins, ends = tuple(pads[:count]), tuple(pads[count:])
        auto = attribute(node, "auto_pad", "NOTSET")
        if auto not in _NO_PADDING:
            spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
            sizes = zip(inner, outer, strides, spans, strict=True)
            whole = [max((o - 1) * stride + span - i, 0) for i, o, stride, span in sizes]
            less, more = tuple(n // 2 for n in whole), tuple(n - n // 2 for n in whole)
            begins, ends = (less, more) if auto == "SAME_UPPER" else (more, less)
        elif auto == "VALID":
            begins = ends = (0,) * count
        return _Window(kernel, strides, dilations, begins, ends)

    @property
    def spans(self) -> Shape:
        """How far the window reaches."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def missing(self, inner: Shape, outer: Shape) -> Shape:
        """What is left of the inner side behind the last window."""
        sizes = zip(inner, outer, self.strides, self.spans, self.begins, self.ends, strict=True)
        return tuple(i - ((o - 1) * stride + span - a - b) for i, o, stride, span, a, b in sizes)

    def attributes(self) -> dict[str, list[int]]:
        """As a convolution has them."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [*self.begins, *self.ends],
        }


def _conv(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    if index:
        return None
    inner, outer, kernel = (s.shapes[name][2:] for name in (node.input[0], node.output[0], node.input[1]))
    window = _Window.of(node, kernel, inner, outer)
    group = int(attribute(node, "group", 1))
    weight = s.value(node.input[1])
    if set(window.strides) == {1} and weight is not None:  # a convolution again, for which there are faster kernels
        turned = np.flip(weight, tuple(range(2, weight.ndim)))
        out, per_group = weight.shape[:2]
        turned = turned.reshape(group, out // group, per_group, *kernel).swapaxes(1, 2)
        turned = turned.reshape(group * per_group, out // group, *kernel)
        pads = [span - 1 - pad for pad, span in zip((*window.begins, *window.ends), window.spans * 2, strict=True)]
        if min(pads) >= 0:
            sizes = {**window.attributes(), "pads": pads}
            return s.node("Conv", slope, s.constant(np.ascontiguousarray(turned)), group=group, **sizes)
    return _spread(s, window, slope, node.input[1], inner, outer, group)


def _spread(s: Slopes, window: _Window, slope: str, weight: str, inner: Shape, outer: Shape, group: int) -> str | None:
    left = window.missing(inner, outer)
    if any(
        not 0 <= n < max(stride, dilation)
        for n, stride, dilation in zip(left, window.strides, window.dilations, strict=True)
    ):
        return None
    return s.node("ConvTranspose", slope, weight, group=group, output_padding=list(left), **window.attributes())


def _conv_transpose(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    if index or attribute(node, "output_shape", None) is not None:
        return None
    outer, inner, kernel = (s.shapes[name][2:] for name in (node.input[0], node.output[0], node.input[1]))
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    window = _Window.of(node, kernel, inner, outer)
    return s.node("Conv", slope, node.input[1], group=int(attribute(node, "group", 1)), **window.attributes())


def _average(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    if index or attribute(node, "ceil_mode", 0):
        return None
    shape = s.shapes[node.input[0]]
    inner, outer = shape[2:], s.shapes[node.output[0]][2:]
    kernel = tuple(int(n) for n in attribute(node, "kernel_shape", []))
    window = _Window.of(node, kernel, inner, outer)
    if attribute(node, "count_include_pad", 0):
        slope = s.node("Mul", slope, s.number(1.0 / math.prod(kernel)))
    else:
        counts = np.ones(outer, np.float32)
        for axis, (size, total) in enumerate(zip(outer, inner, strict=True)):
            starts = np.arange(size)[:, np.newaxis] * window.strides[axis] - window.begins[axis]
            places = starts + np.arange(kernel[axis]) * window.dilations[axis]
            inside = ((places >= 0) & (places < total)).sum(axis=1)
            counts *= inside.reshape([-1 if a == axis else 1 for a in range(len(outer))]).astype(np.float32)
        slope = s.node("Div", slope, s.constant(counts))
    ones = s.constant(np.ones((shape[1], 1, *kernel), np.float32))
    return _spread(s, window, slope, ones, inner, outer, shape[1])


def _max_pool(s: Slopes, node: onnx.NodeProto, index: int, slope: str) -> str | None:
    if index or attribute(node, "storage_order", 0):
        return None
    shape, outer = s.shapes[node.input[0]], s.shapes[node.output[0]]
    kernel = tuple(int(n) for n in attribute(node, "kernel_shape", []))
    window = _Window.of(node, kernel, shape[2:], outer[2:])
    places = s.again(node, {}, outputs=2)[1]
    flat = s.constant(np.array([-1], np.int64))
    zeros = s.constant(np.zeros(math.prod(shape), np.float32))
    axes = np.arange(2, len(shape))
    steps = [-(-span // stride) for span, stride in zip(window.spans, window.strides, strict=True)]
    parts: list[str] = []
    for starts in itertools.product(*map(range, steps)):  # windows so far apart never choose the same element
        if any(start >= size for start, size in zip(starts, outer[2:], strict=True)):
            continue
        cut = [s.constant(np.array(n, np.int64)) for n in (starts, outer[2:], axes, steps)]
        where, what = (s.node("Reshape", s.node("Slice", name, *cut), flat) for name in (places, slope))
        parts.append(s.node("ScatterElements", zeros, where, what, axis=0))
    return s.reshape(parts[0] if len(parts) == 1 else s.node("Sum", *parts), shape)


WINDOWS: Mapping[str, Callable[[Slopes, onnx.NodeProto, int, str], str | None]] = MappingProxyType(
    {"Conv": _conv, "ConvTranspose": _conv_transpose, "AveragePool": _average, "MaxPool": _max_pool}
)
"""By operator type."""
