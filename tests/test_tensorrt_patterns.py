"""Every kind of network of the patterns, for old and new TensorRT: lowered and proved, or refused with a reason; never a crash."""

from __future__ import annotations

import pytest

from graphprune.backends.tensorrt import check, lower, prove
from graphprune.backends.tensorrt.proof import Source, samples
from graphprune.devices import resolve
from graphprune.frontends.onnx import load
from tests.patterns import PATTERNS, Pattern

#: Made-up inputs do not fit these sources themselves.
UNFED = ("lstm_constant_states_and_lengths",)
#: What no parser takes at any version, or not as it stands in a file.
REFUSED = ("com.microsoft", "Sequence", "Optional", "Integer", "QLinear", "zero point", "block_size")


@pytest.mark.parametrize(
    "jetpack",
    ["4.6.1", pytest.param("4.6", marks=pytest.mark.slow), pytest.param("5.1.2", marks=pytest.mark.slow),
     pytest.param("6.2", marks=pytest.mark.slow)],
)  # fmt: skip
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
def test_lowered_and_proved_or_refused(pattern: Pattern, jetpack: str) -> None:
    target = resolve("agx-orin" if jetpack == "6.2" else "agx-xavier", jetpack=jetpack)
    source = load(pattern.build()).model
    lowered = lower(source, target)
    bad = [v for v in lowered.verdicts if v.status == "unsupported"]
    if bad:
        assert all(v.reason and v.advice for v in bad)
        return
    if pattern.name not in UNFED:
        prove(Source(source, list(samples(source, n=1, shapes={}))), lowered)
    assert check(source, target)[-1].node == "(model)"


def test_most_patterns_run_on_a_tx2() -> None:
    target = resolve("tx2")
    refused = {}
    for name, pattern in PATTERNS.items():
        bad = [v for v in lower(load(pattern.build()).model, target).verdicts if v.status == "unsupported"]
        if bad:
            refused[name] = bad
    assert len(refused) < 0.15 * len(PATTERNS), sorted(refused)
    rest = {n: v for n, v in refused.items() if not any(word in x.reason + x.op for x in v for word in REFUSED)}
    assert len(rest) < 0.05 * len(PATTERNS), {n: [x.reason for x in v] for n, v in rest.items()}
