"""Small networks whose scores can be worked out by hand, and a way to get at the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphprune as gp
from graphprune.coupling import Coupling
from tests.nets import with_weights

Array = np.ndarray


def scored(model: onnx.ModelProto, spec: str, x: Array | None = None, tmp: Path | None = None, **options: Any) -> tuple[Array, gp.Result]:
    """The scores that one pass gives the units of a model on given inputs, and the run."""
    if x is not None:
        assert tmp is not None
        np.savez(tmp / "data.npz", x=x.astype(np.float32))
        options.update(data=tmp / "data.npz", samples=len(x))
    result = gp.prune(model, passes=spec, **{"rate": 0.3, "floor": 0.0, **options})
    assert result.plan.verify["passed"]
    return result.state.scores[0].values, result


def coupling_of(result: gp.Result) -> Coupling:
    coupling = result.state.coupling
    assert coupling is not None
    return coupling


def units_of(result: gp.Result, name: str, axis: int) -> Array:
    """The unit of every index of an axis of a value that one family of units stands on, by the value's name."""
    coupling = coupling_of(result)
    value = next(v for v in coupling.coupler.axes if v.name == name)
    rows = coupling.rows(value, axis)
    assert rows.shape[1] == 1
    return rows[:, 0]


def says_l1(result: gp.Result, name: str) -> bool:
    return any(note.startswith(f"{name}:") and "scored by l1 instead" in note for note in result.state.notes)


def filters_net(w1: Any, w2: Any | None = None) -> onnx.ModelProto:
    """1 x 1 convolutions, Relu between: ``w1[units, inputs]`` are the filters of the only units."""
    w1 = np.asarray(w1, np.float32)
    w2 = np.ones((2, len(w1))) if w2 is None else np.asarray(w2)
    return with_weights(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, {w1.shape[1]}, 2, 2] x) => (float[N, {len(w2)}, 2, 2] y) {{
            a = Conv(x, w1)  r = Relu(a)  y = Conv(r, w2)
        }}""",
        w1=w1[:, :, None, None], w2=np.asarray(w2, np.float32)[:, :, None, None],
    )  # fmt: skip


def maps_net(w2: Any | None = None) -> onnx.ModelProto:
    """Three channels whose maps are those of the input: the first convolution is the identity."""
    return filters_net(np.eye(3), np.ones((2, 3)) if w2 is None else w2)


#: Two images of three 2 x 2 maps. Behind the Relu, the third map of the first image is 0, 0, 0, 2.
IMAGES = np.array([
    [[[1, 2], [3, 4]], [[1, 1], [1, 1]], [[-1, -1], [0, 2]]],
    [[[1, 0], [0, 1]], [[0, 0], [0, 0]], [[1, 2], [2, 4]]],
], np.float32)  # fmt: skip


def trunk() -> onnx.ModelProto:
    """A residual trunk of 4 channels that two convolutions make and two read."""
    return with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
            a = Conv(x, w1)
            r = Relu(a)
            h = Conv(r, w2)
            g = Relu(h)
            c = Conv(g, w3)
            s = Add(r, c)
            y = Conv(s, w4)
        }""",
        w1=(4, 3, 1, 1), w2=(5, 4, 1, 1), w3=(4, 5, 1, 1), w4=(2, 4, 1, 1),
    )  # fmt: skip


def concat() -> onnx.ModelProto:
    """Two branches of 2 and 3 channels side by side, read by one 3 x 3 convolution."""
    return with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 5, 5] x) => (float[N, 2, 3, 3] y) {
            a = Conv(x, w1)
            b = Conv(x, w2)
            p = Relu(a)
            q = Relu(b)
            c = Concat<axis=1>(p, q)
            y = Conv(c, w3)
        }""",
        w1=(2, 3, 1, 1), w2=(3, 3, 1, 1), w3=(2, 5, 3, 3),
    )  # fmt: skip


def grouped() -> onnx.ModelProto:
    """A convolution in two groups between dense ones, then a depthwise one."""
    return with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 5, 5] x) => (float[N, 2, 1, 1] y) {
            a = Conv(x, w1)
            r = Relu(a)
            b = Conv<group=2>(r, w2)
            s = Relu(b)
            d = Conv<group=6>(s, w3)
            t = Relu(d)
            y = Conv(t, w4)
        }""",
        w1=(4, 3, 1, 1), w2=(6, 2, 3, 3), w3=(6, 1, 3, 3), w4=(2, 6, 1, 1),
    )  # fmt: skip
