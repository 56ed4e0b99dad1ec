"""``graphprune bench`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--runtime", type=click.Choice(["onnxruntime", "openvino", "tensorrt"]), default="onnxruntime", show_default=True,
              help="What runs them.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of one operator. Default: all processors.")
@click.option("--runs", type=click.IntRange(3), metavar="N", help="Rounds in which each model runs once. Default 50.")
@click.option("--seconds", type=float, metavar="S", help="Begin no further round after this time.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224", help="Sizes of dynamic axes.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Size of a dynamic batch axis. Default 1.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True,
              help="Time that passes, or (with --threads 1) that the processor works for this program.")  # fmt: skip
@click.option("--profile", is_flag=True, help="Also time the single steps of each model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order within rounds, and of the inputs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="A picture: .svg or .png.")
def bench(models: tuple[str, ...], runtime: str, threads: int | None, runs: int | None, seconds: float | None,
          shapes: tuple[str, ...], batch: int | None, clock: Any, profile: bool, seed: int, as_json: bool,
          plot: Path | None) -> None:  # fmt: skip
    """Time MODELs side by side, in turns; ratios are to the first.

    A MODEL is an .onnx file, with --runtime openvino an OpenVINO IR (.xml) too, or a JSON file that trtexec wrote on a device
    (--exportTimes, --exportProfile).
    """
    from graphprune.benching import bench as measure
    from graphprune.benching import input_names
    from graphprune.inputs import parse_shapes
    from graphprune.printing_bench import print_bench

    sizes = {}
    if shapes:
        bare = any("=" not in text for text in shapes)
        sizes = parse_shapes(shapes, input_names(models[0]) if bare else None)
    found = measure(
        *models, runtime=runtime, threads=threads, runs=runs, seconds=seconds, shapes=sizes, batch=batch, clock=clock,
        profile=profile, seed=seed,
    )  # fmt: skip
    if plot is not None:
        from graphprune.plots_bench import plot_bench

        plot_bench(found, plot)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        print_bench(found)
