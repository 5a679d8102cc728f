"""A configuration of AMCT's made ready for a model: the recipe, and what a recipe has no place for."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onnxq.dialects.amct.algorithms import ActivationAlgorithm, Ada, Arq, Ifmr, Nuq, WeightAlgorithm
from onnxq.dialects.amct.config import AmctConfig, parse_config, read_text
from onnxq.dialects.amct.json_config import JsonConfig, format_json, parse_json
from onnxq.dialects.amct.layers import Layers, layers_of
from onnxq.dialects.amct.proto import calibration_config_pb2 as pb
from onnxq.dialects.amct.settings import LayerSettings, Resolved, TensorSettings, resolve
from onnxq.pipeline import plan_model
from onnxq.recipe import (
    HFMG,
    IFMR,
    NUQ,
    AbsMax,
    ActivationConfig,
    AdaRound,
    BalanceConfig,
    EqualizeConfig,
    FuseConfig,
    Recipe,
    Rule,
    Selector,
    WeightConfig,
)

if TYPE_CHECKING:
    from onnxq.pipeline import ModelLike

TARGET: Final = "ascend"


@dataclass(frozen=True)
class AmctJob:
    """What a configuration means for a model.

    Attributes:
        recipe: How each layer is quantized; calibration uses all samples it is given.
        batch_num: How many batches calibration is to run.
        settings: What holds for each layer, by name, in the order of the model.
        tensors: Inputs of MaxPool and Add that are quantized.
        notes: What has no effect, or another effect than one might think.
        layers: The model's layers.
        config: The configuration that was read, one override per layer where it came from JSON.
    """

    recipe: Recipe
    batch_num: int
    settings: Mapping[str, LayerSettings]
    tensors: tuple[TensorSettings, ...]
    notes: tuple[str, ...]
    layers: Layers
    config: AmctConfig

    def samples(self, batch_size: int | None = None) -> int | None:
        """How many samples `batch_num` batches are.

        Args:
            batch_size: Samples in a batch; None for what the model says.

        Returns:
            The number; None where neither says how large a batch is.
        """
        size = batch_size or self.layers.batch
        return None if size is None else self.batch_num * size

    def to_dict(self) -> dict[str, object]:
        """All settings as plain mappings, lists, strings and numbers; layers as AMCT's JSON has them."""
        content = json.loads(format_json(self.to_json()))
        return {
            "batch_num": self.batch_num,
            "activation_offset": self.config.activation_offset,
            "do_fusion": self.config.do_fusion,
            "skip_fusion_layers": content["skip_fusion_layers"],
            "layers": {name: content[name] for name in self.settings},
            "tensors": content.get("tensor_quantize", []),
        }

    def to_json(self) -> JsonConfig:
        """What `create_quant_config` writes for this configuration and model."""
        resolved = Resolved(self.settings, self.tensors, tuple(m.name for m in self.config.skip_fusion_layers))
        return JsonConfig.of(self.config, resolved)


def load_config(path: str | os.PathLike[str], model: ModelLike, *, per_channel_linear: bool = False) -> AmctJob:
    """Read a simplified configuration or a JSON configuration for a model; the content tells which it is.

    Args:
        path: The file.
        model: The float model.
        per_channel_linear: Beyond AMCT: one scale per output channel of Gemm and MatMul; see `resolve`.

    Raises:
        RecipeError: If the file does not fit, or names what the model does not have; it names all problems.
        OnnxqError: If the model cannot be used.
    """
    file = Path(path)
    text = read_text(file)
    if text.lstrip().startswith("{"):
        return prepare(parse_json(text, source=str(file)), model, per_channel_linear=per_channel_linear)
    return prepare(parse_config(text, source=str(file)), model, per_channel_linear=per_channel_linear)


def prepare(config: AmctConfig | JsonConfig, model: ModelLike, *, per_channel_linear: bool = False) -> AmctJob:
    """Make a configuration ready for a model.

    Args:
        config: A simplified or a JSON configuration.
        model: The float model.
        per_channel_linear: Beyond AMCT: one scale per output channel of Gemm and MatMul; see `resolve`.

    Raises:
        RecipeError: If it names what the model or AMCT does not have; it names all problems.
        OnnxqError: If the model cannot be used.
    """
    plan = plan_model(model, recipe=Recipe(target=TARGET, fuse=FuseConfig(batchnorm=config.do_fusion)))
    layers = layers_of(plan)
    simple = config.for_model(layers) if isinstance(config, JsonConfig) else config
    resolved = resolve(simple, layers, per_channel_linear=per_channel_linear)
    recipe = to_recipe(simple, resolved)
    return AmctJob(recipe, simple.batch_num, resolved.layers, resolved.tensors, resolved.notes, layers, simple)


def is_amct_config(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a configuration of AMCT's and not a recipe of onnxq's, by its content.

    A name that ends in ``.yaml`` or ``.yml`` is a recipe, one that ends in ``.cfg`` is not. A file that cannot be read
    is neither; whoever reads it next says why.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return False
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False
    if not text.lstrip().startswith("{"):
        return suffix == ".cfg" or any(
            line.replace("{", ":").split(":")[0].strip() in _TEXT_ONLY for line in text.splitlines()
        )
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return isinstance(content, dict) and not content.keys().isdisjoint(("batch_num", "activation_offset"))


_TEXT_ONLY = frozenset(pb.AMCTConfig.DESCRIPTOR.fields_by_name) - frozenset(Recipe.model_fields)


# ---- to a recipe -------------------------------------------------------------------------------


def to_recipe(config: AmctConfig, resolved: Resolved) -> Recipe:
    """The recipe for what holds for each layer.

    AMCT neither equalizes nor corrects biases, so the recipe does not.

    Args:
        config: The configuration.
        resolved: What `resolve` made of it.
    """
    return Recipe(
        target=TARGET,
        activations=ActivationConfig(method=IFMR(), symmetric=not config.activation_offset),
        rules=tuple(_rules(resolved)),
        fuse=FuseConfig(batchnorm=config.do_fusion, skip_layers=tuple(glob.escape(n) for n in resolved.skip_fusion)),
        equalize=EqualizeConfig(depthwise=False),
        fp16_scales=config.fp16_scales,
        refine=(),
    )


def _rules(resolved: Resolved) -> Iterator[Rule]:
    for name, found in resolved.layers.items():
        match = Selector(node=name)
        if not found.quant_enable:
            yield Rule(match=match, skip=True, note="the configuration leaves it float")
            continue
        yield Rule(
            match=match,
            activations=_activations(found.activation),
            weights=None if found.weight is None else _weights(found.weight),
            balance=None if found.dmq is None else BalanceConfig(strength=found.dmq),
        )
    for tensor in resolved.tensors:
        yield Rule(
            match=Selector(node=tensor.node),
            quantize=True,
            inputs=(tensor.input_index,),
            activations=_activations(tensor.activation),
        )


def _activations(found: ActivationAlgorithm) -> ActivationConfig:
    method: IFMR | HFMG
    if isinstance(found, Ifmr):
        start, end = found.search_range
        method = IFMR(
            search_range=found.search_range,
            search_step=min(found.search_step, end - start),
            max_percentile=found.max_percentile,
            min_percentile=found.min_percentile,
        )
    else:
        method = HFMG(num_of_bins=_literal(found.num_of_bins))
    return ActivationConfig(
        type="int16" if found.num_bits == 16 else "int8", symmetric=not found.asymmetric, method=method
    )


def _weights(found: WeightAlgorithm) -> WeightConfig:
    common: dict[str, Any] = {"type": "int8", "symmetric": True}
    if found.num_bits < 8:
        common["bits"] = found.num_bits
    if isinstance(found, Nuq):
        steps = _literal(found.num_steps)
        return WeightConfig(**common, method=NUQ(num_steps=steps, num_of_iteration=found.num_of_iteration))
    common["granularity"] = "per_axis" if found.channel_wise else "per_tensor"
    if isinstance(found, Arq):
        return WeightConfig(**common, method=AbsMax(full_range=True))
    return WeightConfig(**common, method=_adaround(found))


def _adaround(found: Ada) -> AdaRound:
    return AdaRound(
        # AMCT's search by divergence has 255 codes built in: it is for 8 bits.
        scale="kl" if found.num_bits == 8 else "mse",
        num_iteration=found.num_iteration,
        reg_param=found.reg_param,
        beta_range=found.beta_range,
        warm_start=found.warm_start,
    )


def _literal(value: int) -> Any:  # noqa: ANN401 - one of the numbers the recipe allows, which were checked
    return value
