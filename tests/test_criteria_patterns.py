"""Every criterion on networks of every kind: it scores all units, cuts, and the cut is proved."""

from __future__ import annotations

import numpy as np
import pytest

import graphprune as gp
from graphprune import plugins
from tests.patterns import PATTERNS

#: In its variants; those that depend on the run alone are left to their own tests.
CRITERIA = [
    "l1", "l2", "bn-scale", "lamp", "fpgm", "similarity", "similarity{variant=greedy}", "similarity{variant=closest}",
    "entropy", "entropy{variant=raw,reading=conv}", "entropy{normalize=mean-var,reading=act}", "entropy-luo{bins=10}",
    "hrank", "hrank{reading=bn}", "chip{images=2,positions=32}", "apoz", "variance", "activation", "activation{norm=l2}", "wanda",
    "gram", "obs", "taylor", "group-taylor", "fisher", "random",
]  # fmt: skip
#: Residual, concat, depthwise, grouped, heads and lanes, recurrent, quantised, branches and loops, one- and three-dimensional.
KINDS = ["resnet_basic", "densenet", "mobilenet_v2", "resnext_block", "mha_fused_split", "gqa_expand_reshape", "lstm", "conv1d", "conv3d",
         "shufflenet_v2_units", "unet", "layer_norm_op", "siamese", "if_branches_with_convs", "scan_gru_cell", "qdq_everything", "qlinear_conv"]  # fmt: skip


def test_all_criteria_are_here() -> None:
    names = {spec.partition("{")[0] for spec in CRITERIA}
    assert names == {entry.name for entry in plugins.discover().entries() if entry.kind == "score" and entry.distribution == plugins.OWN}


@pytest.mark.parametrize("pattern", KINDS)
def test_all_criteria_together(pattern: str) -> None:
    """One run that scores by all of them: what is not finite or of the wrong shape is an error there."""
    result = gp.prune(PATTERNS[pattern].build(), passes=CRITERIA, combine="rank-mean", rate=0.4, samples=4)
    assert result.plan.verify["passed"] and len(result.state.scores) == len(CRITERIA)
    assert all(np.isfinite(one.values).all() for one in result.state.scores)


@pytest.mark.parametrize("spec", CRITERIA)
@pytest.mark.parametrize("pattern", ["resnet_basic", "mha_fused_split"])
def test_each_cuts_and_proves(pattern: str, spec: str) -> None:
    result = gp.prune(PATTERNS[pattern].build(), passes=spec, rate=0.5, samples=4)
    assert result.plan.verify["passed"] and result.plan.after["params"] < result.plan.before["params"]
