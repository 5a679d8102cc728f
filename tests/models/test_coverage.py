"""Every operator that onnxq knows, and every pass that a recipe runs, has a trained model that it is tried on.

What is listed as missing is to be added to a bundled model; the exceptions say why they are none.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import onnx
import pytest

import onnxq
from onnxq import ascend
from onnxq.opinfo import OPS
from onnxq.passes import __path__ as passes_path
from onnxq.passes._base import Pass, PassManager, PassReport
from onnxq.targets import TARGETS
from tests.bundled import FILES, MODELS, samples

NEVER_CODES = {
    "Dropout": "no target takes it; it is left out or stays float",
}
"""Operators that no target computes with codes."""

ELSEWHERE = {
    "DuplicateLayers": "compares layers one by one in accuracy-based calibration: tests/test_stages.py",
    "ApplyBalance": "writes factors of a record: tests/passes/test_apply_balance.py",
    "UseFactors": "inserts numbers of a record: tests/test_stages.py",
    "KeepFloatWeights": "rewrites a result: tests/passes/test_keep_float_weights.py",
    "SplitLinear": "asked for layer by layer: tests/passes/test_split_linear.py",
    "ReadQdq": "reads models that others quantized: tests/passes/test_read_qdq.py",
    "QuantizeOutputs": "reads models that others quantized: tests/test_ascend.py",
    "FitScales": "reads trained parameters: tests/qat",
    "InsertFakeQuant": "makes artifacts of training: tests/qat",
    "InsertMasks": "makes artifacts of training: tests/qat",
    "LegalizeForTraining": "makes artifacts of training: tests/qat/test_legal_models.py, on every bundled model",
}
"""Passes that are not part of quantizing or pruning a float model by a recipe."""

KEPT = {"KeepTwin", "SearchRanges"}

WEIGHT_ONLY = {"kind": "weight_only", "block_size": 16}
RUNS: list[tuple[str, int, dict[str, Any]]] = [
    ("digits_mobilenet_opset11", 8, {}),
    ("digits_mobilenet", 8, {"equalize": {"enabled": True}}),
    ("digits_cnn", 8, {"target": "ascend", "balance": {"strength": 0.5}}),
    ("digits_transformer", 0, {"scheme": "dynamic"}),
    ("digits_lstm", 0, {"scheme": "dynamic"}),
    ("sketch_decoder", 0, {"scheme": "weight_only"}),
    ("sketch_decoder_with_past", 8, {"scheme": WEIGHT_ONLY | {"method": "gptq"}, "weights": {"bits": 4}}),
    ("digits_gru", 0, {"scheme": {"kind": "weight_only", "mixed": {}}}),
    ("digits_cnn", 0, {"scheme": {"kind": "weight_only"}, "weights": {"bits": 4}}),
    ("digits_prototypes", 8, {"weights": {"method": {"name": "adaround", "num_iteration": 8}}}),
    ("ink_unet", 8, {"target": "qnn", "prune": {"kind": "channels", "ratio": 0.3}}),
    ("tones_conv1d", 8, {"prune": "2:4", "refine": [{"kind": "bias_correction", "inputs": "float"}]}),
    ("pairs_answer", 8, {"target": "tensorrt"}),
    ("sketch_decoder", 8, {"target": "qnn"}),
    ("sketch_decoder_with_past", 8, {"cache": {"type": "int8"}}),
]


def op_types(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                yield from op_types(body)


def test_every_operator_of_the_table_is_in_a_model() -> None:
    found = {op for path in FILES for op in op_types(onnx.load(path).graph)}
    assert set(OPS) - found == set()


def test_every_operator_of_the_table_gets_codes_in_a_model() -> None:
    unfolded = {"fuse": {"batchnorm": False}, "target": "qnn"}
    recipes = [*({"target": target} for target in TARGETS), unfolded]
    canonical = [path for path in FILES if "_opset" not in path.stem]
    found = {
        decision.op_type
        for path in canonical
        for recipe in recipes
        for decision in onnxq.plan_model(path, recipe=recipe).plan.decisions
        if decision.role != "float"
    }
    assert set(OPS) - found == set(NEVER_CODES)


def every_pass() -> dict[str, type[Pass]]:
    modules = [importlib.import_module(f"onnxq.passes.{m.name}") for m in pkgutil.iter_modules(passes_path)]
    classes = [c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if c.__module__ == m.__name__]
    concrete = [c for c in classes if issubclass(c, Pass) and not inspect.isabstract(c)]
    return {c.__name__: c for c in concrete if c is not PassManager}


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[str, int]]:
    """What each pass changed at the most, by its name, in all runs."""
    found: dict[str, int] = {}
    run_one = PassManager._run_one

    def noted(manager: PassManager, position: int, step: Pass, graph: Any, ctx: Any) -> PassReport:
        report = run_one(manager, position, step, graph, ctx)
        found[step.name] = max(found.get(step.name, 0), report.changed)
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassManager, "_run_one", noted)
        for name, count, recipe in RUNS:
            path = MODELS / f"{name}.onnx"
            result = onnxq.quantize(path, samples(path, count=count) if count else None, recipe=recipe, threads=1)
            if result.twin is not None:
                ascend.simulate_model(result.model)
                ascend.deploy_to_qdq(result.model)
        yield found


def test_every_pass_runs_on_a_model(reports: dict[str, int]) -> None:
    assert set(every_pass()) - set(reports) == set(ELSEWHERE)


def test_every_pass_that_changes_graphs_has_changed_one(reports: dict[str, int]) -> None:
    """Others note facts, or keep copies and numbers (`KEPT`)."""
    silent = {name for name, step in every_pass().items() if reports.get(name) == 0 and not step.provides}
    assert silent == KEPT
