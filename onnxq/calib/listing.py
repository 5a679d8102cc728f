"""Which files hold data, in which order they are taken, and how folders are told apart by inputs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from onnxq.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of the image files that are read."""


def kind_of(path: Path) -> str:
    """``npz``, ``npy``, ``bin``, ``image``, or nothing for a file that holds no data."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return ""
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return suffix[1:] if suffix in (".npz", ".npy", ".bin") else ""


def natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts digits by their value: ``img2.png`` before ``img10.png``; equal ones by their text."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p], path.as_posix()


def in_byte_order(files: Iterable[Path]) -> tuple[Path, ...]:
    """Files of one folder by the bytes of their names: ``img10.png`` before ``img2.png``."""
    return tuple(sorted(files, key=lambda file: os.fsencode(file.name)))


def data_files(path: Path) -> tuple[Path, ...]:
    """The data files below a folder, with its sub-folders, in natural order."""
    files = [file for file in path.rglob("*") if kind_of(file) and file.is_file()]
    return tuple(sorted(files, key=lambda file: natural_key(file.relative_to(path))))


def parse_folders(text: str) -> dict[str, Path]:
    """Read ``input:folder,input:folder``.

    The part behind the last colon is the folder, so that an input's name may hold colons. A folder with
    commas or colons is put in single quotes: ``input:'folder'``.

    Raises:
        DataError: If it is not of this form, or names an input twice.
    """
    found: dict[str, Path] = {}
    for item in _split_unquoted(text):
        entry = item.strip()
        if entry.endswith("'") and ":'" in entry:
            name, _, folder = entry[:-1].partition(":'")
        else:
            name, _, folder = entry.rpartition(":")
        name, folder = name.strip(), folder.strip()
        if not name or not folder:
            raise DataError(f"{text}: {entry!r} is not of the form input:folder; several are separated by commas")
        if name in found:
            raise DataError(f"{text}: input {name!r} is given twice")
        found[name] = Path(folder)
    return found


def _split_unquoted(text: str) -> list[str]:
    parts, quoted = [""], False
    for letter in text:
        quoted ^= letter == "'"
        if letter == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
