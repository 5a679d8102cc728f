"""The frame of a report: its HTML, styles and script in one text."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources

import jinja2

from onnxq._version import __version__
from onnxq.report.page import Page
from onnxq.report.page_data import Json, Live, column_of, data_of

_KINDS = ("quantized", "shared", "absorbed", "float")
_SCRIPTS = ("page.js", "table.js", "charts.js", "plots.js", "graph.js", "start.js")


def html_of(page: Page) -> str:
    """The page as HTML.

    Args:
        page: What it says.

    Raises:
        ValueError: If a block contradicts itself; see `onnxq.report.page.render`.
    """
    data = _Data()
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    body = _environment().get_template("page.html.j2")
    text = body.render(
        page=page,
        version=__version__,
        styles=_file("page.css"),
        script=script,
        digest=digest,
        data=data,
        kind_of=lambda block: type(block).__name__,
        column_of=column_of,
        kind_class=_kind_class,
    )
    return text + "\n"


def _kind_class(name: str, number: int) -> str:
    """The class that gives a part its colour."""
    return f"k-{name}" if name in _KINDS else f"s{number % 6}"


class _Data:
    """Collects what the script draws, while the page is written."""

    def __init__(self) -> None:
        self._blocks: list[Json] = []

    def add(self, block: Live) -> int:
        """Take the data of a block; gives its number."""
        self._blocks.append(data_of(block))
        return len(self._blocks) - 1

    def text(self) -> str:
        """All data as JSON that can stand in an element of HTML."""
        text = json.dumps(self._blocks, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        for char in "<>&\u2028\u2029":
            text = text.replace(char, f"\\u{ord(char):04x}")
        return text


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("onnxq.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _file(name: str) -> str:
    return resources.files("onnxq.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    parts = "\n".join(_file(name) for name in _SCRIPTS)
    return f"\n'use strict';\n(() => {{\n{parts}}})();\n"
