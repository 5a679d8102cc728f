"""What the benchmarks share: options, tables, and functions that run in a process of their own."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort
from rich.console import Console
from rich.table import Table as RichTable

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

Value = str | float | int | None
Row = dict[str, Value]


class ChildError(RuntimeError):
    """A measurement failed in its process."""


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        zoo: Folder with real models and images, or None: then only the bundled models are measured.
        rounds: How often measurements that alternate are repeated.
        peer_rounds: The same for slow measurements of onnxruntime.quantization; 0 leaves them out.
        threads: Threads of every session.
        quick: Small sizes, to see that the scripts work; the figures mean nothing then.
        only: Names of the models to measure; empty for all.
    """

    zoo: Path | None = None
    rounds: int = 5
    peer_rounds: int = 2
    threads: int = 2
    quick: bool = False
    only: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        """Whether a model is to be measured."""
        return not self.only or any(part in name for part in self.only)


@dataclass(frozen=True)
class Table:
    """Figures, one mapping per row; a column is what any row has."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The columns in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def show(self, console: Console) -> None:
        """Print it."""
        table = RichTable(title=self.title, title_justify="left")
        columns = self.columns
        for name in columns:
            numbers = any(isinstance(row.get(name), (int, float)) for row in self.rows)
            table.add_column(name, justify="right" if numbers else "left")
        for row in self.rows:
            table.add_row(*(_text(row.get(name)) for name in columns))
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}", style="dim", markup=False)
        console.print()


def _text(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


Benchmark = Callable[[Options], list[Table]]


def main(benchmarks: Sequence[Benchmark], description: str | None) -> None:
    """Run benchmarks as a command: print tables, and write them as JSON where that is asked for."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--zoo", type=Path, metavar="DIR", help="folder of real models; default $ONNXQ_ZOO")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of alternated measurements")
    parser.add_argument("--peer-rounds", type=int, default=2, help="the same for slow peers; 0: without them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that the scripts work")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="parts of names of models to measure")
    args = parser.parse_args()
    zoo = args.zoo or find_zoo()
    options = Options(zoo, args.rounds, args.peer_rounds, args.threads, args.quick, tuple(args.only))
    console = Console(width=None if sys.stdout.isatty() else 180)
    facts = machine()
    console.print("  ".join(f"{key}: {value}" for key, value in facts.items()), style="dim", markup=False)
    if zoo is None:
        console.print("no zoo of real models ($ONNXQ_ZOO): bundled models only", style="dim")
    tables: list[Table] = []
    for benchmark in benchmarks:
        for table in benchmark(options):
            table.show(console)
            tables.append(table)
    if args.json is not None:
        content = [{"title": t.title, "rows": list(map(_plain, t.rows)), "notes": t.notes} for t in tables]
        args.json.write_text(json.dumps({"machine": facts, "tables": content}, indent=1) + "\n", encoding="utf-8")


def _plain(row: Row) -> Row:
    """JSON has no infinities: they become strings."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def find_zoo() -> Path | None:
    """The folder of real models, as $ONNXQ_ZOO says or beside the checkout; None where there is none."""
    named = os.environ.get("ONNXQ_ZOO")
    zoo = Path(named) if named else ROOT.parent / "shared" / "zoo"
    return zoo if (zoo / "models").is_dir() else None


def machine() -> dict[str, str]:
    """What decides figures: the CPU and the versions."""
    import onnxq

    return {
        "cpu": _cpu_line("model name") or platform.processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "vnni": {True: "yes", False: "no", None: "unknown"}[has_vnni()],
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "onnxq": onnxq.__version__,
    }


def has_vnni() -> bool | None:
    """Whether the CPU multiplies 8-bit integers four at a time; None where that is not known."""
    flags = _cpu_line("flags")
    return None if flags is None else bool({"avx512_vnni", "avx_vnni"} & set(flags.split()))


def _cpu_line(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    found = re.search(rf"^{key}\s*:\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


def in_child(target: Callable[..., Row], /, *, timeout: float = 1800, **arguments: object) -> Row:
    """Call a function in a fresh process; its modules are imported before it is called.

    Args:
        target: A function at the top level of one of the benchmarks' modules.
        timeout: Seconds it may take.
        arguments: Plain values.

    Returns:
        What the function returned, and ``peak_mb``: the largest resident set of its process.

    Raises:
        ChildError: If it failed; the message is the last line it wrote.
    """
    call = json.dumps({"module": Path(sys.modules[target.__module__].__file__ or "").stem,
                       "function": target.__name__, "arguments": arguments})  # fmt: skip
    command = [sys.executable, str(HERE / "child.py"), call]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ChildError(f"took more than {timeout:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ChildError(lines[-1][:200] if lines else f"ended with {done.returncode}")
    result: Row = json.loads(done.stdout.splitlines()[-1])
    return result


def alternate(targets: dict[str, Callable[[], Row]], rounds: int) -> dict[str, list[Row]]:
    """Call each of the targets in turn, `rounds` times; one that fails is called no more.

    Returns:
        The results by name; of one that failed a single row with ``failed``.
    """
    results: dict[str, list[Row]] = {name: [] for name in targets}
    alive = dict(targets)
    for _ in range(rounds):
        for name, target in list(alive.items()):
            row = _attempt(target)
            if "failed" in row:
                results[name] = [row]
                del alive[name]
            else:
                results[name].append(row)
    return results


def _attempt(target: Callable[[], Row]) -> Row:
    try:
        return target()
    except ChildError as err:
        return {"failed": str(err)}


def median(rows: Sequence[Row], key: str) -> float:
    """The median of a figure."""
    return statistics.median(float(row[key] or 0.0) for row in rows)


def failed(rows: Sequence[Row]) -> str | None:
    """Why a measurement failed, for a cell of a table; None if it did not."""
    return f"failed: {rows[0]['failed']}" if rows and "failed" in rows[0] else None


def peak_mb() -> float:
    """The largest resident set of this process so far, in MB.

    Linux counts into getrusage's figure what the parent had at the moment of the fork, so there the
    kernel's own high-water mark of the process's memory is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
