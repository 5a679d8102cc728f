"""AMCT's simplified configuration, ``quant.cfg``: a protobuf text file, read into plain frozen data.

Source: the fields, defaults and ranges AMCT publishes for its ``calibration_config`` messages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from onnxq.dialects.amct._limits import bad_batch_num, bad_strength, complaints
from onnxq.dialects.amct._schema import Message, Parsed, parse
from onnxq.dialects.amct._text import Entry, Unreadable, scan
from onnxq.dialects.amct.algorithms import ActivationAlgorithm, Ada, Arq, Hfmg, Ifmr, Nuq, WeightAlgorithm
from onnxq.dialects.amct.proto import calibration_config_pb2 as pb
from onnxq.dialects.problems import Problem, refuse
from onnxq.errors import RecipeError

_Algorithm = TypeVar("_Algorithm", bound=Ifmr | Hfmg | Ada | Nuq)
FIELDS_OF_JSON = {
    "search_range": ("search_range_end", "search_range_start"),
    "beta_range": ("beta_range_start", "beta_range_end"),
    "num_bits": ("quant_bits", "dst_type"),
}
"""What the text calls the keys of JSON, where it calls them differently."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in the configuration.

    Attributes:
        name: The name of a layer or of a type of layers.
        line: Where it stands; 0 where there is no file.
    """

    name: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one level says of its layers; None where it leaves that to weaker levels.

    Attributes:
        activation: The algorithm for activations.
        weight: The algorithm for weights.
        dmq: The migration strength of DMQ.
        weight_compress_only: Leave the activations float (ATC).
    """

    activation: ActivationAlgorithm | None = None
    weight: WeightAlgorithm | None = None
    dmq: float | None = None
    weight_compress_only: bool = False


@dataclass(frozen=True, slots=True)
class Override:
    """What is different for a layer, or for all layers of a type.

    Attributes:
        match: The name of the layer or of the type.
        calibration: What holds for it.
    """

    match: Mention
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class NuqConfig:
    """Non-uniform quantization of all layers that can have it.

    Attributes:
        mapping_file: What ATC made of the uniformly quantized model; has no effect here.
        algorithm: Its parameters.
    """

    mapping_file: str
    algorithm: Nuq = field(default_factory=Nuq)


@dataclass(frozen=True, slots=True)
class TensorQuantize:
    """Quantize what goes into a MaxPool or an Add.

    Attributes:
        layer: Its name.
        input_index: Which of its inputs.
        activation: The algorithm.
    """

    layer: Mention
    input_index: int
    activation: ActivationAlgorithm = field(default_factory=Ifmr)


@dataclass(frozen=True, slots=True)
class AmctConfig:
    """A simplified configuration.

    Attributes:
        batch_num: How many batches calibration runs.
        activation_offset: Whether activations are asymmetric where nothing stronger says so.
        joint_quant: Quantize element-wise additions jointly; has no effect here.
        skip_layers: Layers that stay float.
        skip_layer_types: Types of layers that stay float.
        nuq: Non-uniform quantization; None for none.
        fp16_scales: Whether scales of activations are rounded to float16 (FORCE_FP16_QUANT).
        common: What holds for all layers.
        types: What is different for types of layers.
        layers: What is different for single layers.
        do_fusion: Whether BatchNormalization is folded.
        skip_fusion_layers: Layers nothing is folded into.
        tensors: Inputs of MaxPool and Add to quantize.
        version: ATC's version of the format; has no effect.
        enable_auto_nuq: ATC's own choice of non-uniform layers; has no effect here.
        source: The name of the file, for messages.
        warnings: What is written, but has no effect.
    """

    batch_num: int = 1
    activation_offset: bool = True
    joint_quant: bool = False
    skip_layers: tuple[Mention, ...] = ()
    skip_layer_types: tuple[Mention, ...] = ()
    nuq: NuqConfig | None = None
    fp16_scales: bool = False
    common: Calibration = Calibration()
    types: tuple[Override, ...] = ()
    layers: tuple[Override, ...] = ()
    do_fusion: bool = True
    skip_fusion_layers: tuple[Mention, ...] = ()
    tensors: tuple[TensorQuantize, ...] = ()
    version: int | None = None
    enable_auto_nuq: bool = False
    source: str = field(default="", compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)


def read_config(path: str | Path) -> AmctConfig:
    """Read a simplified configuration file.

    Raises:
        RecipeError: If it cannot be read or does not fit; it names all problems with their lines.
    """
    return parse_config(read_text(Path(path)), source=str(path))


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        RecipeError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise RecipeError(f"{path}: cannot be read: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise RecipeError(f"{path}: is not UTF-8 text ({err.reason} at byte {err.start})") from err


def parse_config(text: str, *, source: str = "quant.cfg") -> AmctConfig:
    """Read a simplified configuration.

    Args:
        text: In protobuf's text format. Manuals print the leading comment and the settings on one line, which makes
            all of it a comment; such a text is read from its first setting on, with a warning.
        source: Where it comes from, for messages.

    Raises:
        RecipeError: If it does not fit; it names all problems with their lines.
    """
    glued = _glued_comment(text)
    parsed = parse(text[glued:], pb.AMCTConfig())
    refuse(source, parsed.problems)
    reader = _Reader()
    config = reader.config(parsed.message, parsed)
    refuse(source, reader.problems)
    notes = [f"{source}: {warning}" for warning in parsed.warnings]
    if glued:
        what = text[glued:].split(":", 1)[0].strip()
        notes.append(f"{source}: line 1: a comment ends with its line; read from {what!r} on, break the line there")
    return replace(config, source=source, warnings=tuple(notes))


def _glued_comment(text: str) -> int:
    """Where the settings begin if the whole text is one line, a comment in words followed by settings; else 0.

    Taken as it is, such a text would say nothing at all. A comment that begins with a setting was commented out.
    """
    line = text.strip()
    if not line.startswith("#") or "\n" in line:
        return 0
    names = "|".join(pb.AMCTConfig.DESCRIPTOR.fields_by_name)
    found = re.search(rf"(?<![\w.])(?:{names})\s*[:{{]", text)
    if found is None or not re.search(r"\w", text[: found.start()]):
        return 0
    try:
        fields = scan(text[found.start() :]).body or ()
    except Unreadable:
        return found.start()
    return found.start() if len(fields) > 1 else 0


def shortest(value: float) -> float:
    """The shortest decimal that is this float32: 0.01, not 0.009999999776."""
    return float(str(np.float32(value)))


@dataclass
class _Reader:
    """Turns messages into plain data and collects the values that AMCT does not allow."""

    problems: list[Problem] = field(default_factory=list)

    def config(self, found: Message, parsed: Parsed) -> AmctConfig:
        root = parsed.root
        bad = bad_batch_num(found.batch_num)
        if bad:
            self.problems.append(Problem(root.line_of("batch_num"), f"batch_num: {bad}"))
        common = root.children("common_config")
        return AmctConfig(
            batch_num=found.batch_num,
            activation_offset=found.activation_offset,
            joint_quant=found.joint_quant,
            skip_layers=_mentions(root, "skip_layers", found.skip_layers),
            skip_layer_types=_mentions(root, "skip_layer_types", found.skip_layer_types),
            nuq=self._nuq_config(found, root),
            fp16_scales=found.HasField("fakequant_precision_mode"),
            common=self._calibration(found.common_config, common[0]) if common else Calibration(),
            types=self._overrides(found.override_layer_types, root, "override_layer_types", "layer_type"),
            layers=self._overrides(found.override_layer_configs, root, "override_layer_configs", "layer_name"),
            do_fusion=found.do_fusion,
            skip_fusion_layers=_mentions(root, "skip_fusion_layers", found.skip_fusion_layers),
            tensors=self._tensors(found, root),
            version=found.version if found.HasField("version") else None,
            enable_auto_nuq=found.enable_auto_nuq,
        )

    def _nuq_config(self, found: Message, root: Entry) -> NuqConfig | None:
        if not found.HasField("nuq_config"):
            return None
        entry = root.children("nuq_config")[0]
        inner = entry.children("nuq_quantize")
        algorithm = self._checked(_nuq(found.nuq_config.nuq_quantize), inner[0]) if inner else Nuq()
        return NuqConfig(found.nuq_config.mapping_file, algorithm)

    def _overrides(self, found: Message, root: Entry, name: str, key: str) -> tuple[Override, ...]:
        result = []
        for message, entry in zip(found, root.children(name), strict=True):
            match = Mention(getattr(message, key), entry.line_of(key))
            calibration = self._calibration(message.calibration_config, entry.children("calibration_config")[0])
            result.append(Override(match, calibration))
        return tuple(result)

    def _tensors(self, found: Message, root: Entry) -> tuple[TensorQuantize, ...]:
        result = []
        for message, entry in zip(found.tensor_quantize, root.children("tensor_quantize"), strict=True):
            layer = Mention(message.layer_name, entry.line_of("layer_name"))
            result.append(TensorQuantize(layer, message.input_index, self._activation(message, entry) or Ifmr()))
        return tuple(result)

    def _calibration(self, found: Message, entry: Entry) -> Calibration:
        dmq = shortest(found.dmq_balancer.migration_strength) if found.HasField("dmq_balancer") else None
        bad = bad_strength(dmq) if dmq is not None else ""
        if bad:
            line = entry.children("dmq_balancer")[0].line_of("migration_strength")
            self.problems.append(Problem(line, f"dmq_balancer.migration_strength: {bad}"))
        weight = self._weight(found, entry)
        return Calibration(self._activation(found, entry), weight, dmq, found.weight_compress_only)

    def _activation(self, found: Message, entry: Entry) -> ActivationAlgorithm | None:
        which = found.WhichOneof("acts_quant_algo")
        if which is None:
            return None
        make = _ifmr if which == "ifmr_quantize" else _hfmg
        return self._checked(make(getattr(found, which)), entry.children(which)[0])

    def _weight(self, found: Message, entry: Entry) -> WeightAlgorithm | None:
        which = found.WhichOneof("wts_quant_algo")
        if which is None:
            return None
        own = entry.children(which)[0]
        inner = getattr(found, which)
        if which == "nuq_quantize":
            return self._checked(_nuq(inner), own)
        if which == "ada_quantize":
            return self._checked(_ada(inner), own)
        arq = Arq(inner.channel_wise if inner.HasField("channel_wise") else None, inner.quant_bits, inner.asymmetric)
        if arq.num_bits not in (6, 7, 8):
            self.problems.append(
                Problem(own.line_of("quant_bits"), f"arq_quantize.quant_bits: found {arq.num_bits}; must be 6, 7 or 8")
            )
        if arq.asymmetric and not found.weight_compress_only:
            text = "arq_quantize.asymmetric: true needs weight_compress_only: true next to arq_quantize"
            self.problems.append(Problem(own.line_of("asymmetric"), text))
        return arq

    def _checked(self, algorithm: _Algorithm, entry: Entry) -> _Algorithm:
        for key, text in complaints(algorithm):
            names = [name for name in FIELDS_OF_JSON.get(key, ()) if entry.children(name)] or [key]
            label = " and ".join(sorted(names, reverse=True))
            self.problems.append(Problem(entry.line_of(*names), f"{entry.name}.{label}: {text}"))
        return algorithm


def _mentions(root: Entry, name: str, values: list[str]) -> tuple[Mention, ...]:
    return tuple(Mention(value, e.line) for value, e in zip(values, root.children(name), strict=True))


def _ifmr(found: Message) -> Ifmr:
    return Ifmr(
        search_range=(shortest(found.search_range_start), shortest(found.search_range_end)),
        search_step=shortest(found.search_step),
        max_percentile=shortest(found.max_percentile),
        min_percentile=shortest(found.min_percentile),
        asymmetric=_asymmetric(found),
        num_bits=_bits(found),
    )


def _hfmg(found: Message) -> Hfmg:
    return Hfmg(found.num_of_bins, _asymmetric(found), _bits(found))


def _ada(found: Message) -> Ada:
    return Ada(
        num_iteration=found.num_iteration,
        reg_param=shortest(found.reg_param),
        beta_range=(shortest(found.beta_range_start), shortest(found.beta_range_end)),
        warm_start=shortest(found.warm_start),
        channel_wise=found.channel_wise if found.HasField("channel_wise") else None,
    )


def _nuq(found: Message) -> Nuq:
    return Nuq(found.num_steps, found.num_of_iteration)


def _asymmetric(found: Message) -> bool | None:
    return found.asymmetric if found.HasField("asymmetric") else None


def _bits(found: Message) -> int:
    return 16 if found.dst_type == pb.INT16 else 8
