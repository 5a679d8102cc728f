"""The user's own way to choose the range of an activation: what it must offer, and how it is found.

An observer is any class with the three methods of `Observer`. It is named in a recipe by its file or module and its
class, or given in Python as the class or as a function that makes one. It is never pickled: only its name goes into
recipes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import CalibrationError, RecipeError, nearest

Maker = Callable[..., object]
"""A class, or a function, that makes an observer of keyword arguments."""
METHODS = ("observe", "merge", "range")


@runtime_checkable
class Observer(Protocol):
    """Sees the values of one tensor, and says at the end which range is quantized."""

    def observe(self, x: NDArray[np.float32], /) -> None:
        """See the values of one more run, in the order of the data.

        Args:
            x: float32, finite, of the tensor's shape for one sample; for whole batches with ``batches: data``. It
                cannot be written to, and an observer that keeps it lets the memory grow with the data.
        """
        ...

    def merge(self, other: Any, /) -> Observer:  # noqa: ANN401 - an observer of the same class
        """An observer that has seen what this one has and then what the other has; neither of them changes.

        It is called where several tensors share a scale (inputs of a Concat), each of which has an observer.
        """
        ...

    def range(self) -> tuple[float, float]:
        """The smallest and the largest real that get codes of their own; may be called more than once."""
        ...


@dataclass(frozen=True, slots=True)
class ObserverRequest:
    """Which observer is wanted.

    Attributes:
        source: ``path/of/file.py:Class``, ``module.name:Class``, or what makes one.
        options: Its keyword arguments, as canonical JSON.
        batches: It sees the batches that the data come in; otherwise one sample at a time.
    """

    source: str | Maker
    options: str = "{}"
    batches: bool = False

    @staticmethod
    def of(source: str | Maker, options: object, *, batches: bool = False) -> ObserverRequest:
        """A request with options that are mappings, lists, strings and numbers."""
        return ObserverRequest(source, json.dumps(options, sort_keys=True), batches)

    @property
    def label(self) -> str:
        """What messages call it."""
        return reference_of(self.source)

    def create(self) -> Observer:
        """A new observer.

        Raises:
            RecipeError: If it cannot be found or made, or lacks a method.
        """
        maker = find_maker(self.source) if isinstance(self.source, str) else self.source
        try:
            made = maker(**json.loads(self.options))
        except Exception as err:
            raise RecipeError(
                f"observer {self.label} cannot be made with options {self.options}: {_told(err)}"
            ) from err
        missing = [name for name in METHODS if not callable(getattr(made, name, None))]
        if missing:
            raise RecipeError(
                f"observer {self.label} has no method {' and no method '.join(missing)}; an observer needs "
                "observe(x), merge(other) and range()"
            )
        return cast("Observer", made)


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """An observer of one tensor. What goes wrong in the user's code is told with the names of both.

    Attributes:
        tensor: The tensor's name.
        request: What was asked for.
        observer: The user's object.
    """

    tensor: str
    request: ObserverRequest
    observer: Observer

    @staticmethod
    def start(tensor: str, request: ObserverRequest) -> Observed:
        """An observer that has seen nothing.

        Raises:
            RecipeError: If it cannot be made.
        """
        return Observed(tensor, request, request.create())

    def see(self, x: NDArray[np.float32]) -> None:
        """Show it one more array.

        Raises:
            CalibrationError: If the user's code fails.
        """
        values = x.view()
        values.flags.writeable = False
        try:
            self.observer.observe(values)
        except Exception as err:
            raise self._failed("observe", err) from err

    def merge(self, other: Observed) -> Observed:
        """Both together; neither changes.

        Raises:
            CalibrationError: If the user's code fails.
        """
        try:
            both = self.observer.merge(other.observer)
        except Exception as err:
            raise self._failed("merge", err) from err
        if not callable(getattr(both, "range", None)):
            raise CalibrationError(
                f"tensor {self.tensor!r}: merge of observer {self.request.label} gave {type(both).__name__}; "
                "it must return an observer that has seen what both have"
            )
        return Observed(self.tensor, self.request, both)

    def find_range(self) -> tuple[float, float]:
        """The range it has chosen.

        Raises:
            CalibrationError: If the user's code fails, or what it gives is no range.
        """
        try:
            found = self.observer.range()
            low, high = (float(value) for value in found)
        except Exception as err:
            raise self._failed("range", err) from err
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise CalibrationError(
                f"tensor {self.tensor!r}: range of observer {self.request.label} gave ({low}, {high}); "
                "it must give two finite numbers, the smaller one first"
            )
        return low, high

    def _failed(self, method: str, err: Exception) -> CalibrationError:
        return CalibrationError(
            f"tensor {self.tensor!r}: {method} of observer {self.request.label} failed: {_told(err)}"
        )


def _told(err: Exception) -> str:
    return f"{type(err).__name__}: {err}" if str(err) else type(err).__name__


def reference_of(source: str | Maker) -> str:
    """What stands for an observer in a recipe's text: its module and its name."""
    if isinstance(source, str):
        return source
    inner = getattr(source, "func", source)  # a functools.partial
    return f"{getattr(inner, '__module__', '?')}:{getattr(inner, '__qualname__', type(inner).__name__)}"


def find_maker(reference: str) -> Maker:
    """What a reference to an observer names; the file or module is run.

    Args:
        reference: ``path/of/file.py:Class``, the path from the working directory, or ``module.name:Class``.

    Raises:
        RecipeError: If there is no such thing.
    """
    return cast("Maker", find_named(reference, "observer", "class"))


def find_named(reference: str, what: str, kind: str) -> Callable[..., Any]:
    """What a user's reference to code names; the file or module is run.

    Args:
        reference: ``path/of/file.py:name``, the path from the working directory, or ``module.name:name``.
        what: What it is for, for messages: ``observer``.
        kind: What it must name, for messages: ``class``.

    Raises:
        RecipeError: If there is no such thing.
    """
    who = f"{what} {reference!r}"
    place, colon, name = reference.rpartition(":")
    if not (colon and place and name):
        example = kind.capitalize() if kind == "class" else kind
        raise RecipeError(f"{who}: must be 'file.py:{example}' or 'module:{example}'")
    module = _from_file(who, Path(place)) if place.endswith(".py") else _from_module(who, place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            hint = nearest(part, [known for known in vars(found) if not known.startswith("_")])
            raise RecipeError(f"{who}: {place} has no {part!r}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise RecipeError(f"{who}: is a {type(found).__name__}; must be a {kind}")
    return cast("Callable[..., Any]", found)


def _from_file(who: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RecipeError(f"{who}: there is no file {path}; paths begin in the working directory")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise RecipeError(f"{who}: {path} cannot be loaded: {_told(err)}") from err
    return module


def _from_module(who: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as err:
        raise RecipeError(f"{who}: module {name!r} cannot be imported: {_told(err)}") from err
