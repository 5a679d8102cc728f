"""The HTML report of a zoo: a matrix of models and recipes for each metric, what got worse, and all numbers."""

from __future__ import annotations

from collections.abc import Iterator

from onnxq.report.page import Block, Card, Cell, Column, Matrix, MatrixCell, Page, Section, Table, Text
from onnxq.zoo.comparison import Change, Finding, Verdict
from onnxq.zoo.measuring import Outcome
from onnxq.zoo.run import Run
from onnxq.zoo.tolerances import SCORES, TIMES, measure_of

_SIZE = "size"
_NOTHING = 1e-9


def zoo_page(run: Run, verdict: Verdict) -> Page:
    """The report of a run.

    Args:
        run: What was measured.
        verdict: What it is beside the baseline.
    """
    made = ", ".join(f"{name} {version}" for name, version in run.made_with.items())
    sections = [Section("Findings", tuple(_findings(verdict)))]
    for metric in metrics_of(run):
        lead = "higher is better" if measure_of(metric).higher_is_better else "lower is better"
        sections.append(Section(measure_of(metric).title, (_matrix(run, verdict, metric),), f"{lead}."))
    sections.append(Section("All numbers", (_table(run, verdict),)))
    return Page(f"Model zoo {run.manifest.name}", made, tuple(_cards(run, verdict)), tuple(sections))


def metrics_of(run: Run) -> tuple[str, ...]:
    """The metrics that any entry has: scores, those of the user's, size, times."""
    found = dict.fromkeys(name for outcome in run.outcomes for name in outcome.values)
    order = [name for name in SCORES if name in found]
    order += [name for name in found if name not in SCORES and name not in TIMES and name != _SIZE]
    return (*order, *(name for name in (_SIZE, *TIMES) if name in found))


def _cards(run: Run, verdict: Verdict) -> Iterator[Card]:
    regressions = sum(finding.kind == "regression" for finding in verdict.findings)
    failed, skipped = run.counted("failed"), run.counted("skipped")
    yield Card("regressions", str(regressions), "beyond the tolerance", "bad" if regressions else "good")
    yield Card("failed", str(failed), "could not be measured", "bad" if failed else "good")
    better = sum(finding.kind == "better" for finding in verdict.findings)
    yield Card("better", str(better), "by more than the tolerance")
    yield Card("measured", str(run.counted("ok")), f"of {len(run.outcomes)}, {skipped} skipped")
    yield Card("time", f"{run.seconds:.1f} s", f"{max(1, run.jobs)} at once")


def _findings(verdict: Verdict) -> Iterator[Block]:
    yield from (Text(note, "note") for note in verdict.notes)
    if not verdict.findings:
        yield Text("Nothing got worse, and nothing else is to be told.")
        return
    columns = (
        Column("what", "choice"), Column("model", "code"), Column("recipe", "code"), Column("metric", "choice"),
        Column("baseline", "number"), Column("now", "number"), Column("worse by", "number"), Column("text"),
    )  # fmt: skip
    ordered = sorted(verdict.findings, key=lambda finding: not finding.bad)
    yield Table(columns, tuple(map(_finding, ordered)), label="findings")


def _finding(finding: Finding) -> tuple[Cell, ...]:
    change = finding.change
    numbers = (None,) * 3 if change is None else (change.baseline, change.value, change.worse)
    metric = "" if change is None else change.measure.title
    return (finding.kind, finding.model, finding.recipe, metric, *numbers, finding.text)


def _matrix(run: Run, verdict: Verdict, metric: str) -> Matrix:
    outcomes = {(o.model, o.recipe): o for o in run.outcomes}
    measured = [o for o in run.outcomes if metric in o.values]
    models = tuple(dict.fromkeys(o.model for o in measured))
    recipes = tuple(dict.fromkeys(o.recipe for o in measured))
    cells = tuple(
        tuple(_cell(outcomes.get((model, recipe)), verdict, metric) for recipe in recipes) for model in models
    )
    note = "Coloured by the difference to the baseline: full colour is the tolerance. Point at a cell to see both."
    return Matrix(
        f"{measure_of(metric).title} by model and recipe", models, recipes, cells, note if verdict.changes else ""
    )


def _cell(outcome: Outcome | None, verdict: Verdict, metric: str) -> MatrixCell | None:
    if outcome is None:
        return None
    if outcome.status != "ok":
        return MatrixCell(outcome.status, outcome.message, -1.0 if outcome.status == "failed" else 0.0)
    value = outcome.values.get(metric)
    if value is None:
        return None
    measure = measure_of(metric)
    lines = [f"{outcome.model} x {outcome.recipe}", f"{measure.title}: {measure.text(value)}"]
    before = outcome.reference.get(metric)
    if before is not None:
        lines.append(f"float: {measure.text(before)}")
    change = verdict.change(outcome.name, metric)
    if change is not None:
        lines.append(f"baseline: {measure.text(change.baseline)}, {measure.difference(value - change.baseline)}")
        lines.append(f"allowed: {measure.allowance(change.tolerance)}")
    text = f"{100 * value / before:.1f} %" if metric == _SIZE and before else measure.text(value)
    bad = change is not None and change.kind == "regression"
    return MatrixCell(text, "\n".join(lines), _heat(change), bad)


def _heat(change: Change | None) -> float:
    """How far a number has moved within what is allowed, from -1 to 1; none where nothing is a regression."""
    if change is None or change.tolerance.informational or change.worse == 0.0:
        return 0.0
    allowed = max(change.tolerance.allowed(change.baseline), _NOTHING)
    moved = change.worse / allowed
    return max(-1.0, min(1.0, -moved)) if abs(moved) > 0.01 else 0.0


def _table(run: Run, verdict: Verdict) -> Table:
    metrics = metrics_of(run)
    columns = [Column("model", "code"), Column("recipe", "code"), Column("state", "choice")]
    for metric in metrics:
        columns.append(Column(measure_of(metric).title, "number"))
        columns.append(Column(f"{measure_of(metric).title}, baseline", "number"))
    columns += [Column("seconds", "number"), Column("bytes", "code", hint="sha256 of the model"), Column("notes")]
    return Table(tuple(columns), tuple(_row(o, verdict, metrics) for o in run.outcomes), label="all numbers")


def _row(outcome: Outcome, verdict: Verdict, metrics: tuple[str, ...]) -> tuple[Cell, ...]:
    kinds = [finding.kind for finding in verdict.of(outcome.name)]
    state = next((kind for kind in kinds if kind in ("failed", "regression", "better", "new")), outcome.status)
    numbers: list[Cell] = []
    for metric in metrics:
        change = verdict.change(outcome.name, metric)
        numbers += [outcome.values.get(metric), None if change is None else change.baseline]
    notes = " ".join([outcome.message, *outcome.notes]).strip()
    return (outcome.model, outcome.recipe, state, *numbers, outcome.seconds, outcome.sha256[:12], notes)
