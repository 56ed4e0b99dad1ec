"""A small trained-like classifier of 8 x 8 images, its data, and a child process that is killed while it trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx

from tests.nets import with_weights

Array = np.ndarray


def classifier(seed: int = 0, softmax: bool = False, norm: bool = False) -> onnx.ModelProto:
    """Conv - (BatchNormalization) - Relu - Conv - Relu - GlobalAveragePool - Gemm (- Softmax), ten classes."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    first = "n = BatchNormalization(a, gamma, beta, mean, var)  r = Relu(n)" if norm else "r = Relu(a)"
    last = "z = Gemm<transB=1>(f, w3, b3)  y = Softmax<axis=1>(z)" if softmax else "y = Gemm<transB=1>(f, w3, b3)"
    more = {"gamma": np.ones(12), "beta": np.full(12, 0.1), "mean": np.zeros(12), "var": np.ones(12)} if norm else {}
    return with_weights(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 1, 8, 8] x) => (float[N, 10] y) {{
            a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)  {first}
            c = Conv<pads=[1, 1, 1, 1]>(r, w2, b2)  q = Relu(c)
            p = GlobalAveragePool(q)  f = Flatten(p)  {last}
        }}""",
        w1=draw(12, 1, 3, 3), b1=np.full(12, 0.1, np.float32), w2=draw(16, 12, 3, 3), b2=np.full(16, 0.1, np.float32),
        w3=draw(10, 16) * 3, b3=np.zeros(10, np.float32), **{name: array.astype(np.float32) for name, array in more.items()},
    )  # fmt: skip


def digits(path: Path, labels: bool = False, n: int = 400) -> Path:
    """Images of scikit-learn's digits as a ``.npz``."""
    from sklearn.datasets import load_digits

    found = load_digits()
    arrays = {"x": (found.images[:n, None] / 8 - 1).astype(np.float32)}
    np.savez(path, **arrays, **({"labels": found.target[:n]} if labels else {}))
    return path


def started(arguments: list[str], cwd: Path) -> None:
    """Run ``graphprune`` in a process of its own, to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "graphprune", *arguments], check=False, cwd=cwd, capture_output=True, text=True,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr


def killed(arguments: list[str], checkpoint: Path, cwd: Path, after: int) -> int:
    """Start ``graphprune``, kill it with SIGKILL once its checkpoint is past a step; the step that it got to."""
    from graphprune.training.checkpoint import load

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-m", "graphprune", *arguments], cwd=cwd, env=environment,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    limit = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < limit:
        found = load(checkpoint)
        if found is not None and found[1]["done"] >= after:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"
    found = load(checkpoint)
    assert found is not None
    return int(found[1]["done"])
