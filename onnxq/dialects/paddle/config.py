"""Which layer is quantized how, in Paddle's words.

q_config = QuantConfig(activation=None, weight=None)
q_config.add_type_config([nn.Linear, nn.Conv2D], activation=HistObserver(), weight=MSEChannelWiseWeightObserver())
q_config.add_name_config("/classifier/MatMul", activation=None, weight=None)  # stays float
recipe = q_config.to_recipe("model.onnx")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import onnx

from onnxq import Pass
from onnxq.dialects.paddle.factories import ObserverFactory, as_factory
from onnxq.dialects.paddle.nn import Layer
from onnxq.dialects.paddle.patterns import Op, Path, Pattern
from onnxq.errors import RecipeError, nearest

if TYPE_CHECKING:
    from typing_extensions import Self

    from onnxq.dialects.paddle.parallel import LayerTarget
    from onnxq.pipeline import ModelLike
    from onnxq.recipe import Recipe

LayerKind = type[Layer] | Pattern | str
"""A class of `onnxq.dialects.paddle.nn`, a pattern or an ONNX operator type."""
LayerLike = onnx.NodeProto | str
"""A node of the model, or its unique name; also the name of a scope."""
Factory = ObserverFactory | type[ObserverFactory] | None
Level = Literal["layer", "name", "type"]


@dataclass(frozen=True)
class LayerConfig:
    """What quantizes a layer; without either it stays float.

    Attributes:
        activation: For its inputs.
        weight: For its weight.
    """

    activation: ObserverFactory | None = None
    weight: ObserverFactory | None = None

    @property
    def empty(self) -> bool:
        """Whether the layer stays float."""
        return self.activation is None and self.weight is None


Target = Pass | Callable[[tuple[str, ...], LayerConfig], "Pass | LayerTarget"]
"""What rewrites the layers of a type: a pass for all of them, or what makes one from the names of a layer's nodes and
its configuration: a class or a function."""


@dataclass(frozen=True)
class Entry:
    """One call of a `QuantConfig`.

    Attributes:
        level: Which call.
        wanted: Names and nodes, or types.
        config: What holds for them.
    """

    level: Level
    wanted: tuple[LayerLike | LayerKind, ...]
    config: LayerConfig

    def __str__(self) -> str:
        return f"add_{self.level}_config({', '.join(map(told, self.wanted))})"


def told(wanted: LayerLike | LayerKind) -> str:
    """A layer or a type in a message."""
    item: object = wanted
    if isinstance(item, onnx.NodeProto):
        return f"{item.op_type} {item.name or item.output[0]!r}"
    return item.__name__ if inspect.isclass(item) else repr(item)


def pattern_of(kind: LayerKind) -> Pattern:
    """What the layers of a type look like."""
    if isinstance(kind, str):
        return Op(kind)
    return kind if isinstance(kind, Pattern) else kind.pattern


class QuantConfig:
    """Which layer is quantized how.

    A configuration for a layer beats one for its name, that beats one for its type, that beats the one of the scope
    around it, that beats the global one; of two calls on the same level the later one counts. ``activation=None,
    weight=None`` leaves layers float. Names are those of nodes, exactly; a name that nodes' names go on from with
    ``/`` or ``.`` is a scope, and holds for all of them.

    Args:
        activation: What quantizes the inputs of all layers.
        weight: What quantizes the weights of all layers.

    Raises:
        RecipeError: If it is no observer or quanter.
    """

    def __init__(self, activation: Factory = None, weight: Factory = None) -> None:
        config = _config(activation, weight, "QuantConfig")
        self._global = None if config.empty else config
        self._entries: list[Entry] = []
        self._mappings: list[tuple[LayerKind, Target]] = []
        self._leaves: list[LayerKind] = []

    # ---- Paddle's calls

    def add_layer_config(
        self, layer: LayerLike | Sequence[LayerLike], activation: Factory = None, weight: Factory = None
    ) -> None:
        """Configure layers; nothing beats this.

        Args:
            layer: Nodes of the model or their names, one or a list.
            activation: What quantizes their inputs.
            weight: What quantizes their weights.

        Raises:
            RecipeError: If an argument is of another kind.
        """
        layers = tuple(self._named("add_layer_config(layer)", _listed(layer), (onnx.NodeProto, str)))
        self._entries.append(Entry("layer", layers, _config(activation, weight, "add_layer_config")))

    def add_name_config(
        self, layer_name: str | Sequence[str], activation: Factory = None, weight: Factory = None
    ) -> None:
        """Configure layers by name.

        Args:
            layer_name: Names of nodes or scopes, one or a list.
            activation: What quantizes their inputs.
            weight: What quantizes their weights.

        Raises:
            RecipeError: If an argument is of another kind.
        """
        names = tuple(self._named("add_name_config(layer_name)", _listed(layer_name), (str,)))
        self._entries.append(Entry("name", names, _config(activation, weight, "add_name_config")))

    def add_type_config(
        self, layer_type: LayerKind | Sequence[LayerKind], activation: Factory = None, weight: Factory = None
    ) -> None:
        """Configure all layers of some types.

        Args:
            layer_type: Classes of `onnxq.dialects.paddle.nn`, patterns or ONNX operator types, one or a list.
            activation: What quantizes their inputs.
            weight: What quantizes their weights.

        Raises:
            RecipeError: If an argument is of another kind.
        """
        kinds = tuple(_kind(kind, "add_type_config(layer_type)") for kind in _listed(layer_type))
        self._entries.append(Entry("type", kinds, _config(activation, weight, "add_type_config")))

    def add_qat_layer_mapping(self, source: LayerKind, target: Target) -> None:
        """Let an implementation of its own take the place of the layers of a type before they are quantized.

        It is done for layers that have a configuration, which then holds for all that takes their place: the nodes
        whose names go on from the layer's name with ``/``.

        Args:
            source: The type.
            target: A pass for all layers at once, or a class or function that is called for each with the names of its
                nodes and its configuration and gives a pass, such as `QuantizedRowParallelLinear`.

        Raises:
            RecipeError: If an argument is of another kind.
        """
        kind = _kind(source, "add_qat_layer_mapping(source)")
        if not isinstance(target, Pass) and not callable(target):
            raise RecipeError(
                f"add_qat_layer_mapping(target) found {target!r}; must be a pass, or a class or function that gives one"
            )
        self._mappings.append((kind, target))

    def add_customized_leaf(self, layer_type: LayerKind) -> None:
        """Take what a type finds for one layer: types of nodes inside of it do not count.

        Args:
            layer_type: The type.

        Raises:
            RecipeError: If it is no type.
        """
        self._leaves.append(_kind(layer_type, "add_customized_leaf(layer_type)"))

    # ---- what it says

    @property
    def global_config(self) -> LayerConfig | None:
        """What holds for layers that nothing else is said of; None: they stay float."""
        return self._global

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The calls that configure layers, in order."""
        return tuple(self._entries)

    @property
    def qat_layer_mappings(self) -> tuple[tuple[LayerKind, Target], ...]:
        """Source and target of each mapping, in order."""
        return tuple(self._mappings)

    @property
    def customized_leaves(self) -> tuple[LayerKind, ...]:
        """The types whose insides do not count."""
        return tuple(self._leaves)

    def copy(self) -> QuantConfig:
        """One that later calls of this one do not change."""
        other = QuantConfig()
        other._global = self._global
        other._entries, other._mappings, other._leaves = [*self._entries], [*self._mappings], [*self._leaves]
        return other

    def __copy__(self) -> QuantConfig:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, object]) -> QuantConfig:
        return self.copy()

    def __str__(self) -> str:
        lines = ["nothing" if self._global is None else _told_config(self._global), *map(_told_entry, self._entries)]
        return "\n".join(["Global config: " + lines[0], *lines[1:]])

    # ---- to and from recipes

    def to_recipe(self, model: ModelLike, *, base: Recipe | None = None) -> Recipe:
        """What this means for a model.

        Args:
            model: The float model.
            base: What holds for everything a `QuantConfig` has no words for: the target, calibration, refinements.
                By default onnxq's default recipe without the scaling of channels in front of depthwise convolutions,
                after which an observer would not see the tensor as it is.

        Raises:
            RecipeError: If a name or a type is not in the model, a layer has an observer on one side only that the
                backend needs both of, or a mapping would change the model.
            OnnxqError: If the model cannot be used.
        """
        from onnxq.dialects.paddle.convert import to_recipe

        return to_recipe(self, model, base=base)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """A configuration that says of layers what a recipe does.

        Args:
            recipe: What it says of the rest must be the default, and is to be given as `base` again.

        Raises:
            RecipeError: If the recipe says what a `QuantConfig` has no words for; the message names all of it.
        """
        from onnxq.dialects.paddle.convert import from_recipe

        return from_recipe(recipe, cls)

    def _named(self, where: str, found: Sequence[object], kinds: tuple[type, ...]) -> Iterator[LayerLike]:
        for item in found:
            if not isinstance(item, kinds) or not item:
                words = " or ".join("a node of the model" if k is onnx.NodeProto else "a name" for k in kinds)
                raise RecipeError(f"{where} found {item!r}; must be {words}")
            yield _copied(item)


def _copied(item: object) -> LayerLike:
    if isinstance(item, onnx.NodeProto):
        node = onnx.NodeProto()
        node.CopyFrom(item)
        return node
    return str(item)


def _listed(value: object) -> Sequence[object]:
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(value)
    return (value,)


def _kind(value: object, where: str) -> LayerKind:
    """A type that was given, checked.

    Raises:
        RecipeError: If it is none.
    """
    if inspect.isclass(value) and issubclass(value, Layer) and hasattr(value, "pattern"):
        return value
    if isinstance(value, Pattern):
        return value
    if isinstance(value, str) and value:
        return value
    found = f"the class {value.__name__}" if inspect.isclass(value) else repr(value)
    hint = ""
    if inspect.isclass(value):
        from onnxq.dialects.paddle import nn

        hint = nearest(value.__name__, [name for name in vars(nn) if name[0].isupper()])
    raise RecipeError(
        f"{where} found {found}; must be a class of onnxq.dialects.paddle.nn, a pattern or an ONNX operator type{hint}"
    )


def _config(activation: Factory, weight: Factory, where: str) -> LayerConfig:
    return LayerConfig(
        as_factory(activation, where=f"{where}(activation)"), as_factory(weight, where=f"{where}(weight)")
    )


def _told_config(config: LayerConfig) -> str:
    return f"activation: {config.activation}, weight: {config.weight}"


def _told_entry(entry: Entry) -> str:
    return f"{entry}: {_told_config(entry.config)}"


def mapped(path: Path, target: Target, config: LayerConfig) -> tuple[Pass, ...]:
    """The passes that put a target in the place of a layer.

    Args:
        path: The layer.
        target: What takes its place.
        config: What holds for it.

    Raises:
        RecipeError: If the target does not give a pass.
    """
    if isinstance(target, Pass):
        return (target,)
    found = target(tuple(node.name for node in path), config)
    passes = (found,) if isinstance(found, Pass) else getattr(found, "passes", None)
    if not isinstance(passes, tuple) or not all(isinstance(step, Pass) for step in passes):
        name = getattr(target, "__name__", str(target))
        raise RecipeError(f"add_qat_layer_mapping: {name} gives {type(found).__name__}; must give an onnxq.Pass")
    return passes
