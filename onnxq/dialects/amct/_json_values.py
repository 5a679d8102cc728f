"""Values of a JSON file with the lines they stand in: what does not fit is noted, and reading goes on."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.dialects.problems import Problem, refuse
from onnxq.errors import nearest

Where = tuple[str | int, ...]
"""Keys and indexes from the top."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def read_json(text: str, source: str) -> tuple[object, dict[Where, int]]:
    """The content of a JSON text and the line of every key and item.

    Args:
        text: JSON.
        source: Where it comes from, for messages.

    Raises:
        RecipeError: If it is not JSON, or holds a key twice; it names all of them.
    """
    content: object = None
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as err:
        refuse(source, [Problem(err.lineno, f"{err.msg} (column {err.colno})")])
    except ValueError as err:
        refuse(source, [Problem(0, str(err))])
    lines, twice = _places(text)
    refuse(source, [Problem(line, f"key {path[-1]!r} is already given in line {first}") for path, first, line in twice])
    return content, lines


def _no_constant(name: str) -> None:
    raise ValueError(f"found {name}; must be a finite number")


def _places(text: str) -> tuple[dict[Where, int], list[tuple[Where, int, int]]]:
    """The line of every key and item by path, and keys given twice with both lines; the text is valid JSON."""
    lines: dict[Where, int] = {}
    twice: list[tuple[Where, int, int]] = []
    stack: list[list[str | int]] = []  # the current key or index of each open object or list
    line, offset, key_next = 1, 0, False
    for found in _TOKEN.finditer(text):
        line += text.count("\n", offset, found.start())
        offset, token = found.start(), found[0]
        if key_next and token[0] == '"':
            stack[-1][0] = str(json.loads(token))
            path = tuple(level[0] for level in stack)
            if path in lines and not any(path[: len(other)] == other for other, _, _ in twice):
                twice.append((path, lines[path], line))
            lines[path] = line
            key_next = False
        elif token == ",":
            inside_list = isinstance(stack[-1][0], int)
            key_next = not inside_list
            stack[-1][0] = stack[-1][0] + 1 if isinstance(stack[-1][0], int) else ""
        elif token in "]}":
            stack.pop()
            key_next = False
        elif token in "[{":
            lines.setdefault(tuple(level[0] for level in stack), line)
            stack.append([0 if token == "[" else ""])
            key_next = token == "{"
        elif token != ":":
            lines.setdefault(tuple(level[0] for level in stack), line)
    return lines, twice


@dataclass
class Values:
    """Getters that give the default after a problem.

    Attributes:
        lines: The line of every key and item.
        problems: What does not fit.
    """

    lines: Mapping[Where, int]
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Where, text: str) -> None:
        """Note a problem with the line of the nearest thing that has one."""
        start = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in self.lines), ())
        label = ".".join(str(part) for part in path)
        self.problems.append(Problem(self.lines.get(start, 1), f"{label}: {text}" if label else text))

    def mapping(self, content: object, path: Where) -> dict[str, object]:
        """An object."""
        if isinstance(content, dict):
            return content
        self.problem(path, f"found {reprlib.repr(content)}; must be an object, in braces")
        return {}

    def unknown(self, content: Mapping[str, object], known: tuple[str, ...], path: Where) -> None:
        """Note keys that are not known."""
        for key in content:
            if key not in known:
                hint = nearest(key, known, count=1) or f"; known: {', '.join(known)}"
                self.problem((*path, key), f"unknown key{hint}")

    def flag(self, content: Mapping[str, object], key: str, path: Where, default: bool) -> bool:
        """A truth value."""
        value = content.get(key, default)
        if not isinstance(value, bool):
            self.problem((*path, key), f"found {reprlib.repr(value)}; must be true or false")
            return default
        return value

    def whole(self, content: Mapping[str, object], key: str, path: Where, default: int) -> int:
        """A whole number."""
        value = content.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            self.problem((*path, key), f"found {reprlib.repr(value)}; must be a whole number")
            return default
        return value

    def number(self, content: Mapping[str, object], key: str, path: Where, default: float) -> float:
        """A number."""
        return self._number(content.get(key, default), (*path, key), default)

    def _number(self, value: object, path: Where, default: float) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            self.problem(path, f"found {reprlib.repr(value)}; must be a number")
            return default
        return float(value)

    def pair(
        self, content: Mapping[str, object], key: str, path: Where, default: tuple[float, float]
    ) -> tuple[float, float]:
        """Two numbers."""
        value = content.get(key, list(default))
        if not isinstance(value, list) or len(value) != 2:
            self.problem((*path, key), f"found {reprlib.repr(value)}; must be a list of two numbers")
            return default
        first, second = (self._number(v, (*path, key, i), default[i]) for i, v in enumerate(value))
        return first, second

    def names(self, content: Mapping[str, object], key: str, path: Where) -> tuple[str, ...]:
        """A list of strings."""
        value = content.get(key, [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self.problem((*path, key), f"found {reprlib.repr(value)}; must be a list of names in double quotes")
            return ()
        return tuple(value)
