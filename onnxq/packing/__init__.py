"""Packing models for shipping: the codes of weights in about as many bits as their entropy says, the rest compressed.

    report = pack("model.onnx", "model.onnxq")
    unpack("model.onnxq", "model.onnx")

gives back the same bytes, of any ONNX model. What it gains depends on the model: weights of few bits, above all those
of mixed width, whose codes are spread unevenly, become much smaller; floats hardly do. External data files are packed
with the model and come back under their names beside the new one, because the model refers to them by these names.
Memory is bounded by the largest weight, time grows with the bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from onnxq.errors import ModelError
from onnxq.packing import container, entropy
from onnxq.packing.container import FileEntry, Header, WeightEntry
from onnxq.packing.regions import Weight, inside, scan

__all__ = ["PackReport", "PackedWeight", "pack", "unpack"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """What became of one weight.

    Attributes:
        name: Its name.
        bits: Width of its codes.
        count: How many codes.
        entropy: Shannon's entropy of its codes, bits for each.
        before: Bytes in the model.
        after: Bytes in the packed file.
    """

    name: str
    bits: int
    count: int
    entropy: float
    before: int
    after: int

    @property
    def bound(self) -> float:
        """Bytes that its entropy allows, without a word on the distribution."""
        return self.entropy * self.count / 8


@dataclass(frozen=True, slots=True)
class PackReport:
    """What `pack` did.

    Attributes:
        path: The packed file.
        files: Names of the files in it, the model first.
        weights: Those whose codes were coded.
        before: Bytes of the files.
        after: Bytes of the packed file.
        rest_before: Bytes of the files that are no codes.
        rest_after: What they take in the packed file.
    """

    path: Path
    files: tuple[str, ...]
    weights: tuple[PackedWeight, ...]
    before: int
    after: int
    rest_before: int
    rest_after: int

    @property
    def ratio(self) -> float:
        """How many times smaller the packed file is."""
        return self.before / self.after

    def total(self) -> PackedWeight:
        """All codes together; the width and the entropy are those of the mean code."""
        count = sum(w.count for w in self.weights)
        bits = sum(w.bits * w.count for w in self.weights)
        information = 8 * sum(w.bound for w in self.weights)
        return PackedWeight(
            "all codes", round(bits / max(count, 1)), count, information / max(count, 1),
            sum(w.before for w in self.weights), sum(w.after for w in self.weights),
        )  # fmt: skip

    def to_dict(self) -> dict[str, object]:
        """For JSON."""

        def one(w: PackedWeight) -> dict[str, object]:
            return {
                "name": w.name, "bits": w.bits, "codes": w.count, "entropy": w.entropy, "before": w.before,
                "bound": w.bound, "after": w.after,
            }  # fmt: skip

        return {
            "path": str(self.path),
            "files": list(self.files),
            "before": self.before,
            "after": self.after,
            "ratio": self.ratio,
            "rest": {"before": self.rest_before, "after": self.rest_after},
            "total": one(self.total()),
            "weights": [one(w) for w in self.weights],
        }


def pack(model: PathLike, output: PathLike) -> PackReport:
    """Pack a model with its external data files into one file.

    Args:
        model: Any ONNX model.
        output: The file to write; nothing of it is left if packing fails.

    Raises:
        ModelError: If the model cannot be read, the output cannot be written, or constriction is not installed.
    """
    source, target = Path(model), Path(output)
    _check_output(target)
    if not source.is_file():
        raise ModelError(f"there is no model file {source}")
    found = scan(source)
    with contextlib.ExitStack() as stack:
        try:
            files = [stack.enter_context((source.parent / name).open("rb")) for name in found.names]
            weights = stack.enter_context(_Temporary(target))
            rest = stack.enter_context(_Temporary(target))
            header = _code(files, found.names, found.weights, weights.file, rest.file)
            result = stack.enter_context(_Temporary(target))
            size = _assemble(header, weights.file, rest.file, result.file)
            result.keep(target)
        except OSError as err:
            raise ModelError(f"cannot pack {source} into {target}: {err.strerror or err}") from err
    return _report(header, target, size)


def _code(
    files: Sequence[IO[bytes]], names: Sequence[str], weights: Sequence[Weight], parts: IO[bytes], rest: IO[bytes]
) -> Header:
    """Write the coded weights and the compressed rest; returns what is said of them."""
    entries = []
    for weight in weights:
        regions = [np.frombuffer(b"".join(container.blocks_of(files[r.file], r.offset, r.length)), np.uint8)
                   for r in weight.regions]  # fmt: skip
        codes = weight.read(regions)
        if any(bytes(a) != b for a, b in zip(regions, weight.write(codes), strict=True)):
            continue  # bits that no code has are set: they go with the rest
        coded = entropy.encode(codes, weight.bits)
        lengths = tuple(map(len, entropy.parts(coded)))
        parts.writelines(entropy.parts(coded))
        entries.append(WeightEntry(weight, entropy.entropy(codes), coded.plain_bits, lengths))
    described = tuple(FileEntry(n, f.seek(0, 2), _digest(f)) for n, f in zip(names, files, strict=True))
    header = Header(described, tuple(entries), "xz", 0)
    method = container.method_for(header.rest_size)
    blocks = (b for gap in header.gaps() for b in container.blocks_of(files[gap.file], gap.offset, gap.length))
    rest.writelines(container.compressed(blocks, method))
    return replace(header, method=method, rest=rest.tell())


def _assemble(header: Header, weights: IO[bytes], rest: IO[bytes], out: IO[bytes]) -> int:
    digest = hashlib.sha256()
    pieces: list[Iterator[bytes]] = [iter([header.to_bytes()])]
    pieces += [container.blocks_of(part, 0, part.tell()) for part in (weights, rest)]
    for piece in pieces:
        for block in piece:
            digest.update(block)
            out.write(block)
    out.write(digest.digest())
    return out.tell()


def _report(header: Header, path: Path, size: int) -> PackReport:
    weights = tuple(
        PackedWeight(
            e.weight.name, e.weight.bits, e.weight.count, e.entropy, sum(r.length for r in e.weight.regions),
            sum(e.lengths),
        )
        for e in header.weights
    )  # fmt: skip
    before = sum(file.size for file in header.files)
    names = tuple(file.name for file in header.files)
    return PackReport(path, names, weights, before, size, header.rest_size, header.rest)


def unpack(packed: PathLike, output: PathLike) -> tuple[Path, ...]:
    """Write the model that a packed file holds, and its external data files beside it.

    Args:
        packed: A file that `pack` has written.
        output: The model file to write. External data files get the names they had, in its folder. Nothing is left
            of any of them if unpacking fails.

    Returns:
        The files written, the model first.

    Raises:
        ModelError: If the file is damaged or no packed model, a file cannot be written, or constriction is not
            installed.
    """
    source, target = Path(packed), Path(output)
    _check_output(target)
    if not source.is_file():
        raise ModelError(f"there is no packed file {source}")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(source.open("rb"))
            header = container.read_header(file, str(source))
            paths = _paths(header, target)
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            results = [stack.enter_context(_Temporary(path)) for path in paths]
            _restore(header, file, [r.file for r in results], str(source))
            for result, path in zip(reversed(results), reversed(paths), strict=True):
                result.keep(path)
        except OSError as err:
            raise ModelError(f"cannot unpack {source} to {target}: {err.strerror or err}") from err
    return paths


def _paths(header: Header, target: Path) -> tuple[Path, ...]:
    what = "an external data file of the packed model"
    others = [inside(target.parent, file.name, what=what) for file in header.files[1:]]
    if len({target.resolve(), *others}) <= len(others):
        raise ModelError(f"the packed model has an external data file of the name {target.name!r}; choose another name")
    return (target, *(target.parent / file.name for file in header.files[1:]))


def _restore(header: Header, file: IO[bytes], outputs: Sequence[IO[bytes]], name: str) -> None:
    try:
        for entry in header.weights:
            _restore_weight(entry, file, outputs)
        blocks = container.blocks_of(file, file.tell(), header.rest)
        rest = container.RestReader(blocks, header.method)
        for gap in header.gaps():
            outputs[gap.file].seek(gap.offset)
            outputs[gap.file].writelines(rest.read(gap.length))
    except ValueError as err:
        raise ModelError(f"{name} is damaged: {err}") from err
    for described, output in zip(header.files, outputs, strict=True):
        if output.seek(0, 2) != described.size or _digest(output) != described.sha256:
            raise ModelError(
                f"{name}: {described.name} comes out with another SHA-256 than it had; the file is damaged"
            )


def _restore_weight(entry: WeightEntry, file: IO[bytes], outputs: Sequence[IO[bytes]]) -> None:
    table, plain, *chunks = (file.read(length) for length in entry.lengths)
    weight = entry.weight
    try:
        codes = entropy.decode(entropy.Coded(entry.plain_bits, table, plain, tuple(chunks)), weight.bits, weight.count)
    except ModelError as err:
        raise ModelError(f"weight {weight.name!r}: {err}") from err
    for region, data in zip(weight.regions, weight.write(codes), strict=True):
        if len(data) != region.length:
            raise ValueError(f"weight {weight.name!r} does not fit its place")
        outputs[region.file].seek(region.offset)
        outputs[region.file].write(data)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(container.BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ModelError(f"{path} cannot be written: its folder does not exist")


class _Temporary(contextlib.AbstractContextManager["_Temporary"]):
    """A file beside another one, that takes its name when all is well and is gone otherwise.

    Attributes:
        file: Open for reading and writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        self.file: IO[bytes] = self._path.open("x+b")

    def keep(self, path: Path) -> None:
        """Give it its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._path.replace(path)

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self._path.unlink(missing_ok=True)
