"""Programs that are written as ONNX directly: the same numbers as the module, by the same names; anything else goes to torch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphprune.backends.inplace.holders import slots
from graphprune.backends.ort import Runner
from graphprune.backends.session_proto import SessionWriter
from graphprune.frontends.aten import Unknown, translate
from graphprune.frontends.torch import load_module
from graphprune.frontends.torch_export import tensor_of

X = torch.linspace(-2, 2, 2 * 4 * 6).reshape(2, 4, 6)
IMAGE = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)
MASK = torch.ones(6, 6, dtype=torch.bool).tril()


class Of(nn.Module):
    """A function, with one parameter so that there is something to export."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6 * 6).reshape(6, 6))

    def forward(self, x):
        return self.function(x, self.weight)


FUNCTIONS = {
    "linear": F.linear,
    "linear_matrix": lambda x, w: F.linear(x[0], w, w[0]),
    "scaled_sum": lambda x, w: torch.add(x, w[0], alpha=0.5) - 2 * x / 3 + (1 - x),
    "promoted": lambda x, w: x + torch.arange(6) + (x > 0),
    "compared": lambda x, w: (x >= w[0]) | ((x < 1) & ~(x == 0)),
    "pointwise": lambda x, w: F.gelu(x, approximate="tanh") + F.silu(x) + x.abs().rsqrt() + x.sigmoid().pow(2) + F.leaky_relu(x),
    "clipped": lambda x, w: F.relu6(x) + F.hardswish(x) + F.hardsigmoid(x) + F.hardtanh(x),
    "masked": lambda x, w: torch.where(x > 0, x, w[0]).masked_fill(x > 1, -3.0),
    "reduced": lambda x, w: x.mean(-1, keepdim=True) + x.sum((0, 2))[:, None],
    "softmax": lambda x, w: x.softmax(-1) + F.log_softmax(x, 1),
    "moved": lambda x, w: x.transpose(1, 2).reshape(2, 2, 3, 4).permute(0, 2, 1, 3).flatten(1, 2).unsqueeze(1).squeeze(1),
    "sliced": lambda x, w: torch.cat([x[:, 1:3], x[:, ::2], x[:, -1:]], 1) + x[0, 0].expand(2, 1, 6),
    "divided": lambda x, w: torch.stack([*x.chunk(3, -1), *x.split(2, 2)], 0),
    "uneven": lambda x, w: x.split([1, 3], 1)[1] * x.chunk(4, 2)[-1].sum((0, 1, 2)),
    "indexed": lambda x, w: x[:, torch.tensor([2, 0])] + x.select(1, 1)[:, None],
    "counted": lambda x, w: (x > 0).to(torch.int64).cumsum(-1).diff(dim=-1, prepend=torch.zeros(2, 4, 1, dtype=torch.int64)),
    "looked_up": lambda x, w: (x > 0).long()[torch.arange(2)[:, None], torch.arange(4)[None]],
    "attention": lambda x, w: F.scaled_dot_product_attention(x[:, None], x[:, None] @ w, x[:, None]),
    "attention_causal": lambda x, w: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.2),
    "attention_hidden": lambda x, w: F.scaled_dot_product_attention(x @ w, x @ w, x @ w, attn_mask=MASK[:4, :4]),
    "attention_added": lambda x, w: F.scaled_dot_product_attention(x, x, x, attn_mask=w[:4, :4]),
    "norm": lambda x, w: F.layer_norm(x, (6,), w[0], w[1], 1e-3),
    "made": lambda x, w: x * torch.ones(6) + torch.full((4, 1), 2.0) + torch.zeros_like(x) + x.new_ones(1),
}


def program(module, *inputs):
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, strict=False)


def run(model, *inputs):
    model.graph.outputs[0].name = "out"
    names = [str(value.name) for value in model.graph.inputs]
    return Runner(model).run(dict(zip(names, (t.numpy() for t in inputs), strict=True)))["out"]


def equal(module, x):
    model = translate(program(module, x), tensor_of)
    want = module(x).detach().numpy()
    value = model.graph.outputs[0]
    assert tuple(value.shape) == want.shape and value.dtype.numpy() == want.dtype
    got = run(model, x)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    return model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_what_torch_gives(name):
    equal(Of(FUNCTIONS[name]).eval(), X)


def test_layers_give_what_torch_gives_under_their_own_names():
    module = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, dilation=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2, 1, 1),
        nn.AvgPool2d(2), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    module[1].running_mean.uniform_(-1, 1)
    model = equal(module, IMAGE)
    assert {"0.weight", "1.running_var", "8.bias"} <= set(model.graph.initializers)
    assert model.graph.initializers["0.weight"].const_value.numpy().ctypes.data == module[0].weight.data_ptr()


@pytest.mark.parametrize(
    "function",
    [lambda x, w: x.topk(2)[0], lambda x, w: F.interpolate(x, scale_factor=1.5), lambda x, w: F.adaptive_avg_pool2d(x, 4)],
)  # fmt: skip
def test_what_is_not_known_goes_to_torchs_exporter(function):
    module = Of(function).eval()
    with pytest.raises(Unknown):
        translate(program(module, X), tensor_of)
    assert load_module(module, X).torch is not None


def test_a_turned_weight_is_read_as_it_lies():
    model = load_module(nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)).eval(), X).model
    nodes = list(model.graph)
    assert [node.op_type for node in nodes].count("Transpose") == 2
    weights = list(model.graph.initializers.values())
    proto = SessionWriter(model).model(nodes, [], list(model.graph.outputs), weights, weights_as_inputs=True)
    assert [node.op_type for node in proto.graph.node].count("FusedMatMul") == 2
    assert all(node.op_type != "Transpose" for node in proto.graph.node)
    turned = next(node for node in nodes if node.op_type == "Transpose").outputs[0]
    proto = SessionWriter(model).model(nodes, [], [turned], weights, weights_as_inputs=True)
    assert [node.op_type for node in proto.graph.node].count("Transpose") == 1  # somebody wants to see it


def test_what_numbers_its_keys_is_no_size():
    module = nn.Linear(3, 4)
    module.labels, module.sizes = {"cat": 0, "dog": 1, "owl": 2}, {"width": 4}
    paths = {slot.path for slot in slots(module)}
    assert ("sizes", "width") in paths and not any(path[0] == "labels" for path in paths)
