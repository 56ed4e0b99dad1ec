"""The trained networks in a form that ships with this repository: ``python -m benchmarks.recovery.pack resnet20``.

``weights/NAME.safetensors`` holds the weights of convolutions and linear layers in half precision and everything else (batch
norm, biases: two per cent) as it is. Networks are rounded so whenever they are restored, so that the file here and the
``NAME.pt`` that training leaves give the same network, bit for bit: the tables are of these.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.recovery.files import CACHE, SHIPPED
from benchmarks.recovery.nets import NETS

State = dict[str, Tensor]


def stored(state: State) -> State:
    """A network's tensors as they are shipped: kernels float16, counters of batches left out, the rest as given."""
    kept = {name: value for name, value in state.items() if value.is_floating_point()}
    return {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in kept.items()}


def weights(name: str, folder: Path = CACHE) -> State:
    """The tensors of a trained network, float32, kernels rounded to half precision.

    Parameters
    ----------
    folder
        Where training leaves ``NAME.pt``; what is there goes before what is shipped.

    Raises
    ------
    FileNotFoundError
        It is neither trained nor shipped.
    """
    path, shipped = folder / f"{name}.pt", SHIPPED / f"{name}.safetensors"
    if path.is_file():
        state = stored(torch.load(path, weights_only=True))
    elif shipped.is_file():
        state = load_file(shipped)
    else:
        raise FileNotFoundError(f"'{path}' is missing; run: python -m benchmarks.recovery.train {name}")
    return {key: value.float() for key, value in state.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="+", choices=list(NETS))
    SHIPPED.mkdir(exist_ok=True)
    for name in parser.parse_args().net:
        path = SHIPPED / f"{name}.safetensors"
        save_file(stored(torch.load(CACHE / f"{name}.pt", weights_only=True)), path)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
