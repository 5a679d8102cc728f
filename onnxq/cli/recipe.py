"""``onnxq recipe``: the format of recipes, and what one says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import Json, Method, RecipeOptions, Skip, Target
from onnxq.cli.terminal import Terminal

app = typer.Typer(help="Show the format of recipes, or what one says.")


@app.callback(invoke_without_command=True)
def _start(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def schema(as_json: Json = False) -> int:
    """Print the JSON Schema of recipe files, for editors and validators.

    It is JSON with and without --json.
    """
    from onnxq.recipe import Recipe

    Terminal(as_json=True).document(Recipe.json_schema())
    return 0


@app.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A recipe; none shows the default one.", show_default=False)
    ] = None,
    target: Annotated[Target | None, typer.Option(help="Backend.", show_default="the recipe's")] = None,
    method: Annotated[Method | None, typer.Option(help="Activation method.", show_default="the recipe's")] = None,
    skip: Skip = None,
    changes: Annotated[bool, typer.Option("--changes", help="Only what differs from the default.")] = False,
    as_json: Json = False,
) -> int:
    """Print a recipe with all defaults filled in, or check one."""
    recipe = RecipeOptions(config=file, target=target, method=method, skip=tuple(skip or ())).recipe()
    if as_json:
        Terminal(as_json=True).document(recipe.to_dict(defaults=not changes))
    else:
        typer.echo(recipe.to_yaml(defaults=not changes), nl=False)
    return 0
