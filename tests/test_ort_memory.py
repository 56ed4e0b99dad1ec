"""The ONNX Runtime runner: memory stays bounded, however large the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.runner_nets import draw


def write_large(folder: Path, layers: int, size: int) -> Path:
    """Stream a model of MatMul and Relu layers with external weights to disk; one layer in memory at a time."""
    graph = onnx.GraphProto(name="large")
    graph.input.append(helper.make_tensor_value_info("x", 1, ["n", size]))
    block, current, length = draw(size, size), "x", 4 * size * size
    with (folder / "large.data").open("wb") as file:
        for i in range(layers):
            file.write(np.roll(block, 7 * i, axis=0).tobytes())
            tensor = graph.initializer.add(name=f"w{i}", data_type=1, dims=[size, size], data_location=1)
            for key, value in (("location", "large.data"), ("offset", i * length), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            graph.node.append(helper.make_node("MatMul", [current, f"w{i}"], [f"m{i}"], name=f"matmul{i}"))
            graph.node.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"relu{i}"))
            current = f"r{i}"
    graph.output.append(helper.make_tensor_value_info(current, 1, ["n", size]))
    path = folder / "large.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


MEASURE = """
import json, resource, sys
import numpy as np, onnx_ir as ir
from graphprune.backends.ort import Runner
from graphprune.frontends.onnx import load
model = load(sys.argv[1]).model
size, masked = int(sys.argv[2]), sys.argv[3] == "masked"
name = model.graph.outputs[0].name
x = np.full((2, size), 0.01, np.float32)
y = Runner(model, replace=(lambda v: v.const_value.numpy() * 1) if masked else None).run({"x": x})[name]
peak = 0
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        peak = int(line.split()[1]) * 1024
print(json.dumps({"peak": peak, "sum": float(y.sum()), "finite": bool(np.isfinite(y).all())}))
"""


def measure(path: Path, size: int, mode: str, script: str = MEASURE) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(size), mode],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.slow
def test_a_model_of_2_5_gb_runs_in_1_2_gb(tmp_path: Path) -> None:
    path = write_large(tmp_path, 40, 4096)
    assert (tmp_path / "large.data").stat().st_size > 2.5e9
    as_it_is, replaced = measure(path, 4096, "plain"), measure(path, 4096, "masked")
    assert as_it_is["finite"]
    assert replaced["sum"] == as_it_is["sum"]
    assert as_it_is["peak"] < 1.2e9
    assert replaced["peak"] < 1.2e9


@linux
def test_memory_stays_below_the_weights(tmp_path: Path) -> None:
    """The same in small: 160 MB of weights in pieces of 16 MB add far less than the weights."""
    script = MEASURE.replace("* 1) if masked else None)", "* 1) if masked else None, max_weight_bytes=16 << 20)")
    path = write_large(tmp_path, 40, 1024)
    large = measure(path, 1024, "masked", script)
    grown = large["peak"] - measure(write_large(tmp_path, 1, 1024), 1024, "masked", script)["peak"]
    assert grown < 70e6
