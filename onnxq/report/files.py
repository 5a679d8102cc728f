"""Files on the way out and their sizes."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import onnx

from onnxq.errors import OnnxqError
from onnxq.modelio import load_model

if TYPE_CHECKING:
    from onnxq.graph import GraphModel


def model_files(path: Path, graph: GraphModel | None = None) -> tuple[Path, ...]:
    """A model file and its external data files.

    Args:
        path: The model file.
        graph: The model in it, if it is at hand.

    Raises:
        ModelError: If it is not a valid model.
    """
    graph = graph or load_model(path)
    files = {path: None}
    if graph.external_data:
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                files[path.parent / entries["location"]] = None
    return tuple(files)


def disk_bytes(path: Path, graph: GraphModel | None = None) -> int:
    """Bytes of a model file together with its external data files; arguments as for `model_files`."""
    return sum(file.stat().st_size for file in model_files(path, graph) if file.exists())


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OnnxqError: If it cannot be written.
    """
    with atomic_text(path) as file:
        file.write(text)


@contextlib.contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A file to write to that takes its place when all of it is written, and not at all if that fails.

    Raises:
        OnnxqError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as err:
        raise OnnxqError(f"cannot write {path}: {err.strerror or err}") from err
