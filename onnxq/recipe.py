"""What the user wants of a quantized model: one frozen, strict, complete description.

`Recipe()` is the best-known recipe; everything in it can be changed by keyword, from a mapping or
from a YAML or JSON file. Nothing here knows a model: names are matched when a graph is at hand.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from onnxq._recipe.base import Flag, InvalidRecipe, Model, Name, Problem, plain
from onnxq._recipe.load import parse_mapping, read_mapping
from onnxq._recipe.low_bit import AWQ, AWQGPTQ, HQQ, RTN, BlockMethod
from onnxq._recipe.methods import (
    AVG,
    EMD,
    HFMG,
    IFMR,
    KL,
    NUQ,
    AbsMax,
    ActivationMethod,
    ActivationMSE,
    AdaRound,
    Custom,
    MinMax,
    OutputMSE,
    Percentile,
    RemovalOutlier,
    WeightMethod,
    WeightMSE,
)
from onnxq._recipe.rules import Resolver, Rule, Selector, Settings, is_glob, skip_rules
from onnxq._recipe.schemes import Dynamic, MixedBits, Scheme, Static, WeightOnly
from onnxq._recipe.steps import (
    GPTQ,
    BalanceConfig,
    BiasCorrection,
    CalibrationConfig,
    EqualizeConfig,
    FuseConfig,
    ImagePreprocess,
    RefineStep,
    WeightRounding,
)
from onnxq._recipe.tensors import (
    ActivationConfig,
    BlockShape,
    Blockwise,
    CacheConfig,
    TensorConfig,
    WeightConfig,
)
from onnxq._recipe.training import (
    ARQ,
    LSQ,
    PACT,
    ULQ,
    AbsoluteError,
    BinaryCrossEntropy,
    ChannelPrune,
    CrossEntropy,
    Distillation,
    Loss,
    LossModel,
    LSQPlus,
    NoPrune,
    Prune,
    SquaredError,
    TrainedActivation,
    TrainedWeight,
    TrainingConfig,
    TwoOfFour,
)
from onnxq.errors import nearest
from onnxq.spec import QType

__all__ = [
    "ARQ",
    "AVG",
    "AWQ",
    "AWQGPTQ",
    "EMD",
    "GPTQ",
    "HFMG",
    "HQQ",
    "IFMR",
    "KL",
    "LSQ",
    "NUQ",
    "PACT",
    "RTN",
    "ULQ",
    "AbsMax",
    "AbsoluteError",
    "ActivationConfig",
    "ActivationMSE",
    "ActivationMethod",
    "AdaRound",
    "BalanceConfig",
    "BiasCorrection",
    "BinaryCrossEntropy",
    "BlockMethod",
    "BlockShape",
    "Blockwise",
    "CacheConfig",
    "CalibrationConfig",
    "ChannelPrune",
    "CrossEntropy",
    "Custom",
    "Distillation",
    "Dynamic",
    "EqualizeConfig",
    "FuseConfig",
    "ImagePreprocess",
    "InvalidRecipe",
    "LSQPlus",
    "Loss",
    "LossModel",
    "MinMax",
    "MixedBits",
    "NoPrune",
    "OutputMSE",
    "Percentile",
    "Prune",
    "Recipe",
    "RefineStep",
    "RemovalOutlier",
    "Rule",
    "Scheme",
    "Selector",
    "Settings",
    "SquaredError",
    "Static",
    "TargetName",
    "TensorConfig",
    "TrainedActivation",
    "TrainedWeight",
    "TrainingConfig",
    "TwoOfFour",
    "WeightConfig",
    "WeightMSE",
    "WeightMethod",
    "WeightOnly",
    "WeightRounding",
]

TargetName = Literal["ort", "tensorrt", "qnn", "ascend", "kirin"]


class Recipe(Model):
    """Everything that decides how a model is quantized.

    Rules are applied from the weakest to the strongest: `activations` and `weights` of the recipe,
    rules by ``op_type``, by ``name``, by ``node``; within one level the last written wins. `skip` is
    a shorthand for rules with ``skip: true`` that are written last.

    Raises:
        RecipeError: When constructed from anything that does not fit; it names all problems.
    """

    version: Literal[1] = Field(default=1, description="Version of this format.")
    target: TargetName = Field(default="ort", description="The backend the quantized model is for.")
    scheme: Scheme = Field(default=Static(), description="What gets codes: static, weight_only or dynamic.")
    activations: ActivationConfig = Field(default=ActivationConfig(), description="What holds for all activations.")
    weights: WeightConfig = Field(default=WeightConfig(), description="What holds for all weights.")
    rules: tuple[Rule, ...] = Field(default=(), description="What is different for some nodes.")
    skip: tuple[Name, ...] = Field(
        default=(), description="Nodes left float, by name, glob over names or operator type."
    )
    fuse: FuseConfig = Field(default=FuseConfig(), description="Folding of float operators before quantization.")
    equalize: EqualizeConfig = Field(default=EqualizeConfig(), description="Cross-layer equalization.")
    balance: BalanceConfig | None = Field(
        default=None, description="Move uneven channels into the weights; absent: not done."
    )
    cache: CacheConfig | None = Field(
        default=None, description="Make codes of the keys and values that a decoder keeps; absent: they stay floats."
    )
    prune: Prune | None = Field(default=None, description="How weights are pruned; absent: not at all.")
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="Quantization-aware training: the loss and the optimizer."
    )
    fp16_scales: Flag = Field(
        default=False, description="Round the scales of activations to float16 values (Ascend's FORCE_FP16_QUANT)."
    )
    calibration: CalibrationConfig = Field(default=CalibrationConfig(), description="Which data are run, and how.")
    refine: tuple[RefineStep, ...] = Field(
        default=(BiasCorrection(),), description="Steps after calibration, in this order."
    )

    @model_validator(mode="after")
    def _check_scheme(self) -> Recipe:
        if self.cache is not None and self.scheme.kind != "static":
            raise ValueError(f"cache: found with scheme {self.scheme.kind}; codes of caches are for scheme static")
        for where, config in self._configs():
            if config.bits == 1 and not (isinstance(config, WeightConfig) and self.scheme.kind == "weight_only"):
                raise ValueError(f"{where}.bits: 1 is for weights of scheme weight_only; use 2 to 16")
            if config.type is not None and QType.parse(config.type).floating and self.scheme.kind != "static":
                raise ValueError(f"{where}.type: {config.type} is for scheme static; use an integer type")
        return self

    def _configs(self) -> Iterator[tuple[str, TensorConfig]]:
        """Everything that says how tensors are quantized, and where it stands."""
        parts: list[tuple[str, Recipe | Rule]] = [("", self)]
        parts += [(f"rules[{index}].", rule) for index, rule in enumerate(self.rules)]
        for where, part in parts:
            for name, config in (("activations", part.activations), ("weights", part.weights)):
                if config is not None:
                    yield where + name, config

    @staticmethod
    def from_file(path: str | Path) -> Recipe:
        """Read a YAML or JSON file.

        Raises:
            RecipeError: If the file cannot be read or does not fit; it names all problems.
        """
        return Recipe.from_dict(read_mapping(Path(path)), source=str(path))

    @staticmethod
    def from_text(text: str, *, source: str = "recipe") -> Recipe:
        """Read YAML (and so JSON) text.

        Raises:
            RecipeError: If it does not fit; it names all problems.
        """
        return Recipe.from_dict(parse_mapping(text, source=source), source=source)

    @staticmethod
    def from_dict(content: Mapping[str, object], *, source: str = "") -> Recipe:
        """Build a recipe from mappings, lists, strings and numbers.

        Args:
            content: As `to_dict` gives it; what is absent, or None at the top, has its default.
            source: Where it comes from, for messages.

        Raises:
            RecipeError: If it does not fit; it names all problems.
        """
        wrong = [key for key in content if not isinstance(key, str)]
        if wrong:
            raise InvalidRecipe([Problem((), f"key {key!r} is not a string") for key in wrong], source=source)
        try:
            return Recipe(**{key: value for key, value in dict[str, Any](content).items() if value is not None})
        except InvalidRecipe as err:
            raise InvalidRecipe(list(err.problems), source=source) from None

    def to_dict(self, *, defaults: bool = True) -> dict[str, object]:
        """The recipe as mappings, lists, strings and numbers; `from_dict` reads it back.

        Args:
            defaults: Also write what has its default value.
        """
        return plain(self, defaults=defaults)

    def to_yaml(self, *, defaults: bool = True) -> str:
        """The recipe as YAML; `from_file` reads it back.

        Args:
            defaults: Also write what has its default value.
        """
        return yaml.safe_dump(self.to_dict(defaults=defaults), sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        """sha256 of the canonical JSON of all that decides the result: equal however it was written.

        The batch size and the memory budget never change a result and are left out.
        """
        content = self.to_dict()
        decisive = self.calibration.replace(batch_size=None, memory_budget_mb=16)
        content["calibration"] = plain(decisive)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @staticmethod
    def json_schema() -> dict[str, object]:
        """The JSON Schema (draft 2020-12) of a recipe file."""
        schema = Recipe.model_json_schema()
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @cached_property
    def _resolver(self) -> Resolver:
        return Resolver(self.activations, self.weights, self._labelled_rules(), self.balance, self.prune)

    def _labelled_rules(self) -> list[tuple[str, Rule]]:
        rules = [(rule.note or f"rules[{i}] of the recipe ({rule.match})", rule) for i, rule in enumerate(self.rules)]
        return rules + skip_rules(self.skip)

    def resolve(self, node_name: str, op_type: str) -> Settings:
        """What holds for one node, all rules merged field by field.

        Args:
            node_name: The node's name in the model.
            op_type: Its operator type.
        """
        return self._resolver.resolve(node_name, op_type)

    def check_names(self, nodes: Iterable[tuple[str, str]], *, op_types: AbstractSet[str] = frozenset()) -> None:
        """Refuse node names and globs that match nothing in a model.

        An operator type that does not occur is fine where it is one of `op_types`, so that one
        recipe can serve many models.

        Args:
            nodes: Name and operator type of every node.
            op_types: Operator types that exist, whether the model has them or not.

        Raises:
            RecipeError: With the nearest names for every entry that matches nothing.
        """
        names: set[str] = set()
        types = set(op_types)
        for name, op_type in nodes:
            names.add(name)
            types.add(op_type)
        problems = []
        for path, value, known, glob in self._names(names, types):
            if value not in known and not (glob and fnmatch.filter(known, value)):
                problems.append(Problem(path, f"{value!r} matches nothing in the model{nearest(value, known)}"))
        if problems:
            raise InvalidRecipe(problems)

    def _names(
        self, names: AbstractSet[str], types: AbstractSet[str]
    ) -> Iterator[tuple[tuple[str | int, ...], str, AbstractSet[str], bool]]:
        """Every entry that names nodes: its path, its value, what it may match, whether it is a glob."""
        for index, rule in enumerate(self.rules):
            level, value = rule.match.level, rule.match.value
            yield ("rules", index, "match", level), value, types if level == "op_type" else names, level == "name"
        for index, entry in enumerate(self.skip):
            yield ("skip", index), entry, names if is_glob(entry) else names | types, is_glob(entry)
        for index, entry in enumerate(self.fuse.skip_layers):
            yield ("fuse", "skip_layers", index), entry, names, is_glob(entry)
