"""Implementations that take the place of parallel linear layers before they are quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from onnxq import stages

if TYPE_CHECKING:
    from onnxq import Pass
    from onnxq.dialects.paddle.config import LayerConfig


class LayerTarget(Protocol):
    """What takes the place of a layer."""

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What puts it there."""
        ...


class QuantizedColumnParallelLinear:
    """A linear layer whose weight is cut by outputs: each part computes some of them, a Concat gathers them.

    Each part is quantized by itself. With one part a Gemm becomes a MatMul and an Add. More parts are asked for with
    ``functools.partial(QuantizedColumnParallelLinear, parts=2)``.

    Args:
        layer: Names of the layer's nodes, the product first.
        q_config: What holds for the layer, and then for each part.
        parts: How many there are.
    """

    def __init__(self, layer: Sequence[str], q_config: LayerConfig | None = None, *, parts: int = 1) -> None:
        self.q_config = q_config
        self._pass = stages.split_linear(layer[:1], "outputs", parts)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What puts it in the layer's place."""
        return (self._pass,)


class QuantizedRowParallelLinear:
    """A linear layer whose weight is cut by inputs: each part takes some of them, a Sum reduces what they give.

    Each part is quantized by itself; its inputs have one scale as they come from one tensor. The sum and the bias stay
    outside of the products, where an all-reduce has its place. More parts than one are asked for with
    ``functools.partial(QuantizedRowParallelLinear, parts=2)``.

    Args:
        layer: Names of the layer's nodes, the product first.
        q_config: What holds for the layer, and then for each part.
        parts: How many there are.
    """

    def __init__(self, layer: Sequence[str], q_config: LayerConfig | None = None, *, parts: int = 1) -> None:
        self.q_config = q_config
        self._pass = stages.split_linear(layer[:1], "inputs", parts)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What puts it in the layer's place."""
        return (self._pass,)
