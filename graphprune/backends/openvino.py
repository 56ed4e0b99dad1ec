"""OpenVINO IR, ``out.xml`` and ``out.bin`` (extra ``graphprune[openvino]``), written when its outputs are those of ONNX Runtime.

The file is read by OpenVINO's own ONNX frontend and written as it was read: constants keep their names and, unless they are
compressed, their bits; dynamic axes stay dynamic. What OpenVINO fuses and folds, it does when the file is compiled.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends import onnx as writer
from graphprune.backends.ort import Runner
from graphprune.comparing import relative_error, saturated
from graphprune.errors import ModelError, UsageError, VerificationError
from graphprune.inputs import Feed, InputSpec
from graphprune.passes.verify import TOLERANCE, tolerance_of

SUFFIX = ".xml"
INSTALL = "pip install 'graphprune[openvino]'"
#: The CPU plug-in as models are compared in it: other types of arithmetic would compare roundings.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}


def is_ir(path: object) -> bool:
    """Whether a name is that of an OpenVINO IR."""
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() == SUFFIX


def need(what: str) -> Any:
    """The package.

    Raises
    ------
    UsageError
        It is not installed; the message says what needs it and how to get it.
    """
    try:
        import openvino
    except ImportError as error:
        raise UsageError(f"{what} needs OpenVINO, which is not installed: {INSTALL}") from error
    return openvino


class Compiled:
    """An IR on the CPU, in float32.

    Parameters
    ----------
    path
        The ``.xml`` file.
    also
        Names of inner values to give as well, where the IR has them.

    Raises
    ------
    ModelError
        It cannot be read or compiled.
    """

    def __init__(self, path: Path, also: Sequence[str] = ()) -> None:
        openvino = need(f"'{path}'")
        self._path = path
        self.model = _read(path)
        try:
            given = {name for port in self.model.outputs for name in port.get_names()}
            known = {name for op in self.model.get_ops() for port in op.outputs() for name in port.get_names()}
            self.model.add_outputs([name for name in dict.fromkeys(also) if name in known - given])
            self._request = openvino.Core().compile_model(self.model, "CPU", _EXACT).create_infer_request()
        except RuntimeError as error:
            raise ModelError(f"OpenVINO {version(openvino)} cannot compile '{path}': {_said(error)}") from error

    def run(self, feed: Feed) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by each of their names."""
        taken = {name for port in self.model.inputs for name in port.get_names()}
        try:
            found = self._request.infer({name: array for name, array in feed.items() if name in taken})
        except (RuntimeError, TypeError) as error:
            raise ModelError(f"OpenVINO cannot run '{self._path}': {_said(error)}") from error
        return {name: np.array(found[n]) for n, port in enumerate(self.model.outputs) for name in port.get_names()}


def version(openvino: Any) -> str:
    """As its maker writes it, without the build."""
    return str(openvino.__version__).split("-")[0]


def specs(path: Path) -> list[InputSpec]:
    """Inputs of an IR.

    Raises
    ------
    ModelError
        It cannot be read.
    """
    found = []
    for port in _read(path).inputs:
        dims = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
        found.append(InputSpec(_name(port), np.dtype(port.get_element_type().to_dtype()), dims))
    return found


def constants(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Constants of an IR by name."""
    return {op.get_friendly_name(): op.data for op in _read(path).get_ops() if op.get_type_name() == "Constant"}


def stage(
    model: ir.Model, path: Path, transaction: writer.Transaction, feeds: Sequence[Feed], *, compress_to_fp16: bool = False,
) -> tuple[list[Path], dict[str, Any]]:  # fmt: skip
    """Write a model as IR, as part of a transaction, once it is proved.

    Parameters
    ----------
    feeds
        Inputs that OpenVINO and ONNX Runtime are compared on.
    compress_to_fp16
        Store float32 weights as float16: half of the bytes, and outputs that differ by their rounding.

    Returns
    -------
    list of Path, dict
        The files staged; ``max_rel_error``, ``tolerance``, ``samples``, ``version`` of the proof.

    Raises
    ------
    ModelError
        OpenVINO does not take the model.
    VerificationError
        Its outputs are not those of ONNX Runtime.
    """
    openvino = need(f"'{path}'")
    files = [path, path.with_suffix(".bin")]
    for file in files:
        transaction.check(file)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        source, written = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        writer.save(model, source)
        try:
            openvino.save_model(openvino.Core().read_model(str(source)), str(written), compress_to_fp16=compress_to_fp16)
        except RuntimeError as error:
            said = f"OpenVINO {version(openvino)} does not take the model: {_said(error)}"
            raise ModelError(f"{said}. Nothing was written") from error
        proof = prove(model, written, feeds, TOLERANCE["float16"] if compress_to_fp16 else None)
        for file in files:
            with (Path(folder) / f"model{file.suffix}").open("rb") as given, transaction.open(file) as taken:
                shutil.copyfileobj(given, taken, 1 << 20)
    return files, {**proof, "version": version(openvino), "compress_to_fp16": compress_to_fp16}


def prove(model: ir.Model, path: Path, feeds: Sequence[Feed], tolerance: float | None = None) -> dict[str, Any]:
    """Compare an IR in OpenVINO with a model in ONNX Runtime, every output relative to its maximum.

    Parameters
    ----------
    tolerance
        Default: that of the model's element type, 1e-4 for float32.

    Raises
    ------
    ModelError
        OpenVINO cannot run the IR.
    VerificationError
        They differ.
    """
    allowed = tolerance_of(model) if tolerance is None else tolerance
    outputs = [str(value.name) for value in model.graph.outputs]
    inner = saturated(model)
    compiled = Compiled(path, list(inner.values()))
    runner = Runner(model, outputs=list(dict.fromkeys([*outputs, *inner.values()])))
    worst, where = 0.0, outputs[0] if outputs else ""
    for feed in feeds:
        wanted, found = runner.run(feed), compiled.run(feed)
        for name in outputs:
            error = _difference(wanted, found, name, inner.get(name))
            if not error <= worst:
                worst, where = error, name
    if not worst <= allowed:
        raise VerificationError(
            f"OpenVINO's output '{where}' differs from ONNX Runtime's by {worst:.2g} of its maximum (allowed {allowed:g}). Nothing "
            "was written; an .onnx file is proved in ONNX Runtime alone"
        )
    return {"max_rel_error": worst, "tolerance": allowed, "samples": len(feeds)}


def _read(path: Path) -> Any:
    openvino = need(f"'{path}'")
    try:
        return openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise ModelError(f"OpenVINO {version(openvino)} cannot read '{path}': {_said(error)}") from error


def _difference(wanted: Mapping[str, Any], found: Mapping[str, Any], name: str, inner: str | None) -> float:
    """That of one output; what goes into a saturating function decides where both have it."""
    if name not in found:
        return float("inf")
    error = relative_error(wanted[name], found[name])
    if inner is not None and inner in found and wanted[name].shape == found[name].shape:
        error = min(error, relative_error(wanted[inner], found[inner]))
    return error


def _name(port: Any) -> str:
    """A port's name: that of its tensor in the source's graph."""
    names = sorted(port.get_names())
    return str(names[0]) if names else str(port.get_node().get_friendly_name())


def _said(error: Exception) -> str:
    """An exception of the runtime in one line, without the places in its own code."""
    if unknown := re.search(r"No conversion rule found for operations: (.*)", str(error)):
        return f"it has no {unknown[1].strip()}"
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception from", "Check '"))]
    return " ".join(" ".join(lines).split())[:400].rstrip(".")
