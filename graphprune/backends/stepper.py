"""Run a model step by step over many samples, so that its weights can change between the steps.

A :class:`Stepper` holds the values that are alive at one place of the graph, for all samples, and takes
them past the next nodes. What does not fit into memory lies in a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from graphprune.backends.ort import BASIC, Session, default_threads, uses_type
from graphprune.backends.ort_values import Array, as_array, ort_value
from graphprune.backends.pieces import Piece, needed_nodes, reads
from graphprune.backends.session_proto import SessionWriter, Types
from graphprune.errors import UsageError
from graphprune.inputs import Feed


class Shelf:
    """Arrays by key: in memory up to a cap, in a temporary file beyond it.

    Parameters
    ----------
    cap
        Bytes held in memory.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._held = 0
        self._arrays: dict[Any, Array] = {}
        self._places: dict[Any, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._free: dict[int, list[int]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, key: Any, array: Array) -> None:
        """Keep an array; one of the same key is dropped."""
        self.drop(key)
        if self._held + array.nbytes <= self._cap or array.dtype.hasobject:
            self._arrays[key] = array
            self._held += array.nbytes
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="graphprune-")  # noqa: SIM115 - closed with the shelf
        # Places of values that are no longer alive are used again: samples mostly have equal shapes.
        spare = self._free.get(array.nbytes)
        start = spare.pop() if spare else self._end
        self._end = max(self._end, start + array.nbytes)
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._places[key] = (start, array.shape, array.dtype)

    def get(self, key: Any) -> Array:
        """The array of a key, of the shape and dtype that it was put with."""
        if key in self._arrays:
            return self._arrays[key]
        start, shape, dtype = self._places[key]
        assert self._file is not None
        self._file.seek(start)
        raw = self._file.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        return np.frombuffer(raw, dtype).reshape(shape)

    def drop(self, key: Any) -> None:
        """Forget a key, if it is there."""
        array = self._arrays.pop(key, None)
        if array is not None:
            self._held -= array.nbytes
        place = self._places.pop(key, None)
        if place is not None:
            start, shape, dtype = place
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self._free.setdefault(size, []).append(start)

    def close(self) -> None:
        """Forget everything."""
        self._arrays.clear()
        self._places.clear()
        self._held = 0
        if self._file is not None:
            self._file.close()
            self._file = None


def float_types(*models: ir.Model) -> Types:
    """Element types to compute in float32: half precision, and double where it occurs (convolution lacks it)."""
    narrow = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
    return {t: ir.DataType.FLOAT for t in narrow if any(uses_type(model, t) for model in models)}


class Stepper:
    """A place in a graph, with the values alive there for every feed.

    Parameters
    ----------
    model
        Weights may be replaced between steps, nodes that were not reached yet may change, order may not.
    feeds
        One mapping of input name to array each.
    cap
        Bytes of values held in memory; more lie in a temporary file.
    types
        Element types that are computed in another one (:func:`float_types`).
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed], cap: int, types: Types | None = None) -> None:
        self._model = model
        self._feeds = feeds
        self._types = dict(types or {})
        self._inputs = {str(v.name): v for v in model.graph.inputs if not v.is_initializer()}
        self.nodes = needed_nodes(model.graph, list(model.graph.outputs))
        self._last: dict[ir.Value, int] = {}
        for position, node in enumerate(self.nodes):
            for value in reads(node)[0]:
                self._last[value] = position
        for value in model.graph.outputs:
            self._last[value] = len(self.nodes)
        self._shelf = Shelf(cap)
        self._alive: set[ir.Value] = set()
        self.position = 0
        self.rewind()

    def rewind(self) -> None:
        """Back to the first node."""
        self._shelf.close()
        self._alive = set()
        self.position = 0
        for i, feed in enumerate(self._feeds):
            for name, value in self._inputs.items():
                array = np.asarray(feed[name])
                if array.dtype.kind in "OSU":
                    raise UsageError(f"input '{name}' takes text: recovery and data statistics need numbers")
                dtype = ir.DataType.from_numpy(array.dtype)
                wanted = self._types.get(dtype, dtype)
                if value in self._last:
                    self._alive.add(value)
                    self._shelf.put((i, value), array if wanted == dtype else array.astype(wanted.numpy()))

    def advance(self, to: int) -> None:
        """Run the nodes from the current position up to, not with, position ``to``."""
        if to <= self.position:
            return
        piece = self._piece(self.position, to)
        session: Session | None = None
        writer = SessionWriter(self._model, types=self._types)
        for i in range(len(self._feeds)):
            live = {v: _value(self._shelf.get((i, v))) for v in piece.inputs}
            if session is None:
                session = Session(writer, piece, live, _options(), fed=False)
            found: dict[ir.Value, Array] = {}
            session.run({}, live, found, set(piece.outputs))
            for value in piece.outputs:
                array = as_array(found[value])
                if array.dtype.hasobject and self._last[value] < len(self.nodes):
                    raise UsageError(f"'{value.name}' is a sequence or text: recovery and data statistics need tensors")
                self._shelf.put((i, value), array)
            for value in piece.last:
                self._shelf.drop((i, value))
        if session is not None:
            session.close()
        self._alive = (self._alive | set(piece.outputs)) - set(piece.last)
        self.position = to

    def value(self, feed: int, value: ir.Value) -> Array:
        """A live value of one feed."""
        return self._shelf.get((feed, value))

    def close(self) -> None:
        """Free everything."""
        self._shelf.close()

    def _piece(self, start: int, end: int) -> Piece:
        piece = Piece(nodes=self.nodes[start:end])
        made: dict[ir.Value, None] = {}
        needed: dict[ir.Value, None] = {}
        for node in piece.nodes:
            values, constants = reads(node)
            piece.weights.update(dict.fromkeys(constants))
            needed.update((v, None) for v in values if v not in made)
            made.update((v, None) for v in node.outputs if v.name != "")
        piece.inputs = list(needed)
        piece.outputs = [v for v in made if self._last.get(v, -1) >= end]
        piece.last = [v for v in piece.inputs if self._last.get(v, -1) < end]
        return piece


def _value(array: Array) -> ort.OrtValue:
    return ort_value(array, ir.DataType.from_numpy(array.dtype))


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = BASIC
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    if (threads := default_threads()) is not None:
        options.intra_op_num_threads = threads
    # An arena would keep the largest activations of every step.
    options.enable_cpu_mem_arena = False
    return options

