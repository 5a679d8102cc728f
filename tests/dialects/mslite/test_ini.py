"""The line grammar, rule by rule."""

import pytest

from onnxq.dialects.mslite.ini import parse_ini, read_bytes
from onnxq.errors import RecipeError

KNOWN = frozenset({"common_quant_param", "full_quant_param"})


def values(content: bytes | str) -> dict[str, dict[str, str]]:
    """What is understood, which must be everything."""
    ini = parse_ini(content, known=KNOWN)
    assert ini.problems == ()
    return {name: {e.key: e.value for e in entries.values()} for name, entries in ini.sections.items()}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", {}),
        ("\n   \n\r\n", {}),
        ("# a = comment [x]\n", {}),
        ("[a]\nk=v", {"a": {"k": "v"}}),
        ("[a]\n  k  =  v w  \n", {"a": {"k": "v w"}}),
        ("  [a]  \nk=v", {"a": {"k": "v"}}),
        ("[a]\r\nk=v\r\n", {"a": {"k": "v"}}),
        ("\ufeff[a]\nk=v", {"a": {"k": "v"}}),
        ("\ufeff# comment\n[a]\nk=v", {"a": {"k": "v"}}),
        ('["a"]\n"k"="v""w"\n', {"a": {"k": "vw"}}),
        ("[a]\nk='v'", {"a": {"k": "'v'"}}),
        ("[a]\nk=1\nk=2", {"a": {"k": "2"}}),
        ("[a]\nk=1\n[b]\nk=2\n[a]\nj=3", {"a": {"k": "1", "j": "3"}, "b": {"k": "2"}}),
        ("k=1\n[a]", {"DEFAULT": {"k": "1"}, "a": {}}),
        ("[a]\nk=v # no comment", {"a": {"k": "v # no comment"}}),
        ("[common_quant_param;\nk=v", {"common_quant_param": {"k": "v"}}),
        ("[a]\nK=v\nk=w", {"a": {"K": "v", "k": "w"}}),
    ],
)
def test_grammar(content: str, expected: dict[str, dict[str, str]]) -> None:
    assert values(content) == expected


def test_comments_may_have_any_encoding() -> None:
    assert values(b"# " + "量化".encode("gbk") + b"\n[a]\nk=v") == {"a": {"k": "v"}}


def test_the_last_of_a_key_given_twice_has_its_own_line() -> None:
    assert parse_ini("[a]\nk=1\n\n# x\nk=2").sections["a"]["k"].line == 5


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        ("[a]\n # indented", 2, "a comment starts with # as the first character of its line"),
        ("; semicolon", 1, "a comment starts with #"),
        ("[a]\nnothing", 2, "found 'nothing'; a line is key=value"),
        ("[a]\nk=", 2, "k: has no value; leave the line out"),
        ('[a]\nk=""', 2, "k: has no value"),
        ("[a]\n=v", 2, "has no key in front of the ="),
        ("[a]\nk=v=w", 2, "k: found 2 times '='"),
        ("[a]\nk=\tv", 2, "k: found '\\tv', but only spaces are dropped"),
        ("\tk=v", 1, "k: found '\\tk'"),
        ("[]", 1, "a section stands alone on its line"),
        ("[common_quant_param] # x\nk=v", 1, "did you mean 'common_quant_param'?"),
        (b"[a]\nk=\xff", 2, "is not UTF-8 text"),
        ("[a]\nk=v".encode("utf-16"), 1, "UTF-16"),
    ],
)
def test_what_is_refused(content: bytes | str, line: int, told: str) -> None:
    (problem,) = parse_ini(content, known=KNOWN).problems
    assert problem.line == line
    assert told in problem.text


def test_keys_below_a_section_that_is_not_understood_belong_to_no_other() -> None:
    ini = parse_ini("[a]\nk=1\n[a\nj=2", known=KNOWN)
    assert set(ini.sections["a"]) == {"k"}
    assert len(ini.problems) == 1


def test_9999_lines_and_no_more() -> None:
    lines = "[a]\n" + "# comment\n\nk=v\n" * 9998
    assert parse_ini(lines).problems == ()
    (problem,) = parse_ini(lines + "k=v").problems
    assert problem.line == 3 * 9998 + 2
    assert "9999" in problem.text


def test_a_file_that_is_not_there_has_neighbours(tmp_path) -> None:
    (tmp_path / "full_quant.cfg").write_text("")
    with pytest.raises(RecipeError, match=r"there is no configuration file .*did you mean 'full_quant\.cfg'"):
        read_bytes(tmp_path / "full_quantt.cfg")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_bytes(tmp_path)
