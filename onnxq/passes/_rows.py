"""Rows of a layer's product: the inputs that make one output value, gathered from activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import Node
from onnxq.passes._linear import Linear

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution moves over its input, in its spatial axes.

    Attributes:
        kernel: Taps.
        strides: Distance of two outputs.
        dilations: Distance of two taps.
        begin: Zeros in front; fewer than zero cut values off.
        end: Zeros behind.
        stuffing: Distance of two inputs, zeros between them: the stride of a ConvTranspose.
        flipped: Whether the taps go backwards, as in a ConvTranspose.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    stuffing: tuple[int, ...]
    flipped: bool = False

    def outputs(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Spatial shape of the output."""
        sizes = ((n - 1) * f + 1 + a + b for n, f, a, b in zip(shape, self.stuffing, self.begin, self.end, strict=True))
        spans = (d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True))
        return tuple((n - e) // s + 1 for n, e, s in zip(sizes, spans, self.strides, strict=True))

    def views(self, x: Array) -> Array:
        """Every window as a view, shape (N, C, *outputs, *kernel)."""
        rank = len(self.kernel)
        axes = tuple(range(2, 2 + rank))
        padded = self._padded(x)
        spans = tuple(d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True))
        windows: Array = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
        steps = [slice(None, None, s) for s in self.strides]
        taps = [slice(None, None, -d) if self.flipped else slice(None, None, d) for d in self.dilations]
        index: tuple[Any, ...] = (slice(None), slice(None), *steps, *taps)
        moved: Array = windows[index]
        return moved

    def _padded(self, x: Array) -> Array:
        shape = x.shape[2:]
        if any(f > 1 for f in self.stuffing):
            wide = np.zeros(
                (*x.shape[:2], *((n - 1) * f + 1 for n, f in zip(shape, self.stuffing, strict=True))), x.dtype
            )
            every: tuple[Any, ...] = (..., *(slice(None, None, f) for f in self.stuffing))
            wide[every] = x
            x = wide
        widths = [(max(a, 0), max(b, 0)) for a, b in zip(self.begin, self.end, strict=True)]
        x = np.pad(x, [(0, 0), (0, 0), *widths])
        inner = (slice(max(-a, 0), -max(-b, 0) or None) for a, b in zip(self.begin, self.end, strict=True))
        cut: tuple[Any, ...] = (..., *inner)
        kept: Array = x[cut]
        return kept


def window_of(node: Node, kernel: tuple[int, ...], shape: Sequence[int]) -> Window | str:
    """How a Conv or ConvTranspose moves over an input, or why that is not handled.

    Args:
        node: The layer.
        kernel: Spatial shape of its weight.
        shape: Spatial shape of its input.
    """
    rank = len(kernel)
    ones = (1,) * rank
    strides, dilations = (_numbers(node, key, ones) for key in ("strides", "dilations"))
    pads = _numbers(node, "pads", (0,) * (2 * rank))
    begin, end = pads[:rank], pads[rank:]
    auto = _text(node.attrs.get("auto_pad", "NOTSET"))
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    if node.op == "ConvTranspose":
        if auto not in ("", "NOTSET") or "output_shape" in node.attrs:
            return "a ConvTranspose with auto_pad or output_shape is rounded to nearest"
        more = _numbers(node, "output_padding", (0,) * rank)
        begin = tuple(e - 1 - a for e, a in zip(spans, begin, strict=True))
        end = tuple(e - 1 - b + o for e, b, o in zip(spans, end, more, strict=True))
        return Window(kernel, ones, dilations, begin, end, strides, flipped=True)
    if auto == "VALID":
        begin = end = (0,) * rank
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(shape, strides, spans, strict=True)]
        less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (less, more) if auto == "SAME_UPPER" else (more, less)
    return Window(kernel, strides, dilations, begin, end, ones)


def _numbers(node: Node, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(v) for v in node.attrs.get(key) or default)


def _text(value: Any) -> str:  # noqa: ANN401 - bytes or a string
    return value.decode() if isinstance(value, bytes) else str(value)


def why_not_rows(linear: Linear) -> str | None:
    """Why the product of a layer cannot be seen as rows times columns; None if it can."""
    node = linear.node
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or float(node.attrs.get("alpha", 1.0)) != 1.0):
        return "a Gemm with transA or alpha is rounded to nearest"
    if node.op in ("Conv", "ConvTranspose"):
        kernel = linear.layout.shape[2:]
        found = window_of(node, kernel, kernel)
        return found if isinstance(found, str) else None
    return None


def count_rows(linear: Linear, shape: Sequence[int]) -> int:
    """How many rows an input of this shape gives."""
    window = _window(linear, shape)
    if window is None:
        return math.prod(shape[:-1])
    return shape[0] * math.prod(max(n, 0) for n in window.outputs(shape[2:]))


def gather_rows(linear: Linear, x: Array, rows: NDArray[np.int64]) -> Array:
    """The unfolded inputs of some output positions.

    Args:
        linear: The layer.
        x: Its input.
        rows: shape (M,), positions counted over samples, then over space.

    Returns:
        shape (G, K, M), float32, K counting the inputs of a group and their taps as the layout does.
    """
    layout = linear.layout
    window = _window(linear, x.shape)
    if window is None:
        picked = x.reshape(-1, x.shape[-1])[rows]
    else:
        views = window.views(x)
        rank = len(window.kernel)
        where = np.unravel_index(rows, (views.shape[0], *views.shape[2 : 2 + rank]))
        index: tuple[Any, ...] = (where[0], slice(None), *where[1:])
        picked = views[index]
    return np.ascontiguousarray(picked.reshape(len(rows), layout.groups, -1).transpose(1, 2, 0), np.float32)


def _window(linear: Linear, shape: Sequence[int]) -> Window | None:
    if linear.node.op not in ("Conv", "ConvTranspose"):
        return None
    found = window_of(linear.node, linear.layout.shape[2:], shape[2:])
    if isinstance(found, str):
        raise TypeError(found)  # why_not_rows was not asked
    return found


def to_rows(linear: Linear, weight: NDArray[Any]) -> NDArray[Any]:
    """A weight as shape (R, K): one row per output channel, group by group."""
    view = weight.reshape(linear.layout.view)
    if not linear.layout.out_first:
        view = view.transpose(0, 2, 1, 3)
    return np.ascontiguousarray(view.reshape(linear.layout.out_channels, -1))


def from_rows(linear: Linear, rows: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `to_rows`."""
    groups, a, b, taps = linear.layout.view
    if linear.layout.out_first:
        return rows.reshape(linear.layout.shape)
    back = rows.reshape(groups, b, a, taps).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(back.reshape(linear.layout.shape))
