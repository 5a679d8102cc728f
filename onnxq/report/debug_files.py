"""The three files of a debug report: their names, columns and numbers are those of MindSpore Lite's converter."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxq.report.debug_rows import Layout, Measure, Place
from onnxq.report.debug_statistics import Comparison, Distribution
from onnxq.report.files import atomic_text

SUMMARY = "output_summary.csv"
PARAMS = "quant_param.csv"
SUMMARY_COLUMNS = ("Round", "TensorName", "CosineSimilarity")
PARAM_COLUMNS = (
    "NodeName", "NodeType", "TensorName", "ElementsNum", "Dims", "Scale", "ZeroPoint", "Bits", "CorrectionVar",
    "CorrectionMean",
)  # fmt: skip
ROUND_COLUMNS = (
    "", "NodeName", "NodeType", "TensorName", "InOutFlag", "DataTypeFlag", "TensorTypeFlag", "Min", "Q1", "Median",
    "Q3", "Max", "Mean", "Var", "Sparsity", "Clip", "CosineSimilarity",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DebugFiles:
    """What a debug report consists of.

    Attributes:
        folder: Where it is.
        summary: ``output_summary.csv``: the outputs of the model, round by round.
        rounds: ``round_<i>.csv``: all tensors in one round.
        params: ``quant_param.csv``: scales and zero points; None where there are none.
    """

    folder: Path
    summary: Path
    rounds: tuple[Path, ...]
    params: Path | None


def round_name(number: int) -> str:
    """The name of the file of a round."""
    return f"round_{number}.csv"


def round_number(name: str) -> int | None:
    """Which round a file is of; None for other files."""
    found = re.fullmatch(r"round_(0|[1-9][0-9]*)\.csv", name)
    return None if found is None else int(found[1])


def number(value: float) -> str:
    """A number as C++ prints it: six significant digits."""
    return format(value, "g")


def write_rows(path: Path, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> int:
    """Write a file whole or not at all; each line ends with a comma.

    Args:
        path: The file.
        columns: The first line.
        rows: The others; they are written as they come.

    Returns:
        How many rows there were.

    Raises:
        OnnxqError: If it cannot be written.
    """
    count = 0
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, ""])
        for row in rows:
            writer.writerow([*row, ""])
            count += 1
    return count


def round_rows(layout: Layout, found: Mapping[Measure, Comparison]) -> Iterator[list[str]]:
    """The rows of one round.

    Args:
        layout: What there is to tell.
        found: What is told; what is not in it is left out.
    """
    count = 0
    for place in layout.places:
        comparison = found.get(place.measure)
        if comparison is None:
            continue
        for origin in (True, False):
            described = comparison.origin if origin else comparison.dequant
            if described is not None:
                yield [str(count), *_place(place, origin), *_numbers(described), *_error(comparison, origin)]
                count += 1


def _place(place: Place, origin: bool) -> tuple[str, ...]:
    direction = "Output" if place.output else "Input"
    kind = "Weight" if place.measure.constant else "Activation"
    return place.node, place.op_type, place.tensor, direction, "Origin" if origin else "Dequant", kind


def _numbers(found: Distribution) -> Iterator[str]:
    values = (found.low, found.q1, found.median, found.q3, found.high, found.mean, found.deviation, found.sparsity)
    return map(number, values)


def _error(found: Comparison, origin: bool) -> tuple[str, str]:
    if origin:
        return "0", "1"
    return ("" if found.clip is None else number(found.clip)), ("" if found.cosine is None else number(found.cosine))


def summary_rows(layout: Layout, index: int, found: Mapping[Measure, Comparison]) -> Iterator[list[str]]:
    """The rows of the summary for one round."""
    for name, measure in layout.outputs.items():
        comparison = found.get(measure)
        if comparison is not None and comparison.cosine is not None:
            yield [str(index), name, number(comparison.cosine)]
