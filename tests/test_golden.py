"""The default recipe still makes of the bundled models what it made of them; see tests/golden/regenerate.py.

Structure, types and zero points are compared exactly, scales within 0.2 %: ONNX Runtime's kernels add in
another order on other processors, and a search over bins may then settle on the neighbouring one.
"""

from __future__ import annotations

import re

import pytest

from tests.golden.regenerate import HERE, NAMES, PLANNED, golden_text, planned_text

NUMBER = re.compile(r"(?<= )(\d+\.\d+(?:e-?\d+)?|\d+e-?\d+)(?= \d+$)", re.MULTILINE)
HINT = "if the change is meant: python -m tests.golden.regenerate"


@pytest.mark.parametrize("name", NAMES)
def test_the_default_recipe_makes_the_same_of_a_bundled_model(name: str) -> None:
    wanted, found = (HERE / f"{name}.txt").read_text(encoding="utf-8"), golden_text(name)
    assert NUMBER.sub("#", found).splitlines() == NUMBER.sub("#", wanted).splitlines(), HINT
    old, new = NUMBER.findall(wanted), NUMBER.findall(found)
    assert len(new) > 5
    assert [float(v) for v in new] == pytest.approx([float(v) for v in old], rel=2e-3), HINT


@pytest.mark.parametrize("name", NAMES)
def test_the_files_say_what_matters(name: str) -> None:
    text = (HERE / f"{name}.txt").read_text(encoding="utf-8")
    scales = [float(v) for v in NUMBER.findall(text)]
    assert all(scale > 0 for scale in scales)
    quantize = int(re.search(r"^  QuantizeLinear (\d+)$", text, re.MULTILINE)[1])
    dequantize = int(re.search(r"^  DequantizeLinear (\d+)$", text, re.MULTILINE)[1])
    assert dequantize > quantize >= len(scales)


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_of_a_bundled_model_is_the_same(name: str) -> None:
    wanted = (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert planned_text(name).splitlines() == wanted, HINT
    for target in ("ort", "qnn"):
        assert any(line.endswith(" quantized") for line in wanted[wanted.index(f"target {target}: nodes") :])
