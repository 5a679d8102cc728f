"""Protobuf's text format: where each field stands, which the protobuf library does not tell, and writing.

`scan` expects text the library has already parsed; it finds fields and their lines, and judges nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.descriptor import (  # type: ignore[import-untyped] # no stubs in the dev extra
    Descriptor,
    FieldDescriptor,
)
from google.protobuf.message import Message  # type: ignore[import-untyped]

_TOKEN = re.compile(
    r"""(?P<newline>\n) | (?P<space>[^\S\n]+) | (?P<comment>\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')
      | (?P<mark>[{}<>\[\]:;,]) | (?P<word>[^\s"'#{}<>\[\]:;,]+)""",
    re.VERBOSE,
)
_OPEN = {"{": "}", "<": ">"}


class Field(NamedTuple):
    """One occurrence of a field; a list in brackets is as many occurrences.

    Attributes:
        name: Its name.
        line: Where its value begins, from 1.
        fields: What it consists of, where it is a message.
    """

    name: str
    line: int
    fields: tuple[Field, ...] = ()

    def lines(self) -> Mapping[str, Sequence[int]]:
        """The lines of its own fields, by name, in the order of the file."""
        found: dict[str, list[int]] = defaultdict(list)
        for field in self.fields:
            found[field.name].append(field.line)
        return found


def scan(text: str) -> Field:
    """Find the fields of a text and their lines.

    Args:
        text: Well-formed text format.

    Returns:
        The whole text as one message without a name.
    """
    return Field("", 1, tuple(_Scanner(text).fields("")))


class _Scanner:
    """Walks over the tokens; what is not well-formed ends it early."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0

    def _peek(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _take(self) -> tuple[str, int]:
        self._next += 1
        return self._tokens[self._next - 1]

    def fields(self, end: str) -> Iterator[Field]:
        """The fields up to the mark `end`, which is taken as well."""
        while self._peek() not in ("", end):
            word, _ = self._take()
            if word in (";", ","):
                continue
            if self._peek() == ":":
                self._take()
            yield from self._values(word)
        if self._peek():
            self._take()

    def _values(self, name: str) -> Iterator[Field]:
        if self._peek() != "[":
            yield from self._value(name)
            return
        self._take()
        while self._peek() not in ("", "]"):
            if self._peek() == ",":
                self._take()
            else:
                yield from self._value(name)
        if self._peek():
            self._take()

    def _value(self, name: str) -> Iterator[Field]:
        if not self._peek():
            return
        word, line = self._take()
        if word in _OPEN:
            yield Field(name, line, tuple(self.fields(_OPEN[word])))
            return
        while word[0] in "\"'" and self._peek()[:1] in ('"', "'"):
            self._take()
        yield Field(name, line)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "newline":
            line += 1
        elif kind in ("string", "mark", "word"):
            yield match.group(), line


def unknown_fields(root: Field, descriptor: Descriptor) -> Iterator[tuple[str, int]]:
    """Names that a message does not have, each with the line of its first occurrence.

    Args:
        root: What `scan` found.
        descriptor: The descriptor of the message the text is.
    """
    first: dict[str, int] = {}
    _collect_unknown(root, descriptor, first)
    yield from first.items()


def _collect_unknown(message: Field, descriptor: Descriptor, first: dict[str, int]) -> None:
    for field in message.fields:
        known = descriptor.fields_by_name.get(field.name)
        if known is None:
            first.setdefault(field.name, field.line)
        elif known.message_type is not None:
            _collect_unknown(field, known.message_type, first)


# ---- writing -----------------------------------------------------------------------------------


def format_message(message: Message) -> str:
    """A message as text: one value per line, two blanks for each level, floats with ten significant digits."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Message, indent: str) -> Iterator[str]:
    for field, found in message.ListFields():
        many = not isinstance(found, (str, bytes)) and hasattr(found, "__len__")
        for value in found if many else (found,):
            if field.message_type is None:
                yield f"{indent}{field.name}: {_scalar(field, value)}"
            else:
                yield f"{indent}{field.name} {{"
                yield from _lines(value, indent + "  ")
                yield f"{indent}}}"


def _scalar(field: FieldDescriptor, value: object) -> str:
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, (str, bytes)):
        return quoted(value)
    return str(value)


def quoted(value: str | bytes) -> str:
    """A string or bytes in quotes, everything but printable ASCII as octal escapes."""
    data = value.encode("utf-8") if isinstance(value, str) else value
    plain = {ord('"'): '\\"', ord("\\"): "\\\\", ord("\n"): "\\n", ord("\t"): "\\t", ord("\r"): "\\r"}
    return '"' + "".join(plain.get(b) or (chr(b) if 32 <= b < 127 else f"\\{b:03o}") for b in data) + '"'
