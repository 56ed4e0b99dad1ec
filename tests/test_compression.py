"""Layers with very many inputs: principal components a unit, exact where there is room for all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

import graphprune as gp
from graphprune import moments
from graphprune.compression import Compression
from tests.patterns.build import Net

RNG = np.random.default_rng(0)
UNITS = np.repeat(np.arange(5), 4)[:, None]


def learned(width: int, rows: np.ndarray) -> Compression:
    packed = Compression.of(UNITS, 5 * width)
    assert packed is not None
    for part in np.array_split(rows, 3):
        packed.add(part)
    packed.finish()
    return packed


def test_full_width_loses_nothing() -> None:
    rows = RNG.normal(size=(200, 20)) @ RNG.normal(size=(20, 20))
    packed, weight = learned(4, rows), RNG.normal(size=(3, 20))
    assert np.allclose(packed.project(rows) @ packed.project(weight).T, rows @ weight.T)
    assert packed.spread(UNITS)[:, 0].tolist() == UNITS[:, 0].tolist()
    change = RNG.normal(size=(3, 20))
    lifted = packed.lift(packed.project(change), np.zeros(20, np.bool_), weight)
    assert np.allclose(lifted, weight + change, atol=1e-5)
    assert np.allclose(packed.mean, rows.mean(0))


def test_leading_components_by_hand() -> None:
    """Four inputs of a unit that are multiples of one number have one component, which says all."""
    number = RNG.normal(size=(300, 5))
    rows = (number[:, :, None] * np.array([1, 2, -1, 0.5])).reshape(300, 20) + 3
    packed, weight = learned(1, rows), RNG.normal(size=(2, 20))
    centred = rows - rows.mean(0)
    assert np.allclose(packed.project(centred) @ packed.project(weight).T, centred @ weight.T, atol=1e-3)
    lifted = packed.lift(np.zeros((2, 5)), np.array([False, True, False, False, False]), weight)
    assert not lifted[:, 4:8].any()
    assert np.allclose(lifted[:, 8:], weight[:, 8:], atol=1e-6)


def test_more_units_than_room() -> None:
    assert Compression.of(np.arange(20)[:, None], 19) is None
    packed = Compression.of(np.arange(20)[:, None], 20)
    assert packed is not None and len(packed.blocks) == 20


def flattened() -> ModelProto:
    """A dense layer behind a flattened map of 12 channels of 4 x 4; half of the channels are sums of the others."""
    g = Net()
    x = g.x("N", 3, 4, 4)
    base = RNG.normal(size=(6, 3, 1, 1))
    sums = np.einsum("ab,bikl->aikl", RNG.normal(size=(6, 6)), base)
    y = g.Conv(x, g.f(np.concatenate([base, sums]), "a.w"), g.f(np.zeros(12), "a.b"))
    y = g.Gemm(g.Flatten(y), g.f(RNG.normal(size=(192, 7)) / 14, "fc.w"), g.f(np.zeros(7), "fc.b"))
    g.y(y)
    return g.model()


@pytest.mark.parametrize("room", [192, 48])
def test_a_network_is_cut_as_if_there_were_room(room: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Redundant channels go for nothing, whether their inputs are seen whole or by a few components each."""
    np.save(tmp_path / "x.npy", RNG.normal(size=(1500, 3, 4, 4)).astype(np.float32))
    source = flattened()
    settings = {"budget": "params=0.6", "data": tmp_path / "x.npy", "samples": 1500}
    plain = gp.prune(source, passes=["obs", "recover"], **settings)
    monkeypatch.setattr(moments, "LARGEST", room)
    packed = gp.prune(source, passes=["obs", "recover"], **settings)
    consumer = packed.state.statistics.consumers[0]
    assert (consumer.inputs.compression is None) == (room == 192)
    assert consumer.weight.shape[2] == room
    assert not any("too many" in note for note in packed.plan.notes)
    assert packed.plan.fidelity["divergence"] < 1e-3
    assert len(packed.plan.tensors["a.w"]["kept"]["0"]) == len(plain.plan.tensors["a.w"]["kept"]["0"])
