"""A run of a zoo as JUnit XML, which CI servers show: a suite per model, a case per recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from onnxq.zoo.comparison import Finding, Verdict
from onnxq.zoo.measuring import Outcome
from onnxq.zoo.run import Run
from onnxq.zoo.tolerances import measure_of

_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, such as the escape sequences of terminals."""


def junit_xml(run: Run, verdict: Verdict) -> str:
    """The report.

    Args:
        run: What was measured.
        verdict: What came of it.

    Returns:
        XML. A regression is a failure, an entry that could not be measured an error.
    """
    root = ET.Element("testsuites", name="onnxq zoo")
    suites: dict[str, ET.Element] = {}
    for outcome in run.outcomes:
        suite = suites.get(outcome.model)
        if suite is None:
            suite = suites[outcome.model] = ET.SubElement(root, "testsuite", name=outcome.model)
        suite.append(_case(outcome, verdict.of(outcome.name)))
    for suite in suites.values():
        suite.attrib |= _counts(list(suite))
    cases = [case for suite in suites.values() for case in suite]
    root.attrib |= _counts(cases) | {"time": f"{run.seconds:.3f}"}
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(outcome: Outcome, findings: tuple[Finding, ...]) -> ET.Element:
    case = ET.Element("testcase", classname=outcome.model, name=outcome.recipe, time=f"{outcome.seconds:.3f}")
    if outcome.status == "failed":
        error = ET.SubElement(case, "error", message=_plain(outcome.message))
        error.text = _plain(outcome.details or outcome.message)
    elif outcome.status == "skipped":
        ET.SubElement(case, "skipped", message=_plain(outcome.message))
    bad = [finding.text for finding in findings if finding.kind == "regression"]
    if bad:
        failure = ET.SubElement(case, "failure", message=_plain("; ".join(bad)))
        failure.text = _plain("\n".join(bad))
    lines = [*_numbers(outcome), *(f.text for f in findings if not f.bad and f.kind != "skipped"), *outcome.notes]
    if lines:
        ET.SubElement(case, "system-out").text = _plain("\n".join(lines))
    return case


def _numbers(outcome: Outcome) -> Iterator[str]:
    for name, value in outcome.values.items():
        measure = measure_of(name)
        reference = outcome.reference.get(name)
        beside = "" if reference is None else f" (float {measure.text(reference)})"
        yield f"{measure.title}: {measure.text(value)}{beside}"


def _counts(cases: list[ET.Element]) -> dict[str, str]:
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    found = {key: sum(case.find(kind) is not None for case in cases) for key, kind in kinds.items()}
    seconds = sum(float(case.get("time", "0")) for case in cases)
    return {"tests": str(len(cases)), **{k: str(n) for k, n in found.items()}, "time": f"{seconds:.3f}"}


def _plain(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
