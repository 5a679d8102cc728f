"""Names in a configuration and the layers of a model that they mean; what means nothing is a problem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.dialects.amct.config import Mention
from onnxq.dialects.amct.layers import Layer, Layers
from onnxq.dialects.amct.names import LAYER_TYPES, module_path
from onnxq.dialects.problems import Problem
from onnxq.errors import nearest

MOST_NAMES = 4


@dataclass
class Naming:
    """Finds layers by their names, by those of torch's modules, and by types.

    Attributes:
        known: The layers of the model.
        problems: What means nothing.
        notes: What is worth knowing about what was found.
    """

    known: Layers
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    aliases: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        modules: dict[str, list[str]] = defaultdict(list)
        for name in self.known.quantizable:
            modules[module_path(name)].append(name)
        self.aliases = {path: names[0] for path, names in modules.items() if path and len(names) == 1}

    def node(self, mention: Mention) -> str:
        """The node that is meant; empty, with a problem, where there is none."""
        name = mention.name
        if name in self.aliases and name not in self.known.quantizable:
            name = self.aliases[name]
            self.notes.append(f"{mention.name!r} is the torch module that became the node {name!r}")
        if name in self.known.quantizable or name in self.known.others:
            return name
        names = [*self.known.quantizable, *self.known.others, *self.aliases]
        hint = nearest(mention.name, names) or _first(self.known.quantizable)
        self.problems.append(Problem(mention.line, f"the model has no layer {mention.name!r}{hint}"))
        return ""

    def layer(self, mention: Mention) -> str:
        """The quantizable layer that is meant; empty, with a problem, where there is none."""
        name = self.node(mention)
        if not name or name in self.known.quantizable:
            return name
        reason = self.known.reasons.get(name) or "AMCT does not quantize such layers"
        op = self.known.others[name].op_type
        self.problems.append(Problem(mention.line, f"layer {name!r} ({op}) stays float: {reason}"))
        return ""

    def of_type(self, mention: Mention) -> list[str]:
        """The quantizable layers of a type."""
        found = LAYER_TYPES.get(mention.name)
        if found is None:
            hint = nearest(mention.name, LAYER_TYPES) or f"; known: {', '.join(sorted(LAYER_TYPES))}"
            self.problems.append(Problem(mention.line, f"AMCT has no layer type {mention.name!r}{hint}"))
            return []
        names = [name for name, layer in self.known.quantizable.items() if found.matches(layer)]
        if not names:
            self.notes.append(f"the model has no layer of type {mention.name} that could be quantized")
        return names


def listed(names: list[str]) -> str:
    """Names in quotes, the first few of them."""
    shown = ", ".join(repr(name) for name in names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _first(names: Mapping[str, Layer]) -> str:
    """What layers are called in this model, where no name is near."""
    return f"; its layers are called {listed(list(names))}" if names else ""
