"""UpgradeOpset: only where it is worth it, with the same function; and what happens where it cannot be done."""

from __future__ import annotations

import onnx
import pytest

from onnxq.calib.readers import as_reader
from onnxq.errors import GraphError
from onnxq.graph import GraphModel
from onnxq.passes._inputs import inputs_of
from onnxq.passes.upgrade_opset import UpgradeOpset
from tests.graphs import apply, assert_same_function, build, context, normal

CONV = """g (float[N,4,8,8] x) => (float[N,4,8,8] y) {
    a = Conv(x, W) s = Softmax <axis=1> (a) y = Clip <min=0.0, max=6.0> (s) }"""
W = normal(4, 4, 1, 1)


def old(opset: int) -> onnx.ModelProto:
    text = CONV if opset < 11 else CONV.replace(" <min=0.0, max=6.0> (s)", "(s)")
    return build(text, opset=opset, ir_version=7, W=W)


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12])
@pytest.mark.parametrize("wanted", [13, 21])
def test_older_models_are_converted(opset: int, wanted: int) -> None:
    graph = GraphModel.from_proto(old(opset))
    report = apply(graph, UpgradeOpset(wanted))
    assert graph.opset == wanted
    assert report.changed == 1
    assert report.notes == (f"converted from opset {opset} to {wanted}",)
    assert_same_function(old(opset), graph, rtol=1e-6)


@pytest.mark.parametrize("opset", [13, 17])
def test_new_enough_models_are_not_touched(opset: int) -> None:
    graph = GraphModel.from_proto(
        build("g (float[N,4,8,8] x) => (float[N,4,8,8] y) { y = Conv(x, W) }", opset=opset, W=W)
    )
    before = graph.to_proto().SerializeToString()
    assert apply(graph, UpgradeOpset(13)).changed == 0
    assert graph.to_proto().SerializeToString() == before


def test_a_model_without_anything_worth_it_is_not_touched() -> None:
    graph = GraphModel.from_proto(build("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", opset=9, ir_version=4))
    assert apply(graph, UpgradeOpset(13)).changed == 0
    assert graph.opset == 9


@pytest.fixture
def no_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: GraphModel, version: int) -> None:
        raise GraphError("no adapter")

    monkeypatch.setattr(GraphModel, "upgrade_opset", fail)


@pytest.mark.usefixtures("no_converter")
def test_what_cannot_be_converted_stays_where_that_will_do() -> None:
    graph = GraphModel.from_proto(old(11))
    report = apply(graph, UpgradeOpset(13))
    assert (graph.opset, report.changed) == (11, 0)
    assert report.notes == ("kept at opset 11: no adapter",)


@pytest.mark.usefixtures("no_converter")
@pytest.mark.parametrize(("opset", "required"), [(9, 10), (11, 21)])
def test_where_it_will_not_do_the_error_says_what_to_export(opset: int, required: int) -> None:
    with pytest.raises(GraphError, match=rf"needs {required} or newer.*no adapter.*export it again at opset 21"):
        apply(GraphModel.from_proto(old(opset)), UpgradeOpset(21, required))


def test_a_conversion_that_changes_the_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = GraphModel.from_proto(old(11))
    converted = GraphModel.upgrade_opset

    def wrong(self: GraphModel, version: int) -> None:
        converted(self, version)
        conv = self.nodes("Conv")[0]
        self.set_input(conv, 1, self.add_constant("other", 2 * W))

    monkeypatch.setattr(GraphModel, "upgrade_opset", wrong)
    reader = as_reader({"x": normal(3, 4, 8, 8)}, inputs_of(graph))
    report = apply(graph, UpgradeOpset(13), ctx=context(reader=reader))
    assert (graph.opset, report.changed) == (11, 0)
    assert "onnx converts it to something else" in report.notes[0]
    with pytest.raises(GraphError, match="something else"):
        apply(graph, UpgradeOpset(13, required=13), ctx=context(reader=reader))


def test_a_right_conversion_is_run_and_kept() -> None:
    graph = GraphModel.from_proto(old(11))
    reader = as_reader({"x": normal(3, 4, 8, 8)}, inputs_of(graph))
    assert apply(graph, UpgradeOpset(13), ctx=context(reader=reader)).changed == 1
    assert graph.opset == 13
