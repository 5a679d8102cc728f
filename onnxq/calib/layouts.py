"""Order of the dimensions of image-like inputs: channels first or channels last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxq.calib.feeds import Array, InputInfo
from onnxq.errors import DataError

Layout = Literal["NCHW", "NHWC"]
"""Order of four dimensions: samples, then channels, height and width; or height, width, and channels last."""

_CHANNELS = (1, 3)
_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class InputLayout:
    """The layout of a model's input, and how it is known.

    Attributes:
        layout: The layout.
        reason: Why, as the end of a sentence: ``its last dimension is 3``.
        sure: Whether it was told, or only one layout makes sense of the shape.
    """

    layout: Layout
    reason: str
    sure: bool


def has_layout(info: InputInfo) -> bool:
    """Whether an input has the four dimensions that a layout is about."""
    return info.shape is not None and len(info.shape) == 4


def layout_of(info: InputInfo, told: Layout | None = None) -> InputLayout:
    """Decide which layout a model's input has.

    It is NCHW, as ONNX's operators want it, unless the last dimension is 1 or 3 and the second is not.

    Args:
        info: The input.
        told: What the user says; it decides.

    Raises:
        DataError: If the input does not have 4 dimensions.
    """
    if info.shape is None or len(info.shape) != 4:
        raise DataError(f"input {info.name!r} is {info}; a layout is about 4 dimensions, leave it out here")
    if told is not None:
        return InputLayout(told, "it was said so", sure=True)
    second, last = info.shape[1], info.shape[3]
    if last in _CHANNELS and second not in _CHANNELS:
        return InputLayout("NHWC", f"its last dimension is {last}, its second is not 1 or 3", sure=True)
    if second in _CHANNELS and last not in _CHANNELS:
        return InputLayout("NCHW", f"its second dimension is {second}", sure=True)
    return InputLayout("NCHW", "its shape does not tell, and ONNX's operators want channels first", sure=False)


def permuted(shape: tuple[int, ...], found: Layout, wanted: Layout) -> tuple[int, ...]:
    """Four lengths in the layout `found`, put in the order of `wanted`."""
    if found == wanted:
        return shape
    return tuple(shape[axis] for axis in (_TO_LAST if wanted == "NHWC" else _TO_FIRST))


def transposed(array: Array, found: Layout, wanted: Layout) -> Array:
    """An array of 4 dimensions in the layout `found`, as a view in the layout `wanted`."""
    if found == wanted:
        return array
    return array.transpose(_TO_LAST if wanted == "NHWC" else _TO_FIRST)
