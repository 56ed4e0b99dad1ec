"""What a zoo entry is, and the table that holds them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

Axes = dict[str, dict[int, str]]


class Built(NamedTuple):
    """A module with what its export needs.

    Parameters
    ----------
    module : nn.Module
        Takes ``inputs`` as positional arguments; returns a tensor or a tuple of tensors.
    inputs : tuple of Tensor
        Example inputs, batch first.
    input_names : list of str
        Names of the graph inputs, in order.
    dynamic : dict or None
        ``{input name: {axis: symbol}}`` of axes a real file leaves open.
    """

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    input_names: list[str]
    dynamic: Axes | None = None


@dataclass(frozen=True)
class Entry:
    """One architecture of the zoo.

    Parameters
    ----------
    name : str
        File stem and command-line name.
    family : str
        ``cnn``, ``detector``, ``vision``, ``text`` or ``speech``.
    build : callable
        Returns a `Built`; heavy imports happen inside it.
    torchscript : bool
        Also exported by the torchscript exporter by default.
    keep_norm : bool
        The torchscript export leaves BatchNormalization nodes unfused.
    sane_init : bool
        Weights are re-initialised by fan-in (False: the builder did its own).
    """

    name: str
    family: str
    build: Callable[[], Built]
    torchscript: bool = False
    keep_norm: bool = False
    sane_init: bool = True


ENTRIES: dict[str, Entry] = {}


def entry(
    name: str,
    family: str,
    *,
    torchscript: bool = False,
    keep_norm: bool = False,
    sane_init: bool = True,
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Register the decorated builder under `name`; a name used twice is an error."""

    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        if name in ENTRIES:
            raise ValueError(f"zoo entry {name!r} is registered twice: rename one of them")
        ENTRIES[name] = Entry(name, family, build, torchscript, keep_norm, sane_init)
        return build

    return register


def picture(
    module: nn.Module,
    size: int | tuple[int, int] = 224,
    *,
    channels: int = 3,
    batch: int = 1,
    dynamic: str | None = "batch",
    name: str = "image",
) -> Built:
    """`Built` of a network with one image input.

    Parameters
    ----------
    size : int or (int, int)
        Height and width in pixels.
    dynamic : {"batch", "spatial", None}
        ``spatial`` opens batch, height and width.
    """
    import torch

    h, w = (size, size) if isinstance(size, int) else size
    axes: Axes | None = None
    if dynamic is not None:
        axes = {name: {0: "batch"}}
        if dynamic == "spatial":
            axes[name] |= {2: "height", 3: "width"}
    return Built(module, (torch.randn(batch, channels, h, w),), [name], axes)
