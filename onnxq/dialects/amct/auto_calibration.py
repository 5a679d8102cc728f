"""Accuracy-based calibration: the search for what has to stay in float, and the files that tell about it.

    result = auto_calibrate(prober, evaluator.metric_eval, strategy_of("Repair"))
    write_files(result, config, "results/net")

The files have AMCT's names and places. What differs: the history is one JSON list with the trial of the whole
quantized model in front, where AMCT writes one object behind the other; and where layers are quantized otherwise than
configured, the history says how under ``fixes``.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxq.dialects._files import write_text
from onnxq.dialects.amct.evaluator import AutoCalibrationEvaluatorBase, ModelEvaluator
from onnxq.dialects.amct.search import (
    AS_CONFIGURED,
    ROLLED_BACK,
    Choice,
    Fix,
    MetricEval,
    Prober,
    SearchResult,
    Settings,
    Strategy,
    Trial,
    Trials,
    auto_calibrate,
)
from onnxq.dialects.amct.strategies import BinarySearch, Repair, strategy_of
from onnxq.errors import CalibrationError

__all__ = [
    "AS_CONFIGURED",
    "FINAL_CONFIG",
    "HISTORY",
    "RANKING",
    "ROLLED_BACK",
    "AutoCalibrationEvaluatorBase",
    "BinarySearch",
    "Choice",
    "Fix",
    "MetricEval",
    "ModelEvaluator",
    "Prober",
    "Repair",
    "SearchResult",
    "Settings",
    "Strategy",
    "Trial",
    "Trials",
    "apply_settings",
    "auto_calibrate",
    "strategy_of",
    "write_files",
]

FINAL_CONFIG = "accuracy_based_auto_calibration_final_config.json"
RANKING = "accuracy_based_auto_calibration_ranking_information.json"
HISTORY = "accuracy_based_auto_calibration_record.json"


def apply_settings(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """What a configuration becomes by what a search found.

    What the file can say is changed: `quant_enable`, the algorithms HFMG and AdaRound, the whole range, scales per
    channel. IFMR with both ends searched and bias correction have no place in it.

    Args:
        config: The content of the file that `create_quant_config` writes; it is not changed.
        settings: What to do with each layer.
    """
    changed = copy.deepcopy(dict(config))
    for layer, choice in settings.items():
        entry = changed.setdefault(layer, {})
        entry["quant_enable"] = choice.quantize
        for fix in Fix:
            if fix in choice.fixes:
                _apply_fix(entry, fix)
    return changed


def _apply_fix(entry: dict[str, Any], fix: Fix) -> None:
    act = entry.get("activation_quant_params", {})
    kept = {key: act[key] for key in ("num_bits", "asymmetric") if key in act}
    if fix is Fix.HFMG:
        entry["activation_quant_params"] = {**kept, "act_algo": "hfmg", "num_of_bins": 4096}
    elif fix is Fix.MAX_RANGE:
        whole = {"max_percentile": 1.0, "min_percentile": 1.0, "search_range": [1.0, 1.015625], "search_step": 0.015625}
        entry["activation_quant_params"] = {**kept, **whole, "act_algo": "ifmr"}
    weights = entry.setdefault("weight_quant_params", {}) if fix in (Fix.PER_CHANNEL, Fix.ADAROUND) else {}
    if fix is Fix.PER_CHANNEL:
        weights["channel_wise"] = True
    elif fix is Fix.ADAROUND:
        rounding = {"num_iteration": 200, "reg_param": 0.01, "beta_range": [20, 2], "warm_start": 0.2}
        weights.update({"wts_algo": "ada_quantize", **rounding})


def write_files(
    result: SearchResult,
    config: Mapping[str, Any],
    save_dir: str | os.PathLike[str],
    *,
    log_dir: str | os.PathLike[str] | None = None,
) -> tuple[Path, ...]:
    """Write what a search found, next to where its models go.

    The final configuration is written only where there is a model; one of an earlier search is removed otherwise.

    Args:
        result: What the search found.
        config: The content of the file that `create_quant_config` writes.
        save_dir: Folder and prefix of the models, as for `save_model`: ``results/net``.
        log_dir: The folder of the history; `amct_log` in the folder of `save_dir` by default.

    Returns:
        The files written: final configuration, ranking, history.

    Raises:
        CalibrationError: If a file cannot be written.
    """
    folder = Path(os.path.split(os.fspath(save_dir))[0] or ".")
    logs = folder / "amct_log" if log_dir is None else Path(log_dir)
    contents: dict[Path, object] = {}
    if result.found:
        contents[folder / FINAL_CONFIG] = apply_settings(config, result.settings)
    contents[folder / RANKING] = [[layer, float(value)] for layer, value in result.ranking]
    contents[logs / HISTORY] = [_history_entry(trial, result.settings) for trial in result.history]
    try:
        for place in (folder, logs):
            place.mkdir(parents=True, exist_ok=True)
        if not result.found:
            (folder / FINAL_CONFIG).unlink(missing_ok=True)
    except OSError as err:
        raise CalibrationError(f"cannot write into {folder}: {err.strerror or err}") from err
    return tuple(write_text(path, _json(content), "file", CalibrationError) for path, content in contents.items())


def _history_entry(trial: Trial, layers: Settings) -> dict[str, object]:
    done = {layer: trial.settings.get(layer, AS_CONFIGURED) for layer in layers}
    loss = trial.loss if math.isfinite(trial.loss) else None
    entry: dict[str, object] = {
        "roll_back_config": {layer: choice.quantize for layer, choice in done.items()},
        "metric_eval": [trial.ok, loss],
    }
    if fixes := {layer: sorted(f.value for f in choice.fixes) for layer, choice in done.items() if choice.fixes}:
        entry["fixes"] = fixes
    return entry


def _json(content: object) -> str:
    """As AMCT lays out its files."""
    return json.dumps(content, indent=4, separators=(",", ":"), ensure_ascii=False) + "\n"
