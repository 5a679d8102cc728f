"""What observers and quanters mean for a recipe: the base class of their factories.

A factory is frozen and holds the arguments it was made with, under PaddleSlim's names. A `QuantConfig` asks it for the
part of a recipe it stands for; it never sees a model. Both of a factory's methods may be used: an observer of one scale
serves activations and weights alike.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from onnxq.errors import RecipeError
from onnxq.recipe import ActivationConfig, WeightConfig


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


def as_factory(value: object, *, where: str) -> ObserverFactory | None:
    """The factory that a user means: a factory, the class of one whose arguments all have defaults, or None.

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
    found = f"the class {value.__name__}" if inspect.isclass(value) else repr(value)
    raise RecipeError(f"{where} found {found}; must be an observer or a quanter, such as HistObserver(), or None")
