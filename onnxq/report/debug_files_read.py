"""Reads the files of a debug report, ours or MindSpore Lite's, one row after the other."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.errors import DataError, nearest
from onnxq.report.debug_files import PARAM_COLUMNS, PARAMS, ROUND_COLUMNS, SUMMARY, SUMMARY_COLUMNS, round_name


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a file.

    Attributes:
        where: Its file and number, for messages.
        cells: By column.
    """

    where: str
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def number(self, column: str) -> float | None:
        """A number; None where the cell is empty, NaN or infinite.

        Raises:
            DataError: If it is no number.
        """
        text = self.cells[column]
        if not text:
            return None
        try:
            value = float(text)
        except ValueError as err:
            raise DataError(f"{self.where}: {column} is {text!r}; must be a number") from err
        return value if math.isfinite(value) else None

    def one_of(self, column: str, *known: str) -> str:
        """A cell that must be one of a few words.

        Raises:
            DataError: If it is not.
        """
        if self.cells[column] not in known:
            raise DataError(f"{self.where}: {column} is {self.cells[column]!r}; must be {' or '.join(known)}")
        return self.cells[column]


def read_summary(folder: Path) -> Iterator[Record]:
    """The lines of ``output_summary.csv``.

    Raises:
        DataError: If it is missing or damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; name the folder of a debug report (--debug-dir)")
    path = folder / SUMMARY
    if not path.exists():
        raise DataError(f"{folder}: there is no {SUMMARY}; this is no debug report, or one that was interrupted")
    return _records(path, SUMMARY_COLUMNS)


def read_round(folder: Path, number: int) -> Iterator[Record]:
    """The lines of ``round_<number>.csv``.

    Raises:
        DataError: If it is missing or damaged.
    """
    path = folder / round_name(number)
    if not path.exists():
        raise DataError(f"{folder}: {SUMMARY} tells of round {number}, but there is no {path.name}; write it anew")
    return _records(path, ROUND_COLUMNS)


def read_params(folder: Path) -> Iterator[Record]:
    """The lines of ``quant_param.csv``; none where there is no such file, which may be.

    Raises:
        DataError: If it is damaged.
    """
    path = folder / PARAMS
    return _records(path, PARAM_COLUMNS) if path.exists() else iter(())


def _records(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    wanted = [column for column in columns if column]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = _header(path, next(lines, []), wanted)
            for cells in lines:
                where = f"{path}, line {lines.line_num}"
                if len(cells) != len(header):
                    raise DataError(f"{where}: {len(cells)} cells, {len(header)} columns; the file is damaged")
                yield Record(where, dict(zip(header, cells, strict=True)))
    except UnicodeDecodeError as err:
        raise DataError(f"{path}: not a text file: {err.reason}") from err
    except csv.Error as err:
        raise DataError(f"{path}: not a CSV file: {err}") from err
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror or err}") from err


def _header(path: Path, found: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns in the file's order, in our spelling: it has changed between versions of the converter."""
    spelling = {column.lower(): column for column in wanted}
    header = [spelling.get(column.strip().lower(), column) for column in found]
    missing = [column for column in wanted if column not in header]
    if missing:
        hint = nearest(missing[0], header, count=1) if header else ""
        raise DataError(f"{path}: there is no column {missing[0]!r}{hint}; this is no file of a debug report")
    return header
