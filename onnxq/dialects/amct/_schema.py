"""A protobuf text file against the message it is for: every problem with its line, and the message that was read.

Of several members of one oneof the last one written wins, with a warning, as AMCT does it; the protobuf library alone
would refuse that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import message_factory, text_format  # type: ignore[import-untyped]
from google.protobuf.descriptor import Descriptor, FieldDescriptor  # type: ignore[import-untyped]

from onnxq.dialects.amct._text import Entry, Unreadable, scan, without
from onnxq.dialects.problems import Problem
from onnxq.errors import nearest

Message = Any
"""A protobuf message; the library has no types."""


@dataclass
class Parsed:
    """A text and what it says.

    Attributes:
        message: The message, None where there are problems.
        root: The fields of the text, those that take effect.
        problems: What is wrong with it.
        warnings: What has no effect.
    """

    message: Message | None
    root: Entry
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def parse(text: str, message: Message) -> Parsed:
    """Read `text` into `message`.

    Args:
        text: In protobuf's text format.
        message: An empty message.
    """
    try:
        root = scan(text)
    except Unreadable as err:
        return Parsed(None, Entry("", 1, 0, 0), [err.problem])
    check = _Check()
    root = check.message(root, message.DESCRIPTOR, message.DESCRIPTOR.name)
    if check.problems:
        return Parsed(None, root, check.problems, check.warnings)
    try:
        text_format.Parse(without(text, tuple(check.dropped)), message)
    except text_format.ParseError as err:
        return Parsed(None, root, [Problem(err.GetLine() or 0, str(err))], check.warnings)
    return Parsed(message, root, [], check.warnings)


@dataclass
class _Check:
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    dropped: list[Entry] = field(default_factory=list)

    def message(self, entry: Entry, descriptor: Descriptor, title: str) -> Entry:
        """The entry without what does not take effect."""
        known = descriptor.fields_by_name
        kept = tuple(self._known(entry, descriptor, title))
        kept = self._last_of_each_kind(kept, known, title)
        self._repeated(kept, known, title)
        for name, found in known.items():
            if _is_required(found) and not any(e.name == name for e in kept):
                self.problems.append(Problem(entry.line, f"{title} needs {name}"))
        kept = tuple(self._value(e, known[e.name]) for e in kept)
        return Entry(entry.name, entry.line, entry.start, entry.end, body=kept)

    def _known(self, entry: Entry, descriptor: Descriptor, title: str) -> Iterator[Entry]:
        names = list(descriptor.fields_by_name)
        for inner in entry.body or ():
            if inner.name in names:
                yield inner
                continue
            hint = nearest(inner.name, names)
            known = "" if hint else f"; known: {', '.join(names)}"
            self.problems.append(Problem(inner.line, f"{title} has no field {inner.name!r}{hint}{known}"))

    def _last_of_each_kind(
        self, entries: tuple[Entry, ...], known: dict[str, FieldDescriptor], title: str
    ) -> tuple[Entry, ...]:
        last = {known[e.name].containing_oneof.name: e for e in entries if known[e.name].containing_oneof}
        kept = []
        for entry in entries:
            oneof = known[entry.name].containing_oneof
            winner = last[oneof.name] if oneof else entry
            if winner.name == entry.name:
                kept.append(entry)
                continue
            self.dropped.append(entry)
            text = f"{title}: {entry.name} has no effect, because {winner.name} in line {winner.line} is written later"
            self.warnings.append(Problem(entry.line, text))
        return tuple(kept)

    def _repeated(self, entries: tuple[Entry, ...], known: dict[str, FieldDescriptor], title: str) -> None:
        first: dict[str, Entry] = {}
        for entry in entries:
            before = first.setdefault(entry.name, entry)
            if before is not entry and not _is_repeated(known[entry.name]):
                text = f"{title}: {entry.name} is already given in line {before.line}; leave one of them"
                self.problems.append(Problem(entry.line, text))

    def _value(self, entry: Entry, found: FieldDescriptor) -> Entry:
        if found.message_type is not None:
            if entry.body is None:
                text = f"{entry.name}: found {entry.value}; must be a message, in braces"
                self.problems.append(Problem(entry.line, text))
                return entry
            return self.message(entry, found.message_type, entry.name)
        try:
            # Whether a value fits is the library's judgement, one field at a time; the message tells who it is for.
            text_format.Parse(f"{entry.name}: {entry.value}", message_factory.GetMessageClass(found.containing_type)())
            if entry.body is None:
                return entry
        except text_format.ParseError:
            pass
        value = entry.value if entry.body is None else "a message"
        self.problems.append(Problem(entry.line, f"{entry.name}: found {value}; must be {_expected(entry, found)}"))
        return entry


def _is_repeated(found: FieldDescriptor) -> bool:
    # Versions from 6.31 on have `is_repeated` and warn about `label`.
    return bool(found.is_repeated if hasattr(found, "is_repeated") else found.label == found.LABEL_REPEATED)


def _is_required(found: FieldDescriptor) -> bool:
    return bool(found.is_required if hasattr(found, "is_required") else found.label == found.LABEL_REQUIRED)


def _expected(entry: Entry, found: FieldDescriptor) -> str:
    if found.enum_type is not None:
        names = [value.name for value in found.enum_type.values]
        one = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        return one + nearest(entry.value, names, count=1)
    kinds = {
        FieldDescriptor.CPPTYPE_BOOL: "true or false",
        FieldDescriptor.CPPTYPE_STRING: f'a text in double quotes, "{entry.value}"',
        FieldDescriptor.CPPTYPE_UINT32: "a whole number from 0 to 4294967295",
        FieldDescriptor.CPPTYPE_INT32: "a whole number from -2147483648 to 2147483647",
        FieldDescriptor.CPPTYPE_FLOAT: "a number",
    }
    return kinds.get(found.cpp_type, "another value")
