"""Reading and writing models: files, external data, checks on what was found."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs in the dev extra

from onnxq.errors import ModelError
from onnxq.graph import GraphModel

__all__ = ["file_sha256", "graph_from_proto", "load_model", "save_model"]


def graph_from_proto(proto: onnx.ModelProto, *, base_dir: Path | None = None) -> GraphModel:
    """See `GraphModel.from_proto`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if base_dir is not None:
        onnx.external_data_helper.load_external_data_for_model(copy, str(base_dir))
    return GraphModel(copy)


def load_model(path: str | os.PathLike[str]) -> GraphModel:
    """Open a model file.

    Raises:
        ModelError: If it cannot be read or is not an ONNX model.
    """
    path = Path(path)
    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as err:
        raise ModelError(f"cannot read {path}: {err}") from err
    except DecodeError as err:
        raise ModelError(f"{path} is not an ONNX model: {err}") from err
    return graph_from_proto(proto, base_dir=path.parent)


def save_model(graph: GraphModel, path: str | os.PathLike[str]) -> None:
    """Write a model file, all of it or nothing."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
        temporary.write(graph.to_proto().SerializeToString(deterministic=True))
    Path(temporary.name).replace(path)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
