"""The commands for devices: ``build`` and ``devices``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphprune.cli_text import numbers, sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphprune.backends.tensorrt_rtx import Found
    from graphprune.devices import Target


@click.command(short_help="Lower MODEL for a device, with scripts that run it there.")
@click.argument("model")
@click.option("--target", "name", required=True, metavar="DEVICE", help="tx2, nano, xavier-nx, agx-orin, thor, rtx, x86-gpu, ...: "
              "see 'graphprune devices'.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Folder to make; default MODEL.DEVICE, in the current folder.")  # fmt: skip
@click.option("--jetpack", metavar="VERSION", help="What the device runs; default its last.")
@click.option("--tensorrt", metavar="VERSION", help="For x86-gpu: the TensorRT that is installed there.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8", "best"]), help="Default fp16; fp32 for rtx.")
@click.option("--dla", type=int, metavar="N", help="Run what can on a deep learning accelerator.")
@click.option("--memory", type=float, metavar="GB", help="The device's memory, if not the table's.")
@click.option("--data", metavar="PATH", help="Calibration data and reference inputs: images, .npy or .npz.")
@click.option("--samples", type=int, help="Samples of it to use. Default 32 to calibrate INT8, else 2.")
@click.option("--mean", metavar="A,B,C", help="Per channel, for images.")
@click.option("--std", metavar="A,B,C", help="Per channel, for images.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=1x3x224x224",
    help="Sizes of dynamic inputs that the engine is tuned for.",
)
@click.option(
    "--min-shape", "least", multiple=True, metavar="NAME=...", help="The least it must take; default --shape."
)
@click.option("--max-shape", "most", multiple=True, metavar="NAME=...", help="The most it must take; default --shape.")
@click.option("--static", is_flag=True, help="Fix dynamic inputs at --shape: more is computed in advance.")
@click.option(
    "--raw-heads", is_flag=True, help="Cut NonMaxSuppression and what follows off: outputs are boxes and scores."
)
@click.option("--check-only", is_flag=True, help="Say what becomes of every node; write nothing.")
@click.option(
    "--rtx-check", is_flag=True, help="Also parse and build the lowered model with TensorRT-RTX (no GPU needed)."
)
@click.option("--all", "everything", is_flag=True, help="Show nodes that are fine as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def build(
    model: str, name: str, output: Path | None, jetpack: str | None, tensorrt: str | None, precision: str | None, dla: int | None,
    memory: float | None, data: str | None, samples: int | None, mean: str | None, std: str | None, shapes: tuple[str, ...],
    least: tuple[str, ...], most: tuple[str, ...], static: bool, raw_heads: bool, check_only: bool, rtx_check: bool,
    everything: bool, as_json: bool,
) -> None:  # fmt: skip
    """Lower MODEL for a device, prove it, and write a folder that builds, times and checks it there."""
    from graphprune.devices import resolve

    target = resolve(name, jetpack=jetpack, precision=precision, dla=dla, tensorrt=tensorrt, memory_gb=memory)
    tuned = sizes(model, shapes)
    if check_only:
        _check(model, target, tuned, static, raw_heads, rtx_check, everything, as_json)
        return
    from graphprune.backends.tensorrt import build as make
    from graphprune.printing import Display
    from graphprune.printing_build import print_built

    folder = Path(f"{Path(model).stem}.{target.device.name}") if output is None else output
    with Display(quiet=as_json) as display:
        built = make(
            model, target, folder, data=data, shapes=tuned, min_shapes=sizes(model, least), max_shapes=sizes(model, most),
            raw_heads=raw_heads, static=static, samples_count=samples, mean=numbers("--mean", mean), std=numbers("--std", std),
            progress=display.progress,
        )  # fmt: skip
        found = _rtx(folder / "model.onnx", tuned, target) if rtx_check else None
    if as_json:
        click.echo(json.dumps({**built.to_json(), **({"rtx": found.to_json()} if found else {})}))
    else:
        print_built(built, found, everything)


def _check(
    model: str,
    target: Target,
    shapes: dict[str, tuple[int, ...]],
    static: bool,
    raw_heads: bool,
    rtx: bool,
    everything: bool,
    as_json: bool,
) -> None:
    """``--check-only``; ends with 2 where a node is not supported."""
    import sys
    import tempfile

    from graphprune.backends import onnx as writer
    from graphprune.backends.tensorrt import lower, verdicts_of
    from graphprune.pipeline import load_any
    from graphprune.printing_build import print_verdicts
    from graphprune.shapes import probe_inputs

    source = load_any(model).model
    lowered = lower(source, target, shapes=probe_inputs(source, shapes) if static else None, raw_heads=raw_heads)
    verdicts = verdicts_of(lowered, shapes)
    bad = any(v.status == "unsupported" for v in verdicts)
    found = None
    if rtx and not bad:
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            found = _rtx(writer.save(lowered.model, Path(folder) / "model.onnx")[0], shapes, target)
    if as_json:
        row: dict[str, Any] = {"target": str(target), "verdicts": [v.to_json() for v in verdicts]}
        click.echo(json.dumps({**row, **({"rtx": found.to_json()} if found else {})}))
    else:
        print_verdicts(verdicts, str(target), everything, found)
    if bad:
        sys.exit(2)


def _rtx(model: Path, shapes: dict[str, tuple[int, ...]], target: Target) -> Found:
    from graphprune.backends.tensorrt_rtx import check

    return check(model, shapes=shapes, half=target.precision != "fp32")


@click.command()
@click.argument("names", nargs=-1, metavar="[DEVICE]...")
@click.option("--json", "as_json", is_flag=True, help="All of it, with sources.")
def devices(names: Sequence[str], as_json: bool) -> None:
    """List devices that models are built for, and what each can do."""
    from graphprune.printing_build import devices_json, print_devices

    if as_json:
        click.echo(json.dumps(devices_json(names)))
    else:
        print_devices(names)
