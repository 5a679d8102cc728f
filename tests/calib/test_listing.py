from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.calib.listing import in_byte_order, parse_folders
from onnxq.errors import DataError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x:/data/a", {"x": "/data/a"}),
        ("x:a,y:b/c", {"x": "a", "y": "b/c"}),
        (" x : a , y:b", {"x": "a", "y": "b"}),
        ("serving:input:0:dir", {"serving:input:0": "dir"}),
        ("x:'a,b:c',y:d", {"x": "a,b:c", "y": "d"}),
    ],
)
def test_folders_by_input(text: str, found: dict[str, str]) -> None:
    assert parse_folders(text) == {name: Path(folder) for name, folder in found.items()}


@pytest.mark.parametrize("text", ["dir", "x:", ":dir", "x:a,", "x:a,dir", ""])
def test_what_is_not_of_that_form(text: str) -> None:
    with pytest.raises(DataError, match="is not of the form input:folder"):
        parse_folders(text)


def test_an_input_given_twice() -> None:
    with pytest.raises(DataError, match="input 'x' is given twice"):
        parse_folders("x:a,x:b")


def test_byte_order_is_neither_natural_nor_by_case() -> None:
    names = ["b.png", "10.png", "2.png", "B.png", "\u00e9.png", "z.png"]
    ordered = [path.name for path in in_byte_order([Path("d") / name for name in names])]
    assert ordered == ["10.png", "2.png", "B.png", "b.png", "z.png", "\u00e9.png"]
