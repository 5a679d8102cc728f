"""Exceptions for some nodes, and how they are found and merged."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from onnxq._recipe.base import Flag, Index, Model, Name
from onnxq._recipe.steps import BalanceConfig
from onnxq._recipe.tensors import ActivationConfig, WeightConfig
from onnxq._recipe.training import ChannelPrune, NoPrune, Prune, TwoOfFour

Level = Literal["op_type", "name", "node"]
LEVELS: tuple[Level, ...] = ("op_type", "name", "node")
"""From the weakest to the strongest."""


class Selector(Model):
    """Which nodes a rule is for; exactly one of the keys."""

    node: Name | None = Field(default=None, description="The exact name of one node.")
    name: Name | None = Field(
        default=None, description="A glob over node names: * any characters (also /), ? one, [ab] a set."
    )
    op_type: Name | None = Field(default=None, description="An ONNX operator type, such as Conv.")

    @model_validator(mode="after")
    def _check_one(self) -> Selector:
        given = [level for level in LEVELS if getattr(self, level) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of node, name, op_type; found {', '.join(given) or 'none'}")
        return self

    @property
    def level(self) -> Level:
        """Which key is given."""
        return next(level for level in LEVELS if getattr(self, level) is not None)

    @property
    def value(self) -> str:
        """The value of the key that is given."""
        return str(getattr(self, self.level))

    def __str__(self) -> str:
        return f"{self.level} {self.value!r}"


class Rule(Model):
    """What is different for the nodes it selects.

    ``skip: true`` leaves them float, ``quantize: true`` quantizes them even where the target would
    not; ``false`` takes a weaker rule's ``true`` back.
    """

    match: Selector = Field(description="Which nodes.")
    note: Name | None = Field(default=None, description="Why the rule is there; told where it decides about a node.")
    skip: Flag | None = Field(default=None, description="Leave these nodes float.")
    quantize: Flag | None = Field(default=None, description="Quantize these nodes though the target leaves them float.")
    inputs: tuple[Index, ...] | None = Field(
        default=None,
        description="Which of their inputs get codes, where the target converts single inputs (an Add on Ascend).",
    )
    activations: ActivationConfig | None = Field(default=None, description="What differs for their inputs and outputs.")
    weights: WeightConfig | None = Field(default=None, description="What differs for their weights.")
    balance: BalanceConfig | None = Field(default=None, description="Balance their input channels like this.")
    prune: Prune | None = Field(default=None, description="Prune their weights like this.")

    @model_validator(mode="after")
    def _check_effect(self) -> Rule:
        keys = ("quantize", "inputs", "activations", "weights", "balance")
        changes = [k for k in keys if getattr(self, k) not in (None, False)]
        if self.skip and changes:
            raise ValueError(f"skip: true excludes {' and '.join(changes)}")
        if self.skip is None and self.quantize is None and self.prune is None and not changes:
            raise ValueError("does nothing; give it skip, quantize, inputs, activations, weights, balance or prune")
        return self


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for one node after all rules are applied.

    Attributes:
        activations: The recipe's and the rules' wishes merged; what is still None is the target's default.
        weights: Likewise.
        skip: The user wants the node float.
        force: The user wants the node quantized though the target leaves it float.
        reason: Which entry of the recipe decided `skip` or `force`; empty where none did.
        balance: How the node's input channels are balanced; None where they are not.
        inputs: Which inputs get codes, where the target converts single inputs; empty where it decides.
        prune: How the node's weights are pruned; None where they are not.
    """

    activations: ActivationConfig
    weights: WeightConfig
    skip: bool = False
    force: bool = False
    reason: str = ""
    balance: BalanceConfig | None = None
    inputs: tuple[int, ...] = ()
    prune: ChannelPrune | TwoOfFour | None = None


def is_glob(text: str) -> bool:
    """Whether `text` holds a character that is special in a glob."""
    return any(mark in text for mark in "*?[")


def skip_rules(entries: Sequence[str]) -> list[tuple[str, Rule]]:
    """The rules a list of skip entries stands for, each with the text that names its origin.

    An entry is a node name, a glob over names and an operator type all at once.
    """
    rules: list[tuple[str, Rule]] = []
    for entry in entries:
        label = f"the recipe skips {entry!r}"
        levels: tuple[Level, ...] = ("name", "node") if is_glob(entry) else ("op_type", "node")
        rules.extend((label, Rule(match=Selector(**{level: entry}), skip=True)) for level in levels)
    return rules


class Resolver:
    """The rules of a recipe, indexed: resolving a node costs the number of globs, not of rules.

    Args:
        activations: The recipe's default for activations.
        weights: The recipe's default for weights.
        rules: Every rule with the text that names it, in the order they were written.
        balance: The recipe's default for balancing.
        prune: The recipe's default for pruning.
    """

    def __init__(
        self,
        activations: ActivationConfig,
        weights: WeightConfig,
        rules: Iterable[tuple[str, Rule]],
        balance: BalanceConfig | None = None,
        prune: Prune | None = None,
    ) -> None:
        self._base = Settings(activations, weights, balance=balance)
        self._prune = prune
        self._rules = list(rules)
        self._exact: dict[tuple[Level, str], list[int]] = {}
        self._globs: list[tuple[re.Pattern[str], int]] = []
        for number, (_, rule) in enumerate(self._rules):
            level, value = rule.match.level, rule.match.value
            if level == "name":
                self._globs.append((re.compile(fnmatch.translate(value)), number))
            else:
                self._exact.setdefault((level, value), []).append(number)
        self._merged: dict[tuple[int, ...], Settings] = {}

    def resolve(self, node_name: str, op_type: str) -> Settings:
        """What holds for one node."""
        named = [number for pattern, number in self._globs if pattern.match(node_name)]
        exact = self._exact
        found = (*exact.get(("op_type", op_type), ()), *named, *exact.get(("node", node_name), ()))
        if found not in self._merged:
            self._merged[found] = self._merge([self._rules[number] for number in found])
        return self._merged[found]

    def _merge(self, found: list[tuple[str, Rule]]) -> Settings:
        activations, weights, balance = self._base.activations, self._base.weights, self._base.balance
        inputs: tuple[int, ...] = ()
        prune = self._prune
        skip = force = False
        reason = ""
        for label, rule in found:
            activations = rule.activations.over(activations) if rule.activations else activations
            weights = rule.weights.over(weights) if rule.weights else weights
            balance = rule.balance or balance
            inputs = rule.inputs or inputs
            prune = rule.prune or prune
            before = (skip, force)
            if rule.skip is not None:
                skip, force = rule.skip, force and not rule.skip
            if rule.quantize is not None:
                skip, force = skip and not rule.quantize, rule.quantize
            if (skip, force) != before:
                reason = label if skip or force else ""
        return Settings(
            activations, weights, skip=skip, force=force, reason=reason, balance=balance, inputs=inputs,
            prune=None if isinstance(prune, NoPrune) else prune,
        )  # fmt: skip
