"""Text files that are read with an error a user can act on, and written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from onnxq.errors import OnnxqError, nearest


def read_text(path: Path, what: str, error: type[OnnxqError]) -> str:
    """The content of a UTF-8 file.

    Args:
        path: The file.
        what: What it should be, for the message: ``record file``.
        error: What to raise.

    Raises:
        OnnxqError: Of the type `error`, if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as err:
        hint = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise error(f"there is no {what} {path}{hint}") from err
    except OSError as err:
        raise error(f"{path}: the {what} cannot be read: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise error(f"{path} is not a {what}: it is not UTF-8 text (byte {err.start})") from err


def write_text(path: Path, text: str, what: str, error: type[OnnxqError]) -> Path:
    """Write a UTF-8 file through a temporary one beside it, so that it appears whole.

    Args:
        path: The file; its folder must exist.
        text: The content.
        what: What it is, for the message.
        error: What to raise.

    Returns:
        `path`.

    Raises:
        OnnxqError: Of the type `error`, if it cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with scratch.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as err:
        scratch.unlink(missing_ok=True)
        raise error(f"{path}: the {what} cannot be written: {err.strerror or err}") from err
    return path
