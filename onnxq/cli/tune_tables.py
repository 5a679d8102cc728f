"""What people read of ``onnxq tune``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.cli.tables import plain_table, size

if TYPE_CHECKING:
    from onnxq.tune.history import Trial
    from onnxq.tune.job import TuneJob
    from onnxq.tune.tuning import Tuned

_NAMED = 8
_TRIALS = 12


def tuned(found: Tuned, job: TuneJob, *, verbose: bool = False) -> list[RenderableType]:
    """What was found, and the way there; with `verbose` all trials."""
    metric = found.metric
    limit = f"good enough from {metric.text(found.threshold)}: {found.constraint}"
    rows = [
        ("float", f"{metric.name} {metric.text(found.reference)} on {found.samples} samples"),
        ("untuned", metric.text(found.first.outcome.score)),
        ("tuned", f"{metric.text(found.score)} ({limit})"),
        ("left float", _left_float(found)),
    ]
    if found.chosen is not None and found.quantized:
        rows.append(("size", f"{size(found.chosen.outcome.size)}, untuned {size(found.first.outcome.size)}"))
    if found.times is not None:
        times = found.times
        ratios = f"{times.tuned_ms / times.float_ms:.2f} of float, untuned {times.default_ms / times.float_ms:.2f}"
        rows.append(("latency", f"{times.tuned_ms:.3g} ms: {ratios}"))
    known = f", {found.resumed} known from before" if found.resumed else ""
    rows.append(("search", f"{found.evaluations} evaluations{known} in {found.seconds:.0f} s"))
    rows.append(("written", str(job.output)))
    return [_facts(rows), *_history(found, verbose=verbose)]


def failure(found: Tuned) -> str:
    """How far the model is from what was wanted, and what was tried."""
    metric, tried = found.metric, len([t for t in found.history if not t.outcome.refused])
    budget = "; the budget ended the search" if found.out_of_time else ""
    recipes = "1 recipe was" if tried == 1 else f"{tried} recipes were"
    return (
        f"{metric.name} is {metric.text(found.score)}, {metric.points(found.missing)} short of "
        f"{metric.text(found.threshold)} ({found.constraint}); {recipes} tried{budget}"
    )


def _left_float(found: Tuned) -> str:
    count, names = len(found.costs.integer_cost), found.left_float
    if not names:
        return f"none of {count} layers"
    shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{len(names)} of {count} layers: {shown}"


def _history(found: Tuned, *, verbose: bool) -> list[RenderableType]:
    trials = list(found.history)
    if not verbose and len(trials) > _TRIALS:
        front = {trial.number for trial in found.front} | {1}
        front |= {found.chosen.number} if found.chosen is not None else set()
        trials = [trial for trial in trials if trial.number in front]
    unit = f"cost, {found.costs.unit}"
    table = plain_table(
        "trial", "what was new", found.metric.name, "size", unit, "float", right=["trial", unit, "float"]
    )
    for trial in trials:
        table.add_row(*_row(trial, found))
    hidden = len(found.history) - len(trials)
    rest: list[RenderableType] = [f"… and {hidden} other trials; --verbose shows all"] if hidden else []
    return [table, *rest]


def _row(trial: Trial, found: Tuned) -> tuple[RenderableType, ...]:
    style = "bold" if trial == found.chosen else "" if trial.met else "dim"
    if trial.outcome.refused:
        cells = [str(trial.number), f"{trial.what}: {trial.outcome.refused}", "-", "-", "-", "-"]
    else:
        outcome = trial.outcome
        floats = str(len(trial.variant.floats))
        score = found.metric.text(outcome.score)
        cells = [str(trial.number), trial.what, score, size(outcome.size), f"{trial.latency:.0f}", floats]
    return tuple(Text(cell, style=style) for cell in cells)


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column(overflow="fold")
    for name, value in rows:
        facts.add_row(name, escape(value))
    return facts
