"""The project around the code: versions, commands, documents. What a document says is run or looked up."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import onnxq
from onnxq.pipeline import plan_model
from tests.qat.runtime import training_runtime

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAVY = {
    "onnx",
    "onnxruntime",
    "onnx_graphsurgeon",
    "numpy",
    "numba",
    "cv2",
    "pydantic",
    "typer",
    "rich",
    "yaml",
    "jinja2",
}
"""Packages that `import onnxq` and ``onnxq --version`` have no use for."""

by_name = {"ids": lambda path: path.name}


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)


def blocks(path: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(path.read_text(encoding="utf-8")) if found == language]


def test_one_version():
    assert pyproject()["project"]["version"] == onnxq.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", onnxq.__version__)


def test_the_changelog_has_a_place_for_the_next_change():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_ci_runs_the_linters_and_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"Run the tests:\n\n    (.+)\n", readme)
    assert command
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#!")
    assert "set -euo pipefail" in lines
    assert lines.index("make lint") < lines.index(command[1])


@pytest.mark.parametrize("target", ["demo", "test", "bench", "lint", "clean"])
def test_the_makefile_has_the_target_and_help_tells_it(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert re.search(rf'@echo "make {target} +\w', makefile)
    assert target in re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split()


def test_every_dependency_has_a_lower_bound_and_a_reason():
    project = pyproject()["project"]
    named = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for dependency in named:
        assert ">=" in dependency or "~=" in dependency, dependency
        reason = re.search(rf'^  "{re.escape(dependency)}", *# (.+)$', text, re.MULTILINE)
        assert reason, f"{dependency}: say behind it what it is for"
        assert len(reason[1].split()) > 2, reason[0]


def test_every_import_of_the_package_is_a_dependency():
    """Packages are imported under another name than they are installed under."""
    installed_as = {"onnx_graphsurgeon": "onnx-graphsurgeon", "yaml": "PyYAML", "cv2": "opencv-python-headless"}
    installed_as |= {"google": "protobuf", "pydantic_core": "pydantic"}
    used = set()
    for path in (ROOT / "onnxq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add((node.module or "").split(".")[0])
    used -= {"onnxq", "typing_extensions"} | sys.stdlib_module_names  # the latter for type checkers only
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["pack"], *extras["distributed"]]
    named = {re.split(r"[<>=~!\[;]", d)[0] for d in needed}
    assert {installed_as.get(name, name) for name in used} <= named


def test_import_is_light():
    done = python("import sys, onnxq, onnxq.cli; print(*sorted({m.split('.')[0] for m in sys.modules}))")
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(done.stdout.split()) == set()


def test_every_public_name_can_be_imported():
    assert sorted(onnxq.__all__) == sorted(set(onnxq.__all__))
    missing = [name for name in onnxq.__all__ if getattr(onnxq, name, None) is None]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, **by_name)
def test_links_lead_somewhere(path):
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    headings = {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        assert (path.parent / file).exists(), link
        assert file or anchor in headings, link


@pytest.mark.parametrize("path", DOCUMENTS, **by_name)
def test_code_blocks_name_modules_that_exist(path):
    for text in blocks(path, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "", alias.name) for alias in node.names]
            else:
                continue
            for module, name in names:
                assert importlib.util.find_spec(module), module
                if module.split(".")[0] == "onnxq" and name:
                    assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("path", DOCUMENTS, **by_name)
def test_documents_have_no_paths_of_a_machine(path):
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users|opt)/", path.read_text(encoding="utf-8"))


RUN = [
    "README.md",
    "docs/tutorial.md",
    "docs/why_not_quantized.md",
    "docs/migrating_from_paddleslim.md",
    "docs/migrating_from_mindspore_lite.md",
    "docs/qat.md",
    "docs/transformers.md",
    "docs/types.md",
]


@pytest.mark.parametrize("name", RUN)
def test_blocks_run(name, tmp_path):
    """Commands, recipes and code, in order and in one process each; what one writes the next may read."""
    if name == "docs/qat.md":
        training_runtime()  # skips where none can be had
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("train", "__pycache__"))
    code = []
    for language, text in BLOCK.findall((ROOT / name).read_text(encoding="utf-8")):
        if language == "ini":
            (tmp_path / text.splitlines()[0][2:]).write_text(text, encoding="utf-8")
        elif language == "yaml":
            first = text.splitlines()[0]
            file = tmp_path / (first[2:] if first.startswith("# ") else "block.yaml")
            file.write_text(text, encoding="utf-8")
            show = "import onnxq; onnxq.Recipe.from_file(__import__('pathlib').Path({!r}))"
            assert python(show.format(file.name), cwd=tmp_path).returncode == 0, text
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                run_line(line, tmp_path)
        elif language == "python":
            code.append(text)
            done = python("\n".join(code), cwd=tmp_path)
            assert done.returncode == 0, f"{text}\n{done.stderr}"


def run_line(line: str, folder: Path) -> None:
    words = shlex.split(line)
    assert words[0] == "onnxq", line
    command = [sys.executable, "-c", "from onnxq.cli import main; main()", *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_commands_of_the_readme_run(tmp_path):
    (tmp_path / "models").symlink_to(ROOT / "models")
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    (onnxq .+)$", text, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        run_line(line, tmp_path)


def reasons() -> list[re.Pattern[str]]:
    """The headings of the page that explains reasons; the ellipsis stands for anything."""
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "why_not_quantized.md").read_text(encoding="utf-8"), re.M)
    return [re.compile(".+".join(map(re.escape, heading.split("…")))) for heading in headings]


RECIPES = [
    {},
    {"skip": ["*a*", "Conv"]},
    {"rules": [{"match": {"op_type": "MatMul"}, "skip": True}]},
    {"activations": {"type": "int8", "symmetric": True}},
    {"target": "tensorrt"},
    {"target": "qnn"},
    {"target": "ascend"},
    {"target": "kirin"},
    {"scheme": "dynamic"},
    {"scheme": "weight_only"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize(
    "model",
    [
        "digits_cnn",
        "digits_gru",
        "digits_mobilenet",
        "digits_transformer",
        "digits_transformer_opset11",
        "pairs_answer",
    ],
)
def test_every_reason_is_explained(model, recipe):
    unexplained = {
        decision.reason
        for decision in plan_model(ROOT / "models" / f"{model}.onnx", recipe=recipe).plan.left_float()
        if not any(pattern.match(decision.reason) for pattern in reasons())
    }
    assert unexplained == set()


def test_every_explained_reason_exists():
    """Each piece of a heading is in a string of the code, so that the page does not outlive it.

    A reason may be put together from several strings, so it is also cut at punctuation.
    """
    strings = []
    for path in [*(ROOT / "onnxq").glob("*.py"), *(ROOT / "onnxq").rglob("[!c]*/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.JoinedStr():
                    strings.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
                case ast.Constant(value=str() as text):
                    strings.append(text)
    everything = "\n".join(strings)
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "why_not_quantized.md").read_text(encoding="utf-8"), re.M)
    assert len(headings) > 30
    for heading in headings:
        for piece in re.split(r"…|[:,;()\[\]]|\bcomes\b", heading):
            assert piece.strip() in everything, heading
