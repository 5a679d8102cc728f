"""Reading recipe files: YAML or JSON, duplicate keys refused with their line numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from onnxq._recipe.base import InvalidRecipe, Problem
from onnxq.errors import RecipeError


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that also reads ``1e-3`` as a number, as YAML 1.2 and JSON do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


_RECIPE = "a recipe is a mapping, such as 'target: ort'"


def read_mapping(path: Path, *, what: str = _RECIPE) -> dict[str, object]:
    """Read a recipe file; a name that ends in ``.json`` is JSON, anything else YAML.

    Args:
        path: The file.
        what: What it must be, for the message where it is something else.

    Raises:
        RecipeError: If the file cannot be read or parsed, holds a key twice, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise RecipeError(f"{path}: cannot be read: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise RecipeError(f"{path}: is not UTF-8 text ({err.reason} at byte {err.start})") from err
    return parse_mapping(text, source=str(path), is_json=path.suffix.lower() == ".json", what=what)


def parse_mapping(text: str, *, source: str, is_json: bool = False, what: str = _RECIPE) -> dict[str, object]:
    """Parse the text of a recipe.

    Args:
        text: YAML or JSON.
        source: Where it comes from, for messages.
        is_json: Read it as strict JSON.
        what: What it must be, for the message where it is something else.

    Raises:
        RecipeError: If it cannot be parsed, holds a key twice, or is not a mapping.
    """
    try:
        # JSON allows tabs where YAML does not; inside its strings a tab cannot occur.
        node = yaml.compose(text.replace("\t", " ") if is_json else text, Loader=_Loader)
        problems = list(_bad_keys(node)) if node is not None else []
        if problems:
            raise InvalidRecipe(problems, source=source)
        content = json.loads(text) if is_json else yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as err:
        raise RecipeError(f"{source}: {_yaml_problem(err)}") from err
    except json.JSONDecodeError as err:
        raise RecipeError(f"{source}: line {err.lineno}, column {err.colno}: {err.msg}") from err
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise RecipeError(f"{source}: holds {found}; {what}")
    return content


def _yaml_problem(err: yaml.YAMLError) -> str:
    mark = getattr(err, "problem_mark", None)
    text = getattr(err, "problem", None) or str(err)
    return f"line {mark.line + 1}, column {mark.column + 1}: {text}" if mark else text


def _bad_keys(root: yaml.Node) -> Iterator[Problem]:
    """Every key that is written twice in one mapping or is not a string."""
    stack: list[tuple[tuple[str | int, ...], yaml.Node]] = [((), root)]
    seen: set[int] = set()
    while stack:
        path, node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack.extend(((*path, index), item) for index, item in enumerate(node.value))
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEY_TAGS:
                    yield Problem(path, f"line {line}: a key must be a string; put it in quotes")
                    continue
                if key.value in first:
                    yield Problem((*path, key.value), f"line {line}: key already given in line {first[key.value]}")
                first[key.value] = line
                stack.append(((*path, key.value), value))


_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
