"""What ``onnxq zoo`` does: from a manifest to a verdict and its files, and from a run to a new baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.errors import ManifestError
from onnxq.report.files import write_text
from onnxq.zoo.baseline import Baseline, Kept, blessed, path_of, read_baseline, write_baseline
from onnxq.zoo.comparison import Change, Verdict, compare
from onnxq.zoo.junit import junit_xml
from onnxq.zoo.manifest import Manifest, read_manifest
from onnxq.zoo.matrix import Entry, entries_of
from onnxq.zoo.measuring import Outcome
from onnxq.zoo.run import Run, read_run, run_entries
from onnxq.zoo.tolerances import TIMES, Tolerance

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Options:
    """How a zoo is run.

    Attributes:
        jobs: How many processes measure at once; 0 measures in this one.
        only: Globs over ``model/recipe``, or names of models or recipes; none for all entries.
        threads: Threads in all; 0 for all cores.
        baseline: The baseline's file, if not the manifest's.
        compared: Whether the run is held to a baseline.
        out: Folder the quantized models and the results are kept in.
        report: HTML report to write.
        junit: JUnit XML to write.
    """

    jobs: int = 1
    only: tuple[str, ...] = ()
    threads: int = 0
    baseline: Path | None = None
    compared: bool = True
    out: Path | None = None
    report: Path | None = None
    junit: Path | None = None


@dataclass(frozen=True)
class Checked:
    """A run and what came of it.

    Attributes:
        run: What was measured.
        verdict: What it is beside the baseline.
        baseline: The baseline's file; None where there was none.
        entries: What was run.
    """

    run: Run
    verdict: Verdict
    baseline: Path | None
    entries: tuple[Entry, ...]

    @property
    def summary(self) -> str:
        """A sentence."""
        run = self.run
        regressions = sum(finding.kind == "regression" for finding in self.verdict.bad)
        parts = [f"{run.counted('ok')} of {len(run.outcomes)} measured"]
        parts += [f"{count} {kind}" for kind in ("failed", "skipped") if (count := run.counted(kind))]
        if self.baseline is not None:
            parts.append(f"{regressions or 'no'} regression{'s' if regressions > 1 else ''}")
        return f"{', '.join(parts)}; {run.seconds:.1f} s with {max(1, run.jobs)} at once"

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; what two runs differ in is in ``timings``."""
        return {**self.run.to_dict(), **self.verdict.to_dict(), "failed": [str(f) for f in self.verdict.bad]}


def check_zoo(source: str | Path, options: Options, *, progress: Progress = lambda what, done, total: None) -> Checked:
    """Run a zoo and hold it to its baseline.

    Args:
        source: The manifest.
        options: How.
        progress: Told how it is going.

    Raises:
        ManifestError: If the manifest or the baseline cannot be used.
        OnnxqError: If a file cannot be written.
    """
    manifest = read_manifest(source)
    known = entries_of(manifest)
    path, baseline = None, None
    if options.compared:
        path = path_of(manifest, options.baseline)
        baseline = read_baseline(path)
    entries, run = _run(manifest, options, progress)
    checked = Checked(run, compare(run, baseline, entries, known), path, entries)
    if options.out is not None:
        write_text(options.out / "results.json", json.dumps(checked.to_dict(), indent=2, allow_nan=False) + "\n")
    if options.junit is not None:
        write_text(options.junit, junit_xml(run, checked.verdict))
    if options.report is not None:
        from onnxq.report.page import render
        from onnxq.zoo.page import zoo_page

        write_text(options.report, render(zoo_page(run, checked.verdict)))
    return checked


def _run(manifest: Manifest, options: Options, progress: Progress) -> tuple[tuple[Entry, ...], Run]:
    entries = entries_of(manifest, options.only)
    done = 0

    def told(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        progress(outcome.name, done, len(entries))

    progress("measuring", 0, len(entries))
    run = run_entries(manifest.source, entries, jobs=options.jobs, out=options.out, threads=options.threads, told=told)
    return entries, run


@dataclass(frozen=True)
class Blessing:
    """A new baseline that is not written yet.

    Attributes:
        path: Where it goes.
        old: The baseline before.
        new: The baseline after.
        run: What was measured.
        failed: Entries that have no numbers to take over.
    """

    path: Path
    old: Baseline
    new: Baseline
    run: Run
    failed: tuple[Outcome, ...]

    @property
    def diff(self) -> tuple[str, ...]:
        """What it changes, a line each."""
        return tuple(_diff(self.old, self.new))

    def write(self) -> None:
        """Write it, all of it or nothing.

        Raises:
            OnnxqError: If it cannot be written.
        """
        write_baseline(self.path, self.new)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        failed = [{"model": o.model, "recipe": o.recipe, "message": o.message} for o in self.failed]
        return {"baseline": str(self.path), "entries": len(self.new.entries), "diff": list(self.diff), "failed": failed}


def prepare_blessing(
    source: Path, options: Options, *, results: Path | None = None, progress: Progress = lambda what, done, total: None
) -> Blessing:
    """Run a zoo, or take the results of an earlier run, and make a baseline of it.

    Args:
        source: The manifest.
        options: How; what it says of reports has no effect.
        results: Results of an earlier run, as ``--json`` or ``--out`` wrote them.
        progress: Told how it is going.

    Raises:
        ManifestError: If the manifest, the results or the baseline cannot be used.
    """
    manifest = read_manifest(source)
    known = {entry.name for entry in entries_of(manifest)}
    path = path_of(manifest, options.baseline)
    old = read_baseline(path) if path.exists() else Baseline()
    if results is None:
        _, run = _run(manifest, options, progress)
    else:
        run = _chosen(read_run(results, manifest.source), {e.name for e in entries_of(manifest, options.only)})
        if not run.outcomes:
            raise ManifestError(f"{results}: holds no entry that is wanted of {source}")
    failed = tuple(outcome for outcome in run.outcomes if outcome.status == "failed")
    return Blessing(path, old, blessed(old, run, known), run, failed)


def _chosen(run: Run, names: set[str]) -> Run:
    outcomes = tuple(outcome for outcome in run.outcomes if outcome.name in names)
    return Run(run.manifest, outcomes, run.made_with, run.jobs, run.seconds)


def _diff(old: Baseline, new: Baseline) -> Iterator[str]:
    for name in sorted(old.entries.keys() | new.entries.keys()):
        before, after = old.entries.get(name), new.entries.get(name)
        title = name.replace("/", " x ", 1)
        if after is None:
            yield f"- {title}"
        elif before is None:
            yield f"+ {title}: {', '.join(_told(after))}"
        elif before != after:
            yield f"~ {title}: {', '.join(_changed(before, after)) or 'times'}"


def _told(kept: Kept) -> Iterator[str]:
    for name, value in kept.metrics.items():
        if name not in TIMES:
            change = Change(name, value, value, Tolerance())
            yield f"{change.measure.title} {change.measure.text(value)}"


def _changed(before: Kept, after: Kept) -> Iterator[str]:
    for name in [*before.metrics, *(n for n in after.metrics if n not in before.metrics)]:
        if name in TIMES:
            continue
        old, new = before.metrics.get(name), after.metrics.get(name)
        if old is None or new is None:
            yield f"{name} {'added' if old is None else 'dropped'}"
        elif old != new:
            change = Change(name, old, new, Tolerance())
            yield f"{change.measure.title} {change.measure.text(old)} -> {change.measure.text(new)}"
    if before.sha256 != after.sha256:
        yield "other bytes"


def listed(source: Path, only: Sequence[str] = ()) -> tuple[Entry, ...]:
    """The entries of a manifest, without running any.

    Args:
        source: The manifest.
        only: See `Options`.

    Raises:
        ManifestError: If it cannot be used.
    """
    return entries_of(read_manifest(source), only)
