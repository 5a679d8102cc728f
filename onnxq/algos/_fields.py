"""Checks of configuration fields; each message names the field, the value and what is allowed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import TypeVar

from onnxq.errors import RecipeError, nearest

C = TypeVar("C")


def check_number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Require a real number in ``[low, high]``, or ``(low, high]`` if `open_low`.

    Raises:
        RecipeError: If it is not one.
    """
    allowed = f"a number {'>' if open_low else '>='} {low:g} and <= {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecipeError(f"{name} must be {allowed}, got {value!r}")
    if not (low < value if open_low else low <= value) or value > high:
        raise RecipeError(f"{name} must be {allowed}, got {value!r}")


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Require an integer in ``[low, high]``.

    Raises:
        RecipeError: If it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RecipeError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Require one of a few values.

    Raises:
        RecipeError: If it is not one.
    """
    if isinstance(value, bool) or value not in choices:
        raise RecipeError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Require True or False.

    Raises:
        RecipeError: If it is neither.
    """
    if not isinstance(value, bool):
        raise RecipeError(f"{name} must be true or false, got {value!r}")


def build_config(config: type[C], method: str, fields: Mapping[str, object]) -> C:
    """Construct a configuration from the fields of a recipe; lists become tuples.

    Raises:
        RecipeError: If a field is unknown or has a value that is not allowed.
    """
    known = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise RecipeError(f"method {method!r} has no field {name!r}{nearest(name, known)}; its fields: {listed}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return config(**values)
