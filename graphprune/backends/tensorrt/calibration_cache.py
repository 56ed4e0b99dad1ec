"""INT8 calibration caches: one scale a tensor, from histograms of its values in ONNX Runtime."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from graphprune.backends.ort import Runner
from graphprune.backends.tensorrt.entropy_limit import Histogram
from graphprune.devices.tables import Version
from graphprune.errors import DataError
from graphprune.inputs import Feed

#: Scale of what is always zero.
LEAST = 1e-9 / 127


def version_number(tensorrt: Version) -> int:
    """TensorRT's version as its caches write it: 8201 for 8.2.1, 100300 for 10.3.0."""
    major, minor, patch = (*tensorrt, 0, 0)[:3]
    return major * (10_000 if major >= 10 else 1000) + minor * 100 + patch


def cache_text(scales: Mapping[str, float], tensorrt: Version) -> str:
    """The file's contents: a header, then ``name: hex of the float32 scale`` a line."""
    lines = [f"TRT-{version_number(tensorrt)}-EntropyCalibration2"]
    lines += [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join(lines) + "\n"


def read_cache(text: str) -> tuple[str, dict[str, float]]:
    """Header and scales of a cache."""
    header, *lines = text.strip().splitlines()
    pairs = (line.rsplit(": ", 1) for line in lines)
    return header, {name: struct.unpack(">f", bytes.fromhex(code))[0] for name, code in pairs}


def scales(model: ir.Model, feeds: Iterable[Feed]) -> dict[str, float]:
    """Scale of every floating-point input and intermediate value: what 127 stands for, over 127.

    The limit of each is the one that loses least information, see `graphprune.backends.tensorrt.entropy_limit`.

    Raises
    ------
    DataError
        A value is not finite on the calibration data.
    """
    inputs = [v for v in model.graph.inputs if not v.is_initializer() and v.dtype == ir.DataType.FLOAT]
    computed = [v for node in model.graph if not node.domain for v in node.outputs if v.name and v.dtype in _FLOATS]
    names = [str(v.name) for v in computed]
    runner = Runner(model, outputs=names) if names else None
    found: dict[str, Histogram] = {}
    count = 0
    for feed in feeds:
        count += 1
        values = {str(v.name): feed[str(v.name)] for v in inputs}
        values |= {} if runner is None else runner.run(feed)
        for name, array in values.items():
            if array.dtype.kind != "f" or not array.size:
                continue
            if not np.isfinite(array).all():
                raise DataError(f"value '{name}' is not finite on the calibration data: give other data")
            found.setdefault(name, Histogram()).add(array)
    if not count:
        raise DataError("there is no calibration data: give --data")
    return {name: max(histogram.limit() / 127, LEAST) for name, histogram in found.items()}


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, None)
