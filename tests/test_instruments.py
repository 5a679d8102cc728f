"""Instruments: what they note, show, save and refuse."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from rich.console import Console

from onnxq.context import QuantContext
from onnxq.errors import DataError, GraphError, PassError
from onnxq.graph import GraphModel
from onnxq.instruments import DumpAfterEachPass, LogPasses, Progress, Timing, VerifyEquivalence
from onnxq.passes._base import Instrument, Pass, PassManager, PassReport, Skip
from tests.graphs import context, graph_of, normal

TEXT = "g (float[N,4] x) => (float[N,6] y, float[N,6] r) { [fc] y = MatMul(x, W) [relu] r = Relu(y) }"
FEED = {"x": normal(3, 4)}


class Nothing(Pass):
    """Claims to preserve the function and changes nothing."""

    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        return PassReport(0, (Skip("fc", "not today"),), ("nothing to do",))


class Scales(Pass):
    """Multiplies the weight; claims to preserve the function."""

    preserves_function: ClassVar[bool] = True

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        node = graph.node("fc")
        new = graph.add_constant("W2", (graph.value(node.inputs[1]) * self.factor).astype(np.float32))
        graph.set_input(node, 1, new)
        return PassReport(1)


class ScalesOpenly(Scales):
    """The same without the claim."""

    preserves_function: ClassVar[bool] = False


class EditsOutput(Pass):
    """Does something to the graph outputs; claims to preserve the function."""

    preserves_function: ClassVar[bool] = True

    def __init__(self, edit: Callable[[GraphModel], None]) -> None:
        self.edit = edit

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        self.edit(graph)
        return PassReport(1)


def managed(*passes: Pass, instruments: tuple[Instrument, ...]) -> GraphModel:
    graph = graph_of(TEXT, W=normal(4, 6))
    PassManager(passes, instruments=instruments).run(graph, context())
    return graph


# ---- watching ----------------------------------------------------------------------------------


def test_timing_has_one_row_per_pass() -> None:
    timing = Timing()
    managed(Nothing(), Scales(1.0), instruments=(timing,))
    assert [name for name, _ in timing.rows] == ["Nothing", "Scales"]
    assert timing.total == sum(seconds for _, seconds in timing.rows) > 0


def test_log_has_notes_and_at_debug_level_every_skip(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="onnxq")
    managed(Nothing(), instruments=(LogPasses(),))
    found = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert ("INFO", "1 Nothing: nothing to do") in found
    assert ("DEBUG", "1 Nothing: left 'fc' alone: not today") in found


def test_progress_shows_the_passes_and_goes_with_the_last() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    progress = Progress(total=2, console=console)
    managed(Nothing(), Scales(1.0), instruments=(progress,))
    assert "Scales" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K")  # the line is wiped


def test_progress_goes_when_a_pass_fails() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with pytest.raises(ZeroDivisionError), Progress(console=console) as progress:
        managed(EditsOutput(lambda graph: 1 / 0), instruments=(progress,))  # type: ignore[arg-type,return-value]
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K")


def test_progress_draws_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=1) as progress:
        managed(Nothing(), instruments=(progress,))
    assert capsys.readouterr().out == ""


def test_dumps_are_numbered_named_and_loadable(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dumps"
    managed(Nothing(), Scales(2.0), instruments=(DumpAfterEachPass(folder),))
    assert sorted(p.name for p in folder.iterdir()) == ["01_Nothing.onnx", "02_Scales.onnx"]
    models = [onnx.load(p) for p in sorted(folder.iterdir())]
    assert [m.graph.node[0].input[1] for m in models] == ["W", "W2"]


# ---- equivalence -------------------------------------------------------------------------------


def test_a_small_deviation_passes_and_is_noted_as_a_share_of_what_is_allowed() -> None:
    verify = VerifyEquivalence([FEED], rtol=1e-3, atol=0.0)
    managed(Nothing(), Scales(1.0005), instruments=(verify,))
    assert verify.deviations["Nothing"] == 0.0
    assert verify.deviations["Scales"] == pytest.approx(0.5, rel=0.01)


def test_a_false_claim_is_an_error_with_pass_output_and_deviation() -> None:
    verify = VerifyEquivalence([FEED, {"x": 2 * FEED["x"]}], rtol=1e-3, atol=0.0)
    largest = np.abs(FEED["x"] @ normal(4, 6)).max()
    with pytest.raises(GraphError) as caught:
        managed(Nothing(), Scales(1.5), instruments=(verify,))
    message = str(caught.value)
    assert message.startswith("pass 2 Scales claims to preserve the function, but output 'y' deviates by ")
    deviation = float(message.split("deviates by ")[1].split(",")[0])
    allowed = float(message.split("allowed are ")[1].split(",")[0])
    feed = int(message.split("on feed ")[1].split(";")[0])
    assert deviation == pytest.approx(0.5 * largest * (feed + 1), rel=0.01)
    assert allowed == pytest.approx(1e-3 * largest * (feed + 1), rel=0.01)


def test_what_claims_nothing_is_not_checked() -> None:
    verify = VerifyEquivalence([FEED])
    managed(ScalesOpenly(3.0), instruments=(verify,))
    assert verify.deviations == {}


def test_the_claim_is_measured_from_the_graph_before_the_pass_not_from_the_start() -> None:
    verify = VerifyEquivalence([FEED], rtol=1e-3)
    managed(ScalesOpenly(3.0), Scales(1.0), instruments=(verify,))
    assert verify.deviations["Scales"] == 0.0


def test_atol_forgives_outputs_that_are_almost_zero() -> None:
    tiny = [{"x": FEED["x"] * np.float32(1e-9)}]
    managed(Scales(1.5), instruments=(VerifyEquivalence(tiny, rtol=1e-4, atol=1e-6),))
    with pytest.raises(GraphError, match="deviates by"):
        managed(Scales(1.5), instruments=(VerifyEquivalence(tiny, rtol=1e-4, atol=0.0),))


def test_new_nan_is_a_deviation() -> None:
    with pytest.raises(GraphError, match="output 'y' deviates by nan"):
        managed(Scales(float("nan")), instruments=(VerifyEquivalence([FEED]),))


def test_another_shape_is_a_deviation() -> None:
    def transpose(graph: GraphModel) -> None:
        fc, y = graph.node("fc"), graph.node("fc").outputs[0]
        graph.replace_output(fc, 0, graph.new_variable("y0"))
        graph.add_node("Transpose", [fc.outputs[0]], name="t", outputs=[y])
        y.shape = None

    with pytest.raises(GraphError, match=r"output 'y' was float32 \(3, 6\) and is float32 \(6, 3\)"):
        managed(EditsOutput(transpose), instruments=(VerifyEquivalence([FEED]),))


def test_no_feeds_are_an_error() -> None:
    with pytest.raises(DataError, match="VerifyEquivalence needs at least one feed, got none"):
        managed(Nothing(), instruments=(VerifyEquivalence([]),))


def test_feeds_are_iterated_anew_for_each_run() -> None:
    class Reader:
        """Counts how often it is read."""

        def __init__(self) -> None:
            self.count = 0

        def __iter__(self):
            self.count += 1
            return iter([FEED])

    reader = Reader()
    managed(Scales(1.0), Scales(1.0), instruments=(VerifyEquivalence(reader),))
    assert reader.count == 4


def test_an_instrument_error_is_not_wrapped_as_the_pass_failing() -> None:
    with pytest.raises(GraphError) as caught:
        managed(Scales(2.0), instruments=(VerifyEquivalence([FEED]),))
    assert not isinstance(caught.value, PassError)
