"""Reading and writing model files.

Weights are left in their files: reading maps one at a time, writing streams one at a time, so neither
needs memory for the model as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs in the dev extra

from onnxq._graph import bodies, dtypes, wire
from onnxq._graph.inline import inline_functions
from onnxq._graph.weights import DataFile, FileWeights, ProtoWeights, Weights, weights_of
from onnxq.errors import GraphError, ModelError, nearest
from onnxq.graph import GraphModel

__all__ = ["OLDEST_OPSET", "file_sha256", "graph_from_proto", "load_model", "save_model"]

OLDEST_OPSET = 7
"""The first version of the default operator set whose models are read; `upgrade_opset` can raise it."""

_SCAN_FROM = 4 << 20
_ALIGNMENT = 4096
_FOREIGN = (
    (0, b"PK\x03\x04", "a zip archive (perhaps a PyTorch checkpoint or a .keras file): export it to ONNX first"),
    (0, b"\x89HDF", "an HDF5 file (perhaps Keras weights): export the model to ONNX first"),
    (4, b"TFL3", "a TensorFlow Lite model: convert it to ONNX first, for example with tf2onnx"),
    (4, b"ORTM", "a model in ONNX Runtime's own format: use the .onnx file it was made from"),
    (0, b"version https://git-lfs", "a Git LFS pointer: run 'git lfs pull' to fetch the model itself"),
    (0, b"<", "a web page or an XML file: was the download refused?"),
    (0, b"{", "a JSON file"),
)


# ---- reading -----------------------------------------------------------------------------------


def load_model(path: str | os.PathLike[str]) -> GraphModel:
    """Open a model file; its weights stay in the file (and its external data files) until they are asked for.

    Raises:
        ModelError: If the file or its external data cannot be read, it is not a valid ONNX model, or
            this version of onnx does not know its operator set.
    """
    path = Path(path)
    file = _open(path)
    proto = _parse(file, path)
    try:
        return _build(proto, where=str(path), locate=_Locator(path.parent, file))
    except GraphError as err:
        raise ModelError(f"{path}: {err}") from err


def graph_from_proto(proto: onnx.ModelProto, *, base_dir: Path | None = None) -> GraphModel:
    """See `GraphModel.from_proto`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return _build(copy, where="the model", locate=_Locator(base_dir, None))


def _open(path: Path) -> DataFile:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the .onnx file in it")
    try:
        file = DataFile(path.open("rb"), str(path))
    except FileNotFoundError as err:
        folder = path.parent
        hint = nearest(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else ""
        raise ModelError(f"there is no model file {path}{hint}") from err
    except OSError as err:
        raise ModelError(f"cannot read {path}: {err.strerror or err}") from err
    if file.size == 0:
        raise ModelError(f"{path} is empty; export or download the model again")
    return file


def _parse(file: DataFile, path: Path) -> onnx.ModelProto:
    file.handle.seek(0)
    head = file.handle.read(32)
    file.handle.seek(0)
    for position, magic, what in _FOREIGN:
        if head[position:].startswith(magic):
            raise ModelError(f"{path} is not an ONNX model but {what}")
    try:
        if file.size >= _SCAN_FROM:
            return wire.scan(file.handle)
        model: onnx.ModelProto = onnx.ModelProto.FromString(file.handle.read())
    except (DecodeError, wire.MalformedError) as err:
        raise ModelError(
            f"{path} ({file.size} bytes) is not an ONNX model, or it is damaged or cut short: {err}; "
            "export or download it again"
        ) from err
    return model


def _build(proto: onnx.ModelProto, *, where: str, locate: _Locator) -> GraphModel:
    _check_versions(proto, where)
    proto = inline_functions(proto)
    for node in proto.graph.node:
        for attribute in node.attribute:
            for body in bodies.bodies_of_attribute(attribute):
                for tensor in bodies.tensors_of(body):
                    locate.fetch(tensor)
    graph = GraphModel(proto, locate=locate)
    graph.external_data = locate.used_external
    graph.validate()
    return graph


def _check_versions(proto: onnx.ModelProto, where: str) -> None:
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(f"{where} is not an ONNX model: it has no IR version or no graph")
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{where} has IR version {proto.ir_version}, the installed onnx {onnx.__version__} knows up to "
            f"{onnx.IR_VERSION}; upgrade onnx or export with an older IR version"
        )
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if versions and versions[0] > newest:
        raise ModelError(
            f"{where} has opset {versions[0]}, the installed onnx {onnx.__version__} knows up to {newest}; "
            "upgrade onnx or export with an older opset"
        )
    if versions and versions[0] < OLDEST_OPSET:
        raise ModelError(
            f"{where} has opset {versions[0]}, the oldest one supported is {OLDEST_OPSET}; export it with a newer "
            "opset, or convert it with onnx.version_converter"
        )
    if not versions and any(node.domain in ("", "ai.onnx") for node in proto.graph.node):
        raise ModelError(f"{where} does not say which opset it uses; set its opset_import")


class _Locator:
    """Says where the numbers of a tensor are; see `GraphModel`.

    Attributes:
        used_external: Whether any were in an external data file.
    """

    def __init__(self, base_dir: Path | None, own_file: DataFile | None) -> None:
        self.used_external = False
        self._base_dir = base_dir
        self._own_file = own_file
        self._files: dict[Path, DataFile] = {}

    def __call__(self, proto: onnx.TensorProto) -> Weights:
        """The weights of a tensor.

        Raises:
            ModelError: If its external data are missing, too short or outside the model's folder.
        """
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            self.used_external = True
            return self._external(proto)
        if self._own_file is not None and proto.external_data:
            entries = {entry.key: entry.value for entry in proto.external_data}
            if wire.OFFSET_KEY in entries:
                offset, length = map(int, entries[wire.OFFSET_KEY].split(":"))
                return self._region(proto, self._own_file, offset, length)
        return ProtoWeights(proto)

    def fetch(self, proto: onnx.TensorProto) -> None:
        """Bring external data into the tensor itself, where they cannot be left outside."""
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            proto.raw_data = b"".join(self(proto).pieces())
            proto.ClearField("external_data")
            proto.ClearField("data_location")

    def _external(self, proto: onnx.TensorProto) -> Weights:
        entries = {entry.key: entry.value for entry in proto.external_data}
        file = self._data_file(proto.name, entries.get("location", ""))
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(file.size - offset)))
        except ValueError as err:
            raise ModelError(f"weight {proto.name!r}: its place in {file.name} is no number: {err}") from err
        if "length" not in entries:
            length = min(length, dtypes.raw_size(proto.data_type, _elements(proto)))
        return self._region(proto, file, offset, length)

    def _data_file(self, name: str, location: str) -> DataFile:
        if self._base_dir is None:
            raise ModelError(
                f"weight {name!r} is in the external file {location!r}: say in which folder (base_dir) it is"
            )
        folder = self._base_dir.resolve()
        path = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not path.is_relative_to(folder):
            raise ModelError(
                f"weight {name!r} is in {location!r}, which is outside the model's folder {folder}; "
                "move the file (not a link to it) into that folder and save the model with a relative location"
            )
        if path not in self._files:
            try:
                self._files[path] = DataFile(path.open("rb"), str(path))
            except OSError as err:
                raise ModelError(
                    f"weight {name!r} is in {path}, which cannot be read: {err.strerror or err}; "
                    "keep the model's external data files beside it"
                ) from err
        return self._files[path]

    def _region(self, proto: onnx.TensorProto, file: DataFile, offset: int, length: int) -> Weights:
        expected = dtypes.raw_size(proto.data_type, _elements(proto))
        kind = dtypes.type_name(proto.data_type)
        if length != expected or dtypes.to_numpy(proto.data_type) is None:
            raise ModelError(
                f"weight {proto.name!r} ({kind} {list(proto.dims)}) takes {expected} bytes, "
                f"but {file.name} has {length} for it; export the model again"
            )
        if offset < 0 or offset + length > file.size:
            raise ModelError(
                f"weight {proto.name!r} is at bytes {offset} to {offset + length} of {file.name}, which has only "
                f"{file.size}: it was cut short or belongs to another model"
            )
        template = None
        if proto.doc_string or proto.metadata_props:
            template = onnx.TensorProto(doc_string=proto.doc_string or None, metadata_props=proto.metadata_props)
        return FileWeights(file, offset, tuple(proto.dims), proto.data_type, template)


def _elements(proto: onnx.TensorProto) -> int:
    result = 1
    for size in proto.dims:
        result *= size
    return result


# ---- writing -----------------------------------------------------------------------------------


def save_model(
    graph: GraphModel,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    external_threshold: int = 1024,
) -> tuple[Path, ...]:
    """Write a model file, and its external data file where it has one: all of it or nothing.

    Args:
        graph: The model.
        path: The file to write; its folder must exist.
        external_data: Whether to put weights into ``<file name>.data`` beside it. By default if the
            source had external data, or the model is bigger than a protobuf can be (2 GiB).
        external_threshold: Weights of fewer bytes stay in the model file.

    Returns:
        The files written, the model first.

    Raises:
        ModelError: If a file cannot be written, or the model is too big without external data.
        GraphError: If the graph is not valid.
    """
    path = Path(path)
    _check_target(path)
    graph.validate()
    weights = {t.name: weights_of(t) for t in graph.constants()}
    weights = {name: numbers for name, numbers in weights.items() if numbers.streams}
    plan = wire.layout(graph.skeleton(), weights)
    external = plan.size > wire.LIMIT or graph.external_data if external_data is None else external_data
    try:
        with _Transaction() as files:
            if external and any(numbers.nbytes >= external_threshold for numbers in weights.values()):
                plan = _write_external(plan, weights, files, path, external_threshold)
            if plan.size > wire.LIMIT:
                raise ModelError(f"{path} would have {plan.size} bytes, more than 2 GiB; save it with external data")
            with files.open(path) as file:
                wire.write(plan, file)
            return tuple(files.commit())
    except OSError as err:
        raise ModelError(f"cannot write {path}: {err.strerror or err}") from err
    except ValueError as err:
        raise GraphError(f"cannot write {path}: {err}") from err


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ModelError(f"{path} cannot be written: its folder does not exist")


def _write_external(
    plan: wire.Layout, weights: Mapping[str, Weights], files: _Transaction, path: Path, threshold: int
) -> wire.Layout:
    """Write the data file; returns the plan of the model file that refers to it."""
    data_path = path.with_name(path.name + ".data")
    model = plan.model
    inline: dict[str, Weights] = {}
    with files.open(data_path) as file:
        for stub, numbers in plan.tensors:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(stub)
            if numbers is None or numbers.nbytes < threshold:
                if numbers is not None:
                    inline[stub.name] = numbers
                continue
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offset = file.tell()
            wire.write_raw(numbers, file)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", data_path.name), ("offset", offset), ("length", numbers.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
    return wire.layout(model, inline)


class _Transaction(contextlib.AbstractContextManager["_Transaction"]):
    """Files that appear under their names together at the end, or not at all."""

    def __init__(self) -> None:
        self._temporary: dict[Path, Path] = {}

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[IO[bytes]]:
        """Open a temporary file in the folder of `path`."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        self._temporary[path] = temporary
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def commit(self) -> list[Path]:
        """Give the files their names, the last opened one last; returns them, that one first."""
        for path, temporary in self._temporary.items():
            temporary.replace(path)
        done = list(reversed(self._temporary))
        self._temporary.clear()
        return done

    def __exit__(self, *_: object) -> None:
        for temporary in self._temporary.values():
            temporary.unlink(missing_ok=True)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        ModelError: If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as err:
        raise ModelError(f"cannot read {path}: {err.strerror or err}") from err
    return digest.hexdigest()
