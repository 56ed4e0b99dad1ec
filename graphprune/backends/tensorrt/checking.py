"""The check: one verdict for each node of a model, and for the model as a whole, on one target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from graphprune.backends.tensorrt.dla import why_not
from graphprune.backends.tensorrt.legality import type_name
from graphprune.backends.tensorrt.lowering import Lowered, lower
from graphprune.backends.tensorrt.memory import estimate
from graphprune.backends.tensorrt.rewriting import attribute
from graphprune.backends.tensorrt.verdicts import Verdict
from graphprune.coupling import node_name
from graphprune.devices import Target, alignment
from graphprune.facts import Facts
from graphprune.shapes import infer, probe_inputs

#: Types of inputs and outputs of an engine, by the first TensorRT that has them.
_BINDINGS = {"FP32": (8, 0), "FP16": (8, 0), "INT32": (8, 0), "INT8": (8, 0), "BOOL": (8, 0), "UINT8": (8, 6),
             "INT64": (10, 0), "BF16": (10, 0)}  # fmt: skip


def check(
    model: ir.Model, target: Target, *, shapes: Mapping[str, tuple[int, ...]] | None = None, raw_heads: bool = False
) -> list[Verdict]:
    """Say of every node of a model what becomes of it on a target.

    Parameters
    ----------
    model
        In normal form, as `graphprune.frontends.onnx.load` gives it; not changed.
    target
        See `graphprune.devices.resolve`.
    shapes
        Sizes of dynamic inputs, for the estimate of memory and for the DLA.
    raw_heads
        Whether detection tails are cut off.

    Returns
    -------
    list of Verdict
        Inputs that the engine cannot have, the nodes in order, and ``(model)``.
    """
    return verdicts_of(lower(model, target, raw_heads=raw_heads), shapes or {})


def verdicts_of(lowered: Lowered, shapes: Mapping[str, tuple[int, ...]]) -> list[Verdict]:
    """The verdicts of a lowered model, with alignment, DLA, memory and the types of inputs and outputs."""
    target, model, context = lowered.target, lowered.model, lowered.context
    assert context is not None
    facts = infer(model, probe_inputs(model, {k: v for k, v in shapes.items() if k in _input_names(model)}))
    notes: dict[str, list[str]] = {}
    on_gpu: dict[str, str] = {}
    total = away = 0
    for node in model.graph.all_nodes():
        name = node_name(context.origin(node))
        if text := misaligned(node, facts, target):
            notes.setdefault(name, []).append(text)
        if target.dla is not None:
            total += 1
            if text := why_not(node, facts):
                away += 1
                on_gpu.setdefault(name, text)
    found = [_placed(v, notes.get(v.node, []), on_gpu, target) for v in lowered.verdicts]
    summary = _memory(lowered, facts)
    if target.dla is not None:
        summary = replace(summary, note=f"{total - away} of {total} nodes on the DLA")
    return [*_bindings(lowered), *found, summary]


def _input_names(model: ir.Model) -> set[str]:
    return {str(v.name) for v in model.graph.inputs}


def _placed(verdict: Verdict, notes: list[str], on_gpu: Mapping[str, str], target: Target) -> Verdict:
    if verdict.status == "unsupported":
        return verdict
    if target.dla is not None:
        away = on_gpu.get(verdict.node)
        verdict = replace(verdict, where="GPU" if away else "DLA")
        notes = [*([away] if away else []), *notes]
    return replace(verdict, note="; ".join(dict.fromkeys(notes)))


def misaligned(node: ir.Node, facts: Facts, target: Target) -> str:
    """What a convolution or product loses by its widths; empty where nothing."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.inputs) < 2:
        return ""
    weight = node.inputs[1]
    out = facts.shape(node.outputs[0])
    if weight is None or facts.constant(weight) is None or out is None or len(out) < 2:
        return ""
    groups = int(attribute(node, "group", 1))
    width = out[1] if node.op_type.startswith("Conv") else out[-1]
    if groups > 1 and groups == width:
        return ""  # depthwise kernels are no matrix products
    each = alignment(target, grouped=groups > 1)
    share = width // groups
    if share % each == 0 or share < each:
        return ""
    return f"{share} channels{' a group' if groups > 1 else ''}: padded to {-(-share // each) * each} (multiples of {each})"


def _memory(lowered: Lowered, facts: Facts) -> Verdict:
    target = lowered.target
    memory = estimate(lowered.model, facts, target)
    text = (
        f"estimated {memory.building / 1e9:.2f} GB while building (weights {_megabytes(memory.weights)}, activations "
        f"{_megabytes(memory.activations)}, workspace {target.workspace_mib} MiB) of {target.usable_bytes / 1e9:.1f} GB "
        f"that {target.device.title} has to give"
    )
    if memory.building <= target.usable_bytes:
        return Verdict("(model)", "", "ok", text)
    return Verdict(
        "(model)", "", "unsupported", text, "cut the network, lower --shape, or take a device with more memory"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.{1 if count < 1e7 else 0}f} MB"


def _bindings(lowered: Lowered) -> list[Verdict]:
    target, context = lowered.target, lowered.context
    assert context is not None
    found = []
    for what, values in (("input", lowered.model.graph.inputs), ("output", lowered.model.graph.outputs)):
        for value in values:
            dtype = context.facts.dtype(value) or value.dtype
            if dtype is None or (what == "input" and value.is_initializer()):
                continue
            name = type_name(dtype, context)
            since = _BINDINGS.get(name)
            if since is None or since > target.tensorrt:
                trt = ".".join(map(str, target.tensorrt[:2]))
                advice = (
                    "cast it outside the network: export it with float32"
                    if what == "input"
                    else "cast it before the end"
                )
                found.append(
                    Verdict(str(value.name), what, "unsupported", f"no {what} of {name} in TensorRT {trt}", advice)
                )
    return found
