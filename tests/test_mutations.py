"""The mutations still fit the source; `python benchmarks/mutations.py` runs the tests against them."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _load():
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "benchmarks" / "mutations.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


mutations = _load()


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_fits_the_source_and_has_tests(mutation) -> None:
    assert mutation.edits
    assert any((ROOT / name).is_file() for name in mutation.tests)
    for edit in mutation.edits:
        text = (ROOT / edit.file).read_text(encoding="utf-8")
        assert edit.old in text
        changed = text.replace(edit.old, edit.new)
        assert changed != text
        ast.parse(changed)


def test_what_has_to_be_broken_is() -> None:
    names = " ".join(m.name for m in mutations.MUTATIONS)
    for what in (
        "BN fusion",
        "bias scale",
        "zero point",
        "histogram",
        "pairs",
        "Relu",
        "Concat",
        "correction",
        "factors",
    ):
        assert what in names


def test_names_of_tests_are_shortened() -> None:
    found = mutations.short({"t.py::a[1]", "t.py::a[2]", "t.py::b"})
    assert found == ["t.py::a (2 times)", "t.py::b"]
