"""Every example runs without arguments and prints what it promises."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.qat.runtime import training_runtime

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

PROMISES = {
    "amct_flow.py": [
        "calibrated: True",
        "written: net_deploy_model.onnx, net_fake_quant_model.onnx, net_quant.json",
        "stem/conv: scale_d 0.0",
        "simulated exactly: accuracy 9",
    ],
    "qat_digits.py": [
        "epoch 2: loss 0.0",
        "4 bit weights: accuracy 9",
        "interrupted and restored: the same file: True",
    ],
    "paddle_ptq.py": ["before\n", "after ", "quantized: converted"],
    "own_pass.py": ["before: ", "ClipToRelu", "0 Clip"],
    "fuse_equalize_verify.py": ["FuseBatchNorm", "saved 01_AssignNames.onnx to 07_Sweep.onnx", " alone: "],
    "custom_pipeline.py": [
        "pass 1 FuseBatchNorm needs CONSTANTS_LIFTED, which only LiftConstants after it provides",
        "pass 2 EqualizeLayers needs BN_FUSED, which only FuseBatchNorm after it provides",
        "preserves the function: False",
        "skip_layers lists",
    ],
    "quantize_step_by_step.py": [
        "float: accuracy 99.",
        "head stays float: the recipe skips 'head'",
        "int8: accuracy 99.",
    ],
}


def test_there_are_at_least_three() -> None:
    assert len(EXAMPLES) >= 3
    assert set(PROMISES) <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    if "onnxq.qat" in path.read_text(encoding="utf-8"):
        training_runtime()  # skips where none can be had
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for promise in PROMISES.get(path.name, []):
        assert promise in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example_is_short_and_says_what_it_shows(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert lines[0].startswith('"""')


def test_the_code_in_the_documentation_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "writing_a_pass.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    program = "\n".join([*blocks[:2], "print(report.changed, [n.op for n in graph.nodes('Clip')])"])
    shutil.copy(ROOT / "models" / "digits_mobilenet.onnx", tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    changed, clips = done.stdout.split(maxsplit=1)
    assert int(changed) > 10
    assert clips.strip() == "[]"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_import_no_private_module(path: Path) -> None:
    assert "._" not in "\n".join(line for line in path.read_text().splitlines() if line.startswith(("import", "from")))
