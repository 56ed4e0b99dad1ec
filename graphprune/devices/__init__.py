"""What devices can do: JetPack versions, modules, TensorRT's operators and flags, as tables with their sources."""

from graphprune.devices.tables import (
    Device,
    DlaRow,
    Flag,
    JetPack,
    Operator,
    devices,
    flags,
    jetpacks,
    operator,
    version,
)
from graphprune.devices.targets import Target, alignment, named, resolve

__all__ = [
    "Device",
    "DlaRow",
    "Flag",
    "JetPack",
    "Operator",
    "Target",
    "alignment",
    "devices",
    "flags",
    "jetpacks",
    "named",
    "operator",
    "resolve",
    "version",
]
