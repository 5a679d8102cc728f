"""Stamp: metadata, and nothing that differs from run to run."""

from __future__ import annotations

from onnxq.graph import GraphModel
from onnxq.passes.stamp import Stamp
from tests.graphs import apply, build, context


def test_entries_are_added_in_order_and_others_kept() -> None:
    model = build("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.producer_name = "exporter"
    model.metadata_props.add(key="z", value="old")
    model.metadata_props.add(key="mine", value="kept")
    graph = GraphModel.from_proto(model)
    ctx = context(metadata={"onnxq.recipe": "1234", "z": "new"})
    report = apply(graph, Stamp({"onnxq.version": "9", "onnxq.recipe": "overridden"}), ctx=ctx)
    assert report.changed == 3
    exported = graph.to_proto()
    assert [(e.key, e.value) for e in exported.metadata_props] == [
        ("z", "new"), ("mine", "kept"), ("onnxq.recipe", "1234"), ("onnxq.version", "9"),
    ]  # fmt: skip
    assert exported.producer_name == "exporter"
    before = exported.SerializeToString(deterministic=True)
    assert apply(graph, Stamp({"onnxq.version": "9"}), ctx=ctx).changed == 0
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_nothing_to_write() -> None:
    graph = GraphModel.from_proto(build("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert apply(graph, Stamp()).changed == 0
    assert not graph.to_proto().metadata_props
