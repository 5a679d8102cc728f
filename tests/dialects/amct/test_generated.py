import importlib
import sys

import pytest

from onnxq.dialects.amct.proto import generate


def test_the_modules_are_what_the_proto_files_give():
    generate.main(["--check"])


def test_a_module_that_differs_is_found(tmp_path, monkeypatch):
    (tmp_path / "a.proto").write_text('syntax = "proto2"; message A { optional float x = 1 [default = 0.1]; }')
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match=r"a_pb2\.py is not what its \.proto file gives"):
        generate.main(["--check"])
    assert not (tmp_path / "a_pb2.py").exists()
    generate.main([])
    generate.main(["--check"])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert importlib.import_module("a_pb2").A().x == pytest.approx(0.1)
    finally:
        sys.modules.pop("a_pb2", None)
    (tmp_path / "a_pb2.py").write_text("# edited by hand\n")
    with pytest.raises(SystemExit, match="run python -m"):
        generate.main(["--check"])


def test_a_proto_file_that_is_not_valid(tmp_path, monkeypatch):
    (tmp_path / "b.proto").write_text("message {")
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match=r"b\.proto: protoc failed"):
        generate.main([])
    assert not list(tmp_path.glob("*.py"))
