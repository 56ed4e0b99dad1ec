"""Runs: parse what is asked, put the passes in order, keep the time, give back a result."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphprune import collecting, combine, gradients
from graphprune.backends import onnx as writer
from graphprune.backends import openvino
from graphprune.calibration import samples_for
from graphprune.comparing import run_all
from graphprune.errors import GraphPruneError, OutputError, UsageError, VerificationError
from graphprune.evaluation import Evaluation, evaluate
from graphprune.feeding import feed_size, fitting_feeds, samples_in
from graphprune.fidelity import compare_outputs
from graphprune.frontends import factory
from graphprune.frontends.onnx import SOURCE_FILES, Loaded, check_finite, load, weights_of
from graphprune.options import Options, as_tuple
from graphprune.passes.base import Pass, State
from graphprune.passes.select import check_scored
from graphprune.passes.verify import Verify
from graphprune.plan import Plan, plan_path
from graphprune.plugins import discover
from graphprune.spec import instantiate, parse_pass_spec

Progress = Callable[[str, float], None]

#: Bytes of weights up to which a report times the models.
LARGEST_TIMED = 1 << 30
#: Share of the samples that only judge, as in a recovery.
HELD_OUT = 0.2
#: The passes of every run, in order; scoring passes stand between ``couple`` and ``select``.
BEFORE = ("canonicalize", "couple")
AFTER = ("select", "rewrite", "verify")


@dataclass
class Result:
    """A finished run.

    Attributes
    ----------
    ir : onnx_ir.Model
        The smaller model in the representation that everything here works on; in INT8 where that was asked.
    module : torch.nn.Module
        For a torch source: the smaller module. None for others.
    model : onnx_ir.Model or torch.nn.Module
        What was given, made smaller: ``module`` for a torch source, else ``ir``.
    plan : Plan
        What was decided and found.
    state : State
        Everything the passes left: coupling, scores, notes, times.
    """

    state: State
    _module: Any = field(default=None, repr=False)

    @property
    def ir(self) -> ir.Model:
        assert self.state.cut is not None
        return self.state.quantised or self.state.cut

    @property
    def module(self) -> Any:
        if self.state.loaded.torch is None:
            return None
        if self._module is None:
            self.cut_module()
        return self._module

    def cut_module(self, optimizer: Any = None) -> None:
        """Cut the torch module that the run started from, and what ``optimizer`` keeps of it."""
        try:
            from graphprune.backends import inplace
        except ImportError as error:
            raise GraphPruneError(f"the torch module cannot be cut here ({error}): use result.ir") from error
        with self.state.timed("module"):
            self._module = inplace.cut_module(self.state, optimizer)
        self.plan.notes = list(self.state.notes)

    @property
    def model(self) -> Any:
        return self.ir if self.state.loaded.torch is None else self.module

    @property
    def plan(self) -> Plan:
        assert self.state.plan is not None
        return self.state.plan

    def save(
        self, path: str | os.PathLike[str], report: str | os.PathLike[str] | None = None, *, compress_to_fp16: bool = False,
    ) -> list[Path]:  # fmt: skip
        """Write ``path``, its ``.plan.json`` and, if asked, a ``report`` (see :meth:`report`): all or none.

        A ``path`` that ends in ``.safetensors`` gets the weights of the torch module, for :func:`graphprune.load`; one that ends
        in ``.xml`` OpenVINO's IR, with a ``.bin`` beside it, compared in OpenVINO with ONNX Runtime first; any other the smaller
        model as ONNX.

        Parameters
        ----------
        compress_to_fp16
            Store the weights of an IR as float16.

        Raises
        ------
        OutputError
            One of them cannot be written, or would overwrite the source.
        VerificationError
            An IR does not give what the model gives in ONNX Runtime.
        """
        path = Path(path)
        if compress_to_fp16 and not openvino.is_ir(path):
            raise UsageError(f"compress_to_fp16 is for OpenVINO's IR, a name that ends in .xml, not for '{path}'")
        with self._transaction() as transaction:
            files = self._stage(path, transaction, compress_to_fp16)
            transaction.write(plan_path(path), self.plan.dumps().encode())
            if report is not None:
                self._stage_report(report, transaction)
            return [*files, plan_path(path), *([] if report is None else [Path(report)])]

    def _stage(self, path: Path, transaction: writer.Transaction, compress_to_fp16: bool) -> list[Path]:
        if openvino.is_ir(path):
            feeds = list(samples_for(self.state, n=Verify().count(self.state)))
            files, proof = openvino.stage(self.ir, path, transaction, feeds, compress_to_fp16=compress_to_fp16)
            self.plan.verify["openvino"] = proof
            return files
        if path.suffix != ".safetensors":
            return writer.stage(self.ir, path, transaction)
        if self.state.loaded.torch is None:
            raise OutputError(f"cannot write '{path}': only torch modules are saved as .safetensors, write an .onnx file")
        from graphprune.backends.inplace import stage

        stage(self.module, path, transaction)
        return [path]

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write what was decided and found as one HTML file that needs nothing else.

        Raises
        ------
        OutputError
            It cannot be written, would overwrite the source, or is not named as an HTML file.
        """
        with self._transaction() as transaction:
            self._stage_report(path, transaction)
        return Path(path)

    def _transaction(self) -> writer.Transaction:
        return writer.Transaction(protect=self.state.loaded.model.meta.get(SOURCE_FILES, ()))

    def measure_latency(self) -> dict[str, float]:
        """Milliseconds of one run of the source and of the cut model in ONNX Runtime, in turns on this machine.

        Returns
        -------
        dict
            ``before`` and ``after``; empty for models too large for one message, or where the runtime refuses.
        """
        from graphprune.timing import advice, interleaved

        path = self.state.loaded.path
        if max(self.plan.before["bytes"], 0) < LARGEST_TIMED and not self.state.latency:
            feed = dict(next(iter(samples_for(self.state, n=1))))
            try:
                source = Path(path) if path is not None else writer.to_bytes(self.state.loaded.model)
                before, after = interleaved([source, writer.to_bytes(self.ir)], feed)
            except Exception:  # a runtime at its own optimisation level may refuse what the proof's level runs
                return {}
            self.state.latency.update(before=before, after=after)
            if self.plan.options.get("align") is None and (told := advice(after / before, self.plan.before, self.plan.after)):
                self.state.note(told)
                self.plan.notes = list(self.state.notes)
        return self.state.latency

    def _stage_report(self, path: str | os.PathLike[str], transaction: writer.Transaction) -> None:
        from graphprune.report import check_name, render

        check_name(path)
        transaction.check(path)
        self.measure_latency()
        transaction.write(path, render(self.state, self.plan))

    def proto(self) -> onnx.ModelProto:
        """The smaller model as an ``onnx.ModelProto``."""
        return writer.to_proto(self.ir)


def load_any(
    source: Any, example_inputs: Any = None, *, dynamic_shapes: Any = None, dynamic_batch: bool = False
) -> Loaded:
    """A model from a path, an ``onnx.ModelProto``, an ``onnx_ir.Model`` or a torch module (or its factory)."""
    if isinstance(source, Loaded):
        return source
    if factory.is_factory(source):
        source, given = factory.call(source)
        example_inputs = given if example_inputs is None else example_inputs
    if factory.is_torch(source):
        from graphprune.frontends.torch import load_module

        return load_module(source, example_inputs, dynamic_shapes=dynamic_shapes, dynamic_batch=dynamic_batch)
    if not isinstance(source, (str, os.PathLike, onnx.ModelProto, ir.Model)):
        raise UsageError(
            "a model is a path, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module or an ExportedProgram, not "
            f"{type(source).__name__}"
        )
    if example_inputs is not None or dynamic_shapes is not None or dynamic_batch:
        raise UsageError(
            "example_inputs, dynamic_shapes and dynamic_batch are for torch modules, an ONNX model states its inputs itself; "
            "passes are given by name, passes=[...]"
        )
    return load(source)


def build_passes(specs: Sequence[str]) -> list[Pass]:
    """Instances of all passes of a run, in order."""
    registry = discover()
    wanted: list[Pass] = []
    for text in specs:
        spec = parse_pass_spec(text)
        wanted.append(instantiate(registry.load(spec.name), spec.options))
        if getattr(wanted[-1], "needs", None) == "gradients":
            gradients.require(spec.name)
        if wanted[-1].kind == "recover" and wanted[-1].last:
            gradients.need_torch(spec.name, "trains")
    fixed: dict[str, Pass] = {}
    for one in wanted:
        if one.name in (*BEFORE, *AFTER):
            if one.name in fixed:
                raise UsageError(f"pass '{one.name}' is given twice")
            fixed[one.name] = one
    for name in (*BEFORE, *AFTER):
        if name not in fixed:
            fixed[name] = registry.load(name)()
    middle = [one for one in wanted if one.name not in fixed]
    scoring = [one for one in middle if one.kind == "score"]
    # Training starts from what least squares leaves.
    recovering = sorted((one for one in middle if one.kind == "recover"), key=lambda one: one.last)
    compressing = sorted((one for one in middle if one.kind == "compress"), key=lambda one: one.order)
    twice = [a.name for a, b in itertools.pairwise(compressing) if a.name == b.name]
    if twice:
        raise UsageError(f"pass '{twice[0]}' is given twice")
    other = [one.name for one in middle if one.kind not in ("score", "recover", "compress")]
    if other:
        raise UsageError(f"pass '{other[0]}' has no place in a run yet")
    return [*(fixed[name] for name in BEFORE), *scoring, *(fixed[name] for name in AFTER), *recovering, *compressing]


def run_state(
    source: Any, options: Options, progress: Progress | None = None, until: str = "verify",
    prepare: Callable[[State], None] = lambda _state: None,
) -> State:  # fmt: skip
    """Run all passes up to and with ``until`` (``couple``, ``scores``, ``verify``).

    ``prepare`` sees the state between analysis and scores.
    """
    passes = build_passes(options.passes)
    if options.data is not None and not Path(options.data).expanduser().exists():
        raise UsageError(f"--data {options.data} does not exist")
    state = State(load_any(source), options)
    if progress is not None:
        state.progress = progress
    scoring = [one.name for one in passes if one.kind == "score"]
    if until == "verify" and not scoring:
        check_scored(passes, options)
    combine.check(options.combine, scoring)
    if until == "scores":
        passes = [one for one in passes if one.name in BEFORE or one.kind == "score"]
    elif until != AFTER[-1]:
        passes = passes[: [one.name for one in passes].index(until) + 1]
    # The passes before the scores never read the weights that are looked through meanwhile.
    with ThreadPoolExecutor(1) as pool:
        finite = pool.submit(check_finite, weights_of(state.model))
        try:
            run_passes(state, [one for one in passes if one.name in BEFORE])
        finally:
            finite.result()
    for one in passes:
        one.check(state)
    prepare(state)
    run_passes(state, [one for one in passes if one.name not in BEFORE])
    finish(state)
    return state


def finish(state: State) -> None:
    """What a plan says of the whole run."""
    if state.plan is not None:
        if state.options.data is not None and not state.plan.fidelity:
            state.plan.fidelity = compare_on_data(state)
        state.plan.notes = list(state.notes)


def run_passes(state: State, passes: Sequence[Pass]) -> None:
    """Run passes in order, each timed and shown."""
    for one in passes:
        state.progress(one.name, 0.0)
        with state.timed(one.name):
            one.run(state)


def compare_on_data(state: State) -> dict[str, Any]:
    """Fidelity of the cut model on the user's data: what the decision was not made on, where any of it was used."""
    assert state.cut is not None
    state.progress("comparing outputs", 0.0)
    samples = samples_for(state, batch=feed_size(state))
    feeds = list(samples)
    held = feeds[fitting_feeds(len(feeds), HELD_OUT) :] if state.saw_data else feeds
    with state.timed("fidelity"):
        found = compare_outputs(run_all(state.model, held or feeds), run_all(state.cut, held or feeds))
    return {"samples": sum(samples_in(feed, samples.batched) for feed in held or feeds), **found}


@collecting.seldom()
def prune(
    source: Any,
    example_inputs: Any = None,
    *,
    passes: str | Sequence[str] = ("l1",),
    rate: float | None = None,
    budget: str | None = None,
    progress: Progress | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    keep: str | Sequence[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    inplace: bool = True,
    dynamic_shapes: Any = None,
    optimizer: Any = None,
    dynamic_batch: bool = False,
    **options: Any,
) -> Result:
    """Cut a model and prove the cut.

    Parameters
    ----------
    source
        A path to an ``.onnx`` file, an ``onnx.ModelProto`` or an ``onnx_ir.Model``, which are never changed; or a
        ``torch.nn.Module``, ``torch.fx.GraphModule`` or ``torch.export.ExportedProgram``.
    example_inputs
        For a torch source, what ``forward`` is called with: a tensor, a tuple of positional arguments, a dict of keyword
        arguments, or ``(args, kwargs)``.
    passes
        Pass specs: ``"l1"``, ``["entropy{reading=conv}"]``, ...
    rate
        Share of the prunable indices to remove; 0.5 when no budget is given.
    budget
        ``"macs=0.5"``, ``"params=0.5"``, ``"bytes=0.5"`` or ``"latency=0.5x"`` (or ``8ms``, measured here) instead.
    shapes
        Input name to shape, for dynamic axes while analysing; the written model keeps its dynamic axes.
    keep
        Glob patterns of tensors that are left whole.
    data
        Calibration data: a folder of images, ``.npy`` or ``.npz``.
    inplace
        Cut the given torch module itself; otherwise a deep copy of it, and the given one stays as it is.
    dynamic_shapes
        For a torch source, as ``torch.export.export`` takes it.
    optimizer
        A ``torch.optim.Optimizer`` of the module's parameters: what it keeps of them is cut as they are.
    dynamic_batch
        For a torch source: leave the batch of ``result.ir`` open where the module allows. (A module that is cut in place
        takes any batch that it took before.)
    **options
        The other fields of :class:`graphprune.Options`: ``combine``, ``scope``, ``grain``, ``align``, ``exact``, ``seed``, ...

    Returns
    -------
    Result

    Raises
    ------
    GraphPruneError
        One clear message; :class:`graphprune.errors.VerificationError` when the cut could not be proved.
    """
    try:
        chosen = Options(
            passes=as_tuple(passes), rate=rate, budget=budget, shapes=dict(shapes or {}), keep=as_tuple(keep),
            data=None if data is None else str(data), **options,
        )  # fmt: skip
    except TypeError as error:
        raise UsageError(f"{error}".replace("Options.__init__()", "prune()")) from error
    if not inplace and optimizer is not None:
        raise UsageError("an optimizer is cut with the module that it trains: leave inplace=False or optimizer out")
    if not inplace and factory.is_torch(source):
        source = factory.copy_of(source)
    evaluation = None if chosen.eval is None else Evaluation(chosen.eval)
    if progress is not None:
        progress("loading", 0.0)
    loaded = load_any(source, example_inputs, dynamic_shapes=dynamic_shapes, dynamic_batch=dynamic_batch)
    if chosen.steps > 1:
        from graphprune.schedule import run_steps

        state = run_steps(loaded, chosen, progress)
    else:
        state = run_state(loaded, chosen, progress)
    result = Result(state)
    if loaded.torch is not None and factory.is_factory(source):  # nobody holds the module that a factory made
        from graphprune.backends.inplace import check_export

        check_export(state)
    elif loaded.torch is not None:
        state.progress("cutting the module", 0.0)
        try:
            result.cut_module(optimizer)
        except VerificationError:  # the graph is wrong too
            raise
        except GraphPruneError as error:
            state.note(f"the torch module is left as it was, only result.ir is smaller: {error}")
            result.plan.notes = list(state.notes)
    if evaluation is not None:
        evaluate(result, evaluation)
    return result


def inspect(
    source: Any, example_inputs: Any = None, *, shapes: Mapping[str, tuple[int, ...]] | None = None,
    dynamic_shapes: Any = None,
) -> State:  # fmt: skip
    """Analyse a model without cutting it: the state with its coupling."""
    loaded = load_any(source, example_inputs, dynamic_shapes=dynamic_shapes)
    return run_state(loaded, Options(shapes=dict(shapes or {})), until="couple")


__all__ = ["GraphPruneError", "Result", "inspect", "prune"]
