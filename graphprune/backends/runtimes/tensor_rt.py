"""TensorRT on a GPU, through ONNX Runtime's execution provider (``onnxruntime-gpu`` with TensorRT installed)."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from graphprune.backends.runtimes.base import Feed, LayerTime
from graphprune.backends.runtimes.onnx_runtime import OnnxRuntime
from graphprune.errors import ModelError, UsageError

_PROVIDER = "TensorrtExecutionProvider"


class TensorRt(OnnxRuntime):
    """Engines are built for this GPU when a model is loaded, in half precision where TensorRT finds that faster."""

    name = "tensorrt"
    providers = ((_PROVIDER, {"trt_fp16_enable": True}), "CUDAExecutionProvider", "CPUExecutionProvider")

    def __init__(self) -> None:
        if _PROVIDER not in ort.get_available_providers():
            raise UsageError(
                "--runtime tensorrt: this installation of ONNX Runtime has no TensorRT (it needs an NVIDIA GPU, TensorRT and "
                "onnxruntime-gpu). To time a model on a device, build and run it there with 'trtexec --exportTimes=times.json "
                "--exportProfile=profile.json', and give these files to 'graphprune bench'"
            )

    @property
    def version(self) -> str:
        return f"by onnxruntime {ort.__version__}"

    @property
    def device(self) -> str:
        return "gpu"

    def _session(self, model: bytes | Path, options: ort.SessionOptions) -> ort.InferenceSession:
        session = super()._session(model, options)
        if _PROVIDER not in session.get_providers():
            # ONNX Runtime goes over to the next provider without a word, which would time the wrong one.
            raise ModelError("ONNX Runtime could not start TensorRT on this GPU and would have run on the CPU instead")
        return session

    def profile(
        self, model: bytes | Path, feed: Feed, threads: int, runs: int, *, named: bool = True
    ) -> list[LayerTime]:
        raise UsageError(
            "--profile: TensorRT's layers are inside one step of ONNX Runtime; 'trtexec --exportProfile=profile.json' lists "
            "them, and 'graphprune bench profile.json' reads that"
        )
