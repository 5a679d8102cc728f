"""Writes the recipe reference, ``docs/recipe.md``, from the JSON Schema.

python -m onnxq._recipe.docgen docs/recipe.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxq.recipe import Recipe

Schema = Mapping[str, Any]

INTRO = """\
# Recipe reference

<!-- Written by `python -m onnxq._recipe.docgen docs/recipe.md`; do not edit. -->

A recipe says how a model is quantized. It is a YAML or JSON file (`onnxq quantize MODEL --config FILE`), or
`onnxq.Recipe(...)` in Python. Every key may be left out; an empty recipe is the best-known one for its target.
An unknown key, a key given twice or a value of the wrong kind is an error, and all errors are told at once.
Where a table gives no default, the target decides or nothing is done.

```yaml
{example}```

What holds for a node is put together field by field, the later winning over the earlier: the target's defaults;
`activations` and `weights`; rules that match by `op_type`; by `name`; by `node`. Among rules of one kind the last
one written wins. The entries of `skip` count as rules written last. A rule that gives `type` also decides the width;
one that gives only `bits` keeps the type, or takes the narrowest that holds them. `method` is replaced as a whole.

A method or step whose parameters keep their defaults may be written as its name alone: `method: kl` is
`method: {{name: kl}}`, and `refine: [bias_correction]` is `refine: [{{kind: bias_correction}}]`.

A name, a glob or a skip entry that matches nothing in the model is an error; an operator type that
the model does not use is not.
"""

EXAMPLE = """\
version: 1
target: ort
activations:
  method: {name: percentile, percentile: 99.999}
weights:
  granularity: per_axis
  method: mse
rules:
  - match: {op_type: MatMul}
    weights: {bits: 4, granularity: {per_block: {size: 32}}}
  - match: {name: "backbone/*"}
    activations: {method: minmax}
  - match: {node: head/logits}
    skip: true
skip: [Softmax]
calibration:
  samples: 100
  preprocess:
    resize_short_side: 256
    crop: 224
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
refine: [bias_correction]
"""
"""A recipe that shows most of the keys."""


def render() -> str:
    """The reference as Markdown."""
    root = Recipe.json_schema()
    return INTRO.format(example=EXAMPLE) + "".join(_section(title, part) for title, part in _parts(root))


def _parts(root: Schema) -> Iterator[tuple[str, Schema]]:
    """Every kind of mapping, each where it is first mentioned, depth first."""
    definitions: Schema = root.get("$defs", {})
    seen: set[str] = set()
    waiting: list[tuple[str, Schema]] = [("Recipe", root)]
    while waiting:
        title, part = waiting.pop(0)
        if title in seen:
            continue
        seen.add(title)
        yield title, part
        mentioned = [name for value in part["properties"].values() for name in _references(value)]
        waiting[:0] = [(name, definitions[name]) for name in mentioned]


def _references(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "$ref":
                yield value.rsplit("/", 1)[-1]
            elif key != "discriminator":
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)


def _section(title: str, part: Schema) -> str:
    about = str(part["description"]).partition("Raises:")[0]
    rows = [
        f"| `{key}` | {_type(value)} | {_default(key, value, part)} | {value.get('description', '')} |"
        for key, value in part["properties"].items()
    ]
    table = ["| key | value | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(["", f"## {title}", "", " ".join(about.split()).replace("``", "`"), "", *table, ""])


def _default(key: str, value: Schema, part: Schema) -> str:
    if key in part.get("required", ()):
        return "must be given"
    default = value.get("default")
    return "" if default in (None, {}, []) or isinstance(default, Mapping) else f"`{_written(default)}`"


def _written(value: object) -> str:
    if isinstance(value, float) and value and round(1 / value) == 255:
        return "1/255"
    return json.dumps(value).strip('"')


def _type(node: Schema) -> str:
    """What may be written, in words."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "const" in node or "enum" in node:
        return ", ".join(f"`{_written(value)}`" for value in node.get("enum", [node.get("const")]))
    for key in ("anyOf", "oneOf", "allOf"):
        if key in node:
            options = [_type(option) for option in node[key] if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(options))
    if node["type"] == "array":
        if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])}: {_type(node['prefixItems'][0])}"
        return f"list of: {_type(node['items'])}"
    words: dict[str, str] = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text"}
    return words.get(node["type"], str(node["type"])) + _bounds(node)


def _bounds(node: Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node]
    return " " + ", ".join(limits) if limits else ""


def main(arguments: list[str]) -> None:
    """Write the reference to the file that is named first."""
    Path(arguments[0]).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
