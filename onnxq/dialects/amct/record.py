"""The record file: what calibrating found, layer by layer, as text that AMCT reads and writes as well.

    record = read_record("record.txt")
    write_record(Record(factors), "record.txt")

Every problem of a file is told at once, with its line and the layer's key. What a record says is checked against
itself here; whether it fits a model is the business of whoever inserts it.

Where flavours of AMCT differ: fields are known by name, those of all flavours are read, others are ignored with a
note. `dst_type` gives the width of what `act_type` and `wts_type` leave open. `skip_fusion` is false where it is not
given, and always written. A record of 8 bits is written with `dst_type`, any other with `act_type` and `wts_type`,
because a `dst_type` of INT8 would hide them from AMCT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped] # no stubs in the dev extra
from google.protobuf.message import Message  # type: ignore[import-untyped]

from onnxq.dialects._files import read_text, write_text
from onnxq.dialects.amct._record_checks import Entry, Problem, check_entry, widths
from onnxq.dialects.amct.proto.scale_offset_record_pb2 import ScaleOffsetRecord, SingleLayerRecord
from onnxq.dialects.amct.text_format import Field, format_message, scan, unknown_fields
from onnxq.errors import RecordError
from onnxq.factors import LayerFactors

_SHOWN = 20
_IN_FACTORS = (
    "scale_d", "offset_d", "scale_w", "offset_w", "tensor_balance_factor", "skip_fusion", "dst_type", "act_type",
    "wts_type", "fakequant_precision_mode", "is_tensor_quantize", "cluster",
)  # fmt: skip


def _nothing() -> Mapping[str, Message]:
    return MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Record:
    """The content of a record file.

    Attributes:
        layers: The numbers of each layer by its key: the node's name, or ``node:index`` for one input of a node
            without a weight.
        fp16: Layers whose `fakequant_precision_mode` is FORCE_FP16_QUANT.
        extras: What else the file says about a layer (`shift_bit`, factors of an RNN …), as SingleLayerRecord
            messages; written back as they are.
        kv: Entries of a key-value cache by key, as SingleLayerKVCacheRecord messages; written back as they are.
        prune: PruneRecord messages; written back as they are.
        notes: What a user should know about the file, a sentence each.
    """

    layers: Mapping[str, LayerFactors]
    fp16: frozenset[str] = frozenset()
    extras: Mapping[str, Message] = field(default_factory=_nothing, repr=False)
    kv: Mapping[str, Message] = field(default_factory=_nothing, repr=False)
    prune: tuple[Message, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read a record file.

    Args:
        path: A file of AMCT, of onnxq, or made by hand.

    Raises:
        RecordError: If it cannot be read, is no record, or a number in it is not allowed.
    """
    path = Path(path)
    return parse_record(read_text(path, "record file", RecordError), source=str(path))


def write_record(record: Record, path: str | os.PathLike[str]) -> Path:
    """Write a record file, all of it or nothing.

    Args:
        record: The content.
        path: The file; its folder must exist.

    Returns:
        The file.

    Raises:
        RecordError: If it cannot be written.
    """
    return write_text(Path(path), format_record(record), "record file", RecordError)


# ---- reading -----------------------------------------------------------------------------------


def parse_record(text: str, *, source: str = "") -> Record:
    """Read a record from text.

    Args:
        text: The content of a record file.
        source: What to call it in messages.

    Raises:
        RecordError: If it is no record, or a number in it is not allowed.
    """
    places = _Places(text)
    message, notes = _parsed(text, source, places)
    problems: list[Problem] = []
    last = _last_of_each_key(_entries(message, places, problems), notes)
    for entry in last.values():
        if entry.has_value:
            problems += check_entry(entry)
            notes += _notes_about(entry)
    _refuse(source, problems)
    return _record(message, last, notes, source)


class _Places:
    """Where things are in a file; it is looked through once, and only if something is to be told about it."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def root(self) -> Field:
        """The file as a whole."""
        return scan(self._text)

    @cached_property
    def entries(self) -> tuple[Field, ...]:
        """The entries in the order of the file."""
        return tuple(field for field in self.root.fields if field.name == "record")


def _parsed(text: str, source: str, places: _Places) -> tuple[Message, list[str]]:
    """The message, and notes about fields it does not have."""
    message = ScaleOffsetRecord()
    notes: list[str] = []
    where = f"{source}: " if source else ""
    try:
        try:
            text_format.Parse(text, message)
        except text_format.ParseError:
            message.Clear()
            text_format.Parse(text, message, allow_unknown_field=True)
            unknown = unknown_fields(places.root, ScaleOffsetRecord.DESCRIPTOR)
            notes += [f"line {line}: {name} is not a field of a record and was ignored" for name, line in unknown]
    except text_format.ParseError as err:
        raise RecordError(f"{where}not a record: {_place(err)}") from err
    except (RecursionError, ValueError) as err:
        raise RecordError(f"{where}not a record: {err}") from err
    if not message.IsInitialized():
        missing = ", ".join(message.FindInitializationErrors())
        raise RecordError(f"{where}a field that is required is missing: {missing}")
    return message, notes


def _place(err: text_format.ParseError) -> str:
    line = err.GetLine()
    text = str(err)
    if line is None:
        return text
    return f"line {line}: {text.partition(' : ')[2] or text}"


def _entries(message: Message, places: _Places, problems: list[Problem]) -> Iterator[Entry]:
    """The entries that can be checked; those without a key are problems."""
    for index, record in enumerate(message.record):
        entry = Entry(record, partial(_entry_at, places, index))
        if not record.key:
            problems.append(Problem(entry.line, 'a record has no key; write key: "<the layer\'s name>"'))
        elif not (record.HasField("value") or record.HasField("kv_cache_value")):
            problems.append(Problem(entry.line, f"layer {record.key!r} has no value"))
        else:
            yield entry


def _entry_at(places: _Places, index: int) -> Field:
    return places.entries[index]


def _last_of_each_key(entries: Iterator[Entry], notes: list[str]) -> dict[str, Entry]:
    last: dict[str, Entry] = {}
    for entry in entries:
        before = last.get(entry.key)
        if before is not None:
            lines = f"in line {before.line} and in line {entry.line}"
            notes.append(f"layer {entry.key!r} is given twice, {lines}: the last one counts")
        last[entry.key] = entry
    return last


def _notes_about(entry: Entry) -> Iterator[str]:
    told: list[str] = []
    if any(entry.value.shift_bit):
        told.append("shift_bit is for hardware that sums in 16 bits; it is kept and not used")
    if entry.value.HasField("scale_h") or len(entry.value.scale_r):
        told.append("the factors of an RNN's state and recurrent weight are kept and not used")
    explicit = [name for name in ("act_type", "wts_type") if entry.value.HasField(name)]
    differing = [n for n in explicit if getattr(entry.value, n) != entry.value.dst_type]
    if entry.value.HasField("dst_type") and differing:
        told.append(f"dst_type is {entry.value.dst_type}, but {' and '.join(differing)} says otherwise and counts")
    for text in told:
        yield f"line {entry.line}: layer {entry.key!r}: {text}"


def _refuse(source: str, problems: list[Problem]) -> None:
    if not problems:
        return
    start = f"{source}: " if source else ""
    told = sorted(problems)
    if len(told) == 1:
        raise RecordError(f"{start}{told[0]}")
    rest = f"\n  and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    raise RecordError(f"{start}{len(told)} problems" + "".join(f"\n  {p}" for p in told[:_SHOWN]) + rest)


def _record(message: Message, entries: Mapping[str, Entry], notes: list[str], source: str) -> Record:
    layers: dict[str, LayerFactors] = {}
    extras: dict[str, Message] = {}
    kv: dict[str, Message] = {}
    fp16: set[str] = set()
    for key, entry in entries.items():
        if entry.record.HasField("kv_cache_value"):
            kv[key] = entry.record.kv_cache_value
        if not entry.has_value:
            continue
        try:
            layers[key] = _factors(entry.value)
        except RecordError as err:
            start = f"{source}: " if source else ""
            raise RecordError(f"{start}line {entry.line}: layer {key!r}: {err}") from err
        if entry.value.fakequant_precision_mode == "FORCE_FP16_QUANT":
            fp16.add(key)
        rest = SingleLayerRecord()
        rest.CopyFrom(entry.value)
        for name in _IN_FACTORS:
            rest.ClearField(name)
        if rest.ListFields():
            extras[key] = rest
    frozen = (MappingProxyType(extras), MappingProxyType(kv))
    return Record(MappingProxyType(layers), frozenset(fp16), *frozen, tuple(message.prune_record), tuple(notes))


def _factors(value: Message) -> LayerFactors:
    act_bits, wts_bits = widths(value)
    return LayerFactors(
        scale_d=value.scale_d,
        offset_d=value.offset_d,
        scale_w=np.array(value.scale_w, np.float32),
        act_bits=act_bits,
        wts_bits=wts_bits,
        balance=np.array(value.tensor_balance_factor, np.float32) if value.tensor_balance_factor else None,
        cluster=np.array(value.cluster, np.int8) if value.cluster else None,
        skip_fusion=value.skip_fusion,
        tensor_quantize=value.is_tensor_quantize,
    )


# ---- writing -----------------------------------------------------------------------------------


def format_record(record: Record) -> str:
    """A record as text, in the order of its layers: the same bytes for the same content."""
    message = ScaleOffsetRecord()
    for key in dict.fromkeys((*record.layers, *record.kv)):
        entry = message.record.add(key=key)
        if key in record.layers:
            if key in record.extras:
                entry.value.CopyFrom(record.extras[key])
            _fill(entry.value, record.layers[key])
            if key in record.fp16:
                entry.value.fakequant_precision_mode = "FORCE_FP16_QUANT"
        if key in record.kv:
            entry.kv_cache_value.CopyFrom(record.kv[key])
    message.prune_record.extend(record.prune)
    return format_message(message)


def _fill(value: Message, factors: LayerFactors) -> None:
    value.scale_d = factors.scale_d
    value.offset_d = factors.offset_d
    value.scale_w.extend(factors.scale_w.tolist())
    value.offset_w.extend([0] * factors.scale_w.size)
    if factors.balance is not None:
        value.tensor_balance_factor.extend(factors.balance.tolist())
    if factors.cluster is not None:
        value.cluster.extend(factors.cluster.tolist())
    value.skip_fusion = factors.skip_fusion
    if factors.tensor_quantize:
        value.is_tensor_quantize = True
    if factors.act_bits == 8 and (factors.wts_bits == 8 or factors.tensor_quantize):
        value.dst_type = "INT8"
    else:
        value.act_type = f"INT{factors.act_bits}"
        value.wts_type = f"INT{factors.wts_bits}"
