"""What an analysis knows of a model's values: shapes, element types and small known contents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from graphprune.errors import ModelError

Array = npt.NDArray[Any]
Dims = tuple[int | None, ...]

OPEN = -(1 << 62) - 1
"""What stands in `Facts.sizes` for a size that is not known."""
MAX_CONSTANT = 65_536  # elements of a constant that `Facts.known` reads


class Type(NamedTuple):
    """What is known of a value: element type, partial shape, and the full proto of a non-tensor."""

    dtype: ir.DataType | None = None
    dims: Dims | None = None
    proto: onnx.TypeProto | None = None


UNKNOWN = Type()


class Facts:
    """Shapes, element types and small values of the values of one model, as far as they are known.

    Attributes
    ----------
    problems
        Nodes whose input shapes contradict each other, with the message, in order of discovery.
    symbols
        Sizes of the named dynamic dimensions, as bound by the probe shapes.
    """

    def __init__(self) -> None:
        self.problems: list[tuple[ir.Node, str]] = []
        self.symbols: dict[str, int] = {}
        self.depth = 0
        self._types: dict[ir.Value, Type] = {}
        self._known: dict[ir.Value, Array] = {}
        self._sizes: dict[ir.Value, Array] = {}
        self._tensors: dict[ir.Value, tuple[object, ir.TensorProtocol, Type]] = {}
        self._small: dict[ir.Value, tuple[object, Array | None]] = {}

    # Reading

    def type(self, value: ir.Value) -> Type:
        """Return all that is known of the type: inferred, else of the constant, else as declared."""
        found = self._types.get(value)
        if found is not None:
            return found
        constant = self._constant(value)
        return self.declared(value) if constant is None else constant[2]

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Return the concrete shape, or None where the rank or any size is unknown."""
        dims = self.type(value).dims
        if dims is None or None in dims:
            return None
        return dims  # type: ignore[return-value]  # no None left in it

    def partial(self, value: ir.Value) -> Dims | None:
        """Return the shape with None for unknown sizes; None where even the rank is unknown."""
        return self.type(value).dims

    def rank(self, value: ir.Value) -> int | None:
        """Return the number of axes, None where unknown."""
        dims = self.type(value).dims
        return None if dims is None else len(dims)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Return the element type, None for unknown ones and for sequences, maps and optionals."""
        return self.type(value).dtype

    def known(self, value: ir.Value) -> Array | None:
        """Return the value itself where it is known and small: a constant or shape arithmetic."""
        array = self._known.get(value)
        if array is not None:
            return array
        constant = self._constant(value)
        if constant is None:
            return None
        cached = self._small.get(value)
        if cached is not None and cached[0] is constant[0]:
            return cached[1]
        dims = constant[2].dims or ()
        small = constant[2].dtype != ir.DataType.STRING and math.prod(d or 0 for d in dims) <= MAX_CONSTANT
        try:
            array = constant[1].numpy() if small else None
        except Exception:  # a damaged tensor of any kind is a value nobody knows
            array = None
        self._small[value] = (constant[0], array)
        return array

    def sizes(self, value: ir.Value) -> Array | None:
        """Return what is known of sizes that a model reads, `OPEN` where one is not; all of it where all is known."""
        array = self._sizes.get(value)
        return self.known(value) if array is None else array

    def constant(self, value: ir.Value) -> Array | None:
        """Return an initializer or a Constant's tensor of any size, memory-mapped where it is external."""
        constant = self._constant(value)
        if constant is None:
            return None
        try:
            array: Array = constant[1].numpy()
        except Exception as error:
            raise ModelError(f"the data of tensor {value.name!r} cannot be read: {error}") from error
        return array

    # Writing

    def set_shape(self, value: ir.Value, shape: Sequence[int | None], dtype: ir.DataType | None = None) -> None:
        """Say that ``value`` has this (partial) shape now; drops a known value of another shape."""
        dims = tuple(None if d is None else int(d) for d in shape)
        self._types[value] = Type(dtype or self.type(value).dtype, dims)
        if value in self._known and self._known[value].shape != dims:
            del self._known[value]

    def set_type(self, value: ir.Value, type_: Type) -> None:
        """Say what is known of the type of ``value``; drops its known value."""
        self._types[value] = type_
        self._known.pop(value, None)
        self._sizes.pop(value, None)

    def set_known(self, value: ir.Value, array: Array) -> None:
        """Say that ``value`` is ``array``, whose shape and element type become the value's."""
        dtype: ir.DataType | None
        self._known[value] = array
        try:
            dtype = ir.DataType.from_numpy(array.dtype)
        except TypeError:
            dtype = self.type(value).dtype
        self._types[value] = Type(dtype, tuple(int(d) for d in array.shape))

    def set_sizes(self, value: ir.Value, array: Array) -> None:
        """Say what is known of sizes that ``value`` holds, `OPEN` for those that are not."""
        if is_open(array):
            self._sizes[value] = array
        else:
            self.set_known(value, array)

    def forget(self, value: ir.Value) -> None:
        """Drop what was inferred: constants are read afresh, all others are unknown until stepped again."""
        self._known.pop(value, None)
        self._sizes.pop(value, None)
        self._tensors.pop(value, None)
        self._small.pop(value, None)
        self._types.pop(value, None)
        if self._constant(value) is None:
            self._types[value] = UNKNOWN

    # Sources

    def declared(self, value: ir.Value) -> Type:
        """Return the type that the file states, named dimensions replaced by their probe size."""
        kind = value.type
        if kind is not None and not isinstance(kind, ir.TensorType):
            return Type(None, None, _serialized(kind))
        dims = None if value.shape is None else tuple(self._declared_size(d) for d in value.shape)
        return Type(None if kind is None else kind.dtype, dims)

    def _declared_size(self, size: int | ir.SymbolicDim) -> int | None:
        if isinstance(size, int):
            return size if size >= 0 else None
        return None if size.value is None else self.symbols.get(size.value)

    def _constant(self, value: ir.Value) -> tuple[object, ir.TensorProtocol, Type] | None:
        """Return (identity of the source, tensor, type) of an initializer or of a Constant's output."""
        source = _source(value)
        if source is None:
            return None
        cached = self._tensors.get(value)
        # A rewritten weight is another tensor object: comparing identities keeps the cache honest.
        if cached is not None and cached[0] is source:
            return cached
        try:
            tensor = _as_tensor(source)
            entry = (source, tensor, Type(tensor.dtype, tuple(int(d) for d in tensor.shape.numpy())))
        except (TypeError, ValueError):
            return None
        self._tensors[value] = entry
        return entry


def is_open(array: Array) -> bool:
    """Whether a size among these is not known, see `Facts.sizes`."""
    return array.dtype == np.int64 and bool((array == OPEN).any())


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or of a Constant node's output; None for all other values."""
    source = _source(value)
    try:
        return None if source is None else _as_tensor(source)
    except (TypeError, ValueError):
        return None


def _source(value: ir.Value) -> ir.TensorProtocol | ir.Attr | None:
    """Return what holds the contents of a constant: the initializer's tensor or the Constant's attribute."""
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain:
        return None
    return next((a for n, a in node.attributes.items() if n.startswith("value")), None)


def _as_tensor(source: object) -> ir.TensorProtocol:
    if not isinstance(source, ir.Attr):
        # An initializer's contents are a tensor; asking the protocol class would cost more than all the rest.
        return cast(ir.TensorProtocol, source)
    value = source.value
    if source.type == ir.AttributeType.TENSOR:
        tensor: ir.TensorProtocol = source.as_tensor()
        return tensor
    if source.type in (ir.AttributeType.STRING, ir.AttributeType.STRINGS):
        texts = [value] if isinstance(value, str) else list(value)
        data = [t.encode() for t in texts]
        return ir.StringTensor(data, shape=ir.Shape(() if isinstance(value, str) else (len(data),)))
    integer = source.type in (ir.AttributeType.INT, ir.AttributeType.INTS)
    if not integer and source.type not in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        raise TypeError(f"Constant of kind {source.type}")
    return ir.tensor(np.array(value, np.int64 if integer else np.float32))


def _serialized(kind: ir.TypeProtocol) -> onnx.TypeProto | None:
    try:
        return ir.serde.serialize_type(kind)
    except (TypeError, ValueError, ir.serde.SerdeError):
        return None
