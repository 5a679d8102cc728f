import inspect
import json

import pytest
from typer.testing import CliRunner

from onnxq.cli.app import app
from tests.qat.runtime import training_runtime


@pytest.fixture
def installed():
    return training_runtime()


SEPARATE = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def run(*args, code=0):
    done = CliRunner(**SEPARATE).invoke(app, ["qat", *map(str, args)])
    assert done.exit_code == code, done.output
    return done


def test_setup_of_what_is_there(installed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run("setup").stdout
    assert str(installed.path) in text
    assert "was there" in text
    assert "one step trained in" in text
    done = run("setup", "--json", "--cache", installed.path.parent)
    found = json.loads(done.stdout)
    assert found.pop("verified_seconds") > 0
    assert found == {
        "version": "1.19.2",
        "tag": installed.tag,
        "path": str(installed.path),
        "python": str(installed.python),
        "wheel": found["wheel"],
        "sha256": found["sha256"],
        "installed": False,
        "repaired": "",
    }
    assert installed.tag in found["wheel"]
    assert len(found["sha256"]) == 64


def test_setup_from_a_file_that_is_not_it(installed, tmp_path):
    (tmp_path / "my.whl").write_bytes(b"something else")
    done = run("setup", "--wheel", tmp_path / "my.whl", "--cache", tmp_path / "cache", "--json", code=2)
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "TrainingError"
    assert "is refused: its sha256 is" in error["message"]
    assert done.stderr.startswith("error: ")
    assert not any((tmp_path / "cache").iterdir())


def test_a_damaged_one_is_replaced(installed, tmp_path, monkeypatch):
    from onnxq.qat import overlay

    told = overlay.Installation(installed, overlay.WHEELS[0], True, "a.so is missing", 1.25)
    monkeypatch.setattr(overlay, "set_up", lambda *_args, **_options: told)
    done = run("setup")
    assert "warning: what was installed before was damaged and is replaced: a.so is missing" in done.stderr
    assert "trained in 1.2 s" in done.stdout
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path))
    assert f"set ONNXQ_CACHE={installed.path.parent}" in run("setup").stderr


def test_without_a_command_the_commands_are_listed():
    assert "setup" in run().stdout
