"""Observers of the user's own: what they see, how they are named, and what becomes of their mistakes."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxq
from onnxq.dialects.paddle.strict import MSE
from onnxq.errors import CalibrationError, RecipeError
from onnxq.observers import Observed, Observer, ObserverRequest, find_maker, reference_of
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.recipe import ActivationConfig, Custom, EqualizeConfig, Recipe
from tests.graphs import apply, build, normal
from tests.passes.ptq import planned

Array = NDArray[np.float32]
ROOT = Path(__file__).resolve().parent.parent

SOURCE = '''
class Largest:
    """The largest magnitude, times a factor."""

    def __init__(self, factor=1.0):
        self.factor = factor
        self.largest = 0.0

    def observe(self, x):
        self.largest = max(self.largest, float(abs(x).max()))

    def merge(self, other):
        both = Largest(self.factor)
        both.largest = max(self.largest, other.largest)
        return both

    def range(self):
        return -self.factor * self.largest, self.factor * self.largest


number = 3
'''


class Diary:
    """Writes down what it sees."""

    def __init__(self, limit: float = 4.0) -> None:
        self.limit = limit
        self.pages: list[Array] = []

    def observe(self, x: Array) -> None:
        self.pages.append(x)

    def merge(self, other: Diary) -> Diary:
        both = Diary(self.limit)
        both.pages = self.pages + other.pages
        return both

    def range(self) -> tuple[float, float]:
        return -self.limit, self.limit


def net() -> Any:
    return build("g (float[N,4] x) => (float[N,3] y) { [fc] y = MatMul (x, W) }", W=normal(4, 3))


def measured(observer: Any, data: Any, *, threads: int = 1, model: Any = None, **how: Any) -> Any:
    """The context after calibration with this observer."""
    config = ActivationConfig(type="int8", symmetric=True, method=Custom(observer=observer, **how))
    graph, ctx = planned(model or net(), data=data, threads=threads, recipe=Recipe(activations=config))
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    return ctx


def pages(ctx: Any, name: str = "x") -> list[Array]:
    (observed,) = ctx.stats[name].observed
    return list(observed.observer.pages)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


# ---- what it sees


@pytest.mark.parametrize(("cut", "threads"), [(1, 1), (3, 1), (11, 3)])
def test_it_sees_one_sample_at_a_time_in_the_order_of_the_data(cut: int, threads: int) -> None:
    x = normal(11, 4)
    data = [{"x": part} for part in np.array_split(x, cut)]
    ctx = measured(Diary, data, threads=threads)
    found = pages(ctx)
    assert [page.shape for page in found] == [(1, 4)] * 11
    assert found[0].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(found), x)
    assert float(ctx.params["x"].scale) == pytest.approx(4 / 127)


@pytest.mark.parametrize("threads", [1, 3])
def test_it_sees_the_batches_of_the_data_if_it_wants(threads: int) -> None:
    x = normal(7, 4)
    ctx = measured(Diary, [{"x": x[:4]}, {"x": x[4:5]}, {"x": x[5:]}], threads=threads, batches="data")
    assert [len(page) for page in pages(ctx)] == [4, 1, 2]
    np.testing.assert_array_equal(np.concatenate(pages(ctx)), x)
    assert ctx.samples == 7


def test_it_sees_what_the_model_computes_and_cannot_change_it() -> None:
    model = build("g (float[N,4] x) => (float[N,3] y) { a = Mul (x, x) [fc] y = MatMul (a, W) }", W=normal(4, 3))
    x = normal(5, 4)
    ctx = measured(Diary, {"x": x}, model=model)
    np.testing.assert_allclose(np.concatenate(pages(ctx, "a")), x * x, rtol=1e-6)
    assert not any(page.flags.writeable for page in pages(ctx, "a"))
    assert x.flags.writeable


def test_two_kinds_of_rounds_in_one_recipe() -> None:
    """One layer's observer sees batches, another's samples; the model is run over the data once for each."""
    model = build(
        "g (float[N,4] x, float[N,4] z) => (float[N,3] y, float[N,3] v) "
        "{ [one] y = MatMul (x, W) [two] v = MatMul (z, W) }",
        W=normal(4, 3),
    )
    method = {"name": "custom", "observer": Diary}
    recipe = Recipe.from_dict(
        {
            "activations": {"type": "int8", "symmetric": True, "method": method | {"batches": "data"}},
            "rules": [{"match": {"node": "two"}, "activations": {"method": method}}],
        }
    )
    data = [{"x": normal(3, 4), "z": normal(3, 4, seed=1)} for _ in range(2)]
    graph, ctx = planned(model, data=data, recipe=recipe)
    apply(graph, Calibrate(), ChooseParams(), ctx=ctx)
    assert [len(page) for page in pages(ctx, "x")] == [3, 3]
    assert [len(page) for page in pages(ctx, "z")] == [1] * 6


def test_tensors_that_share_a_scale_are_merged() -> None:
    model = build(
        "g (float[N,3,8,8] x) => (float[N,2,8,8] y) "
        "{ a = Conv (x, W1) b = Conv (x, W2) c = Concat <axis=1> (a, b) y = Conv (c, W3) }",
        W1=normal(3, 3, 1, 1), W2=5 * normal(3, 3, 1, 1, seed=1), W3=normal(2, 6, 1, 1),
    )  # fmt: skip
    ctx = measured(find_class(), {"x": normal(3, 3, 8, 8)}, model=model)
    one, other = (ctx.stats[name].observed[0].observer.largest for name in "ab")
    assert one < other
    for name in "abc":
        assert float(ctx.params[name].scale) == pytest.approx(other / 127)


def find_class() -> Any:
    space: dict[str, Any] = {}
    exec(compile(SOURCE, "mine.py", "exec"), space)
    return space["Largest"]


def test_layers_in_front_of_depthwise_convolutions_are_left_as_they_are() -> None:
    """Their channels would be scaled first, and the observer's range would not hold."""
    model = build(
        "g (float[N,3,8,8] x) => (float[N,3,6,6] y) "
        "{ [c] a = Conv <pads=[1,1,1,1]> (x, W1) [d] y = Conv <group=3> (a, W2) }",
        W1=normal(3, 3, 3, 3), W2=normal(3, 1, 3, 3),
    )  # fmt: skip
    config = ActivationConfig(type="int8", symmetric=True, method=Custom(observer=Diary, options={"limit": 2.5}))
    recipe = Recipe(activations=config, equalize=EqualizeConfig(depthwise=True))
    result = onnxq.quantize(model, {"x": normal(4, 3, 8, 8)}, recipe=recipe)
    assert float(result.params["a"].scale) == pytest.approx(2.5 / 127)


# ---- how it is named


def test_the_code_in_the_documentation_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "writing_an_observer.md").read_text(encoding="utf-8")
    observer, program = (block.split("```")[0] for block in text.split("```python\n")[1:])
    (recipe,) = (block.split("```")[0] for block in text.split("```yaml\n")[1:])
    (tmp_path / "top_values.py").write_text(observer, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    onnx.save(net(), tmp_path / "model.onnx")
    x = normal(6, 4)
    np.savez(tmp_path / "calibration.npz", x=x)
    code = f"{observer}\n{program}\nprint(float(result.params['x'].scale))"
    command = ["quantize", "model.onnx", "-o", "by_file.onnx", "--data", "calibration.npz", "--config", "recipe.yaml"]
    run_command = f"from onnxq.cli import main; import sys; sys.argv[1:] = {command}; main()"
    found = [
        subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        for args in (["-c", code], ["-c", run_command])
    ]
    assert [done.returncode for done in found] == [0, 0], found
    expected = np.sort(np.abs(x), axis=1)[:, -8:].mean(axis=1).mean() / 127
    assert float(found[0].stdout) == pytest.approx(float(expected), rel=1e-6)
    models = [onnx.load(tmp_path / name) for name in ("model_int8.onnx", "by_file.onnx")]
    assert [[i.raw_data for i in m.graph.initializer] for m in models[:1]] == [
        [i.raw_data for i in m.graph.initializer] for m in models[1:]
    ]


def test_by_file_from_a_recipe(file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "activations:\n  type: int8\n  symmetric: true\n"
        f"  method: {{name: custom, observer: '{file}:Largest', options: {{factor: 0.5}}}}\n"
    )
    x = normal(6, 4)
    result = onnxq.quantize(net(), {"x": x}, recipe=recipe)
    assert float(result.params["x"].scale) == pytest.approx(0.5 * float(np.abs(x).max()) / 127)


def make_mse() -> Observer:
    return MSE(8)


def test_by_module_class_and_function() -> None:
    x = {"x": normal(6, 4)}
    scales = [
        float(measured(observer, x, batches="data").params["x"].scale)
        for observer in ("onnxq.dialects.paddle.strict:MSE", MSE, functools.partial(MSE, 8), make_mse)
    ]
    assert scales == scales[:1] * 4


def test_a_recipe_with_a_class_is_written_with_its_name() -> None:
    recipe = Recipe(activations=ActivationConfig(method=Custom(observer=MSE, options={"quant_bits": 4})))
    text = recipe.to_yaml(defaults=False)
    assert "observer: onnxq.dialects.paddle.strict:MSE" in text
    again = Recipe.from_text(text)
    assert again.digest() == recipe.digest()
    method = again.activations.method
    assert isinstance(method, Custom)
    assert isinstance(method.request.create(), MSE)
    assert reference_of(functools.partial(MSE, 8)) == "onnxq.dialects.paddle.strict:MSE"


def test_the_same_recipe_gives_the_same_bytes() -> None:
    x = normal(6, 4)
    recipe = Recipe(activations=ActivationConfig(type="int8", symmetric=True, method=Custom(observer=find_class())))
    models = [
        onnxq.quantize(net(), [{"x": part} for part in np.array_split(x, cut)], recipe=recipe, threads=threads).model
        for cut, threads in ((1, 1), (6, 3))
    ]
    assert models[0].SerializeToString() == models[1].SerializeToString()


def test_what_observers_are() -> None:
    assert isinstance(Diary(), Observer)
    assert not isinstance(object(), Observer)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("Largest", "must be 'file.py:Class' or 'module:Class'"),
        ("nowhere.py:Largest", "there is no file nowhere.py; paths begin in the working directory"),
        ("no.such.module:A", "module 'no.such.module' cannot be imported: ModuleNotFoundError"),
        ("onnxq.dialects.paddle.strict:MES", "has no 'MES'; did you mean 'MSE'"),
        ("onnxq.observers:METHODS", "is a tuple; must be a class"),
    ],
)
def test_names_of_nothing(reference: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        find_maker(reference)


def test_files_that_cannot_be_used(file: Path) -> None:
    with pytest.raises(RecipeError, match="is a int; must be a class"):
        find_maker(f"{file}:number")
    file.write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine\.py cannot be loaded: ZeroDivisionError: division by zero"):
        find_maker(f"{file}:Largest")
    file.write_text("def broken(:\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot be loaded: SyntaxError"):
        find_maker(f"{file}:Largest")


def test_options_are_plain_and_fit() -> None:
    with pytest.raises(RecipeError, match="options must be mappings, lists, strings and numbers"):
        Custom(observer=Diary, options={"limit": np.float32(1)})
    with pytest.raises(RecipeError, match=r"Diary cannot be made with options .*\"limits\": 1.*TypeError"):
        measured(Diary, {"x": normal(2, 4)}, options={"limits": 1})
    with pytest.raises(RecipeError, match="has no method observe and no method merge and no method range"):
        measured(dict, {"x": normal(2, 4)})
    with pytest.raises(RecipeError, match="observer: is missing"):
        ActivationConfig(method="custom")  # type: ignore[arg-type]


# ---- mistakes


class Wrong(Diary):
    """Fails where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def observe(self, x: Array) -> None:
        if self.where == "observe":
            raise ValueError("I have seen enough")
        if self.where == "write":
            x[:] = 0

    def merge(self, other: Diary) -> Diary:
        if self.where == "merge":
            raise KeyError("other")
        return None  # type: ignore[return-value]

    def range(self) -> tuple[float, float]:
        found: Any = {"order": (1.0, -1.0), "nan": (0.0, float("nan")), "one": 3.0, "range": None}
        if self.where == "range":
            raise RuntimeError
        return found.get(self.where, (-1.0, 1.0))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("observe", "tensor 'x': observe of observer .*Wrong failed: ValueError: I have seen enough"),
        ("write", "tensor 'x': observe of observer .*Wrong failed: ValueError: assignment destination is read-only"),
        ("range", "tensor 'x': range of observer .*Wrong failed: RuntimeError$"),
        ("order", r"tensor 'x': range of observer .*Wrong gave \(1.0, -1.0\); it must give two finite numbers"),
        ("nan", r"gave \(0.0, nan\)"),
        ("one", "tensor 'x': range of observer .*Wrong failed: TypeError"),
    ],
)
def test_mistakes_are_told_with_the_tensor(where: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        measured(Wrong, {"x": normal(3, 4)}, options={"where": where})


def test_mistakes_in_merge() -> None:
    request = ObserverRequest.of(Wrong, {"where": "merge"})
    with pytest.raises(CalibrationError, match=r"tensor 'a': merge of observer .*Wrong failed: KeyError: 'other'"):
        Observed.start("a", request).merge(Observed.start("b", request))
    request = ObserverRequest.of(Wrong, {"where": ""})
    with pytest.raises(CalibrationError, match="gave NoneType; it must return an observer that has seen what both"):
        Observed.start("a", request).merge(Observed.start("b", request))


def test_not_a_number_is_found_before_the_observer_sees_it() -> None:
    model = build("g (float[N,4] x) => (float[N,3] y) { a = Log (x) [fc] y = MatMul (a, W) }", W=normal(4, 3))
    x = np.abs(normal(3, 4))
    x[1, 2] = -1
    with pytest.raises(CalibrationError, match="sample 1: tensor 'a' holds NaN or infinity"):
        measured(Diary, {"x": x}, model=model)
