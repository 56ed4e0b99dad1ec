"""The real parser and builder of TensorRT-RTX on lowered models; skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphprune.backends import onnx as writer
from graphprune.backends import tensorrt_rtx
from graphprune.backends.tensorrt import build, lower
from graphprune.devices import resolve
from graphprune.errors import UsageError
from graphprune.frontends.onnx import load
from tests.tensorrt_nets import NETS, net

needs_rtx = pytest.mark.skipif(not tensorrt_rtx.installed(), reason="TensorRT-RTX is not installed (graphprune[trt-rtx])")


#: A plugin that TensorRT-RTX lacks; a Squeeze whose result has a rank only once sizes are fed, which no parser waits for.
NOT_FOR_IT = {"detector", "pad-of-unknown-rank"}


@needs_rtx
@pytest.mark.parametrize("key", ["8.2"])
@pytest.mark.parametrize("name", [n for n in NETS if n not in NOT_FOR_IT])
def test_lowered_models_parse_and_build(name: str, key: str, tmp_path: Path) -> None:
    target = resolve("agx-xavier", jetpack="4.6.1") if key == "8.2" else resolve("agx-orin", jetpack="6.2")
    path = writer.save(lower(load(NETS[name]).model, target).model, tmp_path / "model.onnx")[0]
    found = tensorrt_rtx.check(path, shapes={"x": (2, 5, 16)} if name == "transformer" else {})
    assert found.ok and found.kernels > 0 and found.bytes > 0, found


@needs_rtx
@pytest.mark.parametrize(("width", "pads"), [(64, ["3 -> 4"]), (63, ["3 -> 4", "63 -> 64", "63 -> 64"])])
def test_pads_of_unaligned_widths_are_counted(width: int, pads: list[str], tmp_path: Path) -> None:
    proto = net(
        13, "(float[1, 3, 32, 32] x) => (float y)", "c = Conv(x, w) r = Relu(c) d = Conv(r, v) s = Relu(d) y = Conv(s, u)",
        w=(width, 3, 3, 3), v=(width, width, 3, 3), u=(64, width, 1, 1),
    )  # fmt: skip
    onnx.save(proto, tmp_path / "model.onnx")
    found = tensorrt_rtx.check(tmp_path / "model.onnx", half=True)
    assert found.ok and found.pads == pads
    assert ("63 -> 64" in found.told()) == (width == 63)


@needs_rtx
def test_a_broken_graph_is_refused_by_node(tmp_path: Path) -> None:
    proto = net(13, "(float[1, 3, 8, 8] x) => (float y)", "c = Conv(x, w) y = Conv(c, v)", w=(5, 3, 3, 3), v=(4, 5, 3, 3))
    wrong = onnx.helper.make_tensor("w", 1, (4, 3, 3, 3), np.zeros(108, np.float32))
    proto.graph.initializer.remove(next(i for i in proto.graph.initializer if i.name == "w"))
    proto.graph.initializer.append(wrong)
    onnx.save(proto, tmp_path / "wrong.onnx")
    found = tensorrt_rtx.check(tmp_path / "wrong.onnx")
    assert not found.ok and found.stage in ("parse", "build") and found.errors


@needs_rtx
def test_a_build_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    path = writer.save(load(NETS["conv-bn-mish"]).model, tmp_path / "model.onnx")[0]
    found = tensorrt_rtx.check(path, time_limit=0.01)
    assert not found.ok and "not done after" in found.errors[0]


def test_without_it_there_is_a_plain_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "installed", lambda: False)
    with pytest.raises(UsageError, match=r"pip install 'graphprune\[trt-rtx\]'"):
        tensorrt_rtx.check("model.onnx")


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_for_rtx_holds_its_engine(precision: str, tmp_path: Path) -> None:
    shapes = {"x": (1, 8, 16)}
    built = build(NETS["transformer"], resolve("rtx", precision=precision), tmp_path / "b", shapes=shapes, max_shapes={"x": (4, 32, 16)})
    assert (built.folder / "model.engine").stat().st_size > 1000 and "1.7" in built.engine
    assert not (built.folder / "run.sh").exists()
    weights = {t.data_type for t in onnx.load(built.folder / "model.onnx").graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in weights) == (precision == "fp16")
    assert ("half" in built.proof) == (precision == "fp16")
