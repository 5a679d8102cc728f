"""Instruments for a `PassManager`: they watch every pass from outside and change nothing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from onnxq.errors import DataError, GraphError
from onnxq.passes._base import Instrument, Pass, PassReport

if TYPE_CHECKING:
    import onnx

    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel

__all__ = ["DumpAfterEachPass", "LogPasses", "Progress", "Timing", "VerifyEquivalence"]

logger = logging.getLogger("onnxq")

Feed = Mapping[str, NDArray[Any]]


@dataclass
class Timing(Instrument):
    """How long each pass took.

    Attributes:
        rows: Name and seconds of each pass, in the order they ran.
    """

    rows: list[tuple[str, float]] = field(default_factory=list)

    @property
    def total(self) -> float:
        """Seconds in all passes together."""
        return sum(seconds for _, seconds in self.rows)

    def after_pass(self, position: int, step: Pass, report: PassReport, graph: GraphModel, ctx: QuantContext) -> None:
        """Note the seconds."""
        self.rows.append((step.name, report.seconds))


@dataclass(frozen=True)
class LogPasses(Instrument):
    """Writes what each pass did to the logger ``onnxq``: notes as INFO, every skip as DEBUG."""

    def after_pass(self, position: int, step: Pass, report: PassReport, graph: GraphModel, ctx: QuantContext) -> None:
        """Log the report."""
        for note in report.notes:
            logger.info("%d %s: %s", position + 1, step.name, note)
        for skip in report.skipped:
            logger.debug("%d %s: left %r alone: %s", position + 1, step.name, skip.node, skip.reason)


@final
class Progress(Instrument):
    """A progress bar on standard error; as a context manager it is taken away even if a pass fails.

    Example:
        ``with Progress(total=3) as bar: PassManager([...], instruments=(bar,)).run(graph, ctx)``
    """

    def __init__(self, total: int | None = None, *, console: Console | None = None) -> None:
        """Prepare the bar; it is shown with the first pass.

        Args:
            total: How many passes there are; None shows a bar without an end.
            console: Where to draw; standard error by default.
        """
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console or Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def before_pass(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> None:
        """Show the name of the pass."""
        self._bar.start()
        self._bar.update(self._task, description=step.name)

    def after_pass(self, position: int, step: Pass, report: PassReport, graph: GraphModel, ctx: QuantContext) -> None:
        """Advance; the bar goes with the last pass."""
        self._bar.advance(self._task)
        if self._bar.finished:
            self._bar.stop()


@dataclass(frozen=True)
class DumpAfterEachPass(Instrument):
    """Saves the model after each pass as ``NN_PassName.onnx``, NN counting from 01.

    Attributes:
        folder: Where to; created if it is missing.
    """

    folder: Path

    def after_pass(self, position: int, step: Pass, report: PassReport, graph: GraphModel, ctx: QuantContext) -> None:
        """Save.

        Raises:
            ModelError: If the model cannot be written.
        """
        from onnxq.modelio import save_model

        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(graph, folder / f"{position + 1:02d}_{step.name}.onnx")


@dataclass
class VerifyEquivalence(Instrument):
    """Holds every pass that claims `preserves_function` to it, with ONNX Runtime.

    The model runs on `feeds` before and after such a pass. Of each output, no element may deviate by
    more than ``atol + rtol * max|expected|``. Models above 2 GB cannot be checked.

    Attributes:
        feeds: A few inputs, by name; iterated anew for every run.
        rtol: Allowed deviation, relative to the largest element of the output.
        atol: Allowed deviation of outputs that are almost zero.
        threads: Threads of ONNX Runtime; 0 leaves it to the runtime.
        deviations: Largest deviation over the allowed one, by name of the pass; 0 where it changed nothing.
    """

    feeds: Iterable[Feed]
    rtol: float = 1e-4
    atol: float = 1e-6
    threads: int = 0
    deviations: dict[str, float] = field(default_factory=dict)
    _digest: bytes = field(default=b"", init=False, repr=False)
    _expected: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)

    def before_pass(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> None:
        """Run the model as it is.

        Raises:
            DataError: If there are no feeds.
        """
        if not step.preserves_function:
            return
        proto = graph.to_proto()
        self._digest = _digest(proto)
        self._expected = self._run(proto)
        if not self._expected:
            raise DataError("VerifyEquivalence needs at least one feed, got none")

    def after_pass(self, position: int, step: Pass, report: PassReport, graph: GraphModel, ctx: QuantContext) -> None:
        """Run the model again and compare.

        Raises:
            GraphError: If an output deviates more than allowed; names the pass, the output that is worst
                and by how much.
        """
        if not step.preserves_function:
            return
        proto = graph.to_proto()
        expected, self._expected = self._expected, []
        worst = 0.0 if _digest(proto) == self._digest else self._compare(expected, self._run(proto), position, step)
        self.deviations[step.name] = max(worst, self.deviations.get(step.name, 0.0))

    def _run(self, proto: onnx.ModelProto) -> list[dict[str, Any]]:
        from onnxq.runtime import make_session

        session = make_session(proto, threads=self.threads)
        names = [output.name for output in proto.graph.output]
        return [dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in self.feeds]

    def _compare(
        self, expected: list[dict[str, Any]], actual: list[dict[str, Any]], position: int, step: Pass
    ) -> float:
        where = f"pass {position + 1} {step.name} claims to preserve the function, but"
        worst = (0.0, "")
        for number, (before, after) in enumerate(zip(expected, actual, strict=True)):
            if before.keys() != after.keys():
                raise GraphError(f"{where} the outputs were {', '.join(before)} and are {', '.join(after)}")
            for name, wanted in before.items():
                ratio, what = self._deviation(wanted, after[name])
                worst = max(worst, (ratio, f"output {name!r} {what} on feed {number}"))
        if worst[0] > 1.0:
            advice = "mend the pass, or let it not claim preserves_function"
            raise GraphError(f"{where} {worst[1]}; {advice}")
        return worst[0]

    def _deviation(self, wanted: object, got: object) -> tuple[float, str]:
        """Largest deviation over the allowed one, and in words."""
        a, b = np.asarray(wanted), np.asarray(got)
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf"), f"was {a.dtype} {a.shape} and is {b.dtype} {b.shape}"
        if a.dtype.kind not in "fiub":
            return (0.0, "") if bool((a == b).all()) else (float("inf"), "differs")
        wide, other = a.astype(np.float64), b.astype(np.float64)
        same = (wide == other) | (np.isnan(wide) & np.isnan(other))
        if same.all():
            return 0.0, ""
        gap = float(np.abs(wide[~same] - other[~same]).max())
        allowed = self.atol + self.rtol * float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
        ratio = gap / allowed if np.isfinite(gap) and allowed > 0 else float("inf")
        return ratio, f"deviates by {gap:.3g}, allowed are {allowed:.3g},"


def _digest(proto: onnx.ModelProto) -> bytes:
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).digest()
