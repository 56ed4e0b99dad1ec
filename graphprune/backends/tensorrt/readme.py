"""The texts of a bundle: what to do on the device, and the scripts that do it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from graphprune.backends.tensorrt.verdicts import Verdict

_FIND = 'TRTEXEC="${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}"'


def build_sh(arguments: Sequence[str]) -> str:
    """Shell script of the one call that builds the engine."""
    lines = " \\\n    ".join(shlex.quote(argument) for argument in arguments)
    head = '#!/bin/sh\n# Builds model.engine; run.sh does this too, and checks and times it.\nset -e\ncd "$(dirname "$0")"\n'
    return f'{head}{_FIND}\nexec "$TRTEXEC" \\\n    {lines}\n'


def run_sh() -> str:
    """Shell script of the whole check."""
    return '#!/bin/sh\n# Builds, times and checks; writes result.json.\nset -e\ncd "$(dirname "$0")"\nexec python3 check.py "$@"\n'


def readme(bundle: Mapping[str, Any], verdicts: Sequence[Verdict], target: str, engine: str) -> str:
    """The bundle's README."""
    how = Counter((v.op, v.reason) for v in verdicts if v.status == "lowered")
    notes = Counter(v.note for v in verdicts if v.note)
    text = [f"# For {target}", ""]
    if "commands" in bundle:
        text += [
            "Copy this folder to the device and run", "", "    sh run.sh", "",
            "It needs nothing but the device's JetPack: `trtexec` and `python3`. It builds `model.engine` (minutes on a small "
            "device), times it, compares its outputs with `references/`, and writes `result.json`. For figures that mean "
            "something, set the power mode first (`sudo nvpmodel -m 0; sudo jetson_clocks`) and stop what else uses the GPU. "
            "`build.sh` only builds:", "",
            "    trtexec " + " ".join(bundle["commands"]["build"]), "",
        ]  # fmt: skip
    else:
        text += ["`model.onnx` is for TensorRT-RTX's own parser; see docs/jetson.md of graphprune.", ""]
    text += [f"- {engine[:1].upper()}{engine[1:]}."]
    proof = bundle["proof"]
    text.append(
        f"- The lowered model equals its source in ONNX Runtime: largest difference {proof['max_rel_error']:.1e} of an "
        f"output's maximum (allowed {proof['tolerance']:g}), on {proof['samples']} inputs."
    )
    if bundle["unchecked"]:
        text.append(f"- Outputs made by a plugin, which only the device can compute: {', '.join(bundle['unchecked'])}.")
    text += [f"- {note[:1].upper()}{note[1:]}." for note in bundle["notes"]]
    memory = next((v.reason for v in verdicts if v.node == "(model)"), "")
    text += [f"- Memory: {memory}."] if memory else []
    if how:
        text += ["", "## What was rewritten", "", "| operator | times | by |", "| --- | ---: | --- |"]
        text += [f"| {op} | {n} | {reason} |" for (op, reason), n in sorted(how.items())]
    if notes:
        text += ["", "## What costs speed", "", "| layers | why |", "| ---: | --- |"]
        text += [f"| {n} | {note} |" for note, n in notes.most_common()]
    return "\n".join(text) + "\n"
