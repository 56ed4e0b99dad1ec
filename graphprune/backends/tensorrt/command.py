"""The exact calls of trtexec for a target; no option that its version lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphprune.devices import Target
from graphprune.devices.tables import flags, has_flag
from graphprune.errors import GraphPruneError

Shapes = Mapping[str, tuple[int, ...]]
ENGINE, MODEL, TIMING, CALIBRATION = "model.engine", "model.onnx", "timing.cache", "calibration.cache"
TIMES, PROFILE, OUTPUTS, LAYERS = "times.json", "profile.json", "outputs.json", "layers.json"
#: Seconds that a timing takes, and milliseconds before it: Jetsons raise their clocks late.
SECONDS, WARM_UP = 10, 1000


@dataclass(frozen=True)
class Profile:
    """Sizes of the dynamic inputs: least, best and most. Empty where all are static."""

    least: Shapes
    best: Shapes
    most: Shapes


def known(flag: str, target: Target) -> bool:
    """Whether a target's trtexec has an option, deprecated or not."""
    row = flags().get(flag)
    if row is None:
        raise GraphPruneError(f"option --{flag} of trtexec is not in the table graphprune/devices/trtexec.csv")
    wanted = target.tensorrt
    return wanted >= row.since and (row.before is None or wanted < row.before)


class Command:
    """One call; refuses options that the target's trtexec lacks."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.arguments: list[str] = []

    def add(self, flag: str, value: object = None) -> None:
        """Append ``--flag`` or ``--flag=value``."""
        if not known(flag, self._target):
            trt = ".".join(map(str, self._target.tensorrt))
            raise GraphPruneError(f"trtexec of TensorRT {trt} has no --{flag}")
        self.arguments.append(f"--{flag}" if value is None else f"--{flag}={value}")

    def add_first(self, *options: tuple[str, object]) -> None:
        """Append the first of several options that the version has and does not deprecate, if any."""
        for flag, value in options:
            if has_flag(flag, self._target.tensorrt):
                self.add(flag, value)
                return


def shapes_text(shapes: Shapes) -> str:
    """``x:1x3x224x224,y:1x7``."""
    return ",".join(f"{name_text(name)}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def name_text(name: str) -> str:
    """A tensor's name; quoted where trtexec would take a part of it for something else."""
    return f"'{name}'" if any(c in name for c in ":, ") else name


def build_command(
    target: Target, profile: Profile, *, explicit: bool, calibrated: bool, sparse: bool = False
) -> list[str]:
    """Build the engine.

    Parameters
    ----------
    explicit
        The model holds QuantizeLinear and DequantizeLinear.
    calibrated
        ``calibration.cache`` lies beside the model.
    sparse
        It has 2:4 sparse weights, and the device tensor cores for them.
    """
    command = Command(target)
    command.add("onnx", MODEL)
    command.add("saveEngine", ENGINE)
    if profile.best:
        for flag, shapes in (("minShapes", profile.least), ("optShapes", profile.best), ("maxShapes", profile.most)):
            command.add(flag, shapes_text(shapes))
    for flag in precision_flags(target, explicit):
        command.add(flag)
    if sparse:
        command.add("sparsity", "enable")
    if calibrated:
        command.add("calib", CALIBRATION)
    if target.dla is not None:
        command.add("useDLACore", target.dla)
        command.add("allowGPUFallback")
    command.add_first(("memPoolSize", f"workspace:{target.workspace_mib}"), ("workspace", target.workspace_mib))
    command.add("timingCacheFile", TIMING)
    if known("profilingVerbosity", target):
        command.add("profilingVerbosity", "detailed")
    command.add_first(("skipInference", None), ("buildOnly", None))
    return command.arguments


def precision_flags(target: Target, explicit: bool) -> list[str]:
    """Options that allow narrower types; a strongly typed version has none."""
    if target.strongly_typed:
        return []
    chosen = {"fp32": [], "fp16": ["fp16"], "int8": ["int8", "fp16"], "best": ["best"]}[target.precision]
    if explicit and "int8" not in chosen and "best" not in chosen:
        chosen = [*chosen, "int8"]  # Q/DQ layers are refused without it
    return chosen


def _load(target: Target, profile: Profile) -> Command:
    command = Command(target)
    command.add("loadEngine", ENGINE)
    if target.dla is not None:
        command.add("useDLACore", target.dla)
    if profile.best:
        command.add("shapes", shapes_text(profile.best))
    return command


def time_command(target: Target, profile: Profile) -> list[str]:
    """Time the engine, without the copies to and from the host."""
    command = _load(target, profile)
    command.add("warmUp", WARM_UP)
    command.add("duration", SECONDS)
    command.add("iterations", 100)
    for flag in ("noDataTransfers", "useSpinWait"):
        command.add_first((flag, None))
    command.add("exportTimes", TIMES)
    return command.arguments


def profile_command(target: Target, profile: Profile) -> list[str]:
    """Time every layer, in a run of its own: measuring layers slows the whole."""
    command = _load(target, profile)
    command.add("warmUp", WARM_UP)
    command.add("iterations", 50)
    command.add("dumpProfile")
    command.add("exportProfile", PROFILE)
    if known("exportLayerInfo", target):
        command.add("profilingVerbosity", "detailed")
        command.add("exportLayerInfo", LAYERS)
    return command.arguments


def outputs_command(target: Target, profile: Profile, files: Mapping[str, str]) -> list[str]:
    """Run once on the stored inputs."""
    command = _load(target, profile)
    command.add("loadInputs", ",".join(f"{name_text(name)}:{file}" for name, file in files.items()))
    for flag, value in (("warmUp", 0), ("duration", 0), ("iterations", 1)):
        command.add(flag, value)
    command.add("exportOutput", OUTPUTS)
    return command.arguments
