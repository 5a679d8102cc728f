"""The commands put together, and what all of them have in common: errors and exit codes.

0 is success, 1 a check that failed (a gate of `compare`), 2 bad input, 130 an interrupt. Modules that take
long to import are imported inside the commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from onnxq._version import __version__
from onnxq.cli import (
    amct,
    benchmark,
    compare,
    converter,
    demo,
    inspect,
    pack,
    prune,
    qat,
    quantize,
    recipe,
    report,
    sensitivity,
    tune,
    zoo,
)
from onnxq.errors import OnnxqError

BAD_INPUT = 2
INTERRUPTED = 130

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What the parser raises; typer exports only this one of its subclasses, in every version."""


class Commands(TyperGroup):
    """The commands; turns what a user can mend into one line on standard error and exit code 2."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:  # noqa: ANN401 - typer's
        """Parse the arguments, run the command and end the process."""
        words = sys.argv[1:] if args is None else list(args)
        options["standalone_mode"] = False
        try:
            code = super().main(args, *others, **options)
        except OnnxqError as err:
            kind = next(base.__name__ for base in type(err).__mro__ if base.__module__ == OnnxqError.__module__)
            code = _fail(str(err), kind, words)
        except UsageError as err:
            code = _fail(_usage(err), "UsageError", words)
        except OSError as err:
            name = f"{err.filename}: " if err.filename else ""
            code = _fail(f"{name}{err.strerror or err}", "OSError", words)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        if code == INTERRUPTED:
            typer.echo("interrupted", err=True)
        sys.exit(code or 0)


def _usage(err: Exception) -> str:
    text = err.format_message() if hasattr(err, "format_message") else str(err)
    context = getattr(err, "ctx", None)
    path = context.command_path if context is not None else "onnxq"
    return f"{text.rstrip('.')}; see '{path} --help'"


def _fail(message: str, kind: str, words: Sequence[str]) -> int:
    typer.echo(f"error: {message}", err=True)
    if "--json" in words:
        typer.echo(json.dumps({"error": {"type": kind, "message": message}}, indent=2))
    return BAD_INPUT


app = typer.Typer(
    cls=Commands,
    name="onnxq",
    help="Quantize ONNX models and see what became of them.",
    epilog="Exit codes: 0 success, 1 a check failed, 2 bad input. With --json, standard output is one JSON document.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onnxq {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


app.command("quantize")(quantize.quantize)
app.command("prune")(prune.prune)
app.command("inspect")(inspect.inspect)
app.command("compare")(compare.compare)
app.command("tune")(tune.tune)
app.command("sensitivity")(sensitivity.sensitivity)
app.command("report")(report.report)
app.command("benchmark")(benchmark.benchmark)
app.add_typer(recipe.app, name="recipe")
app.add_typer(zoo.app, name="zoo")
app.add_typer(amct.app, name="amct")
app.add_typer(qat.app, name="qat")
app.command("converter_lite")(converter.converter_lite)
app.command("pack")(pack.pack)
app.command("unpack")(pack.unpack)
app.command("demo")(demo.demo)
