"""The bundle: a folder with all that a device needs to build, time and check a network; whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphprune import __version__
from graphprune.backends import onnx as writer
from graphprune.backends import tensorrt_rtx
from graphprune.backends.ort import Runner
from graphprune.backends.tensorrt import command
from graphprune.backends.tensorrt.calibration_cache import cache_text, scales
from graphprune.backends.tensorrt.checking import verdicts_of
from graphprune.backends.tensorrt.engine import EngineError, build_engine, why_not_here
from graphprune.backends.tensorrt.halving import to_half
from graphprune.backends.tensorrt.lowering import Lowered, lower
from graphprune.backends.tensorrt.proof import Source, fed, prove, samples
from graphprune.backends.tensorrt.readme import build_sh, readme, run_sh
from graphprune.backends.tensorrt.references import TOLERANCE, Stored, store
from graphprune.backends.tensorrt.verdicts import Verdict, refuse_unsupported
from graphprune.devices import Target
from graphprune.errors import OutputError, UsageError
from graphprune.frontends.onnx import load
from graphprune.inputs import Feed
from graphprune.ops.sparsity import SPARSE_SM, sparse_layers
from graphprune.shapes import probe_inputs

SCHEMA = 1
BUNDLE = "bundle.json"
#: Inputs that prove a lowering, and that calibrate INT8.
PROOF_SAMPLES, CALIBRATION_SAMPLES = 2, 32
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Built:
    """A finished bundle.

    Attributes
    ----------
    folder : Path
    verdicts : list of Verdict
    proof : dict
        See `graphprune.backends.tensorrt.proof.prove`.
    engine : str
        What became of the engine: where it is, or why none was built.
    """

    folder: Path
    target: Target
    verdicts: list[Verdict]
    proof: dict[str, Any]
    engine: str
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "folder": str(self.folder), "target": str(self.target), "verdicts": [v.to_json() for v in self.verdicts],
            "proof": self.proof, "engine": self.engine, "notes": self.notes,
        }  # fmt: skip


def build(
    source: Any,
    target: Target,
    output: str | Path,
    *,
    data: str | Path | None = None,
    shapes: Shapes | None = None,
    min_shapes: Shapes | None = None,
    max_shapes: Shapes | None = None,
    raw_heads: bool = False,
    static: bool = False,
    samples_count: int | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> Built:
    """Check, lower, prove and bundle a model for a device.

    Parameters
    ----------
    source
        An ``.onnx`` path, ``module:factory`` with torch, a ModelProto or an onnx_ir model; never changed.
    target
        See `graphprune.devices.resolve`.
    output
        Folder to make. One that is there already is replaced only if it is a bundle.
    data
        Calibration data for INT8, and the stored reference inputs; synthetic ones without.
    shapes, min_shapes, max_shapes
        Sizes of dynamic inputs: what the engine is best at, least and most; the last two default to the first.
    raw_heads
        Cut detection tails off at boxes and scores.
    static
        Fix dynamic inputs at ``shapes``: more is computed in advance, and the engine takes no other sizes.

    Returns
    -------
    Built

    Raises
    ------
    UnsupportedError
        Nodes that the target cannot run.
    VerificationError
        The lowered model differs from its source.
    OutputError
        The folder cannot be made.
    """
    folder = check_folder(output)
    progress("lowering", 0.0)
    from graphprune.pipeline import load_any

    model = load_any(source).model
    lowered = lower(model, target, shapes=probe_inputs(model, shapes or {}) if static else None, raw_heads=raw_heads)
    verdicts = verdicts_of(lowered, shapes or {})
    refuse_unsupported(verdicts, target)
    explicit = check_quantised(lowered)
    calibrates = target.precision in ("int8", "best") and not explicit
    progress("proving", 0.3)
    count = samples_count or (CALIBRATION_SAMPLES if calibrates else PROOF_SAMPLES)
    found = samples(model, n=count, shapes=shapes or {}, data=data, seed=seed, mean=mean, std=std)
    feeds = list(found)
    proved = Source(model, feeds[:PROOF_SAMPLES])
    proof = prove(proved, lowered)
    if target.strongly_typed and target.precision == "fp16":
        lowered.model = load(to_half(writer.to_proto(lowered.model))).model
        proof["half"] = prove(proved, lowered, TOLERANCE["fp16"])["max_rel_error"]
    profile = profile_of(lowered.model, feeds[0], min_shapes or {}, max_shapes or {})
    if target.dla is not None and profile.least != profile.most:
        raise UsageError("the DLA takes one size only: leave --min-shape and --max-shape out")
    notes = []
    if data is None:
        notes.append("inputs are synthetic: give --data, so that references and INT8 scales are of real ones")
    notes += outputs_note(model, lowered.model)
    notes += profile_note(profile)
    notes += overflow_note(verdicts, target)
    notes += sparsity_note(lowered)
    cache = None
    if calibrates:
        progress("calibrating", 0.5)
        cache = cache_text(scales(lowered.model, (fed(lowered.model, feed) for feed in feeds)), target.tensorrt)
        if target.tensorrt >= (10, 1) and target.dla is None:
            notes.append(
                "calibration caches are deprecated from TensorRT 10.1: QuantizeLinear and DequantizeLinear last longer"
            )
    progress("writing", 0.8)
    staged = _staging(folder)
    try:
        engine = _fill(staged, lowered, verdicts, proof, profile, feeds[0], explicit, cache, notes)
        _publish(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Built(folder, target, verdicts, proof, engine, notes)


def check_folder(output: str | Path) -> Path:
    """The folder to make, checked before the work that leads to it.

    Raises
    ------
    OutputError
        It is a file, or a folder that is no bundle, or lies in no folder.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot write '{folder}': it is a file, name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / BUNDLE).is_file():
        raise OutputError(f"cannot write '{folder}': it holds other files and is no bundle; name a new folder")
    if not folder.resolve().parent.is_dir():
        raise OutputError(
            f"cannot write '{folder}': the folder '{folder.resolve().parent}' does not exist, create it first"
        )
    return folder


def overflow_note(verdicts: Sequence[Verdict], target: Target) -> list[str]:
    """What FP16 may do to normalisations that had to be taken apart."""
    norms = ("LayerNormalization", "RMSNormalization", "GroupNormalization", "MeanVarianceNormalization")
    n = sum(v.op in norms and v.status == "lowered" and v.reason not in ("", "computed in advance") for v in verdicts)
    if not n or target.precision == "fp32":
        return []
    return [
        f"{n} normalisations had to be taken apart: in FP16 their squares overflow where values pass 255, so if run.sh finds "
        "outputs that are off, build with --precision fp32, or take a JetPack whose TensorRT has them"
    ]


def has_sparse_kernels(lowered: Lowered) -> bool:
    """Whether some weights are 2:4 sparse and the device has tensor cores for them."""
    return lowered.target.device.sm >= SPARSE_SM and bool(sparse_layers(lowered.model.graph))


def sparsity_note(lowered: Lowered) -> list[str]:
    """What becomes of 2:4 sparse weights."""
    count, device = len(sparse_layers(lowered.model.graph)), lowered.target.device
    if not count:
        return []
    if lowered.target.rtx:
        return [f"{count} layers are 2:4 sparse, which TensorRT-RTX is not told"]
    if device.sm < SPARSE_SM:
        return [f"{count} layers are 2:4 sparse: no gain on {device.title} (sm_{device.sm}), sparse tensor cores begin at sm_80"]
    return [f"{count} layers are 2:4 sparse: built with --sparsity=enable, TensorRT takes sparse kernels where they are faster"]


def outputs_note(source: ir.Model, lowered: ir.Model) -> list[str]:
    """Outputs that came in place of others."""
    before, after = ([str(v.name) for v in model.graph.outputs] for model in (source, lowered))
    new, gone = [n for n in after if n not in before], [n for n in before if n not in after]
    return [f"the outputs are {', '.join(new)} in place of {', '.join(gone)}"] if new or gone else []


def profile_note(profile: command.Profile) -> list[str]:
    """What an engine of one size means, where the model takes more."""
    if not profile.best or profile.least != profile.most:
        return []
    return [
        f"sizes are dynamic, and the engine takes {command.shapes_text(profile.best)} only: --shape says another, --min-shape and "
        "--max-shape a range"
    ]


def check_quantised(lowered: Lowered) -> bool:
    """Whether the model holds Q/DQ; refused where the target cannot run it."""
    target = lowered.target
    found = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in lowered.model.graph.all_nodes())
    if found and not target.device.int8:
        raise UsageError(
            f"the model is quantised (QuantizeLinear, DequantizeLinear), and {target.device.title} has no INT8 worth the "
            "name: build the floating-point model with --precision fp16"
        )
    if found and target.dla is not None:
        raise UsageError(
            "the model is quantised by QuantizeLinear and DequantizeLinear, which the DLA does not take: build the "
            "floating-point model with --precision int8, which makes a calibration cache"
        )
    return found


def profile_of(model: ir.Model, feed: Feed, least: Shapes, most: Shapes) -> command.Profile:
    """Sizes of the dynamic inputs.

    Raises
    ------
    UsageError
        A least size above the best, or a most below it.
    """
    dynamic = [
        str(v.name) for v in model.graph.inputs if not v.is_initializer() and not (v.shape and v.shape.is_static())
    ]
    best = {name: tuple(feed[name].shape) for name in dynamic}
    for given in (least, most):
        for name in given:
            if name not in best:
                raise UsageError(f"'{name}' is no dynamic input of the model; those are {', '.join(dynamic) or 'none'}")
    low = {name: tuple(least.get(name, shape)) for name, shape in best.items()}
    high = {name: tuple(most.get(name, shape)) for name, shape in best.items()}
    for name, shape in best.items():
        if not len(low[name]) == len(high[name]) == len(shape):
            raise UsageError(f"input '{name}' has rank {len(shape)}: give as many sizes in --min-shape and --max-shape")
        if any(not a <= b <= c for a, b, c in zip(low[name], shape, high[name], strict=True)):
            raise UsageError(
                f"input '{name}': --min-shape {low[name]}, --shape {shape} and --max-shape {high[name]} do not grow"
            )
    return command.Profile(low, best, high)


def _staging(folder: Path) -> Path:
    staged = folder.resolve().with_name(f".{folder.resolve().name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        staged.mkdir()
        (staged / "references").mkdir()
    except OSError as error:
        raise OutputError(f"cannot write '{folder}': {error.strerror}") from error
    return staged


def _publish(staged: Path, folder: Path) -> None:
    """Give the staged folder its name; an older bundle stays until the new one stands."""
    final = folder.resolve()
    old = staged.with_suffix(".old")
    try:
        if final.exists():
            final.rename(old)
        try:
            staged.rename(final)
        except OSError:
            with suppress(OSError):
                old.rename(final)
            raise
    except OSError as error:
        raise OutputError(f"cannot write '{folder}': {error.strerror}; nothing was written") from error
    shutil.rmtree(old, ignore_errors=True)


def _fill(
    staged: Path, lowered: Lowered, verdicts: list[Verdict], proof: dict[str, Any], profile: command.Profile, feed: Feed,
    explicit: bool, cache: str | None, notes: list[str],
) -> str:  # fmt: skip
    target = lowered.target
    files = writer.save(lowered.model, staged / command.MODEL)
    inputs = store(fed(lowered.model, feed), "input", target)
    outputs = store(_reference(lowered, feed), "output", target)
    for stored in (*inputs, *outputs):
        (staged / stored.file).write_bytes(stored.data)
    if cache is not None:
        (staged / command.CALIBRATION).write_text(cache)
    engine = _engine(staged, lowered, profile, explicit, cache)
    description = _description(
        lowered, verdicts, proof, profile, inputs, outputs, explicit, cache is not None, files, notes
    )
    if not target.rtx:
        calls = description["commands"]
        (staged / "check.py").write_text(
            resources.files("graphprune.backends.tensorrt.device").joinpath("check.py").read_text(encoding="utf-8")
        )
        for name, text in (("build.sh", build_sh(calls["build"])), ("run.sh", run_sh())):
            (staged / name).write_text(text)
            (staged / name).chmod(0o755)
    (staged / BUNDLE).write_text(json.dumps(description, indent=1) + "\n")
    (staged / "README.md").write_text(readme(description, verdicts, str(target), engine))
    return engine


def _reference(lowered: Lowered, feed: Feed) -> dict[str, Any]:
    """What ONNX Runtime gives for the outputs that no plugin makes."""
    plugin = {v for node in lowered.model.graph if node.domain not in ("", "ai.onnx") for v in node.outputs}
    names = [str(v.name) for v in lowered.model.graph.outputs if v not in plugin]
    return dict(Runner(lowered.model, outputs=names).run(fed(lowered.model, feed))) if names else {}


def _engine(staged: Path, lowered: Lowered, profile: command.Profile, explicit: bool, cache: str | None) -> str:
    if lowered.target.rtx:
        return _rtx_engine(staged, profile)
    reason = why_not_here(lowered.target)
    if reason:
        return f"no engine was built: {reason}"
    data = build_engine(
        staged / command.MODEL,
        lowered.target,
        profile,
        explicit=explicit,
        sparse=has_sparse_kernels(lowered),
        cache=None if cache is None else cache.encode(),
    )
    (staged / command.ENGINE).write_bytes(data)
    return f"engine built in process: {command.ENGINE}"


def _rtx_engine(staged: Path, profile: command.Profile) -> str:
    """TensorRT-RTX builds without a GPU, and its engines run on every RTX GPU."""
    if not tensorrt_rtx.installed():
        return "no engine was built: TensorRT-RTX is not installed here (pip install 'graphprune[trt-rtx]')"
    found = tensorrt_rtx.check(
        staged / command.MODEL,
        shapes=profile.best,
        least=profile.least,
        most=profile.most,
        engine=staged / command.ENGINE,
    )
    if not found.ok:
        raise EngineError(f"{found.told()}: {'; '.join(found.errors)}")
    return (
        f"the engine ({command.ENGINE}) was built by {found.version}; it needs that version, and a GPU to run: it has "
        "not been run here"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _description(
    lowered: Lowered, verdicts: list[Verdict], proof: dict[str, Any], profile: command.Profile, inputs: list[Stored],
    outputs: list[Stored], explicit: bool, calibrated: bool, files: list[Path], notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    target = lowered.target
    data = [{"file": path.name, "sha256": _sha256(path)} for path in files]
    counts = {status: sum(v.status == status for v in verdicts) for status in ("ok", "lowered", "unsupported")}
    found = {
        "schema": SCHEMA,
        "graphprune": __version__,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "target": {
            "device": target.device.name, "jetpack": target.jetpack.jetpack if target.jetpack else None,
            "tensorrt": ".".join(map(str, target.tensorrt)), "precision": target.precision, "dla": target.dla,
        },
        "model": {**data[0], "data": data[1:], "opset": lowered.model.graph.opset_imports[""]},
        "profile": {"min": profile.least, "opt": profile.best, "max": profile.most},
        "inputs": [one.to_json() for one in inputs],
        "outputs": [one.to_json() for one in outputs],
        "unchecked": [str(v.name) for v in lowered.model.graph.outputs if str(v.name) not in {o.name for o in outputs}],
        "tolerance": TOLERANCE[target.precision],
        "proof": proof,
        "nodes": counts,
        "notes": notes,
    }  # fmt: skip
    if not target.rtx:
        names = {one.name: one.file for one in inputs}
        found["commands"] = {
            "build": command.build_command(
                target, profile, explicit=explicit, calibrated=calibrated, sparse=has_sparse_kernels(lowered)
            ),
            "time": command.time_command(target, profile),
            "profile": command.profile_command(target, profile),
            "outputs": command.outputs_command(target, profile, names),
        }
    return found


__all__ = ["Built", "build", "check_folder", "profile_of"]
