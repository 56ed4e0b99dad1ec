"""Models of the transformers library from tiny configs, without a hint; many more in ``benchmarks/torch_modules``."""

from __future__ import annotations

import pytest

import graphprune as gp

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from benchmarks.torch_modules.sources import transformers_model  # noqa: E402
from tests import torch_oracle  # noqa: E402

MODELS = ["bert_questions", "llama_sequence", "layoutlm", "siglip", "olmo2", "videomae", "hf_convnext", "whisper"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    torch.set_num_threads(1)
    source, _, kwargs = transformers_model(name)
    result = gp.prune(source, kwargs, rate=0.5, scope="group")
    found = torch_oracle.judge(lambda: transformers_model(name), result)
    assert not found.problems, "\n".join(found.problems)
    assert found.cut
    assert result.plan.after["params"] < 0.6 * result.plan.before["params"]
