"""Messages between onnxq and the training worker: a JSON header and raw arrays over a pair of pipes.

A message on the wire is 16 bytes (magic, length of the header, length of the arrays), the header, and the
bytes of the arrays in the order of the header. Nothing is ever unpickled or evaluated. This module is imported by
the worker too, which sees no other part of onnxq than `onnxq.errors`.
"""

from __future__ import annotations

import json
import math
import os
import select
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import TrainingError

__all__ = ["Channel", "Message", "encode"]

_MAGIC = b"oqw1"
_PREFIX = struct.Struct("<4sIQ")
_MOST_HEADER = 1 << 28
_JOIN_BELOW = 1 << 16
_KINDS = "biuf"
_INTERVAL = 0.5


@dataclass(frozen=True)
class Message:
    """One request or one answer.

    Attributes:
        kind: What is asked for, or what the answer is.
        fields: Values that JSON can hold.
        arrays: Arrays of numbers or booleans, of any shape, by name.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Channel:
    """Sends and receives messages over two files without buffers.

    Args:
        source: What is read from.
        sink: What is written to.
        waiting: Called twice a second while the other side does not move, with the seconds waited for
            this message; raises to give up. Without it, and on Windows, waiting ends with the other process only.
    """

    def __init__(self, source: FileIO, sink: FileIO, waiting: Callable[[float], None] | None = None) -> None:
        self._source = source
        self._sink = sink
        self._waiting = waiting if os.name == "posix" else None
        if self._waiting is not None:
            os.set_blocking(source.fileno(), False)
            os.set_blocking(sink.fileno(), False)

    def send(self, message: Message) -> None:
        """Write a message.

        Raises:
            TrainingError: If an array holds something else than numbers; nothing is written then.
            BrokenPipeError: If the other side is gone.
        """
        self.write(encode(message))

    def write(self, parts: Sequence[memoryview]) -> None:
        """Write an encoded message.

        Raises:
            BrokenPipeError: If the other side is gone.
        """
        if sum(len(part) for part in parts) < _JOIN_BELOW:
            parts = [memoryview(b"".join(parts))]
        waited = 0.0
        for part in parts:
            while part:
                count = self._sink.write(part)
                if count is None:
                    waited = self._wait([], [self._sink], waited)
                else:
                    part = part[count:]

    def receive(self) -> Message | None:
        """Read a message; None where the other side is gone and nothing is left to read.

        Raises:
            TrainingError: If what arrives is not a message.
            EOFError: If it ends in the middle of a message.
        """
        start = bytearray(_PREFIX.size)
        if not self._fill(memoryview(start), may_end=True):
            return None
        magic, header_bytes, array_bytes = _PREFIX.unpack(start)
        if magic != _MAGIC or header_bytes > _MOST_HEADER:
            raise TrainingError(f"the pipe to the training worker holds {bytes(start)!r}, which starts no message")
        header = bytearray(header_bytes)
        self._fill(memoryview(header))
        kind, fields, arrays = _decode(header, array_bytes)
        for array in arrays.values():
            if array.size:
                self._fill(array.reshape(-1).view(np.uint8).data)
        return Message(kind, fields, arrays)

    def _fill(self, buffer: memoryview, *, may_end: bool = False) -> bool:
        waited = 0.0
        filled = 0
        while filled < len(buffer):
            if self._waiting is not None:
                waited = self._wait([self._source], [], waited)
            count = self._source.readinto(buffer[filled:])
            if count == 0:
                if may_end and filled == 0:
                    return False
                raise EOFError
            filled += count or 0
        return True

    def _wait(self, read: list[FileIO], write: list[FileIO], waited: float) -> float:
        """Wait for one of the files; time in which the process is suspended does not count."""
        while not any(select.select(read, write, [], _INTERVAL)):
            waited += _INTERVAL
            if self._waiting is not None:
                self._waiting(waited)
        return waited


def encode(message: Message) -> list[memoryview]:
    """The bytes of a message, in parts that are not copied.

    Raises:
        TrainingError: If an array holds something else than numbers.
    """
    described, bodies = [], []
    for name, array in message.arrays.items():
        array = np.asarray(array)
        if array.dtype.kind not in _KINDS:
            raise TrainingError(f"{name!r} is an array of {array.dtype}; give numbers or booleans")
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
        described.append([name, array.dtype.str, array.shape])
        if array.size:
            bodies.append(array.reshape(-1).view(np.uint8).data)
    header = json.dumps([message.kind, dict(message.fields), described], allow_nan=False).encode()
    prefix = _PREFIX.pack(_MAGIC, len(header), sum(len(body) for body in bodies))
    return [memoryview(prefix + header), *bodies]


def _decode(header: bytearray, array_bytes: int) -> tuple[str, dict[str, Any], dict[str, NDArray[Any]]]:
    """The kind, the fields and arrays that are still to be filled."""
    try:
        kind, fields, described = json.loads(header)
        types = [(str(name), np.dtype(code), tuple(int(n) for n in shape)) for name, code, shape in described]
    except (ValueError, TypeError) as err:
        raise TrainingError(f"a message of the training worker has a header that cannot be read: {err}") from err
    known = all(dtype.kind in _KINDS and min(shape, default=0) >= 0 for _, dtype, shape in types)
    total = sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in types)
    if not known or total != array_bytes or not isinstance(kind, str) or not isinstance(fields, dict):
        raise TrainingError(
            f"a message of the training worker describes arrays of {total} bytes and announces {array_bytes}"
        )
    return kind, fields, {name: np.empty(shape, dtype) for name, dtype, shape in types}
