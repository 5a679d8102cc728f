import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onnxq.errors import TrainingError
from onnxq.qat import _overlay_store, _overlay_wheels, overlay
from onnxq.qat._overlay_wheels import WHEELS, Interpreter, choose_interpreter, running

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ONNXQ_TRAINING_PYTHON", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel in place of the real one; what it holds cannot train, so that is left out."""
    file = tmp_path / "shop" / "fake.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("onnxruntime/__init__.py", "__version__ = '1.19.2'\n")
        archive.writestr("onnxruntime/capi/state.so", bytes(range(256)) * 100)
    here = running()
    known = _overlay_wheels.Wheel(here.tag, here.system, file.name, hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(_overlay_wheels, "WHEELS", (known,))
    monkeypatch.setattr(_overlay_store, "WHEELS", (known,))
    monkeypatch.setattr(overlay, "verify", lambda _overlay: 0.5)
    return file


def test_the_table_of_wheels():
    assert len({w.sha256 for w in WHEELS}) == len(WHEELS) == 9
    assert all(len(w.sha256) == 64 and w.tag in w.filename and "1.19.2" in w.filename for w in WHEELS)


def test_installing(wheel, own_cache, tmp_path):
    said = []
    done = overlay.set_up(wheel_file=wheel, progress=lambda *told: said.append(told))
    assert (done.installed, done.repaired, done.verified_seconds) == (True, "", 0.5)
    assert done.overlay == overlay.find_overlay() == overlay.Overlay(own_cache / f"ort-training-1.19.2-{running().tag}",
                                                                     Path(sys.executable), running().tag)  # fmt: skip
    assert [p.name for p in own_cache.iterdir()] == [done.overlay.path.name]
    assert (done.overlay.path / "onnxruntime" / "capi" / "state.so").stat().st_size == 25600
    assert [what.split()[0] for what, *_ in said] == ["fetch", "unpack", "train"]
    again = overlay.set_up()
    assert not again.installed
    assert overlay.install_overlay() == done.overlay
    forced = overlay.set_up(wheel_file=wheel.parent, force=True)
    assert forced.installed
    assert [p.name for p in own_cache.iterdir()] == [done.overlay.path.name]
    other = overlay.set_up(tmp_path / "elsewhere", wheel_file=wheel).overlay
    assert overlay.find_overlay(tmp_path / "elsewhere") == other != done.overlay
    json.dumps(done.to_dict())


def test_without_an_overlay(own_cache):
    with pytest.raises(TrainingError, match=f"no training runtime .*{own_cache.name}; run 'onnxq qat setup'"):
        overlay.find_overlay()


def test_another_file_is_refused(wheel, own_cache):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("onnxruntime/more.py", "")
    with pytest.raises(TrainingError, match=r"fake.whl is refused: its sha256 is \w{64}, and that of"):
        overlay.set_up(wheel_file=wheel)
    assert not any(own_cache.iterdir())
    with pytest.raises(TrainingError, match=r"there is no file .*; name fake.whl, or the folder"):
        overlay.set_up(wheel_file=wheel.with_name("wheel.whl"))


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def change(path):
    data = bytearray(path.read_bytes())
    data[77] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "name", "words"),
    [
        (remove, "onnxruntime/capi/state.so", "onnxruntime/capi/state.so is missing"),
        (cut, "onnxruntime/capi/state.so", "has 25599 bytes instead of 25600"),
        (remove, "onnxq-overlay.json", "onnxq-overlay.json cannot be read"),
        (cut, "onnxq-overlay.json", "onnxq-overlay.json cannot be read"),
    ],
)
def test_damage_is_told_and_repaired(wheel, harm, name, words):
    path = overlay.set_up(wheel_file=wheel).overlay.path
    harm(path / name)
    with pytest.raises(TrainingError, match=f"damaged: .*{words}.*; run 'onnxq qat setup'"):
        overlay.find_overlay()
    done = overlay.set_up(wheel_file=wheel)
    assert done.installed
    assert words in done.repaired
    assert overlay.find_overlay() == done.overlay


def test_changed_bytes_are_found_by_setup(wheel):
    path = overlay.set_up(wheel_file=wheel).overlay.path
    change(path / "onnxruntime" / "capi" / "state.so")
    assert "state.so is not what was installed" in overlay.set_up(wheel_file=wheel).repaired
    assert overlay.set_up(wheel_file=wheel).repaired == ""


def test_what_does_not_train_is_not_installed(wheel, own_cache, monkeypatch):
    def broken(_overlay):
        raise TrainingError("it does not train")

    monkeypatch.setattr(overlay, "verify", broken)
    with pytest.raises(TrainingError, match="it does not train"):
        overlay.set_up(wheel_file=wheel)
    assert not any(own_cache.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_several_at_once(wheel, own_cache, force):
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(overlay.set_up, wheel_file=wheel, force=force) for _ in range(24)]
    found = {job.result().overlay for job in jobs}
    assert found == {overlay.find_overlay()}
    assert [p.name for p in own_cache.iterdir()] == [found.pop().path.name]
    assert not overlay.set_up().installed


def test_a_cache_that_cannot_be_written(wheel, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        TrainingError, match=r"cannot write to the cache .*; name another folder with --cache or \$ONNXQ"
    ):
        overlay.set_up(tmp_path / "file" / "cache", wheel_file=wheel)


def test_the_registry_cannot_be_reached(own_cache, monkeypatch):
    if running().wheel is None:
        pytest.skip("no wheel for this Python")
    for name, value in {
        "INDEX_URL": "http://127.0.0.1:9/",
        "EXTRA_INDEX_URL": "",
        "FIND_LINKS": "",
        "RETRIES": "0",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        TrainingError, match=r"(?i)cannot fetch .*: error.*run 'onnxq qat setup --wheel FILE'"
    ) as caught:
        overlay.set_up()
    assert "\n" not in str(caught.value)
    assert not any(own_cache.iterdir())


# ---- interpreters ------------------------------------------------------------------------------


NEW = Interpreter(Path("python3.13"), "cp313", "linux_x86_64")


def test_a_python_with_a_wheel_is_its_own_interpreter(monkeypatch):
    monkeypatch.setenv("ONNXQ_TRAINING_PYTHON", "/nowhere/python")
    own = Interpreter(Path("python"), "cp310", "windows_amd64")
    assert choose_interpreter(own) is own


@pytest.mark.parametrize("system", ["linux-aarch64 aarch64", "linux x86_64 without glibc"])
def test_a_system_without_a_wheel(system):
    with pytest.raises(TrainingError, match=f"no wheel of onnxruntime-training-cpu 1.19.2 for this system .{system}."):
        choose_interpreter(Interpreter(Path("python"), "cp311", system))


def pretend(folder, name, version):
    """An executable that says that it is another Python."""
    folder.mkdir(exist_ok=True)
    here = subprocess.run([sys.executable, "-c", _overlay_wheels._PROBE], capture_output=True, text=True).stdout
    said = json.loads(here)
    said[0], said[2] = str(folder / name), version
    (folder / name).write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\n")
    (folder / name).chmod(0o755)
    return str(folder / name)


@pytest.mark.skipif(running().system != "linux_x86_64", reason="scripts for a shell, and a wheel for this system")
def test_a_python_beside(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(_overlay_wheels, "_SIDE_VERSIONS", ("9.12", "9.11", "9.10"))
    with pytest.raises(TrainingError, match=r"this Python \(cp313\).*'uv python install 3.12'.*ONNXQ_TRAINING_PYTHON"):
        choose_interpreter(NEW)
    pretend(tmp_path / "bin", "python9.12", [3, 13])
    (tmp_path / "bin" / "python9.11").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "bin" / "python9.11").chmod(0o755)
    pretend(tmp_path / "bin", "python9.10", [3, 10])
    found = choose_interpreter(NEW)
    assert (found.path.name, found.tag, found.wheel.tag) == ("python9.10", "cp310", "cp310")
    named = pretend(tmp_path, "mine", [3, 12])
    monkeypatch.setenv("ONNXQ_TRAINING_PYTHON", named)
    assert (choose_interpreter(NEW).path, choose_interpreter(NEW).tag) == (Path(named), "cp312")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: str(folder / "none"), "does not run as a Python"),
        (lambda _: "/bin/true", "does not run as a Python"),
        (lambda folder: pretend(folder, "old", [3, 8]), "a cp38 on"),
    ],
)
def test_a_named_python_that_does_not_fit(tmp_path, monkeypatch, make, words):
    monkeypatch.setenv("ONNXQ_TRAINING_PYTHON", make(tmp_path))
    with pytest.raises(TrainingError, match=f"ONNXQ_TRAINING_PYTHON is .*{words}"):
        choose_interpreter(NEW)


@pytest.mark.skipif(running().wheel is None, reason="no wheel for this Python")
def test_an_environment_beside(wheel, own_cache, monkeypatch):
    """An interpreter that is not the running one gets an environment, once."""
    beside = Interpreter(Path(sys.executable).with_name("python-beside"), running().tag, running().system)
    monkeypatch.setattr(overlay, "choose_interpreter", lambda: beside)
    made = []

    def make(base, home):
        made.append(base)
        python = _overlay_store.python_of(home)
        python.parent.mkdir(parents=True)
        # Behind a link, an interpreter finds its packages by where the link leads from.
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        return python

    monkeypatch.setattr(overlay, "_make_environment", make)
    done = overlay.set_up(wheel_file=wheel)
    assert made == [beside.path]
    assert done.overlay.python == _overlay_store.side_python(done.overlay.path)
    assert done.overlay.python.is_relative_to(own_cache)
    assert overlay.set_up(wheel_file=wheel).overlay == done.overlay
    assert len(made) == 1
    monkeypatch.setattr(_overlay_store, "running", lambda: NEW)
    assert overlay.find_overlay() == done.overlay
    shutil.rmtree(done.overlay.python.parents[1])
    with pytest.raises(TrainingError, match="no training runtime"):
        overlay.find_overlay()
    monkeypatch.setattr(overlay, "_imports", lambda _python: False)
    with pytest.raises(TrainingError, match="cannot import numpy and onnx"):
        overlay.set_up(wheel_file=wheel)
    names = {p.name for p in own_cache.iterdir()}
    assert names == {done.overlay.path.name, f"{done.overlay.path.name}-python.txt"}


def test_a_file_that_another_process_takes_away_is_missing(wheel, monkeypatch):
    path = overlay.set_up(wheel_file=wheel).overlay.path

    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(_overlay_store, "sha256", gone)
    assert "is missing" in _overlay_store.damage(path, thorough=True)
    assert _overlay_store.damage(path, thorough=False) == ""
