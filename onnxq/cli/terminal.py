"""What a command writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Terminal:
    """Standard output and error of one command.

    Args:
        as_json: Standard output gets one JSON document and nothing else; tables go to standard error.
        verbose: Show more.
    """

    def __init__(self, *, as_json: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self.err = Console(stderr=True, highlight=False)
        self._out = self.err if as_json else Console(highlight=False)

    def show(self, *parts: RenderableType) -> None:
        """Show something for people to read."""
        for part in parts:
            self._out.print(part)

    def lines(self, *texts: str) -> None:
        """Show text that is to be copied: broken nowhere."""
        for text in texts:
            self._out.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Show a warning."""
        self.err.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def notes(self, texts: Iterable[str], *, warning: bool = False) -> None:
        """Show what is worth knowing, each sentence once; as warnings where the result is not what one expects."""
        for text in dict.fromkeys(texts):
            if warning:
                self.warn(text)
            else:
                self.err.print(f"note: {text}", style="dim", markup=False, soft_wrap=True)

    def document(self, content: Mapping[str, object]) -> None:
        """Write the JSON document, if one is wanted; the last thing a command does."""
        if self.as_json:
            typer.echo(json.dumps(content, indent=2, allow_nan=False))

    @contextlib.contextmanager
    def messages(self) -> Iterator[None]:
        """Show what onnxq logs: warnings, and with `verbose` what every pass does."""
        logger = logging.getLogger("onnxq")
        handler = _Handler(self)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if self.verbose else logging.WARNING)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate

    @contextlib.contextmanager
    def progress(self) -> Iterator[Steps]:
        """A progress bar on standard error, shown on a terminal only, gone afterwards."""
        if not self.err.is_terminal:
            yield Steps(None)
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self.err, transient=True) as bar:
            yield Steps(bar)


class Steps:
    """One progress bar that is used for one step after the other; None shows nothing."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = None if bar is None else bar.add_task("", total=None)

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` are done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what, completed=done, total=total)


class _Handler(logging.Handler):
    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._terminal.warn(record.getMessage())
        else:
            self._terminal.err.print(record.getMessage(), markup=False, style="dim", soft_wrap=True)
