"""Building blocks of HTML reports: pages of cards, tables, plots and graphs in one file that loads nothing.

A report is described in frozen pieces, and `render` makes the file of them. No piece needs any knowledge of HTML: all
texts are plain and escaped, numbers are given as numbers, and tables can be sorted and filtered by whoever reads them.

Example:
    >>> page = Page(
    ...     title="m.int8.onnx",
    ...     subtitle="tuned for target ort",
    ...     cards=(Card("top-1", "91.2 %", "-0.3 points", tone="good"), Card("size", "26.1 %", "13.3 MB to 3.5 MB")),
    ...     sections=(
    ...         Section("Sensitivity", (BarPlot("SQNR of the output", (Bar("conv1", 21.5),), unit="dB"),)),
    ...         Section("Layers", (Table((Column("node", "code"), Column("SQNR", "number")), (("conv1", 21.5),)),)),
    ...     ),
    ... )
    >>> html = render(page)

The pieces are shown in the order in which they are given; a page of any length stays quick, as rows and nodes are drawn
when they come into sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Cell: TypeAlias = str | int | float | bool | None
"""What a cell of a table holds; None for nothing to tell. Infinite and undefined numbers are allowed."""


@dataclass(frozen=True, slots=True)
class Card:
    """One figure at the top of a page.

    Attributes:
        label: What it is.
        value: The figure, with its unit.
        detail: A line below it.
        tone: Whether it is good or bad news.
    """

    label: str
    value: str
    detail: str = ""
    tone: Literal["plain", "good", "bad"] = "plain"


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph.

    Attributes:
        text: Plain text.
        kind: ``paragraph``; ``note``, which is set off; ``warning``; ``code``, of which every line is kept.
    """

    text: str
    kind: Literal["paragraph", "note", "warning", "code"] = "paragraph"


@dataclass(frozen=True, slots=True)
class Shares:
    """A bar that is divided into parts, with a key.

    Attributes:
        parts: Name and size of each part, a size at least 0. ``quantized``, ``shared``, ``absorbed`` and ``float`` have
            the colours that they have in a graph.
        unit: What the sizes count.
    """

    parts: Sequence[tuple[str, float]]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        kind: ``text``; ``code``, for names; ``number``, which is set right and sorted by value; ``choice``, a text with
            few different values, by which the table can be filtered with a list.
        digits: Significant digits of numbers.
        hint: What it means, shown when the heading is pointed at.
    """

    title: str
    kind: Literal["text", "code", "number", "choice"] = "text"
    digits: int = 4
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that can be sorted by each column and filtered by words; any number of them.

    Attributes:
        columns: The columns; a plain string is a column of text.
        rows: One cell per column each.
        note: A line below the table.
        sort: Column that the rows are sorted by at first; None for as they are given.
        descending: Whether from large to small.
        label: What the table is called where several are on a page, for people who hear the page.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    sort: int | None = None
    descending: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One cell of a matrix.

    Attributes:
        text: What it shows.
        detail: More about it, shown when it is pointed at; every line is kept.
        heat: From -1, bad, to 1, good; 0 has no colour.
        marked: Whether it is set off from the others.
    """

    text: str
    detail: str = ""
    heat: float = 0.0
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    """Names down and across with coloured cells where they meet; None where there is nothing to show.

    Attributes:
        title: What is shown.
        rows: Name of each row.
        columns: Name of each column.
        cells: One cell per column for each row.
        note: A line below.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[MatrixCell | None]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        label: Its name.
        value: Its length.
        group: What it belongs to; each group has a colour.
        detail: More about it, shown when it is pointed at.
    """

    label: str
    value: float
    group: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BarPlot:
    """Bars side by side in the order given, such as one per layer; names, values and details are shown when pointed at.

    Attributes:
        title: What is shown.
        bars: The bars. Values that are not finite are left out, with a remark.
        unit: Unit of the values.
        log: Whether the axis is logarithmic; values must be positive then, others are left out.
        note: A line below.
    """

    title: str
    bars: Sequence[Bar]
    unit: str = ""
    log: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One point.

    Attributes:
        x: Its place along the horizontal axis.
        y: Its place along the vertical axis.
        label: Shown when it is pointed at.
        series: What it belongs to; each series has a colour.
    """

    x: float
    y: float
    label: str
    series: str = ""


@dataclass(frozen=True, slots=True)
class ScatterPlot:
    """Points in a plane, such as a Pareto front.

    Attributes:
        title: What is shown.
        points: The points; those that are not finite are left out.
        x_label: What the horizontal axis is, with its unit.
        y_label: What the vertical axis is, with its unit.
        line: Names of the series whose points are joined from left to right, such as ``("Pareto front",)``.
        log_x: Whether the horizontal axis is logarithmic; values must be positive then, others are left out.
        log_y: Likewise for the vertical axis.
        note: A line below.
    """

    title: str
    points: Sequence[Point]
    x_label: str
    y_label: str
    line: Sequence[str] = ()
    log_x: bool = False
    log_y: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class TensorHistogram:
    """How often the values of a tensor occur.

    Attributes:
        name: Its name.
        low: Lower edge of the first bin.
        high: Upper edge of the last bin.
        counts: How many values each bin holds; the bins are equally wide.
        clip: Smallest and largest value that has a code, where it is quantized.
        detail: A line about it.
    """

    name: str
    low: float
    high: float
    counts: Sequence[int]
    clip: tuple[float, float] | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HistogramPlot:
    """Histograms of which one is shown at a time, with its clipping range.

    Attributes:
        title: What is shown.
        tensors: The tensors to choose from.
        note: A line below.
    """

    title: str
    tensors: Sequence[TensorHistogram]
    note: str = ""


@dataclass(frozen=True, slots=True)
class ChannelRanges:
    """Smallest and largest value of each channel of a weight.

    Attributes:
        name: Its name.
        low: Smallest value of each channel, or of each run of channels.
        high: Largest value of each.
        step: How many channels one entry stands for.
        clip: Smallest and largest value that has a code, per entry; empty where it is not known.
        detail: A line about it.
    """

    name: str
    low: Sequence[float]
    high: Sequence[float]
    step: int = 1
    clip: Sequence[tuple[float, float]] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ChannelPlot:
    """Ranges of the channels of weights of which one is shown at a time.

    Attributes:
        title: What is shown.
        tensors: The weights to choose from.
        note: A line below.
    """

    title: str
    tensors: Sequence[ChannelRanges]
    note: str = ""


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of a graph.

    Attributes:
        name: Its name.
        op_type: Its operator type.
        kind: What becomes of it; each kind has a colour. See `Shares.parts`.
        details: More about it: names and values, shown when it is pointed at.
    """

    name: str
    op_type: str
    kind: str = ""
    details: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class GraphView:
    """A graph that can be zoomed and moved; time and size grow linearly with it.

    Attributes:
        title: What is shown.
        nodes: The nodes in topological order.
        edges: Pairs of positions in `nodes`, from an earlier node to a later one.
        note: A line below.
    """

    title: str
    nodes: Sequence[GraphNode]
    edges: Sequence[tuple[int, int]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are shown only when they are asked for.

    Attributes:
        title: What is shown until then.
        blocks: The blocks.
    """

    title: str
    blocks: Sequence[Block]


Block: TypeAlias = (
    Text | Shares | Table | Matrix | BarPlot | ScatterPlot | HistogramPlot | ChannelPlot | GraphView | Folded
)
"""What a section is made of."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page with a heading, and an entry in the list of contents.

    Attributes:
        title: Its heading.
        blocks: What it holds.
        lead: A sentence below the heading.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A report.

    Attributes:
        title: What it is about, such as the name of a file.
        subtitle: A sentence below.
        cards: The figures that matter.
        sections: The rest.
    """

    title: str
    subtitle: str = ""
    cards: Sequence[Card] = ()
    sections: Sequence[Section] = ()


def render(page: Page) -> str:
    """The report as HTML in one file that loads nothing; the same page gives the same text.

    Args:
        page: What it says.

    Raises:
        ValueError: If a row has another number of cells than there are columns, or an edge does not lead from an
            earlier node to a later one.
    """
    from onnxq.report.page_html import html_of

    return html_of(page)
