"""The line grammar of converter_lite's configuration files.

A line is a comment if its very first byte is ``#``, and blank if nothing but spaces is left of it. Every ``"`` is
dropped, wherever it stands; single quotes stay. A line that starts with ``[`` opens a section, named by what stands
between its first and its last character; a section may be opened again. Any other line is one ``key=value``, split at
its only ``=``; spaces around both do not count, and of a key given twice the last one holds. Keys in front of any
section belong to one called ``DEFAULT``. A file has at most 9999 lines that are neither blank nor comments.

Source: MindSpore Lite, tools/common/parse_config_utils.cc.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from onnxq.dialects.problems import Problem
from onnxq.errors import RecipeError, nearest

DEFAULT = "DEFAULT"
"""The section of keys in front of any section."""
MAX_LINES = 9999
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Entry(NamedTuple):
    """One ``key=value``.

    Attributes:
        key: What stands left of the ``=``.
        value: What stands right of it; never empty.
        line: Its line, from 1.
    """

    key: str
    value: str
    line: int


@dataclass(frozen=True)
class IniFile:
    """What a configuration file says.

    Attributes:
        sections: Entries by section and key, in the order of the file.
        lines: Where each section is opened first.
        problems: Lines that cannot be understood.
    """

    sections: Mapping[str, Mapping[str, Entry]]
    lines: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read_bytes(path: Path) -> bytes:
    """The content of a configuration file.

    Raises:
        RecipeError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as err:
        hint = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise RecipeError(f"there is no configuration file {path}{hint}") from err
    except OSError as err:
        raise RecipeError(f"{path}: the configuration file cannot be read: {err.strerror or err}") from err


def parse_ini(content: bytes | str, *, known: frozenset[str] = frozenset()) -> IniFile:
    """Parse a configuration.

    Args:
        content: The file; text counts as UTF-8.
        known: Names of sections that mean something: one of them is recognized where its ``]`` is another character,
            which the converter does not look at.

    Returns:
        What it says; lines that cannot be understood are among its problems.
    """
    data = content.encode() if isinstance(content, str) else content
    if data.startswith(_UTF16):
        return IniFile({}, problems=(Problem(1, "the file is UTF-16 text; save it as UTF-8"),))
    reading = _Reading(known)
    for line, raw in _lines(data.removeprefix(codecs.BOM_UTF8)):
        if reading.count == MAX_LINES:
            reading.problems.append(Problem(line, f"more than {MAX_LINES} lines besides comments; shorten the file"))
            break
        reading.add(line, raw)
    return IniFile(reading.sections, reading.lines, tuple(reading.problems))


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that count, with their numbers. Comments may have any encoding: nobody reads them."""
    for line, raw in enumerate(data.split(b"\n"), 1):
        if not raw.startswith(b"#") and raw.strip(b" \r"):
            yield line, raw


@dataclass
class _Reading:
    known: frozenset[str]
    sections: dict[str, dict[str, Entry]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    section: str = DEFAULT
    count: int = 0

    def add(self, line: int, raw: bytes) -> None:
        """Take one line that counts."""
        self.count += 1
        try:
            text = _trimmed(raw.decode())
            if text.startswith("["):
                self._open(line, self._name(text))
            else:
                entry = Entry(*_split(text), line)
                self.sections.setdefault(self.section, {})[entry.key] = entry
        except UnicodeDecodeError:
            self.problems.append(Problem(line, "is not UTF-8 text; save the file as UTF-8"))
        except ValueError as err:
            self.problems.append(Problem(line, str(err)))
            if raw.lstrip(b' "').startswith(b"["):
                self._open(line, "")  # what follows belongs to no section that is known

    def _open(self, line: int, name: str) -> None:
        self.section = name
        if name:
            self.sections.setdefault(name, {})
            self.lines.setdefault(name, line)

    def _name(self, text: str) -> str:
        name = text[1:-1]
        if name and (text.endswith("]") or name in self.known):
            return name
        near = nearest(text[1:].split("]")[0], self.known, count=1)
        raise ValueError(
            f"found {text!r}; a section stands alone on its line, in brackets, such as [common_quant_param]{near}"
        )


def _trimmed(text: str) -> str:
    """Without quotes, line ends and spaces around."""
    return text.replace('"', "").strip(" \r").replace("\r", "")


def _split(text: str) -> tuple[str, str]:
    """Key and value."""
    if text.startswith(("#", ";")):
        raise ValueError(f"found {_short(text)!r}; a comment starts with # as the first character of its line")
    parts = [_trimmed(part) for part in text.split("=")]
    key, value = parts[0], parts[-1]
    if len(parts) == 1:
        raise ValueError(f"found {_short(text)!r}; a line is key=value, a section in brackets or a comment after #")
    if not key:
        raise ValueError(f"found {_short(text)!r}, which has no key in front of the =")
    if len(parts) > 2:
        raise ValueError(f"{key}: found {len(parts) - 1} times '='; neither key nor value may contain one")
    if not value:
        raise ValueError(f"{key}: has no value; leave the line out for the default")
    for part in (key, value):
        if part != part.strip():
            raise ValueError(f"{key.strip()}: found {part!r}, but only spaces are dropped around it; remove the tab")
    return key, value


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
