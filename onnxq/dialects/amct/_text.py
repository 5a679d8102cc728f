"""Where things stand in a protobuf text file: names, values, lines. What they mean is the protobuf library's business.

That library tells the first problem only, and of a message that was read not where a value stood. This finds the
places, so that all problems can be told at once, each with its line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnxq.dialects.problems import Problem

_TOKEN = re.compile(
    r"""(?P<blank>(?:\s+|\#[^\n]*)+)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<dots>\.\.\.+|…)
      | (?P<word>[\w.+-]+)
      | (?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">", "[": "]"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One field as it is written.

    Attributes:
        name: Its name.
        line: The line of its name, from 1.
        start: Offset of its name.
        end: Offset behind its value.
        value: Its value as it is written; empty for a message.
        body: The fields of a message; None for a plain value.
    """

    name: str
    line: int
    start: int
    end: int
    value: str = ""
    body: tuple[Entry, ...] | None = None

    def children(self, name: str) -> tuple[Entry, ...]:
        """The fields called `name`, in order."""
        return tuple(entry for entry in self.body or () if entry.name == name)

    def line_of(self, *names: str) -> int:
        """The line of the first field that has one of these names; the own line where there is none."""
        return next((entry.line for name in names for entry in self.children(name)), self.line)


class Unreadable(Exception):  # noqa: N818 - never leaves this package
    """The text is not in protobuf's text format.

    Attributes:
        problem: What is wrong, and where.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def scan(text: str) -> Entry:
    """All fields of `text` as the body of one entry without a name.

    Raises:
        Unreadable: If it is not in protobuf's text format.
    """
    return _Scanner(text).all()


@dataclass
class _Scanner:
    text: str
    tokens: list[_Token] = field(init=False)
    position: int = 0
    line_starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.line_starts = [0, *(m.end() for m in re.finditer(r"\n", self.text))]
        self.tokens = list(self._split())

    def _split(self) -> Iterator[_Token]:
        offset = 0
        while offset < len(self.text):
            found = _TOKEN.match(self.text, offset)
            if found is None:
                open_string = self.text[offset] in "\"'"
                what = "a string that does not end on its line" if open_string else f"a stray {self.text[offset]!r}"
                raise self._unreadable(offset, what)
            kind = str(found.lastgroup)
            if kind == "dots":
                hint = "it stands for settings that were left out of an example; delete it"
                raise self._unreadable(offset, f"'{found[0]}', {hint}")
            if kind != "blank":
                yield _Token(kind, found[0], offset)
            offset = found.end()

    def _line(self, offset: int) -> int:
        return bisect_right(self.line_starts, offset)

    def _unreadable(self, offset: int, what: str) -> Unreadable:
        return Unreadable(Problem(self._line(offset), f"found {what}"))

    def _peek(self, *texts: str) -> bool:
        token = self.tokens[self.position] if self.position < len(self.tokens) else None
        return token is not None and token.kind == "mark" and token.text in texts

    def _next(self, wanted: str) -> _Token:
        if self.position == len(self.tokens):
            raise self._unreadable(len(self.text.rstrip()), f"the end of the file where {wanted} must be")
        self.position += 1
        return self.tokens[self.position - 1]

    def all(self) -> Entry:
        body = self._fields("")
        return Entry("", 1, 0, len(self.text), body=body)

    def _fields(self, closing: str) -> tuple[Entry, ...]:
        """Fields up to `closing`, which is consumed; up to the end of the text where it is empty."""
        found: list[Entry] = []
        while closing or self.position < len(self.tokens):
            if closing and self._peek(closing):
                self.position += 1
                break
            found += self._field(closing)
            if self._peek(",", ";"):
                self.position += 1
        return tuple(found)

    def _field(self, closing: str) -> list[Entry]:
        name = self._next(f"a field or {closing!r}" if closing else "a field")
        if name.kind != "word":
            what = "a closing" if name.text in _CLOSING.values() else "the"
            raise self._unreadable(name.start, f"{what} {name.text} where the name of a field must be")
        colon = self._peek(":")
        if colon:
            self.position += 1
        if not colon and not self._peek("{", "<"):
            raise self._unreadable(name.start, f"{name.text!r} without ':' and a value, or '{{' behind it")
        if self._peek("["):
            return self._list(name)
        return [self._value(name)]

    def _list(self, name: _Token) -> list[Entry]:
        self.position += 1
        items: list[Entry] = []
        while not self._peek("]"):
            items.append(self._value(name))
            if not self._peek("]"):
                comma = self._next("',' or ']'")
                if comma.text != ",":
                    raise self._unreadable(comma.start, f"{comma.text} where ',' or ']' must be")
        self.position += 1
        return items

    def _value(self, name: _Token) -> Entry:
        first = self._next(f"the value of {name.text!r}")
        line = self._line(name.start)
        if first.text in ("{", "<"):
            body = self._fields(_CLOSING[first.text])
            return Entry(name.text, line, name.start, self.tokens[self.position - 1].end, body=body)
        if first.kind == "mark":
            raise self._unreadable(first.start, f"{first.text} where the value of {name.text!r} must be")
        last = first
        while first.kind == "string" and self.position < len(self.tokens):
            following = self.tokens[self.position]
            if following.kind != "string":
                break
            last = following
            self.position += 1
        return Entry(name.text, line, name.start, last.end, self.text[first.start : last.end])


def without(text: str, entries: tuple[Entry, ...]) -> str:
    """The text with these fields turned into spaces: everything else keeps its line and column."""
    for entry in entries:
        blank = re.sub(r"[^\n]", " ", text[entry.start : entry.end])
        text = text[: entry.start] + blank + text[entry.end :]
    return text
