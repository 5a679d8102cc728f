"""A configuration of AMCT's for training or pruning made ready for a model: its recipe, and the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from onnxq.dialects.amct.config import read_text
from onnxq.dialects.amct.layers import Layers, layers_of
from onnxq.dialects.amct.retrain_algorithms import ArqRetrain, FilterPrune, Pruning, Ulq, WeightRetrain
from onnxq.dialects.amct.retrain_config import AmctRetrainConfig, is_retrain_text, parse_retrain_config
from onnxq.dialects.amct.retrain_json import RetrainJson, format_retrain_json, is_retrain_json, parse_retrain_json
from onnxq.dialects.amct.retrain_settings import RetrainLayer, RetrainSettings, resolve_retrain
from onnxq.errors import RecipeError
from onnxq.pipeline import plan_model
from onnxq.recipe import (
    ARQ,
    IFMR,
    LSQ,
    ULQ,
    AbsMax,
    ActivationConfig,
    ChannelPrune,
    EqualizeConfig,
    Recipe,
    Rule,
    Selector,
    TwoOfFour,
    WeightConfig,
)

if TYPE_CHECKING:
    from onnxq.pipeline import ModelLike

Purpose = Literal["auto", "quant", "prune", "compressed"]
"""What of a configuration counts: quantization, pruning, both, or what is written."""
_TARGET: Final = "ascend"
_ASCEND_MULTIPLE = 16


@dataclass(frozen=True)
class RetrainJob:
    """What a configuration of training or pruning means for a model.

    Attributes:
        recipe: How each layer is quantized and pruned; calibration uses all samples it is given.
        batch_num: How many batches calibration is to run.
        settings: What holds for each layer, by name, in the order of the model.
        quantizes: Whether anything is quantized.
        prunes: Whether anything is pruned.
        notes: What has no effect, or another effect than one might think.
        layers: The model's layers.
        config: The configuration that was read, one override per layer where it came from JSON.
    """

    recipe: Recipe
    batch_num: int
    settings: Mapping[str, RetrainLayer]
    quantizes: bool
    prunes: bool
    notes: tuple[str, ...]
    layers: Layers
    config: AmctRetrainConfig

    def samples(self, batch_size: int | None = None) -> int | None:
        """How many samples `batch_num` batches are.

        Args:
            batch_size: Samples in a batch; None for what the model says.

        Returns:
            The number; None where neither says how large a batch is.
        """
        size = batch_size or self.layers.batch
        return None if size is None else self.batch_num * size

    def to_json(self) -> RetrainJson:
        """What `create_quant_retrain_config` writes for this configuration and model."""
        layers = self.settings if self.prunes else {n: replace(s, prune=None) for n, s in self.settings.items()}
        return RetrainJson.of(self.config, RetrainSettings(layers))

    def to_dict(self) -> dict[str, object]:
        """All settings as plain mappings, lists, strings and numbers; layers as AMCT's JSON has them."""
        content = json.loads(format_retrain_json(self.to_json()))
        return {"batch_num": self.batch_num, "layers": {name: content[name] for name in self.settings}}


def is_retrain_config(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a configuration of AMCT's for training or pruning, text or JSON, by its content.

    A name that ends in ``.yaml`` or ``.yml`` is a recipe. A file that cannot be read is none of these.
    """
    file = Path(path)
    if file.suffix.lower() in (".yaml", ".yml"):
        return False
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False
    if not text.lstrip().startswith("{"):
        return is_retrain_text(text)
    try:
        return is_retrain_json(json.loads(text))
    except ValueError:
        return False


def load_retrain_config(path: str | os.PathLike[str], model: ModelLike, *, purpose: Purpose = "auto") -> RetrainJob:
    """Read a simplified configuration or a JSON configuration for a model; the content tells which it is.

    Args:
        path: The file.
        model: The float model.
        purpose: What of it counts; a model is quantized where nothing is said of it if that is ``quant`` or
            ``compressed``.

    Raises:
        RecipeError: If the file does not fit, or names what the model does not have; it names all problems.
        OnnxqError: If the model cannot be used.
    """
    file = Path(path)
    text = read_text(file)
    parse = parse_retrain_json if text.lstrip().startswith("{") else parse_retrain_config
    return prepare_retrain(parse(text, source=str(file)), model, purpose=purpose)


def prepare_retrain(
    config: AmctRetrainConfig | RetrainJson, model: ModelLike, *, purpose: Purpose = "auto"
) -> RetrainJob:
    """Make a configuration ready for a model.

    Args:
        config: A simplified or a JSON configuration.
        model: The float model.
        purpose: What of it counts; see `load_retrain_config`.

    Raises:
        RecipeError: If it names what the model or AMCT does not have, or says nothing of what is wanted; it names all
            problems.
        OnnxqError: If the model cannot be used.
    """
    layers = layers_of(plan_model(model, recipe=Recipe(target=_TARGET)))
    simple = config.for_model(layers) if isinstance(config, RetrainJson) else config
    found = resolve_retrain(simple, layers)
    quantizes = purpose in ("quant", "compressed") or (purpose == "auto" and simple.quantizes)
    prunes = purpose != "quant" and simple.prunes
    notes = found.notes
    start = f"{simple.source}: " if simple.source else ""
    if purpose in ("prune", "compressed") and not simple.prunes:
        raise RecipeError(f"{start}nothing is to be pruned; give a prune_config")
    if purpose == "quant" and simple.prunes:
        notes += ("prune_config has no effect here; create_compressed_retrain_model does both",)
    if purpose == "prune" and simple.quantizes:
        notes += ("retrain_data_quant_config and retrain_weight_quant_config have no effect here",)
    if not (quantizes or prunes):
        raise RecipeError(
            f"{start}says neither what is quantized nor what is pruned; give retrain_data_quant_config and "
            "retrain_weight_quant_config, or prune_config"
        )
    recipe = to_retrain_recipe(simple, found, quantizes=quantizes, prunes=prunes)
    return RetrainJob(recipe, simple.batch_num, found.layers, quantizes, prunes, notes, layers, simple)


# ---- to a recipe -------------------------------------------------------------------------------


def to_retrain_recipe(config: AmctRetrainConfig, settings: RetrainSettings, *, quantizes: bool, prunes: bool) -> Recipe:
    """The recipe for what holds for each layer.

    AMCT neither equalizes nor corrects biases, so the recipe does not.

    Args:
        config: The configuration.
        settings: What `resolve_retrain` made of it.
        quantizes: Whether layers are quantized at all.
        prunes: Whether layers are pruned at all.
    """
    return Recipe(
        target=_TARGET,
        activations=ActivationConfig(method=IFMR(), symmetric=False),
        rules=tuple(_rules(settings, quantizes=quantizes, prunes=prunes)),
        equalize=EqualizeConfig(depthwise=False),
        fp16_scales=config.fp16_scales,
        refine=(),
    )


def _rules(settings: RetrainSettings, *, quantizes: bool, prunes: bool) -> Iterator[Rule]:
    for op in ("AveragePool", *(() if quantizes else ("Conv", "ConvTranspose", "Gemm", "MatMul"))):
        told = "AMCT does not train it" if quantizes else "the configuration prunes, and quantizes nothing"
        yield Rule(match=Selector(op_type=op), skip=True, note=told)
    for name, found in settings.layers.items():
        match = Selector(node=name)
        prune = _prune(found.prune) if prunes and found.prune is not None else None
        if not (quantizes and found.retrain_enable):
            if quantizes or prune is not None:
                yield Rule(match=match, skip=True, prune=prune, note="the configuration leaves it float")
            continue
        yield Rule(match=match, activations=_activations(found.data), weights=_weights(found.weight), prune=prune)


def _activations(found: Ulq) -> ActivationConfig:
    return ActivationConfig(
        type="int16" if found.num_bits == 16 else "int8",
        bits=4 if found.num_bits == 4 else None,
        symmetric=False,
        method=IFMR(),
        trained=ULQ(clip_max=found.clip_max, clip_min=found.clip_min, fixed_min=found.fixed_min),
    )


def _weights(found: WeightRetrain) -> WeightConfig:
    return WeightConfig(
        type="int8",
        bits=4 if found.num_bits == 4 else None,
        symmetric=True,
        granularity="per_axis" if found.channel_wise else "per_tensor",
        method=AbsMax(full_range=True),
        trained=ARQ() if isinstance(found, ArqRetrain) else LSQ(),
    )


def _prune(found: Pruning) -> Any:  # noqa: ANN401 - one of the recipe's kinds
    if isinstance(found, FilterPrune):
        return ChannelPrune(ratio=found.prune_ratio, multiple=_ASCEND_MULTIPLE if found.ascend_optimized else 1)
    return TwoOfFour(update_freq=found.update_freq)
