"""``--eval``: what judges the model before a run and after it, a function of the user's or annotated pictures."""

from __future__ import annotations

import importlib
import reprlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphprune import cache
from graphprune.backends import onnx as writer
from graphprune.errors import GraphPruneError, UsageError

if TYPE_CHECKING:
    from graphprune.detection.evaluating import Judge
    from graphprune.pipeline import Result

#: A number, or numbers by name.
Figures = float | dict[str, float]
Model = ir.Model | Path


class Evaluation:
    """What ``--eval`` asks for, found before any work is done.

    Parameters
    ----------
    target
        ``MODULE:FUNCTION``, a function of the path of an ``.onnx`` file that gives a number or numbers by name; or
        ``coco:PATH`` or ``voc:PATH``: mAP on annotated pictures (:mod:`graphprune.detection.evaluating`).

    Raises
    ------
    GraphPruneError
        It cannot be loaded.
    """

    def __init__(self, target: str) -> None:
        from graphprune.detection import evaluating

        self.target = target
        self.pictures: Judge | None = evaluating.Judge(target) if evaluating.is_target(target) else None
        self._function: Callable[[Any], Any] = _function(target) if self.pictures is None else self.pictures

    @property
    def note(self) -> str:
        """What was assumed, in one line; empty where nothing was."""
        return "" if self.pictures is None else self.pictures.words

    @property
    def digest(self) -> str:
        """What the figures depend on beside the model."""
        if self.pictures is None:
            return cache.source_digest(self._function)
        return cache.key(self.target, cache.file_digest(self.pictures.data.source))

    def __call__(self, model: Model, when: str, source: Model | None = None) -> Figures:
        """What the model ``before`` or ``after`` the cut gives.

        Parameters
        ----------
        source
            What it was made of: decides how pictures are fed. By default it is the source itself.

        Raises
        ------
        UsageError
            The function fails, or gives no number.
        """
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            try:
                path = _file(model, Path(folder) / "model.onnx")
                if self.pictures is not None:
                    self.pictures.learn(path if source is None else _file(source, Path(folder) / "source.onnx"))
                    return self.pictures(path)
                value = self._function(str(path))
            except GraphPruneError as error:
                if self.pictures is not None:
                    raise
                raise self._failed(when, error) from error
            except (Exception, SystemExit) as error:
                raise self._failed(when, error) from error
        return _numbers(value, self.target)

    def _failed(self, when: str, error: BaseException) -> UsageError:
        return UsageError(f"--eval '{self.target}' failed on the model {when} the cut: {_told(error)}")


def evaluate(result: Result, evaluation: Evaluation) -> None:
    """Figures of the source and of the cut model, and of every stage where there are some."""
    state = result.state
    state.progress("evaluating", 0.0)
    source: Model = state.loaded.path or state.loaded.model
    if (stages := state.stages) is not None:
        for number, stage in enumerate(stages.entries):
            when = "before" if number == 0 else f"({stage.name}) after"
            stage.evaluation = evaluation(source if number == 0 else stage.model, when, source)
        state.evaluation.update(before=stages.entries[0].evaluation, after=stages.last.evaluation)
        result.plan.stages = [stage.to_json() for stage in stages.entries]
    else:
        for when, model in (("before", source), ("after", result.ir)):
            state.evaluation[when] = evaluation(model, when, source)
    if evaluation.note:
        state.note(evaluation.note)
        result.plan.notes = list(state.notes)


def _file(model: Model, path: Path) -> Path:
    """A model as a file, ``path`` where it is none yet."""
    if isinstance(model, Path):
        return model
    writer.save(model, path)
    return path


def _function(target: str) -> Callable[[Any], Any]:
    module, colon, name = target.partition(":")
    if not colon:
        raise UsageError(
            f"--eval '{target}': write MODULE:FUNCTION, a function of the path of an .onnx file, or coco:PATH or voc:PATH"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise UsageError(f"--eval '{target}' cannot be loaded: {_told(error)}") from error
    return function


def _told(error: BaseException) -> str:
    """Kind and text of an error of the user's code, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _numbers(value: Any, target: str) -> Figures:
    """What an evaluation gave: a number, or numbers by name."""
    try:
        return {str(key): float(item) for key, item in value.items()} if isinstance(value, Mapping) else float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--eval '{target}' gave {type(value).__name__} {reprlib.repr(value)}: it must give a number, or a dict of "
            "numbers by name"
        ) from error
