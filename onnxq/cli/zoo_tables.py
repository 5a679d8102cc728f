"""What people read about a zoo."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxq.zoo.tolerances import ALWAYS, SCORES, TIMES, measure_of

if TYPE_CHECKING:
    from onnxq.zoo.job import Checked
    from onnxq.zoo.matrix import Entry
    from onnxq.zoo.measuring import Outcome

_STYLES = {"regression": "bold red", "failed": "bold red", "better": "green", "new": "cyan", "skipped": "dim"}


def can_ask() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def title(outcome: Outcome) -> str:
    """The name of an entry."""
    return f"{outcome.model} x {outcome.recipe}"


def entry(found: Entry) -> str:
    """One line about an entry that was not run."""
    told = f"skipped: {found.skipped}" if found.skipped else ", ".join(found.settings.metrics)
    return f"{found.model} x {found.recipe}: {told}"


def matrix(checked: Checked, *, full: bool) -> Iterator[RenderableType]:
    """A row per entry, below the name of the model; only those that moved, unless all are wanted."""
    run, verdict = checked.run, checked.verdict
    told = [o for o in run.outcomes if full or any(f.kind not in ("bytes", "skipped") for f in verdict.of(o.name))]
    if not told:
        return
    found = {metric for outcome in told for metric in outcome.metrics}
    scores = [metric for metric in SCORES if metric in found]
    scores += [_OWN] if found - {*SCORES, *ALWAYS} else []
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("recipe", overflow="fold", min_width=_width(told))
    table.add_column("", no_wrap=True)
    for metric in (*scores, "size", *TIMES):
        table.add_column(_HEADINGS.get(metric, metric), justify="right", no_wrap=True)
    model = ""
    for outcome in told:
        if outcome.model != model:
            model = outcome.model
            table.add_row(Text(model, style="bold"))
        table.add_row(Text(f"  {outcome.recipe}"), _state(checked, outcome), *_numbers(checked, outcome, scores))
    yield table


def _width(told: list[Outcome]) -> int:
    """Of the names, as far as the numbers find room beside them on a narrow terminal."""
    return min(22, max(max(len(o.recipe) + 2, len(o.model)) for o in told))


_OWN = "score"
_HEADINGS = {
    "top1": "top1 %",
    "agreement": "agree %",
    "sqnr": "SQNR dB",
    "size": "size %",
    "calibration_ratio": "calib.",
    "latency_ratio": "latency",
}


def _numbers(checked: Checked, outcome: Outcome, scores: list[str]) -> Iterator[Text]:
    for column in scores:
        score = _own(outcome) if column == _OWN else column
        value = outcome.metrics.get(score)
        text = Text("-" if value is None else _bare(measure_of(score).text(value)))
        change = checked.verdict.change(outcome.name, score)
        if change is not None and change.kind != "same":
            text.append(f"\n{_bare(change.measure.difference(change.value - change.baseline))}")
            text.stylize(_STYLES[change.kind])
        yield text
    size, before = outcome.metrics.get("size"), outcome.reference.get("size")
    yield Text(f"{100 * size / before:.1f}" if size and before else "-")
    for name in TIMES:
        found = outcome.times.get(name)
        yield Text("-" if found is None else TIMES[name].text(found))


def _own(outcome: Outcome) -> str:
    """The first function of the user's that measured an entry."""
    return next((metric for metric in outcome.metrics if metric not in {*SCORES, *ALWAYS}), "")


def _bare(text: str) -> str:
    """A number without its unit, which the heading has."""
    return text.split(" ")[0]


def _state(checked: Checked, outcome: Outcome) -> Text:
    kinds = {finding.kind for finding in checked.verdict.of(outcome.name)}
    kind = next((kind for kind in _STYLES if kind in kinds), "ok")
    return Text("worse" if kind == "regression" else kind, style=_STYLES.get(kind, ""))


def remarks(checked: Checked, *, full: bool) -> Iterator[str]:
    """What is worth knowing and fails nothing; of what occurs often only how often, unless all is wanted."""
    groups: dict[str, list[str]] = {}
    for finding in checked.verdict.findings:
        if not finding.bad:
            groups.setdefault(finding.kind, []).append(str(finding))
    wording = {
        "better": "better than the baseline by more than the tolerance",
        "bytes": "of other bytes than the baseline's",
        "new": "not in the baseline",
        "missing": "in the baseline and not measured",
        "skipped": "skipped",
    }
    for kind, texts in groups.items():
        if full or len(texts) <= 3:
            yield from (f"{kind}: {text}" for text in texts)
        else:
            yield f"{len(texts)} entries {wording[kind]}; --verbose names them"
