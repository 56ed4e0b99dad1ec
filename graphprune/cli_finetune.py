"""``graphprune finetune`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from graphprune.cli_text import numbers


@click.command(short_help="Train MODEL on labelled data.")
@click.argument("model")
@click.option("--data", required=True, metavar="PATH",
              help="A folder with one subfolder of images a class, or a .npz with the inputs and an array 'labels'.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Where to write; default MODEL.finetuned.onnx, in the current folder.")  # fmt: skip
@click.option("--epochs", type=float, help="Length. Default 5.")
@click.option("--minutes", type=float, help="Length, turned into steps at the start.")
@click.option("--steps", type=int, help="Length.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Samples of a step.")
@click.option("--lr", type=float, default=5e-4, show_default=True, help="Highest learning rate.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True,
              help="AdamW, or SGD with momentum.")  # fmt: skip
@click.option("--decay", type=float, default=0.0, show_default=True, help="Weight decay.")
@click.option("--norms", type=click.Choice(["train", "eval"]), default="train", show_default=True,
              help="Batch norms follow the data (and dropout works), or keep the statistics that they have.")  # fmt: skip
@click.option("--augment", type=click.Choice(["none", "noise"]), default="none", show_default=True,
              help="Noise on the inputs.")  # fmt: skip
@click.option("--teacher", metavar="MODEL", help="A model to learn from as well; labels are not needed then.")
@click.option("--weight", type=float, default=0.5, show_default=True, help="Of the teacher, where there are labels too.")
@click.option("--temperature", type=float, default=2.0, show_default=True, help="Of the teacher's outputs.")
@click.option("--holdout", type=float, default=0.1, show_default=True, help="Share of the samples that judges.")
@click.option("--patience", type=click.IntRange(1), default=8, show_default=True, help="Judgements without gain, of 20.")
@click.option("--precision", type=click.Choice(["no", "auto", "bf16", "fp16"]), default="no", show_default=True,
              help="Of the products while training; auto: bfloat16 where the device has it.")  # fmt: skip
@click.option("--checkpoint", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Go on from here after a kill, with the same options.")  # fmt: skip
@click.option("--every", type=float, default=60.0, show_default=True, help="Seconds between checkpoints.")
@click.option("--mean", metavar="A,B,C", help="Per channel, for images.")
@click.option("--std", metavar="A,B,C", help="Per channel, for images.")
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="For images, where the shape leaves it open.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224", help="Sizes of dynamic axes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def finetune(model: str, data: str, output: Path | None, mean: str | None, std: str | None, shapes: tuple[str, ...],
             as_json: bool, **options: Any) -> None:  # fmt: skip
    """Train MODEL on labelled data and write OUT.onnx; the best weights on held-out samples are kept."""
    from graphprune.finetuning import finetune as train
    from graphprune.inputs import parse_shapes
    from graphprune.printing import Display
    from graphprune.training.processes import is_main
    from graphprune.writing import check_output

    output = Path(f"{Path(model.partition(':')[0]).stem}.finetuned.onnx") if output is None else output
    check_output(model, output)
    given = {name: value for name, value in options.items() if value is not None}
    sizes = parse_shapes(shapes, None) if shapes else None
    with Display(quiet=as_json) as display:
        found = train(
            model, data, mean=numbers("--mean", mean), std=numbers("--std", std), shapes=sizes,
            progress=display.progress, **given,
        )  # fmt: skip
    if not is_main():
        return
    files = found.save(output)
    if as_json:
        click.echo(json.dumps({"files": [str(path) for path in files], **found.record}))
        return
    one = found.record
    click.secho("finetuned: ", fg="green", bold=True, nl=False)
    click.echo(
        f"{one['measure']} {one['before']:.4f} -> {one['after']:.4f} on {one['held_out']:,} held-out samples; {one['steps']:,} of "
        f"{one['planned']:,} steps ({one['epochs']:.2g} epochs of {one['samples']:,} samples) in {one['seconds']:.0f} s, "
        f"{one['ended']}; "
        + (f"best at step {one['best_step']:,}" if one["used"] else "no gain, the weights are as they were")
    )
    click.echo("written: " + ", ".join(map(str, files)))
