"""Who may import whom, how long things may be, and what no module does.

Each rule is a function from a parsed module to its problems. It is run on every module of onnxq, and on
small sources that break it: a rule that cannot fail holds nothing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 600
MAX_BODY = 60
TARGETS = {"ort", "tensorrt", "qnn", "ascend", "kirin"}
FRAMEWORKS = {"torch", "tensorflow", "keras", "paddle", "jax", "mxnet", "mindspore"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}

BASE = {"errors", "spec", "stats", "observers", "_version"}
CORE = BASE | {
    "recipe",
    "plan",
    "factors",
    "learned",
    "opinfo",
    "targets",
    "context",
    "graph",
    "modelio",
    "costs",
    "runtime",
    "calib",
    "algos",
}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "_version": set(),
    "spec": {"errors"},
    "observers": {"errors"},
    "stats": {"errors", "spec", "observers"},
    "opinfo": {"errors", "spec"},
    "targets": {"errors", "spec", "targets"},
    "_recipe": {"errors", "spec", "observers", "_recipe", "recipe"},
    "recipe": {"errors", "spec", "_recipe"},
    "plan": {"errors", "spec", "recipe"},
    "factors": {"errors", "spec"},
    "learned": {"errors", "spec", "algos"},
    "_graph": {"errors", "spec", "_graph"},
    "graph": {"errors", "spec", "_graph", "modelio"},
    "modelio": {"errors", "spec", "_graph", "graph"},
    "costs": {"errors", "spec", "graph"},
    "runtime": {"errors", "spec", "graph", "modelio", "calib.feeds"},
    "algos": {"errors", "spec", "stats", "algos"},
    "calib": {"_version", "errors", "spec", "stats", "observers", "recipe", "runtime", "algos", "calib"},
    "context": {"errors", "spec", "stats", "recipe", "plan", "targets", "calib", "algos", "passes._base"}
    | {"factors", "graph", "learned"},
    "instruments": {"errors", "context", "graph", "modelio", "runtime", "passes._base"},
    "passes": CORE | {"passes"},
    "result": CORE | {"passes._base"},
    "pipeline": CORE | {"passes", "instruments", "result"},
    "pruning": CORE | {"passes", "pipeline", "result"},
    "stages": CORE | {"passes", "pipeline", "instruments", "result"},
    "live": CORE | {"pipeline"},
    "packing": BASE | {"_graph.wire", "algos", "packing"},
    "shapes": CORE | {"pipeline"},
    "ascend": CORE | {"passes", "pipeline", "instruments", "stages", "ascend"},
    "report": CORE | {"result", "pipeline", "instruments", "ascend", "report"}
    | {"passes._base", "passes._inputs", "passes.assign_names"},
    "tune": CORE | {"passes", "pipeline", "stages", "instruments", "report", "tune"},
    "qat": CORE | {"passes", "pipeline", "instruments", "result", "report", "pruning", "qat"},
    "zoo": CORE | {"_recipe", "pipeline", "instruments", "result", "ascend", "report", "tune", "dialects", "zoo"},
    "dialects": {*BASE, "", "recipe", "plan", "factors", "calib.readers", "pipeline", "result", "dialects"}
    | {"stages", "live", "ascend", "tune", "shapes", "report", "qat", "runtime"},
    "cli": {*BASE, "", "recipe", "plan", "targets", "pipeline", "instruments", "pruning", "cli"}
    | {"report", "tune", "qat", "zoo", "dialects", "packing"},
    "": CORE
    | {"passes._base", "pipeline", "pruning", "result", "instruments", "report.debug", "report.debug_files", ""},
}  # fmt: skip
"""What the modules of onnxq may import of onnxq, by the first part of their names; "" is the package itself."""

EXTERNAL: dict[str, set[str]] = {
    "errors": set(),
    "targets": set(),
    "opinfo": set(),
    "plan": {"numpy"},
    "spec": {"numpy"},
    "observers": {"numpy"},
    "stats": {"numpy"},
    "algos": {"numpy", "numba", "llvmlite"},
}
"""Packages outside the standard library, for the layers that are to stay light."""

ONLY_IMPORTER: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("runtime", "qat._worker_runtime"),
    "onnx_graphsurgeon": ("graph", "_graph"),
    "numba": ("algos",),
    "cv2": ("calib",),
    "typer": ("cli",),
    "rich": ("cli", "instruments"),
    "jinja2": ("report",),
    "constriction": ("packing",),
    "distributed": ("calib",),
}


@dataclass(frozen=True)
class Module:
    """A module of onnxq: its name without ``onnxq.`` and its source."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def imports(self) -> tuple[str, ...]:
        """What is imported anywhere in it; ``from a import b`` counts as ``a.b``, ``b`` being a module or not."""
        return tuple(_imports(self.tree))

    @property
    def layer(self) -> str:
        return self.name.split(".")[0]


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                dots = "." * node.level
                yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                if node.args and isinstance(node.args[0], ast.Constant):
                    yield str(node.args[0].value)


def _internal(module: Module) -> Iterator[str]:
    """Imported modules of onnxq, without ``onnxq.``; the names taken from the package itself are ""."""
    for name in module.imports:
        first, _, rest = name.partition(".")
        if first == "onnxq":
            inner = rest.split(".")[0]
            yield rest if inner in LAYERS or (ROOT / "onnxq" / inner).exists() else ""


def _under(name: str, layers: set[str] | tuple[str, ...]) -> bool:
    return any(name == layer or (layer and name.startswith(f"{layer}.")) for layer in layers)


def layering(module: Module) -> Iterator[str]:
    if module.layer not in LAYERS:
        yield f"onnxq.{module.name} is new: say in LAYERS what it may import"
        return
    for name in _internal(module):
        if not _under(name, LAYERS[module.layer]):
            yield f"imports onnxq.{name}"


def no_relative_imports(module: Module) -> Iterator[str]:
    yield from (f"relative import {name}" for name in module.imports if name.startswith("."))


def passes_do_not_import_passes(module: Module) -> Iterator[str]:
    """Modules with a leading underscore are what passes share; they do not import passes either."""
    if module.layer != "passes":
        return
    for name in _internal(module):
        parts = name.split(".")
        if parts[0] == "passes" and len(parts) > 1 and not parts[1].startswith("_"):
            yield f"imports the pass onnxq.{name}"


def light_layers(module: Module) -> Iterator[str]:
    if module.layer not in EXTERNAL:
        return
    for name in module.imports:
        first = name.split(".")[0]
        if first not in EXTERNAL[module.layer] | {"onnxq"} | sys.stdlib_module_names:
            yield f"imports {first}"


def single_importers(module: Module) -> Iterator[str]:
    for name in module.imports:
        first = name.split(".")[0]
        if first in ONLY_IMPORTER and not _under(module.name, ONLY_IMPORTER[first]):
            yield f"imports {first}, which is the business of {' and '.join(ONLY_IMPORTER[first])}"


def no_training_framework(module: Module) -> Iterator[str]:
    yield from (f"imports {name}" for name in module.imports if name.split(".")[0] in FRAMEWORKS)


def targets_are_told_apart_by_their_data(module: Module) -> Iterator[str]:
    """No ``if target == "ascend"``: what differs is a field of `Target`."""
    if module.layer == "targets":
        return
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Compare, ast.MatchValue)):
            literals = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
            yield from (f"line {node.lineno}: compares with {v!r}" for v in literals if v in TARGETS)


def no_pickle(module: Module) -> Iterator[str]:
    yield from (f"imports {name}" for name in module.imports if name.split(".")[0] in UNPICKLERS)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and _called(node) in ("np.load", "numpy.load", "np.lib.format.read_array"):
            given = {k.arg: k.value for k in node.keywords}.get("allow_pickle")
            if not (isinstance(given, ast.Constant) and given.value is False):
                yield f"line {node.lineno}: {_called(node)} without allow_pickle=False"
    if "numpy.load" in module.imports:
        yield "imports load from numpy, where this rule cannot see how it is called"


def safe_yaml(module: Module) -> Iterator[str]:
    """`yaml.safe_load`, or another function with a loader that is a `yaml.SafeLoader`."""
    yield from (f"imports {n}, write yaml.…" for n in module.imports if n.startswith("yaml."))
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and node.bases and all(ast.unparse(b) in safe for b in node.bases):
            safe.add(node.name)
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or not _called(node).startswith("yaml."):
            continue
        verb = _called(node).removeprefix("yaml.")
        loader = {k.arg: ast.unparse(k.value) for k in node.keywords}.get("Loader")
        if verb.startswith(("unsafe_", "full_")) or (
            verb in ("load", "load_all", "compose", "compose_all") and loader not in safe
        ):
            yield f"line {node.lineno}: yaml.{verb} with {loader or 'no safe loader'}"


def no_code_from_text(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and _called(node) in ("eval", "exec", "os.system", "os.popen"):
            yield f"line {node.lineno}: {_called(node)}"
        elif isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) != "False":
            yield f"line {node.value.lineno}: shell={ast.unparse(node.value)}"


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def short_files(module: Module) -> Iterator[str]:
    count = len(module.source.splitlines())
    if count > MAX_LINES:
        yield f"{count} lines, at most {MAX_LINES}"


def short_functions(module: Module) -> Iterator[str]:
    """Counted without the signature and the docstring: the options of a command are its signature."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            count = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if count > MAX_BODY:
                yield f"line {node.lineno}: {node.name} has {count} lines, at most {MAX_BODY}"


def docstrings(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield "no docstring"
    yield from _without_docstring(module.tree.body)


def _without_docstring(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            decorators = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
            if not ast.get_docstring(node) and not decorators & {"overload", "setter", "override"}:
                yield f"line {node.lineno}: {node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                yield from _without_docstring(node.body)


Rule = Callable[[Module], Iterator[str]]
LONG_FUNCTION = '"""."""\ndef _f():\n' + "    x = 1\n" * (MAX_BODY + 1)
BROKEN: list[tuple[Rule, str, str, str]] = [
    (layering, "algos.x", "from onnxq.graph import GraphModel", "imports onnxq.graph.GraphModel"),
    (layering, "algos.x", "from onnxq import GraphModel", "imports onnxq."),
    (layering, "calib.x", "import onnxq.pipeline", "imports onnxq.pipeline"),
    (layering, "calib.x", "def _f():\n    from onnxq.passes import sweep", "imports onnxq.passes.sweep"),
    (layering, "calib.x", "from onnxq import graph", "imports onnxq.graph"),
    (layering, "passes.x", "if TYPE_CHECKING:\n    from onnxq.pipeline import Result", "imports onnxq.pipeline.Result"),
    (layering, "targets.x", "from onnxq.passes._base import Pass", "imports onnxq.passes._base.Pass"),
    (layering, "targets.x", "from onnxq.graph import GraphModel", "imports onnxq.graph.GraphModel"),
    (layering, "cli.x", "from onnxq.passes.sweep import Sweep", "imports onnxq.passes.sweep.Sweep"),
    (layering, "cli.x", "from onnxq.algos.affine import quantize", "imports onnxq.algos.affine.quantize"),
    (layering, "cli.x", "importlib.import_module('onnxq.graph')", "imports onnxq.graph"),
    (layering, "dialects.amct.x", "from onnxq.graph import GraphModel", "imports onnxq.graph.GraphModel"),
    (layering, "report.x", "from onnxq.cli.app import app", "imports onnxq.cli.app.app"),
    (layering, "unheard_of.x", "", "onnxq.unheard_of.x is new: say in LAYERS what it may import"),
    (no_relative_imports, "graph", "from .spec import QType", "relative import .spec.QType"),
    (no_relative_imports, "passes.x", "from ..spec import QType", "relative import ..spec.QType"),
    (passes_do_not_import_passes, "passes.x", "from onnxq.passes.sweep import Sweep",
     "imports the pass onnxq.passes.sweep.Sweep"),
    (passes_do_not_import_passes, "passes._shared", "from onnxq.passes import sweep",
     "imports the pass onnxq.passes.sweep"),
    (light_layers, "algos.x", "import onnx", "imports onnx"),
    (light_layers, "algos.x", "from scipy.stats import norm", "imports scipy"),
    (light_layers, "targets.x", "import numpy as np", "imports numpy"),
    (single_importers, "calib.x", "import onnxruntime as ort",
     "imports onnxruntime, which is the business of runtime and qat._worker_runtime"),
    (single_importers, "runtimes.x", "import onnxruntime",
     "imports onnxruntime, which is the business of runtime and qat._worker_runtime"),
    (single_importers, "passes.x", "from onnx_graphsurgeon import Node",
     "imports onnx_graphsurgeon, which is the business of graph and _graph"),
    (single_importers, "report.x", "from rich.table import Table",
     "imports rich, which is the business of cli and instruments"),
    (no_training_framework, "qat.x", "import torch.nn", "imports torch.nn"),
    (no_training_framework, "dialects.paddle.x", "import paddle", "imports paddle"),
    (no_training_framework, "graph", "def _f():\n    import tensorflow", "imports tensorflow"),
    (targets_are_told_apart_by_their_data, "passes.x", "if target.name == 'ascend':\n    pass",
     "line 1: compares with 'ascend'"),
    (targets_are_told_apart_by_their_data, "pipeline", "if name in ('ort', 'other'):\n    pass",
     "line 1: compares with 'ort'"),
    (targets_are_told_apart_by_their_data, "pipeline", "match name:\n    case 'qnn':\n        pass",
     "line 2: compares with 'qnn'"),
    (no_pickle, "calib.x", "import pickle", "imports pickle"),
    (no_pickle, "calib.x", "from joblib import load", "imports joblib.load"),
    (no_pickle, "calib.x", "np.load(path)", "line 1: np.load without allow_pickle=False"),
    (no_pickle, "calib.x", "numpy.load(path, allow_pickle=True)", "line 1: numpy.load without allow_pickle=False"),
    (no_pickle, "calib.x", "from numpy import load",
     "imports load from numpy, where this rule cannot see how it is called"),
    (safe_yaml, "recipe", "yaml.load(text)", "line 1: yaml.load with no safe loader"),
    (safe_yaml, "recipe", "yaml.load(text, Loader=yaml.Loader)", "line 1: yaml.load with yaml.Loader"),
    (safe_yaml, "recipe", "class L(yaml.Loader): pass\nyaml.compose(text, Loader=L)",
     "line 2: yaml.compose with L"),
    (safe_yaml, "recipe", "yaml.unsafe_load(text)", "line 1: yaml.unsafe_load with no safe loader"),
    (safe_yaml, "recipe", "from yaml import load", "imports yaml.load, write yaml.…"),
    (no_code_from_text, "recipe", "eval(text)", "line 1: eval"),
    (no_code_from_text, "qat.x", "subprocess.run(line, shell=True)", "line 1: shell=True"),
    (short_files, "graph", "x = 1\n" * (MAX_LINES + 1), f"{MAX_LINES + 1} lines, at most {MAX_LINES}"),
    (short_functions, "graph", LONG_FUNCTION, f"line 2: _f has {MAX_BODY + 1} lines, at most {MAX_BODY}"),
    (docstrings, "graph", "x = 1", "no docstring"),
    (docstrings, "graph", '"""."""\ndef f(): pass', "line 2: f has no docstring"),
    (docstrings, "graph", '"""."""\nclass C:\n    """."""\n    def f(self): pass', "line 4: f has no docstring"),
]  # fmt: skip
FINE: list[tuple[Rule, str, str]] = [
    (layering, "algos.x", "import math\nfrom onnxq.algos._jit import kernel\nfrom onnxq.stats import Histogram"),
    (layering, "cli.x", "import onnxq\nfrom onnxq import quantize\nfrom onnxq.report.compare import compare"),
    (layering, "targets.x", "from onnxq.targets._base import Target"),
    (passes_do_not_import_passes, "passes.x", "from onnxq.passes._base import Pass\nfrom onnxq.passes import _linear"),
    (passes_do_not_import_passes, "pipeline", "from onnxq.passes.sweep import Sweep"),
    (light_layers, "algos.x", "from __future__ import annotations\nimport numpy\nfrom numba import njit"),
    (single_importers, "_graph.x", "import onnx_graphsurgeon as gs"),
    (targets_are_told_apart_by_their_data, "passes.x", "if target.insertion == 'qdq':\n    pass"),
    (no_pickle, "calib.x", "np.load(path, allow_pickle=False)"),
    (safe_yaml, "recipe", "class L(yaml.SafeLoader): pass\nyaml.load(text, Loader=L)\nyaml.safe_load(text)"),
    (short_functions, "graph", "def _f(\n" + "    x: int = 1,\n" * 1 + "    y: int = 2,\n" + "):\n    return x"),
    (docstrings, "graph", '"""."""\ndef _f(): pass\nclass _C:\n    def f(self): pass'),
]
RULES = list(dict.fromkeys(rule for rule, *_ in BROKEN))


def modules() -> list[Module]:
    found = []
    for path in sorted((ROOT / "onnxq").rglob("*.py")):
        parts = path.relative_to(ROOT / "onnxq").with_suffix("").parts
        found.append(Module(".".join(p for p in parts if p != "__init__"), path.read_text(encoding="utf-8")))
    return found


@pytest.fixture(scope="module")
def everything() -> list[Module]:
    return modules()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_holds_everywhere(rule, everything):
    assert len(everything) > 50
    problems = [f"onnxq.{m.name}: {problem}" for m in everything for problem in rule(m)]
    assert problems == []


@pytest.mark.parametrize(("rule", "name", "source", "problem"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_breaking_it_is_found(rule, name, source, problem):
    assert list(rule(Module(name, source))) == [problem]


@pytest.mark.parametrize(("rule", "name", "source"), FINE, ids=lambda v: getattr(v, "__name__", None))
def test_what_is_allowed_is_not_a_problem(rule, name, source):
    assert list(rule(Module(name, source))) == []


def test_layers_are_of_this_package():
    """A layer that is planned may be listed; a name that is imported must be one of them."""
    named = {name.split(".")[0] for allowed in LAYERS.values() for name in allowed}
    assert named <= set(LAYERS)
