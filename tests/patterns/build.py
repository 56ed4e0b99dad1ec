"""Small tools to write a network in a few lines, and the registry of patterns."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

MS = "com.microsoft"
F32, F16, BF16, F64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
I64, I32, BOOL, U8, I8 = TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8
NUMPY = {F32: np.float32, F16: np.float16, F64: np.float64, BF16: ml_dtypes.bfloat16}


class Net:
    """A graph under construction: ``g.Conv(x, g.w("w1", 8, 3, 3, 3), pads=[1] * 4)`` adds a node and returns its output.

    Parameters
    ----------
    dtype : element type of floating-point weights and inputs.
    consts_as_nodes : write weights as Constant nodes rather than initializers.
    parent : the enclosing graph, for bodies of If, Loop and Scan.
    """

    def __init__(self, dtype: int = F32, consts_as_nodes: bool = False, parent: Net | None = None) -> None:
        self.dtype = dtype
        self.consts_as_nodes = consts_as_nodes
        self.root: Net = parent.root if parent else self
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[TensorProto] = []
        self.sparse: list[onnx.SparseTensorProto] = []
        self.counter = 0
        self.stored: set[str] = set()

    # ------------------------------------------------------------------ values

    def _name(self, stem: str) -> str:
        self.root.counter += 1
        return f"{stem}_{self.root.counter}"

    def x(self, *shape: int | str, name: str = "x", dtype: int | None = None) -> str:
        """A graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype or self.dtype, shape))
        return name

    def c(self, value: Any, dtype: Any = np.int64, name: str | None = None) -> str:
        """A constant that is no weight: shapes, axes, scalars."""
        name = name or self._name("k")
        self._store(name, np.asarray(value, dtype))
        return name

    def f(self, value: Any, name: str | None = None) -> str:
        """A floating-point constant of the net's type."""
        return self.c(value, NUMPY[self.dtype], name)

    def w(
        self, name: str, *shape: int, scale: float | None = None, shift: float = 0.0, dtype: int | None = None
    ) -> str:
        """A weight drawn from its name, so that patterns do not depend on each other."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        value = rng.standard_normal(shape) * (scale if scale is not None else max(fan, 1) ** -0.5) + shift
        self._store(name, value.astype(NUMPY[dtype or self.dtype]))
        return name

    def q(self, name: str, *shape: int, low: int = -60, high: int = 60, dtype: Any = np.int8) -> str:
        """A quantised weight."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        self._store(name, rng.integers(low, high, shape).astype(dtype))
        return name

    def positive(self, name: str, *shape: int, low: float = 0.5, high: float = 1.5, dtype: Any = None) -> str:
        """A strictly positive weight: variances, scales."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        self._store(name, rng.uniform(low, high, shape).astype(dtype or NUMPY[self.dtype]))
        return name

    def _store(self, name: str, value: np.ndarray) -> None:
        if name in self.root.stored:
            raise ValueError(f"two constants are called {name}")
        self.root.stored.add(name)
        tensor = numpy_helper.from_array(np.asarray(value), name)
        if self.consts_as_nodes:
            self.nodes.append(helper.make_node("Constant", [], [name], name=f"node_{name}", value=tensor))
        else:
            self.initializers.append(tensor)

    # ------------------------------------------------------------------- nodes

    def op(self, op: str, *inputs: str | None, n: int = 1, domain: str = "", out: Any = None, **attributes: Any) -> Any:
        """Add a node; one output name, or a tuple where ``n`` is more than one."""
        names = [out] if isinstance(out, str) else list(out or (self._name(op.lower()) for _ in range(n)))
        node = helper.make_node(op, [i or "" for i in inputs], names, name=self._name(op), domain=domain, **attributes)
        self.nodes.append(node)
        return names[0] if len(names) == 1 else tuple(names)

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **kw: self.op(op, *inputs, **kw)

    def ms(self, op: str, *inputs: str | None, **kw: Any) -> Any:
        """A com.microsoft node."""
        return self.op(op, *inputs, domain=MS, **kw)

    def y(self, *names: str, dtype: int = 0, shape: Sequence[int | str | None] | None = None) -> None:
        """Graph outputs; types are inferred unless given."""
        for name in names:
            if dtype:
                self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
            else:
                self.outputs.append(helper.make_empty_tensor_value_info(name))

    def out(self, value: str, name: str = "y", **kw: Any) -> None:
        """Give ``value`` the output name ``name`` through an Identity-free rename of its producer."""
        for node in self.nodes:
            for i, o in enumerate(node.output):
                if o == value:
                    node.output[i] = name
            for i, o in enumerate(node.input):
                if o == value:
                    node.input[i] = name
        self.y(name, **kw)

    # ------------------------------------------------------------------ blocks

    def conv(
        self, x: str, name: str, o: int, i: int, k: int = 3, *, bias: bool = True, group: int = 1, **kw: Any
    ) -> str:
        """Convolution with same padding; weight ``name.w`` [o, i/group, k, k], bias ``name.b``."""
        kw.setdefault("pads", [k // 2] * 4)
        b = self.w(f"{name}.b", o, scale=0.3) if bias else None
        return self.Conv(x, self.w(f"{name}.w", o, i // group, k, k), *([b] if b else []), group=group, **kw)

    def bn(self, x: str, name: str, c: int) -> str:
        return self.BatchNormalization(
            x,
            self.w(f"{name}.s", c, scale=0.2, shift=1),
            self.w(f"{name}.h", c, scale=0.2),
            self.w(f"{name}.m", c, scale=0.2),
            self.positive(f"{name}.v", c),
        )

    def cbr(self, x: str, name: str, o: int, i: int, k: int = 3, **kw: Any) -> str:
        """Conv, BatchNormalization, Relu."""
        return self.Relu(self.bn(self.conv(x, name, o, i, k, bias=False, **kw), name, o))

    def linear(self, x: str, name: str, i: int, o: int, bias: bool = True) -> str:
        """MatMul and Add; weight ``name.w`` [i, o], bias ``name.b`` [o]."""
        y = self.MatMul(x, self.w(f"{name}.w", i, o, scale=i**-0.5))
        return self.Add(y, self.w(f"{name}.b", o, scale=0.3)) if bias else y

    def gemm(self, x: str, name: str, i: int, o: int) -> str:
        """Gemm with transB; weight ``name.w`` [o, i], bias ``name.b`` [o]."""
        return self.Gemm(x, self.w(f"{name}.w", o, i), self.w(f"{name}.b", o, scale=0.3), transB=1)

    def ln(self, x: str, name: str, c: int) -> str:
        return self.LayerNormalization(
            x, self.w(f"{name}.s", c, scale=0.2, shift=1), self.w(f"{name}.h", c, scale=0.2), axis=-1
        )

    def head(self, x: str, i: int, classes: int = 5, name: str = "fc", **kw: Any) -> None:
        """Global pool, flatten, Gemm to class logits, output."""
        self.out(self.gemm(self.Flatten(self.GlobalAveragePool(x)), name, i, classes), **kw)

    def reshape(self, x: str, *shape: int) -> str:
        return self.Reshape(x, self.c(shape))

    def t(self, x: str, *perm: int) -> str:
        return self.Transpose(x, perm=perm)

    def split(self, x: str, *sizes: int, axis: int = 1) -> Any:
        return self.Split(x, self.c(sizes), axis=axis, n=len(sizes))

    def slice(self, x: str, start: int, end: int, axis: int = 1, step: int = 1) -> str:
        return self.Slice(x, self.c([start]), self.c([end]), self.c([axis]), self.c([step]))

    # ------------------------------------------------------------------ result

    def body(self) -> Net:
        """An inner graph, for If, Loop and Scan."""
        return Net(self.dtype, self.consts_as_nodes, parent=self)

    def graph(self, name: str = "g") -> GraphProto:
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)
        graph.sparse_initializer.extend(self.sparse)
        return graph

    def model(
        self,
        opset: int = 18,
        ir: int = 9,
        functions: Sequence[onnx.FunctionProto] = (),
        value_info: bool = False,
    ) -> ModelProto:
        """The finished model, output types inferred."""
        graph = self.graph()
        used = {n.domain for n in self.nodes if n.domain}
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in sorted(used))]
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))
        typed = onnx.shape_inference.infer_shapes(model)
        for value, known in zip(model.graph.output, typed.graph.output, strict=True):
            if not value.type.WhichOneof("value"):
                value.CopyFrom(known)
            if not value.type.WhichOneof("value"):
                value.CopyFrom(helper.make_tensor_value_info(value.name, self.dtype, None))
        if value_info:
            model.graph.value_info.extend(typed.graph.value_info)
        return model


@dataclass
class Pattern:
    """A network, what must happen to it, and how to feed it.

    ``cut``, ``inexact_cut`` and ``frozen`` list ``"tensor:axis,axis"`` words.  ``cut`` axes must shrink to half (within one
    unit) at rate 0.5, also with ``exact``; ``inexact_cut`` axes only when inexact units are allowed.
    """

    name: str
    build: Callable[[], ModelProto]
    cut: dict[str, list[int]]
    inexact_cut: dict[str, list[int]]
    frozen: dict[str, list[int]]
    widths: dict[str, int]  # "tensor:axis" -> exact kept size at rate 0.5, scope group, default grain
    nothing: bool = False  # no axis may be cut
    families: bool = False  # two families of units share an axis: also run grain both and fine
    inexact: bool = False  # a default run cuts inexact units, so only exact runs are compared
    tolerance: float = 1e-4
    checker: bool = True
    dims: dict[str, tuple[int, int]] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    feeds: Callable[[np.random.Generator, int], dict[str, Any]] | None = None

    @property
    def cuts(self) -> int:
        """Least number of axes a default run must cut."""
        return sum(map(len, self.cut.values())) + sum(map(len, self.inexact_cut.values()))


REGISTRY: dict[str, Pattern] = {}


def axes(words: str) -> dict[str, list[int]]:
    """``"w1:0 w2:0,1"`` -> ``{"w1": [0], "w2": [0, 1]}``."""
    return {w.rpartition(":")[0]: [int(a) for a in w.rpartition(":")[2].split(",")] for w in words.split()}


def pattern(
    cut: str = "", *, inexact_cut: str = "", frozen: str = "", widths: dict[str, int] | None = None, **kw: Any
) -> Callable[[Callable[[], ModelProto]], Callable[[], ModelProto]]:
    """Register the decorated function as a pattern of its name."""

    def register(build: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
        name = build.__name__
        if name in REGISTRY:
            raise ValueError(f"two patterns are called {name}")
        kw.setdefault("inexact", bool(inexact_cut))
        REGISTRY[name] = Pattern(name, build, axes(cut), axes(inexact_cut), axes(frozen), widths or {}, **kw)
        return build

    return register
