"""What observers and quanters mean for a recipe: the base class of their factories, and observers of one's own.

A factory is frozen and holds the arguments it was made with, under PaddleSlim's names. A `QuantConfig` asks it for the
part of a recipe it stands for; it never sees a model. Both of a factory's methods may be used: an observer of one scale
serves activations and weights alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxq.errors import RecipeError
from onnxq.observers import METHODS
from onnxq.recipe import ActivationConfig, Custom, TensorConfig, WeightConfig


@dataclass(frozen=True)
class ObserverFactory:
    """Base of all observers and quanters.

    A subclass overrides one method or both; what is left is refused with a message.
    """

    def activation_config(self) -> ActivationConfig:
        """What it means for an activation; quanters set `trained` too.

        Raises:
            RecipeError: If it is for weights only.
        """
        raise RecipeError(
            f"{type(self).__name__} is for weights; observe activations with another one, such as HistObserver()"
        )

    def weight_config(self) -> WeightConfig:
        """What it means for a weight; quanters set `trained` too.

        Raises:
            RecipeError: If it is for activations only.
        """
        raise RecipeError(
            f"{type(self).__name__} is for activations; observe weights with another one, such as "
            "AbsMaxChannelWiseWeightObserver()"
        )

    @property
    def trains(self) -> bool:
        """Whether it is a quanter: its scales belong to quantization-aware training."""
        return False


@dataclass(frozen=True)
class QuanterFactory(ObserverFactory):
    """Base of all quanters."""

    @property
    def trains(self) -> bool:
        """Whether it is a quanter."""
        return True


def codes(quant_bits: int, *, sign: bool, symmetric: bool) -> dict[str, Any]:
    """The type, width and symmetry of codes, as a recipe says it.

    Raises:
        RecipeError: If there are no codes of this width.
    """
    if isinstance(quant_bits, bool) or not isinstance(quant_bits, int) or not 2 <= quant_bits <= 16:
        raise RecipeError(f"quant_bits found {quant_bits!r}; must be a whole number from 2 to 16")
    width = 8 if quant_bits <= 8 else 16
    given: dict[str, Any] = {"type": f"{'int' if sign else 'uint'}{width}", "symmetric": symmetric}
    return given if quant_bits == width else {**given, "bits": quant_bits}


def threshold_of(config: TensorConfig, scale: float) -> float:
    """The threshold that PaddleSlim calls the scale, for a step that ONNX calls so: ``127 * step`` at 8 bits."""
    bits = config.bits or (16 if config.type in ("int16", "uint16") else 8)
    return scale * ((1 << (bits - 1)) - 1)


@dataclass(frozen=True)
class CustomObserver(ObserverFactory):
    """An observer of the user's own: a class with the methods observe, merge and range (see `onnxq.observers`).

    Attributes:
        observer: The class, a function that makes one, or its name: ``file.py:Class``, ``module:Class``.
        options: Its keyword arguments: mappings, lists, strings and numbers.
        quant_bits: Width of the codes.
        sign: Whether codes are signed.
        symmetric: Whether the zero point is in the middle.
        batches: ``sample``: it sees one sample at a time; ``data``: the batches as they are fed.
    """

    observer: Callable[..., object] | str
    options: Mapping[str, Any] = field(default_factory=dict)
    quant_bits: int = 8
    sign: bool = True
    symmetric: bool = True
    batches: Literal["sample", "data"] = "sample"

    def activation_config(self) -> ActivationConfig:
        """What it means for an activation."""
        method = Custom(observer=self.observer, options=dict(self.options), batches=self.batches)
        return ActivationConfig(**codes(self.quant_bits, sign=self.sign, symmetric=self.symmetric), method=method)


def as_factory(value: object, *, where: str) -> ObserverFactory | None:
    """The factory that a user means: a factory, the class of one or of an observer of the user's own, or None.

    Args:
        value: What the user has given.
        where: Where, for the message.

    Raises:
        RecipeError: If it is nothing of that kind.
    """
    if value is None or isinstance(value, ObserverFactory):
        return value
    if inspect.isclass(value) and issubclass(value, ObserverFactory):
        return value()
    if inspect.isclass(value) and all(callable(getattr(value, name, None)) for name in METHODS):
        return CustomObserver(value)
    found = f"the class {value.__name__}" if inspect.isclass(value) else repr(value)
    raise RecipeError(
        f"{where} found {found}; must be an observer or a quanter, such as HistObserver(), a class "
        "with the methods observe, merge and range, or None"
    )
