import json
import os
import struct
import threading
from io import FileIO

import numpy as np
import pytest

from onnxq.errors import TrainingError
from onnxq.qat.protocol import Channel, Message, encode


@pytest.fixture
def ends():
    """Two channels that are connected; the first one gives up after two seconds without an answer."""

    def waiting(seconds):
        if seconds >= 2:
            raise TimeoutError

    (a, b), (c, d) = os.pipe(), os.pipe()
    files = [FileIO(a, "rb"), FileIO(d, "wb"), FileIO(c, "rb"), FileIO(b, "wb")]
    yield Channel(files[0], files[1], waiting), Channel(files[2], files[3]), files
    for file in files:
        file.close()


def exchanged(ends, message):
    one, other, _ = ends
    got = []
    reader = threading.Thread(target=lambda: got.append(other.receive()))
    reader.start()
    one.send(message)
    reader.join(10)
    answer = threading.Thread(target=other.send, args=(got[0],))
    answer.start()
    back = one.receive()
    answer.join(10)
    return got[0], back


ARRAYS = {
    "scalar": np.float32(3.5),
    "empty": np.zeros((0, 4), np.int64),
    "bool": np.array([[True], [False]]),
    "big endian": np.arange(5, dtype=">f8"),
    "strided": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3],
    "int8": np.array([-128, 127], np.int8),
    "nan": np.array([np.nan, -np.inf, -0.0], np.float16),
}


def test_arrays_and_fields_arrive_as_they_were(ends):
    fields = {"rate": 0.1, "names": ["a", "ü"], "none": None}
    for got in exchanged(ends, Message("kind", fields, ARRAYS)):
        assert (got.kind, got.fields) == ("kind", fields)
        assert list(got.arrays) == list(ARRAYS)
        for name, array in ARRAYS.items():
            array = np.asarray(array)
            assert got.arrays[name].shape == array.shape, name
            assert got.arrays[name].dtype == array.dtype.newbyteorder("<"), name
            assert got.arrays[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes(), name
            assert got.arrays[name].flags.writeable


def test_more_than_a_pipe_holds(ends):
    big = np.random.default_rng(0).normal(size=(3, 1_000_000)).astype(np.float32)
    for got in exchanged(ends, Message("big", {}, {"a": big, "b": big[:, :5]})):
        np.testing.assert_array_equal(got.arrays["a"], big)
        np.testing.assert_array_equal(got.arrays["b"], big[:, :5])


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([object()]), np.array([1j])])
def test_only_numbers_are_sent(array):
    with pytest.raises(TrainingError, match="'it' is an array of"):
        encode(Message("kind", {}, {"it": array}))


def test_end_between_messages_is_none_and_within_one_an_error(ends):
    one, _, files = ends
    files[3].close()
    assert one.receive() is None


def test_end_within_a_message(ends):
    one, _, files = ends
    whole = b"".join(encode(Message("kind", {}, {"a": np.arange(9)})))
    files[3].write(whole[:-1])
    files[3].close()
    with pytest.raises(EOFError):
        one.receive()


def test_waiting_is_given_up(ends):
    one, _, files = ends
    with pytest.raises(TimeoutError):
        one.receive()
    files[3].write(b"".join(encode(Message("kind")))[:10])
    with pytest.raises(TimeoutError):
        one.receive()


def test_writing_to_a_side_that_does_not_read_is_given_up(ends):
    with pytest.raises(TimeoutError):
        ends[0].send(Message("big", {}, {"a": np.zeros(1 << 22)}))


def raw(header, array_bytes=0, magic=b"oqw1"):
    return struct.pack("<4sIQ", magic, len(header), array_bytes) + header


@pytest.mark.parametrize(
    "data",
    [
        raw(b"[]", magic=b"GET "),
        raw(b"not json"),
        raw(b'["kind", {}]'),
        raw(json.dumps(["kind", {}, [["a", "<f4", [2]]]]).encode(), 4),
        raw(json.dumps(["kind", {}, [["a", "<f4", [-2]]]]).encode(), -8 & 0xFF),
        raw(json.dumps(["kind", {}, [["a", "|O", [1]]]]).encode(), 8),
        raw(json.dumps(["kind", [], []]).encode()),
    ],
)
def test_what_is_no_message_is_refused(ends, data):
    one, _, files = ends
    files[3].write(data)
    with pytest.raises(TrainingError, match="training worker"):
        one.receive()
