"""What a user can ask of a run, checked once, before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from graphprune.combine import InParallel, parse
from graphprune.errors import UsageError

BUDGETS = ("macs", "params", "bytes")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt")
#: Units of a latency, in microseconds.
_TIMES = {"us": 1.0, "ms": 1e3, "s": 1e6}
#: Passes that fit weights or fill a histogram, and so need more samples.
FITTING = ("recover", "obs", "gram", "entropy-luo", "sparsify", "quantize")
#: Calibration samples when none are asked for: to look at feature maps, and to fit weights.
LOOKING_SAMPLES, FITTING_SAMPLES = 16, 256
#: Passes that run backwards through the network for each sample, and how many they take.
GRADIENTS, GRADIENT_SAMPLES = ("taylor", "group-taylor", "fisher"), 64
MOST_STEPS = 1000
#: Wider than any layer.
LARGEST_ALIGN = 1 << 31


@dataclass(frozen=True)
class Options:
    """Options of ``graphprune run`` and :func:`graphprune.prune`.

    Attributes
    ----------
    passes
        Pass specs in order, ``name`` or ``name{option=value}``.
    rate
        Share of the prunable indices to remove, in (0, 1).
    budget
        ``macs=0.5``, ``params=0.5`` or ``bytes=0.5`` instead of a rate: share of the source to keep; or an
        absolute number above 1 (``macs=2e9``). ``latency=0.5x`` or ``latency=8ms``: time of one run, measured here
        (or estimated for ``device``).
    scope
        ``group``: the rate holds on every prunable axis. ``global``: over all, by normalised score.
    grain
        ``coarse`` (heads, groups), ``fine`` (lanes, positions) or ``both`` where two families share an axis.
    allocate
        How a budget is shared among the groups. ``dp``: by the error after least squares, dynamic programming (the
        default where data are given). ``global``: one threshold over all normalised scores. ``uniform``: the same
        share in each. ``isomorphic``: one threshold for all groups of the same topology.
    combine
        How several scoring passes decide together. ``weighted`` (the default, equal weights):
        ``weighted{entropy=0.7,l1=0.3}``; ``rank-mean``; ``intersection``; ``parallel``.
    floor
        Share of a group's units that is always kept (at least one).
    align
        Kept widths are multiples of this where that leaves anything to cut. ``auto``: of the step that measurement in
        ``runtime`` finds; a latency budget takes that by default.
    runtime, threads
        What latency is measured in, and on how many threads (all processors by default).
    device
        ``cpu``: this machine. Another name of ``graphprune devices``, with ``:int8`` or another precision where that is meant:
        a latency budget is met by an estimate for it, from its peak and bandwidth and from what ``graphprune calibrate``
        was told; widths are multiples that it computes.
    latency_from
        A profile of the source that ``trtexec --exportProfile`` wrote on a device: a latency budget is then met by an
        estimate for that device instead of by measurement here.
    force
        Write a cut under a latency budget that is no faster by measurement too.
    exact
        Leave units whose removal is not the same as zeroing them.
    rates
        Tensor name or glob, with ``:axis`` where one axis is meant -> share to remove of the groups that it belongs to,
        in [0, 1); other groups lose ``rate``, or nothing where none is given.
    steps
        Times that the model is scored, cut and recovered on the way to the rate or budget.
    """

    passes: tuple[str, ...] = ("l1",)
    rate: float | None = None
    budget: str | None = None
    scope: Literal["global", "group"] = "global"
    grain: Literal["coarse", "fine", "both"] = "coarse"
    allocate: Literal["dp", "global", "uniform", "isomorphic"] | None = None
    combine: str | None = None
    floor: float = 0.1
    align: int | Literal["auto"] | None = None
    exact: bool = False
    keep: tuple[str, ...] = ()
    data: str | None = None
    samples: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    eval: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    steps: int = 1
    runtime: str = "onnxruntime"
    threads: int | None = None
    device: str = "cpu"
    latency_from: str | None = None
    force: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rate is not None and self.budget is not None:
            raise UsageError("--rate and --budget exclude each other: give one")
        if self.rate is not None and not 0 < self.rate < 1:
            raise UsageError(f"--rate {self.rate:g} is outside (0, 1): it is the share of the indices to remove")
        if self.budget is not None:
            self.parsed_budget()
        self._check_device()
        if self.times:
            self._check_latency()
        elif self.latency_from is not None:
            raise UsageError("--latency-from says how long layers take: give a latency budget too, as in --budget latency=0.5x")
        if self.allocate not in (None, "dp", "global", "uniform", "isomorphic"):
            raise UsageError(f"--allocate {self.allocate!r}: give one of dp, global, uniform, isomorphic")
        if self.allocate == "dp" and self.budget is None:
            raise UsageError("--allocate dp shares a budget among the groups: give --budget, for example macs=0.5")
        for pattern, rate in self.rates.items():
            if not 0 <= rate < 1:
                raise UsageError(f"the rate of '{pattern}' is {rate:g}, outside [0, 1): it is the share of its units to remove")
        if self.rates and (self.budget is not None or self.allocate not in (None, "uniform")):
            raise UsageError("rates of single groups leave nothing to share out: give them without --budget and --allocate")
        if not 1 <= self.steps <= MOST_STEPS:
            raise UsageError(f"--steps {self.steps} is outside 1..{MOST_STEPS}")
        way = parse(self.combine)
        if isinstance(way, InParallel):
            if self.scope == "group" or self.rates:
                other = "rates of single groups" if self.rates else "--scope group"
                raise UsageError(f"--combine parallel lets the criteria decide how much each group loses: not with {other}")
            if self.allocate not in (None, "global"):
                raise UsageError(f"--combine parallel has thresholds of its own: not with --allocate {self.allocate}")
            if not way.bisect and (self.budget is not None or self.steps > 1):
                other = "--budget" if self.budget is not None else "--steps"
                raise UsageError(f"--combine parallel{{bisect=false}} takes --rate as that of its thresholds: not with {other}")
        if not 0 <= self.floor < 1:
            raise UsageError(f"--floor {self.floor:g} is outside [0, 1)")
        if isinstance(self.align, int) and not 1 <= self.align <= LARGEST_ALIGN:
            raise UsageError(f"--align {self.align} is outside 1..{LARGEST_ALIGN}: kept widths are multiples of it")
        if isinstance(self.align, str) and self.align != "auto":
            raise UsageError(f"--align {self.align!r}: a whole number of 1 or more, or 'auto'")
        if self.runtime not in RUNTIMES:
            raise UsageError(f"--runtime {self.runtime!r}: give one of {', '.join(RUNTIMES)}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads} must be 1 or more")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"--samples {self.samples} must be 1 or more")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} must be 0 or more")
        if self.data is not None and not self.data.strip():
            raise UsageError("--data '': give a folder of images, a .npy or a .npz")
        if self.data is None:
            for name in ("mean", "std", "layout"):
                if getattr(self, name) is not None:
                    raise UsageError(f"--{name} says how images are read: give --data a folder of images too")
        for name, allowed in (("scope", ("global", "group")), ("grain", ("coarse", "fine", "both"))):
            if getattr(self, name) not in allowed:
                raise UsageError(f"--{name} {getattr(self, name)!r}: give one of {', '.join(allowed)}")

    def _check_device(self) -> None:
        """Whether there is such a device, and anything for it to decide."""
        if self.device == "cpu":
            return
        from graphprune.devices import named

        named(self.device)
        if self.align != "auto" and not self.times:
            raise UsageError(f"--device {self.device} says what --align auto or a latency budget takes: give one of them too")

    def _check_latency(self) -> None:
        """What a budget of time cannot be combined with."""
        if isinstance(parse(self.combine), InParallel):
            raise UsageError("--combine parallel has thresholds of its own: not with a latency budget")
        if self.steps > 1:
            raise UsageError("--steps: a latency budget is met in one step; for several give macs=... or a rate")

    @property
    def times(self) -> bool:
        """Whether the budget is one of time."""
        return self.budget is not None and self.parsed_budget()[0] == "latency"

    @property
    def allocation(self) -> str:
        """How a budget is shared among groups: as asked; by default ``dp`` where there are data to measure on."""
        if self.allocate is not None:
            return self.allocate
        if isinstance(parse(self.combine), InParallel):
            return "global"
        if self.scope == "group" or self.rates:
            return "uniform"
        return "dp" if self.budget is not None and self.data is not None else "global"

    @property
    def sample_count(self) -> int:
        """Calibration samples: as asked, else few where maps are looked at and more where weights are fitted."""
        if self.samples is not None:
            return self.samples
        fits = self.allocation == "dp" or any(spec.strip().startswith(FITTING) for spec in self.passes)
        if fits:
            return FITTING_SAMPLES
        return GRADIENT_SAMPLES if any(spec.strip().startswith(GRADIENTS) for spec in self.passes) else LOOKING_SAMPLES

    def parsed_budget(self) -> tuple[str, float]:
        """The budget's measure and its amount (a share when below 1); of latency above 1 in microseconds."""
        text = self.budget or ""
        if re.match(r"\s*latency\s*=", text):
            return "latency", _latency(text)
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.eE+-]+)\s*([kKMGT]?)\s*", text)
        if match is None or match[1] not in BUDGETS:
            raise UsageError(
                f"--budget '{text}': write macs=0.5, params=0.5 or bytes=0.5 (the share to keep, or an amount as in macs=300M), "
                "or latency=0.5x"
            )
        try:
            amount = float(match[2]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[3]]
        except ValueError:
            raise UsageError(f"--budget '{text}': '{match[2]}' is not a number") from None
        if amount <= 0 or amount == 1 or (amount > 1 and not match[3] and amount % 1):
            raise UsageError(f"--budget '{text}': the share to keep lies between 0 and 1, an amount is a whole number above 1")
        return match[1], amount

    def to_json(self) -> dict[str, Any]:
        """Options as they stand in a plan file."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def _latency(text: str) -> float:
    """A budget of time: a share of the source's (``0.5x``, or 0.5), or microseconds."""
    match = re.fullmatch(r"\s*latency\s*=\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(x|us|ms|s|)\s*", text)
    try:
        amount = float(match[1]) if match else 0.0
    except ValueError:
        amount = 0.0
    unit = match[2] if match else ""
    if match is None or amount <= 0:
        raise UsageError(f"--budget '{text}': write latency=0.5x (share of the source's time) or latency=8ms")
    if unit in ("x", ""):
        if amount >= 1:
            raise UsageError(f"--budget '{text}': a share of the source's time lies between 0 and 1; a time has a unit, as in 8ms")
        return amount
    micro = amount * _TIMES[unit]
    if micro <= 1:
        raise UsageError(f"--budget '{text}': no model runs in {micro:g} microseconds")
    return micro


def as_tuple(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One or several strings as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
