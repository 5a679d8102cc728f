"""The JSON configuration that `create_quant_retrain_config` writes: every layer with everything that holds for it.

Source: AMCT's published description of the retrain configuration file; layout as Python's json module gives it with an
indent of 4 and the separators ``,`` and ``:``.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from onnxq.dialects.amct._json_values import Values, Where, read_json
from onnxq.dialects.amct._limits import bad_batch_num
from onnxq.dialects.amct.config import Mention
from onnxq.dialects.amct.layers import Layers
from onnxq.dialects.amct.retrain_algorithms import (
    ArqRetrain,
    FilterPrune,
    Pruning,
    SelectivePrune,
    Ulq,
    UlqRetrain,
    WeightRetrain,
    bad_pair,
    complaints,
)
from onnxq.dialects.amct.retrain_config import AmctRetrainConfig, Retraining, RetrainOverride
from onnxq.dialects.amct.retrain_settings import RetrainLayer, RetrainSettings
from onnxq.dialects.problems import refuse
from onnxq.errors import nearest

_Algorithm = TypeVar("_Algorithm", bound=Ulq | WeightRetrain | Pruning)
GLOBAL_KEYS = ("version", "batch_num", "fakequant_precision_mode")
LAYER_KEYS = (
    "retrain_enable",
    "retrain_data_config",
    "retrain_weight_config",
    "regular_prune_enable",
    "regular_prune_config",
)
_DATA_KEYS = ("algo", "dst_type", "clip_max", "clip_min", "fixed_min")
_WEIGHT_KEYS = ("algo", "channel_wise", "dst_type")
_PRUNE_KEYS = {
    "filter_prune": ("prune_type", "algo", "prune_ratio", "ascend_optimized"),
    "selective_prune": ("prune_type", "algo", "n_out_of_m_type", "update_freq"),
}
_PRUNE_ALGORITHMS = {"filter_prune": "balanced_l2_norm_filter_prune", "selective_prune": "l1_selective_prune"}
_TYPES = {"INT4": 4, "INT8": 8, "INT16": 16}


@dataclass(frozen=True, slots=True)
class RetrainJson:
    """A JSON configuration of training and pruning.

    Attributes:
        layers: What holds for each layer that is named.
        batch_num: How many batches calibrate where training begins.
        fp16_scales: Whether scales of activations are rounded to float16.
        lines: Where each layer is written, for messages.
        source: The name of the file, for messages.
    """

    layers: Mapping[str, RetrainLayer]
    batch_num: int = 1
    fp16_scales: bool = False
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)

    @staticmethod
    def of(config: AmctRetrainConfig, settings: RetrainSettings) -> RetrainJson:
        """What `create_quant_retrain_config` writes for a configuration and a model."""
        return RetrainJson(settings.layers, config.batch_num, config.fp16_scales)

    def for_model(self, layers: Layers) -> AmctRetrainConfig:
        """The same as a configuration of one override per layer.

        Args:
            layers: The layers of the model; those that are not named here stay as they are.
        """
        overrides, skipped = [], []
        for name, found in self.layers.items():
            mention = Mention(name, self.lines.get(name, 0))
            overrides.append(RetrainOverride(mention, Retraining(found.data, found.weight, found.prune)))
            if not found.retrain_enable:
                skipped.append(mention)
        skipped += [Mention(name) for name in layers.quantizable if name not in self.layers]
        return AmctRetrainConfig(
            batch_num=self.batch_num,
            layers=tuple(overrides),
            quant_skip_layers=tuple(skipped),
            fp16_scales=self.fp16_scales,
            source=self.source,
        )


# ---- writing -----------------------------------------------------------------------------------


def format_retrain_json(config: RetrainJson) -> str:
    """The text of a JSON configuration, as AMCT lays it out."""
    content: dict[str, object] = {"version": 1, "batch_num": config.batch_num}
    if config.fp16_scales:
        content["fakequant_precision_mode"] = "FORCE_FP16_QUANT"
    content |= {name: _layer_dict(found) for name, found in config.layers.items()}
    return json.dumps(content, indent=4, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _layer_dict(found: RetrainLayer) -> dict[str, object]:
    data: dict[str, object] = {"algo": "ulq_quantize", "dst_type": f"INT{found.data.num_bits}"}
    ends = ("clip_max", "clip_min", "fixed_min")
    data |= {key: value for key in ends if (value := getattr(found.data, key)) is not None}
    weight = {
        "algo": "arq_retrain" if isinstance(found.weight, ArqRetrain) else "ulq_retrain",
        "channel_wise": bool(found.weight.channel_wise),
        "dst_type": f"INT{found.weight.num_bits}",
    }
    content: dict[str, object] = {
        "retrain_enable": found.retrain_enable,
        "retrain_data_config": data,
        "retrain_weight_config": weight,
    }
    if found.prune is not None:
        content |= {"regular_prune_enable": True, "regular_prune_config": _prune_dict(found.prune)}
    return content


def _prune_dict(found: Pruning) -> dict[str, object]:
    if isinstance(found, FilterPrune):
        kind: str = "filter_prune"
        values: dict[str, object] = {"prune_ratio": found.prune_ratio, "ascend_optimized": found.ascend_optimized}
    else:
        kind, values = "selective_prune", {"n_out_of_m_type": "M4N2", "update_freq": found.update_freq}
    return {"prune_type": kind, "algo": _PRUNE_ALGORITHMS[kind], **values}


# ---- reading -----------------------------------------------------------------------------------


def parse_retrain_json(text: str, *, source: str = "config.json") -> RetrainJson:
    """Read a JSON configuration.

    Args:
        text: JSON.
        source: Where it comes from, for messages.

    Raises:
        RecipeError: If it is not JSON, holds a key twice, or does not fit; it names all problems with their lines.
    """
    content, lines = read_json(text, source)
    reader = _Reader(lines)
    config = reader.config(content, source)
    refuse(source, reader.problems)
    return config


def is_retrain_json(content: object) -> bool:
    """Whether the content of a JSON file is a configuration of training or pruning, by the keys of its layers."""
    if not isinstance(content, dict):
        return False
    return any(isinstance(value, dict) and not value.keys().isdisjoint(LAYER_KEYS) for value in content.values())


class _Reader(Values):
    def config(self, content: object, source: str) -> RetrainJson:
        top = self.mapping(content, ())
        layers = {}
        for key, value in top.items():
            if key in GLOBAL_KEYS:
                continue
            if isinstance(value, dict):
                layers[key] = self._layer(value, (key,))
            else:
                hint = nearest(key, GLOBAL_KEYS, count=1) or f"; known: {', '.join(GLOBAL_KEYS)}, names of layers"
                self.problem((key,), f"unknown key{hint}")
        batch_num = self.whole(top, "batch_num", (), 1)
        if bad_batch_num(batch_num):
            self.problem(("batch_num",), bad_batch_num(batch_num))
        mode = top.get("fakequant_precision_mode")
        if mode not in (None, "FORCE_FP16_QUANT"):
            self.problem(("fakequant_precision_mode",), f"found {reprlib.repr(mode)}; must be 'FORCE_FP16_QUANT'")
        if self.whole(top, "version", (), 1) != 1:
            self.problem(("version",), f"found {top['version']}; must be 1")
        lines = {str(path[0]): line for path, line in self.lines.items() if len(path) == 1}
        return RetrainJson(layers, batch_num, mode is not None, lines, source)

    def _layer(self, found: dict[str, object], path: Where) -> RetrainLayer:
        self.unknown(found, LAYER_KEYS, path)
        data = self._data(found.get("retrain_data_config", {}), (*path, "retrain_data_config"))
        weight = self._weight(found.get("retrain_weight_config", {}), (*path, "retrain_weight_config"))
        enabled = self.flag(found, "retrain_enable", path, default=True)
        if enabled and bad_pair(data, weight):
            self.problem(path, bad_pair(data, weight))
        prune = None
        if self.flag(found, "regular_prune_enable", path, default="regular_prune_config" in found):
            if "regular_prune_config" not in found:
                self.problem((*path, "regular_prune_enable"), "is true; give regular_prune_config too")
            else:
                prune = self._prune(found["regular_prune_config"], (*path, "regular_prune_config"))
        return RetrainLayer(enabled, data, weight, prune)

    def _data(self, content: object, path: Where) -> Ulq:
        found = self.mapping(content, path)
        self.unknown(found, _DATA_KEYS, path)
        self._choice(found, "algo", ("ulq_quantize",), path, "ulq_quantize")
        high, low = (self.number(found, key, path, 1.0) if key in found else None for key in ("clip_max", "clip_min"))
        fixed = self.flag(found, "fixed_min", path, default=False) if "fixed_min" in found else None
        return self._checked(Ulq(high, low, fixed, self._bits(found, path)), path)

    def _weight(self, content: object, path: Where) -> WeightRetrain:
        found = self.mapping(content, path)
        self.unknown(found, _WEIGHT_KEYS, path)
        name = self._choice(found, "algo", ("arq_retrain", "ulq_retrain"), path, "arq_retrain")
        channel_wise = self.flag(found, "channel_wise", path, default=False) if "channel_wise" in found else None
        make = ArqRetrain if name == "arq_retrain" else UlqRetrain
        return self._checked(make(channel_wise, self._bits(found, path)), path)

    def _prune(self, content: object, path: Where) -> Pruning | None:
        found = self.mapping(content, path)
        guessed = next((kind for kind, keys in _PRUNE_KEYS.items() if not found.keys().isdisjoint(keys[2:])), "")
        kind = self._choice(found, "prune_type", tuple(_PRUNE_KEYS), path, guessed or "filter_prune")
        self.unknown(found, _PRUNE_KEYS[kind], path)
        self._choice(found, "algo", (_PRUNE_ALGORITHMS[kind],), path, _PRUNE_ALGORITHMS[kind])
        if kind == "selective_prune":
            self._choice(found, "n_out_of_m_type", ("M4N2",), path, "M4N2")
            return self._checked(SelectivePrune(self.whole(found, "update_freq", path, 0)), path)
        if "prune_ratio" not in found:
            self.problem(path, "needs prune_ratio")
            return None
        ratio = self.number(found, "prune_ratio", path, 0.2)
        return self._checked(FilterPrune(ratio, self.flag(found, "ascend_optimized", path, default=True)), path)

    def _bits(self, found: Mapping[str, object], path: Where) -> int:
        return _TYPES[self._choice(found, "dst_type", tuple(_TYPES), path, "INT8")]

    def _choice(
        self, found: Mapping[str, object], key: str, allowed: tuple[str, ...], path: Where, default: str
    ) -> str:
        value = found.get(key, default)
        if isinstance(value, str) and value in allowed:
            return value
        hint = nearest(str(value), allowed, count=1)
        self.problem((*path, key), f"found {reprlib.repr(value)}; must be one of {', '.join(allowed)}{hint}")
        return default

    def _checked(self, algorithm: _Algorithm, path: Where) -> _Algorithm:
        for key, text in complaints(algorithm):
            self.problem((*path, key), text)
        return algorithm
