"""How the values of converter_lite's configuration are read: numbers, names, vectors, lists.

Each function makes a reader: from the text of a value to the value, with a `ValueError` that says what was found and
what would do. Names are case-sensitive; only true and false are not.

Source: MindSpore Lite, tools/common/string_util.cc and tools/converter/config_parser.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from onnxq.errors import DataError, nearest

Read = Callable[[str], object]
"""From the text of a value to the value."""

_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
MOST = 65535
"""The largest value of most whole numbers."""


def whole(low: int, high: int = MOST) -> Read:
    """A whole number in ``[low, high]``."""

    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text):
            raise ValueError(f"found {text!r}; must be a whole number from {low} to {high}")
        if not low <= int(text) <= high:
            raise ValueError(f"found {text}; must be from {low} to {high}")
        return int(text)

    return read


def between(low: float, high: float) -> Read:
    """A number in ``(low, high)``, both excluded."""

    def read(text: str) -> float:
        value = _number(text)
        if not low < value < high:
            raise ValueError(f"found {text}; must be greater than {low:g} and less than {high:g}")
        return value

    return read


def number(text: str) -> float:
    """A finite number.

    Args:
        text: The value.

    Raises:
        ValueError: If it is none.
    """
    return _number(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"found {text!r}; must be a number")
    return float(text)


def flag(text: str) -> bool:
    """True or false in any case; nothing else.

    Args:
        text: The value.

    Raises:
        ValueError: If it is neither.
    """
    if text.lower() not in ("true", "false"):
        raise ValueError(f"found {text!r}; must be true or false")
    return text.lower() == "true"


def one_of(*names: str) -> Read:
    """One of these names, in this case."""

    def read(text: str) -> str:
        if text not in names:
            known = ", ".join(names)
            by_case = {re.sub("[^A-Z]", "", name): name for name in names}
            same = by_case.get(re.sub("[^A-Z]", "", text.upper()))
            hint = f"; write {same}" if same else nearest(text.upper(), names, count=1)
            raise ValueError(f"found {text!r}; must be {'one of ' if len(names) > 1 else ''}{known}{hint}")
        return text

    return read


def vector(text: str) -> tuple[float, ...]:
    """Numbers in brackets with commas between them; spaces do not count.

    Args:
        text: The value, such as ``[127.5, 127.5, 127.5]``.

    Raises:
        ValueError: If it is none.
    """
    inner = text[1:-1].replace(" ", "")
    if not (text.startswith("[") and text.endswith("]") and inner):
        raise ValueError(f"found {text!r}; must be numbers in brackets, such as [127.5, 127.5, 127.5]")
    return tuple(_number(part) for part in inner.removesuffix(",").split(","))


def text_of(text: str) -> str:
    """Any text."""
    return text


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them; spaces around each and empty ones do not count.

    Args:
        text: The value.

    Raises:
        ValueError: If there is none.
    """
    found = tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    if not found:
        raise ValueError(f"found {text!r}; must be names of nodes with commas between them")
    return found


def folders(text: str) -> tuple[tuple[str, str], ...]:
    """Folders by the name of their input: ``name:folder`` with commas between them.

    The folder is what follows the last colon, or stands between single quotes: ``name:'folder'``. A name may have
    colons.

    Args:
        text: The value.

    Raises:
        ValueError: If a part is none of these.
    """
    from onnxq.calib.readers import parse_folders

    try:
        return tuple((name, str(folder)) for name, folder in parse_folders(text.removesuffix(",")).items())
    except DataError as err:
        raise ValueError(f"{err}, such as input:/data/images") from err
