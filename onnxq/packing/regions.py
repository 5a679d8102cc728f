"""Where in the files of a model the codes of its weights are.

Found are weights in the pieces of `onnxq.algos.weight.packing`, by the operators that decode them, and all other
initializers of 2, 4, 8 and 16 bit integers. Nothing else of the model is looked at, so any model will do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs in the dev extra
from numpy.typing import NDArray

from onnxq._graph import wire
from onnxq.algos.weight import packing
from onnxq.errors import ModelError

Layout = Literal["pieces", "plain"]
_SMALLEST = 256
"""Integers in fewer bytes are left to the compression of the rest."""
_PLAIN = {"INT8": 8, "UINT8": 8, "INT16": 16, "UINT16": 16, "INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """Bytes ``offset`` to ``offset + length`` of file number ``file``."""

    file: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Weight:
    """The codes of one weight.

    Attributes:
        name: Its name.
        bits: Width of a code, 1 to 16.
        count: How many codes.
        layout: ``pieces`` of `onnxq.algos.weight.packing`, or ``plain``: as ONNX stores integers.
        regions: Where the pieces are, or all of it.
    """

    name: str
    bits: int
    count: int
    layout: Layout
    regions: tuple[Region, ...]

    def read(self, parts: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint16]:
        """The codes in the bytes of the regions, as unsigned numbers."""
        arrays = list(parts)
        if self.layout == "pieces":
            return packing.unpack(arrays, self.bits, self.count)
        (data,) = arrays
        if self.bits == 16:
            return data.view("<u2").astype(np.uint16)
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        spread = (data[:, None] >> shifts) & np.uint8((1 << self.bits) - 1)
        return spread.reshape(-1)[: self.count].astype(np.uint16)

    def write(self, codes: NDArray[np.uint16]) -> list[bytes]:
        """The bytes of the regions that hold these codes."""
        if self.layout == "pieces":
            pieces = packing.pack(codes, self.bits)
            return [piece.astype(piece.dtype.newbyteorder("<")).tobytes() for piece in pieces]
        if self.bits == 16:
            return [codes.astype("<u2").tobytes()]
        each = 8 // self.bits
        padded = np.zeros(-(-codes.size // each) * each, np.uint8)
        padded[: codes.size] = codes
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        return [np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1).astype(np.uint8).tobytes()]


@dataclass(frozen=True, slots=True)
class Scanned:
    """A model and where its weights are.

    Attributes:
        names: Names of its files relative to its folder, the model first.
        weights: Their codes; no two regions have a byte in common.
    """

    names: tuple[str, ...]
    weights: tuple[Weight, ...]


def scan(path: Path) -> Scanned:
    """Find the files of a model and the codes in them.

    Raises:
        ModelError: If it is no model, or an external data file is missing or outside the model's folder.
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ModelError(f"{path} is empty; export or download the model again")
            model = wire.scan(file, smallest=1)
            names = (path.name, *_external_names(model, path))
            return Scanned(names, tuple(_Finder(model, names, file).weights()))
    except (DecodeError, wire.MalformedError) as err:
        raise ModelError(f"{path} is not an ONNX model, or it is damaged or cut short: {err}") from err
    except OSError as err:
        raise ModelError(f"cannot read {path}: {err.strerror or err}") from err


def _external_names(model: onnx.ModelProto, path: Path) -> list[str]:
    folder = path.parent.resolve()
    found: dict[str, None] = {}
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = _entries(tensor).get("location", "")
        inside(folder, location, what=f"weight {tensor.name!r} of {path}")
        if not (folder / location).is_file():
            raise ModelError(f"weight {tensor.name!r} of {path} is in {location!r}, which is missing beside the model")
        found[PurePosixPath(location).as_posix()] = None
    found.pop(path.name, None)  # data behind the model in its own file
    return list(found)


def inside(folder: Path, location: str, *, what: str) -> Path:
    """The path of a file in a folder.

    Raises:
        ModelError: If it would be outside.
    """
    path = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise ModelError(f"{what} is in {location!r}, which is not a path inside the model's folder")
    return path


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        attributes = [a for node in nodes for a in node.attribute]
        graphs, nodes = [], []
        for attribute in attributes:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
            graphs += [attribute.g] if attribute.HasField("g") else attribute.graphs


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@dataclass
class _Finder:
    """Looks for codes in one model."""

    model: onnx.ModelProto
    names: tuple[str, ...]
    file: IO[bytes]
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        for tensor in graph.initializer:
            region = self._region(tensor)
            if region is not None:
                self.tensors[tensor.name], self.regions[tensor.name] = tensor, region
        for node in graph.node:
            self.makers |= dict.fromkeys(node.output, node)
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def _region(self, tensor: onnx.TensorProto) -> Region | None:
        entries = _entries(tensor)
        try:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                number = self.names.index(PurePosixPath(entries.get("location", "")).as_posix())
                return Region(number, int(entries.get("offset", "0")), int(entries["length"]))
            offset, length = map(int, entries[wire.OFFSET_KEY].split(":"))
        except (KeyError, ValueError):
            return None
        return Region(0, offset, length)

    def weights(self) -> Iterator[Weight]:
        """The weights that are found, without those whose bytes others have, too."""
        seen: set[str] = set()
        found: list[Weight] = []
        for weight, names in (*self._packed(), *self._integers()):
            if seen.isdisjoint(names):
                seen |= set(names)
                found.append(weight)
        yield from disjoint(found)

    def _packed(self) -> Iterator[tuple[Weight, list[str]]]:
        for node in self.model.graph.node:
            down = self.makers.get(node.input[0]) if node.op_type == "Reshape" else None
            amounts = self._numbers(down.input[1]) if down is not None and down.op_type == "BitShift" else None
            if down is None or amounts is None:
                continue
            joined = self.makers.get(down.input[0])
            tops = joined.input if joined is not None and joined.op_type == "Concat" else down.input[:1]
            widths = [8 - int(amount) for amount in amounts.reshape(-1)]
            names = [top if width == 8 else self._stored(top) for top, width in zip(tops, widths, strict=False)]
            if len(tops) == len(widths) and (found := self._weight(names, widths, node)):
                yield found, names

    def _stored(self, top: str) -> str:
        maker = self.makers.get(top)
        return str(maker.input[0]) if maker is not None and maker.op_type == "BitShift" else ""

    def _weight(self, names: list[str], widths: list[int], node: onnx.NodeProto) -> Weight | None:
        bits = sum(widths)
        if not 1 <= bits <= 16 or list(packing.piece_widths(bits)) != widths:
            return None
        if any(n not in self.regions or self.tensors[n].data_type != onnx.TensorProto.UINT8 for n in names):
            return None
        regions = tuple(self.regions[name] for name in names)
        count = self._count(node, regions[0].length * 8 // widths[0])
        total = packing.padded_count(count, bits)
        if not total or any(r.length != total * w // 8 for r, w in zip(regions, widths, strict=True)):
            return None
        return Weight(re.sub(r"_packed\d*$", "", names[0]), bits, count, "pieces", regions)

    def _count(self, node: onnx.NodeProto, padded: int) -> int:
        """How many codes a weight has, as the last Reshape of its decoder says."""
        for _ in range(6):
            if node.op_type == "Reshape":
                shape = self._numbers(node.input[1])
                count = math.prod(int(d) for d in shape) if shape is not None else 0
                if padded - 8 < count <= padded:
                    return count
            readers = self.readers.get(node.output[0], [])
            if len(readers) != 1:
                break
            node = readers[0]
        return padded

    def _integers(self) -> Iterator[tuple[Weight, list[str]]]:
        for name, region in self.regions.items():
            tensor = self.tensors[name]
            bits = _PLAIN.get(onnx.TensorProto.DataType.Name(tensor.data_type), 0)
            count = math.prod(tensor.dims)
            if bits and region.length >= _SMALLEST and region.length == -(-count * bits // 8):
                yield Weight(re.sub(r"_packed\d*$", "", name), bits, count, "plain", (region,)), [name]

    def _numbers(self, name: str) -> NDArray[np.generic] | None:
        """The numbers of a small constant of the model file."""
        region = self.regions.get(name)
        if region is None or region.file or region.length > _SMALLEST:
            return None
        self.file.seek(region.offset)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.tensors[name].data_type)
        return np.frombuffer(self.file.read(region.length), dtype)


def disjoint(weights: list[Weight]) -> list[Weight]:
    """Weights in the order of their first bytes, without those that have bytes which others have."""
    ends: dict[int, int] = {}
    dropped: set[int] = set()
    for region, number in sorted((region, n) for n, weight in enumerate(weights) for region in weight.regions):
        if region.offset < ends.get(region.file, 0):
            dropped.add(number)
        ends[region.file] = max(ends.get(region.file, 0), region.offset + region.length)
    kept = [weight for number, weight in enumerate(weights) if number not in dropped]
    return sorted(kept, key=lambda weight: weight.regions[0])
