"""What a record says of pruning: which channels layers have lost, and which weights are 0.

A `PruneRecord` with producers and consumers stands for channels: the attributes of a producer are ``type`` (of its
operator), ``begin`` and ``end`` (the range of its output channels) and ``prune_index`` (those that were removed); a
consumer reads channels ``begin`` to ``end``. One with `selective_prune` stands for a sparse weight: ``mask_shape``, and
``selective_mask``, its bits in order, eight to a number, the first bit the highest, padded with zeros.

Source: AMCT's published record of pruning (specs of AMCT, sections 1.11 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import Message  # type: ignore[import-untyped] # no stubs in the dev extra
from numpy.typing import NDArray

from onnxq.dialects.amct.proto.scale_offset_record_pb2 import AttrProto, PruneRecord
from onnxq.errors import RecordError


@dataclass(frozen=True, slots=True)
class PrunedNode:
    """A layer with a range of channels.

    Attributes:
        name: Its name.
        op_type: Its operator type.
        begin: First channel of the range.
        end: The channel behind the last one.
        removed: Which channels it lost, ascending; empty for a consumer.
    """

    name: str
    op_type: str
    begin: int
    end: int
    removed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PrunedChannels:
    """Channels that were removed together.

    Attributes:
        producers: The layers that computed them.
        consumers: The layers that read them.
    """

    producers: tuple[PrunedNode, ...]
    consumers: tuple[PrunedNode, ...] = ()


@dataclass(frozen=True, eq=False)
class SelectiveMask:
    """The mask of a sparse weight.

    Attributes:
        name: Name of the layer.
        mask: True where a weight is kept, in the weight's shape.
    """

    name: str
    mask: NDArray[np.bool_]


def to_messages(found: Sequence[PrunedChannels | SelectiveMask]) -> tuple[Message, ...]:
    """The PruneRecord messages of a record."""
    return tuple(_channels(f) if isinstance(f, PrunedChannels) else _selective(f) for f in found)


def from_messages(messages: Sequence[Message]) -> tuple[PrunedChannels | SelectiveMask, ...]:
    """What the PruneRecord messages of a record say.

    Raises:
        RecordError: If an attribute is missing or does not fit; the message names the layer.
    """
    return tuple(found for message in messages for found in _read(message))


# ---- writing


def _channels(found: PrunedChannels) -> Message:
    message = PruneRecord()
    for node in found.producers:
        _node(message.producer.add(name=node.name), node)
    for node in found.consumers:
        _node(message.consumer.add(name=node.name), node)
    return message


def _node(message: Message, node: PrunedNode) -> None:
    message.attr.add(name="type", type=AttrProto.STRING, s=node.op_type.encode())
    message.attr.add(name="begin", type=AttrProto.INT, i=node.begin)
    message.attr.add(name="end", type=AttrProto.INT, i=node.end)
    if node.removed:
        message.attr.add(name="prune_index", type=AttrProto.INTS, ints=node.removed)


def _selective(found: SelectiveMask) -> Message:
    message = PruneRecord()
    node = message.selective_prune
    node.name = found.name
    node.attr.add(name="mask_shape", type=AttrProto.INTS, ints=found.mask.shape)
    packed = np.packbits(found.mask.reshape(-1)).astype(np.int64)
    node.attr.add(name="selective_mask", type=AttrProto.INTS, ints=packed.tolist())
    return message


# ---- reading


def _read(message: Message) -> Iterator[PrunedChannels | SelectiveMask]:
    if message.producer or message.consumer:
        producers, consumers = (
            tuple(_read_node(node) for node in nodes) for nodes in (message.producer, message.consumer)
        )
        yield PrunedChannels(producers, consumers)
    if message.HasField("selective_prune"):
        yield _read_mask(message.selective_prune)


def _attribute(node: Message, name: str, kind: str, default: object = None) -> Message:
    found = next((attr for attr in node.attr if attr.name == name), None)
    if found is None and default is not None:
        return AttrProto(ints=[])
    if found is None or found.type != AttrProto.AttrType.Value(kind):
        what = "is missing" if found is None else f"is {AttrProto.AttrType.Name(found.type)}"
        raise RecordError(f"prune_record of layer {node.name!r}: {name} {what}; must be of type {kind}")
    return found


def _read_node(node: Message) -> PrunedNode:
    begin, end = _attribute(node, "begin", "INT").i, _attribute(node, "end", "INT").i
    removed = tuple(_attribute(node, "prune_index", "INTS", ()).ints)
    if not 0 <= begin < end:
        raise RecordError(f"prune_record of layer {node.name!r}: its channels go from {begin} to {end}")
    if any(not begin <= index < end for index in removed):
        raise RecordError(f"prune_record of layer {node.name!r}: prune_index leaves channels {begin} to {end - 1}")
    return PrunedNode(node.name, _attribute(node, "type", "STRING").s.decode(), begin, end, removed)


def _read_mask(node: Message) -> SelectiveMask:
    shape = tuple(_attribute(node, "mask_shape", "INTS").ints)
    packed = np.array(_attribute(node, "selective_mask", "INTS").ints, np.int64)
    count = math.prod(shape)
    where = f"prune_record of layer {node.name!r}"
    if any(size < 1 for size in shape) or packed.size != -(-count // 8):
        raise RecordError(f"{where}: selective_mask has {packed.size} numbers, which is no mask of shape {shape}")
    if packed.size and not 0 <= packed.min() <= packed.max() <= 255:
        raise RecordError(f"{where}: selective_mask holds eight bits in each number, 0 to 255")
    bits = np.unpackbits(packed.astype(np.uint8), count=count).astype(np.bool_)
    return SelectiveMask(node.name, bits.reshape(shape))
