"""The bytes of a model file, read and written without holding its weights in memory.

`scan` reads a model file but leaves big `raw_data` fields out and notes where in the file they are;
`write` serializes a model and fetches one weight at a time. Both know only what they need of the
protobuf wire format: fields are a tag (number << 3 | wire type) followed by a value, and nested
messages are length-delimited.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import onnx

from onnxq._graph.weights import Weights

OFFSET_KEY = "onnxq.offset"
"""Key of the `external_data` entry ``offset:length`` that says where in the model file the numbers are."""
LIMIT = (1 << 31) - 1
"""Protobuf's limit for one message, in bytes."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_RAW_DATA, _EXTERNAL_DATA = 9, 13
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR = "model", "graph", "node", "attribute", "tensor"
_NESTED = {
    _MODEL: {7: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR},
    _TENSOR: {},
}
_BIG = 1 << 14


class MalformedError(Exception):
    """The bytes are not a protobuf message."""


class _Field(NamedTuple):
    number: int
    wire_type: int
    start: int  # of the tag
    value: int  # first byte of the value
    end: int


def scan(file: IO[bytes], *, smallest: int = _BIG) -> onnx.ModelProto:
    """Parse a model; tensors of the main graph with big raw data get an `OFFSET_KEY` entry instead.

    Args:
        file: The model.
        smallest: Bytes from which on raw data are big.

    Raises:
        MalformedError: If the file is no protobuf message.
        google.protobuf.message.DecodeError: If it is one, but no model.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model: onnx.ModelProto = onnx.ModelProto.FromString(b"".join(_strip(data, 0, len(data), _MODEL, smallest)))
        return model


def _strip(data: mmap.mmap, start: int, end: int, kind: str, smallest: int) -> Iterator[bytes]:
    """The message in ``data[start:end]`` without big raw data."""
    nested = _NESTED[kind]
    done = start
    for field in _fields(data, start, end):
        if field.wire_type != _LENGTH or field.end - field.value < smallest:
            continue
        if kind == _TENSOR and field.number == _RAW_DATA:
            replacement = _offset_entry(field.value, field.end - field.value)
        elif field.number in nested:
            message = b"".join(_strip(data, field.value, field.end, nested[field.number], smallest))
            replacement = _tag(field.number, _LENGTH) + _varint(len(message)) + message
        else:
            continue
        yield data[done : field.start]
        yield replacement
        done = field.end
    yield data[done:end]


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[_Field]:
    while position < end:
        start = position
        tag, position = _read_varint(data, position, end)
        wire_type = tag & 7
        if wire_type == _LENGTH:
            length, position = _read_varint(data, position, end)
            stop = position + length
        elif wire_type == _VARINT:
            _, stop = _read_varint(data, position, end)
        elif wire_type in (_FIXED64, _FIXED32):
            stop = position + (8 if wire_type == _FIXED64 else 4)
        else:
            raise MalformedError(f"unknown wire type {wire_type} at byte {start}")
        if stop > end or tag >> 3 == 0:
            raise MalformedError(f"a field at byte {start} does not fit into its message")
        yield _Field(tag >> 3, wire_type, start, position, stop)
        position = stop


def _read_varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise MalformedError(f"a number at byte {position} does not end")


def _varint(number: int) -> bytes:
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _offset_entry(offset: int, length: int) -> bytes:
    entry: bytes = onnx.StringStringEntryProto(key=OFFSET_KEY, value=f"{offset}:{length}").SerializeToString()
    return _tag(_EXTERNAL_DATA, _LENGTH) + _varint(len(entry)) + entry


# ---- writing -----------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How a model will be written.

    Attributes:
        model: The model without initializers.
        tensors: Stub and numbers of each initializer; None where the stub has all there is to write.
        size: Bytes of the whole file.
    """

    model: onnx.ModelProto
    tensors: tuple[tuple[onnx.TensorProto, Weights | None], ...]
    size: int


def layout(skeleton: onnx.ModelProto, weights: Mapping[str, Weights]) -> Layout:
    """Plan the writing of `skeleton`, whose initializers are taken out of it.

    Args:
        skeleton: A model.
        weights: The numbers of the initializers that are stubs in `skeleton`, by name.
    """
    stubs = onnx.GraphProto(initializer=skeleton.graph.initializer).initializer
    skeleton.graph.ClearField("initializer")
    tensors = tuple((stub, weights.get(stub.name)) for stub in stubs)
    graph = skeleton.graph.ByteSize() + sum(_framed(_tensor_size(t, w)) for t, w in tensors)
    size = skeleton.ByteSize() - _framed(skeleton.graph.ByteSize()) + _framed(graph)
    return Layout(skeleton, tensors, size)


def _framed(length: int) -> int:
    return 1 + len(_varint(length)) + length


def _tensor_size(stub: onnx.TensorProto, weights: Weights | None) -> int:
    return int(stub.ByteSize()) + (0 if weights is None else _framed(weights.nbytes))


def write(plan: Layout, file: IO[bytes]) -> None:
    """Write a model, byte for byte what protobuf would write in its deterministic form.

    Raises:
        ValueError: If the numbers of a weight are not as many as its shape says.
    """
    model, graph = plan.model, plan.model.graph
    first, last = _split(graph, 5)
    length = len(first) + len(last) + sum(_framed(_tensor_size(t, w)) for t, w in plan.tensors)
    shell = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name != "graph":
            _put(shell, descriptor.name, value)
    before, after = _split(shell, 7)
    file.write(before + _tag(7, _LENGTH) + _varint(length) + first)
    for stub, weights in plan.tensors:
        _write_tensor(stub, weights, file)
    file.write(last + after)


def _write_tensor(stub: onnx.TensorProto, weights: Weights | None, file: IO[bytes]) -> None:
    before, after = _split(stub, _RAW_DATA)
    file.write(_tag(5, _LENGTH) + _varint(_tensor_size(stub, weights)) + before)
    if weights is not None:
        file.write(_tag(_RAW_DATA, _LENGTH) + _varint(weights.nbytes))
        write_raw(weights, file)
    file.write(after)


def write_raw(weights: Weights, file: IO[bytes]) -> None:
    """Write the numbers of one weight, a piece at a time.

    Raises:
        ValueError: If there are more or fewer bytes than its shape says.
    """
    written = 0
    for piece in weights.pieces():
        file.write(piece)
        written += len(piece)
    if written != weights.nbytes:
        raise ValueError(f"a weight of {weights.nbytes} bytes has {written}")


def _split(message: Any, number: int) -> tuple[bytes, bytes]:  # noqa: ANN401 - any protobuf message
    """A message serialized in two parts: fields before `number`, and the others."""
    before, after = type(message)(), type(message)()
    for descriptor, value in message.ListFields():
        _put(before if descriptor.number < number else after, descriptor.name, value)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _put(message: Any, name: str, value: Any) -> None:  # noqa: ANN401 - any protobuf message and field
    if isinstance(value, int | str | bytes | float):
        setattr(message, name, value)
    else:
        getattr(message, name).extend(value)
