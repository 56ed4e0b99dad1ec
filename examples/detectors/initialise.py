"""Random weights that behave like trained ones, and the reading of published ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.initialise import randomise, settle_statistics


def ready(build: Callable[[], nn.Module], shape: tuple[int, ...], seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A module in evaluation mode with random weights of lifelike scale, and an example input in [0, 1].

    No channel is dead and no batch norm trivial, so that a wrong cut shows. The draw is the same every time.

    Parameters
    ----------
    build
        Makes the module.
    shape
        Of the input.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().eval()
        example = torch.rand(shape)
        randomise(module)
        settle_statistics(module, (example,))
    return module, example


@torch.no_grad()
def calm(module: nn.Module, example: Tensor, norms: Sequence[nn.Module], share: float = 0.2) -> None:
    """Make the last norms of residual branches small, as they are in trained networks, and all statistics fit again.

    A deep network with random branches as large as the trunk doubles a difference of rounding every few blocks.
    """
    for norm in norms:
        norm.weight.mul_(share)  # type: ignore[operator, union-attr]
        norm.bias.mul_(share)  # type: ignore[operator, union-attr]
    kept = {name: value.clone() for name, value in module.state_dict().items() if "running" not in name}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settle_statistics(module, (example,))
    module.load_state_dict(kept, strict=False)


@torch.no_grad()
def temper(module: nn.Module, example: Tensor, spreads: Mapping[str, float]) -> None:
    """Scale layers such that what they give has a certain spread, as trained heads' logits and box moves have.

    Parameters
    ----------
    spreads
        Standard deviation by the layer's name.
    """
    for name, spread in spreads.items():
        layer, given = module.get_submodule(name), []
        handle = layer.register_forward_hook(lambda _layer, _args, out, given=given: given.append(out.flatten()))
        module(example)
        handle.remove()
        factor = spread / float(torch.cat(given).std())
        for parameter in layer.parameters():
            parameter.mul_(factor)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.pt``, ``.pth`` or ``.safetensors`` file, without the prefix that ``DataParallel`` adds.

    Raises
    ------
    ValueError
        There is none.
    """
    path = Path(path)
    found: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found = load_file(path)
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds Python objects, not tensors alone: where its library is installed, save the state dict, "
                "for example torch.save(YOLO('yolov8n.pt').model.float().state_dict(), 'yolov8n.pth')"
            ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no state dict")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def load(module: nn.Module, path: str | Path) -> None:
    """Load published weights: Darknet's ``.weights``, or a state dict; all of them, or an error."""
    from examples.detectors import darknet

    if Path(path).suffix in (".weights", ".backup"):
        darknet.load_weights(module, path)
    else:
        module.load_state_dict(read_state(path), strict=True)
