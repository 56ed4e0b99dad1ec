"""``graphprune demo`` on the command line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click


@click.group(short_help="A model and its cut side by side, in a browser.")
def demo() -> None:
    """Look at a model and its cut side by side, in a browser."""


@demo.command(short_help="Detectors: boxes and times of both, live.")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("cut", required=False, type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), metavar="DIR", help="Pictures to look at.")
@click.option("--video", type=click.Path(path_type=Path), metavar="FILE",
              help="A video to look at (pip install 'graphprune[video]'), or an animated GIF or WebP.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8100, show_default=True, help="0: any that is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 shows the page to other machines too.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Threads of each model.")
@click.option("--pixels", type=click.Choice(["unit", "imagenet", "byte", "sign", "caffe"]),
              help="What MODEL takes: 0 to 1, ImageNet's mean and std, 0 to 255, -1 to 1, means taken off. Default: unit, "
                   "unless it finds nothing so.")  # fmt: skip
@click.option("--channels", type=click.Choice(["rgb", "bgr"]), help="Order of the colours.")
@click.option("--fit", type=click.Choice(["letterbox", "corner", "stretch"]), help="How pictures fit the input. Default letterbox.")
@click.option("--size", type=click.IntRange(1), metavar="N", help="Side of the input, where MODEL leaves it open. Default 640.")
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser of this machine.")
def detect(model: Path | None, cut: Path | None, images: Path | None, video: Path | None, port: int, host: str, threads: int,
           opened: bool, **asked: object) -> None:  # fmt: skip
    """Show the boxes of detector MODEL and of CUT on the same pictures, and what each takes, until Ctrl-C.

    Without arguments: the drone example and its cut on a drawn clip. Without CUT, MODEL is cut here to half of its MACs
    and fitted on the pictures; nothing is written.
    """
    if images is not None and video is not None:
        raise click.UsageError("give --images or --video, not both")
    if model is not None and images is None and video is None:
        raise click.UsageError(f"say what {model} is to look at: --images DIR or --video FILE")

    from graphprune.demo.pair import Pair
    from graphprune.demo.pictures import Folder, drones, example
    from graphprune.demo.pictures import video as film
    from graphprune.demo.server import Server
    from graphprune.detection.way import Asked
    from graphprune.printing import Display

    pictures = Folder(images) if images is not None else film(video) if video is not None else drones()
    if model is None:
        model, cut = example() / "drone.onnx", example() / "drone.small.onnx"
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        with Display() as display:
            pair = Pair(model, cut, pictures, asked=Asked(**asked), threads=threads, folder=Path(folder),  # type: ignore[arg-type]
                        progress=display.progress)  # fmt: skip
        with Server(pair, host, port) as server:
            click.echo(f"{pair.files[0].name} and {pair.files[1].name} on {pictures.name}: {pair.eyes.words}")
            click.secho(f"open {server.address}", bold=True, nl=False)
            click.echo(" in a browser; Ctrl-C ends it")
            if opened:
                import webbrowser

                webbrowser.open(server.address)
            try:
                server.serve_forever(poll_interval=0.1)
            except KeyboardInterrupt:  # how this command is meant to end
                click.echo("\nended")
