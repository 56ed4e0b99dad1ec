"""``graphprune calibrate`` on the command line."""

from __future__ import annotations

import json
from typing import Any

import click

from graphprune.cli_text import sizes


@click.command()
@click.argument("model")
@click.option("--from", "profile", required=True, type=click.Path(dir_okay=False), metavar="FILE",
              help="What trtexec --exportProfile wrote on the device, or the result.json of a bundle.")  # fmt: skip
@click.option("--device", required=True, metavar="NAME[:PRECISION]", help="Where it was written: tx2, orin-nano:int8, ...")
@click.option("--layers", type=click.Path(dir_okay=False), metavar="FILE",
              help="What trtexec --exportLayerInfo wrote there, with --profilingVerbosity=detailed.")  # fmt: skip
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224", help="Sizes of dynamic axes, as profiled.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def calibrate(model: str, profile: str, device: str, layers: str | None, shapes: tuple[str, ...], as_json: bool) -> None:
    """Keep what a device took for MODEL, for estimates.

    '--budget latency=... --device NAME' estimates by it from then on.
    """

    from graphprune.latency.calibrate import calibrate as read
    from graphprune.printing import Display

    with Display(quiet=as_json) as display:
        display.progress("reading the profile", 0.0)
        found: Any = read(model, profile, device, layers=layers, shapes=sizes(model, shapes))
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    click.secho("calibrated: ", fg="green", bold=True, nl=False)
    click.echo(
        f"{found.device}: {found.matched} of {found.kernels} kernels by name, {found.told:.0%} of {found.ms:.3g} ms; the device "
        f"takes {found.scale:.2f} times what the roofline says of them ({found.roofline_ms:.3g} ms)\nkept in {found.file}"
    )
