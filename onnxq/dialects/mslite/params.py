"""What a configuration file of converter_lite says, section by section, checked and complete.

A field is a key of the file: its default is what the converter takes where the key is absent, and its metadata say how
the value is read and what a user should know who gives it.

Source: MindSpore Lite, tools/converter/quantizer/quant_params.h and tools/converter/config_parser.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from onnxq.dialects.mslite import values
from onnxq.dialects.mslite.ini import DEFAULT, Entry, IniFile, parse_ini, read_bytes
from onnxq.dialects.problems import Problem, refuse
from onnxq.errors import nearest

WEIGHT_QUANT = "WEIGHT_QUANT"
FULL_QUANT = "FULL_QUANT"
DYNAMIC_QUANT = "DYNAMIC_QUANT"
T = TypeVar("T")


def _key(read: values.Read, default: T, note: str = "") -> T:
    """A key of the file.

    Args:
        read: Reads its value.
        default: Its value where it is absent.
        note: What a user should know who gives it another value.
    """
    result: T = field(default=default, metadata={"read": read, "note": note})
    return result


_OF_FILE = "belongs to the converter's own file format and has no effect on ONNX"


@dataclass(frozen=True, slots=True)
class CommonParam:
    """``[common_quant_param]``."""

    quant_type: str | None = _key(values.one_of(WEIGHT_QUANT, FULL_QUANT, DYNAMIC_QUANT), None)
    bit_num: int = _key(values.whole(0, 16), 8)
    min_quant_weight_size: int = _key(values.whole(0), 0)
    min_quant_weight_channel: int = _key(values.whole(0), 16)
    skip_quant_node: tuple[str, ...] = _key(values.names, ())
    debug_info_save_path: str | None = _key(values.text_of, None)
    enable_encode: bool = _key(values.flag, True)
    workspace: str = _key(values.text_of, "", "models of more than 2 GB need no workspace here; it is not used")
    thread_num: int = _key(values.whole(0), 4, "all cores are used; it has no effect on the result")


@dataclass(frozen=True, slots=True)
class MixedBitParam:
    """``[mixed_bit_weight_quant_param]``."""

    init_scale: float = _key(values.between(0, 1), 0.02)
    auto_tune: bool = _key(values.flag, False)
    use_cv_data: bool = _key(
        values.flag, False, "there are no built-in images; the first calibration sample is used, or a random one"
    )
    max_iterations: int = _key(values.whole(40), 40)


@dataclass(frozen=True, slots=True)
class FullParam:
    """``[full_quant_param]``."""

    activation_quant_method: str = _key(values.one_of("MAX_MIN", "KL", "REMOVAL_OUTLIER"), "MAX_MIN")
    bias_correction: bool = _key(values.flag, True)
    per_channel: bool = _key(values.flag, True)
    target_device: str | None = _key(values.one_of("NVGPU", "DSP", "KIRIN", "ASCEND"), None)
    smooth_alpha: float = _key(
        values.number, 0.5, "activations are not smoothed; a recipe's balance does that for target ascend"
    )
    enable_smooth_shift: bool = _key(values.flag, False, "activations are not shifted; it has no effect")
    enable_all_ops: bool = _key(values.flag, False, "the target decides which operators get codes; it has no effect")


@dataclass(frozen=True, slots=True)
class DataParam:
    """``[data_preprocess_param]``."""

    calibrate_path: tuple[tuple[str, str], ...] = _key(values.folders, ())
    calibrate_size: int | None = _key(values.whole(1), None)
    input_type: str | None = _key(values.one_of("IMAGE", "BIN"), None)
    image_to_format: str | None = _key(values.one_of("RGB", "GRAY", "BGR"), None)
    normalize_mean: tuple[float, ...] = _key(values.vector, ())
    normalize_std: tuple[float, ...] = _key(values.vector, ())
    resize_width: int | None = _key(values.whole(1), None)
    resize_height: int | None = _key(values.whole(1), None)
    resize_method: str | None = _key(values.one_of("LINEAR", "NEAREST", "CUBIC"), None)
    center_crop_width: int | None = _key(values.whole(1), None)
    center_crop_height: int | None = _key(values.whole(1), None)


@dataclass(frozen=True, slots=True)
class WeightParam:
    """``[weight_quant_param]``."""

    dequant_strategy: str | None = _key(values.one_of("ON_THE_FLY"), None)
    quant_strategy: str = _key(
        values.one_of("MAX_MIN", "GPTQ"), "MAX_MIN", "GPTQ is not available; weights are rounded to the nearest code"
    )
    update_mindir: bool = _key(values.flag, True, _OF_FILE)
    max_segments: int = _key(values.whole(1), 1, _OF_FILE)
    per_channel: bool = _key(values.flag, True)
    bias_correction: bool = _key(values.flag, True)


@dataclass(frozen=True, slots=True)
class TransformParam:
    """``[transform_quant_param]``."""

    export_precision_mode: str = _key(values.one_of("QUANT", "FLOAT32"), "QUANT")


@dataclass(frozen=True, slots=True)
class DynamicParam:
    """``[dynamic_quant_param]``."""

    quant_strategy: str = _key(
        values.one_of("ALWC", "ACWL"), "ALWC", "activations have one scale each, weights one as well"
    )


@dataclass(frozen=True)
class MsliteConfig:
    """A whole configuration.

    Attributes:
        common: What holds for every kind of quantization, and which one it is.
        mixed_bit: How the step sizes of mixed widths are searched.
        full: Full quantization.
        data: Calibration data.
        weight: Weight quantization.
        transform: What the weights are written as.
        dynamic: Dynamic quantization.
        source: The file, for messages.
        lines: The line of every key that is given, by section and key.
        notes: What has no effect.
    """

    common: CommonParam = CommonParam()
    mixed_bit: MixedBitParam = MixedBitParam()
    full: FullParam = FullParam()
    data: DataParam = DataParam()
    weight: WeightParam = WeightParam()
    transform: TransformParam = TransformParam()
    dynamic: DynamicParam = DynamicParam()
    source: str = ""
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def where(self, section: str, key: str) -> str:
        """The place of a key: ``quant.cfg: line 7: bit_num``; of the section where the key is not given."""
        line = self.lines.get((section, key))
        parts = [self.source, *([] if line is None else [f"line {line}"])]
        return ": ".join([*filter(None, parts), key])


COMMON, FULL, DATA = "common_quant_param", "full_quant_param", "data_preprocess_param"
MIXED, WEIGHT = "mixed_bit_weight_quant_param", "weight_quant_param"
SECTIONS: Mapping[str, tuple[str, type[Any]]] = {
    COMMON: ("common", CommonParam),
    MIXED: ("mixed_bit", MixedBitParam),
    FULL: ("full", FullParam),
    DATA: ("data", DataParam),
    WEIGHT: ("weight", WeightParam),
    "transform_quant_param": ("transform", TransformParam),
    "dynamic_quant_param": ("dynamic", DynamicParam),
}
"""The field of `MsliteConfig` and the type of each section."""
_ELSEWHERE = frozenset({"registry", "acl_option_cfg_param", "acl_init_options", "acl_build_options", "micro_param"}) | {
    "cpu_option_cfg_param", "graph_kernel_param", "model_param", "aoe_global_options", "aoe_tuning_options",
}  # fmt: skip
"""Sections of the converter that are not about quantization."""


def load_config(path: str | os.PathLike[str]) -> MsliteConfig:
    """Read a configuration file.

    Args:
        path: The file.

    Raises:
        RecipeError: If it cannot be read or does not fit; it names all problems and their lines.
    """
    return parse_config(read_bytes(Path(path)), source=os.fspath(path))


def parse_config(content: bytes | str, *, source: str = "configuration") -> MsliteConfig:
    """Parse a configuration.

    Args:
        content: The file.
        source: Its name, for messages.

    Raises:
        RecipeError: If it does not fit; it names all problems and their lines.
    """
    ini = parse_ini(content, known=frozenset(SECTIONS))
    problems = list(ini.problems)
    notes = list(_unknown_sections(ini))
    parts: dict[str, Any] = {}
    for name, (attribute, kind) in SECTIONS.items():
        entries = ini.sections.get(name, {})
        parts[attribute] = _section(kind, name, entries, problems)
        notes += _notes(parts[attribute], entries)
    lines = {(name, e.key): e.line for name, entries in ini.sections.items() for e in entries.values()}
    config = MsliteConfig(**parts, source=source, lines=lines, notes=tuple(notes))
    problems += _together(config)
    refuse(source, problems)
    return config


def is_mslite_config(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a configuration of converter_lite's: it opens one of its sections on a line of its own.

    A file that cannot be read is none; whoever reads it next says why.
    """
    try:
        data = Path(path).read_bytes()
    except OSError:
        return False
    opened = {line.replace(b'"', b"").strip(b" \r") for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n")}
    return any(f"[{name}]".encode() in opened for name in SECTIONS)


def _section(kind: type[T], name: str, entries: Mapping[str, Entry], problems: list[Problem]) -> T:
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for entry in entries.values():
        if entry.key not in known:
            near = _near_key(entry.key, name)
            problems.append(Problem(entry.line, f"{entry.key}: unknown key in [{name}]{near}"))
            continue
        try:
            found[entry.key] = known[entry.key].metadata["read"](entry.value)
        except ValueError as err:
            problems.append(Problem(entry.line, f"{entry.key}: {err}"))
    return kind(**found)


def _near_key(key: str, section: str) -> str:
    """Where the key belongs, or what it may have been meant for."""
    for name, (_, kind) in SECTIONS.items():
        if any(f.name == key for f in fields(kind)):
            return f"; it belongs to [{name}]"
    known = [f.name for f in fields(SECTIONS[section][1])]
    return nearest(key, known, count=1) or "; known keys: " + ", ".join(known)


def _notes(part: Any, entries: Mapping[str, Entry]) -> Iterator[str]:  # noqa: ANN401 - one of the sections
    for f in fields(part):
        if f.name in entries and f.metadata["note"] and getattr(part, f.name) != f.default:
            yield f"line {entries[f.name].line}: {f.name}: {f.metadata['note']}"


def _unknown_sections(ini: IniFile) -> Iterator[str]:
    for name, entries in ini.sections.items():
        if name in SECTIONS or not name:
            continue
        if name == DEFAULT:
            line = min(entry.line for entry in entries.values())
            yield f"line {line}: {', '.join(entries)}: in front of any section, where keys have no effect" + (
                "; put [common_quant_param] above" if "quant_type" in entries else ""
            )
        elif name in _ELSEWHERE:
            yield f"line {ini.lines[name]}: [{name}] is not about quantization and has no effect"
        else:
            yield f"line {ini.lines[name]}: [{name}] is no section of the converter's; ignored{nearest(name, SECTIONS)}"


def _together(config: MsliteConfig) -> Iterator[Problem]:
    """What each value allows by itself, but not with the others."""
    common, data = config.common, config.data
    if common.quant_type in (FULL_QUANT, DYNAMIC_QUANT) and common.bit_num != 8:
        text = f"bit_num: found {common.bit_num}; must be 8 for {common.quant_type} (0 to 16 are for {WEIGHT_QUANT})"
        yield Problem(config.lines.get((COMMON, "bit_num"), 0), text)
    if common.quant_type == WEIGHT_QUANT and not common.enable_encode and common.bit_num not in (8, 16):
        text = f"enable_encode: must be true for bit_num {common.bit_num}; only 8 and 16 can be stored as they are"
        yield Problem(config.lines.get((COMMON, "enable_encode"), 0), text)
    if data.input_type == "IMAGE":
        yield from _images(config)


def _images(config: MsliteConfig) -> Iterator[Problem]:
    data, lines = config.data, config.lines
    pairs = [("center_crop_width", "center_crop_height"), ("normalize_mean", "normalize_std")]
    if data.resize_method is not None:
        pairs += [("resize_method", "resize_width"), ("resize_method", "resize_height")]
    for pair in pairs:
        given = [key for key in pair if getattr(data, key) not in (None, ())]
        if len(given) == 1:
            missing = pair[1] if given[0] == pair[0] else pair[0]
            yield Problem(lines[DATA, given[0]], f"{given[0]}: needs {missing} as well")
    channels = 1 if data.image_to_format == "GRAY" else 3
    for key in ("normalize_mean", "normalize_std"):
        found = len(getattr(data, key))
        if found not in (0, channels):
            yield Problem(lines[DATA, key], f"{key}: has {found} numbers; must be {channels}, one for each channel")
    if any(value <= 0 for value in data.normalize_std):
        text = "normalize_std: pixels are divided by these numbers, which must be greater than 0"
        yield Problem(lines[DATA, "normalize_std"], text)
    if data.normalize_mean and max(data.normalize_mean) > 255:
        text = "normalize_mean: is subtracted from pixels from 0 to 255 and must be less"
        yield Problem(lines[DATA, "normalize_mean"], text)
