"""What a configuration says of every node of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx

from onnxq.dialects.paddle import nn
from onnxq.dialects.paddle.config import Entry, LayerConfig, LayerKind, QuantConfig, pattern_of, told
from onnxq.dialects.paddle.patterns import Network
from onnxq.errors import RecipeError, nearest

Origin = Literal["mapping", "layer", "name", "type", "scope", "global"]


@dataclass(frozen=True)
class Found:
    """What holds for a node.

    Attributes:
        config: The configuration.
        origin: Which level decided.
        alone: Whether the node is all of the layer.
        label: The call that decided, for messages.
    """

    config: LayerConfig
    origin: Origin
    alone: bool = True
    label: str = ""


@dataclass(frozen=True)
class _Claim:
    """An entry that is for a node; the last one counts."""

    number: int
    entry: Entry
    alone: bool = True


@dataclass
class Layers:
    """A configuration laid over a model.

    Args:
        config: The configuration.
        model: The model, its nodes named; initializers may be without their numbers.
        prepared: The model in the form it is quantized in: nodes that only it has are found by their types, too.
        mapped: What holds for the nodes that took the place of a mapped layer, by the layer's name.

    Raises:
        RecipeError: If an entry is for nothing in the model; it names all of them.
    """

    config: QuantConfig
    model: onnx.ModelProto
    prepared: onnx.ModelProto | None = None
    mapped: Mapping[str, LayerConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        models = (self.model,) if self.prepared is None else (self.model, self.prepared)
        self._networks = [Network(m) for m in models]
        self._op_types = {n.op_type for network in self._networks for n in network.nodes}
        self._names = {n.name for network in self._networks for n in network.nodes} | set(self.mapped)
        self._scopes = {scope for name in self._names for scope in scopes_of(name)}
        self._mapped_scopes = {name.lstrip("/"): config for name, config in self.mapped.items()}
        self._by_output = {o: n.name for n in reversed(self._networks[0].nodes) for o in n.output if o}
        self._named: dict[str, dict[str, _Claim]] = {"layer": {}, "name": {}}
        self._scoped: dict[str, dict[str, _Claim]] = {"layer": {}, "name": {}}
        self._typed: dict[str, _Claim] = {}
        leaves = [(kind, path) for kind in self.config.customized_leaves for path in self._paths(kind)]
        self._leaf = {node: kind for kind, path in leaves for node in path}
        self._refuse([problem for i, entry in enumerate(self.config.entries) for problem in self._add(i, entry)])

    def at(self, node: str) -> Found | None:
        """What holds for a node; None where nothing does, so that it stays float.

        Args:
            node: Its name.
        """
        for scope in (node.lstrip("/"), *scopes_of(node)):
            if scope in self._mapped_scopes:
                return Found(self._mapped_scopes[scope], "mapping")
        for level in ("layer", "name"):
            claim = self._named[level].get(node)
            if claim is not None:
                return Found(claim.entry.config, claim.entry.level, label=str(claim.entry))
        claim = self._typed.get(node)
        if claim is not None:
            return Found(claim.entry.config, "type", claim.alone, str(claim.entry))
        for scope in scopes_of(node):
            for level in ("layer", "name"):
                claim = self._scoped[level].get(scope)
                if claim is not None:
                    return Found(claim.entry.config, "scope", label=str(claim.entry))
        found = self.config.global_config
        return None if found is None else Found(found, "global", label="QuantConfig(activation, weight)")

    # ---- entries

    def _add(self, number: int, entry: Entry) -> Iterator[str]:
        """Take up an entry; gives what is wrong with it."""
        if entry.level == "type":
            yield from self._add_types(number, entry)
            return
        for wanted in entry.wanted:
            name = self._name_of(wanted)
            scope = None if name is None else name.lstrip("/")
            if name in self._names and name is not None:
                self._named[entry.level][name] = _Claim(number, entry)
            if scope in self._scopes and scope is not None:
                self._scoped[entry.level][scope] = _Claim(number, entry)
            elif name not in self._names:
                known = self._names | self._scopes | {f"/{scope}" for scope in self._scopes}
                shown = name or told(wanted)
                yield f"add_{entry.level}_config: {shown!r} is not in the model{nearest(shown, known)}"

    def _name_of(self, wanted: object) -> str | None:
        if isinstance(wanted, str):
            return wanted
        if not isinstance(wanted, onnx.NodeProto):
            return None
        return wanted.name or next((self._by_output[o] for o in wanted.output if o in self._by_output), None)

    def _add_types(self, number: int, entry: Entry) -> Iterator[str]:
        kinds: list[LayerKind] = [k for k in entry.wanted if not isinstance(k, onnx.NodeProto)]
        unheard = [k for k in kinds if isinstance(k, str) and k not in self._op_types and not onnx.defs.has(k)]
        for name in map(str, unheard):
            yield f"{entry}: there is no operator type {name!r}{nearest(name, self._known_types())}"
        matched = False
        for kind in kinds:
            for path in self._paths(kind):
                matched = True
                for node in path:
                    if self._leaf.get(node, kind) == kind:
                        self._typed[node] = _Claim(number, entry, len(path) == 1)
        if not matched and not unheard:
            hint = nearest(told(kinds[0]).strip("'"), self._known_types()) if kinds else ""
            yield f"{entry}: the model has no such layer{hint or f'; it has {self._listed_types()}'}"

    def _paths(self, kind: LayerKind) -> Iterator[tuple[str, ...]]:
        pattern = pattern_of(kind)
        seen: set[tuple[str, ...]] = set()
        for network in self._networks:
            for path in pattern.matches(network):
                names = tuple(node.name for node in path)
                if names not in seen:
                    seen.add(names)
                    yield names

    def _known_types(self) -> set[str]:
        return self._op_types | {name for name, kind in _classes() if any(True for _ in self._paths(kind))}

    def _listed_types(self) -> str:
        return ", ".join(sorted(self._op_types))

    @staticmethod
    def _refuse(problems: list[str]) -> None:
        if len(problems) == 1:
            raise RecipeError(problems[0])
        if problems:
            listed = "".join(f"\n  {problem}" for problem in problems)
            raise RecipeError(f"{len(problems)} problems in the QuantConfig{listed}")


def scopes_of(name: str) -> Iterator[str]:
    """The scopes around a node, the innermost one first, without a leading ``/``."""
    plain = name.lstrip("/")
    for position in range(len(plain) - 1, 0, -1):
        if plain[position] in "/.":
            yield plain[:position]


def _classes() -> Iterator[tuple[str, type[nn.Layer]]]:
    for name, value in vars(nn).items():
        if isinstance(value, type) and issubclass(value, nn.Layer) and value is not nn.Layer:
            yield name, value
