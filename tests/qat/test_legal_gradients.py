"""Gradients of every operator that may be trained through, after what is rewritten, against finite differences."""

from __future__ import annotations

import pytest

from onnxq.passes._legal_ops import DERIVED
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.legalize_for_training import REWRITES, LegalizeForTraining
from onnxq.qat.worker_client import Worker
from tests.graphs import apply, deviation, run
from tests.qat.finite_differences import check_gradients
from tests.qat.legal_case import Case, legal
from tests.qat.legal_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gradient(worker: Worker, case: Case) -> None:
    model = case.model
    graph = legal(model, case.derived_by, outputs=case.loss)
    assert deviation(run(model, case.feed), run(graph, case.feed)) <= 2e-6
    check_gradients(worker, model, graph, case.derived_by, case.feed, outputs=case.loss or tuple(case.outputs))


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "Where any size"], ids=lambda c: c.name)
def test_a_second_run_changes_nothing(case: Case) -> None:
    graph = legal(case.model, case.derived_by, outputs=case.loss)
    before = graph.to_proto().SerializeToString()
    assert legal(case.model, case.derived_by, outputs=case.loss).to_proto().SerializeToString() == before
    nodes = [n.name for n in graph.nodes()]
    apply(graph, InferShapes())
    assert apply(graph, LegalizeForTraining(case.derived_by, case.loss)).changed == 0
    assert [n.name for n in graph.nodes()] == nodes


def test_every_operator_of_the_table_is_tested() -> None:
    trained = {n.op for case in CASES for n in legal(case.model, case.derived_by).nodes()}
    assert set(DERIVED) - {"SoftmaxCrossEntropyLoss"} <= trained


def test_every_rewriting_is_tested() -> None:
    assert set(REWRITES) <= {op for case in CASES for op in case.ops}
