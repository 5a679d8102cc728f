"""Checks of output files that are made before the long work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from onnxq.errors import OnnxqError


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse output files that cannot be written or would overwrite something that is read.

    Args:
        outputs: By the option they are named with.
        inputs: Likewise.

    Raises:
        OnnxqError: Naming the option and the path.
    """
    taken = [(name, path) for name, path in inputs.items() if path is not None]
    for name, path in outputs.items():
        if path is None:
            continue
        _check_writable(name, path)
        for other, used in taken:
            if _same(path, used):
                raise OnnxqError(f"{name} {path} is the same file as {other} {used}; give another name")
        taken.append((name, path))


def _check_writable(name: str, path: Path) -> None:
    if path.is_dir():
        raise OnnxqError(f"{name} {path} is a folder; name a file in it")
    folder = path.parent
    if not folder.exists():
        raise OnnxqError(f"{name} {path}: there is no folder {folder}; create it first")
    if not folder.is_dir():
        raise OnnxqError(f"{name} {path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OnnxqError(f"{name} {path}: the folder {folder} cannot be written to")


def _same(a: Path, b: Path) -> bool:
    if a.exists() and b.exists():
        return a.samefile(b)
    return a.resolve() == b.resolve()
