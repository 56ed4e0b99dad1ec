"""Load an ONNX model: checked, weights left in their files, in one normal form.

``load`` reads the file's structure only. Weights stay where they are, memory-mapped, whether they lie
inside the ``.onnx`` file or in external data beside it; nothing is copied. Everything that is wrong with a
file ends in one `ModelError` that names what is wrong and where.

Normal form: local functions inlined, every ``Constant`` and sparse tensor a dense initializer of the same
name in the same graph, initializers not listed as inputs, nodes in topological order, IR version 4 or newer.
The opset, all names, metadata, doc strings and symbolic sizes are as in the file.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir

from graphprune.errors import GraphPruneError, ModelError
from graphprune.frontends.mapped import MappedTensor
from graphprune.frontends.onnx_apart import take_apart
from graphprune.frontends.onnx_checks import check_structure, check_versions, checker_message
from graphprune.frontends.onnx_normal import PLAN_NAME, inline_functions, normalize, normalize_proto
from graphprune.frontends.onnx_proto import check_text, scopes, tensors
from graphprune.frontends.onnx_tensors import Store, element_count
from graphprune.frontends.onnx_wire import skeleton
from graphprune.frontends.torch_source import TorchSource
from graphprune.ops.traits import of_runtimes

SOURCE_FILES = "graphprune.source_files"
"""Key in ``Model.meta``: tuple of the files the model was read from, main first. Writers never touch them."""

_HASH_BLOCK = 1 << 20
_MESSAGE = 800
_INPUT_LIMIT = 1 << 31
_FINITE_BLOCK = 64 << 20


@dataclass(frozen=True)
class Loaded:
    """A model as loaded.

    Attributes
    ----------
    model : ir.Model
        In normal form, weights mapped from their files.
    path : Path or None
        The file it came from; None for a model given in memory.
    bytes : int
        Size of the main file and its external data, in bytes.
    names : dict
        Initializers whose name is not unique in the model -> their name in plans; see `plan_name`.
    torch : TorchSource or None
        For a torch module: the module itself, its inputs, and its names for the initializers.
    """

    model: ir.Model
    path: Path | None
    bytes: int
    names: dict[ir.Value, str] = field(default_factory=dict)
    digest: concurrent.futures.Future[str] | None = field(default=None, repr=False)
    torch: TorchSource | None = None

    @property
    def sha256(self) -> str | None:
        """Hash of the main file, which is computed while other work goes on; None for a model given in memory."""
        if self.digest is None:
            return None
        try:
            return self.digest.result()
        except OSError as error:
            raise ModelError(f"{self.path} can no longer be read: {error.strerror}") from error


def plan_name(value: ir.Value) -> str:
    """The name of an initializer in plan files: its own, or a path to it when siblings share the name."""
    return str(value.meta.get(PLAN_NAME, value.name))


def load(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> Loaded:
    """Load and check a model.

    Parameters
    ----------
    source : path, onnx.ModelProto or onnx_ir.Model
        An ``.onnx`` file, with its external data beside it; or a model in memory. A ModelProto must hold all
        of its data; an IR model is copied, its tensors are shared.

    Returns
    -------
    Loaded

    Raises
    ------
    ModelError
        For anything that is wrong with the file, in one message.
    """
    try:
        if isinstance(source, ir.Model):
            message, held = take_apart(source)
            loaded = _build(Store(None, memoryview(message), held), sum(tensor.nbytes for tensor in held))
            known = dict.fromkeys((*source.meta.get(SOURCE_FILES, ()), *loaded.model.meta[SOURCE_FILES]))
            loaded.model.meta[SOURCE_FILES] = tuple(known)
            return loaded
        if isinstance(source, onnx.ModelProto):
            buffer = _serialized(source)
            return _build(Store(None, buffer), len(buffer))
    except GraphPruneError as error:
        raise ModelError(_one_line(str(error))) from error
    path = Path(source)
    size = _check_file(path)
    try:
        # The files stay what they are when the program changes its folder.
        store = Store(path.absolute(), memoryview(b""))
        assert store.main is not None
        store.buffer = memoryview(store.main.map)
        loaded = _build(store, size)
    except GraphPruneError as error:
        raise ModelError(f"{path}: {_one_line(str(error))}") from error
    pool = concurrent.futures.ThreadPoolExecutor(1, "sha256")
    digest = pool.submit(_sha256, path.absolute())
    pool.shutdown(wait=False)
    return dataclasses.replace(loaded, path=path, digest=digest)


def _serialized(model: onnx.ModelProto) -> memoryview:
    try:
        return memoryview(model.SerializeToString())
    except Exception as error:
        # protobuf's own error types differ between its implementations.
        raise ModelError(
            f"the model is too large or too deeply nested for one message ({error}): "
            "save it with external data and give the path"
        ) from error


def _one_line(text: str) -> str:
    """Text that names from a broken file cannot spoil: printable, and not without end."""
    clean = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return clean if len(clean) <= _MESSAGE else f"{clean[: _MESSAGE // 2]} ... {clean[-_MESSAGE // 2 :]}"


def _check_file(path: Path) -> int:
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise ModelError(f"{path} is a folder: give the .onnx file in it")
        if not stat.S_ISREG(info.st_mode):
            raise ModelError(f"{path} is not a regular file")
        if info.st_size == 0:
            raise ModelError(f"{path} is empty: download or export it again")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(f"{path} cannot be read: {reason}") from error
    for magic, what in _OTHERS:
        if head[: len(magic) + 4].find(magic) in (0, 4):
            raise ModelError(f"{path} is not an ONNX model, it is {what}")
    return info.st_size


_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with 'git lfs pull'"),
    (b"PK\x03\x04", "a zip archive, such as PyTorch saves: export it with torch.onnx.export"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"TFL3", "a TensorFlow Lite file: convert it with tf2onnx"),
    (b"ORTM", "a model in ONNX Runtime's own format: use the .onnx file it was made from"),
    (b"\x89HDF", "an HDF5 file, such as Keras saves: convert it with tf2onnx"),
    (b"<!DOCTYPE", "a web page: the download failed"),
    (b"<html", "a web page: the download failed"),
)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _build(store: Store, size: int) -> Loaded:
    proto = _parse(bytes(store.buffer) if store.tensors is not None else skeleton(store.buffer))
    check_text(proto)
    opsets = check_versions(proto)
    check_structure(proto, opsets)
    store.check(proto)
    _check_declared_shapes(proto)
    normalize_proto(proto, store)
    proto = inline_functions(proto)
    _run_checker(proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        # onnx_ir wraps whatever went wrong in one error per level of nesting; the innermost says what it was.
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise ModelError(f"not a valid ONNX model: {str(root).splitlines()[0] if str(root) else root!r}") from error
    _attach_tensors(model, store)
    normalize(model)
    files = [] if store.main is None else [store.main.path]
    files += [file.path for file in store.files.values()]
    model.meta[SOURCE_FILES] = tuple(files)
    names = {
        value: plan_name(value)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if PLAN_NAME in value.meta
    }
    return Loaded(model, None, size + sum(file.size for file in store.files.values()), names)


def _parse(data: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:
        raise ModelError("not an ONNX model, or truncated: download or export it again") from error
    if not proto.HasField("graph"):
        raise ModelError("not an ONNX model: it has no graph")
    return proto


def _check_declared_shapes(proto: onnx.ModelProto) -> None:
    for what, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            if what == "input" and value.type.WhichOneof("value") is None:
                raise ModelError(f"the input '{value.name}' has no type: the file is damaged, export it again")
            if value.type.WhichOneof("value") != "tensor_type":
                continue
            dims = [max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim]
            label = f"the {what} '{value.name}'"
            if element_count(dims, label) > _INPUT_LIMIT:
                raise ModelError(f"{label} has the shape {dims}: no memory holds that; export it with a dynamic axis")


def _run_checker(proto: onnx.ModelProto) -> None:
    """Let ONNX's own checker see the model, weights left out."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    light.ir_version = max(light.ir_version, 4)
    for tensor, _ in tensors(light):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            name, dtype = tensor.name, tensor.data_type
            tensor.Clear()
            tensor.name, tensor.data_type = name, dtype
            tensor.dims.append(0)
    opsets = [entry.version for entry in light.opset_import if entry.domain in ("", "ai.onnx")]
    for body, _, _ in scopes(light):
        for node in body.node:
            # So that a complaint names the node.
            node.name = node.name or f"(output '{next(iter(node.output), '')}')"
            if node.domain in ("", "ai.onnx") and of_runtimes(node.op_type, opsets):
                node.domain = "com.microsoft"
        if isinstance(body, onnx.GraphProto):
            # The checker asks for these; no runtime misses them.
            body.name = body.name or "graph"
            for value in (*body.input, *body.output):
                _fill_type(value.type)
    for owner in (light, *light.functions):
        if all(entry.domain != "com.microsoft" for entry in owner.opset_import):
            owner.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    try:
        onnx.checker.check_model(light, full_check=False)
    except Exception as error:
        raise ModelError(checker_message(error)) from error


def _fill_type(type_proto: onnx.TypeProto) -> None:
    """State a type and a shape where none is stated: runtimes infer them, the checker asks for them."""
    kind = type_proto.WhichOneof("value") or "tensor_type"
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return
    tensor = getattr(type_proto, kind)
    tensor.elem_type = tensor.elem_type or onnx.TensorProto.FLOAT
    tensor.shape.SetInParent()


def _attach_tensors(model: ir.Model, store: Store) -> None:
    """Replace the placeholders of tensors that lie in files by mapped ones."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        for graph in (root, *root.subgraphs()):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = store.attach(value.const_value)
            for node in graph:
                for attribute in list(node.attributes.values()):
                    if attribute.is_ref():
                        continue
                    if attribute.type == ir.AttributeType.TENSOR:
                        # as_tensor() checks the protocol member by member, which is slow.
                        tensor = store.attach(attribute.value)
                        if tensor is not attribute.value:
                            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
                    elif attribute.type == ir.AttributeType.TENSORS:
                        many = [store.attach(tensor) for tensor in attribute.value]
                        node.attributes[attribute.name] = ir.AttrTensors(attribute.name, many)


def weights_of(model: ir.Model) -> list[ir.Value]:
    """All initializers, those of bodies included."""
    return [value for graph in model.graphs() for value in graph.initializers.values()]


def check_finite(weights: Iterable[ir.Value]) -> None:
    """Raise ModelError when a tensor of two or more elements holds a NaN.

    Infinities pass: attention masks are made of them. See `nonfinite_weights` for both.
    """
    for value, array, start in _float_blocks(weights):
        bad = np.flatnonzero(np.isnan(array))
        if bad.size and value.const_value is not None and value.const_value.size > 1:
            index = np.unravel_index(start + int(bad[0]), value.const_value.shape.numpy())
            at = ", ".join(str(int(i)) for i in index)
            raise ModelError(
                f"tensor '{plan_name(value)}' holds NaN, first at [{at}]: the model is broken, train or export it again"
            )


def nonfinite_weights(model: ir.Model, limit: int = 10) -> list[str]:
    """Names of up to ``limit`` floating-point initializers that hold a NaN or an infinity."""
    found: list[str] = []
    for value, _, _ in _float_blocks(weights_of(model)):
        name = plan_name(value)
        if not found or found[-1] != name:
            if len(found) == limit:
                break
            found.append(name)
    return found


def _float_blocks(weights: Iterable[ir.Value]) -> Iterator[tuple[ir.Value, np.ndarray[Any, Any], int]]:
    """Blocks of initializers that hold something not finite: the value, float[k], offset of the block.

    Blocks of 64 MB are read one at a time and given back to the system.
    """
    for value in weights:
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        flat = tensor.numpy().reshape(-1)
        step = max(1, _FINITE_BLOCK // max(flat.itemsize, 1))
        for start in range(0, flat.size, step):
            block = flat[start : start + step]
            if not _all_finite(block):
                yield value, _as_standard(block), start
        if isinstance(tensor, MappedTensor):
            tensor.release()


def _all_finite(block: np.ndarray[Any, Any]) -> bool:
    if block.dtype == np.float16:
        return not ((block.view(np.uint16) & 0x7C00) == 0x7C00).any()
    if block.dtype == ml_dtypes.bfloat16:
        return not ((block.view(np.uint16) & 0x7F80) == 0x7F80).any()
    block = _as_standard(block)
    with np.errstate(all="ignore"):
        # A sum is finite only if all of its terms are; the reverse needs the closer look.
        return bool(np.isfinite(block.sum())) or bool(np.isfinite(block).all())


def _as_standard(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return block if block.dtype.kind == "f" else block.astype(np.float32)
