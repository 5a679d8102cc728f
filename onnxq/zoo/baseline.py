"""What a zoo is held to: the numbers of an earlier run, in a file that is kept with the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxq.errors import ManifestError
from onnxq.report.files import write_text
from onnxq.zoo.manifest import Manifest
from onnxq.zoo.measuring import Outcome, number
from onnxq.zoo.run import Run
from onnxq.zoo.tolerances import TIMES

VERSION = 1
_DIGITS = 7
_TIME_DIGITS = 2


@dataclass(frozen=True)
class Kept:
    """What a baseline knows of an entry.

    Attributes:
        metrics: Its numbers by metric, times as well.
        sha256: Of the bytes of the quantized model.
    """

    metrics: Mapping[str, float]
    sha256: str = ""


@dataclass(frozen=True)
class Baseline:
    """A baseline.

    Attributes:
        entries: What it knows, by ``model/recipe``.
        made_with: Versions of what decided the numbers.
    """

    entries: Mapping[str, Kept] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)


def path_of(manifest: Manifest, given: Path | None) -> Path:
    """The baseline's file.

    Args:
        manifest: The manifest; it may name it.
        given: What the user names instead.

    Raises:
        ManifestError: If neither names one.
    """
    if given is not None:
        return given
    if manifest.baseline is None:
        raise ManifestError(f"{manifest.source}: names no baseline; write 'baseline: FILE' in it, or give --baseline")
    return manifest.folder / manifest.baseline


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        ManifestError: If it cannot be read, or is none.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ManifestError(f"{path}: has version {content['version']!r}; this onnxq reads version {VERSION}")
        entries = {
            str(name): Kept({key: float(value) for key, value in kept["metrics"].items()}, str(kept["sha256"]))
            for name, kept in content["entries"].items()
        }
        return Baseline(entries, {str(key): str(value) for key, value in content["made_with"].items()})
    except FileNotFoundError as err:
        raise ManifestError(f"{path}: there is no such baseline; make it with 'onnxq zoo bless'") from err
    except OSError as err:
        raise ManifestError(f"{path}: cannot be read: {err.strerror or err}") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ManifestError(f"{path}: is not a baseline that 'onnxq zoo bless' wrote: {err!r}") from err


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline, all of it or nothing; an entry a line, so that changes can be read.

    Raises:
        OnnxqError: If it cannot be written.
    """
    lines = [f'"version": {VERSION}', f'"made_with": {json.dumps(dict(sorted(baseline.made_with.items())))}']
    entries = [
        f"  {json.dumps(name)}: {json.dumps({'metrics': _plain(kept.metrics), 'sha256': kept.sha256})}"
        for name, kept in sorted(baseline.entries.items())
    ]
    lines.append('"entries": {\n' + ",\n".join(entries) + "\n}")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _plain(metrics: Mapping[str, float]) -> dict[str, float | str]:
    return {name: number(value) for name, value in sorted(metrics.items())}


def kept_of(outcome: Outcome) -> Kept:
    """What a baseline keeps of an outcome: as many digits as mean something."""
    times = {name: _rounded(value, _TIME_DIGITS) for name, value in outcome.times.items()}
    return Kept({name: _rounded(v, _DIGITS) for name, v in outcome.metrics.items()} | times, outcome.sha256)


def blessed(old: Baseline, run: Run, known: Collection[str]) -> Baseline:
    """The baseline after a run: what was measured is taken over, the rest stays.

    Entries that failed or were skipped keep what the baseline has of them, and so do those that were not run. Entries
    whose numbers are the same keep their times.

    Args:
        old: The baseline before.
        run: What was measured.
        known: Names of all entries of the manifest, run or not; others are dropped.
    """
    entries = {name: kept for name, kept in old.entries.items() if name in known}
    for outcome in run.outcomes:
        if outcome.status != "ok":
            continue
        new, before = kept_of(outcome), old.entries.get(outcome.name)
        if before is None or _lasting(new) != _lasting(before) or new.metrics.keys() != before.metrics.keys():
            entries[outcome.name] = new
    return Baseline(entries, old.made_with if entries == dict(old.entries) else run.made_with)


def _lasting(kept: Kept) -> tuple[dict[str, float], str]:
    return {name: value for name, value in kept.metrics.items() if name not in TIMES}, kept.sha256


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else value
