"""Which nodes a debug report says to leave float, and why: the three rules of MindSpore Lite's guide.

Outputs whose cosine similarity is low, sums and concatenations of inputs with very different ranges, and tensors
much of which is cut off. What the guide leaves to the reader is decided here: a node is to blame for the error it
adds, not for the one it inherits; and a value is cut off if it lies more than one step beyond the last code, not if it
is rounded or if the error of another node has moved it.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnxq.errors import DataError
from onnxq.report.debug_files_read import Record, read_params, read_round, read_summary

Rule = Literal["cosine", "ranges", "clip"]

MERGING = frozenset(
    {"Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat", "AddFusion", "SubFusion", "AddN", "Eltwise", "Stack"}
)
"""Operators that bring several activations together, in ONNX's and MindSpore Lite's names."""

_NOTHING = 1e-3
"""Tensors that are smaller than this throughout have a cosine similarity of 0 by definition."""
_WIDEST = 16
"""Codes of more bits do not clip."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is too bad.

    Attributes:
        cosine: An output is bad below this cosine similarity.
        own_share: ... if at least this share of its error is not there in the node's worst input yet.
        range_ratio: Inputs that come together differ too much if one range is so many times as wide as another;
            8 leaves the narrow one 5 of 8 bits.
        clip: This share of a tensor may be cut off.
        rounds: A node is condemned if it is bad in this share of the rounds.
    """

    cosine: float = 0.99
    own_share: float = 0.5
    range_ratio: float = 8.0
    clip: float = 0.01
    rounds: float = 0.5

    def __post_init__(self) -> None:
        for name in ("own_share", "clip", "rounds"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name):g}; must be from 0 to 1")
        if not -1 <= self.cosine <= 1:
            raise DataError(f"cosine is {self.cosine:g}; must be from -1 to 1")
        if not self.range_ratio >= 1:
            raise DataError(f"range_ratio is {self.range_ratio:g}; must be at least 1")


@dataclass(frozen=True, slots=True)
class Charge:
    """Why a node is condemned.

    Attributes:
        rule: Which of the three.
        tensor: The tensor it is about; of two inputs, the narrow one.
        detail: More about it, in words; may be empty.
        figure: The figure of the worst round.
        limit: What is allowed.
        worst_round: Which round that was.
        bad_rounds: In which rounds the figure was beyond the limit.
        rounds: How many rounds there were.
    """

    rule: Rule
    tensor: str
    detail: str
    figure: float
    limit: float
    worst_round: int
    bad_rounds: tuple[int, ...]
    rounds: int

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "rule": self.rule,
            "tensor": self.tensor,
            "detail": self.detail,
            "figure": self.figure,
            "limit": self.limit,
            "worst_round": self.worst_round,
            "bad_rounds": list(self.bad_rounds),
            "rounds": self.rounds,
        }


@dataclass(frozen=True, slots=True)
class Condemned:
    """A node to leave float.

    Attributes:
        node: Its name.
        op_type: Its operator type.
        charges: Why, one at least.
    """

    node: str
    op_type: str
    charges: tuple[Charge, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What a debug report says.

    Attributes:
        folder: Where it is.
        rounds: How many rounds it has.
        outputs: Mean and worst cosine similarity of each output of the model.
        condemned: The nodes to leave float, in the order in which they run.
        inherited: How many more outputs are bad because an input is.
        thresholds: What was asked for.
    """

    folder: Path
    rounds: int
    outputs: Mapping[str, tuple[float, float]]
    condemned: tuple[Condemned, ...]
    inherited: int
    thresholds: Thresholds

    @property
    def skip_quant_node(self) -> str:
        """The names for ``skip_quant_node=`` of MindSpore Lite's converter; names with a comma cannot be given."""
        return ",".join(c.node for c in self.condemned if "," not in c.node)

    @property
    def skip(self) -> list[str]:
        """The names for ``skip:`` of a recipe."""
        return [glob.escape(c.node) for c in self.condemned]

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "folder": str(self.folder),
            "rounds": self.rounds,
            "outputs": {name: {"mean": mean, "worst": worst} for name, (mean, worst) in self.outputs.items()},
            "condemned": [
                {"node": c.node, "op_type": c.op_type, "charges": [charge.to_dict() for charge in c.charges]}
                for c in self.condemned
            ],
            "inherited": self.inherited,
            "skip_quant_node": self.skip_quant_node,
            "skip": self.skip,
        }


@dataclass(slots=True)
class _Facts:
    """What one round says about one node."""

    op_type: str
    cosines: dict[bool, list[tuple[str, float]]] = field(default_factory=lambda: {True: [], False: []})
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    clips: list[tuple[str, float]] = field(default_factory=list)
    origin: tuple[float, float] | None = None


@dataclass(slots=True)
class _Tally:
    """One figure over the rounds."""

    worst: float
    worst_round: int
    detail: str
    bad: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Finding:
    """One figure of one round."""

    node: str
    rule: Rule
    tensor: str
    figure: float
    bad: bool
    detail: str = ""


def advise(folder: str | Path, thresholds: Thresholds | None = None) -> Advice:
    """Read a debug report and name the nodes to leave float.

    Memory grows with the size of the model, not with the rounds.

    Args:
        folder: Where `onnxq.write_debug`, or MindSpore Lite's converter, has written it.
        thresholds: From where on something is too bad.

    Raises:
        DataError: If a file is missing or damaged.
    """
    path, limits = Path(folder), thresholds or Thresholds()
    outputs, numbers = _outputs(path)
    scales = _scales(path)
    tallies: dict[tuple[str, Rule, str], _Tally] = {}
    op_types: dict[str, str] = {}
    inherited: set[str] = set()
    for number in numbers:
        facts = _facts(read_round(path, number), scales)
        for node, found in facts.items():
            op_types.setdefault(node, found.op_type)
            if scales and node not in scales:
                continue  # it is float already
            for finding in _findings(node, found, limits):
                if finding.bad:
                    _count(tallies, finding, number)
            if any(cosine < limits.cosine for _, cosine in found.cosines[True]):
                inherited.add(node)
    condemned = _condemned(tallies, op_types, limits, len(numbers))
    named = {c.node for c in condemned}
    return Advice(path, len(numbers), outputs, condemned, len(inherited - named), limits)


def _outputs(folder: Path) -> tuple[dict[str, tuple[float, float]], list[int]]:
    """Mean and worst cosine similarity of each output, and which rounds there are."""
    sums: dict[str, tuple[float, float, int]] = {}
    rounds: dict[int, None] = {}
    for record in read_summary(folder):
        number = record["Round"]
        if not number.isdecimal():
            raise DataError(f"{record.where}: Round is {number!r}; must be a whole number")
        rounds[int(number)] = None
        cosine = record.number("CosineSimilarity")
        if cosine is not None:
            total, worst, count = sums.get(record["TensorName"], (0.0, math.inf, 0))
            sums[record["TensorName"]] = (total + cosine, min(worst, cosine), count + 1)
    if not rounds:
        raise DataError(f"{folder}: the debug report has no rounds; write it anew")
    return {name: (total / count, worst) for name, (total, worst, count) in sums.items()}, sorted(rounds)


@dataclass(slots=True)
class _Scale:
    """What is known of the codes of a tensor: those of a weight have many scales, and the largest one counts."""

    step: float
    zero_point: float
    bits: int
    count: int = 1

    def cuts(self, origin: tuple[float, float], dequant: tuple[float, float]) -> bool:
        """Whether values of the float model lie more than a step beyond codes that cannot go further."""
        if self.bits > _WIDEST or not self.step:
            return False
        below, above = dequant[0] - origin[0] > self.step, origin[1] - dequant[1] > self.step
        if self.count > 1 or not (below or above):
            return below or above
        near = 1.5 * self.step  # the lowest code may be left out
        return any(
            (below and dequant[0] <= low + near) or (above and dequant[1] >= high - near)
            for low, high in self._bounds()
            if low - near <= dequant[0] and dequant[1] <= high + near
        )

    def _bounds(self) -> Iterator[tuple[float, float]]:
        """The smallest and the largest value, if codes are unsigned, and if they are signed."""
        size = 1 << self.bits
        for first in (0, -(size // 2)):
            if first <= self.zero_point < first + size:
                yield (first - self.zero_point) * self.step, (first + size - 1 - self.zero_point) * self.step


_Scales = Mapping[str, Mapping[str, _Scale]]


def _scales(folder: Path) -> dict[str, dict[str, _Scale]]:
    """The scales of each tensor, by node and tensor."""
    scales: dict[str, dict[str, _Scale]] = {}
    for record in read_params(folder):
        step, zero_point, bits = (record.number(column) or 0.0 for column in ("Scale", "ZeroPoint", "Bits"))
        known = scales.setdefault(record["NodeName"], {})
        found = known.setdefault(record["TensorName"], _Scale(step, zero_point, int(bits), 0))
        found.step, found.count = max(found.step, step), found.count + 1
    return scales


def _facts(records: Iterable[Record], scales: _Scales) -> dict[str, _Facts]:
    """What one round says, by node."""
    facts: dict[str, _Facts] = {}
    for record in records:
        found = facts.setdefault(record["NodeName"], _Facts(record["NodeType"]))
        tensor, bounds = record["TensorName"], (record.number("Min") or 0.0, record.number("Max") or 0.0)
        output = record.one_of("InOutFlag", "Input", "Output") == "Output"
        activation = record.one_of("TensorTypeFlag", "Weight", "Activation") == "Activation"
        if record.one_of("DataTypeFlag", "Origin", "Dequant") == "Origin":
            found.origin = bounds
            if activation and not output:
                found.ranges[tensor] = bounds
            continue
        if activation and not output:
            found.ranges.setdefault(tensor, bounds)
        origin, found.origin = found.origin, None
        if origin is None:
            continue
        cosine, clip = record.number("CosineSimilarity"), record.number("Clip")
        if activation and cosine is not None and max(map(abs, origin)) > _NOTHING:
            found.cosines[output].append((tensor, cosine))
        if clip is not None and _cut_off(scales, record["NodeName"], tensor, origin, bounds):
            found.clips.append((tensor, clip))
    return facts


def _cut_off(
    scales: _Scales, node: str, tensor: str, origin: tuple[float, float], dequant: tuple[float, float]
) -> bool:
    """Whether values were cut off, and not only rounded or moved by the errors of other nodes."""
    if not scales:
        return _Scale((dequant[1] - dequant[0]) / 255, 0, 8, 2).cuts(origin, dequant)
    found = scales.get(node, {}).get(tensor)
    return found is not None and found.cuts(origin, dequant)


def _findings(node: str, found: _Facts, limits: Thresholds) -> Iterator[_Finding]:
    """The figures of one node in one round."""
    inherited = max((1 - cosine for _, cosine in found.cosines[False]), default=0.0)
    for tensor, cosine in found.cosines[True]:
        error = 1 - cosine
        own = 1 - inherited / error if error > 0 else 0.0
        bad = cosine < limits.cosine and own >= limits.own_share
        yield _Finding(node, "cosine", tensor, cosine, bad, f"worst input {1 - inherited:.6g}")
    if found.op_type in MERGING:
        yield from _differing(node, found, limits)
    for tensor, clip in found.clips:
        yield _Finding(node, "clip", tensor, clip, clip > limits.clip)


def _differing(node: str, found: _Facts, limits: Thresholds) -> Iterator[_Finding]:
    widths = {tensor: high - low for tensor, (low, high) in found.ranges.items() if high > low}
    if len(widths) < 2:
        return
    narrow, wide = min(widths, key=widths.__getitem__), max(widths, key=widths.__getitem__)
    ratio = widths[wide] / widths[narrow]
    spans = [f"[{low:.4g}, {high:.4g}]" for low, high in (found.ranges[narrow], found.ranges[wide])]
    detail = f"{spans[0]} beside {spans[1]} of {wide}"
    yield _Finding(node, "ranges", narrow, ratio, ratio > limits.range_ratio, detail)


def _count(tallies: dict[tuple[str, Rule, str], _Tally], finding: _Finding, number: int) -> None:
    key = (finding.node, finding.rule, finding.tensor)
    tally = tallies.get(key)
    if tally is None:
        tally = tallies[key] = _Tally(finding.figure, number, finding.detail)
    elif (finding.figure < tally.worst) if finding.rule == "cosine" else (finding.figure > tally.worst):
        tally.worst, tally.worst_round, tally.detail = finding.figure, number, finding.detail
    tally.bad.append(number)


def _condemned(
    tallies: Mapping[tuple[str, Rule, str], _Tally], op_types: Mapping[str, str], limits: Thresholds, rounds: int
) -> tuple[Condemned, ...]:
    allowed: dict[Rule, float] = {"cosine": limits.cosine, "ranges": limits.range_ratio, "clip": limits.clip}
    charges: dict[str, list[Charge]] = {}
    for (node, rule, tensor), tally in tallies.items():
        if len(tally.bad) >= max(limits.rounds * rounds, 1):
            charge = Charge(
                rule, tensor, tally.detail, tally.worst, allowed[rule], tally.worst_round, tuple(tally.bad), rounds
            )
            charges.setdefault(node, []).append(charge)
    return tuple(Condemned(node, op_types[node], tuple(charges[node])) for node in op_types if node in charges)
