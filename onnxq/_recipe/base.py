"""The strict, frozen base of every part of a recipe, and how its problems are told."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from onnxq.errors import RecipeError, nearest
from onnxq.observers import reference_of

if TYPE_CHECKING:
    from typing_extensions import Self

Count = Annotated[int, Field(strict=True, ge=1)]
"""A whole number >= 1."""
Index = Annotated[int, Field(strict=True, ge=0)]
"""Counts from 0."""
Seed = Annotated[int, Field(strict=True, ge=0)]
"""A whole number >= 0."""
Flag = Annotated[bool, Field(strict=True)]
"""true or false, nothing that only looks like it."""
Number = Annotated[float, Field(strict=True)]
"""A finite number."""
Name = Annotated[str, Field(strict=True, min_length=1)]
"""A non-empty string."""
Share = Annotated[float, Field(strict=True, gt=0.5, le=1.0)]
"""The part of the values that is kept, as a fraction: 99.99 % is 0.9999."""


class Problem(NamedTuple):
    """One thing that is wrong with a recipe.

    Attributes:
        path: Where, as keys and indexes from the top.
        text: What was found, what is expected.
    """

    path: tuple[str | int, ...]
    text: str

    @property
    def where(self) -> str:
        """The path as it is written: ``rules[2].weights.bits``."""
        dotted = ""
        for part in self.path:
            dotted += f"[{part}]" if isinstance(part, int) else f".{part}"
        return dotted.removeprefix(".")

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.path else self.text


class InvalidRecipe(RecipeError, ValueError):  # noqa: N818 - reads as its base class does
    """Everything that is wrong with a recipe, or with a part of one.

    It is a `ValueError` too, so that the part that holds this one can collect it.

    Attributes:
        problems: Every problem that was found.
    """

    def __init__(self, problems: list[Problem], *, source: str = "") -> None:
        self.problems = tuple(problems)
        self._source = source
        start = f"{source}: " if source else ""
        if len(problems) == 1:
            super().__init__(f"{start}{problems[0]}")
            return
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{start}{len(problems)} problems in the recipe{lines}")

    def __reduce__(self) -> tuple[Callable[..., InvalidRecipe], tuple[object, ...]]:
        return _invalid_recipe, (self.problems, self._source)


def _invalid_recipe(problems: tuple[Problem, ...], source: str) -> InvalidRecipe:
    return InvalidRecipe(list(problems), source=source)


class Model(BaseModel):
    """Base of every part of a recipe: frozen, strict, unknown keys refused.

    Raises:
        RecipeError: When constructed from anything that does not fit; it names all problems.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, /, **data: Any) -> None:  # noqa: ANN401 - pydantic's own signature
        try:
            super().__init__(**data)
        except ValidationError as err:
            raise InvalidRecipe(list(_problems(type(self), err))) from None

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401 - as the constructor
        """A copy with some fields changed, validated like any other.

        Raises:
            RecipeError: If the changed copy is not valid.
        """
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As `replace`: unlike pydantic's own, a changed copy is validated."""
        return self.replace(**(update or {}))


def _problems(model: type[Model], err: ValidationError) -> Iterator[Problem]:
    for line in err.errors(include_url=False):
        loc = line["loc"]
        # Past the field itself, a string is the tag of a union, which nobody wrote.
        path = (*loc[:1], *(part for part in loc[1:] if isinstance(part, int)))
        cause = line.get("ctx", {}).get("error")
        if isinstance(cause, InvalidRecipe):
            for inner in cause.problems:
                yield Problem((*path, *inner.path), inner.text)
        else:
            yield Problem(path, _text(model, line))


def _text(model: type[Model], line: ErrorDetails) -> str:
    kind, found = line["type"], reprlib.repr(line["input"])
    context = line.get("ctx", {})
    match kind:
        case "extra_forbidden":
            hint = nearest(str(line["loc"][-1]), model.model_fields, count=1)
            known = "" if hint else "; known keys: " + ", ".join(model.model_fields)
            return f"unknown key (its value is {found}){hint}{known}"
        case "missing":
            return "is missing"
        case "literal_error":
            return f"found {found}; must be {context['expected']}{_near(line, context['expected'])}"
        case "union_tag_invalid":
            tags = context["expected_tags"]
            return f"found {context['tag']!r}; must be one of {tags}{_near(line, tags, str(context['tag']))}"
        case "union_tag_not_found":
            key = str(context["discriminator"]).strip("'")
            return f"found {found}; must be a name, or a mapping with the key {key!r}"
        case "value_error":
            return str(context["error"])
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"found {found}; must be a mapping"
        case "tuple_type":
            return f"found {found}; must be a list"
        case "too_long":
            return f"found {found}; must be a list of {context['max_length']}"
    return f"found {found}; {line['msg'].replace('Input should be', 'must be')}"


def _near(line: ErrorDetails, expected: str, found: str = "") -> str:
    known = [word.strip(" '") for word in expected.replace(" or ", ",").split(",")]
    word = found or line["input"]
    return nearest(word, known, count=1) if isinstance(word, str) else ""


class Shorthand:
    """Lets a bare string stand for a mapping with one key: ``kl`` for ``{name: kl}``.

    Args:
        key: The key the string is the value of.
        names: The strings that are understood, for the JSON Schema.
    """

    def __init__(self, key: str, names: Callable[[], list[str]]) -> None:
        self.key = key
        self.names = names

    def _expand(self, value: object) -> object:
        return {self.key: value} if isinstance(value, str) else value

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "enum": self.names()}, handler(schema)]}


class Repeat:
    """Lets one number stand for a list that repeats it.

    Args:
        times: How often.
    """

    def __init__(self, times: int) -> None:
        self.times = times

    def _expand(self, value: object) -> object:
        return (value,) * self.times if isinstance(value, (int, float)) else value

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        content = handler(schema)
        item = content["items"] if "items" in content else content["prefixItems"][0]
        return {"anyOf": [item, content]}


def plain(model: BaseModel, *, defaults: bool = True) -> dict[str, object]:
    """The content of `model` as mappings, lists, strings and numbers; None is left out.

    Args:
        model: What to write.
        defaults: Also write the fields that have their default value.
    """
    result: dict[str, object] = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        always = defaults or name in ("version", "kind", "name")
        if value is not None and (always or value != field.get_default(call_default_factory=True)):
            result[name] = _plain_value(value, defaults=defaults)
    return result


def _plain_value(value: object, *, defaults: bool) -> object:
    if isinstance(value, BaseModel):
        return plain(value, defaults=defaults)
    if isinstance(value, (tuple, list)):
        return [_plain_value(item, defaults=defaults) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item, defaults=defaults) for key, item in value.items()}
    return reference_of(value) if callable(value) else value
