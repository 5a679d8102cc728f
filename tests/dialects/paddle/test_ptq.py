"""PTQ: the user's own loop gives what `onnxq.quantize` gives on the same data, in place or not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxq
from onnxq import Fact, GraphModel, Pass, PassReport, QuantContext
from onnxq.dialects.paddle import (
    PTQ,
    Model,
    QuantConfig,
    QuantizedColumnParallelLinear,
    QuantizedRowParallelLinear,
    nn,
)
from onnxq.dialects.paddle.convert import BASE
from onnxq.dialects.paddle.observers import AbsMaxChannelWiseWeightObserver, HistObserver, KLObserver, MSEObserver
from onnxq.errors import CalibrationError, DataError, ModelError, OnnxqError, RecipeError
from tests.dialects.paddle.models import projections, scoped
from tests.graphs import build, normal, run

IMAGES = normal(24, 3, 8, 8, seed=9)


def config() -> QuantConfig:
    return QuantConfig(HistObserver(), AbsMaxChannelWiseWeightObserver())


def observed(model: Any = None, *, count: int = 6, made: QuantConfig | None = None) -> tuple[PTQ, Model]:
    """A model that has seen some batches of 4."""
    ptq = PTQ(made or config(), threads=1)
    found = ptq.quantize(scoped() if model is None else model)
    for step in range(count):
        found(IMAGES[4 * step : 4 * step + 4])
    return ptq, found


def test_the_loop_gives_the_very_bytes_of_onnxq_quantize() -> None:
    ptq, found = observed()
    recipe = config().to_recipe(scoped())
    reference = onnxq.quantize(scoped(), {"x": IMAGES}, recipe=recipe, threads=1)
    converted = ptq.convert(found)
    assert converted.result.changed
    assert converted.model.SerializeToString() == reference.model.SerializeToString()
    assert converted.result.samples == 24
    again = ptq.convert(observed()[1])
    assert again.model.SerializeToString() == converted.model.SerializeToString()


def test_how_the_data_are_batched_changes_nothing() -> None:
    ptq, found = observed()
    single = ptq.quantize(scoped())
    for image in IMAGES:
        single(image[None])
    assert ptq.convert(single).model.SerializeToString() == ptq.convert(found).model.SerializeToString()


def test_the_users_break_ends_it() -> None:
    ptq, found = observed(count=2)
    reference = onnxq.quantize(scoped(), {"x": IMAGES[:8]}, recipe=config().to_recipe(scoped()), threads=1)
    assert ptq.convert(found).model.SerializeToString() == reference.model.SerializeToString()


def test_while_it_observes_it_is_the_float_model() -> None:
    _, found = observed(count=1)
    assert found.form == "observed"
    np.testing.assert_allclose(found(IMAGES[:4]), run(scoped(), {"x": IMAGES[:4]})["y"], atol=1e-5)


def test_in_place_and_not() -> None:
    ptq, model = PTQ(config()), Model(scoped())
    found = ptq.quantize(model)
    assert found is not model
    assert (model.form, found.form) == ("float", "observed")
    assert ptq.quantize(model, inplace=True) is model
    assert model.form == "observed"
    model(IMAGES)
    converted = ptq.convert(model)
    assert (model.form, converted.form) == ("observed", "converted")
    model(IMAGES[:4])
    assert ptq.convert(model, inplace=True) is model
    assert model.form == "converted"
    assert model.result.samples == 28
    assert converted.result.samples == 24


def test_a_copy_does_not_see_later_changes_of_the_model() -> None:
    proto = scoped()
    ptq = PTQ(config(), threads=1)
    found = ptq.quantize(proto)
    found(IMAGES)
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    reference = onnxq.quantize(scoped(), {"x": IMAGES}, recipe=config().to_recipe(scoped()), threads=1)
    assert ptq.convert(found).model.SerializeToString() == reference.model.SerializeToString()


def test_the_converted_model_runs_and_is_saved(tmp_path: Path) -> None:
    ptq, found = observed()
    converted = ptq.convert(found)
    path = converted.save(tmp_path / "q.onnx")
    np.testing.assert_array_equal(converted(IMAGES), Model(path)(IMAGES))
    reference = found(IMAGES)
    assert 0 < np.abs(converted(IMAGES) - reference).max() < 0.2 * np.abs(reference).max()
    assert "QuantizeLinear" in {n.op_type for n in converted.model.graph.node}


def test_a_file_and_its_digest(tmp_path: Path) -> None:
    onnx.save(scoped(), tmp_path / "m.onnx")
    ptq, found = observed(tmp_path / "m.onnx")
    reference = onnxq.quantize(tmp_path / "m.onnx", {"x": IMAGES}, recipe=config().to_recipe(scoped()), threads=1)
    assert ptq.convert(found).model.SerializeToString() == reference.model.SerializeToString()


def two_inputs() -> onnx.ModelProto:
    return build(
        "g (float[N,6] a, float[N,6] b) => (float[N,4] y, float[N,4] z) "
        "{ y = MatMul(a, W) z = MatMul(b, V) }",
        W=normal(6, 4, seed=1), V=normal(6, 4, seed=2),
    )  # fmt: skip


def test_data_come_in_any_order_of_packing() -> None:
    a, b = normal(8, 6, seed=3), normal(8, 6, seed=4)
    ptq = PTQ(config(), threads=1)
    models = [ptq.quantize(two_inputs()) for _ in range(5)]
    outputs = [models[0](a, b), models[1]((a, b)), models[2]([a, b]), models[3]({"b": b, "a": a})]
    outputs.append(models[4](a.astype(np.float64), b.astype(np.float64)))
    for found in outputs:
        assert isinstance(found, tuple)
        np.testing.assert_array_equal(found[0], outputs[0][0])
        np.testing.assert_array_equal(found[1], outputs[0][1])
    assert len({ptq.convert(model).model.SerializeToString() for model in models}) == 1


@pytest.mark.parametrize("data", [[IMAGES], (IMAGES,), IMAGES.tolist(), {"x": IMAGES}], ids=lambda d: type(d).__name__)
def test_the_array_of_an_only_input(data: Any) -> None:
    np.testing.assert_allclose(Model(scoped())(data), run(scoped(), {"x": IMAGES})["y"], atol=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES, np.zeros(24, np.int64)), r"found 2 arrays; the inputs are 'x'; where a loader gives labels too"),
        ({"image": IMAGES}, r"no input 'image'"),
        (IMAGES[:, :2], r"shape \(24, 2, 8, 8\)"),
        (IMAGES * np.nan, r"NaN"),
    ],
    ids=["labels", "name", "shape", "nan"],
)
def test_data_that_do_not_fit_are_refused(data: Any, message: str) -> None:
    _, found = observed(count=0)
    with pytest.raises(DataError, match=message):
        found(data)


def test_the_target_may_be_another_one() -> None:
    ptq, found = observed()
    converted = ptq.convert(found, target="ascend")
    assert "AscendQuant" in {n.op_type for n in converted.model.graph.node}
    assert converted(IMAGES).shape == (24, 5)
    with pytest.raises(OnnxqError, match="unknown target 'paddle'"):
        ptq.convert(found, target="paddle")
    assert ptq.convert(found).result.recipe.target == "ort"


def test_remaining_weights_are_floats_and_change_no_number() -> None:
    ptq, found = observed()
    codes, floats = ptq.convert(found), ptq.convert(found, remain_weight=True)
    assert not any(t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1 for t in codes.model.graph.initializer)
    kept = {
        onnx.numpy_helper.to_array(t).tobytes()
        for t in floats.model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1
    }
    assert normal(8, 3, 3, 3, seed=1, scale=0.3).tobytes() in kept
    assert not any(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in floats.model.graph.initializer)
    np.testing.assert_array_equal(codes(IMAGES), floats(IMAGES))
    with pytest.raises(RecipeError, match="'ascend' stores weights as codes"):
        ptq.convert(found, remain_weight=True, target="ascend")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PTQ(config()).convert(PTQ(config()).quantize(scoped())), CalibrationError, "model was not called"),
        (lambda: PTQ(config()).convert(Model(scoped())), ModelError, "found a model that is float"),
        (lambda: PTQ(config()).convert(scoped()), ModelError, "found ModelProto"),
        (lambda: PTQ(config()).quantize(observed()[1]), ModelError, "the model is observed already"),
        (lambda: PTQ(config()).quantize(Model(scoped()).train()), ModelError, r"call its eval\(\)"),
        (lambda: PTQ({"activation": None}), RecipeError, "must be a QuantConfig"),
        (lambda: observed()[1].result, ModelError, "the model is observed, not converted"),
        (lambda: observed()[1].train_step({}), ModelError, "the model is observed and is not trained"),
    ],
)
def test_calls_out_of_order_are_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_configuration_that_quantizes_nothing_passes_the_model_through() -> None:
    ptq, found = observed(made=QuantConfig())
    converted = ptq.convert(found)
    assert not converted.result.changed
    np.testing.assert_array_equal(converted(IMAGES), found(IMAGES))


def test_observers_see_tensors_as_they_are() -> None:
    """Channels in front of depthwise convolutions are scaled only where somebody asks for it."""
    assert config().to_recipe(scoped()).equalize.depthwise is False
    assert config().to_recipe(scoped(), base=onnxq.Recipe()).equalize.depthwise is True
    assert BASE.refine == onnxq.Recipe().refine


# ---- mappings


class GemmToMatMul(Pass):
    """A user's pass: every Gemm without transposes becomes MatMul and Add."""

    requires = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        changed = 0
        for node in graph.nodes("Gemm"):
            name, result = node.name, node.outputs[0]
            data, weight, bias = node.inputs
            graph.remove_node(node)
            product = graph.add_node("MatMul", [data, weight], name=f"{name}/product")
            graph.add_node("Add", [product.outputs[0], bias], name=f"{name}/sum", outputs=[result])
            changed += 1
        graph.sort()
        return PassReport(changed=changed)


DATA: NDArray[np.float32] = normal(32, 6, seed=11)


def quantized(made: QuantConfig) -> Model:
    ptq = PTQ(made, threads=1)
    found = ptq.quantize(projections())
    np.testing.assert_allclose(found(DATA), run(projections(), {"x": DATA})["y"], atol=1e-5)
    return ptq.convert(found)


@pytest.mark.parametrize("target", [GemmToMatMul(), lambda layer, q_config: GemmToMatMul()], ids=["pass", "function"])
def test_a_users_pass_takes_the_place_of_a_layer(target: Any) -> None:
    made = QuantConfig()
    made.add_qat_layer_mapping(nn.RowParallelLinear, target)
    made.add_type_config([nn.RowParallelLinear], KLObserver(), AbsMaxChannelWiseWeightObserver())
    converted = quantized(made)
    assert {w.node for w in converted.result.plan.weights} == {"/down/Gemm/product"}


def test_a_class_gets_the_layer_and_its_configuration() -> None:
    seen: list[Any] = []

    class Target(GemmToMatMul):
        def __init__(self, layer: Any, q_config: Any) -> None:
            seen.append((layer, q_config))

    made = QuantConfig()
    made.add_qat_layer_mapping(nn.RowParallelLinear, Target)
    made.add_name_config("/down", KLObserver(), AbsMaxChannelWiseWeightObserver())
    quantized(made)
    assert [(layer, q.activation) for layer, q in seen] == [(("/down/Gemm",), KLObserver())]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("target", [QuantizedColumnParallelLinear, QuantizedRowParallelLinear])
def test_parallel_layers_in_parts(target: Any, parts: int) -> None:
    made = QuantConfig()
    made.add_qat_layer_mapping(nn.RowParallelLinear, partial(target, parts=parts))
    made.add_type_config([nn.Linear, nn.RowParallelLinear], MSEObserver(), MSEObserver())
    converted = quantized(made)
    expected = {"/up/MatMul", *(f"/down/Gemm/part{i}" for i in range(parts))}
    assert {w.node for w in converted.result.plan.weights} == expected
    reference = run(projections(), {"x": DATA})["y"]
    assert np.abs(converted(DATA) - reference).max() < 0.1 * np.abs(reference).max()


def test_the_lines_of_the_seed() -> None:
    """As PaddleSlim's documentation has them."""
    q_config = QuantConfig(activation=None, weight=None)
    q_config.add_qat_layer_mapping(nn.ColumnParallelLinear, QuantizedColumnParallelLinear)
    q_config.add_qat_layer_mapping(nn.RowParallelLinear, QuantizedRowParallelLinear)
    q_config.add_type_config(
        [nn.Linear, nn.ColumnParallelLinear, nn.RowParallelLinear],
        activation=MSEObserver(),
        weight=MSEObserver(),
    )
    assert {w.node for w in quantized(q_config).result.plan.weights} == {"/up/MatMul", "/down/Gemm/part0"}
