"""What a configuration of converter_lite's means as a recipe, and which data it names.

Activations of a configuration without ``target_device`` are int8 and asymmetric in MindSpore Lite. Here they are uint8:
the same grid, every zero point larger by 128, in the type for which ONNX Runtime has its fastest kernels.

The converter's KL is symmetric whatever the device, which leaves half of the codes behind a Relu unused, and splits
bins between levels, which cuts inputs of few different values down to the smallest one. Here ranges are as
asymmetric as the device allows, and bins are not split (a recipe's ``split_bins`` does that).

Source: MindSpore Lite, tools/converter/quantizer: weight_quantizer.cc, full_quant_quantizer.cc, dynamic_quantizer.cc.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from onnxq.calib.readers import FileKind, Folders, Layout
from onnxq.dialects.mslite.params import (
    COMMON,
    DYNAMIC_QUANT,
    FULL,
    FULL_QUANT,
    WEIGHT,
    WEIGHT_QUANT,
    DataParam,
    MsliteConfig,
)
from onnxq.recipe import (
    KL,
    AbsMax,
    ActivationConfig,
    ActivationMethod,
    BiasCorrection,
    CalibrationConfig,
    Dynamic,
    EqualizeConfig,
    ImagePreprocess,
    MinMax,
    MixedBits,
    Recipe,
    RemovalOutlier,
    Rule,
    Selector,
    WeightConfig,
    WeightOnly,
)

_TARGETS: Mapping[str | None, str] = MappingProxyType(
    {None: "ort", "NVGPU": "tensorrt", "DSP": "qnn", "KIRIN": "kirin", "ASCEND": "ascend"}
)
_METHODS: Mapping[str, ActivationMethod] = MappingProxyType(
    {"MAX_MIN": MinMax(), "KL": KL(), "REMOVAL_OUTLIER": RemovalOutlier()}
)
_UNCORRECTED = frozenset({"NVGPU", "KIRIN"})
"""Devices for which the converter leaves biases alone, whatever the configuration says."""
_SYMMETRIC = frozenset({"NVGPU", "ASCEND"})
"""Devices whose weights have their zero point in the middle even where all of them share one scale."""
_NATIVE = frozenset({2, 4, 8, 16})
"""Widths that ONNX has integers of."""
_SKIPPED = "skip_quant_node names it"
_KINDS: Mapping[str | None, FileKind] = MappingProxyType({None: "auto", "IMAGE": "image", "BIN": "bin"})


def to_recipe(config: MsliteConfig) -> Recipe | None:
    """The recipe for a configuration; None where it asks for no quantization.

    Args:
        config: The configuration.

    Raises:
        RecipeError: If it asks for something that does not go together.
    """
    match config.common.quant_type:
        case "WEIGHT_QUANT":
            return _weight_quant(config)
        case "FULL_QUANT":
            return _full_quant(config)
        case "DYNAMIC_QUANT":
            return _dynamic_quant(config)
    return None


def _weight_quant(config: MsliteConfig) -> Recipe:
    common, weight = config.common, config.weight
    mixed = None
    weights = WeightConfig()
    if common.bit_num == 0:
        wanted = config.mixed_bit
        mixed = MixedBits(
            init_scale=wanted.init_scale, auto_tune=wanted.auto_tune, max_iterations=wanted.max_iterations
        )
    else:
        weights = WeightConfig(
            bits=common.bit_num,
            symmetric=False,
            granularity="per_axis" if weight.per_channel else "per_tensor",
            method=AbsMax(),
        )
    scheme = WeightOnly(
        storage=_storage(config),
        min_size=common.min_quant_weight_size,
        min_channels=common.min_quant_weight_channel,
        gain_rule=True,
        correction=weight.bias_correction,
        mixed=mixed,
    )
    return Recipe(scheme=scheme, weights=weights, rules=_rules(config), refine=(), calibration=_calibration(config))


def _storage(config: MsliteConfig) -> Any:  # noqa: ANN401 - one of the storages that a recipe knows
    if config.transform.export_precision_mode == "FLOAT32":
        return "rounded"
    plain = config.weight.dequant_strategy == "ON_THE_FLY" or not config.common.enable_encode
    return "native" if plain and config.common.bit_num in _NATIVE else "packed"


def _full_quant(config: MsliteConfig) -> Recipe:
    full = config.full
    weights = WeightConfig(symmetric=True, method=AbsMax())  # the target says which operators have scales by channel
    if not full.per_channel:
        symmetric = full.target_device in _SYMMETRIC
        weights = WeightConfig(granularity="per_tensor", symmetric=symmetric, method=AbsMax())
    target: Any = _TARGETS[full.target_device]
    return Recipe(
        target=target,
        activations=ActivationConfig(method=_METHODS[full.activation_quant_method]),
        weights=weights,
        rules=_rules(config),
        equalize=EqualizeConfig(enabled=not full.per_channel and full.target_device != "DSP"),
        calibration=_calibration(config),
        refine=(BiasCorrection(inputs="float"),)
        if full.bias_correction and full.target_device not in _UNCORRECTED
        else (),
    )


def _dynamic_quant(config: MsliteConfig) -> Recipe:
    weights = WeightConfig() if config.dynamic.quant_strategy == "ALWC" else WeightConfig(granularity="per_tensor")
    return Recipe(scheme=Dynamic(), weights=weights, rules=_rules(config), refine=())


def _rules(config: MsliteConfig) -> tuple[Rule, ...]:
    names = config.common.skip_quant_node
    return tuple(Rule(match=Selector(node=name), skip=True, note=_SKIPPED) for name in names)


def _calibration(config: MsliteConfig) -> CalibrationConfig:
    return CalibrationConfig(samples=config.data.calibrate_size, preprocess=preprocess_of(config.data))


def preprocess_of(data: DataParam) -> ImagePreprocess | None:
    """How images become feeds; None where the calibration data are none.

    Args:
        data: The section about calibration data.
    """
    if data.input_type != "IMAGE":
        return None
    given: dict[str, Any] = {"color": data.image_to_format or "BGR"}
    if data.resize_method is not None:
        given |= {"size": (data.resize_height, data.resize_width), "interpolation": data.resize_method.lower()}
    if data.center_crop_width is not None:
        given["crop"] = (data.center_crop_height, data.center_crop_width)
    if data.normalize_mean:
        given |= {"mean": data.normalize_mean, "std": data.normalize_std}
    return ImagePreprocess(
        **given,
        scale=1.0,
        normalize="before_resize",
        orientation=True,
    )


def needs_data(config: MsliteConfig) -> bool:
    """Whether calibration data make a difference."""
    mixed = config.common.quant_type == WEIGHT_QUANT and config.common.bit_num == 0
    return config.common.quant_type == FULL_QUANT or (mixed and config.mixed_bit.auto_tune)


def to_data(config: MsliteConfig, layout: Layout | None = None) -> Folders | None:
    """The calibration data; None where the configuration names none.

    Args:
        config: The configuration.
        layout: Order of the numbers in .bin files of 4 dimensions; None for NHWC, as the converter has it.
    """
    data = config.data
    if not data.calibrate_path:
        return None
    return Folders(
        folders=dict(data.calibrate_path),
        kind=_KINDS[data.input_type],
        preprocess=preprocess_of(data),
        layouts=layout or "NHWC",
        samples=data.calibrate_size,
    )


def notes_of(config: MsliteConfig) -> tuple[str, ...]:
    """What of a configuration has no effect, or another one than one might think."""
    return (*config.notes, *_combined(config))


def _combined(config: MsliteConfig) -> Iterator[str]:
    common, full, data = config.common, config.full, config.data
    if common.quant_type is None:
        yield f"{config.source}: no quant_type in [{COMMON}]: nothing is quantized"
    if common.quant_type == FULL_QUANT and full.bias_correction and full.target_device in _UNCORRECTED:
        line = config.lines.get((FULL, "bias_correction"))
        if line is not None:
            yield f"line {line}: bias_correction: is not done for {full.target_device}, as the converter has it"
    if config.weight.dequant_strategy is not None and common.bit_num not in _NATIVE:
        line = config.lines[WEIGHT, "dequant_strategy"]
        yield f"line {line}: dequant_strategy: weights of {common.bit_num or 'mixed'} bits are decoded when loaded"
    if data.input_type == "IMAGE" and data.resize_method is None and data.resize_width is not None:
        yield "resize_width, resize_height: images are resized only where resize_method says how"
    if common.quant_type in (WEIGHT_QUANT, DYNAMIC_QUANT) and data.calibrate_path and not needs_data(config):
        yield f"{common.quant_type} needs no calibration data; calibrate_path is not read"
