"""AMCT's simplified configuration of training and pruning, ``retrain.cfg``: read into plain frozen data.

One format serves quantization-aware training (``quant.cfg``), sparsity (``prune.cfg``, ``selective_prune.cfg``) and
both together (``compressed.cfg``).

Source: the fields, defaults and ranges AMCT publishes for its ``retrain_config`` messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from onnxq.dialects.amct._limits import bad_batch_num
from onnxq.dialects.amct._schema import Message, Parsed, parse
from onnxq.dialects.amct._text import Entry
from onnxq.dialects.amct.config import Mention, read_text, shortest
from onnxq.dialects.amct.proto import retrain_config_pb2 as pb
from onnxq.dialects.amct.retrain_algorithms import (
    ArqRetrain,
    FilterPrune,
    Pruning,
    SelectivePrune,
    Ulq,
    UlqRetrain,
    WeightRetrain,
    complaints,
)
from onnxq.dialects.problems import Problem, refuse

_Algorithm = TypeVar("_Algorithm", bound=Ulq | WeightRetrain | Pruning)
_BITS = {pb.INT4: 4, pb.INT8: 8, pb.INT16: 16}
_MARKS = frozenset(
    {"retrain_data_quant_config", "retrain_weight_quant_config", "prune_config", "regular_prune_skip_layers"}
    | {"regular_prune_skip_types", "quant_skip_layers", "quant_skip_types"}
)
"""Fields that no other configuration of AMCT's has."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """What one level says of its layers; None where it leaves that to weaker levels.

    Attributes:
        data: The algorithm for activations.
        weight: The algorithm for weights.
        prune: How weights are pruned.
    """

    data: Ulq | None = None
    weight: WeightRetrain | None = None
    prune: Pruning | None = None

    @property
    def quantizes(self) -> bool:
        """Whether it says anything of quantization."""
        return self.data is not None or self.weight is not None


@dataclass(frozen=True, slots=True)
class RetrainOverride:
    """What is different for a layer, or for all layers of a type.

    Attributes:
        match: The name of the layer or of the type.
        retraining: What holds for it.
    """

    match: Mention
    retraining: Retraining


@dataclass(frozen=True, slots=True)
class AmctRetrainConfig:
    """A simplified configuration of training and pruning.

    Attributes:
        batch_num: How many batches calibrate where training begins.
        common: What holds for all layers.
        types: What is different for types of layers.
        layers: What is different for single layers.
        skip_layers: Layers that are neither quantized nor pruned.
        skip_types: Types of such layers.
        quant_skip_layers: Layers that are not quantized.
        quant_skip_types: Types of such layers.
        prune_skip_layers: Layers that are not pruned.
        prune_skip_types: Types of such layers.
        fp16_scales: Whether scales of activations are rounded to float16 (FORCE_FP16_QUANT).
        source: The name of the file, for messages.
        warnings: What is written, but has no effect.
    """

    batch_num: int = 1
    common: Retraining = Retraining()
    types: tuple[RetrainOverride, ...] = ()
    layers: tuple[RetrainOverride, ...] = ()
    skip_layers: tuple[Mention, ...] = ()
    skip_types: tuple[Mention, ...] = ()
    quant_skip_layers: tuple[Mention, ...] = ()
    quant_skip_types: tuple[Mention, ...] = ()
    prune_skip_layers: tuple[Mention, ...] = ()
    prune_skip_types: tuple[Mention, ...] = ()
    fp16_scales: bool = False
    source: str = field(default="", compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def quantizes(self) -> bool:
        """Whether quantization is asked for at all."""
        skipped = {mention.name for mention in self.quant_skip_layers}
        named = any(o.retraining.quantizes for o in self.layers if o.match.name not in skipped)
        return named or self.common.quantizes or any(o.retraining.quantizes for o in self.types)

    @property
    def prunes(self) -> bool:
        """Whether pruning is asked for at all."""
        levels = (self.common, *(o.retraining for o in (*self.types, *self.layers)))
        return any(level.prune is not None for level in levels)


def is_retrain_text(text: str) -> bool:
    """Whether a simplified configuration is one of training or pruning, by the names of its fields."""
    names = {line.strip().replace("{", ":").split(":")[0].strip() for line in text.splitlines()}
    return not names.isdisjoint(_MARKS)


def read_retrain_config(path: str | Path) -> AmctRetrainConfig:
    """Read a simplified configuration file.

    Raises:
        RecipeError: If it cannot be read or does not fit; it names all problems with their lines.
    """
    return parse_retrain_config(read_text(Path(path)), source=str(path))


def parse_retrain_config(text: str, *, source: str = "retrain.cfg") -> AmctRetrainConfig:
    """Read a simplified configuration.

    Args:
        text: In protobuf's text format.
        source: Where it comes from, for messages.

    Raises:
        RecipeError: If it does not fit; it names all problems with their lines.
    """
    parsed = parse(text, pb.AMCTRetrainConfig())
    refuse(source, parsed.problems)
    reader = _Reader()
    config = reader.config(parsed.message, parsed)
    refuse(source, reader.problems)
    notes = tuple(f"{source}: {warning}" for warning in parsed.warnings)
    return replace(config, source=source, warnings=notes)


@dataclass
class _Reader:
    """Turns messages into plain data and collects the values that AMCT does not allow."""

    problems: list[Problem] = field(default_factory=list)

    def config(self, found: Message, parsed: Parsed) -> AmctRetrainConfig:
        root = parsed.root
        bad = bad_batch_num(found.batch_num)
        if bad:
            self.problems.append(Problem(root.line_of("batch_num"), f"batch_num: {bad}"))

        def mentions(name: str) -> tuple[Mention, ...]:
            pairs = zip(getattr(found, name), root.children(name), strict=True)
            return tuple(Mention(value, entry.line) for value, entry in pairs)

        return AmctRetrainConfig(
            batch_num=found.batch_num,
            common=self._retraining(found, root),
            types=self._overrides(found.override_layer_types, root.children("override_layer_types"), "layer_type"),
            layers=self._overrides(found.override_layer_configs, root.children("override_layer_configs"), "layer_name"),
            skip_layers=mentions("skip_layers"),
            skip_types=mentions("skip_layer_types"),
            quant_skip_layers=mentions("quant_skip_layers"),
            quant_skip_types=mentions("quant_skip_types"),
            prune_skip_layers=mentions("regular_prune_skip_layers"),
            prune_skip_types=mentions("regular_prune_skip_types"),
            fp16_scales=found.HasField("fakequant_precision_mode"),
        )

    def _overrides(self, found: Message, entries: Iterable[Entry], key: str) -> tuple[RetrainOverride, ...]:
        result = []
        for message, entry in zip(found, entries, strict=True):
            match = Mention(getattr(message, key), entry.line_of(key))
            retraining = self._retraining(message, entry)
            if retraining == Retraining():
                self.problems.append(Problem(entry.line, f"{entry.name}: says nothing but {key}; leave it out"))
            result.append(RetrainOverride(match, retraining))
        return tuple(result)

    def _retraining(self, found: Message, entry: Entry) -> Retraining:
        data = self._data(found.retrain_data_quant_config, entry.children("retrain_data_quant_config"))
        weight = self._weight(found.retrain_weight_quant_config, entry.children("retrain_weight_quant_config"))
        return Retraining(data, weight, self._prune(found.prune_config, entry.children("prune_config")))

    def _data(self, found: Message, entries: tuple[Entry, ...]) -> Ulq | None:
        if not entries:
            return None
        inner = entries[0].children("ulq_quantize")
        if not inner:
            return Ulq()
        message = found.ulq_quantize
        clips = message.clip_max_min if message.HasField("clip_max_min") else None
        entry = (*inner[0].children("clip_max_min"), inner[0])[0]
        algorithm = Ulq(
            None if clips is None else shortest(clips.clip_max),
            None if clips is None else shortest(clips.clip_min),
            message.fixed_min if message.HasField("fixed_min") else None,
            _BITS[message.dst_type],
        )
        return self._checked(algorithm, entry)

    def _weight(self, found: Message, entries: tuple[Entry, ...]) -> WeightRetrain | None:
        if not entries:
            return None
        which = found.WhichOneof("weight_quant_algo")
        if which is None:
            return ArqRetrain()
        message = getattr(found, which)
        make = ArqRetrain if which == "arq_retrain" else UlqRetrain
        channel_wise = message.channel_wise if message.HasField("channel_wise") else None
        return self._checked(make(channel_wise, _BITS[message.dst_type]), entries[0].children(which)[0])

    def _prune(self, found: Message, entries: tuple[Entry, ...]) -> Pruning | None:
        if not entries:
            return None
        path = {
            "filter_pruner": ("filter_prune_algo", "balanced_l2_norm_filter_prune"),
            "n_out_of_m_pruner": ("selective_prune_algo", "l1_selective_prune"),
        }
        which = found.WhichOneof("pruner")
        if which is None:
            text = f"prune_config: is empty; give one of {', '.join(path)}"
            self.problems.append(Problem(entries[0].line, text))
            return None
        oneof, name = path[which]
        pruner, entry = getattr(found, which), entries[0].children(which)[0]
        if which == "n_out_of_m_pruner":
            inner = entry.children(name)
            frequency = pruner.l1_selective_prune.update_freq
            return self._checked(SelectivePrune(frequency), inner[0] if inner else entry)
        if pruner.WhichOneof(oneof) is None:
            self.problems.append(Problem(entry.line, f"{which}: is empty; give {name}, which needs prune_ratio"))
            return None
        message = pruner.balanced_l2_norm_filter_prune
        filters = FilterPrune(shortest(message.prune_ratio), message.ascend_optimized)
        return self._checked(filters, entry.children(name)[0])

    def _checked(self, algorithm: _Algorithm, entry: Entry) -> _Algorithm:
        for key, text in complaints(algorithm):
            self.problems.append(Problem(entry.line_of(key), f"{entry.name}.{key}: {text}"))
        return algorithm
