"""PassManager: what it refuses, what it reports, how it nests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from onnxq.context import QuantContext
from onnxq.errors import GraphError, PassError, RecipeError
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Instrument, Pass, PassManager, PassReport, Skip
from tests.graphs import context, graph_of, ops

RELU = "g (float[N] x) => (float[N] y) { [a] y = Relu(x) }"


class Makes(Pass):
    """Provides NAMED."""

    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        return PassReport(2, (Skip("a", "because"),), ("a note",))


class Needs(Pass):
    """Requires NAMED, provides STATS."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        return PassReport(1)


class Breaks(Pass):
    """Invalidates NAMED."""

    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.STATS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        return PassReport()


class Fails(Pass):
    """Raises in one of the three steps."""

    def __init__(self, step: str, error: Exception) -> None:
        self.step, self.error = step, error

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        self._raise("check")

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        self._raise("run")
        return PassReport()

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        self._raise("verify")

    def _raise(self, step: str) -> None:
        if step == self.step:
            raise self.error


class Damages(Pass):
    """Leaves a graph output without a producer."""

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        graph.remove_node(graph.node("a"))
        return PassReport(1)


@dataclass
class Spy(Instrument):
    """Writes down what it sees."""

    seen: list[str] = field(default_factory=list)

    def before_pass(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> None:
        self.seen.append(f"before {position} {step.name}")

    def after_pass(self, position: int, step: Pass, report: PassReport, graph: GraphModel, ctx: QuantContext) -> None:
        self.seen.append(f"after {position} {step.name} {report.changed}")


# ---- order -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([Needs()], "pass 1 Needs needs NAMED, which no pass of the list provides"),
        ([Needs(), Makes()], "pass 1 Needs needs NAMED, which only Makes after it provides"),
        ([Makes(), Breaks(), Needs()], "pass 3 Needs needs NAMED, which Breaks before it makes invalid"),
    ],
)
def test_an_impossible_order_is_refused_when_constructed(passes: list[Pass], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        PassManager(passes)
    assert str(caught.value) == message


def test_initial_facts_and_a_second_provider_make_an_order_possible() -> None:
    PassManager([Needs()], initial=frozenset({Fact.NAMED}))
    PassManager([Makes(), Breaks(), Makes(), Needs()])


def test_a_manager_is_a_pass_with_the_contract_of_its_passes() -> None:
    inner = PassManager([Makes(), Needs(), Breaks(), Makes()])
    assert inner.provides == {Fact.NAMED}
    assert inner.invalidates == {Fact.STATS}
    assert not inner.preserves_function
    assert PassManager([Makes(), Makes()]).preserves_function
    PassManager([inner, Needs()])
    needy = PassManager([Needs()], initial=frozenset({Fact.NAMED}))
    assert needy.requires == {Fact.NAMED}
    with pytest.raises(RecipeError, match="pass 1 PassManager needs NAMED"):
        PassManager([needy])


def test_an_empty_manager_does_nothing() -> None:
    graph = graph_of(RELU)
    assert PassManager([]).run(graph, context()) == PassReport()
    assert ops(graph) == ["Relu"]


# ---- running -----------------------------------------------------------------------------------


def test_reports_are_summed_named_and_kept() -> None:
    ctx = context()
    report = PassManager([Makes(), Needs()]).run(graph_of(RELU), ctx)
    assert (report.changed, report.skipped, report.notes) == (3, (Skip("a", "because"),), ("a note",))
    assert [r.name for r in ctx.reports] == ["Makes", "Needs"]
    assert all(r.seconds > 0 for r in ctx.reports)


def test_the_passes_of_a_nested_manager_are_reported_once() -> None:
    ctx = context()
    report = PassManager([PassManager([Makes()]), Needs()]).run(graph_of(RELU), ctx)
    assert report.changed == 3
    assert [r.name for r in ctx.reports] == ["Makes", "Needs"]


def test_instruments_are_called_around_each_pass_in_order() -> None:
    spy = Spy()
    PassManager([Makes(), Needs()], instruments=(spy,)).run(graph_of(RELU), context())
    assert spy.seen == ["before 0 Makes", "after 0 Makes 2", "before 1 Needs", "after 1 Needs 1"]


@pytest.mark.parametrize("step", ["check", "run", "verify"])
def test_a_failure_names_the_pass_and_its_position_and_keeps_the_cause(step: str) -> None:
    error = GraphError("node 'a' is bad")
    with pytest.raises(PassError, match=r"^pass 2 Fails: node 'a' is bad$") as caught:
        PassManager([Makes(), Fails(step, error)]).run(graph_of(RELU), context())
    assert caught.value.__cause__ is error


def test_a_failure_in_a_nested_manager_is_wrapped_once() -> None:
    with pytest.raises(PassError, match=r"^pass 1 Fails: bad$"):
        PassManager([Makes(), PassManager([Fails("run", GraphError("bad"))])]).run(graph_of(RELU), context())


def test_a_defect_of_a_pass_is_not_dressed_up_as_the_users_mistake() -> None:
    with pytest.raises(ZeroDivisionError):
        PassManager([Fails("run", ZeroDivisionError())]).run(graph_of(RELU), context())


def test_a_graph_that_a_pass_damages_is_found_at_once() -> None:
    with pytest.raises(PassError, match=r"^pass 1 Damages: .*'y'"):
        PassManager([Damages()]).run(graph_of(RELU), context())


def test_after_a_failure_no_later_instrument_or_pass_runs() -> None:
    spy = Spy()
    with pytest.raises(PassError):
        PassManager([Fails("run", GraphError("bad")), Makes()], instruments=(spy,)).run(graph_of(RELU), context())
    assert spy.seen == ["before 0 Fails"]
