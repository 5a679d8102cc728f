"""The file that `pack` writes.

    bytes                     what
    8                         magic number
    4, little endian          version of the format, 1
    8, little endian          length of the header
    as the header says        header: JSON, compressed by zlib
    as the header says        weights, one after the other: table, plain bits, chunks of symbols
    as the header says        the rest: all other bytes of the files in order, as one stream of zlib or xz
    32                        SHA-256 of everything before

The header has the name, size and SHA-256 of each file, and of each weight its name, width, number of codes, layout,
regions and the lengths of its parts. No time, user or machine is in it: the same files give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from onnxq.errors import ModelError
from onnxq.packing.regions import Region, Weight

MAGIC = b"\x8fONNXQ\r\n"
VERSION = 1
BLOCK = 1 << 20
"""Bytes that are read or written at a time."""
_FIXED = struct.Struct("<8sIQ")
_DIGEST = 32
_MOST_HEADER = 1 << 28
_XZ_LIMIT = 1 << 23
"""Bytes of the rest up to which xz is used; it packs better and takes ten times as long as zlib."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a model.

    Attributes:
        name: Relative to the folder of the model.
        size: Its bytes.
        sha256: Of its bytes, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One weight.

    Attributes:
        weight: What and where it is.
        entropy: Bits for each code that its distribution allows.
        plain_bits: See `onnxq.packing.entropy.Coded`.
        lengths: Bytes of its table, its plain bits and each of its chunks.
    """

    weight: Weight
    entropy: float
    plain_bits: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What a packed model says of itself.

    Attributes:
        files: The model and its external data files.
        weights: Those that are coded.
        method: How the rest is compressed: ``xz`` or ``zlib``.
        rest: Bytes of the compressed rest.
    """

    files: tuple[FileEntry, ...]
    weights: tuple[WeightEntry, ...]
    method: str
    rest: int

    def to_bytes(self) -> bytes:
        """The magic number, the version and the header."""
        content = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        packed = zlib.compress(content, 9)
        return _FIXED.pack(MAGIC, VERSION, len(packed)) + packed

    @property
    def rest_size(self) -> int:
        """Bytes of the rest before compression."""
        coded = sum(region.length for entry in self.weights for region in entry.weight.regions)
        return sum(file.size for file in self.files) - coded

    @property
    def payload(self) -> int:
        """Bytes behind the header that are not the digest."""
        return sum(sum(entry.lengths) for entry in self.weights) + self.rest

    def gaps(self) -> Iterator[Region]:
        """The bytes of the files that are no weights, in order."""
        regions = sorted(region for entry in self.weights for region in entry.weight.regions)
        for number, file in enumerate(self.files):
            done = 0
            for region in regions:
                if region.file == number:
                    if region.offset < done or region.offset + region.length > file.size:
                        raise ValueError("the places of the weights do not fit the files")
                    yield Region(number, done, region.offset - done)
                    done = region.offset + region.length
            yield Region(number, done, file.size - done)


def read_header(file: IO[bytes], name: str) -> Header:
    """Check a packed file as a whole and read its header; the file is left behind the header.

    Raises:
        ModelError: If it is no packed file, one of a newer version, damaged or cut short.
    """
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(_FIXED.size)
    if not start.startswith(MAGIC):
        raise ModelError(f"{name} is not a file that 'onnxq pack' has written")
    if len(start) < _FIXED.size:
        raise ModelError(f"{name} has {size} bytes: it was cut short; copy or download it again")
    _, version, length = _FIXED.unpack(start)
    if version != VERSION:
        raise ModelError(f"{name} has version {version} of the format, this onnxq knows {VERSION}; upgrade onnxq")
    _check_digest(file, size, name)
    file.seek(_FIXED.size)
    try:
        if length > min(size, _MOST_HEADER):
            raise ValueError("its header is longer than the file")
        header = _parse(json.loads(zlib.decompress(file.read(length))))
        if _FIXED.size + length + header.payload + _DIGEST != size:
            raise ValueError("its parts do not add up to the file")
        list(header.gaps())
    except (ValueError, TypeError, KeyError, zlib.error) as err:
        raise ModelError(f"{name} is damaged: {err}") from err
    return header


def _check_digest(file: IO[bytes], size: int, name: str) -> None:
    file.seek(0)
    digest, left = hashlib.sha256(), size - _DIGEST
    while left > 0 and (block := file.read(min(BLOCK, left))):
        digest.update(block)
        left -= len(block)
    if left or file.read(_DIGEST) != digest.digest():
        raise ModelError(
            f"{name} ({size} bytes) is damaged or was cut short: its SHA-256 is not what it says; copy or download it "
            "again"
        )


def _parse(content: Any) -> Header:  # noqa: ANN401 - whatever the JSON holds
    files = tuple(FileEntry(str(f["name"]), _count(f["size"]), str(f["sha256"])) for f in content["files"])
    if not files:
        raise ValueError("it holds no file")
    weights = []
    for entry in content["weights"]:
        w = entry["weight"]
        regions = tuple(
            Region(_count(r["file"]), _count(r["offset"]), _count(r["length"])) for r in w["regions"]
        )  # fmt: skip
        if not 1 <= _count(w["bits"]) <= 16 or w["layout"] not in ("pieces", "plain") or not _count(w["count"]):
            raise ValueError(f"weight {w['name']!r} has a form that is not known")
        if any(r.file >= len(files) for r in regions) or not regions:
            raise ValueError(f"weight {w['name']!r} is in no file")
        weight = Weight(str(w["name"]), w["bits"], w["count"], w["layout"], regions)
        lengths = tuple(map(_count, entry["lengths"]))
        if len(lengths) < 2:
            raise ValueError(f"weight {weight.name!r} has no table")
        weights.append(WeightEntry(weight, float(entry["entropy"]), _count(entry["plain_bits"]), lengths))
    if content["method"] not in ("xz", "zlib"):
        raise ValueError(f"its rest is compressed by {content['method']!r}")
    return Header(files, tuple(weights), str(content["method"]), _count(content["rest"]))


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no count")
    return value


# ---- the rest ----------------------------------------------------------------------------------


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def method_for(size: int) -> str:
    """How a rest of so many bytes is compressed."""
    return "xz" if size <= _XZ_LIMIT else "zlib"


def compressed(blocks: Iterator[bytes], method: str) -> Iterator[bytes]:
    """The rest, compressed."""
    coder: _Compressor = lzma.LZMACompressor(check=lzma.CHECK_NONE) if method == "xz" else zlib.compressobj(6)
    for block in blocks:
        yield coder.compress(block)
    yield coder.flush()


class RestReader:
    """Gives the rest back in portions.

    Args:
        blocks: The compressed rest.
        method: How it is compressed.
    """

    def __init__(self, blocks: Iterator[bytes], method: str) -> None:
        self._blocks = blocks
        self._xz = lzma.LZMADecompressor(format=lzma.FORMAT_XZ) if method == "xz" else None
        self._zlib = zlib.decompressobj()
        self._ready = b""

    def read(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes.

        Raises:
            ValueError: If there are not so many.
        """
        while count > 0:
            if not self._ready:
                self._ready = self._next()
            part, self._ready = self._ready[:count], self._ready[count:]
            count -= len(part)
            yield part

    def _next(self) -> bytes:
        while True:
            try:
                data = self._more()
            except (lzma.LZMAError, zlib.error, EOFError) as err:
                raise ValueError(f"the compressed rest is damaged: {err}") from err
            if data:
                return data

    def _more(self) -> bytes:
        if self._xz is not None:
            block = next(self._blocks, b"") if self._xz.needs_input else b""
            if self._xz.needs_input and not block:
                raise EOFError("it has no end")
            return self._xz.decompress(block, BLOCK)
        if self._zlib.eof:
            raise EOFError("there is too little of it")
        block = self._zlib.unconsumed_tail or next(self._blocks, b"")
        data = self._zlib.decompress(block, BLOCK) if block else self._zlib.flush()
        if not block and not data:
            raise EOFError("it has no end")
        return data


# ---- files -------------------------------------------------------------------------------------


def blocks_of(file: IO[bytes], offset: int, length: int) -> Iterator[bytes]:
    """A region of a file, a block at a time.

    Raises:
        ModelError: If the file ends before.
    """
    while length > 0:
        file.seek(offset)
        block = file.read(min(BLOCK, length))
        if not block:
            raise ModelError(f"{Path(file.name).name} was cut short while it was read")
        offset, length = offset + len(block), length - len(block)
        yield block
