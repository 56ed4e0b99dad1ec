"""Building an engine in process, where TensorRT's Python package and a GPU are: on the device itself, or a PC.

Type-checked against the signatures of TensorRT 8.5 to 11 (tests/tensorrt_stubs); it runs only where TensorRT and a GPU are.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from graphprune.backends.tensorrt.command import Profile
from graphprune.devices import Target
from graphprune.errors import GraphPruneError

#: The oldest TensorRT whose signatures the calls below are checked against.
OLDEST = (8, 5)
#: NetworkDefinitionCreationFlag.EXPLICIT_BATCH as bits: what the ONNX parser wants; from 10 on there is nothing else.
EXPLICIT_BATCH = 1


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
    if target.tensorrt < OLDEST:
        return f"building in process needs TensorRT {'.'.join(map(str, OLDEST))}: run the bundle's build.sh"
    return ""


def build_engine(
    model: Path, target: Target, profile: Profile, *, explicit: bool, sparse: bool = False, cache: bytes | None = None
) -> bytes:  # fmt: skip
    """Parse and build, as ``trtexec`` does with the bundle's options.

    Parameters
    ----------
    model
        The lowered ``.onnx`` file.
    explicit
        It holds QuantizeLinear and DequantizeLinear.
    sparse
        It has 2:4 sparse weights, and the GPU tensor cores for them.
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
    network = builder.create_network(EXPLICIT_BATCH if target.tensorrt < (10,) else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise EngineError(
            "TensorRT cannot parse the model: " + "; ".join(f"node {e.node()}: {e.desc()}" for e in errors)
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_mib << 20)
    if not target.strongly_typed:
        from graphprune.backends.tensorrt.precision import allow

        allow(config, target, explicit=explicit, cache=cache)
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
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
