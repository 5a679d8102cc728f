"""MindSpore Lite's converter: its configuration files and its command.

    from onnxq.dialects import mslite

    done = mslite.convert_model("ONNX", "model.onnx", "model_int8", "full_quant.cfg")

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.dialects.mslite.flags import Flags
    from onnxq.dialects.mslite.job import Conversion, MsliteJob, convert_model, prepare
    from onnxq.dialects.mslite.params import MsliteConfig, is_mslite_config, load_config, parse_config
    from onnxq.dialects.mslite.recipe import to_recipe

__all__ = [
    "Conversion",
    "Flags",
    "MsliteConfig",
    "MsliteJob",
    "convert_model",
    "is_mslite_config",
    "load_config",
    "parse_config",
    "prepare",
    "to_recipe",
]

_HOMES = {
    "Conversion": "job",
    "Flags": "flags",
    "MsliteConfig": "params",
    "MsliteJob": "job",
    "convert_model": "job",
    "is_mslite_config": "params",
    "load_config": "params",
    "parse_config": "params",
    "prepare": "job",
    "to_recipe": "recipe",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
