"""What AMCT's command line does: from files to files."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxq import stages
from onnxq.dialects.amct import api
from onnxq.dialects.amct.config import AmctConfig
from onnxq.dialects.amct.deployment import DeployedFiles, record_of, write_models
from onnxq.dialects.amct.evaluator import AutoCalibrationEvaluatorBase, ModelEvaluator
from onnxq.dialects.amct.job import AmctJob, load_config, prepare
from onnxq.dialects.amct.record import write_record
from onnxq.errors import DataError
from onnxq.live import LiveCalibration


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` wrote.

    Attributes:
        files: The files; none if everything would have to stay float.
        notes: What a user should know, a sentence each.
        facts: What there is to tell, by name.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)


def calibrate(
    model: Path,
    save_path: str,
    evaluator: AutoCalibrationEvaluatorBase,
    config: Path | None = None,
    batch_num: int | None = None,
    strategy: str | None = None,
) -> Calibrated:
    """Calibrate a model and write everything that belongs to a deployed one.

    Args:
        model: The float model.
        save_path: Prefix of the files.
        evaluator: Gives the data, and with a strategy the verdict.
        config: Simplified or JSON configuration; None for AMCT's defaults.
        batch_num: Batches that calibrate; None for what the configuration says.
        strategy: Search for what the evaluator accepts; None quantizes what the configuration says.

    Raises:
        OnnxqError: If anything that was given cannot be used.
    """
    files = DeployedFiles.under(save_path)
    if strategy is not None:
        return _search(model, save_path, evaluator, config, strategy, files)
    job = prepare(AmctConfig(batch_num=batch_num or 1), model) if config is None else load_config(config, model)
    chosen = _chosen(model, job, batch_num or job.batch_num, evaluator)
    inserted = stages.insert(chosen.graph, chosen.factors, recipe=chosen.recipe)
    written = write_models(inserted.deploy, inserted.fake_quant, api.skeleton_of(model), files)
    record = write_record(record_of(chosen.factors, fp16=job.recipe.fp16_scales), files.record)
    facts: dict[str, object] = {"layers quantized": len(chosen.factors), "samples": chosen.samples}
    return Calibrated((*written, record), (*job.notes, *chosen.notes), facts)


def _chosen(model: Path, job: AmctJob, batches: int, evaluator: AutoCalibrationEvaluatorBase) -> stages.Chosen:
    found: list[stages.Chosen] = []

    def finish(feeds: Any) -> None:  # noqa: ANN401 - a function that gives feeds
        found.append(stages.measure(model, feeds, recipe=job.recipe).choose())

    live = LiveCalibration(model, batches, finish)
    if isinstance(evaluator, ModelEvaluator):
        evaluator.calibration(live, batches)
    else:
        evaluator.calibration(live)
    live.require_finished()
    return found[0]


def _search(
    model: Path,
    save_path: str,
    evaluator: AutoCalibrationEvaluatorBase,
    config: Path | None,
    strategy: str,
    files: DeployedFiles,
) -> Calibrated:
    path = config
    if path is None:
        path = files.record.with_name("accuracy_based_auto_calibration_config.json")
        api.create_quant_config(path, model)
    found = api.accuracy_based_auto_calibration(model, evaluator, path, files.record, save_path, strategy)
    facts: dict[str, object] = {
        "evaluations": found.evaluations,
        "calibrations": found.calibrations,
        "layers rolled back": list(found.rolled_back),
        "layers with other algorithms": list(found.fixed),
    }
    if not found.found:
        return Calibrated((), ("everything would have to stay float: no model is written",), facts)
    return Calibrated((files.deploy, files.fake_quant, files.fusion, files.record), (), facts)


def load_evaluator(file: str | os.PathLike[str]) -> AutoCalibrationEvaluatorBase:
    """Make the evaluator that a Python file defines: its only class derived from `AutoCalibrationEvaluatorBase`.

    Args:
        file: The file; it is executed.

    Raises:
        DataError: If there is no such file, it does not run, or it has no such class or several.
    """
    path = Path(file)
    module = _imported(path)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, AutoCalibrationEvaluatorBase)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(c.__name__ for c in found) or "none"
        raise DataError(f"{path}: needs one class derived from AutoCalibrationEvaluatorBase; found {names}")
    try:
        return found[0]()
    except TypeError as err:
        raise DataError(f"{path}: {found[0].__name__}() must work without arguments: {err}") from err


def _imported(path: Path) -> ModuleType:
    name = f"onnxq_evaluator_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise DataError(f"{path}: there is no Python file of that name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise DataError(f"{path} does not run: {type(err).__name__}: {err}") from err
    return module
