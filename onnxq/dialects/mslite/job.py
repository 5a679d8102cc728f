"""What converter_lite does: a model and a configuration in, a quantized model and its reports out."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxq import GraphModel, load_model, save_model
from onnxq.ascend import deploy_to_qdq
from onnxq.calib.readers import Folders, Layout
from onnxq.dialects.amct.deployment import write_companions
from onnxq.dialects.mslite.flags import Flags, parse_shapes
from onnxq.dialects.mslite.params import COMMON, DATA, FULL_QUANT, WEIGHT_QUANT, MsliteConfig, load_config
from onnxq.dialects.mslite.recipe import needs_data, notes_of, to_data, to_recipe
from onnxq.dialects.problems import Problem, refuse
from onnxq.errors import DataError, ModelError, RecipeError
from onnxq.pipeline import Result, quantize
from onnxq.recipe import CalibrationConfig, InvalidRecipe, Recipe
from onnxq.report.debug import check_folder, write_debug
from onnxq.report.debug_files import DebugFiles
from onnxq.report.files import disk_bytes, model_files
from onnxq.shapes import fix_shapes

Progress = Callable[[str, int, int | None], None]
SUFFIX = ".onnx"
CalibrationData = Path | Folders
"""A path, or one folder for each input."""


@dataclass(frozen=True)
class MsliteJob:
    """What a configuration means.

    Attributes:
        config: The configuration.
        recipe: The recipe; None where nothing is to be quantized.
        data: The calibration data it names, where they make a difference; None where there are none.
        notes: What has no effect, or another one than one might think.
        debug_dir: Folder of the debug report; None for no report.
    """

    config: MsliteConfig
    recipe: Recipe | None
    data: Folders | None = None
    notes: tuple[str, ...] = ()
    debug_dir: Path | None = None

    @property
    def wanted(self) -> str:
        """What the configuration asks for, in its own words."""
        common, full = self.config.common, self.config.full
        if common.quant_type is None:
            return "nothing"
        if common.quant_type == FULL_QUANT:
            return f"{FULL_QUANT}, {full.activation_quant_method}, {full.target_device or 'no target_device'}"
        width = f", {common.bit_num or 'mixed'} bits" if common.quant_type == WEIGHT_QUANT else ""
        return f"{common.quant_type}{width}"

    def reading(self, wanted: CalibrationConfig) -> MsliteJob:
        """The same with data read as a recipe says that was made of this one's and changed.

        Args:
            wanted: How data are read.
        """
        if self.data is None:
            return self
        layouts = wanted.bin_layout or self.data.layouts
        data = replace(self.data, preprocess=wanted.preprocess, layouts=layouts, samples=wanted.samples)
        return replace(self, data=data)

    def without_data(self) -> MsliteJob:
        """The same for data from elsewhere."""
        if not self.config.data.calibrate_path:
            return self
        note = "calibrate_path is not read: there are other data"
        return replace(self, data=None, notes=(*self.notes, note))

    def require_recipe(self) -> Recipe:
        """The recipe.

        Raises:
            RecipeError: If nothing is to be quantized.
        """
        if self.recipe is None:
            raise RecipeError(f"{self.config.source}: has no quant_type in [{COMMON}]; nothing can be quantized")
        return self.recipe

    def require_data(self) -> None:
        """See to it that there are data where there must be some.

        Raises:
            RecipeError: If there are none.
        """
        if self.data is None and self.config.common.quant_type == FULL_QUANT:
            where = self.config.where(DATA, "calibrate_path")
            raise RecipeError(f"{where}: is missing; {FULL_QUANT} needs calibration data, such as input:/data/images")

    def quantize(
        self, model: str | os.PathLike[str] | GraphModel, *, threads: int = 0, progress: Progress | None = None
    ) -> Result:
        """Quantize a model.

        Args:
            model: The float model; it is not changed.
            threads: Threads of calibration, 0 for all cores.
            progress: Told how it is going.

        Raises:
            RecipeError: If nothing is to be quantized, or the configuration names nodes that the model does not have.
            OnnxqError: If the model or the data cannot be used.
        """
        recipe = self.require_recipe()
        self.require_data()
        with self.explained():
            return quantize(model, self.data, recipe=recipe, threads=threads, progress=progress)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Tells errors about the recipe or the data as errors about the configuration they come from.

        Raises:
            RecipeError: If the configuration names nodes that the model does not have.
            DataError: If the data that it names do not fit.
        """
        try:
            yield
        except InvalidRecipe as err:
            raise self._explain(err) from None
        except DataError as err:
            if self.data is None:
                raise
            raise DataError(f"{self.config.where(DATA, 'calibrate_path')}: {err}") from err

    def _explain(self, err: InvalidRecipe) -> RecipeError:
        line = self.config.lines.get((COMMON, "skip_quant_node"), 0)
        problems = []
        for problem in err.problems:
            if problem.path[:1] != ("rules",):
                return err
            problems.append(Problem(line, f"skip_quant_node: {problem.text}"))
        try:
            refuse(self.config.source, problems)
        except RecipeError as told:
            return told
        return err


def prepare(config: str | os.PathLike[str] | MsliteConfig, *, layout: Layout | None = None) -> MsliteJob:
    """Read a configuration and find out what it means.

    Args:
        config: The file, or what it says.
        layout: Order of the numbers in .bin files of 4 dimensions; None for NHWC, as the converter has it.

    Raises:
        RecipeError: If it does not fit; it names all problems and their lines.
    """
    found = config if isinstance(config, MsliteConfig) else load_config(config)
    debug = found.common.debug_info_save_path
    wanted = needs_data(found) or debug is not None
    data = to_data(found, layout) if wanted else None
    return MsliteJob(found, to_recipe(found), data, notes_of(found), None if debug is None else Path(debug))


@dataclass(frozen=True)
class Conversion:
    """What a conversion gave.

    Attributes:
        model: The float model.
        files: What was written; the model to run is the first.
        result: How it was quantized; None where it was not to be.
        job: What the configuration means; None where there is none.
        debug: The debug report; None where there is none.
        notes: What a user should know, a sentence each.
        bytes_before: Size of the float model with its external data.
        bytes_after: Size of the model to run.
        seconds: Wall time.
    """

    model: Path
    files: tuple[Path, ...]
    result: Result | None
    job: MsliteJob | None
    debug: DebugFiles | None
    notes: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    seconds: float

    @property
    def output(self) -> Path:
        """The model to run."""
        return self.files[0]

    @property
    def wanted(self) -> str:
        """What the configuration asks for, in its own words."""
        return "nothing" if self.job is None else self.job.wanted

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "model": str(self.model),
            "output": str(self.output),
            "files": [str(path) for path in self.files],
            "debug": None if self.debug is None else str(self.debug.folder),
            "quant_type": None if self.job is None else self.job.config.common.quant_type,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "seconds": round(self.seconds, 3),
            **({"changed": False} if self.result is None else self.result.to_dict()),
            "notes": list(self.notes),
        }


def convert_model(
    fmk: str,
    model_file: str | os.PathLike[str],
    output_file: str | os.PathLike[str],
    config_file: str | os.PathLike[str] | None = None,
    *,
    input_data_format: str | None = None,
    input_shape: str | Mapping[str, Sequence[int]] | None = None,
    flags: Flags | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a model as ``converter_lite --fmk= --modelFile= --outputFile= --configFile=`` does.

    Nothing is written unless all of the model can be. For ``target_device=ASCEND`` the output is a model with Q/DQ
    pairs, which runs anywhere; the deploy model, its twin, the fusion file and the record are written beside it.

    Args:
        fmk: ``ONNX``.
        model_file: The float model.
        output_file: Where to; ``.onnx`` is appended to a name that does not end so.
        config_file: The configuration; None quantizes nothing.
        input_data_format: NHWC or NCHW: the order of the numbers in binary files; None for NHWC.
        input_shape: Numbers for free dimensions, as the command line has them or by input name.
        flags: Further options of the command line.
        threads: Threads of calibration, 0 for all cores.
        progress: Told how it is going.

    Raises:
        OnnxqError: If anything that was given cannot be used; the message says what to do.
    """
    start = time.perf_counter()
    options = _options(flags or Flags(), fmk, input_data_format)
    model, output = Path(model_file), output_path(output_file)
    _check_output(model, output)
    shapes = parse_shapes(input_shape) if isinstance(input_shape, str) else dict(input_shape or {})
    job = None if config_file is None else prepare(config_file, layout=options.layout)
    _check_debug(job)
    source = fix_shapes(model, shapes) if shapes else model
    notes = [*options.notes(), *(("there is no configFile: nothing is quantized",) if job is None else job.notes)]
    result = None
    if job is not None and job.recipe is not None:
        result = job.quantize(source, threads=threads, progress=progress)
        notes += result.notes
    before = disk_bytes(model)
    files = _write(source, result, output)
    debug = None
    if job is not None and job.debug_dir is not None and result is not None and result.changed:
        debug = write_debug(result, job.data, job.debug_dir, threads=threads, progress=progress)
    seconds = time.perf_counter() - start
    told = tuple(dict.fromkeys(notes))
    return Conversion(model, files, result, job, debug, told, before, disk_bytes(output), seconds)


def _options(flags: Flags, fmk: str, input_data_format: str | None) -> Flags:
    options = replace(flags, fmk=fmk, input_data_format=input_data_format or flags.input_data_format)
    options.check()
    return options


def output_path(output_file: str | os.PathLike[str]) -> Path:
    """Where the model goes: the converter appends its own suffix, so ``.onnx`` is appended here."""
    text = os.fspath(output_file)
    return Path(text if text.lower().endswith(SUFFIX) else text + SUFFIX)


def _check_output(model: Path, output: Path) -> None:
    """Refuse an output that cannot be written or would overwrite what is read."""
    if not output.parent.is_dir():
        raise ModelError(f"{output}: there is no folder {output.parent}; create it first")
    if output.is_dir():
        raise ModelError(f"{output} is a folder; name a file in it")
    if not model.is_file():
        return  # reading it says so
    written = [output, output.with_name(output.name + ".data")]
    for used in model_files(model):
        for path in written:
            if path.exists() and used.exists() and path.samefile(used):
                raise ModelError(
                    f"{path} is {'read' if used == model else f'a weight file of {model}'}; give another output"
                )


def _check_debug(job: MsliteJob | None) -> None:
    """Refuse a folder for the debug report that cannot be made, before the long work."""
    if job is None or job.debug_dir is None:
        return
    try:
        check_folder(job.debug_dir)
    except DataError as err:
        raise RecipeError(f"{job.config.where(COMMON, 'debug_info_save_path')}: {err}") from err


def _write(source: Path | GraphModel, result: Result | None, output: Path) -> tuple[Path, ...]:
    """Write everything to a folder beside the output first, and move it when all of it is there."""
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        scratch = Path(folder) / output.name
        if result is None:
            save_model(load_model(source) if isinstance(source, Path) else source, scratch)
        elif result.twin is not None:
            _write_ascend(result, scratch)
        else:
            result.save(scratch)
        names = sorted(path.name for path in Path(folder).iterdir())
        for name in names:
            (Path(folder) / name).replace(output.with_name(name))
    others = [output.with_name(name) for name in names if name != output.name]
    return (output, *others)


def _write_ascend(result: Result, path: Path) -> None:
    """The runnable model with Q/DQ pairs, and what ATC needs beside it."""
    deploy = path.with_name(f"{path.stem}_deploy_model{path.suffix}")
    deploy_to_qdq(result.graph).save(path)
    result.save(deploy)
    write_companions(result, deploy)
