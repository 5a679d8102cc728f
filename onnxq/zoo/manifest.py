"""The manifest of a zoo: which models, which recipes, what is measured, how much worse is still good."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from onnxq._recipe.base import Count, Flag, InvalidRecipe, Model, Name, Problem
from onnxq._recipe.load import read_mapping
from onnxq.calib.readers import Layout
from onnxq.errors import ManifestError, RecipeError, nearest
from onnxq.recipe import ImagePreprocess, Recipe, TargetName
from onnxq.zoo.tolerances import ALWAYS, INFORMATIONAL, SCORES, TIMES, Tolerance

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_FUNCTION = re.compile(r".+\.py:[A-Za-z_]\w*")
M = TypeVar("M", bound=Model)


def _mapped(kind: type[M], short: Callable[[object], object] = lambda value: value) -> BeforeValidator:
    """Validates a mapping of parts, so that a problem says under which key it is.

    Args:
        kind: What the values are.
        short: Writes out a shorter form of one.
    """

    def check(content: object) -> object:
        if not isinstance(content, Mapping):
            return content
        found: dict[object, object] = {}
        problems: list[Problem] = []
        for key, value in content.items():
            value = short(value)
            if not isinstance(value, Mapping):
                found[key] = value
                if not isinstance(value, kind):
                    problems.append(Problem((str(key),), f"found {value!r}; must be a mapping"))
                continue
            try:
                found[key] = kind(**{str(name): item for name, item in value.items()})
            except InvalidRecipe as err:
                problems += [Problem((str(key), *p.path), p.text) for p in err.problems]
        if problems:
            raise InvalidRecipe(problems)
        return found

    return BeforeValidator(check)


def _tolerance(value: object) -> object:
    """A number is an absolute limit; nothing, or the word, is none."""
    if value is None or value == "informational":
        return INFORMATIONAL
    return {"absolute": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _recipe_entry(value: object) -> object:
    """A string is a file; nothing is the default recipe."""
    if value is None:
        return {}
    return {"file": value} if isinstance(value, str) else value


def _metrics(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Tolerances = Annotated[Mapping[str, Tolerance], _mapped(Tolerance, _tolerance)]
Globs = Annotated[tuple[Name, ...], BeforeValidator(_metrics)]


class Settings(Model):
    """What can be said of all entries, of a recipe's, of a model's or of single ones; the latter win.

    Attributes:
        metrics: Names of `onnxq.zoo.tolerances.SCORES`, or ``file.py:function``.
        samples: Samples that calibrate; all of them where nothing says it.
        eval_samples: Samples that evaluate, likewise.
        batch: Samples the models are given at a time, where they take any batch.
        tolerances: How much worse than the baseline each metric may be.
        kernels: Whether scores are those of the runtime's fused kernels, as users run the model here, or those of the
            model as it is written: the same on every processor, for targets that are not this one.
        digest: Whether other bytes than the baseline's are no matter, are told, or are a regression.
        timings: Whether calibration and latency are timed.
        latency_seconds: About how long latency is measured.
        timeout: Seconds after which an entry has failed.
    """

    metrics: Annotated[tuple[Name, ...] | None, BeforeValidator(_metrics)] = None
    samples: Count | None = None
    eval_samples: Count | None = None
    batch: Count | None = None
    tolerances: Tolerances = Field(default={})
    kernels: Literal["fused", "written"] | None = None
    digest: Literal["ignored", "told", "strict"] | None = None
    timings: Flag | None = None
    latency_seconds: Annotated[float, Field(strict=True, ge=0)] | None = None
    timeout: Annotated[float, Field(strict=True, gt=0)] | None = None

    @model_validator(mode="after")
    def _check_metrics(self) -> Settings:
        for index, name in enumerate(self.metrics or ()):
            if name not in SCORES and not _FUNCTION.fullmatch(name):
                hint = nearest(name, SCORES, count=1)
                text = f"found {name!r}; must be {', '.join(SCORES)} or a function such as metrics.py:score{hint}"
                raise InvalidRecipe([Problem(("metrics", index), text)])
        return self


class Defaults(Settings):
    """What holds where nothing else is said.

    Attributes:
        optional: Whether models that are not there are skipped and told, not refused.
    """

    optional: Flag = False


class RecipeEntry(Settings):
    """One recipe, or one for each of several targets, which are named ``recipe@target``.

    Attributes:
        recipe: A recipe, written out.
        file: Or its file: a recipe, a configuration of AMCT's or of MindSpore Lite's converter, or Python with a
            QuantConfig (``my_config.py:q_config``).
        targets: The targets; that of the recipe where nothing is said.
        models: Globs over the names of the models it is for.
        exclude: Globs over the names of models it is not for.
    """

    recipe: Recipe | None = None
    file: Name | None = None
    targets: tuple[TargetName, ...] = ()
    models: Globs = ("*",)
    exclude: Globs = ()

    @model_validator(mode="after")
    def _check_source(self) -> RecipeEntry:
        if self.recipe is not None and self.file is not None:
            raise InvalidRecipe([Problem(("file",), "a recipe is written out as well; leave one out")])
        twice = sorted({target for target in self.targets if self.targets.count(target) > 1})
        if twice:
            raise InvalidRecipe([Problem(("targets",), f"{twice[0]} is given twice")])
        return self


class ModelEntry(Settings):
    """One model and its data; paths are relative to the manifest, and ``$NAME`` is a variable of the environment.

    Attributes:
        model: The float model.
        calibration: Calibration data, as for ``onnxq quantize --data``, or ``file.py:function`` that gives them.
        evaluation: Evaluation data, likewise.
        labels: True classes, as for ``onnxq compare --labels``.
        preprocess: How images become feeds, where a recipe does not say it.
        recipes: Globs over the names of the recipes it is quantized with.
        exclude: Globs over the names of recipes it is not quantized with.
        optional: Whether it is skipped where it is not there; what the defaults say where nothing is said.
    """

    model: Name
    calibration: Name | None = None
    evaluation: Name
    labels: Name | None = None
    preprocess: ImagePreprocess | None = None
    bin_layout: Layout | None = None
    recipes: Globs = ("*",)
    exclude: Globs = ()
    optional: Flag | None = None

    @model_validator(mode="after")
    def _check_labels(self) -> ModelEntry:
        if self.metrics is not None and "top1" in self.metrics and self.labels is None:
            raise InvalidRecipe([Problem(("labels",), "is missing; top1 needs the true classes")])
        return self


class Override(Settings):
    """What is different for some entries.

    Attributes:
        match: Globs over ``model/recipe``.
    """

    match: Globs


class Manifest(Model):
    """A zoo.

    Attributes:
        version: Version of this format.
        baseline: The baseline's file, relative to the manifest.
        defaults: What holds where nothing else is said.
        recipes: The recipes by name.
        models: The models by name.
        overrides: What is different for some entries; the later ones win.
    """

    version: Literal[1] = 1
    baseline: Name | None = None
    defaults: Defaults = Defaults()
    recipes: Annotated[Mapping[str, RecipeEntry], _mapped(RecipeEntry, _recipe_entry)]
    models: Annotated[Mapping[str, ModelEntry], _mapped(ModelEntry)]
    overrides: tuple[Override, ...] = ()
    _source: Path = PrivateAttr(default=Path("zoo.yaml"))

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        problems = [
            Problem((part, name), "a name has letters, digits and any of . _ + - and begins with one of the former")
            for part, names in (("recipes", self.recipes), ("models", self.models))
            for name in names
            if not _NAME.fullmatch(name)
        ]
        problems += [Problem((part,), "is empty") for part in ("recipes", "models") if not getattr(self, part)]
        known = {*SCORES, *ALWAYS, *TIMES, *(m for _, s in self.levels() for m in s.metrics or ())}
        for path, settings in self.levels():
            for name in settings.tolerances:
                if name not in known:
                    text = f"no such metric is measured{nearest(name, known, count=1)}"
                    problems.append(Problem((*path, "tolerances", name), text))
        if problems:
            raise InvalidRecipe(problems)
        return self

    def levels(self) -> list[tuple[tuple[str | int, ...], Settings]]:
        """All settings, and where they stand."""
        found: list[tuple[tuple[str | int, ...], Settings]] = [(("defaults",), self.defaults)]
        found += [(("recipes", name), entry) for name, entry in self.recipes.items()]
        found += [(("models", name), model) for name, model in self.models.items()]
        return found + [(("overrides", index), override) for index, override in enumerate(self.overrides)]

    @property
    def source(self) -> Path:
        """The file it was read from."""
        return self._source

    @property
    def folder(self) -> Path:
        """What its paths are relative to."""
        return self._source.parent


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest, YAML or JSON.

    Raises:
        ManifestError: If it cannot be read or does not fit; it names all problems.
    """
    file = Path(path)
    try:
        content: dict[str, Any] = read_mapping(file, what="a manifest is a mapping with 'recipes' and 'models'")
        manifest = Manifest(**content)
    except InvalidRecipe as err:
        raise invalid(file, err.problems) from None
    except RecipeError as err:
        raise ManifestError(str(err)) from err
    manifest._source = file
    return manifest


def invalid(source: Path, problems: tuple[Problem, ...]) -> ManifestError:
    """The error that tells all problems of a manifest."""
    if len(problems) == 1:
        return ManifestError(f"{source}: {problems[0]}")
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ManifestError(f"{source}: {len(problems)} problems in the manifest{lines}")
