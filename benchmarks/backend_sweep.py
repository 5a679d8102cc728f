"""Quantizes every model of onnx.backend.test that ONNX Runtime can run, and counts what becomes of them.

    python benchmarks/backend_sweep.py [--kinds node simple ...] [--match GLOB] [--verbose]

Every model comes twice where that makes a difference: as it is, and *bound*: with all float inputs but
the first one made constants, as weights are in real models (the node tests feed them as inputs).

Calibration data are random, as ``calibration: {random: true}`` makes them; where the model cannot run on
such data (an index out of range), the test's own feed is used. Models that are older than operator set 7
are converted first: neither ONNX Runtime nor onnxq takes them. The bound on every float output: an SQNR of
at least 20 dB or a largest error of at most 5 % of the output's range, on the data of the calibration.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

import onnxq
from onnxq.calib.live import RandomReader
from onnxq.passes._inputs import inputs_of
from onnxq.runtime import Session, make_session

Feed = dict[str, np.ndarray]

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
FIRST_OPSET = 7
SAMPLES = 8
MIN_SQNR = 20.0
MAX_ERROR = 0.05
KNOWN = {
    "test_attention_4d_softcap_neginf_mask_poison_expanded+bound": "values of 1000 that a mask hides set the scale",
}
"""Models on which the bound cannot hold, and why."""
_RANDOM = {"calibration": {"random": True, "random_samples": SAMPLES}}


@dataclass(frozen=True)
class Case:
    """A model to quantize.

    Attributes:
        name: The test's name; with ``+bound`` where inputs were made constants.
        model: The model.
        feed: The test's own inputs; None where they are no plain tensors.
    """

    name: str
    model: onnx.ModelProto
    feed: Feed | None


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        name: The case.
        kind: quantized, unchanged, refused (an OnnxqError), not runnable, out of bounds, a known limit, or crashed.
        detail: A sentence.
        sqnr: Of the worst output in dB, where it was quantized.
    """

    name: str
    kind: str
    detail: str = ""
    sqnr: float = math.inf


# ---- the models ---------------------------------------------------------------------------------


def cases(kinds: Sequence[str] = KINDS, match: str = "*") -> Iterator[Case]:
    """The models of `kinds`, each followed by its bound twin."""
    for kind in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tests compute with infinities on purpose
            tests = load_model_tests(kind=kind)
        for test in sorted(tests, key=lambda t: t.name):
            if not fnmatch.fnmatch(test.name, match) or (test.model is None and test.model_dir is None):
                continue
            case = case_of(test)
            yield case
            bound = bind(case)
            if bound is not None:
                yield bound


def case_of(test: object) -> Case:
    """A test case of onnx.backend.test."""
    folder = test.model_dir
    if test.model is not None:
        inputs = test.data_sets[0][0] if test.data_sets else None
        return Case(test.name, test.model, _feed(test.model, inputs))
    model = _modern(onnx.load(Path(folder) / "model.onnx"))
    files = sorted((Path(folder) / "test_data_set_0").glob("input_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
    try:
        inputs = [numpy_helper.to_array(onnx.TensorProto.FromString(f.read_bytes())) for f in files]
    except (TypeError, ValueError):  # a sequence
        inputs = None
    return Case(test.name, model, _feed(model, inputs))


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at operator set 13, where it is older than 7 and can be converted."""
    if any(o.domain or o.version >= FIRST_OPSET for o in model.opset_import):
        return model
    try:
        return onnx.version_converter.convert_version(model, 13)
    except (RuntimeError, ValueError):
        return model


def _feed(model: onnx.ModelProto, inputs: Sequence[object] | None) -> Feed | None:
    known = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in known]
    if inputs is None or len(inputs) < len(names):
        return None
    arrays = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for x in inputs]
    return dict(zip(names, arrays, strict=False)) if all(isinstance(a, np.ndarray) for a in arrays) else None


def bind(case: Case) -> Case | None:
    """The case with all its float32 inputs but the first as constants; None if there is nothing to bind."""
    feed = case.feed
    if feed is None or sum(a.dtype == np.float32 for a in feed.values()) < 2:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    names = [n for n, a in feed.items() if a.dtype == np.float32][1:]
    for name in names:
        model.graph.initializer.append(numpy_helper.from_array(np.array(feed[name], order="C"), name))
    kept = [i for i in model.graph.input if i.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Case(f"{case.name}+bound", model, {n: a for n, a in feed.items() if n not in names})


# ---- one model ----------------------------------------------------------------------------------


def sweep(case: Case) -> Outcome:
    """Quantize one model and compare it with the float one."""
    try:
        float_session = make_session(case.model)
        feeds = _feeds(case, float_session)
    except (onnxq.OnnxqError, RuntimeError) as err:  # ONNX Runtime cannot be fed bfloat16 from Python
        return Outcome(case.name, "not runnable", str(err))
    try:
        return _quantized(case, float_session, feeds)
    except onnxq.OnnxqError as err:
        return Outcome(case.name, "refused", f"{type(err).__name__}: {err}")
    except Exception:  # noqa: BLE001 - counting these is what the sweep is for
        return Outcome(case.name, "crashed", traceback.format_exc(limit=-3))


def _feeds(case: Case, session: Session) -> tuple[list[Feed], bool]:
    """Feeds the model runs on and whether they are those of random calibration.

    Only floats are random: a random index, axis or step may end ONNX Runtime's process.
    """
    known = {t.name for t in case.model.graph.initializer}
    types = [i.type.tensor_type.elem_type for i in case.model.graph.input if i.name not in known]
    if types and all(t == onnx.TensorProto.FLOAT for t in types):
        try:
            graph = onnxq.GraphModel.from_proto(case.model)
            feeds = list(RandomReader(inputs_of(graph), SAMPLES, seed=0))
            for feed in feeds:
                session.run(None, feed)
            return feeds, True
        except onnxq.OnnxqError:  # a free dimension that must be just so
            pass
    if case.feed is None:
        return [], True
    session.run(None, case.feed)
    return [case.feed], False


def _quantized(case: Case, session: Session, given: tuple[list[Feed], bool]) -> Outcome:
    feeds, random = given
    if random:
        result = onnxq.quantize(case.model, recipe=_RANDOM, threads=1)
    else:
        result = onnxq.quantize(case.model, feeds, threads=1)
    if not result.changed:
        reasons = "; ".join(dict.fromkeys(d.reason for d in result.plan.left_float()))
        return Outcome(case.name, "unchanged" if reasons or not result.plan.decisions else "no reason", reasons)
    onnx.checker.check_model(result.model, full_check=True)
    worst, violation = _compare(session, make_session(result.model), feeds)
    if violation and case.name in KNOWN:
        return Outcome(case.name, "known limit", f"{violation} ({KNOWN[case.name]})")
    return Outcome(case.name, "out of bounds" if violation else "quantized", violation, worst)


def _compare(before: Session, after: Session, feeds: Sequence[Feed]) -> tuple[float, str]:
    """The worst output's SQNR over all feeds, and what is out of bounds."""
    expected = [before.run(None, f) for f in feeds]
    found = [after.run(None, f) for f in feeds]
    worst, problems = math.inf, []
    for index, name in enumerate(before.output_names):
        a, b = ([np.asarray(outputs[index]) for outputs in side] for side in (expected, found))
        if any(x.dtype.kind != "f" for x in a):
            continue
        sqnr, error = _distance(a, b)
        worst = min(worst, sqnr)
        if sqnr < MIN_SQNR and error > MAX_ERROR:
            problems.append(f"{name}: {sqnr:.1f} dB, largest error {100 * error:.1f} % of the range")
    return worst, "; ".join(problems)


def _distance(expected: list[np.ndarray], found: list[np.ndarray]) -> tuple[float, float]:
    """SQNR in dB, and the largest error over the range of the values."""
    a = np.concatenate([x.reshape(-1) for x in expected]).astype(np.float64)
    b = np.concatenate([x.reshape(-1) for x in found]).astype(np.float64)
    if a.shape != b.shape:
        return -math.inf, math.inf
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return -math.inf, math.inf
    a, b = a[finite], b[finite]
    noise = float(np.sum((a - b) ** 2))
    if noise == 0:
        return math.inf, 0.0
    power, spread = float(np.sum(a**2)), float(max(a.max(), 0) - min(a.min(), 0))
    return 10 * math.log10(max(power, 1e-300) / noise), float(np.abs(a - b).max()) / max(spread, 1e-300)


# ---- all of them --------------------------------------------------------------------------------


def main() -> int:
    """Print the counts and everything that went wrong; 1 if something did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=(*KINDS, "light"))
    parser.add_argument("--match", default="*", help="a glob on the names of the tests")
    parser.add_argument("--verbose", action="store_true", help="print every model")
    options = parser.parse_args()
    start = time.perf_counter()
    counts: Counter[str] = Counter()
    bad = 0
    worst = Outcome("", "")
    for case in cases(options.kinds, options.match):
        outcome = sweep(case)
        counts[outcome.kind] += 1
        wrong = outcome.kind in ("crashed", "out of bounds", "no reason")
        bad += wrong
        if outcome.kind == "quantized" and outcome.sqnr < worst.sqnr:
            worst = outcome
        if wrong or outcome.kind == "refused" or options.verbose:
            print(f"{outcome.kind:14} {outcome.name}: {outcome.detail}", file=sys.stderr)
    print(f"{sum(counts.values())} models in {time.perf_counter() - start:.0f} s")
    for kind, count in counts.most_common():
        print(f"  {count:5}  {kind}")
    print(f"  worst of the quantized: {worst.sqnr:.1f} dB ({worst.name})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
