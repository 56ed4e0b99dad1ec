"""Run a model in ONNX Runtime with a bounded amount of weights in memory at a time.

A model whose weights fit runs in one session. A larger one is cut into pieces in topological order; each
runs in a session of its own whose weights are fed straight from the memory-mapped file, and live values are
passed on and freed after their last use.

Sessions optimise at the level ORT_ENABLE_BASIC: constants are folded and norms merged into convolutions,
which is most of the speed, by rewrites that depend on the graph only. The levels above choose fused and
blocked kernels by the number of channels, so that a model and its cut version would round differently. Models
that are compared must run at the same level.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphprune.backends.ort_values import Array, as_array, drop_pages, message, ort_value, parse_type, to_numpy
from graphprune.backends.pieces import Piece, cut, is_large
from graphprune.backends.session_proto import SessionWriter, Types, tensor_type
from graphprune.errors import DataError, ModelError, UsageError
from graphprune.facts import constant_tensor

MEBI = 1 << 20
BASIC = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
NONE = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
EXTENDED = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
#: Integer products: processors without VNNI saturate sums of two of them if the weights are signed.
_SATURATING = ("MatMulInteger", "ConvInteger", "QLinear", "QGemm", "QAttention", "DynamicQuantize")

_WIDE: Types = {ir.DataType.FLOAT16: ir.DataType.FLOAT, ir.DataType.BFLOAT16: ir.DataType.FLOAT}
# The runtime has no bfloat16 arithmetic on the CPU and no convolution in double.
_LACKING: Types = {ir.DataType.BFLOAT16: ir.DataType.FLOAT, ir.DataType.DOUBLE: ir.DataType.FLOAT}
# A weight that must be written into the session's model passes through a few copies on its way in.
_COPIES = 4

Feed = Mapping[str, Array]
Live = dict[ir.Value, ort.OrtValue]


def default_threads() -> int | None:
    """Threads within an operator where nobody says: as the environment does in a worker process, else all cores."""
    given = os.environ.get("GRAPHPRUNE_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else None


class _Restart(Exception):
    """The sessions have to be built again, with other element types."""


class Runner:
    """Runs one model; sessions are built when first needed.

    Parameters
    ----------
    model
        Read only; it must not change while the runner is in use.
    outputs
        Names of top-level values to return, the graph's outputs by default.
    max_weight_bytes
        Bytes of weights that a session may hold. A single node with more gets a session to itself.
    max_activation_bytes
        Bytes of values that `run_many` may hold between the pieces of a large model.
    threads
        Threads within an operator; all cores by default.
    replace
        Gives other contents for a constant (same shape and dtype), or None to leave it. Called when a session
        is built, for the constants of that session.
    widen
        Compute half precision and bfloat16 in float32, and return float32: the rounding of narrow types
        hides what a comparison looks for. None: only where the runtime lacks the kernels.
    level
        The runtime's graph optimisation level.

    Raises
    ------
    UsageError
        ``outputs`` names a value that the graph does not have.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        outputs: Sequence[str] | None = None,
        max_weight_bytes: int = 512 * MEBI,
        max_activation_bytes: int = 256 * MEBI,
        threads: int | None = None,
        replace: Callable[[ir.Value], Array | None] | None = None,
        widen: bool | None = None,
        level: ort.GraphOptimizationLevel = BASIC,
    ) -> None:
        self._model = model
        self._replace = replace
        self._limits = max_weight_bytes, max_activation_bytes
        self._threads = default_threads() if threads is None else threads
        self._level = level
        self._saturates = _may_saturate(model)
        self._may_widen = widen is not False
        self._inputs = {v.name or "": v for v in model.graph.inputs if not v.is_initializer()}
        self.outputs = _find(model.graph, outputs)
        self._peak = 0
        self._set_types(_WIDE if widen else {})

    @property
    def pieces(self) -> int:
        """Sessions that one run takes."""
        return len(self._pieces)

    @property
    def widened(self) -> bool:
        """Whether narrow (or double) types are computed and returned in float32."""
        return bool(self._writer.types)

    # Running

    def run(self, feeds: Feed) -> dict[str, Array]:
        """Run on one sample.

        Parameters
        ----------
        feeds
            One array per graph input, of the declared dtype.

        Returns
        -------
        dict
            Output name to array. A sequence comes as a 1-d array of objects, each an array.

        Raises
        ------
        ModelError
            The runtime cannot load or run the model; the message names the node.
        DataError
            The feeds do not fit the graph's inputs.
        """
        return self._pass([feeds])[0]

    def run_many(self, samples: Iterable[Feed], callback: Callable[[int, dict[str, Array]], None]) -> None:
        """Run on many samples, loading each piece's weights once for as many samples as memory allows.

        Parameters
        ----------
        samples
            Read a few at a time.
        callback
            Called in order with the sample's position and its outputs.
        """
        iterator = iter(samples)
        room, done = 1, 0  # the first sample shows how much its values take
        while batch := list(itertools.islice(iterator, room)):
            for outputs in self._pass(batch):
                callback(done, outputs)
                done += 1
            if len(self._pieces) > 1:
                room = max(1, self._limits[1] // max(self._peak, 1))

    def _pass(self, samples: Sequence[Feed]) -> list[dict[str, Array]]:
        while True:
            try:
                return self._through(samples)
            except _Restart:
                continue

    def _through(self, samples: Sequence[Feed]) -> list[dict[str, Array]]:
        """Take all samples through piece after piece."""
        fed = [self._fed(feeds) for feeds in samples]
        live: list[Live] = [{v: self._value(a) for v, a in arrays.items() if a.dtype.kind != "O"} for arrays in fed]
        wanted = set(self.outputs.values())
        results: list[dict[ir.Value, Array]] = [{} for _ in samples]
        for index, piece in enumerate(self._pieces):
            session = self._session(index, piece, live[0])
            for arrays, values, result in zip(fed, live, results, strict=True):
                session.run(arrays, values, result, wanted)
                for value in piece.last:
                    values.pop(value, None)
                held = sum(v.tensor_size_in_bytes() for v in values.values() if v.is_tensor())
                self._peak = max(self._peak, held + sum(a.nbytes for a in result.values()))
            if len(self._pieces) > 1:
                session.close()
        return [self._collect(arrays, result) for arrays, result in zip(fed, results, strict=True)]

    def _collect(self, arrays: Mapping[ir.Value, Array], result: Mapping[ir.Value, Array]) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, value in self.outputs.items():
            if value in result:
                found[name] = result[value]
            elif value in arrays:
                found[name] = arrays[value]
            else:
                found[name] = np.array(self._writer.contents(value))
        return found

    def _fed(self, feeds: Feed) -> dict[ir.Value, Array]:
        """Check feeds against the inputs; strings as object arrays, all in the element type that is run."""
        if missing := [n for n in self._inputs if n not in feeds]:
            raise DataError(f"no data for input {', '.join(map(repr, missing))}")
        if unknown := [n for n in feeds if n not in self._inputs]:
            raise DataError(
                f"the model has no input {', '.join(map(repr, unknown))}; its inputs are {', '.join(self._inputs)}"
            )
        found: dict[ir.Value, Array] = {}
        for name, value in self._inputs.items():
            array = np.asarray(feeds[name])
            try:
                dtype = ir.DataType.STRING if array.dtype.kind in "OSU" else ir.DataType.from_numpy(array.dtype)
            except TypeError:
                dtype = ir.DataType.UNDEFINED
            if value.dtype is not None and dtype != value.dtype:
                raise DataError(
                    f"input {name!r} takes {value.dtype.name.lower()}, the data are {array.dtype}; convert them first"
                )
            if dtype == ir.DataType.STRING:
                found[value] = array.astype(object)
                continue
            wanted = self._writer.type(dtype)
            found[value] = array if wanted == dtype else array.astype(wanted.numpy())
        return found

    @staticmethod
    def _value(array: Array) -> ort.OrtValue:
        return ort_value(array, ir.DataType.from_numpy(array.dtype))

    # Building

    def _set_types(self, types: Types) -> None:
        self._writer = SessionWriter(self._model, self._replace, types)
        self._single: Session | None = None
        wanted = [v for v in self.outputs.values() if constant_tensor(v) is None and v.producer() is not None]
        graph, cap = self._model.graph, self._limits[0]
        # Strings cannot be handed from one session to the next, so a model that reads them stays whole.
        strings = any(v.dtype == ir.DataType.STRING for v in self._inputs.values())
        self._pieces = cut(graph, wanted, None, self._cost)
        if not strings and sum(p.cost for p in self._pieces) > cap:
            self._pieces = cut(graph, wanted, cap, self._cost)

    def _cost(self, value: ir.Value) -> int:
        tensor = constant_tensor(value)
        assert tensor is not None
        size = int(tensor.size * self._writer.type(tensor.dtype).itemsize)
        return size if is_large(value) else size * _COPIES

    def _session(self, index: int, piece: Piece, live: Live) -> Session:
        if self._single is not None:
            return self._single
        chunked = len(self._pieces) > 1
        try:
            session = Session(self._writer, piece, live, self._options(chunked), fed=chunked)
        except ModelError as error:
            if self._widens(error):
                raise _Restart from error
            if not chunked:
                raise
            # A few operators insist on weights that are constants of the graph.
            session = Session(self._writer, piece, live, self._options(chunked), fed=False)
        if not chunked:
            self._single = session
        return session

    def _widens(self, error: ModelError) -> bool:
        """Go over to float32 where the runtime has no kernel for a type the model uses."""
        text = str(error)
        if not self._may_widen or not re.search(r"no implementation|bfloat16|\(double\)", text):
            return False
        if all(a in self._writer.types for a in _LACKING) or not any(uses_type(self._model, t) for t in _LACKING):
            return False
        self._set_types({**self._writer.types, **_LACKING})
        return True

    def _options(self, chunked: bool) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.graph_optimization_level = self._level
        if self._saturates and self._level != NONE:
            # The runtime's way round it, whole sums with unsigned weights, is one of the extended rewrites. What
            # saturates depends on which products are neighbours, so a cut would not compute what its source does.
            options.graph_optimization_level = max(self._level, EXTENDED, key=lambda level: level.value)
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 4  # failures are raised; the runtime's own lines would double them
        options.use_deterministic_compute = True
        # Threads that spin between operators take a core each from this program's own work, and from all others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        # An arena keeps the largest activations of every piece, a second packed copy doubles the weights.
        held = sum(p.cost for p in self._pieces)
        if chunked or held > self._limits[0] // 8:
            options.enable_cpu_mem_arena = False
            options.add_session_config_entry("session.disable_prepacking", "1")
        return options

    @staticmethod
    def supported(model: ir.Model) -> tuple[bool, str]:
        """Say whether ONNX Runtime can load the model, without reading its large weights.

        Returns
        -------
        tuple
            Whether it can, and otherwise why not: the message names the operator.
        """
        runner = Runner(model)
        for _ in range(2):
            try:
                runner._try()
            except ModelError as error:
                if not runner._widens(error):
                    return False, str(error)
            else:
                break
        return True, ""

    def _try(self) -> None:
        """Load the whole graph as one session that is never run."""
        wanted = [v for piece in self._pieces for v in piece.outputs if v in set(self.outputs.values())]
        for piece in cut(self._model.graph, wanted, None, self._cost):
            try:
                Session(self._writer, piece, {}, self._check_options(), fed=True, hollow=True).close()
            except ModelError:
                if piece.cost > self._limits[0]:
                    raise
                # A few operators insist on weights that are constants of the graph.
                Session(self._writer, piece, {}, self._check_options(), fed=False).close()

    def _check_options(self) -> ort.SessionOptions:
        options = self._options(True)
        options.graph_optimization_level = NONE
        return options


def _may_saturate(model: ir.Model) -> bool:
    """Whether unsigned data meets signed weights; signed data has other kernels, and the rewrite breaks those."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type.startswith(_SATURATING)]
    points = [node.inputs[2] for node in nodes if node.op_type.startswith("Q") and len(node.inputs) > 2]
    return bool(nodes) and all(value is None or value.dtype != ir.DataType.INT8 for value in points)


class Session:
    """One piece, loaded.

    Parameters
    ----------
    fed
        Give large weights as inputs, without any copy; otherwise as initializers, which the runtime copies
        once but can fold.
    hollow
        Do not read large weights at all: to see whether the model loads.
    """

    def __init__(
        self,
        writer: SessionWriter,
        piece: Piece,
        live: Live,
        options: ort.SessionOptions,
        *,
        fed: bool,
        hollow: bool = False,
    ) -> None:
        self._piece = piece
        self._writer = writer
        self._large = [v for v in piece.weights if is_large(v)]
        self._weights: dict[str, ort.OrtValue] = {}
        inputs = [(v, self._input_type(v, live)) for v in piece.inputs]
        proto = writer.model(piece.nodes, inputs, piece.outputs, list(piece.weights), weights_as_inputs=fed)
        if not hollow:
            for value in self._large:
                array = writer.contents(value)
                self._weights[writer.name(value)] = ort_value(array, writer.element_type(value))
                drop_pages(constant_tensor(value))  # of what was copied; what is mapped is read when it runs
        if not fed and self._weights:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        try:
            self._session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(message(error, "load")) from error
        self._objects = {o.name for o in self._session.get_outputs() if not o.type.startswith("tensor(")}
        self._objects.update(o.name for o in self._session.get_outputs() if o.type == "tensor(string)")
        if not fed:
            self._weights = {}
            self._forget()

    def _input_type(self, value: ir.Value, live: Live) -> onnx.TypeProto:
        if value.producer() is None and (declared := self._writer.input_type(value)) is not None:
            return declared
        if value in live:
            found = live[value]
            return (
                tensor_type(ir.DataType(found.element_type()), [None] * len(found.shape()))
                if found.is_tensor()
                else parse_type(found.data_type())
            )
        raise ModelError(f"input {value.name!r} has no declared type")

    def run(
        self,
        arrays: Mapping[ir.Value, Array],
        live: Live,
        result: dict[ir.Value, Array],
        wanted: set[ir.Value],
    ) -> None:
        """Run on ``live`` (and strings from ``arrays``); add to it what later pieces need, to ``result`` the rest."""
        feeds: dict[str, Any] = {self._writer.name(v): live[v] for v in self._piece.inputs if v in live}
        feeds.update(self._weights)
        texts = {self._writer.name(v): arrays[v] for v in self._piece.inputs if v not in live}
        names = {self._writer.name(v): v for v in self._piece.outputs}
        try:
            if texts:
                found = self._session.run(list(names), {**feeds, **texts})
                result.update((v, as_array(x)) for v, x in zip(names.values(), found, strict=True))
                return
            values = dict(zip(names, self._session.run_with_ort_values(list(names), feeds), strict=True))
            final = [n for n, v in names.items() if v in wanted and n in self._objects]
            # Sequences and strings have no buffer to read; the runtime converts them when it runs.
            objects = dict(zip(final, self._session.run(final, feeds), strict=True)) if final else {}
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(message(error, "run")) from error
        last = set(self._piece.last)
        for name, value in names.items():
            if value in wanted:
                result[value] = as_array(objects[name]) if name in objects else to_numpy(values[name])
            if value not in last:
                live[value] = values[name]

    def close(self) -> None:
        """Free the session, and the pages of the file that its weights lie in."""
        self._weights = {}
        del self._session
        self._forget()

    def _forget(self) -> None:
        for value in self._large:
            drop_pages(constant_tensor(value))


def _find(graph: ir.Graph, names: Sequence[str] | None) -> dict[str, ir.Value]:
    if names is None:
        return {v.name or "": v for v in graph.outputs}
    known = {v.name: v for node in graph for v in node.outputs if v.name}
    known.update((v.name, v) for v in (*graph.initializers.values(), *graph.inputs) if v.name)
    for name in names:
        if name not in known:
            raise UsageError(f"no value of the top-level graph is called {name!r}")
    return {name: known[name] for name in names}


def uses_type(model: ir.Model, dtype: ir.DataType) -> bool:
    """Whether a type occurs: among inputs, constants, or what a Cast makes."""
    for graph in model.graphs():
        if any(v.dtype == dtype for v in (*graph.inputs, *graph.initializers.values())):
            return True
        for node in graph:
            if any(v.dtype == dtype or ((t := constant_tensor(v)) and t.dtype == dtype) for v in node.outputs):
                return True
            if node.attributes.get_int("to", 0) == int(dtype):
                return True
    return False
