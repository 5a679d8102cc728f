"""What a search has tried: outcomes by recipe, kept in a file from which an interrupted search goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxq.errors import DataError
from onnxq.report.files import write_text
from onnxq.tune.costs import LayerCosts
from onnxq.tune.repairs import Variant

VERSION = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of quantizing with one recipe.

    Attributes:
        score: By the user's metric.
        damage: How far the outputs are from the float model's; 0 where they are equal. Less noisy than a score that
            counts right answers, it decides which of two recipes is the better one.
        size: Bytes of the model.
        seconds: How long it took to find out.
        refused: Why the recipe cannot be used; then nothing else counts.
    """

    score: float
    damage: float
    size: int
    seconds: float
    refused: str = ""

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; `from_dict` reads it back."""
        if self.refused:
            return {"refused": self.refused, "seconds": round(self.seconds, 3)}
        found = {"score": _json(self.score), "damage": _json(self.damage), "bytes": self.size}
        return {**found, "seconds": round(self.seconds, 3)}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Outcome:
        """What `to_dict` gave."""
        if "refused" in content:
            return Outcome(math.nan, math.inf, 0, float(content["seconds"]), str(content["refused"]))
        score, damage = float(content["score"]), float(content["damage"])
        return Outcome(score, damage, int(content["bytes"]), float(content["seconds"]))


def _json(value: float) -> float | str:
    """JSON has no infinities: `float` reads these texts."""
    return value if math.isfinite(value) else str(value)


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried.

    Attributes:
        number: Which one it was, from 1.
        what: What was new about it, in a few words.
        variant: What differs from the recipe that tuning started with.
        digest: Of its recipe.
        outcome: What came of it.
        met: Whether it meets the constraint.
        cost: What the objective counts: time by the costs of the layers, or bytes.
        latency: Time by the costs of the layers, whatever the objective is.
    """

    number: int
    what: str
    variant: Variant = field(repr=False)
    digest: str
    outcome: Outcome
    met: bool
    cost: float
    latency: float

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; numbers that are not finite are None."""
        found = {"number": self.number, "what": self.what, "recipe": self.digest, "met": self.met}
        outcome = self.outcome.to_dict()
        endless = {key: None for key in ("score", "damage") if isinstance(outcome.get(key), str)}
        return {
            **found,
            **outcome,
            **endless,
            "latency": self.latency,
            "left_float": sorted(self.variant.floats),
        }


def pareto(trials: Sequence[Trial], *, higher_is_better: bool) -> tuple[Trial, ...]:
    """The trials that no other one beats in both score and cost, the cheapest first.

    Args:
        trials: In the order in which they were made; of equals the first one is taken.
        higher_is_better: Whether a better model has a higher score.
    """
    sign = 1.0 if higher_is_better else -1.0
    usable = [t for t in trials if not t.outcome.refused]
    front: list[Trial] = []
    for trial in sorted(usable, key=lambda t: (t.cost, -sign * t.outcome.score, t.number)):
        if not front or sign * trial.outcome.score > sign * front[-1].outcome.score:
            front.append(trial)
    return tuple(front)


class State:
    """What is known of a search, in a file if there is one.

    Args:
        key: What the outcomes depend on, by name: the model, the data, the metric.
        path: The file; it is read if it is there, and written after each evaluation.

    Raises:
        DataError: If the file is no state of such a search, or is one of other data.
    """

    def __init__(self, key: Mapping[str, str], path: Path | None = None) -> None:
        self._key = dict(key)
        self._path = path
        self._outcomes: dict[str, Outcome] = {}
        self._rankings: dict[str, dict[str, float]] = {}
        self._times: dict[str, list[float]] = {}
        self._costs: LayerCosts | None = None
        if path is not None and path.exists():
            self._read(path)
        self.resumed = len(self._outcomes)

    def outcome(self, digest: str) -> Outcome | None:
        """What came of a recipe; None if it was not tried."""
        return self._outcomes.get(digest)

    def add_outcome(self, digest: str, outcome: Outcome) -> None:
        """Note what came of a recipe."""
        self._outcomes[digest] = outcome
        self._write()

    @property
    def costs(self) -> LayerCosts | None:
        """What the layers cost, if that was measured."""
        return self._costs

    def set_costs(self, costs: LayerCosts) -> None:
        """Note what the layers cost."""
        self._costs = costs
        self._write()

    def ranking(self, digest: str) -> Mapping[str, float] | None:
        """How much each layer damages the model quantized by a recipe."""
        return self._rankings.get(digest)

    def set_ranking(self, digest: str, ranking: Mapping[str, float]) -> None:
        """Note how much each layer damages the model."""
        self._rankings[digest] = dict(ranking)
        self._write()

    def times(self, digests: Sequence[str]) -> Sequence[float] | None:
        """Measured times of models that took turns."""
        return self._times.get("|".join(digests))

    def set_times(self, digests: Sequence[str], times: Sequence[float]) -> None:
        """Note the times of models that took turns."""
        self._times["|".join(digests)] = list(times)
        self._write()

    def to_dict(self) -> dict[str, object]:
        """Content of the file."""
        return {
            "version": VERSION,
            "key": self._key,
            "costs": None if self._costs is None else self._costs.to_dict(),
            "times": self._times,
            "rankings": {d: {k: _json(v) for k, v in r.items()} for d, r in self._rankings.items()},
            "evaluations": {digest: outcome.to_dict() for digest, outcome in self._outcomes.items()},
        }

    def _write(self) -> None:
        if self._path is not None:
            write_text(self._path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as err:
            raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
        except ValueError as err:
            raise DataError(f"{path}: is not the state of a search (not JSON: {err})") from err
        if not isinstance(content, dict) or content.get("version") != VERSION or "evaluations" not in content:
            raise DataError(f"{path}: is not the state of a search of this version; name another file")
        differing = [name for name in self._key if content.get("key", {}).get(name) != self._key[name]]
        if differing:
            raise DataError(
                f"{path}: is the state of a search with another {' and another '.join(differing)}; name another file"
            )
        try:
            self._outcomes = {d: Outcome.from_dict(o) for d, o in content["evaluations"].items()}
            self._rankings = {d: {k: float(v) for k, v in r.items()} for d, r in content["rankings"].items()}
            self._times = {d: [float(v) for v in times] for d, times in content["times"].items()}
            self._costs = None if content["costs"] is None else LayerCosts.from_dict(content["costs"])
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise DataError(f"{path}: is damaged ({type(err).__name__}: {err}); remove it to start anew") from err
