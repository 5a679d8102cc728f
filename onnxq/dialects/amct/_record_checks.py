"""What a record must not say about a layer, as far as that can be told without the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message  # type: ignore[import-untyped] # no stubs in the dev extra

from onnxq.dialects.amct.text_format import Field
from onnxq.dialects.problems import Problem
from onnxq.errors import nearest
from onnxq.spec import code_bounds

__all__ = ["Entry", "Problem", "check_entry", "widths"]

EPS = float(np.finfo(np.float32).eps)
_ACT_TYPES = ("INT4", "INT8", "INT16")
_WTS_TYPES = ("INT4", "INT6", "INT7", "INT8")
_CHOICES = {
    "dst_type": ("INT4", "INT8"),
    "act_type": _ACT_TYPES,
    "wts_type": _WTS_TYPES,
    "op_data_type": ("FLOAT32", "FLOAT16"),
    "fakequant_precision_mode": ("DEFAULT", "FORCE_FP16_QUANT"),
}
_UNFINISHED = "calibration did not finish: let the calibration model run for batch_num batches"


@dataclass(frozen=True, slots=True)
class Entry:
    """One layer of a record file.

    Attributes:
        record: The MapFiledEntry message.
        place: Where it is in the file. It is looked for only when there is something to tell.
    """

    record: Message
    place: Callable[[], Field]

    @property
    def key(self) -> str:
        """The layer."""
        return str(self.record.key)

    @property
    def value(self) -> Message:
        """The SingleLayerRecord message."""
        return self.record.value

    @property
    def has_value(self) -> bool:
        """Whether the file has one."""
        return bool(self.record.HasField("value"))

    @property
    def line(self) -> int:
        """Where the entry begins."""
        return self.place().line

    def problem(self, name: str, index: int, text: str) -> Problem:
        """A problem of the field `name`."""
        inner = next((field for field in self.place().fields if field.name == "value"), self.place())
        lines = inner.lines().get(name, ())
        return Problem(lines[index] if index < len(lines) else self.line, f"layer {self.key!r}: {text}")


def widths(value: Message) -> tuple[int, int]:
    """Bits of activation and weight that a valid SingleLayerRecord stands for."""

    def bits(name: str) -> int:
        return int((getattr(value, name) if value.HasField(name) else value.dst_type).removeprefix("INT"))

    return bits("act_type"), bits("wts_type")


def check_entry(entry: Entry) -> Iterator[Problem]:
    """Everything that is wrong with an entry.

    Source: specs of AMCT's record, the checks when one is read.
    """
    types = list(_check_types(entry))
    yield from types
    yield from _check_activation(entry, known_types=not types)
    yield from _check_positive(entry, "scale_w")
    yield from _check_positive(entry, "scale_r")
    yield from _check_tensor_quantize(entry) if entry.value.is_tensor_quantize else _check_weight(entry)
    yield from _check_each(
        entry, "tensor_balance_factor", lambda v: EPS < v < 1 / EPS, f"must lie between {EPS:g} and {1 / EPS:g}"
    )
    yield from _check_each(entry, "shift_bit", lambda v: v <= 16, "must be 0, or 1 to 16")
    yield from _check_cluster(entry)


def _check_types(entry: Entry) -> Iterator[Problem]:
    for name, allowed in _CHOICES.items():
        found = getattr(entry.value, name)
        if found not in allowed:
            text = f"{name} is {found!r}; must be one of {', '.join(allowed)}{nearest(found.upper(), allowed, count=1)}"
            yield entry.problem(name, 0, text)


def _check_activation(entry: Entry, *, known_types: bool) -> Iterator[Problem]:
    for scale, offset in (("scale_d", "offset_d"), ("scale_h", "offset_h")):
        if scale == "scale_h" and not (entry.value.HasField(scale) or entry.value.HasField(offset)):
            continue
        if missing := [name for name in (scale, offset) if not entry.value.HasField(name)]:
            verb = "is" if len(missing) == 1 else "are"
            yield entry.problem("", 0, f"{' and '.join(missing)} {verb} missing: {_UNFINISHED}")
        if entry.value.HasField(scale):
            yield from _positive(entry, scale, 0, getattr(entry.value, scale))
        if known_types:
            bits = widths(entry.value)[0]
            low, high = code_bounds(bits, signed=True)
            found = getattr(entry.value, offset)
            if not low <= found <= high:
                text = f"{offset} is {found}; must be within [{low}, {high}], the codes of INT{bits}"
                yield entry.problem(offset, 0, text)


def _check_positive(entry: Entry, name: str) -> Iterator[Problem]:
    for index, found in enumerate(getattr(entry.value, name)):
        yield from _positive(entry, name, index, found)


def _positive(entry: Entry, name: str, index: int, found: float) -> Iterator[Problem]:
    if not (math.isfinite(found) and found > 0):
        yield entry.problem(name, index, f"{name} is {found:g}; must be > 0 and finite in float32")


def _check_weight(entry: Entry) -> Iterator[Problem]:
    scales, offsets, shifts = (len(getattr(entry.value, n)) for n in ("scale_w", "offset_w", "shift_bit"))
    if not scales:
        hint = "give one per channel or one for the whole weight; an AveragePool has scale_w: 1.0 and offset_w: 0"
        yield entry.problem("scale_w", 0, f"scale_w is missing; {hint}")
        return
    if offsets != scales:
        yield entry.problem("offset_w", 0, f"there are {scales} scale_w and {offsets} offset_w; write one of each")
    if shifts not in (0, scales):
        yield entry.problem("shift_bit", 0, f"there are {scales} scale_w and {shifts} shift_bit; write one of each")
    yield from _check_each(entry, "offset_w", lambda v: v == 0, "must be 0: weights are symmetric")


def _check_tensor_quantize(entry: Entry) -> Iterator[Problem]:
    for name in ("scale_w", "offset_w"):
        if len(getattr(entry.value, name)):
            yield entry.problem(name, 0, f"is_tensor_quantize is true, so there is no weight; take {name} out")
    if not re.fullmatch(r".+:[0-9]+", entry.key):
        hint = f"the key must name an input of the node, for example '{entry.key}:0'"
        yield entry.problem("is_tensor_quantize", 0, f"is_tensor_quantize is true: {hint}")


def _check_cluster(entry: Entry) -> Iterator[Problem]:
    count = len(entry.value.cluster)
    if count not in (0, 16, 32):
        yield entry.problem("cluster", 0, f"cluster has {count} codes; must have 16 or 32")
    yield from _check_each(entry, "cluster", lambda v: -128 <= v <= 127, "must be within [-128, 127]")


def _check_each(entry: Entry, name: str, fine: Callable[[Any], bool], rule: str) -> Iterator[Problem]:
    for index, found in enumerate(getattr(entry.value, name)):
        if not fine(found):
            yield entry.problem(name, index, f"{name} is {found:g}; {rule}")
