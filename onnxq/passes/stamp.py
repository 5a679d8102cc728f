"""Writes into the model where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from onnxq.passes._base import Pass, PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel


@dataclass(frozen=True)
class Stamp(Pass):
    """Writes `metadata_props`: the entries of `metadata` and then those of ``ctx.metadata``.

    Entries of the model under other keys stay. No time, user or machine is written, so the same
    inputs give the same bytes; the producer fields keep naming the exporter.

    Attributes:
        metadata: Entries to write; ``ctx.metadata`` wins where both have a key.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Write in the order of the keys."""
        entries = {**self.metadata, **ctx.metadata}
        changed = {key: text for key, text in sorted(entries.items()) if graph.metadata.get(key) != text}
        graph.metadata.update(changed)
        return PassReport(changed=len(changed))
