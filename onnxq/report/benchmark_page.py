"""The HTML report of ``onnxq benchmark``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from onnxq.report.benchmark import Ratio, Timing
from onnxq.report.benchmark_job import BenchmarkReport, ModelRun
from onnxq.report.page import Bar, BarPlot, Block, Card, Cell, Column, Page, Section, Shares, Table, Text
from onnxq.report.profile import KernelKind

_LATENCY = (
    Column("model", "code"),
    Column("bytes", "number"),
    Column("median ms", "number"),
    Column("first quartile", "number", hint="a quarter of the turns were faster"),
    Column("third quartile", "number", hint="a quarter of the turns were slower"),
    Column("best ms", "number"),
    Column("samples/s", "number"),
    Column(
        "ratio", "number", hint="median of the ratios to the first model's turn in the same round; below 1 is faster"
    ),
    Column("from", "number", hint="lower end of the 95 % interval of the ratio's median"),
    Column("to", "number", hint="upper end"),
    Column("verdict", "choice"),
)
_OPERATORS = (
    Column("operator", "code"),
    Column("computes with", "choice"),
    Column("nodes", "number"),
    Column("microseconds", "number"),
    Column("share %", "number", digits=3),
)
_NODES = (
    Column("node of the model", "code"),
    Column("runs as", "choice"),
    Column("computes with", "choice"),
    Column("microseconds", "number"),
    Column("node that was run", "code"),
    Column("stands for", "number", hint="how many nodes of the model it does"),
)


def benchmark_page(found: BenchmarkReport) -> Page:
    """A page with the times, the kernels and, where it was wanted, the profile of each model."""
    timings = found.benchmark
    subtitle = (
        f"{found.fed.text}; {found.fed.samples} at a time, threads: {timings.threads}, "
        f"{len(timings.timings[0].turns)} turns each, onnxruntime {found.runtime}"
    )
    lead = "The models take turns; a ratio is that of turns in the same round."
    sections = [
        Section("Latency", tuple(_latency(found)), lead),
        Section("Kernels", tuple(_kernels(found)), "What the nodes that are run compute with."),
    ]
    if found.options.profile:
        sections += [Section(f"Profile of {model.path.name}", tuple(_profile(model))) for model in found.models]
    return Page("Benchmark", subtitle, tuple(_cards(found)), tuple(sections))


def _rows(found: BenchmarkReport) -> Iterator[tuple[ModelRun, Timing, Ratio | None]]:
    yield from zip(found.models, found.benchmark.timings, [None, *found.benchmark.ratios], strict=True)


def _cards(found: BenchmarkReport) -> Iterator[Card]:
    for model, timing, ratio in _rows(found):
        detail = f"{timing.median:.4g} ms, {timing.throughput:.4g} samples/s"
        if ratio is None:
            yield Card(model.path.name, f"{timing.median:.4g} ms", f"{timing.throughput:.4g} samples/s")
        else:
            yield Card(model.path.name, f"x{ratio.median:.3f}", detail, _tone(ratio))


def _tone(ratio: Ratio) -> Literal["plain", "good", "bad"]:
    if ratio.verdict == "unclear":
        return "plain"
    return "good" if ratio.verdict == "faster" else "bad"


def _latency(found: BenchmarkReport) -> Iterator[Block]:
    rows: list[tuple[Cell, ...]] = []
    bars: list[Bar] = []
    for model, timing, ratio in _rows(found):
        quartiles, name = timing.quartiles, str(model.path)
        cells = (name, model.file_bytes, timing.median, *quartiles, min(timing.turns), timing.throughput)
        rows.append((*cells, *_versus(ratio)))
        bars += [Bar(f"{name}, turn {number}", ms, name) for number, ms in enumerate(timing.turns, 1)]
    yield Table(_LATENCY, tuple(rows), label="Latency")
    yield BarPlot("Time of one inference in each turn", tuple(bars), unit="ms")


def _versus(ratio: Ratio | None) -> tuple[Cell, ...]:
    if ratio is None:
        return 1.0, None, None, ""
    return ratio.median, ratio.interval.low, ratio.interval.high, ratio.verdict


def _kernels(found: BenchmarkReport) -> Iterator[Block]:
    rows = [
        (str(model.path), kind.value, op_type, count)
        for model in found.models
        for kind, ops in model.kernels.items()
        for op_type, count in ops.items()
    ]
    columns = (Column("model", "choice"), Column("computes with", "choice"), Column("operator", "code"))
    yield Table((*columns, Column("nodes", "number")), tuple(rows), label="Kernels")
    yield from (Text(note, "note") for note in found.notes)


def _profile(model: ModelRun) -> Iterator[Block]:
    profile = model.profile
    spent = profile.by_kind()
    yield Shares(tuple((kind.value, spent[kind]) for kind in KernelKind if spent[kind]), "µs")
    ops = [(op.op_type, op.kind.value, op.nodes, op.microseconds, 100 * op.share) for op in profile.by_op()]
    yield Table(_OPERATORS, tuple(ops), label="Operators")
    nodes = [(n.layer, n.op_type, n.kind.value, n.microseconds, n.name, len(n.covers)) for n in profile.nodes]
    note = "Nodes without a name of the model's were added by ONNX Runtime. The profiler itself costs some µs a node."
    yield Table(_NODES, tuple(nodes), note=note, sort=3, descending=True, label="Nodes")
