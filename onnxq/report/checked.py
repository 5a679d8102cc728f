"""A comparison of two models with demands on it and a report about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxq.errors import DataError, OnnxqError
from onnxq.report.compare import Comparison, Options, compare
from onnxq.report.examine import examine_models
from onnxq.report.files import write_text
from onnxq.report.html import compare_report

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Demands:
    """What a quantized model must keep.

    Attributes:
        min_sqnr: Least signal to noise ratio of every output, in decibels; None for any.
        max_drop: Most top-1 accuracy that may be lost, in percentage points; None for any.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A comparison and what it was checked for.

    Attributes:
        found: The comparison.
        failed: Which demands are not met, a sentence each.
    """

    found: Comparison
    failed: tuple[str, ...] = ()


def check_models(
    reference: Path,
    quantized: Path,
    options: Options,
    demands: Demands | None = None,
    *,
    report: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Checked:
    """Compare two models, and write an HTML report about them if one is wanted; also where a demand is not met.

    Args:
        reference: The float model.
        quantized: What became of it.
        options: What to compare and on what. A report has the layers in it in any case.
        demands: What must be kept; None for nothing.
        report: The report to write; None for none.
        progress: Told how it is going.

    Raises:
        OnnxqError: If a model or the data cannot be used, a demand cannot be checked, or the report cannot be written.
    """
    wanted = demands or Demands()
    if report is None:
        found = compare(reference, quantized, options, progress=progress)
        return Checked(found, found.failures(min_sqnr=wanted.min_sqnr, max_drop=wanted.max_drop))
    examined = examine_models(reference, quantized, options, progress)
    failed = examined.comparison.failures(min_sqnr=wanted.min_sqnr, max_drop=wanted.max_drop)
    write_text(report, compare_report(examined.comparison, examined.anatomy, failed=failed))
    found = examined.comparison if options.layers else replace(examined.comparison, layers=())
    return Checked(found, failed)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models to report on.

    Attributes:
        reference: The float model.
        quantized: What became of it.
        data: What to run them on.
        report: The report to write.
    """

    reference: Path
    quantized: Path
    data: Path
    report: Path


def wanted_pair(paths: Sequence[Path], data: Path | None, report: Path | None, *, advise: bool = False) -> Pair | None:
    """The two models that are meant, or None if it is the folder of a debug report.

    Args:
        paths: What was named.
        data: What to run two models on.
        report: The report to write.
        advise: Whether advice was asked for.

    Raises:
        OnnxqError: If it is neither one nor two paths, or a model is named alone.
        DataError: If there are no data for two models, or no report to write.
    """
    if len(paths) == 1 and not paths[0].is_file():
        return None
    if len(paths) == 1:
        raise OnnxqError(
            f"{paths[0]} is a file: give the float and the quantized model, or the folder of a debug report"
        )
    if len(paths) != 2:
        raise OnnxqError(f"{len(paths)} paths; give the float and the quantized model, or the folder of a debug report")
    if advise:
        raise OnnxqError("--advise is about the folder of a debug report; give that alone (onnxq quantize --debug-dir)")
    if data is None:
        raise DataError("a report on two models takes data to run them on; give --data")
    if report is None:
        raise DataError("a report on two models is an HTML file; name it with -o")
    return Pair(paths[0], paths[1], data, report)
