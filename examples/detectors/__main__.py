"""``python -m examples.detectors export NAME [--weights FILE] [--size N] [-o OUT.onnx]``: a detector as ONNX, batch open."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from pathlib import Path

import torch
from torch import nn

from examples.detectors import MODELS
from examples.detectors.initialise import load


def export(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a module as ONNX whose batch is open; batch norms stay what they are, for criteria that read them."""
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    from examples.detectors.regions import TRANSLATIONS

    # torch takes a size of 1 for a constant, so the example is given twice.
    program = torch.onnx.export(
        module, (torch.cat((example, example)),), dynamo=True, optimize=False, verbose=False, input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), custom_translation_table=TRANSLATIONS,
    )  # fmt: skip
    assert program is not None
    # torch's own optimize=True would merge the batch norms into the convolutions as well.
    fold_constants(program.model, onnx_shape_inference=True)
    remove_unused_nodes(program.model)
    part = path.with_name(path.name + ".part")
    program.save(part, external_data=False)
    part.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.detectors", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    wanted = commands.add_parser("export", help="write a detector as ONNX")
    wanted.add_argument("name", choices=[*MODELS, "cfg"])
    wanted.add_argument("--weights", type=Path, help="Darknet's .weights, or a state dict (.pth, .safetensors)")
    wanted.add_argument("--size", type=int, help="height and width of the pictures")
    wanted.add_argument("--classes", type=int, help="as many as the weights were trained for")
    wanted.add_argument("--proposals", type=int, help="of Faster R-CNN; 1000, as published, where there are weights")
    wanted.add_argument("--cfg", type=Path, help="the .cfg of a network of Darknet's, where NAME is cfg")
    wanted.add_argument("--raw", action="store_true", help="end at the maps of the heads, before boxes are decoded")
    wanted.add_argument("-o", "--output", type=Path, help="default NAME.onnx")
    options = parser.parse_args(arguments)
    factory = importlib.import_module(f"examples.detectors.{options.name}").model
    names = inspect.signature(factory).parameters
    given = {name: getattr(options, name) for name in ("size", "classes", "proposals", "cfg")} | {"raw": options.raw or None}
    if options.weights is not None and "proposals" in names and options.proposals is None:
        given["proposals"] = 1000
    given = {key: value for key, value in given.items() if value is not None}
    unknown = [f"--{key}" for key in given if key not in names]
    if unknown:
        parser.error(f"{options.name} has no {', '.join(unknown)}")
    if options.name == "cfg" and options.cfg is None:
        parser.error("cfg needs --cfg FILE")
    try:
        module, example = factory(**given)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.weights is not None:
        try:
            load(module, options.weights)
        except (OSError, ValueError, RuntimeError) as error:
            print(f"error: {options.weights} does not load into {options.name}: {error}", file=sys.stderr)
            return 2
    path = options.output or Path(f"{options.cfg.stem if options.cfg else options.name}.onnx")
    export(module, example, path)
    print(f"written: {path}" + ("" if options.weights else " (random weights)"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
