"""AMCT, Huawei Ascend's model compression toolkit: its configuration, its files and its calls.

    import onnxq.dialects.amct as amct

    amct.create_quant_config("config.json", "model.onnx")

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.dialects.amct.api import (
        AmctJob,
        AutoCalibrationEvaluatorBase,
        ModelEvaluator,
        accuracy_based_auto_calibration,
        convert_qat_model,
        create_quant_config,
        load_config,
        quantize_model,
        quantize_preprocess,
        save_model,
    )
    from onnxq.dialects.amct.prune_search import auto_channel_prune_search
    from onnxq.dialects.amct.record import Record, read_record, write_record
    from onnxq.dialects.amct.retrain_api import (
        RetrainModel,
        create_compressed_retrain_model,
        create_prune_retrain_model,
        create_quant_retrain_config,
        create_quant_retrain_model,
        restore_compressed_retrain_model,
        restore_prune_retrain_model,
        restore_quant_retrain_model,
        save_compressed_retrain_model,
        save_prune_retrain_model,
        save_quant_retrain_model,
    )

__all__ = [
    "AmctJob",
    "AutoCalibrationEvaluatorBase",
    "ModelEvaluator",
    "Record",
    "RetrainModel",
    "accuracy_based_auto_calibration",
    "auto_channel_prune_search",
    "convert_qat_model",
    "create_compressed_retrain_model",
    "create_prune_retrain_model",
    "create_quant_config",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "load_config",
    "quantize_model",
    "quantize_preprocess",
    "read_record",
    "restore_compressed_retrain_model",
    "restore_prune_retrain_model",
    "restore_quant_retrain_model",
    "save_compressed_retrain_model",
    "save_model",
    "save_prune_retrain_model",
    "save_quant_retrain_model",
    "write_record",
]

_RECORD = frozenset({"Record", "read_record", "write_record"})
_ALONE = MappingProxyType({"auto_channel_prune_search": "prune_search"})


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "record" if name in _RECORD else "retrain_api" if "etrain" in name else _ALONE.get(name, "api")
    module = importlib.import_module(f"{__name__}.{home}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
