"""From what a manifest says of a recipe to the recipe for a model: files of any dialect, targets, samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.recipe import Recipe

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess, TargetName
    from onnxq.zoo.matrix import Entry


def is_python(source: str) -> bool:
    """Whether a reference names something in a Python file: ``config.py`` or ``config.py:q_config``."""
    return source.endswith(".py") or ".py:" in source


def recipe_for(entry: Entry) -> Recipe:
    """The recipe of an entry, with its target, samples and preprocessing.

    Args:
        entry: The entry.

    Raises:
        RecipeError: If the file of the recipe does not fit, or not this model.
        OnnxqError: If the model cannot be used.
    """
    source = entry.source
    recipe = _from_file(source, entry.file, entry.target) if isinstance(source, str) else Recipe.from_dict(source)
    if entry.target is not None:
        recipe = recipe.replace(target=entry.target)
    return _reading(recipe, entry.settings.samples, entry.preprocess)


def _from_file(source: str, model: Path, target: TargetName | None) -> Recipe:
    if is_python(source):
        return _from_python(source, model, target)
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        return Recipe.from_file(source)
    # Every process of a run would wait for these imports, and few manifests need them.
    from onnxq.dialects.amct.job import is_amct_config, load_config
    from onnxq.dialects.amct.retrain_job import is_retrain_config, load_retrain_config
    from onnxq.dialects.mslite.job import prepare
    from onnxq.dialects.mslite.params import is_mslite_config

    path = Path(source)
    if is_mslite_config(path):
        return prepare(path).require_recipe()
    if is_retrain_config(path):
        return load_retrain_config(path, model).recipe
    if is_amct_config(path):
        return load_config(path, model).recipe
    return Recipe.from_file(path)


def _from_python(source: str, model: Path, target: TargetName | None) -> Recipe:
    from onnxq.dialects.paddle.convert import BASE
    from onnxq.dialects.paddle.files import load_python_config

    return load_python_config(source).to_recipe(model, base=BASE.replace(target=target or BASE.target))


def _reading(recipe: Recipe, samples: int | None, preprocess: ImagePreprocess | None) -> Recipe:
    """The recipe for so many samples, and images as the model takes them where it does not say itself."""
    calibration = recipe.calibration
    if samples is not None:
        calibration = calibration.replace(samples=samples)
    if preprocess is not None and calibration.preprocess is None:
        calibration = calibration.replace(preprocess=preprocess)
    return recipe.replace(calibration=calibration)
