"""Packing: the same bytes back for any model, sizes near the entropy, and what happens to damaged files."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxq.algos.weight import packing as pieces
from onnxq.algos.weight.codes import encode
from onnxq.errors import ModelError
from onnxq.packing import container, entropy, pack, unpack
from onnxq.packing.regions import Region, Weight, disjoint, scan
from tests.graphs import build, normal
from tests.passes.test_insert_weight_only import codes_for, inserted, named

MODELS = Path(__file__).parents[1] / "models"
MATMUL = "g (float[N,60] x) => (float[N,50] y) { y = MatMul(x, W) }"
WEIGHT = normal(60, 50)


def packed_model(bits: int, storage: str = "packed") -> onnx.ModelProto:
    model = named(MATMUL, opset=21, ir_version=10, W=WEIGHT)
    return inserted(model, {("n0", 1): codes_for(WEIGHT, bits, 1)}, storage)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def round_trip(source: Path, folder: Path) -> Path:
    """Pack and unpack a model, check that the bytes are the same; returns the packed file."""
    packed = folder / "model.packed"
    pack(source, packed)
    result = folder / "back" / source.name
    result.parent.mkdir(exist_ok=True)
    assert unpack(packed, result)[0] == result
    assert result.read_bytes() == source.read_bytes()
    assert not list(folder.rglob("*.tmp"))
    return packed


# ---- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 17))
def test_weights_of_every_width(bits: int, tmp_path: Path) -> None:
    source = save(packed_model(bits), tmp_path / "model.onnx")
    report = pack(source, tmp_path / "model.packed")
    (weight,) = report.weights
    codes = encode(WEIGHT, codes_for(WEIGHT, bits, 1))
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / codes.size
    assert (weight.name, weight.bits, weight.count) == ("W", bits, WEIGHT.size)
    assert weight.entropy == pytest.approx(float(-(shares * np.log2(shares)).sum()))
    assert weight.before == WEIGHT.size * bits // 8
    round_trip(source, tmp_path)


@pytest.mark.parametrize(("bits", "storage"), [(2, "native"), (4, "native"), (8, "native"), (12, "native"),
                                               (5, "rounded"), (4, "blocks")])  # fmt: skip
def test_other_storages(bits: int, storage: str, tmp_path: Path) -> None:
    weight = normal(200, 100)
    model = named("g (float[N,200] x) => (float[N,100] y) { y = MatMul(x, W) }", opset=21, ir_version=10, W=weight)
    source = save(inserted(model, {("n0", 1): codes_for(weight, bits, 1)}, storage), tmp_path / "model.onnx")
    packed = round_trip(source, tmp_path)
    assert packed.stat().st_size < source.stat().st_size


def test_a_weight_whose_last_bytes_are_filled_up(tmp_path: Path) -> None:
    weight = normal(37, 29)
    model = named("g (float[N,37] x) => (float[N,29] y) { y = MatMul(x, W) }", W=weight)
    source = save(inserted(model, {("n0", 1): codes_for(weight, 7, 1)}), tmp_path / "model.onnx")
    (found,) = scan(source).weights
    assert (found.bits, found.count, len(found.regions)) == (7, weight.size, 3)
    round_trip(source, tmp_path)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_transformer"])
def test_float_models(name: str, tmp_path: Path) -> None:
    round_trip(MODELS / f"{name}.onnx", tmp_path)


def test_numbers_outside_raw_data(tmp_path: Path) -> None:
    model = build(MATMUL, W=WEIGHT)
    tensor = model.graph.initializer.add(name="codes", dims=[300], data_type=onnx.TensorProto.INT8)
    tensor.int32_data.extend(range(-128, 127))
    tensor.int32_data.extend([0] * 45)
    round_trip(save(model, tmp_path / "model.onnx"), tmp_path)


def test_bits_that_no_code_has_are_kept(tmp_path: Path) -> None:
    weight = normal(21, 41)
    model = named("g (float[N,21] x) => (float[N,41] y) { y = MatMul(x, W) }", W=weight)
    model = inserted(model, {("n0", 1): codes_for(weight, 4, 1)})
    (stored,) = [t for t in model.graph.initializer if t.name == "W_packed"]
    data = bytearray(stored.raw_data)
    data[-1] |= 0xF0
    stored.raw_data = bytes(data)
    source = save(model, tmp_path / "model.onnx")
    assert [w.name for w in pack(source, tmp_path / "p").weights] == []
    round_trip(source, tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["int8", "uint8", "int16", "uint16", "float32", "int64"]),
    count=st.integers(0, 3000),
    spread=st.sampled_from([1, 2, 100, 30000]),
    seed=st.integers(0, 9),
)
def test_any_initializer(dtype: str, count: int, spread: int, seed: int, tmp_path: Path) -> None:
    values = (np.random.default_rng(seed).normal(size=count) * spread).astype(np.int64).astype(dtype)
    model = build("g (float[N] x) => (float[N] y) { y = Relu(x) }", K=values)
    round_trip(save(model, tmp_path / "model.onnx"), tmp_path)


def test_external_data_come_back_under_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "weights"
    folder.mkdir(parents=True)
    model = packed_model(6, "native")
    source = tmp_path / "in" / "model.onnx"
    onnx.save(model, source, save_as_external_data=True, location="weights/all.bin", size_threshold=0)
    report = pack(source, tmp_path / "p")
    assert report.files == ("model.onnx", "weights/all.bin")
    assert "W_quantized" in {w.name for w in report.weights}
    out = tmp_path / "out"
    out.mkdir()
    written = unpack(tmp_path / "p", out / "other.onnx")
    assert written == (out / "other.onnx", out / "weights" / "all.bin")
    assert written[0].read_bytes() == source.read_bytes()
    assert written[1].read_bytes() == (folder / "all.bin").read_bytes()
    onnx.checker.check_model(written[0])


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    source = save(packed_model(5), tmp_path / "model.onnx")
    pack(source, tmp_path / "a")
    time.sleep(0.01)
    pack(source, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_large_weights_come_near_their_entropy(bits: int) -> None:
    top = 1 << bits
    rng = np.random.default_rng(bits)
    codes = np.clip(np.rint(rng.normal(top / 2, top / 10, 400_000)), 0, top - 1).astype(np.uint16)
    coded = entropy.encode(codes, bits)
    np.testing.assert_array_equal(entropy.decode(coded, bits, codes.size), codes)
    bound = entropy.entropy(codes) * codes.size / 8
    if bits <= 12:
        assert bound < coded.size <= 1.01 * bound + 100
    else:  # the entropy of 65536 counts says little of 400,000 codes
        assert coded.size <= 1.02 * bound


@pytest.mark.parametrize("value", [0, 5, 65535])
def test_codes_that_are_all_the_same(value: int) -> None:
    codes = np.full(1000, value, np.uint16)
    coded = entropy.encode(codes, 16)
    assert coded.size < 30
    np.testing.assert_array_equal(entropy.decode(coded, 16, 1000), codes)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 16), count=st.integers(1, 2000), seed=st.integers(0, 99), peak=st.floats(0.01, 3))
def test_codes_come_back(bits: int, count: int, seed: int, peak: float) -> None:
    top = 1 << bits
    values = np.random.default_rng(seed).normal(top / 2, peak * top, count)
    codes = np.clip(np.rint(values), 0, top - 1).astype(np.uint16)
    np.testing.assert_array_equal(entropy.decode(entropy.encode(codes, bits), bits, count), codes)


def test_more_symbols_than_one_chunk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "_CHUNK", 100)
    codes = np.random.default_rng(0).integers(0, 16, 1050).astype(np.uint16)
    coded = entropy.encode(codes, 4)
    assert len(coded.chunks) == 11
    np.testing.assert_array_equal(entropy.decode(coded, 4, 1050), codes)


@pytest.mark.parametrize("method", ["xz", "zlib"])
def test_the_rest_in_portions(method: str) -> None:
    content = np.random.default_rng(0).integers(0, 4, 1_200_000).astype(np.uint8).tobytes()
    blocks = list(container.compressed(iter([content[:7], content[7:]]), method))
    small = (b"".join(blocks)[i : i + 999] for i in range(0, len(b"".join(blocks)), 999))
    reader = container.RestReader(small, method)
    parts = [b"".join(reader.read(count)) for count in (5, 0, 1_100_000, 99_995)]
    assert b"".join(parts) == content
    with pytest.raises(ValueError, match="damaged"):
        list(reader.read(1))


def test_weights_that_share_bytes() -> None:
    first, second, third = (
        Weight(name, 8, 10, "plain", (Region(0, start, 10),)) for name, start in (("a", 0), ("b", 5), ("c", 15))
    )
    assert [w.name for w in disjoint([third, second, first])] == ["a", "c"]


# ---- problems -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("packed")
    pack(save(packed_model(6), folder / "model.onnx"), folder / "p")
    return (folder / "p").read_bytes()


def refused(content: bytes, folder: Path, match: str) -> None:
    """Unpacking fails with this message, and leaves what was there."""
    (folder / "p").write_bytes(content)
    (folder / "out.onnx").write_bytes(b"old")
    with pytest.raises(ModelError, match=match):
        unpack(folder / "p", folder / "out.onnx")
    assert sorted(p.name for p in folder.iterdir()) == ["out.onnx", "p"]
    assert (folder / "out.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.9, 0.9999])
def test_a_file_cut_short(share: float, content: bytes, tmp_path: Path) -> None:
    refused(content[: int(len(content) * share)], tmp_path, "cut short|has written")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.9999])
def test_a_changed_byte(share: float, content: bytes, tmp_path: Path) -> None:
    changed = bytearray(content)
    changed[int(len(content) * share)] ^= 1
    refused(bytes(changed), tmp_path, "damaged or was cut short|knows 1")


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_under_a_right_digest(data: st.DataObject, content: bytes, tmp_path: Path) -> None:
    """Whoever wrote it: an error of ours or the right bytes, and nothing else."""
    changed = bytearray(content[:-32])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(12, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "p").write_bytes(sealed(bytes(changed)))
    try:
        (written,) = unpack(tmp_path / "p", tmp_path / "out.onnx")
    except ModelError:
        assert not (tmp_path / "out.onnx").exists()
    else:
        assert written.read_bytes() == packed_model(6).SerializeToString()
        written.unlink()
    assert {p.name for p in tmp_path.iterdir()} == {"p"}


@pytest.mark.parametrize("location", ["../evil.bin", "/tmp/evil.bin", ""])
def test_files_outside_the_folder_are_not_written(location: str, tmp_path: Path) -> None:
    entry = container.FileEntry(location, 3, hashlib.sha256(b"abc").hexdigest())
    model = container.FileEntry("model.onnx", 0, hashlib.sha256(b"").hexdigest())
    rest = b"".join(container.compressed(iter([b"abc"]), "xz"))
    header = container.Header((model, entry), (), "xz", len(rest))
    folder = tmp_path / "in"
    folder.mkdir()
    refused(sealed(header.to_bytes() + rest), folder, "not a path inside")
    assert not (tmp_path / "evil.bin").exists()


def test_an_external_file_of_the_name_of_the_model(tmp_path: Path) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    files = (container.FileEntry("model.onnx", 0, empty), container.FileEntry("out.onnx", 0, empty))
    rest = b"".join(container.compressed(iter([]), "xz"))
    refused(sealed(container.Header(files, (), "xz", len(rest)).to_bytes() + rest), tmp_path, "choose another name")


def test_what_is_no_packed_file(tmp_path: Path) -> None:
    refused(b"x" * 100, tmp_path, "not a file that 'onnxq pack' has written")
    refused(b"", tmp_path, "not a file that 'onnxq pack' has written")
    with pytest.raises(ModelError, match="there is no packed file"):
        unpack(tmp_path / "missing", tmp_path / "out.onnx")


@pytest.mark.parametrize("bad", [b"", b"nonsense", b"\x08\x08:\xff\xff"])
def test_what_is_no_model(bad: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bad)
    with pytest.raises(ModelError, match=r"model\.onnx is (empty|not an ONNX model)"):
        pack(tmp_path / "model.onnx", tmp_path / "p")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model file"):
        pack(tmp_path / "model.onnx", tmp_path / "p")
    source = save(packed_model(4), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="its folder does not exist"):
        pack(source, tmp_path / "none" / "p")
    onnx.save(packed_model(4), source, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"in 'w\.bin', which is missing"):
        pack(source, tmp_path / "p")


def test_external_data_outside_the_folder_are_refused(tmp_path: Path) -> None:
    model = packed_model(4)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../w.bin")
    with pytest.raises(ModelError, match="not a path inside the model's folder"):
        pack(save(model, tmp_path / "model.onnx"), tmp_path / "p")


def test_without_constriction_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(packed_model(4), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ModelError, match=r"pip install 'onnxq\[pack\]'"):
        pack(source, tmp_path / "p")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_time_grows_with_the_bytes(tmp_path: Path) -> None:
    """Eight times the weights take less than twenty times as long."""
    seconds = []
    for number, rows in enumerate((1000, 8000)):
        values = np.random.default_rng(0).normal(0, 20, (rows, 500)).astype(np.int8)
        model = build("g (float[N] x) => (float[N] y) { y = Relu(x) }", K=values)
        source = save(model, tmp_path / f"{number}.onnx")
        times = []
        for _ in range(3):
            start = time.perf_counter()
            pack(source, tmp_path / "p")
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
        assert numpy_helper.to_array(model.graph.initializer[0]).nbytes > pack(source, tmp_path / "p").after
    assert seconds[1] < 20 * seconds[0]


def test_pieces_of_a_weight_are_found_by_their_decoder(tmp_path: Path) -> None:
    source = save(packed_model(13), tmp_path / "model.onnx")
    (weight,) = scan(source).weights
    data = source.read_bytes()
    parts = [np.frombuffer(data[r.offset : r.offset + r.length], np.uint8) for r in weight.regions]
    codes = codes_for(WEIGHT, 13, 1)
    np.testing.assert_array_equal(weight.read(parts), (encode(WEIGHT, codes) - codes.low).reshape(-1))
    assert [len(p) for p in parts] == [p.nbytes for p in pieces.pack(encode(WEIGHT, codes) - codes.low, 13)]
