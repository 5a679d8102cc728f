"""From a configuration of training and pruning, and the layers of a model, to what holds for each layer.

Precedence as AMCT has it: override_layer_configs, override_layer_types, the global configuration; for activations,
weights and pruning each by itself, so that an override of one leaves the others as they are. Skip lists of both kinds
are united with the general ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from onnxq.dialects.amct.config import Mention
from onnxq.dialects.amct.layers import Layer, Layers
from onnxq.dialects.amct.naming import Naming, listed
from onnxq.dialects.amct.retrain_algorithms import (
    ArqRetrain,
    FilterPrune,
    Pruning,
    SelectivePrune,
    Ulq,
    WeightRetrain,
    bad_pair,
)
from onnxq.dialects.amct.retrain_config import AmctRetrainConfig, Retraining
from onnxq.dialects.amct.settings import CHANNEL_WISE, takes_int16
from onnxq.dialects.problems import Problem, refuse

_TRAINED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PRUNED: Mapping[type, frozenset[str]] = {
    FilterPrune: frozenset({"Conv", "Gemm", "MatMul"}),
    SelectivePrune: frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
}
_NAMES: Mapping[type, str] = {
    FilterPrune: "balanced_l2_norm_filter_prune is for Conv, Gemm and MatMul; other layers follow those in front",
    SelectivePrune: "l1_selective_prune is for Conv, ConvTranspose, Gemm and MatMul with constant weights",
}


@dataclass(frozen=True, slots=True)
class RetrainLayer:
    """What holds for one layer.

    Attributes:
        retrain_enable: Whether it is quantized.
        data: The algorithm for its input.
        weight: The algorithm for its weight; `channel_wise` is decided.
        prune: How it is pruned; None where it is not.
    """

    retrain_enable: bool = True
    data: Ulq = field(default_factory=Ulq)
    weight: WeightRetrain = field(default_factory=lambda: ArqRetrain(channel_wise=False))
    prune: Pruning | None = None


@dataclass(frozen=True)
class RetrainSettings:
    """What holds for every layer of a model that AMCT trains.

    Attributes:
        layers: By name, in the order of the model; layers that are not quantized too.
        notes: What has no effect, or another effect than one might think.
    """

    layers: Mapping[str, RetrainLayer]
    notes: tuple[str, ...] = ()


def resolve_retrain(config: AmctRetrainConfig, layers: Layers | Mapping[str, Layer]) -> RetrainSettings:
    """Find out what holds for every layer.

    Args:
        config: The configuration.
        layers: The layers of the model.

    Raises:
        RecipeError: If the configuration names what the model or AMCT does not have, or a layer's widths do not go
            together; it names all problems.
    """
    return _Resolver(config, layers if isinstance(layers, Layers) else Layers.of(layers)).run()


@dataclass(frozen=True, slots=True)
class _Level:
    """What one level of the configuration says of a layer."""

    retraining: Retraining
    line: int = 0
    strict: bool = False


@dataclass
class _Resolver:
    config: AmctRetrainConfig
    known: Layers
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    grouped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    naming: Naming = field(init=False)

    def run(self) -> RetrainSettings:
        self.naming = Naming(self.known, self.problems, self.notes)
        config = self.config
        everything = self._named("skip", config.skip_layers, config.skip_types)
        unquantized = everything | self._named("quant_skip", config.quant_skip_layers, config.quant_skip_types)
        unpruned = everything | self._named("regular_prune_skip", config.prune_skip_layers, config.prune_skip_types)
        overrides = self._overrides()
        found = {
            name: self._layer(layer, overrides[name], name not in unquantized, name not in unpruned)
            for name, layer in self.known.quantizable.items()
            if layer.op_type in _TRAINED and layer.weight_rank is not None
        }
        self.notes += [f"{text}: {listed(names)}" for text, names in self.grouped.items()]
        refuse(config.source, self.problems)
        return RetrainSettings(found, (*config.warnings, *dict.fromkeys(self.notes)))

    # ---- names

    def _named(self, what: str, names: Iterable[Mention], types: Iterable[Mention]) -> set[str]:
        """The layers of two skip lists."""
        found = {name for mention in types for name in self.naming.of_type(mention)}
        for mention in names:
            name = self.naming.node(mention)
            if name in self.known.others:
                self.notes.append(f"{what}_layers: {name!r} stays as it is anyway")
            found.add(name)
        return found

    def _overrides(self) -> dict[str, list[_Level]]:
        """What is different, by layer; the strongest level comes first."""
        of_layer: dict[str, list[_Level]] = defaultdict(list)
        of_type: dict[str, list[_Level]] = defaultdict(list)
        for override in self.config.types:
            for name in self.naming.of_type(override.match):
                of_type[name].insert(0, _Level(override.retraining, override.match.line))
        for override in self.config.layers:
            name = self.naming.layer(override.match)
            if not name:
                continue
            layer = self.known.quantizable[name]
            if layer.op_type not in _TRAINED or layer.weight_rank is None:
                what = f"layer {name!r} ({layer.op_type}) has no constant weight: it is neither trained nor pruned"
                self.problems.append(Problem(override.match.line, what))
            if of_layer[name]:
                self.notes.append(
                    f"override_layer_configs names {name!r} twice: what is written later wins where both say something"
                )
            of_layer[name].insert(0, _Level(override.retraining, override.match.line, strict=True))
        joined: dict[str, list[_Level]] = defaultdict(list)
        for name in (*of_layer, *of_type):
            joined[name] = [*of_layer[name], *of_type[name]]
        return joined

    # ---- one layer

    def _layer(self, layer: Layer, overrides: list[_Level], quantized: bool, pruned: bool) -> RetrainLayer:
        levels = [*overrides, _Level(self.config.common)]
        data, weight = self._data(layer, levels, quantized), self._weight(layer, levels, quantized)
        bad = bad_pair(data, weight)
        if bad and quantized:
            line = next((lv.line for lv in levels if lv.retraining.quantizes), 0)
            self.problems.append(Problem(line, f"layer {layer.name!r} ({layer.op_type}): {bad}"))
        return RetrainLayer(quantized, data, weight, self._prune(layer, levels) if pruned else None)

    def _data(self, layer: Layer, levels: list[_Level], told: bool) -> Ulq:
        level, found = next(((lv, lv.retraining.data) for lv in levels if lv.retraining.data), (levels[-1], Ulq()))
        if found.num_bits == 16 and not takes_int16(layer):
            what = "dst_type INT16 is for Conv and ConvTranspose with 4-D weights, Gemm with a bias, and MatMul"
            self._not_here(layer, level, what, "INT8 for", told)
            found = replace(found, num_bits=8)
        if found.num_bits == 4 and told:
            text = "released versions of AMCT refuse INT4 activations, and only some inference products compute them"
            self.grouped[text].append(layer.name)
        return found

    def _weight(self, layer: Layer, levels: list[_Level], told: bool) -> WeightRetrain:
        given = ((lv, lv.retraining.weight) for lv in levels if lv.retraining.weight)
        level, found = next(given, (levels[-1], ArqRetrain()))
        possible = layer.op_type in CHANNEL_WISE
        if found.channel_wise and not possible:
            self._not_here(layer, level, "channel_wise true is for Conv and ConvTranspose", "one scale for", told)
        if found.num_bits == 4 and told and (layer.in_channels or 0) % 2:
            text = "AMCT packs INT4 weights in pairs along the input channels, of which there is an odd number"
            self.grouped[text].append(layer.name)
        return replace(found, channel_wise=possible and found.channel_wise is not False)

    def _prune(self, layer: Layer, levels: list[_Level]) -> Pruning | None:
        given = ((lv, lv.retraining.prune) for lv in levels if lv.retraining.prune)
        level, found = next(given, (levels[-1], None))
        if found is None:
            return None
        if layer.op_type not in _PRUNED[type(found)] or (isinstance(found, FilterPrune) and layer.depthwise):
            self._not_here(layer, level, _NAMES[type(found)], "not pruned by itself", told=True)
            return None
        return found

    def _not_here(self, layer: Layer, level: _Level, what: str, instead: str, told: bool) -> None:
        """Say that something does not fit a layer: a problem where it was asked for by the layer's name."""
        if not told:
            return
        if level.strict:
            self.problems.append(Problem(level.line, f"layer {layer.name!r} ({layer.op_type}): {what}"))
        else:
            self.grouped[f"{what}; {instead}"].append(layer.name)
