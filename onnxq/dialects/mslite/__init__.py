"""MindSpore Lite's converter: its configuration files and its command.

    from onnxq.dialects import mslite

    config = mslite.load_config("full_quant.cfg")

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.dialects.mslite.params import MsliteConfig, is_mslite_config, load_config, parse_config

__all__ = ["MsliteConfig", "is_mslite_config", "load_config", "parse_config"]

_HOMES = {
    "MsliteConfig": "params",
    "is_mslite_config": "params",
    "load_config": "params",
    "parse_config": "params",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
