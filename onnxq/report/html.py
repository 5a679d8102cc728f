"""The HTML report of ``onnxq quantize``: one file, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from onnxq._version import __version__
from onnxq.spec import PerAxis, PerBlock, QuantParams

if TYPE_CHECKING:
    from onnxq.report.job import Done

MOST_ROWS = 5000
"""Rows of the table of ranges; a browser shows that many without effort."""


@dataclass(frozen=True, slots=True)
class RangeRow:
    """The numbers of one tensor as the report shows them.

    Attributes:
        tensor: Its name.
        kind: What its codes are: ``uint8``, ``int8 symmetric``.
        scales: ``one``, or how many along which axis.
        low: Smallest real that has a code, over all scales.
        high: Largest real that has a code.
        scale: The scale, or the smallest and largest one.
        zero_point: The zero point, or the smallest and largest one.
    """

    tensor: str
    kind: str
    scales: str
    low: str
    high: str
    scale: str
    zero_point: str


def quantize_report(done: Done) -> str:
    """The report as HTML.

    Args:
        done: What became of a job.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxq.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = range_rows(done.result.params)
    counts = done.result.plan.counts()
    return environment.get_template("quantize.html.j2").render(
        done=done,
        result=done.result,
        version=__version__,
        counts=counts,
        total=max(1, sum(counts.values())),
        rows=rows[:MOST_ROWS],
        hidden=max(0, len(rows) - MOST_ROWS),
        slowest=max((report.seconds for report in done.result.reports), default=0.0) or 1.0,
    )


def range_rows(params: Mapping[str, QuantParams]) -> list[RangeRow]:
    """The table of ranges, in the order of `params`.

    Args:
        params: Numbers by tensor name.
    """
    return [_row(name, numbers) for name, numbers in params.items()]


def _row(name: str, numbers: QuantParams) -> RangeRow:
    spec = numbers.spec
    width = "" if spec.bits == spec.qtype.bits else f", {spec.bits} bits"
    match spec.granularity:
        case PerAxis(axis=axis):
            scales = f"{numbers.scale.size} along axis {axis}"
        case PerBlock(axis=axis, size=size):
            scales = f"{numbers.scale.size}, blocks of {size} along axis {axis}"
        case _:
            scales = "one"
    return RangeRow(
        tensor=name,
        kind=f"{spec.qtype.label}{width}{', symmetric' if spec.symmetric else ''}",
        scales=scales,
        low=f"{numbers.low.min():.5g}",
        high=f"{numbers.high.max():.5g}",
        scale=_span(float(numbers.scale.min()), float(numbers.scale.max())),
        zero_point=_span(float(numbers.zero_point.min()), float(numbers.zero_point.max())),
    )


def _span(low: float, high: float) -> str:
    return f"{low:.5g}" if low == high else f"{low:.5g} … {high:.5g}"
