"""Building an engine in process, where TensorRT's Python package and a GPU are: on the device itself, or a PC.

Written against TensorRT 10's signatures and type-checked against its published stubs; it runs only where they are.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from graphprune.backends.tensorrt.command import Profile
from graphprune.devices import Target
from graphprune.errors import GraphPruneError


class EngineError(GraphPruneError):
    """TensorRT refused a model that its tables say it takes."""


def why_not_here(target: Target) -> str:
    """Why no engine is built on this machine; empty where one can be."""
    jetson = Path("/etc/nv_tegra_release").exists()
    if target.jetpack is not None and not (jetson and platform.machine() == "aarch64"):
        return (
            "engines are built on the device they run on, and this machine is no Jetson: run the bundle's run.sh there"
        )
    if target.device.name != "x86-gpu" and target.jetpack is None:
        return f"no engine for {target.device.title} is built here"
    if importlib.util.find_spec("tensorrt") is None:
        return "TensorRT's Python package is not installed here"
    try:
        import tensorrt

        found = str(tensorrt.__version__)
        builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        return f"TensorRT cannot be used here ({error}): no GPU or no driver"
    if builder is None:
        return "TensorRT finds no GPU here"
    wanted = ".".join(map(str, target.tensorrt[:2]))
    if not found.startswith(f"{wanted}."):
        return f"TensorRT {found} is installed here, the target has {wanted}"
    if target.tensorrt < (10,):
        return "building in process needs TensorRT 10: run the bundle's build.sh"
    return ""


def build_engine(model: Path, target: Target, profile: Profile, *, explicit: bool, cache: bytes | None = None) -> bytes:
    """Parse and build, as ``trtexec`` does with the bundle's options.

    Parameters
    ----------
    model
        The lowered ``.onnx`` file.
    explicit
        It holds QuantizeLinear and DequantizeLinear.
    cache
        Calibration cache for INT8 without them.

    Raises
    ------
    EngineError
        The parser or the builder refuses; the message names the node.
    """
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise EngineError(
            "TensorRT cannot parse the model: " + "; ".join(f"node {e.node()}: {e.desc()}" for e in errors)
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_mib << 20)
    half, whole = trt.BuilderFlag.FP16, trt.BuilderFlag.INT8
    for flag in {"fp32": [], "fp16": [half], "int8": [whole, half], "best": [whole, half]}[target.precision]:
        config.set_flag(flag)
    if explicit:
        config.set_flag(whole)
    if target.dla is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = target.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if cache is not None:
        config.int8_calibrator = _calibrator(cache)
    if profile.best:
        shapes = builder.create_optimization_profile()
        for name, best in profile.best.items():
            least, most = trt.Dims(list(profile.least[name])), trt.Dims(list(profile.most[name]))
            shapes.set_shape(name, least, trt.Dims(list(best)), most)
        config.add_optimization_profile(shapes)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise EngineError("TensorRT could not build the engine; its own lines above say why")
    return bytes(built)


def _calibrator(cache: bytes):  # type: ignore[no-untyped-def]  # its class exists only where TensorRT does
    import tensorrt as trt

    class Stored(trt.IInt8EntropyCalibrator2):
        """Hands the stored cache over; there are no batches to run."""

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> list[int]:
            return []

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: object) -> None:
            return None

    return Stored()
