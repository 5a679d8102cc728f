"""Where the numbers of a constant lie: in a protobuf, in an array, in a file, or not made yet.

A `gs.Constant` of onnxq holds one of these instead of an array, so that graph edits never touch
the numbers. All of them are immutable and can be shared by several graphs.
"""

from __future__ import annotations

import abc
import math
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxq._graph import dtypes
from onnxq.errors import ModelError

_PIECE = 1 << 23


@dataclass(frozen=True, slots=True)
class LazyArray:
    """An array that is computed only when it is read or saved, and not kept.

    Attributes:
        shape: Its shape.
        dtype: Its numpy or ml_dtypes type.
        make: Returns the array; must return the same numbers each time it is called.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], NDArray[Any]]


class Weights(LazyValues, abc.ABC):  # type: ignore[misc] # gs is untyped
    """The numbers of one constant.

    Attributes:
        shape: Shape of the array.
        dtype: Its numpy or ml_dtypes type; `object` for strings.
        onnx_type: Its element type as ONNX numbers it.
        nbytes: Bytes in `raw_data` form; 0 where there is no such form (strings).
        template: A TensorProto without name and numbers whose other fields are kept, or None.
    """

    def __init__(self, shape: tuple[int, ...], onnx_type: int, template: onnx.TensorProto | None = None) -> None:
        # LazyValues.__init__ is left out on purpose: it wants a TensorProto that holds the numbers
        self.shape: tuple[int, ...] = shape
        self.onnx_type = onnx_type
        self.dtype: np.dtype[Any] | None = dtypes.to_numpy(onnx_type)
        self.nbytes = dtypes.raw_size(onnx_type, math.prod(shape))
        self.template = template

    @abc.abstractmethod
    def array(self) -> NDArray[Any]:
        """The numbers, read-only; a view or a memmap where that is possible."""

    def load(self) -> NDArray[Any]:
        """Called by graphsurgeon for ``constant.values``."""
        return self.array()

    @property
    def streams(self) -> bool:
        """Whether the numbers have a `raw_data` form that can be written a piece at a time."""
        return self.nbytes > 0

    def pieces(self) -> Iterator[memoryview | bytes]:
        """The numbers as `raw_data`, in pieces: little endian, small types packed.

        Raises:
            ModelError: If the file they are in has gone.
            ValueError: If a lazy array is not what was promised.
        """
        yield to_raw(self.array(), self.onnx_type)

    @property
    def tensor(self) -> onnx.TensorProto:
        """The numbers as a TensorProto without a name (graphsurgeon's exporter asks for it)."""
        return self.proto("")

    def stub(self, name: str) -> onnx.TensorProto:
        """A TensorProto with everything but the numbers."""
        stub = onnx.TensorProto()
        if self.template is not None:
            stub.CopyFrom(self.template)
        stub.name = name
        stub.data_type = self.onnx_type
        del stub.dims[:]
        stub.dims.extend(self.shape)
        return stub

    def proto(self, name: str) -> onnx.TensorProto:
        """A new TensorProto that holds the numbers."""
        proto = self.stub(name)
        if self.onnx_type == onnx.TensorProto.STRING:
            proto.string_data.extend(_to_bytes(item) for item in self.array().reshape(-1))
        else:
            proto.raw_data = b"".join(self.pieces())
        return proto


class ProtoWeights(Weights):
    """Numbers inside a TensorProto, in whichever of its fields."""

    def __init__(self, source: onnx.TensorProto) -> None:
        super().__init__(tuple(source.dims), source.data_type)
        self._source = source

    def array(self) -> NDArray[Any]:
        """See `Weights.array`.

        Raises:
            ModelError: If the protobuf does not hold as many numbers as its shape says.
        """
        try:
            return read_only(onnx.numpy_helper.to_array(self._source))
        except (ValueError, TypeError) as err:
            raise ModelError(f"tensor {self._source.name!r} {list(self.shape)} is damaged: {err}") from err

    @property
    def streams(self) -> bool:
        """See `Weights.streams`."""
        return self.nbytes > 0 and self._source.HasField("raw_data")

    def pieces(self) -> Iterator[memoryview | bytes]:
        """See `Weights.pieces`."""
        if self._source.HasField("raw_data"):
            yield self._source.raw_data
        else:
            yield from super().pieces()

    def stub(self, name: str) -> onnx.TensorProto:
        """See `Weights.stub`."""
        stub = super().stub(name)
        if self._source.HasField("doc_string"):
            stub.doc_string = self._source.doc_string
        stub.metadata_props.extend(self._source.metadata_props)
        return stub

    def proto(self, name: str) -> onnx.TensorProto:
        """See `Weights.proto`."""
        proto = onnx.TensorProto()
        proto.CopyFrom(self._source)
        if name or self._source.HasField("name"):
            proto.name = name
        return proto


class ArrayWeights(Weights):
    """Numbers in an array of this process; nobody else may write to it."""

    def __init__(self, array: NDArray[Any]) -> None:
        super().__init__(array.shape, dtypes.to_onnx(array.dtype))
        self._array = read_only(array)

    def array(self) -> NDArray[Any]:
        """See `Weights.array`."""
        return self._array


class LazyWeights(Weights):
    """Numbers that are computed each time they are asked for."""

    def __init__(self, lazy: LazyArray) -> None:
        super().__init__(tuple(lazy.shape), dtypes.to_onnx(np.dtype(lazy.dtype)))
        self._lazy = lazy

    def array(self) -> NDArray[Any]:
        """See `Weights.array`.

        Raises:
            ValueError: If the maker's array is not of the promised shape and type.
        """
        array = np.asarray(self._lazy.make())
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"a lazy array made {array.dtype} {array.shape}, promised {self.dtype} {self.shape}")
        return read_only(array)


class DataFile:
    """An open file that weights are read from; closed with the last of them.

    The file stays readable when another one takes its name, so a model can be saved over itself.

    Attributes:
        name: What messages call it.
        size: Bytes it had when it was opened.
    """

    def __init__(self, handle: IO[bytes], name: str) -> None:
        self.name = name
        self.handle = handle
        self.size = handle.seek(0, 2)
        weakref.finalize(self, handle.close)

    def map(self, offset: int, length: int) -> NDArray[np.uint8]:
        """A new read-only memory map of a region.

        Raises:
            ModelError: If the file does not have that region any more.
        """
        try:
            return np.memmap(self.handle, np.uint8, mode="r", offset=offset, shape=(length,))
        except (OSError, ValueError) as err:
            raise ModelError(f"cannot read weights from {self.name}: {err}; was the file cut short meanwhile?") from err

    def append(self, data: memoryview) -> int:
        """Write `data` at the end; returns its offset."""
        offset = self.handle.seek(0, 2)
        self.handle.write(data)
        self.handle.flush()
        return offset


class FileWeights(Weights):
    """Numbers in `raw_data` form in a region of a file, read through a memory map.

    Each read makes a map of its own, so that the memory is given back with the last view of it.
    """

    def __init__(
        self,
        file: DataFile,
        offset: int,
        shape: tuple[int, ...],
        onnx_type: int,
        template: onnx.TensorProto | None = None,
    ) -> None:
        super().__init__(shape, onnx_type, template)
        self._file = file
        self._offset = offset

    def array(self) -> NDArray[Any]:
        """See `Weights.array`; copied only if the numbers are packed or not aligned in the file."""
        if self.nbytes == 0:
            return read_only(np.empty(self.shape, self.dtype))
        mapped = self._file.map(self._offset, self.nbytes)
        if dtypes.packed_bits(self.onnx_type):
            return read_only(dtypes.unpack(mapped, self.onnx_type, self.shape))
        array = mapped.view(np.dtype(self.dtype)).reshape(self.shape)
        return array if array.flags.aligned else read_only(np.array(array))

    def pieces(self) -> Iterator[memoryview | bytes]:
        """See `Weights.pieces`."""
        for start in range(0, self.nbytes, _PIECE):
            yield self._file.map(self._offset + start, min(_PIECE, self.nbytes - start)).data


class SparseWeights(Weights):
    """A sparse initializer, kept as it is and read as a dense array."""

    def __init__(self, source: onnx.SparseTensorProto) -> None:
        super().__init__(tuple(source.dims), source.values.data_type)
        self._source = source

    def array(self) -> NDArray[Any]:
        """See `Weights.array`."""
        values = onnx.numpy_helper.to_array(self._source.values)
        indices = onnx.numpy_helper.to_array(self._source.indices)
        dense = np.zeros(self.shape, values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return read_only(dense)

    def sparse_proto(self, name: str) -> onnx.SparseTensorProto:
        """A copy of the sparse tensor under another name."""
        proto = onnx.SparseTensorProto()
        proto.CopyFrom(self._source)
        proto.values.name = name
        return proto


class Spill:
    """Keeps new arrays in memory up to a budget and the rest in an unnamed temporary file.

    Attributes:
        budget: Bytes that may still be kept in memory.
    """

    SMALL = 1 << 16

    def __init__(self, budget: int = 256 << 20) -> None:
        self.budget = budget
        self._file: DataFile | None = None

    def keep(self, array: NDArray[Any]) -> Weights:
        """Take a private copy of `array`."""
        onnx_type = dtypes.to_onnx(array.dtype)
        in_memory = array.nbytes <= self.SMALL or array.nbytes <= self.budget
        if in_memory or onnx_type == onnx.TensorProto.STRING:
            self.budget -= array.nbytes
            return ArrayWeights(np.array(array, order="C"))
        if self._file is None:
            handle = tempfile.TemporaryFile(prefix="onnxq-")  # noqa: SIM115 - DataFile closes it
            self._file = DataFile(handle, "a temporary file")
        return FileWeights(self._file, self._file.append(to_raw(array, onnx_type)), array.shape, onnx_type)


def is_stub(proto: onnx.TensorProto) -> bool:
    """Whether a tensor has no numbers though its shape says that there are some."""
    fields = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
    return math.prod(proto.dims) > 0 and not any(len(getattr(proto, name)) for name in fields)


def weights_of(constant: Any) -> Weights:  # noqa: ANN401 - gs is untyped
    """The weights of a `gs.Constant`, whatever a pass put into it."""
    held = constant._values
    if isinstance(held, Weights):
        return held
    if isinstance(held, LazyValues):
        return ProtoWeights(held.tensor)
    return ArrayWeights(np.asarray(held))


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view of `array` that cannot be written to."""
    view: NDArray[Any] = array.view()
    view.flags.writeable = False
    return view


def to_raw(array: NDArray[Any], onnx_type: int) -> memoryview:
    """The bytes of `array` as ONNX's `raw_data` wants them; a view where possible."""
    bits = dtypes.packed_bits(onnx_type)
    if bits:
        return dtypes.pack(array, bits).data
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return flat.view(np.uint8).data


def _to_bytes(item: str | bytes) -> bytes:
    return item.encode() if isinstance(item, str) else item
