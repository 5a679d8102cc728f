"""A `QuantConfig` in a Python file, as ``my_config.py:q_config``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from onnxq.dialects.paddle.config import QuantConfig
from onnxq.errors import RecipeError, nearest


def load_python_config(text: str | Path) -> QuantConfig:
    """Run a Python file and take a `QuantConfig` out of it.

    Args:
        text: ``file.py:variable``; the variable may be left out where there is only one.

    Raises:
        RecipeError: If there is no such file or variable, the file fails, or the variable is something else.
    """
    path, variable = (str(text), "") if str(text).endswith(".py") else str(text).rsplit(":", 1)
    found = _variables(Path(path))
    configs = {name: value for name, value in found.items() if isinstance(value, QuantConfig)}
    if not variable:
        if len(configs) == 1:
            return next(iter(configs.values()))
        listed = ", ".join(configs) or "none"
        raise RecipeError(f"{path}: found {len(configs)} QuantConfigs ({listed}); name one, such as {path}:q_config")
    if variable not in found:
        raise RecipeError(f"{path} has no variable {variable!r}{nearest(variable, configs or found)}")
    if variable not in configs:
        raise RecipeError(f"{path}: {variable} is {type(found[variable]).__name__}; must be a QuantConfig")
    return configs[variable]


def _variables(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise RecipeError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except RecipeError as err:
        raise RecipeError(f"{path}: {err}") from err
    except Exception as err:
        raise RecipeError(f"{path}: {type(err).__name__}: {err}") from err
    return dict(vars(module))
