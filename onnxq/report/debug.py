"""A debug report: every tensor of a quantized model beside the float model's, round by round, in CSV files.

The files, their columns and their definitions are those of MindSpore Lite's converter (``debug_info_save_path``).
Two things differ. A folder that does not exist is made, if the one it is to be in does. And cells that say how far
a tensor is from the float model's stay empty where the float model has no such tensor.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.calib.chunks import samples
from onnxq.calib.feeds import Feed
from onnxq.calib.live import UniformReader
from onnxq.calib.readers import DataLike
from onnxq.errors import DataError, GraphError
from onnxq.passes._inputs import inputs_of
from onnxq.pipeline import reader_for
from onnxq.report.debug_ascend import read_fake_quant
from onnxq.report.debug_files import (
    PARAM_COLUMNS,
    PARAMS,
    ROUND_COLUMNS,
    SUMMARY,
    SUMMARY_COLUMNS,
    DebugFiles,
    round_name,
    round_rows,
    summary_rows,
    write_rows,
)
from onnxq.report.debug_params import param_rows
from onnxq.report.debug_reading import read_quantized
from onnxq.report.debug_rows import find_places
from onnxq.report.debug_run import Runs
from onnxq.report.debug_standins import find_stand_ins
from onnxq.report.files import atomic_text

if TYPE_CHECKING:
    from onnxq.graph import GraphModel
    from onnxq.result import Result

Progress = Callable[[str, int, int | None], None]


def write_debug(
    result: Result,
    data: DataLike | None,
    folder: str | Path,
    *,
    rounds: int | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> DebugFiles:
    """Write a debug report about a quantized model.

    ``round_<i>.csv`` describes every float tensor in the order in which the quantized model runs, inputs of a node and
    then its outputs: once as the float model has it (Origin), once as the quantized model has it (Dequant).
    ``output_summary.csv`` has the cosine similarity of the model's outputs, ``quant_param.csv`` all scales and zero
    points. Each file is complete or absent; files of these names are replaced. Memory grows neither with the rounds
    nor, beyond a budget, with the size of the activations.

    Args:
        result: What `onnxq.quantize` gave.
        data: Samples, as for `onnxq.quantize`, one for each round; None for one round with values from 0.1 to 1.
        folder: Where to; made if the folder it is in exists.
        rounds: At most so many rounds; None for all samples, or for one where only weights have codes.
        threads: Threads; 0 for all cores.
        progress: Told which round it is.

    Raises:
        DataError: If the folder cannot be made, or the data do not fit the model.
        GraphError: If nothing was quantized, or a model for which there is no float model to compare with.
        OnnxqError: If a file cannot be written.
    """
    original = result.prepared or result.original
    if original is None or not result.changed:
        raise GraphError("nothing was quantized: there is nothing to compare with the float model")
    path = _made(Path(folder))
    feeds, total = _feeds(result, original, data, _limit(result, rounds))
    reading = read_quantized(result.twin or result.graph)
    if result.twin is not None:
        read_fake_quant(reading, original, result)
    stand_ins = find_stand_ins(original, reading, result) if result.prepared is not None else {}
    layout = find_places(original, reading, stand_ins)
    runs = Runs(original, reading, layout.measures, threads=threads)
    summary = path / SUMMARY
    with contextlib.suppress(FileNotFoundError):
        summary.unlink()  # one of an earlier run would say that this one is complete
    written: list[Path] = []
    with atomic_text(summary) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*SUMMARY_COLUMNS, ""])
        for index, feed in enumerate(feeds):
            if progress is not None:
                progress("debug report", index, total)
            found = runs.round(feed)
            written.append(path / round_name(index))
            write_rows(written[-1], ROUND_COLUMNS, round_rows(layout, found))
            writer.writerows([*row, ""] for row in summary_rows(layout, index, found))
        params = path / PARAMS
        count = write_rows(params, PARAM_COLUMNS, param_rows(layout, reading, result, runs.shapes))
        if not count:
            params.unlink()
    return DebugFiles(path, summary, tuple(written), params if count else None)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is none and cannot be made one.

    Raises:
        DataError: If it is a file, or the folder it is to be in does not exist.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder for the debug report")
    if not folder.parent.is_dir():
        raise DataError(f"{folder}: there is no folder {folder.parent}; create it first")


def _made(folder: Path) -> Path:
    check_folder(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as err:
        raise DataError(f"{folder}: cannot be made a folder: {err.strerror or err}") from err
    return folder


def _limit(result: Result, rounds: int | None) -> int | None:
    if rounds is not None:
        if rounds < 1:
            raise DataError(f"a debug report of {rounds} rounds; there must be at least one")
        return rounds
    return 1 if result.recipe.scheme.kind == "weight_only" else None


def _feeds(
    result: Result, original: GraphModel, data: DataLike | None, limit: int | None
) -> tuple[Iterator[Feed], int | None]:
    """One feed for each round, and how many they are, if known."""
    inputs = inputs_of(original)
    if data is None:
        made = UniformReader(inputs, limit or 1, result.recipe.calibration.seed)
        return iter(made), made.len_hint()
    reader, _ = reader_for(original, data, result.recipe)
    if reader is None:
        raise DataError("this model cannot be fed by a debug report: an input is no plain tensor")
    known = reader.len_hint()
    total = limit if known is None else min(known, limit or known)
    return itertools.islice(samples(reader, inputs), limit), total
