"""Runs: parse what is asked, put the passes in order, keep the time, give back a result."""

from __future__ import annotations

import importlib
import os
import reprlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphprune import combine, gradients
from graphprune.backends import onnx as writer
from graphprune.calibration import samples_for
from graphprune.errors import DataError, GraphPruneError, ModelError, UsageError, VerificationError
from graphprune.feeding import feed_size, fitting_feeds, samples_in
from graphprune.fidelity import compare_outputs
from graphprune.frontends import factory
from graphprune.frontends.onnx import SOURCE_FILES, Loaded, check_finite, load, plan_name, weights_of
from graphprune.options import Options, as_tuple
from graphprune.passes.base import Pass, State
from graphprune.passes.couple import Couple
from graphprune.passes.rewrite import Rewrite
from graphprune.passes.verify import Verify, compare, run_all, tolerance_of
from graphprune.plan import DERIVED, Plan, plan_path
from graphprune.plugins import discover
from graphprune.spec import instantiate, parse_pass_spec

Progress = Callable[[str, float], None]

#: The passes of every run, in order; scoring passes stand between ``couple`` and ``select``.
#: Bytes of weights up to which a report times the models.
LARGEST_TIMED = 1 << 30
#: Share of the samples that only judge, as in a recovery.
HELD_OUT = 0.2
BEFORE = ("canonicalize", "couple")
AFTER = ("select", "rewrite", "verify")


@dataclass
class Result:
    """A finished run.

    Attributes
    ----------
    ir : onnx_ir.Model
        The smaller model in the representation that everything here works on.
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
        return self.state.cut

    @property
    def module(self) -> Any:
        if self.state.loaded.torch is None:
            return None
        if self._module is None:
            self._module = _cut_module(self.state)
        return self._module

    @property
    def model(self) -> Any:
        return self.ir if self.state.loaded.torch is None else self.module

    @property
    def plan(self) -> Plan:
        assert self.state.plan is not None
        return self.state.plan

    def save(self, path: str | os.PathLike[str], report: str | os.PathLike[str] | None = None) -> list[Path]:
        """Write ``path``, its ``.plan.json`` and, if asked, a ``report`` (see :meth:`report`): all or none.

        Raises
        ------
        OutputError
            One of them cannot be written, or would overwrite the source.
        """
        path = Path(path)
        with self._transaction() as transaction:
            files = writer.stage(self.ir, path, transaction)
            transaction.write(plan_path(path), self.plan.dumps().encode())
            if report is not None:
                self._stage_report(report, transaction)
            return [*files, plan_path(path), *([] if report is None else [Path(report)])]

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
        from graphprune.timing import interleaved

        path = self.state.loaded.path
        if max(self.plan.before["bytes"], 0) < LARGEST_TIMED and not self.state.latency:
            feed = dict(next(iter(samples_for(self.state, n=1))))
            try:
                source = Path(path) if path is not None else writer.to_bytes(self.state.loaded.model)
                before, after = interleaved([source, writer.to_bytes(self.ir)], feed)
            except Exception:  # a runtime at its own optimisation level may refuse what the proof's level runs
                return {}
            self.state.latency.update(before=before, after=after)
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


def _cut_module(state: State) -> Any:
    """The smaller torch module of a finished run."""
    try:
        backend = importlib.import_module("graphprune.backends.inplace")
    except ImportError as error:
        raise GraphPruneError(f"the torch module cannot be cut here ({error}): use result.ir") from error
    return backend.cut_module(state)


def load_any(source: Any, example_inputs: Any = None, dynamic_shapes: Any = None) -> Loaded:
    """A model from a path, an ``onnx.ModelProto``, an ``onnx_ir.Model`` or a torch module (or its factory)."""
    if isinstance(source, Loaded):
        return source
    if factory.is_factory(source):
        source, given = factory.call(source)
        example_inputs = given if example_inputs is None else example_inputs
    if factory.is_torch(source):
        from graphprune.frontends.torch import load_module

        return load_module(source, example_inputs, dynamic_shapes=dynamic_shapes)
    if not isinstance(source, (str, os.PathLike, onnx.ModelProto, ir.Model)):
        raise UsageError(
            "a model is a path, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module or an ExportedProgram, not "
            f"{type(source).__name__}"
        )
    if example_inputs is not None or dynamic_shapes is not None:
        raise UsageError(
            "example_inputs and dynamic_shapes are for torch modules, an ONNX model states its inputs itself; passes are "
            "given by name, passes=[...]"
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
    recovering = [one for one in middle if one.kind == "recover"]
    other = [one.name for one in middle if one.kind not in ("score", "recover")]
    if other:
        raise UsageError(f"pass '{other[0]}' has no place in a run yet")
    return [*(fixed[name] for name in BEFORE), *scoring, *(fixed[name] for name in AFTER), *recovering]


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
        raise UsageError("no scoring pass is given: add one, for example --pass l1")
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
        ``"macs=0.5"``, ``"params=0.5"``, ``"bytes=0.5"`` instead.
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
    if not inplace and factory.is_torch(source):
        source = factory.copy_of(source)
    if progress is not None:
        progress("loading", 0.0)
    loaded = load_any(source, example_inputs, dynamic_shapes)
    if chosen.steps > 1:
        from graphprune.schedule import run_steps

        state = run_steps(loaded, chosen, progress)
    else:
        state = run_state(loaded, chosen, progress)
    result = Result(state)
    if chosen.eval is not None:
        evaluate(result, chosen.eval)
    return result


def inspect(
    source: Any, example_inputs: Any = None, *, shapes: Mapping[str, tuple[int, ...]] | None = None,
    dynamic_shapes: Any = None,
) -> State:  # fmt: skip
    """Analyse a model without cutting it: the state with its coupling."""
    loaded = load_any(source, example_inputs, dynamic_shapes)
    return run_state(loaded, Options(shapes=dict(shapes or {})), until="couple")


def evaluate(result: Result, target: str) -> None:
    """Call the user's ``MODULE:FUNCTION`` on the source and on the cut model."""
    result.state.progress("evaluating", 0.0)
    for key, model in (("before", result.state.loaded.path or result.state.loaded.model), ("after", result.ir)):
        result.state.evaluation[key] = call_on(model, target, key)


def call_on(model: ir.Model | Path, target: str, when: str) -> float | dict[str, float]:
    """What the user's ``MODULE:FUNCTION`` gives for a model (or its file) ``before`` or ``after`` the cut.

    Raises
    ------
    UsageError
        It cannot be loaded, fails, or gives no number.
    """
    module, colon, name = target.partition(":")
    if not colon:
        raise UsageError(f"--eval '{target}': write MODULE:FUNCTION, a function of the path of an .onnx file")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise UsageError(f"--eval '{target}' cannot be loaded: {_told(error)}") from error
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = model if isinstance(model, Path) else Path(folder) / f"{when}.onnx"
        if not isinstance(model, Path):
            writer.save(model, path)
        try:
            value = function(str(path))
        except (Exception, SystemExit) as error:
            raise UsageError(f"--eval '{target}' failed on the model {when} the cut: {_told(error)}") from error
    return _numbers(value, target)


def _told(error: BaseException) -> str:
    """Kind and text of an error of the user's code, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _numbers(value: Any, target: str) -> float | dict[str, float]:
    """What an evaluation gave: a number, or numbers by name."""
    try:
        return {str(key): float(item) for key, item in value.items()} if isinstance(value, Mapping) else float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--eval '{target}' gave {type(value).__name__} {reprlib.repr(value)}: it must give a number, or a dict of "
            "numbers by name"
        ) from error


def dead_from_plan(state: State, plan: Plan) -> np.ndarray[Any, Any]:
    """Which units a plan removed, bool[n_units].

    Raises
    ------
    UsageError
        The plan removes indices that this model does not let go, or names tensors it does not have.
    """
    coupling = state.need_coupling()
    # What was folded from constants is no tensor of the file and stands in no plan.
    by_name = {plan_name(value): value for value in coupling.constants if DERIVED not in value.meta}
    dead = np.ones(coupling.n_units, np.bool_)
    for name in plan.tensors:
        if name not in by_name:
            raise UsageError(
                f"the plan names tensor '{name}', which the source does not have: is it another model's plan?"
            )
    for name, value in by_name.items():
        shape = state.need_facts().shape(value) or ()
        entry = plan.tensors.get(name, {"shape": list(shape), "kept": {}})
        if list(entry.get("shape", ())) != list(shape):
            raise UsageError(f"tensor '{name}' has shape {list(shape)}, the plan says {entry.get('shape')}")
        for axis, n in enumerate(shape):
            rows = coupling.rows(value, axis)
            kept = np.asarray(entry.get("kept", {}).get(str(axis), range(n)), np.int64)
            if kept.size == 0 or kept.min() < 0 or kept.max() >= n:
                raise UsageError(f"tensor '{name}' axis {axis}: the plan keeps indices outside 0..{n - 1}, or none")
            alive = rows[kept]
            dead[alive[alive >= 0]] = False
    return dead


def verify(source: Any, cut: str | os.PathLike[str], plan: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Prove that a cut model on disk equals the masked original of its source, by the plan beside it.

    Returns
    -------
    dict
        ``max_rel_error``, ``tolerance``, ``passed``, ``exact_units``, ``inexact_units``; ``recovered`` where weights were
        re-fitted after the cut: the proof is then of the cut as the plan replays it, and of the file's sizes.

    Raises
    ------
    VerificationError
        It does not.
    """
    read = Plan.load(plan_path(cut) if plan is None else plan)
    shapes = {name: tuple(shape) for name, shape in dict(read.options.get("shapes", {})).items()}
    state = State(load_any(source), Options(shapes=shapes))
    recorded = read.source.get("sha256")
    if recorded and state.loaded.sha256 and recorded != state.loaded.sha256:
        raise UsageError("the source is not the file the plan was made from (sha256 differs): give the original")
    for one in build_passes(("l1",))[:1]:
        one.run(state)
    Couple().run(state)
    state.dead = dead_from_plan(state, read)
    from graphprune.costs import CostModel

    costs = CostModel(state.model, state.need_coupling(), state.need_facts())
    state.before, state.after = costs.price(), costs.price(state.dead)
    Rewrite().run(state)
    given = load_any(cut).model
    _check_ends(state.model, given)
    assert state.rewriter is not None and state.cut is not None and state.plan is not None
    if state.plan.tensors != {k: {"shape": list(v["shape"]), "kept": v["kept"]} for k, v in read.tensors.items()}:
        raise VerificationError("the plan is not one that this model's coupling allows: some tensors are cut alone")
    # A recovered model computes something else by intention: what is proved is the cut that it started from.
    recovery = read.recovery if isinstance(read.recovery, Mapping) else {}
    changed, dropped = (frozenset(map(str, recovery.get(key) or ())) for key in ("tensors", "dropped"))
    _check_weights(state.cut, given, changed, dropped)
    from graphprune.calibration import samples_for
    from graphprune.masking import masked_original

    check = Verify()
    feeds = list(samples_for(state, n=check.count(state)))
    masked = masked_original(state.rewriter)
    try:
        for outputs in run_all(given, feeds if changed else feeds[:1]):
            _check_finite_outputs(outputs, changed)
        worst, where = compare(masked, state.cut if changed else given, feeds)
    except (ModelError, DataError, UsageError) as error:
        run_all(masked, feeds)  # raises what is wrong with the source, if it is the source
        raise VerificationError(f"the cut model does not run on the source's inputs: {error}") from error
    allowed = tolerance_of(state.model)
    report = {**state.plan.verify, "max_rel_error": worst, "tolerance": allowed, "passed": bool(worst <= allowed)}
    report["recovered"] = len(changed)
    if not report["passed"]:
        raise VerificationError(f"output '{where}' differs by {worst:.2g} of its maximum (allowed {allowed:g})")
    return report


def _check_ends(source: ir.Model, given: ir.Model) -> None:
    """The cut file takes and gives what its source does."""
    for what in ("inputs", "outputs"):
        ours, theirs = ([str(v.name) for v in getattr(m.graph, what)] for m in (source, given))
        if ours != theirs:
            raise VerificationError(
                f"the cut model's {what} are {', '.join(theirs) or 'none'}, the source's are "
                f"{', '.join(ours) or 'none'}: is it a cut of another model?"
            )


def _constants(model: ir.Model) -> dict[tuple[int, str], ir.Value]:
    """Constants of all graphs of a model, by the number of their graph and their name."""
    return {(i, name): value for i, graph in enumerate(model.graphs()) for name, value in graph.initializers.items()}


def _bits(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """Contents to compare bit for bit: NaN and -0.0 count as well. Strings as they are."""
    flat = tensor.numpy().reshape(-1)
    return flat if flat.dtype == object else flat.view(np.uint8)


def _check_finite_outputs(outputs: Mapping[str, np.ndarray[Any, Any]], changed: frozenset[str]) -> None:
    """A recovered model gives numbers."""
    bad = [name for name, array in outputs.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if bad and changed:
        raise VerificationError(f"output '{bad[0]}' of the recovered model is not finite")


def _check_weights(expected: ir.Model, given: ir.Model, changed: frozenset[str], dropped: frozenset[str]) -> None:
    """Every weight of the cut file is the source's at the kept indices; sizes only of those that recovery changed."""
    theirs = _constants(given)
    for (number, name), value in _constants(expected).items():
        other = theirs.get((number, name))
        if other is None and name in dropped:
            continue
        if other is None or other.const_value is None or value.const_value is None:
            raise VerificationError(f"the cut model lacks tensor '{name}'")
        a, b = value.const_value, other.const_value
        if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
            raise VerificationError(f"tensor '{name}' has shape {list(b.shape)} where the plan gives {list(a.shape)}")
        if name not in changed and a.size and not np.array_equal(_bits(a), _bits(b)):
            raise VerificationError(f"tensor '{name}' does not hold the source's values at the kept indices")


__all__ = ["GraphPruneError", "Result", "inspect", "prune", "verify"]
