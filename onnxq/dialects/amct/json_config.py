"""The JSON configuration that `create_quant_config` writes: every layer with everything that holds for it.

Source: AMCT's published description of the quantization configuration file; layout as Python's json module gives it
with an indent of 4 and the separators ``,`` and ``:``.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from onnxq.dialects.amct._json_values import Values, Where, read_json
from onnxq.dialects.amct._limits import bad_batch_num, bad_strength, complaints
from onnxq.dialects.amct.algorithms import ActivationAlgorithm, Ada, Arq, Hfmg, Ifmr, Nuq, WeightAlgorithm
from onnxq.dialects.amct.config import AmctConfig, Calibration, Mention, Override, TensorQuantize
from onnxq.dialects.amct.layers import Layers
from onnxq.dialects.amct.settings import LayerSettings, Resolved
from onnxq.dialects.problems import refuse
from onnxq.errors import nearest

Algorithm = TypeVar("Algorithm", bound=ActivationAlgorithm | WeightAlgorithm)
GLOBAL_KEYS = (
    "version",
    "batch_num",
    "activation_offset",
    "joint_quant",
    "do_fusion",
    "fakequant_precision_mode",
    "skip_fusion_layers",
    "tensor_quantize",
)
LAYER_KEYS = ("quant_enable", "dmq_balancer_param", "activation_quant_params", "weight_quant_params")
ACTIVATION_KEYS = {
    "ifmr": ("num_bits", "max_percentile", "min_percentile", "search_range", "search_step", "act_algo", "asymmetric"),
    "hfmg": ("num_bits", "act_algo", "num_of_bins", "asymmetric"),
}
WEIGHT_KEYS = {
    "arq_quantize": ("num_bits", "wts_algo", "channel_wise"),
    "ada_quantize": (
        "num_bits",
        "wts_algo",
        "num_iteration",
        "reg_param",
        "beta_range",
        "warm_start",
        "channel_wise",
    ),
    "nuq_quantize": ("num_bits", "wts_algo", "num_steps", "num_of_iteration"),
}


@dataclass(frozen=True, slots=True)
class JsonConfig:
    """A JSON configuration.

    Attributes:
        layers: What holds for each layer that is named.
        batch_num: How many batches calibration runs.
        activation_offset: Whether activations are asymmetric where a layer does not say.
        joint_quant: As in the text configuration; None where it is not written (PyTorch's flavour).
        do_fusion: Whether BatchNormalization is folded.
        fp16_scales: Whether scales of activations are rounded to float16.
        skip_fusion_layers: Layers nothing is folded into.
        tensors: Inputs of MaxPool and Add to quantize.
        lines: Where each layer is written, for messages.
        source: The name of the file, for messages.
    """

    layers: Mapping[str, LayerSettings]
    batch_num: int = 1
    activation_offset: bool = True
    joint_quant: bool | None = None
    do_fusion: bool = True
    fp16_scales: bool = False
    skip_fusion_layers: tuple[str, ...] = ()
    tensors: tuple[TensorQuantize, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)

    @staticmethod
    def of(config: AmctConfig, resolved: Resolved) -> JsonConfig:
        """What `create_quant_config` writes for a configuration and a model."""
        return JsonConfig(
            resolved.layers,
            batch_num=config.batch_num,
            activation_offset=config.activation_offset,
            joint_quant=config.joint_quant,
            do_fusion=config.do_fusion,
            fp16_scales=config.fp16_scales,
            skip_fusion_layers=resolved.skip_fusion,
            tensors=tuple(TensorQuantize(Mention(t.node), t.input_index, t.activation) for t in resolved.tensors),
        )

    def for_model(self, layers: Layers) -> AmctConfig:
        """The same as a configuration of one override per layer.

        Args:
            layers: The layers of the model; those that are not named here stay float.
        """
        overrides, skipped = [], []
        line = self.lines.get("skip_fusion_layers", 0)
        for name, found in self.layers.items():
            mention = Mention(name, self.lines.get(name, 0))
            overrides.append(Override(mention, Calibration(found.activation, found.weight, found.dmq)))
            if not found.quant_enable:
                skipped.append(mention)
        skipped += [Mention(name) for name in layers.quantizable if name not in self.layers]
        return AmctConfig(
            batch_num=self.batch_num,
            activation_offset=self.activation_offset,
            joint_quant=bool(self.joint_quant),
            skip_layers=tuple(skipped),
            fp16_scales=self.fp16_scales,
            layers=tuple(overrides),
            do_fusion=self.do_fusion,
            skip_fusion_layers=tuple(Mention(name, line) for name in self.skip_fusion_layers),
            tensors=self.tensors,
            source=self.source,
        )


# ---- writing -----------------------------------------------------------------------------------


def format_json(config: JsonConfig) -> str:
    """The text of a JSON configuration, as AMCT lays it out."""
    content: dict[str, object] = {
        "version": 1,
        "batch_num": config.batch_num,
        "activation_offset": config.activation_offset,
    }
    if config.joint_quant is not None:
        content["joint_quant"] = config.joint_quant
    content["do_fusion"] = config.do_fusion
    if config.fp16_scales:
        content["fakequant_precision_mode"] = "FORCE_FP16_QUANT"
    content["skip_fusion_layers"] = list(config.skip_fusion_layers)
    if config.tensors:
        content["tensor_quantize"] = [
            {
                "layer_name": tensor.layer.name,
                "input_index": tensor.input_index,
                "activation_quant_params": _activation_dict(tensor.activation),
            }
            for tensor in config.tensors
        ]
    content |= {name: _layer_dict(found) for name, found in config.layers.items()}
    return json.dumps(content, indent=4, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _layer_dict(found: LayerSettings) -> dict[str, object]:
    content: dict[str, object] = {"quant_enable": found.quant_enable}
    if found.dmq is not None:
        content["dmq_balancer_param"] = found.dmq
    content["activation_quant_params"] = _activation_dict(found.activation)
    if found.weight is not None:
        content["weight_quant_params"] = _weight_dict(found.weight)
    return content


def _activation_dict(found: ActivationAlgorithm) -> dict[str, object]:
    name = "ifmr" if isinstance(found, Ifmr) else "hfmg"
    return {key: name if key == "act_algo" else _plain(getattr(found, key)) for key in ACTIVATION_KEYS[name]}


def _weight_dict(found: WeightAlgorithm) -> dict[str, object]:
    name = {Arq: "arq_quantize", Ada: "ada_quantize", Nuq: "nuq_quantize"}[type(found)]
    return {key: name if key == "wts_algo" else _plain(getattr(found, key)) for key in WEIGHT_KEYS[name]}


def _plain(value: object) -> object:
    """Ranges as lists; whole numbers without a decimal point: ``[20, 2]``."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


# ---- reading -----------------------------------------------------------------------------------


def parse_json(text: str, *, source: str = "config.json") -> JsonConfig:
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


class _Reader(Values):
    def config(self, content: object, source: str) -> JsonConfig:
        top = self.mapping(content, ())
        layers = {}
        for key, value in top.items():
            if key in GLOBAL_KEYS:
                continue
            if isinstance(value, dict):
                layers[key] = self._layer(value, (key,), offset=top.get("activation_offset") is not False)
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
        return JsonConfig(
            layers,
            batch_num=batch_num,
            activation_offset=self.flag(top, "activation_offset", (), default=True),
            joint_quant=self.flag(top, "joint_quant", (), default=False) if "joint_quant" in top else None,
            do_fusion=self.flag(top, "do_fusion", (), default=True),
            fp16_scales=mode is not None,
            skip_fusion_layers=self.names(top, "skip_fusion_layers", ()),
            tensors=tuple(self._tensors(top)),
            lines={str(path[0]): line for path, line in self.lines.items() if len(path) == 1},
            source=source,
        )

    def _tensors(self, top: Mapping[str, object]) -> Iterator[TensorQuantize]:
        items = top.get("tensor_quantize", [])
        if not isinstance(items, list):
            self.problem(("tensor_quantize",), f"found {reprlib.repr(items)}; must be a list of objects")
            return
        for number, item in enumerate(items):
            path: Where = ("tensor_quantize", number)
            found = self.mapping(item, path)
            self.unknown(found, ("layer_name", "input_index", "activation_quant_params"), path)
            name = found.get("layer_name")
            if not isinstance(name, str):
                self.problem((*path, "layer_name"), f"found {reprlib.repr(name)}; must be the name of a layer")
                continue
            params = found.get("activation_quant_params", {})
            algorithm = self._activation(params, (*path, "activation_quant_params"), offset=True)
            index = self.whole(found, "input_index", path, 0)
            yield TensorQuantize(Mention(name, self.lines.get(path, 0)), index, algorithm)

    def _layer(self, found: dict[str, object], path: Where, *, offset: bool) -> LayerSettings:
        self.unknown(found, LAYER_KEYS, path)
        dmq = self.number(found, "dmq_balancer_param", path, 0.5) if "dmq_balancer_param" in found else None
        if dmq is not None and bad_strength(dmq):
            self.problem((*path, "dmq_balancer_param"), bad_strength(dmq))
        weight = found.get("weight_quant_params")
        activation = found.get("activation_quant_params", {})
        return LayerSettings(
            self.flag(found, "quant_enable", path, default=True),
            self._activation(activation, (*path, "activation_quant_params"), offset=offset),
            None if weight is None else self._weight(weight, (*path, "weight_quant_params")),
            dmq,
        )

    def _kind(self, found: Mapping[str, object], path: Where, key: str, kinds: Mapping[str, tuple[str, ...]]) -> str:
        """The algorithm, by its name or by the keys only it has; keys of another one are a problem."""
        alone = {
            name: set(keys) - {k for n, o in kinds.items() if n != name for k in o} for name, keys in kinds.items()
        }
        named = found.get(key)
        if named is not None and named not in kinds:
            hint = nearest(str(named), kinds, count=1) or f"; known: {', '.join(kinds)}"
            self.problem((*path, key), f"found {reprlib.repr(named)}{hint}")
            return ""
        guessed = [name for name in kinds if alone[name] & found.keys()]
        kind = str(named) if named is not None else next(iter(guessed), next(iter(kinds)))
        for other in guessed:
            if other != kind:
                keys = ", ".join(sorted(alone[other] & found.keys()))
                self.problem((*path, keys.split(", ", maxsplit=1)[0]), f"{keys} of {other} together with {kind}")
        taken = {k for other in kinds for k in alone[other] if other != kind}
        self.unknown({k: v for k, v in found.items() if k not in taken}, kinds[kind], path)
        return kind

    def _activation(self, content: object, path: Where, *, offset: bool) -> ActivationAlgorithm:
        found = self.mapping(content, path)
        kind = self._kind(found, path, "act_algo", ACTIVATION_KEYS)
        asymmetric = self.flag(found, "asymmetric", path, default=offset)
        bits = self.whole(found, "num_bits", path, 8)
        if kind == "hfmg":
            return self._checked(Hfmg(self.whole(found, "num_of_bins", path, 4096), asymmetric, bits), path)
        algorithm = Ifmr(
            search_range=self.pair(found, "search_range", path, (0.7, 1.3)),
            search_step=self.number(found, "search_step", path, 0.01),
            max_percentile=self.number(found, "max_percentile", path, 0.999999),
            min_percentile=self.number(found, "min_percentile", path, 0.999999),
            asymmetric=asymmetric,
            num_bits=bits,
        )
        return self._checked(algorithm, path)

    def _weight(self, content: object, path: Where) -> WeightAlgorithm:
        found = self.mapping(content, path)
        kind = self._kind(found, path, "wts_algo", WEIGHT_KEYS)
        channel_wise = self.flag(found, "channel_wise", path, default=False) if "channel_wise" in found else None
        bits = self.whole(found, "num_bits", path, 8)
        if kind == "nuq_quantize":
            steps = self.whole(found, "num_steps", path, 32)
            rounds = self.whole(found, "num_of_iteration", path, 1)
            return self._checked(Nuq(steps, rounds, bits), path)
        if kind == "ada_quantize":
            algorithm = Ada(
                num_iteration=self.whole(found, "num_iteration", path, 10000),
                reg_param=self.number(found, "reg_param", path, 0.01),
                beta_range=self.pair(found, "beta_range", path, (20.0, 2.0)),
                warm_start=self.number(found, "warm_start", path, 0.2),
                channel_wise=channel_wise,
                num_bits=bits,
            )
            return self._checked(algorithm, path)
        return self._checked(Arq(channel_wise, bits), path)

    def _checked(self, algorithm: Algorithm, path: Where) -> Algorithm:
        for key, text in complaints(algorithm):
            self.problem((*path, key), text)
        return algorithm
