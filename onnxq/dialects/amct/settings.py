"""From a configuration and the layers of a model to what holds for each layer, and to a recipe.

Precedence as AMCT has it: override_layer_configs, override_layer_types, common_config, activation_offset. An algorithm
given at a stronger level replaces the weaker one with all its parameters; `asymmetric` alone is looked up by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from onnxq.dialects.amct.algorithms import ActivationAlgorithm, Ada, Arq, Ifmr, Nuq, WeightAlgorithm
from onnxq.dialects.amct.config import AmctConfig, Calibration
from onnxq.dialects.amct.layers import Layer, Layers
from onnxq.dialects.amct.names import TENSOR_QUANTIZABLE
from onnxq.dialects.amct.naming import Naming, listed
from onnxq.dialects.problems import Problem, refuse

CHANNEL_WISE = frozenset({"Conv", "ConvTranspose"})
"""Operators whose weights AMCT gives one scale per output channel."""


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What holds for one layer.

    Attributes:
        quant_enable: Whether it is quantized at all.
        activation: The algorithm for its input; `asymmetric` is decided.
        weight: The algorithm for its weight, `channel_wise` is decided; None where it has no constant weight.
        dmq: Migration strength of DMQ; None for no balancing.
    """

    quant_enable: bool = True
    activation: ActivationAlgorithm = field(default_factory=lambda: Ifmr(asymmetric=True))
    weight: WeightAlgorithm | None = None
    dmq: float | None = None


@dataclass(frozen=True, slots=True)
class TensorSettings:
    """An input of a MaxPool or an Add that is quantized.

    Attributes:
        node: The name of the node.
        input_index: Which of its inputs.
        activation: The algorithm.
    """

    node: str
    input_index: int
    activation: ActivationAlgorithm


@dataclass(frozen=True)
class Resolved:
    """What holds for every layer of a model.

    Attributes:
        layers: By name, in the order of the model; layers that stay float too.
        tensors: Inputs of MaxPool and Add.
        skip_fusion: Names of the nodes nothing is folded into.
        notes: What has no effect, or another effect than one might think.
    """

    layers: Mapping[str, LayerSettings]
    tensors: tuple[TensorSettings, ...] = ()
    skip_fusion: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def resolve(config: AmctConfig, layers: Layers | Mapping[str, Layer], *, per_channel_linear: bool = False) -> Resolved:
    """Find out what holds for every layer.

    Args:
        config: The configuration.
        layers: The layers of the model.
        per_channel_linear: Beyond AMCT: Gemm and MatMul have one scale per output channel where nobody says
            otherwise, and may be told to. AMCT's own record parser does not read the result.

    Raises:
        RecipeError: If the configuration names what the model or AMCT does not have; it names all problems.
    """
    known = layers if isinstance(layers, Layers) else Layers.of(layers)
    return _Resolver(config, known, per_channel_linear).run()


@dataclass(frozen=True, slots=True)
class _Level:
    """What one level of the configuration says of a layer."""

    kind: Literal["layer", "type", "common"]
    calibration: Calibration
    line: int = 0


@dataclass
class _Resolver:
    config: AmctConfig
    known: Layers
    per_channel_linear: bool
    problems: list[Problem] = field(default_factory=list)
    plain_notes: list[str] = field(default_factory=list)
    grouped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    naming: Naming = field(init=False)
    skipped: set[str] = field(default_factory=set)

    def run(self) -> Resolved:
        self.naming = Naming(self.known, self.problems, self.plain_notes)
        self.skipped = self._skipped()
        of_layer, of_type = self._overrides()
        settings = {
            name: self._layer(layer, [*of_layer[name], *of_type[name]], enabled=name not in self.skipped)
            for name, layer in self.known.quantizable.items()
        }
        tensors = tuple(self._tensors())
        fusion = tuple(found for m in self.config.skip_fusion_layers if (found := self.naming.node(m)))
        refuse(self.config.source, self.problems)
        return Resolved(settings, tensors, fusion, tuple(self._notes()))

    # ---- names -----------------------------------------------------------------------------

    def _skipped(self) -> set[str]:
        skipped = {name for mention in self.config.skip_layer_types for name in self.naming.of_type(mention)}
        for mention in self.config.skip_layers:
            name = self.naming.node(mention)
            if name in self.known.others:
                self.plain_notes.append(f"skip_layers: {name!r} stays float anyway")
            skipped.add(name)
        return skipped

    def _overrides(self) -> tuple[dict[str, list[_Level]], dict[str, list[_Level]]]:
        """What is different, by layer; what is written later comes first, because it wins."""
        of_layer: dict[str, list[_Level]] = defaultdict(list)
        of_type: dict[str, list[_Level]] = defaultdict(list)
        for override in self.config.types:
            for name in self.naming.of_type(override.match):
                of_type[name].insert(0, _Level("type", override.calibration, override.match.line))
        for override in self.config.layers:
            name = self.naming.layer(override.match)
            if of_layer[name] and name:
                self.plain_notes.append(
                    f"override_layer_configs names {name!r} twice: what is written later wins where both say something"
                )
            of_layer[name].insert(0, _Level("layer", override.calibration, override.match.line))
        return of_layer, of_type

    # ---- one layer -------------------------------------------------------------------------

    def _layer(self, layer: Layer, overrides: list[_Level], *, enabled: bool) -> LayerSettings:
        levels = [*overrides, *self._common(layer)]
        return LayerSettings(
            enabled,
            self._activation(layer, levels),
            self._weight(layer, levels) if layer.weight_rank is not None or layer.op_type == "AveragePool" else None,
            self._dmq(layer, levels),
        )

    def _common(self, layer: Layer) -> Iterator[_Level]:
        """The weak levels: non-uniform quantization of all that can have it comes before the common algorithm."""
        if self.config.nuq is not None and _takes_nuq(layer):
            yield _Level("common", Calibration(weight=self.config.nuq.algorithm))
        yield _Level("common", self.config.common)

    def _not_here(self, layer: Layer, level: _Level, what: str, instead: str, *, strict: tuple[str, ...]) -> None:
        """Say that something does not fit a layer: a problem where it was asked for by name, else a note."""
        if layer.name in self.skipped:
            return
        if level.kind in strict:
            self.problems.append(Problem(level.line, f"layer {layer.name!r} ({layer.op_type}): {what}"))
        else:
            self.grouped[f"{what}; {instead}"].append(layer.name)

    def _activation(self, layer: Layer, levels: list[_Level]) -> ActivationAlgorithm:
        given = [(level, level.calibration.activation) for level in levels if level.calibration.activation is not None]
        level, found = given[0] if given else (levels[-1], Ifmr())
        if found.num_bits == 16 and not takes_int16(layer):
            what = "dst_type INT16 is for Conv and ConvTranspose with 4-D weights, Gemm with a bias, and MatMul"
            self._not_here(layer, level, what, "INT8 for", strict=("layer",))
            found = replace(found, num_bits=8)
        wishes = [(lv, alg.asymmetric) for lv, alg in given if alg.asymmetric is not None]
        level, asymmetric = wishes[0] if wishes else (levels[-1], self.config.activation_offset)
        if asymmetric and (layer.op_type == "Conv" and layer.weight_rank == 5):
            self._not_here(layer, level, "activations of a Conv3d are symmetric only", "for", strict=("layer",))
            asymmetric = False
        if asymmetric and _two_variables(layer):
            what = "the inputs of a MatMul of two variables are symmetric only"
            self._not_here(layer, level, what, "for", strict=("layer",))
            asymmetric = False
        return replace(found, asymmetric=asymmetric)

    def _weight(self, layer: Layer, levels: list[_Level]) -> WeightAlgorithm:
        given = ((level, level.calibration.weight) for level in levels if level.calibration.weight is not None)
        level, found = next(given, (levels[-1], Arq()))
        if layer.op_type == "AveragePool":
            self._channel_wise(layer, level, found)
            return Arq(channel_wise=False)
        if isinstance(found, Ada) and not _takes_ada(layer):
            what = "ada_quantize is for Conv and ConvTranspose with 4-D weights, Gemm, and MatMul"
            self._not_here(layer, level, what, "arq_quantize for", strict=("layer",))
            found = Arq()
        if isinstance(found, Nuq) and not _takes_nuq(layer):
            what = "nuq_quantize is for Gemm, and Conv with a 4-D weight, dilation 1 and one group"
            self._not_here(layer, level, what, "arq_quantize for", strict=("layer",))
            found = Arq()
        if isinstance(found, Nuq):
            return found
        if found.num_bits in (6, 7) and not (layer.op_type == "Conv" and layer.weight_rank == 4):
            what = f"{found.num_bits} bits for weights take effect in Conv with a 4-D weight only"
            self._not_here(layer, level, what, "8 bits for", strict=())
            found = replace(found, num_bits=8)
        return replace(found, channel_wise=self._channel_wise(layer, level, found))

    def _channel_wise(self, layer: Layer, level: _Level, found: WeightAlgorithm) -> bool:
        linear = layer.op_type in ("Gemm", "MatMul") and self.per_channel_linear
        possible = layer.op_type in CHANNEL_WISE or linear
        if isinstance(found, Nuq) or found.channel_wise is None:
            return possible
        if found.channel_wise and not possible:
            what = "channel_wise true is for Conv and ConvTranspose"
            self._not_here(layer, level, what, "one scale per tensor for", strict=("layer", "type"))
        return found.channel_wise and possible

    def _dmq(self, layer: Layer, levels: list[_Level]) -> float | None:
        given = ((level, level.calibration.dmq) for level in levels if level.calibration.dmq is not None)
        level, strength = next(given, (levels[-1], None))
        if strength is not None and layer.weight_rank is None:
            what = "dmq_balancer is for layers with a constant weight"
            self._not_here(layer, level, what, "not balanced:", strict=("layer",))
            return None
        return strength

    # ---- tensors ---------------------------------------------------------------------------

    def _tensors(self) -> Iterator[TensorSettings]:
        seen: dict[str, int] = {}
        for wish in self.config.tensors:
            name = self.naming.node(wish.layer)
            node = self.known.nodes.get(name)
            if node is None:
                continue
            if node.op_type not in TENSOR_QUANTIZABLE:
                text = f"tensor_quantize is for MaxPool and Add; layer {name!r} is a {node.op_type}"
                self.problems.append(Problem(wish.layer.line, text))
            elif wish.input_index >= (2 if node.op_type == "Add" else 1):
                text = f"tensor_quantize: layer {name!r} ({node.op_type}) has no data input {wish.input_index}"
                self.problems.append(Problem(wish.layer.line, text))
            elif name in seen:
                text = f"tensor_quantize names layer {name!r} already in line {seen[name]}; AMCT quantizes one input"
                self.problems.append(Problem(wish.layer.line, text))
            else:
                seen[name] = wish.layer.line
                wanted = wish.activation.asymmetric
                decided = self.config.activation_offset if wanted is None else wanted
                yield TensorSettings(name, wish.input_index, replace(wish.activation, asymmetric=decided))

    # ---- notes -----------------------------------------------------------------------------

    def _notes(self) -> Iterator[str]:
        config = self.config
        yield from config.warnings
        yield from dict.fromkeys(self.plain_notes)
        if config.joint_quant:
            yield "joint_quant has no effect: it is for hardware that shifts accumulators"
        if config.nuq is not None:
            yield "nuq_config.mapping_file has no effect: all layers that can be non-uniform are"
        if config.enable_auto_nuq:
            yield "enable_auto_nuq has no effect: only ATC chooses non-uniform layers by itself"
        calibrations = (config.common, *(o.calibration for o in (*config.types, *config.layers)))
        if any(c.weight_compress_only for c in calibrations):
            yield "weight_compress_only has no effect: activations are quantized too"
        for text, names in self.grouped.items():
            yield f"{text} {listed(names)}"


def takes_int16(layer: Layer) -> bool:
    """Whether AMCT gives the activations of a layer 16 bits."""
    if layer.op_type in ("Conv", "ConvTranspose"):
        return layer.weight_rank == 4
    return layer.weight_rank is not None and (layer.op_type == "MatMul" or (layer.op_type == "Gemm" and layer.bias))


def _takes_ada(layer: Layer) -> bool:
    if layer.op_type in ("Conv", "ConvTranspose"):
        return layer.weight_rank == 4
    return layer.op_type in ("Gemm", "MatMul")


def _takes_nuq(layer: Layer) -> bool:
    plain = layer.op_type == "Conv" and layer.weight_rank == 4 and layer.group == 1 and not layer.dilated
    return plain or layer.op_type == "Gemm"


def _two_variables(layer: Layer) -> bool:
    return layer.op_type == "MatMul" and layer.weight_rank is None
