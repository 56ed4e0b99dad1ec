"""What a builder of TensorRT before 11 is told apart from the model: precision, accelerator, calibration.

From 11 on the model's own element types are the precision, and none of this is there.
"""

from __future__ import annotations

import tensorrt as trt

from graphprune.devices import Target


def allow(config: trt.IBuilderConfig, target: Target, *, explicit: bool, cache: bytes | None) -> None:
    """Set what ``trtexec`` is told by ``--fp16``, ``--int8``, ``--best``, ``--useDLACore`` and ``--calib``.

    Parameters
    ----------
    explicit
        The model holds QuantizeLinear and DequantizeLinear.
    cache
        Calibration cache for INT8 without them.
    """
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
        config.int8_calibrator = Stored(cache)


class Stored(trt.IInt8EntropyCalibrator2):
    """Hands a stored cache over; there are no batches to run."""

    def __init__(self, cache: bytes) -> None:
        trt.IInt8EntropyCalibrator2.__init__(self)
        self._cache = cache

    def get_batch_size(self) -> int:
        """Of batches that never come."""
        return 1

    def get_batch(self, names: list[str]) -> list[int]:
        """None left."""
        return []

    def read_calibration_cache(self) -> bytes:
        """The cache."""
        return self._cache

    def write_calibration_cache(self, cache: object) -> None:
        """It is stored already."""
