"""Every torch pattern in both modes: cut, judged by the independent oracle, and held to what must have been cut."""

from __future__ import annotations

from typing import Any

import pytest

import graphprune as gp

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tests import torch_oracle  # noqa: E402
from tests.torch_patterns import PATTERNS, TorchPattern  # noqa: E402

MODES = {"half": False, "exact": True}
#: In every run; all of them, in both modes, with ``-m slow``.
OFTEN = (
    "SelfAttention RotaryAttention LinearAttention MultiheadAttention TransformerEncoder Plain Residual Bottleneck DenseBlock Res2Net "
    "SqueezeExcite GroupedConv TwoGroupCountsOnOneResidual DepthwiseMultiplierTwo GroupedTransposed DictIn DataclassOut KeywordsOnly "
    "SizesFromShape Dropouts TracedGraph UnevenSplit StridedSlice IndexPermutation ConcatRawInput InstanceNorm GroupNorm LayerNorm Lstm LstmProjected Codebook"
).split()
CASES = [
    pytest.param(p, mode, id=f"{name}-{mode}", marks=[] if name in OFTEN and mode == "half" else [pytest.mark.slow])
    for name, p in PATTERNS.items()
    for mode in MODES
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return (args, kwargs) if kwargs else args


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("pattern", "mode"), CASES)
def test_pattern(pattern: TorchPattern, mode: str) -> None:
    exact = MODES[mode]
    source, args, kwargs = pattern.make()

    def cut() -> Any:
        return gp.prune(source, given(args, kwargs), rate=0.5, scope="group", exact=exact, inplace=not pattern.copies)

    if pattern.refusal is not None:
        with pytest.raises(gp.GraphPruneError, match=pattern.refusal):
            cut()
        assert not torch_oracle.untouched(pattern.make, source)
        return
    if exact and pattern.inexact:
        with pytest.raises(gp.GraphPruneError, match="nothing is prunable"):
            cut()
        return
    result = cut()
    found = torch_oracle.judge(pattern.make, result, batch=pattern.batch, tolerance=pattern.tolerance)
    assert not found.problems, "\n".join(found.problems)
    assert not pattern.copies or not torch_oracle.untouched(pattern.make, source)
    assert found.cut
    assert found.effect > 0, "masking changed no output: the comparison proves nothing"
    if exact:
        assert found.exact, "cut inexact units"
    else:
        cut_names = result.plan.tensors
        missing = [w for w in pattern.cut if not any(n == w or n.startswith(w + ".") for n in cut_names)]
        assert not missing, f"not cut: {missing}"


def test_there_are_enough_patterns() -> None:
    assert len(PATTERNS) >= 195
    assert sum(bool(p.cut) for p in PATTERNS.values()) >= 180
    assert sum(p.refusal is not None for p in PATTERNS.values()) <= 0.03 * len(PATTERNS)
