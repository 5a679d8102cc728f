"""Costs of layers: the cheapest assignment against all of them, and what a profile is taken for."""

from __future__ import annotations

import itertools
import random

import pytest

from onnxq.pipeline import plan_model
from onnxq.plan import Decision, Plan
from onnxq.report.profile import KernelKind, NodeTime, Profile
from onnxq.tune.costs import OUTSIDE, Edge, LayerCosts
from onnxq.tune.costs_measured import costs_of, count_costs
from tests.graphs import build, graph_of, normal


def drawn(seed: int) -> tuple[LayerCosts, random.Random]:
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(rng.randint(1, 7))]
    floats, integers = ({n: float(rng.randint(0, 20)) for n in names} for _ in range(2))
    ends = [*names, OUTSIDE, "never"]
    edges = [Edge(rng.choice(ends), rng.choice(ends), rng.randint(0, 9)) for _ in range(rng.randint(0, 14))]
    return LayerCosts(floats, integers, tuple(edges), rest=3.0), rng


@pytest.mark.parametrize("seed", range(30))
def test_the_cheapest_assignment_is_the_cheapest_and_smallest_of_all(seed: int) -> None:
    costs, rng = drawn(seed)
    names = list(costs.integer_cost)
    forced = {name for name in names if rng.random() < 0.15}
    subsets = [set(s) for k in range(len(names) + 1) for s in itertools.combinations(names, k) if forced <= set(s)]
    least, count = min((costs.total(s), len(s)) for s in subsets)
    found = costs.cheapest(forced)
    assert forced <= found
    assert (costs.total(found), len(found)) == (least, count)


@pytest.mark.parametrize("seed", range(30))
def test_what_one_more_float_layer_adds(seed: int) -> None:
    costs, rng = drawn(seed)
    names = list(costs.integer_cost)
    one = rng.choice(names)
    left = {name for name in names if name != one and rng.random() < 0.4}
    assert costs.extra(one, left) == costs.total(left | {one}) - costs.total(left)


def test_totals_by_hand() -> None:
    edges = (Edge(OUTSIDE, "a", 1), Edge("a", "b", 2), Edge("b", OUTSIDE, 3))
    costs = LayerCosts({"a": 10.0, "b": 20.0}, {"a": 4.0, "b": 30.0}, edges, 5.0)
    assert costs.total(()) == 5 + 4 + 30 + 1 + 3
    assert costs.total({"b"}) == 5 + 4 + 20 + 1 + 2
    assert costs.total({"a", "b"}) == 5 + 10 + 20
    assert costs.cheapest() == {"b"}
    assert costs.total((), wide={"a"}) == costs.total(()) + (10 + 1 + 2) - 4  # in float between conversions
    assert not costs.wide_pays("a")
    native = LayerCosts({"a": 10.0}, {"a": 4.0}, wide=2.0)
    assert native.total((), wide={"a"}) == 8
    assert native.wide_pays("a")


def test_they_are_kept_as_json() -> None:
    costs, _ = drawn(1)
    assert LayerCosts.from_dict(costs.to_dict()) == costs


NET = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
    [c1] a = Conv <pads=[1,1,1,1]> (x, W1) [relu] b = Relu (a) [pool] p = MaxPool <kernel_shape=[1,1]> (b)
    [c2] c = Conv <pads=[1,1,1,1]> (p, W2) [erf] y = Erf (c) }"""
WEIGHTS = {"W1": normal(4, 3, 3, 3), "W2": normal(4, 4, 3, 3)}
ROLES = {"c1": "quantized", "relu": "absorbed", "pool": "shared", "c2": "quantized", "erf": "float"}
PLAN = Plan(tuple(Decision(name, "", role) for name, role in ROLES.items()))  # type: ignore[arg-type]


def ran(name: str, spent: float, layer: str | None, kind: KernelKind = KernelKind.FLOAT, op: str = "Conv") -> NodeTime:
    return NodeTime(name, op, "", spent, kind, "CPU", layer, ())


def test_a_profile_is_shared_out_among_layers() -> None:
    """What saturation does, and what only passes codes on, belongs to the layer in front."""
    floats = Profile(
        (ran("1", 10, "c1"), ran("2", 3, "relu"), ran("3", 2, "pool"), ran("4", 7, "c2"), ran("5", 9, "erf")), 0, 1
    )
    integers = Profile(
        (
            ran("q", 9.2, "x_quantize", KernelKind.CONVERSION, "QuantizeLinear"),
            ran("t", 2, None, op="Transpose"),
            ran("1", 4, "c1", KernelKind.INTEGER),
            ran("3", 1, "pool", KernelKind.CODES),
            ran("4", 5, "c2", KernelKind.INTEGER),
            ran("d", 4.1, "c_dequantize", KernelKind.CONVERSION, "DequantizeLinear"),
            ran("5", 9, "erf"),
        ),
        0,
        1,
    )
    elements = {"x": 2000, **dict.fromkeys("abpcy", 2560)}
    found = costs_of(graph_of(NET, **WEIGHTS), PLAN, floats, integers, elements)
    assert found.float_cost == {"c1": 15, "c2": 7}
    assert found.integer_cost == {"c1": 5, "c2": 5}
    assert found.rest == 9
    rate = (9.2 - 3 + 4.1 - 3) / (2000 + 2560)  # of what crosses between codes and floats
    assert {(e.producer, e.consumer): e.conversion for e in found.edges} == {
        (OUTSIDE, "c1"): pytest.approx(3 + 2000 * rate),
        ("c1", "c2"): pytest.approx(3 + 2560 * rate),
        ("c2", OUTSIDE): pytest.approx(3 + 2560 * rate),
    }


def test_small_tensors_do_not_make_conversions_look_slow() -> None:
    convert = ran("q", 15, "x_quantize", KernelKind.CONVERSION, "QuantizeLinear")
    integers = Profile((convert, ran("1", 4, "c1", KernelKind.INTEGER), ran("4", 5, "c2", KernelKind.INTEGER)), 0, 1)
    elements = {"x": 10, **dict.fromkeys("abpcy", 4000)}
    found = costs_of(graph_of(NET, **WEIGHTS), PLAN, Profile((), 0, 1), integers, elements)
    assert max(edge.conversion for edge in found.edges) < 25


def test_where_the_backend_does_not_run_operations_are_counted() -> None:
    result = plan_model(build(NET, **WEIGHTS), recipe={"target": "qnn"})
    found = count_costs(result.graph, result.plan)
    macs = {"c1": 4 * 64 * 27, "c2": 4 * 64 * 36}
    assert set(found.integer_cost) >= set(macs)
    for name, count in macs.items():
        assert found.integer_cost[name] >= count
        assert found.float_cost[name] == 4 * found.integer_cost[name]
    assert (found.unit, found.wide) == ("operations", 2.0)
    assert not found.cheapest()
