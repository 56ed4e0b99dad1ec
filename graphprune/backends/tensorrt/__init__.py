"""TensorRT: check, lower, prove and bundle a model for a device.

from graphprune.backends.tensorrt import build, check
from graphprune.devices import resolve

target = resolve("jetson-tx2", jetpack="4.6.1", precision="fp16")
verdicts = check(load("model.onnx").model, target)
build("model.onnx", target, "model.tx2")
"""

from graphprune.backends.tensorrt.bundle import Built, build
from graphprune.backends.tensorrt.checking import check, verdicts_of
from graphprune.backends.tensorrt.lowering import Lowered, lower
from graphprune.backends.tensorrt.proof import Source, prove
from graphprune.backends.tensorrt.verdicts import UnsupportedError, Verdict

__all__ = ["Built", "Lowered", "Source", "UnsupportedError", "Verdict", "build", "check", "lower", "prove", "verdicts_of"]
