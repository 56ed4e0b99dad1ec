"""The command line: parse, call the API, print. Nothing else lives here."""

from __future__ import annotations

import errno
import gc
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from graphprune import __version__
from graphprune.cli_bench import bench
from graphprune.cli_build import build, devices
from graphprune.cli_calibrate import calibrate
from graphprune.cli_demo import demo
from graphprune.cli_finetune import finetune
from graphprune.cli_text import numbers, sizes
from graphprune.collecting import SELDOM
from graphprune.errors import GraphPruneError

if TYPE_CHECKING:
    from graphprune.pipeline import Result

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Commands(click.Group):
    """Turns every error into one message and its exit code; with ``--debug`` it stays a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one needs them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        received: list[int] = []
        try:
            with _unwinding(received):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail(*_ended(received))
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if received:
                _fail(*_ended(received))  # compiled code may answer a signal with an error of its own
            if ctx.params.get("debug") or getattr(error, "errno", None) == errno.EPIPE:
                raise  # click itself ends quietly when a pipe is closed, as by '| head'
            _fail(*_told(error))


@contextmanager
def _unwinding(received: list[int]) -> Iterator[None]:
    """Let every signal that asks a process to end unwind it, as Ctrl-C does, and note it."""

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # A signal that is ignored on purpose (nohup) stays ignored.
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(received: list[int]) -> tuple[str, int]:
    """The message and the exit code for a signal, by custom 128 and its number."""
    number = received[0] if received else int(signal.SIGINT)
    word = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return f"{word}; nothing was written", 128 + number


def _told(error: Exception) -> tuple[str, int]:
    """The message and the exit code of an error."""
    if isinstance(error, GraphPruneError):
        return str(error), error.exit_code
    if isinstance(error, (MemoryError, RecursionError)):
        return f"{type(error).__name__}: the model is too large or too deeply nested for this machine", 2
    if isinstance(error, OSError):
        return f"the system refuses: {error}", 2
    return (
        f"a fault in graphprune ({type(error).__name__}: {error}). Please report it with the model and what "
        "'graphprune --debug ...' prints"
    ), 2


def _fail(message: str, code: int) -> None:
    click.secho("error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(message, err=True)
    sys.exit(code)


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="graphprune")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Make neural networks smaller: cut any ONNX file, and prove the cut.

    \b
    graphprune run model.onnx --pass entropy --rate 0.5
    """


def _shape_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224",
        help="Sizes of dynamic axes while analysing; the written model keeps its dynamic axes.",
    )(command)  # fmt: skip


@cli.command(short_help="Cut MODEL, prove the cut, write it with its plan.")
@click.argument("model")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Where to write; default MODEL.pruned.onnx, in the current folder. OUT.xml: OpenVINO's IR.")  # fmt: skip
@click.option("--pass", "passes", multiple=True, metavar="NAME[{opt=val,...}]",
              help="Criteria to score by, and recovery (see 'graphprune passes'); several times. Default l1.")  # fmt: skip
@click.option("--combine", metavar="WAY",
              help="How several criteria decide: weighted{entropy=0.7,l1=0.3} (default: equal weights), rank-mean, "
                   "intersection, or parallel: each group by the one that removes more.")  # fmt: skip
@click.option("--rate", type=float, help="Share of the prunable indices to remove, 0 < R < 1. Default 0.5.")
@click.option("--budget", metavar="macs=0.5|params=0.5|latency=0.5x|latency=8ms",
              help="What to keep, instead of a rate. Latency is measured on this machine, or estimated for --device.")  # fmt: skip
@click.option("--scope", type=click.Choice(["global", "group"]), default="global", show_default=True,
              help="One threshold over all groups, or the same rate in each.")  # fmt: skip
@click.option("--grain", type=click.Choice(["coarse", "fine", "both"]), default="coarse", show_default=True,
              help="Heads and groups, or what is within them.")  # fmt: skip
@click.option("--allocate", type=click.Choice(["dp", "global", "uniform", "isomorphic"]),
              help="How a budget is shared among groups. Default: dp where --data is given, else by --scope.")  # fmt: skip
@click.option("--floor", type=float, default=0.1, show_default=True, help="Share of each group that is always kept.")
@click.option("--align", metavar="N|auto",
              help="Kept widths are multiples of N; auto: as measured in --runtime, or as --device likes them.")  # fmt: skip
@click.option("--device", metavar="NAME[:PRECISION]", default="cpu", show_default=True,
              help="For --align auto and latency budgets: this machine, or tx2, orin-nano:int8, ... ('graphprune devices'), for "
                   "which latency is estimated.")  # fmt: skip
@click.option("--exact", is_flag=True, help="Leave what normalisations look across.")
@click.option("--keep", multiple=True, metavar="GLOB", help="Tensors to leave whole; several times.")
@click.option("--data", metavar="PATH", help="Calibration data: a folder of images, .npy, or .npz by input name.")
@click.option("--samples", type=int, help="Calibration samples. Default 16, or 256 with a recover pass.")
@click.option("--mean", metavar="A,B,C", help="Per channel, for images.")
@click.option("--std", metavar="A,B,C", help="Per channel, for images.")
@click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="For images, where the shape leaves it open.")
@click.option("--eval", metavar="MODULE:FUNCTION|coco:PATH|voc:PATH",
              help="A function of an .onnx path, called before and after; or mAP on annotated pictures.")  # fmt: skip
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT.html",
              help="Also write a report to look at: one HTML file that needs nothing else.")  # fmt: skip
@click.option("--rates", type=click.Path(dir_okay=False), metavar="FILE",
              help="YAML, 'TENSOR[:AXIS]: rate' a line, globs too: rates of single groups.")  # fmt: skip
@click.option("--steps", type=int, default=1, show_default=True, help="Score, cut and recover so many times on the way.")
@click.option("--runtime", type=click.Choice(["onnxruntime", "openvino", "tensorrt"]), default="onnxruntime", show_default=True,
              help="What latency is measured in.")  # fmt: skip
@click.option("--threads", type=int, metavar="N", help="Threads that latency is measured on. Default: all processors.")
@click.option("--latency-from", type=click.Path(dir_okay=False), metavar="FILE",
              help="A device's profile of MODEL, by trtexec --exportProfile: latency is estimated for that device.")  # fmt: skip
@click.option("--compress-to-fp16", is_flag=True, help="For -o OUT.xml: store weights as float16.")
@click.option("--force", is_flag=True, help="Write a cut under a latency budget that is no faster by measurement too.")
@click.option("--dynamic-batch", is_flag=True, help="For torch modules: leave the batch of the written graph open.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option("--recipe", type=click.Path(dir_okay=False), metavar="FILE", help="YAML with options; those given here win.")
@click.option("--dump-recipe", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE",
              help="Write the options in force as a recipe ('-': print) and stop.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for machines.")
@_shape_option
@click.pass_context
def run(ctx: click.Context, /, model: str, output: Path | None, report: Path | None, recipe: str | None,
        dump_recipe: str | None, as_json: bool, dynamic_batch: bool, compress_to_fp16: bool,
        **given: Any) -> None:  # fmt: skip
    """Cut MODEL, prove the cut, write OUT.onnx and OUT.plan.json (and a report, if asked).

    MODEL is an .onnx file; or, with torch installed, package.module:factory, a function that gives an nn.Module, or the
    module and its example inputs.
    """
    from graphprune.backends.openvino import is_ir
    from graphprune.frontends.factory import stem_of
    from graphprune.options import Options
    from graphprune.pipeline import prune
    from graphprune.printing import Display, print_result
    from graphprune.training.processes import is_main
    from graphprune.writing import check_output

    options = _options(ctx, model, recipe, given)
    if dump_recipe is not None:
        _dump(dump_recipe, model, Options(**options))
        return
    output = Path(f"{stem_of(model)}.pruned.onnx") if output is None else output
    check_output(model, output, report, runtimes=True)
    if compress_to_fp16 and not is_ir(output):
        raise click.UsageError(f"--compress-to-fp16 is for OpenVINO's IR: give -o OUT.xml, not {output}")
    with Display(quiet=as_json) as display:
        result = prune(model, progress=display.progress, dynamic_batch=dynamic_batch, **options)
        display.progress("writing", 0.0)
        # Of several processes that train together the first one writes.
        files = result.save(output, report, compress_to_fp16=compress_to_fp16) if is_main() else []
    if not is_main():
        return
    if as_json:
        click.echo(json.dumps(_summary(result, files)))
    else:
        print_result(result, files)


@cli.command()
@click.argument("model")
@click.option("--why", metavar="TENSOR[:AXIS]", help="The path from a tensor to what froze it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output: all groups and frozen axes.")
@_shape_option
def inspect(model: str, why: str | None, shapes: tuple[str, ...], as_json: bool) -> None:
    """Show groups, frozen axes with their reasons, and unknown ops."""
    from graphprune.pipeline import inspect as analyse
    from graphprune.printing import Display, inspection, print_inspection, print_why

    with Display(quiet=as_json) as display:
        display.progress("analysing", 0.0)
        state = analyse(model, shapes=sizes(model, shapes))
    if why is not None:
        print_why(state, why, as_json)
    elif as_json:
        click.echo(json.dumps(inspection(state)))
    else:
        print_inspection(state)


def _data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What ``run``'s namesakes say, for commands that run it many times."""
    options = (
        click.option("--data", metavar="PATH", help="Calibration data: a folder of images, .npy, or .npz by input name."),
        click.option("--samples", type=int, help="Calibration samples."),
        click.option("--mean", metavar="A,B,C", help="Per channel, for images."),
        click.option("--std", metavar="A,B,C", help="Per channel, for images."),
        click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="For images, where the shape leaves it open."),
        click.option("--grain", type=click.Choice(["coarse", "fine", "both"]), default="coarse", show_default=True,
                     help="Heads and groups, or what is within them."),
        click.option("--keep", multiple=True, metavar="GLOB", help="Tensors to leave whole; several times."),
        click.option("--executor", "where", default="processes", show_default=True, metavar="NAME",
                     help="here, processes[:N], dask[:N] or dask:ADDRESS."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
        click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="A picture: .svg or .png."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return _shape_option(command)


def _given(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the API: those that are set, read as ``run`` reads them."""
    options["shapes"] = dict(sizes(model, options["shapes"]))
    for name in ("mean", "std"):
        options[name] = numbers(f"--{name}", options[name])
    return {name: value for name, value in options.items() if value not in (None, (), {})}


@cli.command()
@click.argument("model")
@click.option("--pass", "passes", multiple=True, metavar="NAME[{opt=val,...}]", required=True,
              help="A criterion, or several combined, a+b. Both signs and several seeds are run where one has them.")  # fmt: skip
@click.option("--combine", default="rank-mean", show_default=True, metavar="WAY", help="How a+b are combined; as in run.")
@click.option("--budget", "budgets", multiple=True, metavar="macs=0.5", help="What to keep; several times.")
@click.option("--rate", type=float, help="Share of the indices to remove. Default 0.5 without a budget.")
@click.option("--scope", type=click.Choice(["global", "group"]), default="global", show_default=True,
              help="One threshold over all groups, or the same rate in each.")  # fmt: skip
@click.option("--allocate", type=click.Choice(["dp", "global", "uniform", "isomorphic"]), default="uniform", show_default=True,
              help="How a budget is shared among groups.")  # fmt: skip
@click.option("--recover", type=click.Choice(["ls", "bn", "bias", "none"]), default="ls", show_default=True,
              help="After every cut: least squares, spread and mean of each channel, its mean, or nothing.")  # fmt: skip
@click.option("--eval", "evaluate", default="", metavar="MODULE:FUNCTION|coco:PATH|voc:PATH",
              help="A function of an .onnx path, called before and after recovery; higher is better.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds of criteria that draw.")
@click.option("--latency/--no-latency", default=True, show_default=True, help="Time results and source in turns.")
@_data_options
def compare(model: str, passes: tuple[str, ...], budgets: tuple[str, ...], rate: float | None, allocate: str, combine: str,
            recover: Any, evaluate: str, seeds: int, latency: bool, where: str, as_json: bool, plot: Path | None,
            **options: Any) -> None:  # fmt: skip
    """Criteria side by side: same budget, data and recovery."""
    from graphprune.compare import compare as side_by_side
    from graphprune.executor import executor
    from graphprune.printing import Display
    from graphprune.printing_compare import print_comparison

    given = _given(model, options)
    if budgets:
        given["allocate"] = allocate
    with Display(quiet=as_json) as display:
        found = side_by_side(
            model, passes, budgets=budgets, rate=rate, combine=combine, recover=recover, evaluate=evaluate, seeds=seeds,
            latency=latency,
            executor=executor(where), progress=display.progress, **given,
        )  # fmt: skip
    if plot is not None:
        from graphprune.plots import plot_comparison

        plot_comparison(found, plot)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        print_comparison(found)


@cli.command(short_help="What each group alone costs.")
@click.argument("model")
@click.option("--pass", "criterion", default="l1", show_default=True, metavar="NAME", help="Criterion that orders a group's units.")
@click.option("--levels", default="0.1,0.25,0.5,0.75", show_default=True, help="Shares of a group's units to remove.")
@_data_options
def sensitivity(model: str, criterion: str, levels: str, where: str, as_json: bool, plot: Path | None, **options: Any) -> None:
    """What each group alone costs: it is cut at several levels, the outputs are compared with the source's."""
    from graphprune.executor import executor
    from graphprune.printing import Display
    from graphprune.printing_compare import print_sensitivity
    from graphprune.sensitivity import sensitivity as curves_of

    shares = numbers("--levels", levels) or ()
    with Display(quiet=as_json) as display:
        found = curves_of(
            model, criterion, levels=shares, executor=executor(where), progress=display.progress, **_given(model, options)
        )
    if plot is not None:
        from graphprune.plots import plot_sensitivity

        plot_sensitivity(found, plot)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        print_sensitivity(found)


@cli.command(short_help="Prove a cut again, from its plan.")
@click.argument("source")
@click.argument("cut")
@click.option("--plan", type=click.Path(dir_okay=False), help="Default: the .plan.json beside CUT.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def verify(source: str, cut: str, plan: str | None, as_json: bool) -> None:
    """Prove that CUT equals the masked original of SOURCE, from the plan beside CUT."""
    from graphprune.proving import verify as prove

    report = prove(source, cut, plan)
    if as_json:
        click.echo(json.dumps(report))
        return
    changed = " and ".join(what for what in ("recovered", "quantised") if report[what])
    click.secho("proved: ", fg="green", bold=True, nl=False)
    click.echo(
        f"largest difference {report['max_rel_error']:.2g} of an output's maximum (allowed {report['tolerance']:g}); "
        f"{report['exact_units']} exact and {report['inexact_units']} inexact units removed"
        + (f"; proved of the cut before its weights were {changed}" if changed else "")
    )


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list on standard output.")
def passes(as_json: bool) -> None:
    """List every pass, built-in and plugged in, with its options."""
    from graphprune.printing import print_passes

    print_passes(as_json)


cli.add_command(bench)
cli.add_command(build)
cli.add_command(calibrate)
cli.add_command(demo)
cli.add_command(devices)
cli.add_command(finetune)


def _options(ctx: click.Context, model: str, recipe: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Options of a run by their names in Python: the recipe's, and over them what stands on the command line."""
    from graphprune import recipe as recipes

    options = {} if recipe is None else recipes.load(recipe)
    written = {name: value for name, value in given.items() if _is_written(ctx, name)}
    for one, other in (("rate", "budget"), ("budget", "rate")):
        if one in written:
            options.pop(other, None)
    options.update({name: _read(name, value, model) for name, value in written.items()})
    options.setdefault("passes", ("l1",))
    return options


def _is_written(ctx: click.Context, name: str) -> bool:
    """Whether an option stands on the command line, and is not a default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _read(name: str, value: Any, model: str) -> Any:
    """One option as the API takes it."""
    if name == "align":
        if value != "auto" and (not (value.isascii() and value.isdigit()) or int(value) < 1):
            raise click.UsageError(f"--align {value}: a whole number of 1 or more, or auto")
        return value if value == "auto" else int(value)
    if name in ("mean", "std"):
        return numbers(f"--{name}", value)
    if name == "shapes":
        return sizes(model, value)
    if name == "rates":
        from graphprune.options import Options
        from graphprune.recipe import mapping_from
        from graphprune.spec import typed

        return typed(Options, {"rates": mapping_from(value, "--rates")}, f"--rates {value}")["rates"]
    return value


def _dump(target: str, model: str, options: Any) -> None:
    """Write a recipe, or print it."""
    from graphprune.backends.onnx import Transaction
    from graphprune.recipe import dumps

    if target == "-":
        click.echo(dumps(options), nl=False)
        return
    with Transaction(protect=[Path(model)]) as transaction:
        transaction.write(Path(target), dumps(options).encode())
    click.echo(f"written: {target}; repeat with graphprune run {model} --recipe {target}")


def _summary(result: Result, files: list[Path]) -> dict[str, Any]:
    plan, state = result.plan, result.state
    return {
        "files": [str(path) for path in files], "before": plan.before, "after": plan.after, "verify": plan.verify,
        "groups": len(plan.groups), "frozen": len(plan.frozen), "notes": state.notes,
        "fidelity": plan.fidelity, "stages": plan.stages,
        "evaluation": {key: _finite(value) for key, value in state.evaluation.items()},
        "seconds": {key: round(value, 3) for key, value in state.seconds.items()},
    }  # fmt: skip


def _finite(value: float | Mapping[str, float]) -> Any:
    """Numbers as JSON has them: what is not finite is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value if math.isfinite(value) else None


def main() -> None:
    """Entry point; usage errors of click end with 2 as well."""
    gc.set_threshold(*SELDOM)
    try:
        cli(prog_name="graphprune")
    finally:
        gc.freeze()  # the interpreter's last collections would look through a million objects for nothing


if __name__ == "__main__":
    main()
