"""A run of a zoo beside its baseline: what got worse by more than its tolerance, and all else that is worth telling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxq.zoo.baseline import Baseline, Kept
from onnxq.zoo.matrix import Effective, Entry
from onnxq.zoo.measuring import Outcome, number
from onnxq.zoo.run import Run
from onnxq.zoo.tolerances import TIMES, Measure, Tolerance, measure_of

Kind = Literal["regression", "failed", "better", "bytes", "new", "missing", "skipped"]
BAD: frozenset[Kind] = frozenset({"regression", "failed"})
"""Findings that fail a run."""
_NOISE = 1e-6
"""What is lost by rounding the baseline's numbers, relative to them."""


@dataclass(frozen=True)
class Change:
    """One number beside the baseline's.

    Attributes:
        metric: Name of the metric.
        baseline: The baseline's number.
        value: What was measured.
        tolerance: How much worse it may be.
    """

    metric: str
    baseline: float
    value: float
    tolerance: Tolerance

    @property
    def measure(self) -> Measure:
        """What is known about the metric."""
        return measure_of(self.metric)

    @property
    def worse(self) -> float:
        """By how much it is worse, in the unit of the metric; negative where it is better."""
        if self.value == self.baseline:
            return 0.0
        if math.isnan(self.value) or math.isnan(self.baseline):
            return math.inf if math.isnan(self.value) and not math.isnan(self.baseline) else 0.0
        return self.baseline - self.value if self.measure.higher_is_better else self.value - self.baseline

    @property
    def kind(self) -> Literal["same", "regression", "better"]:
        """What to make of it."""
        allowed = self.tolerance.allowed(self.baseline)
        slack = _NOISE * abs(self.baseline) if math.isfinite(self.baseline) else 0.0
        if self.worse > allowed + slack:
            return "regression"
        return "better" if -self.worse > allowed + slack else "same"

    def __str__(self) -> str:
        measure = self.measure
        moved = measure.difference(self.value - self.baseline)
        return (
            f"{measure.title} is {measure.text(self.value)}, the baseline has {measure.text(self.baseline)}: {moved}, "
            f"allowed {measure.allowance(self.tolerance)}"
        )

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        values = {"baseline": self.baseline, "value": self.value, "worse_by": self.worse}
        return {"metric": self.metric, **{key: number(value) for key, value in values.items()}} | {
            "tolerance": {"absolute": self.tolerance.absolute, "relative": self.tolerance.relative}
        }


@dataclass(frozen=True)
class Finding:
    """Something worth telling about an entry.

    Attributes:
        kind: What it is.
        model: Name of the model.
        recipe: Name of the recipe.
        text: What was found.
        change: The number it is about, if it is about one.
    """

    kind: Kind
    model: str
    recipe: str
    text: str
    change: Change | None = None

    @property
    def bad(self) -> bool:
        """Whether it fails the run."""
        return self.kind in BAD

    def __str__(self) -> str:
        return f"{self.model} x {self.recipe}: {self.text}"

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        about = {"kind": self.kind, "model": self.model, "recipe": self.recipe, "text": self.text}
        return {**about, "change": None if self.change is None else self.change.to_dict()}


@dataclass(frozen=True)
class Verdict:
    """A run beside its baseline.

    Attributes:
        findings: What is worth telling, in the order of the entries; what is missing comes last.
        changes: Every number that both have, by ``model/recipe``.
        notes: What a user should know about the comparison.
    """

    findings: tuple[Finding, ...]
    changes: Mapping[str, tuple[Change, ...]]
    notes: tuple[str, ...] = ()

    @property
    def bad(self) -> tuple[Finding, ...]:
        """What fails the run."""
        return tuple(finding for finding in self.findings if finding.bad)

    def of(self, name: str) -> tuple[Finding, ...]:
        """What was found about ``model/recipe``."""
        return tuple(f for f in self.findings if f"{f.model}/{f.recipe}" == name)

    def change(self, name: str, metric: str) -> Change | None:
        """One number of ``model/recipe``; None where one side has none."""
        return next((c for c in self.changes.get(name, ()) if c.metric == metric), None)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON, without times."""
        lasting = [f for f in self.findings if f.change is None or f.change.metric not in TIMES]
        return {"findings": [finding.to_dict() for finding in lasting], "notes": list(self.notes)}


def compare(
    run: Run, baseline: Baseline | None, entries: Sequence[Entry], known: Sequence[Entry] | None = None
) -> Verdict:
    """Hold a run to a baseline.

    Args:
        run: What was measured.
        baseline: What it is held to; None finds failures only.
        entries: The entries that were run.
        known: All entries of the manifest; None: those that were run. What the baseline has beyond is missing.
    """
    settings = {entry.name: entry.settings for entry in entries}
    findings: list[Finding] = []
    changes: dict[str, tuple[Change, ...]] = {}
    for outcome in run.outcomes:
        kept = None if baseline is None else baseline.entries.get(outcome.name)
        if kept is not None and outcome.status == "ok":
            changes[outcome.name] = tuple(_changes(outcome, kept, settings[outcome.name]))
        findings += _findings(outcome, kept, settings[outcome.name], changes.get(outcome.name, ()), baseline is None)
    if baseline is None:
        return Verdict(tuple(findings), changes)
    names = {entry.name for entry in (entries if known is None else known)}
    for name in sorted(baseline.entries.keys() - names):
        model, _, recipe = name.partition("/")
        findings.append(Finding("missing", model, recipe, "is in the baseline and not in the manifest"))
    return Verdict(tuple(findings), changes, tuple(_notes(run, baseline, findings)))


def _changes(outcome: Outcome, kept: Kept, settings: Effective) -> Iterator[Change]:
    for metric, value in outcome.values.items():
        if metric in kept.metrics:
            yield Change(metric, kept.metrics[metric], value, settings.tolerance(metric))


def _findings(
    outcome: Outcome, kept: Kept | None, settings: Effective, changes: Sequence[Change], alone: bool
) -> Iterator[Finding]:
    def found(kind: Kind, text: str, change: Change | None = None) -> Finding:
        return Finding(kind, outcome.model, outcome.recipe, text, change)

    if outcome.status == "failed":
        yield found("failed", outcome.message)
        return
    if outcome.status == "skipped":
        yield found("skipped", outcome.message)
        return
    if kept is None:
        if not alone:
            yield found("new", "is not in the baseline")
        return
    for change in changes:
        if change.kind != "same":
            yield found(change.kind, str(change), change)
    for metric in kept.metrics:
        if metric not in outcome.values and metric not in TIMES:
            yield found("missing", f"{metric} is in the baseline and is not measured any more")
    if settings.digest != "ignored" and outcome.sha256 != kept.sha256:
        strict = settings.digest == "strict"
        told = ", which this manifest does not allow (digest: strict)" if strict else ""
        yield found("regression" if strict else "bytes", f"the bytes of the model are not the baseline's{told}")


def _notes(run: Run, baseline: Baseline, findings: Sequence[Finding]) -> Iterator[str]:
    if not any(finding.kind in ("regression", "better", "bytes") for finding in findings):
        return
    for part, version in run.made_with.items():
        before = baseline.made_with.get(part)
        if before is not None and before != version:
            yield f"the baseline was made with {part} {before}, this is {version}"
