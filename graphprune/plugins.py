"""Passes by name: the built-in ones and those that other packages register, loaded when they are asked for."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any, get_args

from graphprune.errors import UsageError
from graphprune.spec import OptionInfo, nearest, options_of

GROUP = "graphprune.passes"
OWN = "graphprune"

#: The built-in passes. pyproject.toml registers the same ones; this list lets a source checkout work too.
BUILTIN = {
    "canonicalize": "graphprune.passes.canonicalize:Canonicalize",
    "couple": "graphprune.passes.couple:Couple",
    "l1": "graphprune.passes.l1:L1",
    "l2": "graphprune.passes.l2:L2",
    "bn-scale": "graphprune.passes.bn_scale:BnScale",
    "entropy": "graphprune.passes.entropy:Entropy",
    "gram": "graphprune.passes.gram:Gram",
    "obs": "graphprune.passes.obs:Obs",
    "similarity": "graphprune.passes.similarity:Similarity",
    "fpgm": "graphprune.passes.fpgm:Fpgm",
    "lamp": "graphprune.passes.lamp:Lamp",
    "activation": "graphprune.passes.activation:Activation",
    "apoz": "graphprune.passes.apoz:Apoz",
    "chip": "graphprune.passes.chip:Chip",
    "entropy-luo": "graphprune.passes.entropy_luo:EntropyLuo",
    "hrank": "graphprune.passes.hrank:HRank",
    "variance": "graphprune.passes.variance:Variance",
    "wanda": "graphprune.passes.wanda:Wanda",
    "random": "graphprune.passes.random:Random",
    "taylor": "graphprune.passes.taylor:Taylor",
    "group-taylor": "graphprune.passes.group_taylor:GroupTaylor",
    "fisher": "graphprune.passes.fisher:Fisher",
    "select": "graphprune.passes.select:Select",
    "rewrite": "graphprune.passes.rewrite:Rewrite",
    "verify": "graphprune.passes.verify:Verify",
    "recover": "graphprune.passes.recover:Recover",
    "distill": "graphprune.passes.distill:Distill",
    "sparsify": "graphprune.passes.sparsify:Sparsify",
    "quantize": "graphprune.passes.quantize:Quantize",
}


@dataclass(frozen=True)
class Source:
    """Where a pass comes from: ``module:Class`` in a distribution."""

    target: str
    distribution: str


@dataclass(frozen=True)
class Entry:
    """A line of ``graphprune passes``: a pass, or what is wrong with it.

    Attributes
    ----------
    name, distribution, module
        Command-line name, package it was installed by, and ``module:Class``.
    kind, help, options
        Of the pass; empty when it is broken.
    error
        Why it cannot be used, else empty.
    """

    name: str
    distribution: str
    module: str
    kind: str = ""
    help: str = ""
    options: tuple[OptionInfo, ...] = ()
    error: str = ""


class Registry:
    """All passes by name; a name that several packages claim is an error when it is used."""

    def __init__(self, sources: dict[str, list[Source]]) -> None:
        self._sources = sources

    def names(self) -> list[str]:
        """Every registered name, broken ones included."""
        return list(self._sources)

    def load(self, name: str) -> type[Any]:
        """Import the class of a pass.

        Raises
        ------
        UsageError
            Unknown (the nearest name is offered), claimed twice, or broken.
        """
        sources = self._sources.get(name)
        if not sources:
            raise UsageError(
                f"no pass is called '{name}'{nearest(name, self._sources)} ('graphprune passes' lists all)"
            )
        if len(sources) > 1:
            claims = " and ".join(f"{s.distribution} ({s.target})" for s in sources)
            raise UsageError(f"pass '{name}' is registered by {claims}: uninstall one of them")
        return _import(name, sources[0])

    def entries(self) -> list[Entry]:
        """All passes, described; a broken one with its error."""
        return [self._entry(name) for name in self._sources]

    def _entry(self, name: str) -> Entry:
        sources = self._sources[name]
        distribution = ", ".join(s.distribution for s in sources)
        module = ", ".join(s.target for s in sources)
        try:
            cls = self.load(name)
            help_text = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
            return Entry(name, distribution, module, str(cls.kind), help_text, options_of(cls))
        except UsageError as error:
            return Entry(name, distribution, module, error=str(error))


def _import(name: str, source: Source) -> type[Any]:
    from graphprune.passes.base import Kind, Pass

    module, _, attribute = source.target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        # A plug-in may fail in any way; it must not take the others with it.
        raise UsageError(
            f"pass '{name}' of {source.distribution} does not load: {type(error).__name__}: {error} "
            f"(update or uninstall {source.distribution})"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Pass) and dataclasses.is_dataclass(found)):
        raise UsageError(
            f"pass '{name}' of {source.distribution}: {source.target} is not a dataclass that extends Pass"
        )
    # Pass is a dataclass itself: a class that only inherits from it would lose its options without a word.
    if "__dataclass_params__" not in vars(found):
        raise UsageError(
            f"pass '{name}' of {source.distribution}: {source.target} is no dataclass itself: write "
            "@dataclass(frozen=True) above it"
        )
    if getattr(found, "kind", None) not in get_args(Kind):
        raise UsageError(
            f"pass '{name}' of {source.distribution}: its kind is {getattr(found, 'kind', None)!r}, "
            f"not one of {', '.join(get_args(Kind))}"
        )
    if getattr(found, "name", None) != name:
        raise UsageError(
            f"pass '{name}' of {source.distribution}: the class calls itself {getattr(found, 'name', None)!r}"
        )
    return found


@functools.cache
def discover() -> Registry:
    """The passes of this environment."""
    sources = {name: [Source(target, OWN)] for name, target in BUILTIN.items()}
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name):
        distribution = point.dist.name if point.dist is not None else "unknown"
        source = Source(point.value.replace(" ", ""), distribution)
        known = sources.setdefault(point.name, [])
        # An editable install lists our own passes again, and a path may stand on sys.path twice.
        if source.distribution != OWN and source not in known:
            known.append(source)
    return Registry(sources)


def criterion_class(name: str) -> type[Any]:
    """The class of a scoring pass.

    Raises
    ------
    UsageError
        No such pass, or one that gives no scores.
    """
    found = discover().load(name)
    if found.kind != "score":
        raise UsageError(f"pass '{name}' is no criterion: this takes scoring passes ('graphprune passes')")
    return found
