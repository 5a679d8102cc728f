"""A configuration as a recipe for a model, and a recipe as a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import onnx

from onnxq import stages
from onnxq.dialects.paddle.config import LayerConfig, QuantConfig, mapped, pattern_of
from onnxq.dialects.paddle.factories import ObserverFactory
from onnxq.dialects.paddle.patterns import Network
from onnxq.dialects.paddle.resolve import Found, Layers
from onnxq.errors import RecipeError
from onnxq.pipeline import plan_model
from onnxq.recipe import ActivationConfig, EqualizeConfig, Recipe, Rule, Selector, WeightConfig, WeightOnly

if TYPE_CHECKING:
    from onnxq import Pass
    from onnxq.pipeline import ModelLike
    from onnxq.plan import Decision, Plan

Q = TypeVar("Q", bound=QuantConfig)
_OWN = ("layer", "name", "type")
_SHOWN = 3
BASE = Recipe(equalize=EqualizeConfig(depthwise=False))
"""What holds beside a configuration: observers are to see tensors as they are, so channels are not scaled."""


@dataclass(frozen=True)
class Prepared:
    """A model and how to quantize it.

    Attributes:
        model: The model; with mapped layers it is another one.
        recipe: What the configuration means for it.
        mapped: What holds for each layer that another implementation has taken the place of, by name.
    """

    model: ModelLike = field(repr=False)
    recipe: Recipe
    mapped: Mapping[str, LayerConfig] = field(default_factory=dict)


def prepare(config: QuantConfig, model: ModelLike, *, base: Recipe | None = None) -> Prepared:
    """Put mapped layers in place, and find out what the configuration means for the model.

    Args:
        config: The configuration.
        model: The float model; it is not changed.
        base: What holds for everything a `QuantConfig` has no words for; `BASE` by default.

    Raises:
        RecipeError: If the configuration does not fit the model.
        OnnxqError: If the model cannot be used.
    """
    named = stages.name_nodes(model)
    skeleton = named.skeleton()
    passes, names = _mappings(config, skeleton)
    if passes:
        model = stages.rewrite(named, passes)
        skeleton = _joined(skeleton, model.skeleton())
    recipe = _Recipes(config, base or BASE, names).of(model, skeleton)
    return Prepared(model, recipe, names)


def to_recipe(config: QuantConfig, model: ModelLike, *, base: Recipe | None = None) -> Recipe:
    """What a configuration means for a model as it is; see `QuantConfig.to_recipe`."""
    found = prepare(config, model, base=base)
    if found.mapped:
        raise RecipeError(
            f"add_qat_layer_mapping changes {_some(found.mapped)} of this model, which a recipe cannot; quantize with "
            "onnxq.dialects.paddle.PTQ or QAT"
        )
    return found.recipe


def _joined(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """A model to look up names and types in: the nodes of the second, and those of the first it has no more."""
    kept = {node.name for node in second.graph.node}
    found = onnx.ModelProto()
    found.CopyFrom(second)
    found.graph.node.extend(node for node in first.graph.node if node.name not in kept)
    known = {tensor.name for tensor in second.graph.initializer}
    found.graph.initializer.extend(t for t in first.graph.initializer if t.name not in known)
    return found


def _mappings(config: QuantConfig, skeleton: onnx.ModelProto) -> tuple[list[Pass], dict[str, LayerConfig]]:
    """The passes that put targets in the place of layers that have a configuration, and the names of these layers."""
    passes: list[Pass] = []
    names: dict[str, LayerConfig] = {}
    if not config.qat_layer_mappings:
        return passes, names
    layers, network = Layers(config, skeleton), Network(skeleton)
    for source, target in reversed(config.qat_layer_mappings):  # of two for one layer the later one counts
        for path in pattern_of(source).matches(network):
            found = layers.at(path[0].name)
            if found is None or found.config.empty or path[0].name in names:
                continue
            names[path[0].name] = found.config
            passes += [step for step in mapped(path, target, found.config) if step not in passes]
    return passes, names


@dataclass
class _Recipes:
    """Makes the recipe of a configuration."""

    config: QuantConfig
    base: Recipe
    mapped: Mapping[str, LayerConfig]

    def of(self, model: ModelLike, skeleton: onnx.ModelProto) -> Recipe:
        """The recipe for a model.

        Args:
            model: The model.
            skeleton: It with names, and with the nodes that mapped layers had.
        """
        planned = plan_model(model, recipe=self.base)
        layers = Layers(self.config, skeleton, planned.graph.skeleton(), self.mapped)
        found = {d.node: layers.at(d.node) for d in planned.plan.decisions}
        multiplied = {w.node for w in planned.plan.weights if w.input}
        if self._weights_only(found, multiplied):
            recipe = self.base.replace(scheme=WeightOnly())
            return self._filled(recipe, plan_model(model, recipe=recipe).plan, found)
        _check_pairs(found, multiplied)
        return self._filled(self.base, planned.plan, found)

    def _weights_only(self, found: Mapping[str, Found | None], multiplied: set[str]) -> bool:
        used = [f.config for f in found.values() if f is not None and not f.config.empty]
        linear = [f for name in multiplied if (f := found.get(name)) is not None and not f.config.empty]
        return bool(linear) and all(c.activation is None for c in used) and self.base.scheme.kind == "static"

    def _filled(self, recipe: Recipe, plan: Plan, found: Mapping[str, Found | None]) -> Recipe:
        weights = {w.node for w in plan.weights}
        rules = [
            rule
            for decision in plan.decisions
            if (rule := _rule(decision, found.get(decision.node), weighted=decision.node in weights)) is not None
        ]
        whole = self.config.global_config
        if whole is not None:
            activations = None if whole.activation is None else whole.activation.activation_config()
            wanted = None if whole.weight is None else whole.weight.weight_config()
            others = [
                rule for rule in rules if rule.skip or (found_ := found.get(rule.match.value)) is None
                or found_.origin != "global"
            ]  # fmt: skip
            if not any(_leaks(activations, r.activations) or _leaks(wanted, r.weights) for r in others if not r.skip):
                recipe = recipe.replace(
                    activations=recipe.activations if activations is None else activations.over(recipe.activations),
                    weights=recipe.weights if wanted is None else wanted.over(recipe.weights),
                )
                rules = others
        return recipe.replace(rules=(*recipe.rules, *rules))


def _rule(decision: Decision, found: Found | None, *, weighted: bool) -> Rule | None:
    """What a recipe must say of a node; None for nothing."""
    match = Selector(node=decision.node)
    if found is None:
        note = "the QuantConfig does not name it"
        return Rule(match=match, skip=True, note=note) if decision.role == "quantized" else None
    if found.config.empty:
        if decision.role != "quantized" and (decision.role == "float" or found.origin not in _OWN):
            return None
        return Rule(match=match, skip=True, note=f"{found.label} gives it neither activation nor weight")
    forced = _forced(decision, found, weighted=weighted)
    if decision.role == "float" and not (forced or weighted):
        return None
    if decision.role in ("shared", "absorbed") and found.origin not in _OWN and not weighted:
        return None
    activation, weight = found.config.activation, found.config.weight
    activations = None if activation is None else activation.activation_config()
    weights = None if weight is None or not weighted else weight.weight_config()
    if activations is None and weights is None:
        note = f"{found.label} gives it no activation"
        return Rule(match=match, skip=True, note=note) if decision.role == "quantized" else None
    return Rule(match=match, activations=activations, weights=weights, quantize=forced or None)


def _forced(decision: Decision, found: Found, *, weighted: bool) -> bool:
    """Whether a node that the target would leave float, alone among floats at the least, was asked for by itself."""
    activation = found.config.activation
    return (
        decision.role in ("float", "quantized")
        and not weighted
        and found.origin in _OWN
        and found.alone
        and activation is not None
        and not isinstance(activation, FromRecipe)
    )


def _leaks(base: ActivationConfig | WeightConfig | None, other: ActivationConfig | WeightConfig | None) -> bool:
    """Whether something of `base` would hold where `other`, which is laid over it, leaves it open."""
    if base is None:
        return False
    return any(
        getattr(base, name) is not None and (other is None or getattr(other, name) is None)
        for name in type(base).model_fields
    )


def _check_pairs(found: Mapping[str, Found | None], multiplied: set[str]) -> None:
    """Refuse layers of which only one factor would be quantized.

    Raises:
        RecipeError: With their names.
    """
    bad: dict[str, list[str]] = {"weight": [], "activation": []}
    for name in found:
        layer = found[name]
        if layer is None or layer.config.empty or name not in multiplied:
            continue
        for part, names in bad.items():
            if getattr(layer.config, part) is None:
                names.append(name)
    for part, names in bad.items():
        if names:
            other = "activation" if part == "weight" else "weight"
            hint = " (or give no layer an activation: then weights alone are stored as codes)" * (part == "activation")
            raise RecipeError(
                f"{_some(names)}: the QuantConfig gives an observer for the {other} and none for the {part}; integer "
                f"kernels multiply codes with codes: give both, or None for both{hint}"
            )


def _some(names: Sequence[str] | Mapping[str, object]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(repr(name) for name in listed[:_SHOWN]) + more


# ---- from a recipe -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FromRecipe(ObserverFactory):
    """What a recipe says of activations or weights.

    Attributes:
        activations: Of activations; None where it is for weights.
        weights: Of weights; None where it is for activations.
    """

    activations: ActivationConfig | None = None
    weights: WeightConfig | None = None

    def activation_config(self) -> ActivationConfig:
        """What the recipe says of activations."""
        return super().activation_config() if self.activations is None else self.activations

    def weight_config(self) -> WeightConfig:
        """What the recipe says of weights."""
        return super().weight_config() if self.weights is None else self.weights


@dataclass(frozen=True)
class _State:
    """What the rules with one selector say, one after the other."""

    activations: ActivationConfig
    weights: WeightConfig
    skip: bool = False

    def after(self, rule: Rule) -> _State:
        return _State(
            rule.activations.over(self.activations) if rule.activations else self.activations,
            rule.weights.over(self.weights) if rule.weights else self.weights,
            self.skip if rule.skip is None else rule.skip,
        )


def from_recipe(recipe: Recipe, made: type[Q]) -> Q:
    """A configuration that means the same; see `QuantConfig.from_recipe`."""
    problems = list(_inexpressible(recipe))
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise RecipeError(
            f"a QuantConfig has no words for {len(problems)} parts of this recipe; leave them to the base of "
            f"QuantConfig.to_recipe, PTQ or QAT{listed}"
        )
    alone = recipe.scheme.kind == "weight_only"
    states: dict[tuple[str, str], _State] = {}
    whole = _State(recipe.activations, recipe.weights)
    for rule in recipe.rules:
        key = (rule.match.level, rule.match.value)
        states[key] = states.get(key, whole).after(rule)
    for entry in recipe.skip:
        level = "op_type" if onnx.defs.has(entry) else "node"
        states[level, entry] = _State(recipe.activations, recipe.weights, skip=True)
    config = made(*_factories(whole, alone=alone))
    for level in ("op_type", "name", "node"):
        for (found, value), state in states.items():
            if found == level:
                add = config.add_type_config if level == "op_type" else config.add_name_config
                add(value, *((None, None) if state.skip else _factories(state, alone=alone)))
    return config


def _factories(state: _State, *, alone: bool) -> tuple[FromRecipe | None, FromRecipe]:
    return None if alone else FromRecipe(activations=state.activations), FromRecipe(weights=state.weights)


def _inexpressible(recipe: Recipe) -> Iterator[str]:
    """What a recipe says that a `QuantConfig` cannot."""
    default = Recipe()
    for name in Recipe.model_fields:
        if name in ("version", "activations", "weights", "rules", "skip"):
            continue
        if getattr(recipe, name) != getattr(default, name) and not (name == "scheme" and recipe.scheme == WeightOnly()):
            yield name
    by_type = [r for r in recipe.rules if r.match.level == "op_type"]
    for index, rule in enumerate(recipe.rules):
        where = f"rules[{index}]"
        for part in ("quantize", "inputs", "balance", "prune"):
            if getattr(rule, part) is not None:
                yield f"{where}.{part}"
        if rule.match.level == "name" and _is_glob(rule.match.value):
            yield f"{where}.match.name: a glob"
        elif rule.match.level != "op_type" and not rule.skip:
            if any(r.activations or r.weights for r in by_type):
                yield f"{where}: is laid over the rules by op_type, of which a QuantConfig takes one alone"
            elif rule.skip is None and any(r.skip for r in by_type):
                yield f"{where}: keeps what a rule by op_type skips float, where a QuantConfig would quantize it"
    for index, entry in enumerate(recipe.skip):
        if _is_glob(entry):
            yield f"skip[{index}]: a glob"


def _is_glob(text: str) -> bool:
    return any(mark in text for mark in "*?[")
