"""``onnxq zoo``: models times recipes, held to a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import Json, Threads, Verbose
from onnxq.cli.paths import check_outputs
from onnxq.cli.terminal import Terminal

app = typer.Typer(help="Hold a zoo of models to a baseline, release after release.")

Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="The zoo, a YAML file.", show_default=False)]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that measure at once.", metavar="N")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        help="Run only these: a glob over MODEL/RECIPE, or the name of a model or recipe. May be repeated.",
        metavar="GLOB",
        show_default="all",
    ),
]
Baseline = Annotated[
    Path | None, typer.Option(help="The baseline.", metavar="FILE", show_default="what the manifest names")
]


@app.callback(invoke_without_command=True)
def _start(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def run(
    manifest: Manifest,
    jobs: Jobs = 1,
    baseline: Baseline = None,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="Measure without comparing.")] = False,
    only: Only = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Keep the quantized models, MODEL/RECIPE.onnx, and results.json in this folder.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML report.", metavar="FILE", show_default=False)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Also write JUnit XML, for CI servers.", metavar="FILE", show_default=False)
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Quantize every model with every recipe, measure what comes out, and compare it with the baseline.

    Exit code 1 if an entry failed, or got worse by more than its tolerance. --threads is shared by all jobs.
    """
    from onnxq.cli import zoo_tables
    from onnxq.zoo.job import Options, check_zoo

    terminal = Terminal(as_json=as_json, verbose=verbose)
    check_outputs({"--report": report, "--junit": junit}, {"MANIFEST": manifest, "--baseline": baseline})
    options = Options(jobs, tuple(only or ()), threads, baseline, not no_baseline, out, report, junit)
    with terminal.progress() as progress:
        checked = check_zoo(manifest, options, progress=progress)
    terminal.show(*zoo_tables.matrix(checked, full=verbose or no_baseline))
    for finding in checked.verdict.findings:
        if finding.bad:
            terminal.err.print(f"{finding.kind}: {finding}", style="bold red", markup=False, soft_wrap=True)
    terminal.notes([*zoo_tables.remarks(checked, full=verbose), *checked.verdict.notes])
    terminal.lines(checked.summary)
    terminal.document(checked.to_dict())
    return 1 if checked.verdict.bad else 0


@app.command()
def bless(
    manifest: Manifest,
    jobs: Jobs = 1,
    baseline: Baseline = None,
    only: Only = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Take the results of an earlier run (--json, or results.json of --out).", metavar="FILE",
            show_default="run now",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Make what is measured now the baseline; shows what changes and asks before it writes.

    What was not run, failed or was skipped keeps what the baseline has of it; exit code 1 if something failed.
    """
    from onnxq.cli import zoo_tables
    from onnxq.errors import ManifestError
    from onnxq.zoo.job import Options, prepare_blessing

    terminal = Terminal(as_json=as_json)
    options = Options(jobs, tuple(only or ()), threads, baseline)
    with terminal.progress() as progress:
        blessing = prepare_blessing(manifest, options, results=results, progress=progress)
    terminal.lines(*blessing.diff)
    for outcome in blessing.failed:
        text = f"failed: {zoo_tables.title(outcome)}: {outcome.message}"
        terminal.err.print(text, style="bold red", markup=False, soft_wrap=True)
    written = bool(blessing.diff)
    if written and not yes:
        if as_json or not zoo_tables.can_ask():
            raise ManifestError(f"{blessing.path} would change and nobody can be asked; give --yes to write it")
        written = typer.confirm(f"Write {blessing.path}?", err=True)
    if written:
        blessing.write()
    terminal.lines(f"written {blessing.path}" if written else f"{blessing.path} stays as it is")
    terminal.document({**blessing.to_dict(), "written": written})
    return 1 if blessing.failed else 0


@app.command("list")
def list_entries(manifest: Manifest, only: Only = None, as_json: Json = False) -> int:
    """Show what would be run, without running it."""
    from onnxq.cli import zoo_tables
    from onnxq.zoo.job import listed

    entries = listed(manifest, tuple(only or ()))
    terminal = Terminal(as_json=as_json)
    terminal.lines(*map(zoo_tables.entry, entries))
    terminal.document({"entries": [{"model": e.model, "recipe": e.recipe, "skipped": e.skipped} for e in entries]})
    return 0
