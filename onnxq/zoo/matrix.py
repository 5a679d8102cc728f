"""From a manifest to its entries: one model with one recipe each, with all that was said about it in one place."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from onnxq._recipe.base import Problem
from onnxq.calib.readers import Folders, Layout, parse_folders
from onnxq.errors import ManifestError, nearest
from onnxq.recipe import ImagePreprocess, Recipe, TargetName
from onnxq.zoo.manifest import Manifest, ModelEntry, Override, RecipeEntry, Settings, invalid
from onnxq.zoo.tolerances import Tolerance, measure_of

Data = Path | Folders | str
"""A path, a folder for each input, or ``file.py:function``, which gives anything that `onnxq.quantize` takes."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


@dataclass(frozen=True)
class Effective:
    """What holds for one entry, all levels of settings merged; see `onnxq.zoo.manifest.Settings`."""

    metrics: tuple[str, ...]
    samples: int | None = None
    eval_samples: int | None = None
    batch: int = 8
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    kernels: Literal["fused", "written"] = "fused"
    digest: Literal["ignored", "told", "strict"] = "told"
    timings: bool = True
    latency_seconds: float = 0.3
    timeout: float | None = None

    def tolerance(self, metric: str) -> Tolerance:
        """How much worse a metric may be."""
        return self.tolerances.get(metric) or measure_of(metric).tolerance


@dataclass(frozen=True)
class Entry:
    """One model with one recipe.

    Attributes:
        model: Name of the model.
        recipe: Name of the recipe, with its target behind an ``@`` where it has several.
        file: The float model.
        source: The recipe as a mapping, or the file it is made of.
        settings: What holds for it.
        target: The target, where it is not the recipe's.
        calibration: Calibration data; None where there are none.
        evaluation: Evaluation data.
        labels: True classes.
        preprocess: How images become feeds.
        bin_layout: Layout of the numbers in .bin files.
        folder: What the paths of the user's functions are relative to.
        skipped: Why it cannot be run here; empty where it can.
    """

    model: str
    recipe: str
    file: Path
    source: Mapping[str, object] | str
    settings: Effective
    target: TargetName | None = None
    calibration: Data | None = None
    evaluation: Data = Path()
    labels: Path | None = None
    preprocess: ImagePreprocess | None = None
    bin_layout: Layout | None = None
    folder: Path = Path()
    skipped: str = ""

    @property
    def name(self) -> str:
        """``model/recipe``."""
        return f"{self.model}/{self.recipe}"


def entries_of(manifest: Manifest, only: Sequence[str] = ()) -> tuple[Entry, ...]:
    """All entries of a manifest, model by model.

    Args:
        manifest: The manifest.
        only: Globs over ``model/recipe``, or names of models or recipes; none for all entries.

    Raises:
        ManifestError: If files are missing that are not optional, if nothing is left to run, or if a glob matches
            nothing; it names all problems.
    """
    found = tuple(_Expansion(manifest).entries())
    for text in only:
        if not any(_matches(entry, text) for entry in found):
            known = [text for e in found for text in (e.name, e.model, e.recipe)]
            hint = nearest(text, known)
            raise ManifestError(f"{manifest.source}: --only {text!r} matches no model/recipe{hint}")
    return tuple(entry for entry in found if not only or any(_matches(entry, text) for text in only))


def _matches(entry: Entry, text: str) -> bool:
    return text in (entry.model, entry.recipe) or fnmatch.fnmatchcase(entry.name, text)


class _Expansion:
    """Multiplies models with recipes, and collects what is wrong."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._problems: list[Problem] = []
        self._unused: set[tuple[str | int, ...]] = {
            *(("models", m, key, i) for m, e in manifest.models.items() for key in _GLOBS for i in _range(e, key)),
            *(("recipes", r, key, i) for r, e in manifest.recipes.items() for key in _KEYS for i in _range(e, key)),
            *(("overrides", i, "match", k) for i, o in enumerate(manifest.overrides) for k in range(len(o.match))),
        }

    def entries(self) -> Iterator[Entry]:
        """All entries."""
        recipes = {name: self._source(name, entry) for name, entry in self._manifest.recipes.items()}
        found = [
            entry
            for name, model in self._manifest.models.items()
            for entry in self._of_model(name, model, self._resolved(name, model), recipes)
        ]
        for path in sorted(self._unused, key=str):
            value = self._at(path)
            if value != "*":
                known = {text for e in found for text in (e.name, e.model, e.recipe)}
                self._problems.append(Problem(path, f"{value!r} matches nothing{nearest(value, known, count=1)}"))
        if not found and not self._problems:
            self._problems.append(Problem((), "no model has a recipe: every combination is excluded"))
        if self._problems:
            raise invalid(self._manifest.source, tuple(self._problems))
        yield from found

    def _at(self, path: tuple[str | int, ...]) -> str:
        found: object = self._manifest
        for part in path:
            found = getattr(found, part) if isinstance(part, str) and hasattr(found, part) else found[part]  # type: ignore[index]
        return str(found)

    # ---- models times recipes ------------------------------------------------------------------

    def _of_model(
        self, name: str, model: ModelEntry, base: Entry, recipes: Mapping[str, Mapping[str, object] | str]
    ) -> Iterator[Entry]:
        for key, recipe in self._manifest.recipes.items():
            mine = self._any(("recipes", key, "models"), name), self._any(("recipes", key, "exclude"), name)
            for target in recipe.targets or (None,):
                full = key if target is None else f"{key}@{target}"
                theirs = self._any(("models", name, "recipes"), full, key)
                others = self._any(("models", name, "exclude"), full, key)
                if mine == (True, False) and (theirs, others) == (True, False):
                    settings = self._settings(recipe, model, f"{name}/{full}")
                    yield replace(base, recipe=full, source=recipes[key], settings=settings, target=target)

    def _any(self, path: tuple[str, str, str], *names: str) -> bool:
        globs = getattr(getattr(self._manifest, path[0])[path[1]], path[2])
        hits = [i for i, glob in enumerate(globs) if any(fnmatch.fnmatchcase(name, glob) for name in names)]
        self._unused -= {(*path, i) for i in hits}
        return bool(hits)

    def _settings(self, recipe: RecipeEntry, model: ModelEntry, name: str) -> Effective:
        levels: list[Settings] = [self._manifest.defaults, recipe, model]
        for index, override in enumerate(self._manifest.overrides):
            if self._overrides(index, override, name):
                levels.append(override)
        values = {
            key: value
            for level in levels
            for key in Settings.model_fields
            if key != "tolerances" and (value := getattr(level, key)) is not None
        }
        tolerances = {key: limit for level in levels for key, limit in level.tolerances.items()}
        values.setdefault("metrics", ("sqnr",) if model.labels is None else ("top1", "sqnr"))
        return Effective(**values, tolerances=tolerances)

    def _overrides(self, index: int, override: Override, name: str) -> bool:
        hits = [k for k, glob in enumerate(override.match) if fnmatch.fnmatchcase(name, glob)]
        self._unused -= {("overrides", index, "match", k) for k in hits}
        return bool(hits)

    # ---- files -----------------------------------------------------------------------------------

    def _source(self, name: str, entry: RecipeEntry) -> Mapping[str, object] | str:
        if entry.file is None:
            return (entry.recipe or Recipe()).to_dict(defaults=False)
        try:
            text = self._expanded(entry.file)
        except _Missing as err:
            self._problems.append(Problem(("recipes", name, "file"), str(err)))
            return entry.file
        path, colon, variable = text.partition(".py:")
        file = self._manifest.folder / (path + ".py" if colon else path)
        if not file.is_file():
            self._problems.append(Problem(("recipes", name, "file"), f"{file} does not exist"))
        return f"{file}:{variable}" if colon else str(file)

    def _resolved(self, name: str, model: ModelEntry) -> Entry:
        """The model's files; with the reason where one of an optional model is not there."""
        optional = self._manifest.defaults.optional if model.optional is None else model.optional
        found: dict[str, Data] = {}
        skipped = ""
        for key in ("model", "calibration", "evaluation", "labels"):
            text = getattr(model, key)
            if text is None:
                continue
            try:
                found[key] = self._data(text) if key in ("calibration", "evaluation") else self._file(text)
            except _Missing as err:
                skipped = skipped or str(err)
                if not optional:
                    self._problems.append(Problem(("models", name, key), str(err)))
        return Entry(
            name, "", _path(found.get("model")) or Path(), {}, Effective(()), None, found.get("calibration"),
            found.get("evaluation", Path()), _path(found.get("labels")), model.preprocess, model.bin_layout,
            self._manifest.folder, skipped,
        )  # fmt: skip

    def _data(self, text: str) -> Data:
        if ".py:" in text:
            file, _, function = self._expanded(text).partition(".py:")
            return f"{self._file(file + '.py')}:{function}"
        expanded = self._expanded(text)
        if ":" in expanded and not (self._manifest.folder / expanded).exists():
            folders = parse_folders(expanded)
            return Folders({key: str(self._file(str(folder))) for key, folder in folders.items()})
        return self._file(text)

    def _file(self, text: str) -> Path:
        path = self._manifest.folder / self._expanded(text)
        if not path.exists():
            raise _Missing(f"{path} does not exist")
        return path

    @staticmethod
    def _expanded(text: str) -> str:
        """The text with variables of the environment in it."""

        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2]
            if not os.environ.get(name):
                raise _Missing(f"the variable {name} of the environment is not set")
            return os.environ[name]

        return _VARIABLE.sub(value, text)


_GLOBS = ("recipes", "exclude")
_KEYS = ("models", "exclude")


class _Missing(Exception):  # noqa: N818 - not an error where the model is optional
    """Something is not there."""


def _range(entry: ModelEntry | RecipeEntry, key: str) -> range:
    return range(len(getattr(entry, key)))


def _path(found: Data | None) -> Path | None:
    return found if isinstance(found, Path) else None
