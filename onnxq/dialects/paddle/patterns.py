"""Patterns of operators: which nodes of a model make a layer. Models are only read.

from onnxq.dialects.paddle.patterns import Op

scaled = Op("MatMul", constants=(1,)) >> Op("Mul", constants=(1,))
found = scaled.matches(model)  # an onnx.ModelProto
gelu = Op("Gelu") | Op("Div") >> Op("Erf") >> Op("Add") >> Op("Mul")
"""

from __future__ import annotations

import abc
import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from onnxq.errors import RecipeError

Path = tuple[onnx.NodeProto, ...]


class Network:
    """The main graph of a model, indexed for patterns.

    Args:
        model: Its nodes need unique names; initializers may be without their numbers.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: tuple[onnx.NodeProto, ...] = tuple(model.graph.node)
        self._constants = {t.name: len(t.dims) for t in model.graph.initializer}
        self._constants |= {t.values.name: len(t.dims) for t in model.graph.sparse_initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = _rank_of_constant(node)
            elif node.op_type == "Identity" and node.input[0] in self._constants:
                self._constants[node.output[0]] = self._constants[node.input[0]]
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def readers(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes that read an output of `node`, in order."""
        for name in node.output:
            if name:
                yield from self._readers.get(name, ())

    def constant_rank(self, node: onnx.NodeProto, index: int) -> int | None:
        """The rank of an input that is constant; None where it is absent or no constant."""
        return self._constants.get(node.input[index]) if index < len(node.input) else None

    def constants(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """Names of the inputs that are constant."""
        return tuple(name for name in node.input if name in self._constants)


def _rank_of_constant(node: onnx.NodeProto) -> int:
    attribute = node.attribute[0] if node.attribute else onnx.AttributeProto()
    if attribute.HasField("t"):
        return len(attribute.t.dims)
    return 1 if attribute.floats or attribute.ints else 0


class Pattern(abc.ABC):
    """What nodes look like that make a layer. Combine patterns with ``>>`` (feeds) and ``|`` (or)."""

    @abc.abstractmethod
    def at(self, network: Network, node: onnx.NodeProto) -> Iterator[Path]:
        """The layers that begin at a node, the best one first; each as its nodes from first to last."""

    @abc.abstractmethod
    def named(self, glob: str) -> Pattern:
        """The same for layers whose first node has a name that fits a glob."""

    def matches(self, model: onnx.ModelProto | Network) -> tuple[Path, ...]:
        """All layers of a model, none of which shares a node with another; those in front win.

        Args:
            model: The model; it is not changed.
        """
        network = model if isinstance(model, Network) else Network(model)
        taken: set[int] = set()
        found: list[Path] = []
        for node in network.nodes:
            path = next((p for p in self.at(network, node) if not any(id(n) in taken for n in p)), None)
            if path is not None:
                found.append(path)
                taken.update(map(id, path))
        return tuple(found)

    def __rshift__(self, other: Pattern) -> Pattern:
        """A layer of this kind whose last node is read by the first node of a layer of the other kind."""
        return Chain(self, other)

    def __or__(self, other: Pattern) -> Pattern:
        """A layer of this kind or, where there is none, of the other kind."""
        return AnyOf((self, other))


@dataclass(frozen=True, init=False)
class Op(Pattern):
    """A single node.

    Attributes:
        types: Its operator type is one of these.
        attributes: What its attributes must be: a value, or a function that says whether one will do. An attribute
            that is not written has its default value.
        constants: Indexes of inputs that must be constant.
        ranks: The rank that constant inputs must have, by index.
        glob: What its name must fit.
        mentions: Its name, or that of one of its constants, must hold one of these words; case, ``_`` and ``-`` do
            not count.
        without: Its name and those of its constants must hold none of these words.
    """

    types: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    constants: tuple[int, ...] = ()
    ranks: Mapping[int, int] = field(default_factory=dict, hash=False)
    glob: str = "*"
    mentions: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __init__(
        self,
        *types: str,
        attributes: Mapping[str, Any] | None = None,
        constants: tuple[int, ...] = (),
        ranks: Mapping[int, int] | None = None,
        glob: str = "*",
        mentions: tuple[str, ...] = (),
        without: tuple[str, ...] = (),
    ) -> None:
        if not types or not all(isinstance(t, str) and t for t in types):
            raise RecipeError(f"Op found {types!r}; give at least one operator type, such as Op('Conv')")
        values = (types, dict(attributes or {}), constants, dict(ranks or {}), glob, mentions, without)
        for name, value in zip(_FIELDS, values, strict=True):
            object.__setattr__(self, name, value)

    def at(self, network: Network, node: onnx.NodeProto) -> Iterator[Path]:
        """The node, if it is one of these."""
        if node.op_type in self.types and self._fits(network, node):
            yield (node,)

    def named(self, glob: str) -> Op:
        """The same with a name that fits a glob."""
        return self._changed(glob=glob)

    def mentioning(self, *words: str) -> Op:
        """The same with one of these words in its name or that of a constant."""
        return self._changed(mentions=words)

    def not_mentioning(self, *words: str) -> Op:
        """The same with none of these words in its name or those of its constants."""
        return self._changed(without=words)

    def _changed(self, **changes: Any) -> Op:  # noqa: ANN401 - fields
        fields = {name: getattr(self, name) for name in _FIELDS if name != "types"}
        return Op(*self.types, **{**fields, **changes})

    def _fits(self, network: Network, node: onnx.NodeProto) -> bool:
        if not fnmatch.fnmatchcase(node.name, self.glob):
            return False
        if any(network.constant_rank(node, index) is None for index in self.constants):
            return False
        if any(network.constant_rank(node, index) != rank for index, rank in self.ranks.items()):
            return False
        text = _plain(" ".join((node.name, *network.constants(node))))
        if self.mentions and not any(_plain(word) in text for word in self.mentions):
            return False
        if any(_plain(word) in text for word in self.without):
            return False
        return all(_has(node, name, wanted) for name, wanted in self.attributes.items())


_FIELDS = ("types", "attributes", "constants", "ranks", "glob", "mentions", "without")


def _plain(text: str) -> str:
    return text.lower().replace("_", "").replace("-", "")


def _has(node: onnx.NodeProto, name: str, wanted: Any) -> bool:  # noqa: ANN401 - any attribute
    found = _attribute(node, name)
    if callable(wanted):
        return found is not None and bool(wanted(found))
    return bool(found == (list(wanted) if isinstance(wanted, tuple) else wanted))


def _attribute(node: onnx.NodeProto, name: str) -> Any:  # noqa: ANN401 - any attribute
    """The value of an attribute or its default; None where it has none."""
    for attribute in node.attribute:
        if attribute.name == name:
            return _value(attribute)
    try:
        known = onnx.defs.get_schema(node.op_type, domain=node.domain).attributes
    except onnx.defs.SchemaError:
        return None
    default = known[name].default_value if name in known else onnx.AttributeProto()
    return _value(default) if default.type else None


def _value(attribute: onnx.AttributeProto) -> Any:  # noqa: ANN401 - any attribute
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


@dataclass(frozen=True)
class Chain(Pattern):
    """A layer that is read by another one; together they are one.

    Attributes:
        first: What the data come from.
        second: What reads them.
    """

    first: Pattern
    second: Pattern

    def at(self, network: Network, node: onnx.NodeProto) -> Iterator[Path]:
        """Both layers, where the first one begins at the node."""
        for path in self.first.at(network, node):
            for reader in network.readers(path[-1]):
                for rest in self.second.at(network, reader):
                    yield (*path, *rest)

    def named(self, glob: str) -> Chain:
        """The same where the name of the first node fits a glob."""
        return replace(self, first=self.first.named(glob))


@dataclass(frozen=True)
class AnyOf(Pattern):
    """One of several kinds of layers, the first one that fits.

    Attributes:
        kinds: In order of preference.
    """

    kinds: tuple[Pattern, ...]

    def at(self, network: Network, node: onnx.NodeProto) -> Iterator[Path]:
        """The layers of all kinds that begin at the node."""
        for kind in self.kinds:
            yield from kind.at(network, node)

    def named(self, glob: str) -> AnyOf:
        """The same where the name of the first node fits a glob."""
        return AnyOf(tuple(kind.named(glob) for kind in self.kinds))
