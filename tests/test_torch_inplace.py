"""Torch modules cut in place: each against a masked copy of itself in plain torch, and everything that must stay as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import graphprune as gp

torch = pytest.importorskip("torch")  # the core is installed without it as well
nn = torch.nn

from torch.nn.utils import parametrize  # noqa: E402

from graphprune.errors import VerificationError  # noqa: E402
from tests.torch_attention import MODULES  # noqa: E402
from tests.torch_modules import FIXED, Between  # noqa: E402
from tests.torch_nets import NETS  # noqa: E402

IN_PLACE = sorted(set(MODULES) - set(FIXED))


def build(name, seed=3):
    torch.manual_seed(seed)
    module, example = {**NETS, **MODULES}[name]()
    return module.eval(), example


def call(module, example):
    """Run a module on its example inputs."""
    torch.manual_seed(0)
    args, kwargs = arguments(example)
    with torch.no_grad():
        return tensors_of(module(*args, **kwargs))


def arguments(example):
    if isinstance(example, tuple) and len(example) == 2 and isinstance(example[1], dict):
        return example
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors_of(v)] if isinstance(value, (list, tuple)) else []


def masked(module, plan):
    """A module with its removed slices made zero, in plain torch; weights computed from others are written out first."""
    former = {}
    for path, one in list(module.named_modules()):
        path = f"{path}." if path else ""
        if parametrize.is_parametrized(one):
            parametrize.remove_parametrizations(one, "weight", leave_parametrized=True)
            former[f"{path}parametrizations.weight.original1"] = f"{path}weight"
    held = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for key, entry in plan.tensors.items():
            if key.endswith("original0"):
                continue
            tensor = held[former.get(key, key)]
            assert list(tensor.shape) == entry["shape"]
            for axis, kept in entry["kept"].items():
                gone = np.setdiff1d(np.arange(tensor.shape[int(axis)]), kept)
                if tensor.is_floating_point():
                    # A zero where a scale divides would make NaN of a channel that is zero anyway.
                    tensor.index_fill_(int(axis), torch.from_numpy(gone), 1.0 if key.endswith(("std", "running_var")) else 0.0)
    return module


def close(a, b, tolerance=1e-4):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.shape == other.shape
        scale = max(one.abs().max().item(), 1e-12)
        assert (one - other).abs().max().item() <= tolerance * scale


def larger(example):
    """The example with its batch twice as large, where its first axis is the batch."""
    args, kwargs = arguments(example)
    return tuple(torch.cat([a, a.flip(0)]) for a in args), {k: torch.cat([v, v.flip(0)]) for k, v in kwargs.items()}


#: Modules whose first axis is time.
TIME_FIRST = {"torch_cross_attention", "gru_with_state"}


@pytest.mark.parametrize("name", IN_PLACE)
def test_cut_in_place_equals_masked_module(name, tmp_path):
    module, example = build(name)
    source, _ = build(name)  # no deep copy: parametrized layers would share a class
    parameters = {key: id(value) for key, value in module.named_parameters()}
    result = gp.prune(module, example, rate=0.5, scope="group", exact=name not in ("embedding_table", "functional_layer_norm"))
    assert result.module is module and result.model is module, result.plan.notes
    assert result.plan.attributes["kind"] == "module"
    assert {key: id(value) for key, value in module.named_parameters()} == parameters
    smaller = sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in source.parameters())
    assert smaller and result.plan.tensors
    for key, entry in result.plan.tensors.items():
        shape = list(entry["shape"])
        for axis, kept in entry["kept"].items():
            shape[int(axis)] = len(kept)
        assert list(module.state_dict()[key].shape if key in module.state_dict() else shape) == shape
    reference = masked(source, result.plan)
    inputs = [example] if name in TIME_FIRST else [example, larger(example)]
    for one in inputs:
        found = call(module, one)
        if not result.plan.verify["inexact_units"]:
            close(call(reference, one), found)
    tells_its_shapes(module)
    path = tmp_path / "cut.safetensors"
    result.save(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.plan.json", "cut.safetensors"]
    fresh, _ = build(name, seed=4)
    assert gp.load(path, fresh) is fresh and repr(fresh) == repr(module)
    close(call(module, example), call(fresh, example), 0)
    trains(module, example)


def tells_its_shapes(module):
    for one in module.modules():
        if isinstance(one, nn.Linear):
            assert (one.out_features, one.in_features) == tuple(one.weight.shape)
        if isinstance(one, nn.Conv2d):
            assert (one.out_channels, one.in_channels // one.groups) == tuple(one.weight.shape[:2])
        if isinstance(one, (nn.LSTM, nn.GRU)):
            assert one.hidden_size == one.weight_hh_l0.shape[1]


def trains(module, example):
    """One step of training changes every parameter that has a gradient."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    args, kwargs = arguments(example)
    loss = sum(t.float().square().mean() for t in tensors_of(module(*args, **kwargs)) if t.requires_grad)
    loss.backward()
    optimizer.step()
    assert all(p.grad is None or p.grad.shape == p.shape for p in module.parameters())
    assert any(not torch.equal(before[key], value) for key, value in module.named_parameters())
    module.eval()


@pytest.mark.parametrize("name", ["attention_grouped_query", "grouped_convolution", "torch_encoder", "lstm"])
def test_a_cut_module_can_be_analysed_and_cut_again(name):
    module, example = build(name)
    first = gp.prune(module, example, rate=0.3, scope="group")
    second = gp.prune(module, example, rate=0.3, scope="group")
    assert first.module is second.module is module
    # A scale may be counted or not, where code multiplies by it.
    assert abs(second.plan.before["params"] - first.plan.after["params"]) <= 4
    assert second.plan.after["params"] < first.plan.after["params"]


def test_attention_keeps_its_scale_and_mends_its_heads():
    module, example = build("attention_grouped_query")
    scale = module.layer.head_dim
    gp.prune(module, example, rate=0.5, scope="group")
    layer = module.layer
    assert (layer.num_heads, layer.num_key_value_heads, layer.num_key_value_groups) == (4, 1, 4)
    assert layer.head_dim == scale == 6
    assert layer.q.out_features == 24 and layer.k.out_features == 6


def test_a_shared_configuration_is_copied_not_changed():
    module, example = build("shared_config")
    config = module[1].config
    gp.prune(module, example, rate=0.5, scope="group")
    assert (config.heads, config.inner, config.width) == (4, 40, 24)
    mended = module[1].config
    assert mended is not config and mended is module[2].config
    assert (mended.heads, mended.lanes, mended.inner) == (2, 6, 20)


def test_layers_that_need_different_values_get_their_own_configuration():
    module, example = build("shared_config")
    result = gp.prune(module, example, rate=0.5, scope="group", rates={"1.up.weight": 0.25})
    assert result.module is module
    assert module[1].config is not module[2].config
    assert (module[1].config.inner, module[2].config.inner) == (30, 20)


def test_hooks_gradients_ties_and_optimizer_stay():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    module[0].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    seen = []
    module[0].register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    module[2].weight.register_hook(lambda grad: seen.append(grad.shape))
    example = torch.randn(4, 6)
    module(example).square().mean().backward()
    optimizer.step()
    moments = optimizer.state[module[2].weight]["exp_avg"].clone()
    grad = module[2].weight.grad.clone()
    result = gp.prune(module, example, rate=0.5, optimizer=optimizer)
    kept = torch.tensor(result.plan.tensors["2.weight"]["kept"]["1"])
    assert torch.equal(optimizer.state[module[2].weight]["exp_avg"], moments[:, kept])
    assert torch.equal(module[2].weight.grad, grad[:, kept])
    assert not module[0].weight.requires_grad and module.training
    seen.clear()
    optimizer.zero_grad()
    module(example).square().mean().backward()
    optimizer.step()
    assert seen == [torch.Size([4, 8]), torch.Size([3, 8])]


def test_a_live_graph_is_told():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    example = torch.randn(4, 6)
    loss = module(example).square().mean()
    result = gp.prune(module, example, rate=0.5)
    assert any("still alive" in note for note in result.plan.notes)
    del loss
    module(example).square().mean().backward()


def snapshot(module):
    """All that a module is: tensors, by identity and contents, and attributes."""
    tensors = {k: (id(v), v.data_ptr(), v.clone()) for k, v in module.state_dict(keep_vars=True).items()}
    attributes = {name: {k: v for k, v in vars(one).items() if not k.startswith("_")} for name, one in module.named_modules()}
    return tensors, attributes


def unchanged(before, module):
    tensors, attributes = snapshot(module)
    assert attributes == before[1]
    assert tensors.keys() == before[0].keys()
    for key, (identity, place, value) in tensors.items():
        assert (identity, place) == before[0][key][:2] and torch.equal(value, before[0][key][2])


@pytest.mark.parametrize("name", ["attention_separate", "torch_encoder", "weight_norm", "lstm", "shared_config"])
def test_restored_exactly_after_a_failure(name, monkeypatch):
    from graphprune.backends.inplace import cutting
    from graphprune.backends.inplace.solve import Declined

    module, example = build(name)
    state = gp.prune(copy.deepcopy(module), example, rate=0.5, scope="group").state
    before = snapshot(module)
    source = state.loaded.torch
    object.__setattr__(source, "module", module)

    def fail(*_):
        raise Declined("forced")

    monkeypatch.setattr(cutting.Proof, "check", fail)
    with pytest.raises(Declined):
        cutting.cut_in_place(state)
    unchanged(before, module)


@pytest.mark.parametrize("name", sorted(FIXED))
def test_sizes_in_the_code_fall_back_and_the_line_is_named(name, tmp_path):
    module, example = build(name)
    before = snapshot(module)
    result = gp.prune(module, example, rate=0.5, scope="group")
    unchanged(before, module)
    assert result.module is not module
    told = [note for note in result.plan.notes if "torch_modules.py" in note]
    assert told and FIXED[name] in told[0], result.plan.notes
    close(call(masked(build(name)[0], result.plan), example), call(result.module, example))
    assert set(result.module.state_dict()) <= set(module.state_dict())
    trains(result.module, example)
    result.save(tmp_path / "cut.safetensors")
    fresh, _ = build(name, seed=4)
    with pytest.raises(gp.GraphPruneError, match="example_inputs"):
        gp.load(tmp_path / "cut.safetensors", fresh)
    loaded = gp.load(tmp_path / "cut.safetensors", fresh, example)
    close(call(result.module.eval(), example), call(loaded.eval(), example), 1e-6)


def test_loading_into_the_wrong_module_is_told(tmp_path):
    module, example = build("mlp")
    result = gp.prune(module, example, rate=0.5)
    path = tmp_path / "cut.safetensors"
    result.save(path)
    with pytest.raises(gp.GraphPruneError, match="has shape"):
        gp.load(path, nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 4)))
    with pytest.raises(gp.GraphPruneError, match="no tensor"):
        gp.load(path, nn.Linear(6, 4))
    with pytest.raises(gp.GraphPruneError, match="cut already"):
        gp.load(path, module)
    with pytest.raises(gp.GraphPruneError, match="no plan"):
        gp.load(tmp_path / "other.safetensors", module)
    fresh, _ = build("mlp", seed=4)
    before = snapshot(fresh)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(gp.GraphPruneError, match="damaged"):
        gp.load(path, fresh)
    unchanged(before, fresh)


def test_recovered_weights_go_into_the_module():
    module, _ = build("mlp")
    result = gp.prune(module, torch.randn(64, 6), passes=["l1", "recover"], rate=0.5)
    assert result.plan.recovery["used"] and result.module is module
    recovered = result.plan.recovery["tensors"]
    assert recovered
    import onnxruntime as ort

    from graphprune.backends.onnx import to_bytes

    session = ort.InferenceSession(to_bytes(result.ir), providers=["CPUExecutionProvider"])
    x = torch.randn(64, 6)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close([torch.from_numpy(found[0])], call(module, x))


def test_a_bias_that_recovery_adds_goes_into_the_module(tmp_path):
    def make():
        return nn.Sequential(nn.Linear(6, 24, bias=False), nn.ReLU(), nn.Linear(24, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))

    torch.manual_seed(0)
    module = make().eval()
    x = torch.randn(128, 6)
    result = gp.prune(module, x, passes=["l1", "recover"], rate=0.5)
    assert result.module is module and module[2].bias is not None and module[0].bias is None
    result.save(tmp_path / "cut.safetensors")
    close(call(module, x), call(gp.load(tmp_path / "cut.safetensors", make()), x), 0)


def test_a_copy_is_cut_where_asked():
    module, example = build("attention_separate")
    before = snapshot(module)
    result = gp.prune(module, example, rate=0.5, inplace=False)
    assert result.module is not module
    unchanged(before, module)


def test_half_precision_and_channels_last():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    module = module.to(memory_format=torch.channels_last).eval()
    example = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    gp.prune(module, example, rate=0.5, scope="group")
    assert module[2].weight.is_contiguous(memory_format=torch.channels_last)
    wide = Between(nn.Linear(16, 16)).to(torch.bfloat16).eval()
    result = gp.prune(wide, torch.randn(4, 6, dtype=torch.bfloat16), rate=0.5)
    assert result.module is wide and wide.layer.weight.dtype == torch.bfloat16


TRANSFORMERS = {
    "Bert": ("BertModel", {"intermediate_size": 80, "max_position_embeddings": 32}),
    "GPT2": ("GPT2LMHeadModel", {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 32}),
    "Llama": ("LlamaForCausalLM", {"num_key_value_heads": 2, "intermediate_size": 80}),
    "Qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 2, "intermediate_size": 80}),
    "Mistral": ("MistralForCausalLM", {"num_key_value_heads": 2, "intermediate_size": 80}),
    "OPT": ("OPTForCausalLM", {"ffn_dim": 80, "max_position_embeddings": 32, "word_embed_proj_dim": 48}),
    "Albert": ("AlbertModel", {"intermediate_size": 80, "embedding_size": 24, "max_position_embeddings": 32}),
}


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_transformers_models(name):
    transformers = pytest.importorskip("transformers")
    model, sizes = TRANSFORMERS[name]
    common = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4} if name != "GPT2" else {}
    kind = getattr(transformers, model)
    config = kind.config_class(vocab_size=64, bos_token_id=1, eos_token_id=2, **common, **sizes)
    torch.manual_seed(0)
    module = kind(config).eval()
    source = copy.deepcopy(module)
    ids = torch.randint(3, 64, (2, 9))
    result = gp.prune(module, {"input_ids": ids}, rate=0.5, scope="group", exact=True)
    assert result.module is module, result.plan.notes
    with torch.no_grad():
        found = module(input_ids=ids)[0]
        close([masked(source, result.plan)(input_ids=ids)[0]], [found])
        assert module(input_ids=ids[:1, :5])[0].shape[:2] == (1, 5)
    assert config.to_dict() == source.config.to_dict()


def test_what_functions_remember_is_free_of_sizes():
    """The cache of a function that code asks for shapes holds plain numbers after a cut, and still works."""
    import tests.torch_modules as source

    module, example = build("remembered_shapes")
    gp.prune(module, example, rate=0.5, scope="group")
    for width, heads in ((24, 4), (12, 2)):
        found = source._remembered((2, 5, width), heads)
        assert found == (2, 5, heads, 6) and {type(size) for size in found} == {int}
    assert source._remembered.cache_info().hits


class Decides(nn.Module):
    """Goes by a value of its input, and has its sizes written in: only a trace can take it, and only for one way."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        y = self.a(x).view(6, 3, 4).relu().reshape(6, 12)
        return self.b(y if x[0, 0] > 2 else -3 * y)


def test_a_graph_that_is_not_the_module_is_not_handed_out():
    """A trace holds one way of a decision: right for the example, wrong for other inputs, and no proof against graphs tells."""
    torch.manual_seed(0)
    module, example = Decides(), torch.randn(6, 4).clamp(-1, 1)
    example[0, 0] = 3
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(VerificationError, match=r"Decides is not translated rightly by TorchScript.*uncut as it is"):
        gp.prune(module, example, rate=0.5, scope="group")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Ranked(nn.Module):
    """The best cells by a score, and what is known of them; ``spread``: how far scores lie apart."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.body, self.score, self.out = nn.Conv2d(3, 32, 3), nn.Linear(32, 1), nn.Linear(32, 4)
        self.spread = spread

    def forward(self, x):
        cells = torch.relu(self.body(x)).flatten(2).mT
        scores = 1 + self.spread * self.score(cells).squeeze(-1)
        best = scores.topk(20, dim=1).indices
        return self.out(cells).gather(1, best.unsqueeze(-1).expand(-1, -1, 4))


@pytest.mark.parametrize("spread", [1.0, 1e-5])
def test_choice_that_rounding_makes_is_no_mistake_of_translation(spread):
    """Where thousands of scores agree to the last digits nothing can be compared, and that is what is said."""
    torch.manual_seed(0)
    module, x = Ranked(spread), torch.randn(1, 3, 40, 40)
    if spread == 1.0:
        result = gp.prune(module, x, rate=0.5)
        assert result.plan.verify["passed"] and module.body.out_channels < 32
        return
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(gp.GraphPruneError, match="numbers so nearly equal that rounding decides"):
        gp.prune(module, x, rate=0.5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
