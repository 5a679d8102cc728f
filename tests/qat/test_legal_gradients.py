"""Gradients of every operator that may be trained through, after what is rewritten, against finite differences."""

from __future__ import annotations

import pytest

from onnxq.passes._legal_ops import DERIVED
from onnxq.passes.legalize_for_training import REWRITES
from onnxq.qat.worker_client import Worker
from tests.graphs import deviation, run
from tests.qat.finite_differences import check_gradients
from tests.qat.legal_cases import CASES, Case, legal


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gradient(worker: Worker, case: Case) -> None:
    model = case.model
    graph = legal(model, case.derived_by, outputs=case.loss)
    assert deviation(run(model, case.feed), run(graph, case.feed)) <= 2e-6
    check_gradients(worker, model, graph, case.derived_by, case.feed, outputs=case.loss or tuple(case.outputs))


def test_every_operator_of_the_table_is_tested() -> None:
    trained = {n.op for case in CASES for n in legal(case.model, case.derived_by).nodes()}
    assert set(DERIVED) - {"SoftmaxCrossEntropyLoss"} <= trained


def test_every_rewriting_is_tested() -> None:
    assert set(REWRITES) <= {op for case in CASES for op in case.ops}
