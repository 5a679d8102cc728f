"""The pass protocol and the manager that runs passes in a proven order."""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, ClassVar

from onnxq.errors import OnnxqError, PassError, RecipeError

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel

logger = logging.getLogger("onnxq")


class Fact(Enum):
    """Something that holds for a graph and its context between two passes."""

    NAMED = auto()
    """Every node has a unique, non-empty name."""
    CONSTANTS_LIFTED = auto()
    """No Constant node is left in the main graph: every constant is an initializer."""
    SHAPES = auto()
    """The element type and rank of every tensor that can be inferred are known."""
    BN_FUSED = auto()
    """No BatchNormalization is left that could be folded into its producer."""
    PLAN = auto()
    """`QuantContext.plan` says which nodes and tensors are quantized, and how."""
    STATS = auto()
    """`QuantContext.stats` describes the graph as it is now."""
    PARAMS = auto()
    """`QuantContext.params` holds the scale and zero point of every planned tensor."""
    CODES = auto()
    """`QuantContext.weight_codes` says how every planned weight becomes codes that are decoded to floats."""
    BLOCKS = auto()
    """`QuantContext.blocks` holds the codes of the planned weights whose blocks have scales of their own."""
    MOMENTS = auto()
    """`QuantContext.moments` holds what batch normalizations said of their outputs."""
    FACTORS = auto()
    """`QuantContext.factors` holds the numbers of every layer that gets codes."""
    PRUNED = auto()
    """Channels that the recipe prunes are gone; `QuantContext.kept` says which are left."""
    MASKED = auto()
    """Weights that the recipe makes sparse are; `QuantContext.masked` names them."""
    LEARNING = auto()
    """Trainable quantizers are in the graph; the context names their parameters (`*_learned`)."""
    QUANTIZED = auto()
    """Quantization operators are in the graph."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A place a pass left alone.

    Attributes:
        node: Name of the node.
        reason: Why, in words a user can act on.
    """

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassReport:
    """What a pass did.

    Attributes:
        changed: How many places of the graph changed; 0 means that its bytes are unchanged.
        skipped: What was left alone and why.
        notes: Further facts worth showing, a sentence each.
        name: Name of the pass; filled in by the manager.
        seconds: Wall time; filled in by the manager.
    """

    changed: int = 0
    skipped: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""
    seconds: float = 0.0


class Pass(abc.ABC):
    """One graph transformation with a declared contract.

    A subclass holds configuration only, never the state of a run, so that one instance may
    run on many graphs. `run` either completes or raises.

    Attributes:
        requires: Facts that must hold before `run`.
        provides: Facts that hold after it.
        invalidates: Facts that no longer hold after it (before `provides` is added).
        preserves_function: Whether the float function of the graph is unchanged up to rounding;
            `VerifyEquivalence` checks this claim with ONNX Runtime.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    preserves_function: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name shown in reports and errors."""
        return type(self).__name__

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:  # noqa: B027 - optional hook
        """Raise `GraphError` if this model cannot be handled. Reads only."""

    @abc.abstractmethod
    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Transform `graph` in place; write to `ctx` only what `provides` names."""

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:  # noqa: B027 - optional hook
        """Raise `GraphError` if the promised result does not hold. Reads only."""


class Instrument:
    """Watches a manager from outside: timing, progress, dumps, checks. All hooks are optional."""

    def before_pass(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> None:
        """Called before `step` runs."""

    def after_pass(self, position: int, step: Pass, report: PassReport, graph: GraphModel, ctx: QuantContext) -> None:
        """Called after `step` ran and its result was validated."""


@dataclass(frozen=True)
class PassManager(Pass):
    """Runs passes in order; an impossible order is refused when it is constructed.

    A manager is a pass itself, so managers nest: its `requires`, `provides` and `invalidates`
    follow from its passes.

    Attributes:
        passes: The passes, first to last.
        instruments: Observers called around every pass.
        initial: Facts the caller vouches for.

    Raises:
        RecipeError: If a pass needs a fact that nothing before it leaves true.
    """

    passes: Sequence[Pass]
    instruments: tuple[Instrument, ...] = ()
    initial: frozenset[Fact] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        held = set(self.initial)
        gone: set[Fact] = set()
        for position, step in enumerate(self.passes):
            missing = step.requires - held
            if missing:
                raise RecipeError(_impossible(position, self.passes, missing))
            held = (held - step.invalidates) | step.provides
            gone = (gone | step.invalidates) - step.provides
        object.__setattr__(self, "requires", self.initial)
        object.__setattr__(self, "provides", frozenset(held))
        object.__setattr__(self, "invalidates", frozenset(gone))
        object.__setattr__(self, "preserves_function", all(p.preserves_function for p in self.passes))

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Run every pass; returns one report that sums up all of them.

        Raises:
            PassError: If a pass fails; the message names it, the cause is chained.
        """
        reports = self.run_each(graph, ctx)
        return PassReport(
            changed=sum(r.changed for r in reports),
            skipped=tuple(s for r in reports for s in r.skipped),
            notes=tuple(n for r in reports for n in r.notes),
        )

    def run_each(self, graph: GraphModel, ctx: QuantContext) -> list[PassReport]:
        """Run every pass and return its report; the reports are also added to ``ctx.reports``.

        Raises:
            PassError: If a pass fails.
        """
        reports: list[PassReport] = []
        for position, step in enumerate(self.passes):
            for instrument in self.instruments:
                instrument.before_pass(position, step, graph, ctx)
            report = self._run_one(position, step, graph, ctx)
            for instrument in self.instruments:
                instrument.after_pass(position, step, report, graph, ctx)
            reports.append(report)
        return reports

    def _run_one(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> PassReport:
        start = time.perf_counter()
        try:
            step.check(graph, ctx)
            report = step.run(graph, ctx)
            graph.validate()
            step.verify(graph, ctx)
        except PassError:
            raise
        except OnnxqError as err:
            raise PassError(f"pass {position + 1} {step.name}: {err}") from err
        report = replace(report, name=step.name, seconds=time.perf_counter() - start)
        if not isinstance(step, PassManager):
            ctx.reports.append(report)
        logger.info("%s: %d changed, %d skipped", step.name, report.changed, len(report.skipped))
        return report


def _impossible(position: int, passes: Sequence[Pass], missing: frozenset[Fact]) -> str:
    step = passes[position]
    parts = []
    for fact in sorted(missing, key=lambda f: f.name):
        makers = [p.name for p in passes if fact in p.provides]
        breakers = [p.name for p in passes[:position] if fact in p.invalidates]
        if breakers:
            parts.append(f"{fact.name}, which {breakers[-1]} before it makes invalid")
        elif makers:
            parts.append(f"{fact.name}, which only {makers[0]} after it provides")
        else:
            parts.append(f"{fact.name}, which no pass of the list provides")
    return f"pass {position + 1} {step.name} needs " + "; ".join(parts)
