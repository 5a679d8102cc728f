"""What is wrong with a configuration file, line by line, all of it at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from onnxq.errors import RecipeError


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        line: The line of the file, from 1; 0 where there is none.
        text: What was found, and what to do.
    """

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


def refuse(source: str, problems: Iterable[Problem]) -> None:
    """Raise an error that tells all problems; nothing where there is none.

    Args:
        source: The name of the file.
        problems: In any order.

    Raises:
        RecipeError: If there is a problem.
    """
    found = sorted(set(problems))
    if not found:
        return
    start = f"{source}: " if source else ""
    if len(found) == 1:
        raise RecipeError(f"{start}{found[0]}")
    raise RecipeError(f"{start}{len(found)} problems" + "".join(f"\n  {problem}" for problem in found))
