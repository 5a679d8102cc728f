"""What people read of ``onnxq benchmark``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from string import ascii_uppercase
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.cli.tables import plain_table, size

if TYPE_CHECKING:
    from onnxq.report.benchmark import Ratio, Timing
    from onnxq.report.benchmark_job import BenchmarkReport, ModelRun
    from onnxq.report.profile import Profile

_COLORS = {"faster": "green", "slower": "red", "unclear": "dim"}
_OPERATORS = 12
_NODES = 10
_NAMED = 4


def benchmark(found: BenchmarkReport, *, verbose: bool = False) -> list[RenderableType]:
    """Times, ratios and kernels; with a profile also where the time goes, with `verbose` of every node."""
    timings = found.benchmark
    threads = f"{timings.threads} thread{'s' if timings.threads > 1 else ''}"
    fed = f"{found.fed.samples} at a time" if found.fed.samples > 1 else "one at a time"
    rounds = len(timings.timings[0].turns)
    text = f"{found.fed.text}; {fed}, {threads}, {rounds} turns each, onnxruntime {found.runtime}"
    parts: list[RenderableType] = [escape(text), _models(found), _times(found), _kernels(found)]
    if found.options.profile:
        for letter, model in zip(_letters(found), found.models, strict=True):
            parts += _profile(letter, model, verbose=verbose)
    return parts


def milliseconds(value: float) -> str:
    """A time for people."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms" if value >= 1 else f"{1e3 * value:.3g} µs"


def _letters(found: BenchmarkReport) -> list[str]:
    """What stands for the models in the tables: A, B, …, Z, A2, …."""
    count = len(ascii_uppercase)
    numbers = range(len(found.models))
    return [ascii_uppercase[k % count] + (str(k // count + 1) if k >= count else "") for k in numbers]


def _models(found: BenchmarkReport) -> Table:
    grid = Table.grid(padding=(0, 2))
    for letter, model in zip(_letters(found), found.models, strict=True):
        grid.add_row(Text(letter, style="bold"), Text(str(model.path), overflow="fold"), size(model.file_bytes))
    return grid


def _times(found: BenchmarkReport) -> Table:
    several = len(found.models) > 1
    numbers = ["median", "quartiles", "best", "samples/s", *(["ratio", "95 %"] if several else [])]
    table = plain_table("", *numbers, *([""] if several else []), right=numbers)
    ratios: list[Ratio | None] = [None, *found.benchmark.ratios]
    for letter, timing, ratio in zip(_letters(found), found.benchmark.timings, ratios, strict=True):
        table.add_row(Text(letter, style="bold"), *_row(timing), *(_ratio(ratio) if several else ()))
    return table


def _row(timing: Timing) -> tuple[str, str, str, str]:
    low, high = (milliseconds(value) for value in timing.quartiles)
    return milliseconds(timing.median), f"{low} - {high}", milliseconds(min(timing.turns)), f"{timing.throughput:.4g}"


def _ratio(ratio: Ratio | None) -> tuple[str, str, Text]:
    if ratio is None:
        return "1", "", Text("")
    interval = f"{ratio.interval.low:.3f} - {ratio.interval.high:.3f}"
    return f"{ratio.median:.3f}", interval, Text(ratio.verdict, style=_COLORS[ratio.verdict])


def _kernels(found: BenchmarkReport) -> Table:
    table = plain_table("", "computes with", "nodes", "kernels", right=["nodes"])
    for letter, model in zip(_letters(found), found.models, strict=True):
        shown = letter
        for kind, ops in model.kernels.items():
            if ops:
                named = escape(_named(ops, len(ops) if kind.integer else _NAMED))
                table.add_row(Text(shown, style="bold"), kind.value, str(sum(ops.values())), named)
                shown = ""
    return table


def _named(ops: Mapping[str, int], most: int) -> str:
    texts = [f"{count} {op}" for op, count in ops.items()]
    rest = sum(list(ops.values())[most:])
    return ", ".join([*texts[:most], *([f"{rest} others"] if rest else [])])


def _profile(letter: str, model: ModelRun, *, verbose: bool) -> Iterator[RenderableType]:
    profile = model.profile
    table = plain_table(
        "operator",
        "computes with",
        "nodes",
        "time",
        "share",
        right=["nodes", "time", "share"],
        title=f"{letter}: operators",
    )
    for op in profile.by_op()[: None if verbose else _OPERATORS]:
        spent = milliseconds(op.microseconds / 1e3)
        table.add_row(escape(op.op_type), op.kind.value, str(op.nodes), spent, f"{100 * op.share:.1f} %")
    yield table
    yield _slowest(letter, profile, None if verbose else _NODES)
    lost = sum(node.microseconds for node in profile.unmapped)
    if lost:
        share = 100 * lost / max(profile.microseconds, 1e-9)
        yield f"{share:.1f} % of the time goes to nodes that ONNX Runtime added: {len(profile.unmapped)}"


def _slowest(letter: str, profile: Profile, count: int | None) -> Table:
    columns = ("node of the model", "runs as", "computes with", "time")
    table = plain_table(*columns, right=["time"], title=f"{letter}: {'slowest ' if count else ''}nodes")
    for node in sorted(profile.nodes, key=lambda n: -n.microseconds)[:count]:
        name = node.layer or Text(node.name, style="dim italic")
        spent = milliseconds(node.microseconds / 1e3)
        table.add_row(escape(name) if isinstance(name, str) else name, escape(node.op_type), node.kind.value, spent)
    return table
