"""Criteria that look at activations, against numbers worked by hand and plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from graphprune.backends.ort import Runner
from graphprune.errors import UsageError
from graphprune.featuremaps import Moments, as_maps, tells_apart
from graphprune.passes.chip import independence
from graphprune.passes.entropy_luo import histogram_entropy
from graphprune.passes.hrank import map_ranks
from tests.criteria_nets import IMAGES, concat, coupling_of, grouped, maps_net, says_l1, scored, trunk, units_of
from tests.nets import with_weights

LN2 = math.log(2)


def on_maps(spec: str, tmp_path: Path, w2: list[list[float]] | None = None) -> list[float]:
    scores, result = scored(maps_net(w2), spec, IMAGES, tmp_path)
    assert not says_l1(result, spec.partition("{")[0])
    return scores[units_of(result, "w1", 0)].tolist()


def test_hrank(tmp_path: Path) -> None:
    # Ranks behind the Relu: 2, 1, 1 and 2, 0, 1.
    assert on_maps("hrank", tmp_path) == [2, 0.5, 1]
    # Before it the third map is [-1 -1; 0 2], of rank 2.
    assert on_maps("hrank{reading=conv}", tmp_path) == [2, 0.5, 1.5]


def test_apoz(tmp_path: Path) -> None:
    # Of 8 values each: 4 + 2, 4 + 0 and 1 + 4 are not zero.
    assert on_maps("apoz", tmp_path) == [6 / 8, 4 / 8, 5 / 8]


def test_activation(tmp_path: Path) -> None:
    # Sums behind the Relu: 10 + 2, 4 + 0, 2 + 9; of squares: 30 + 2, 4, 4 + 25.
    assert on_maps("activation", tmp_path) == pytest.approx([12 / 9, 4 / 9, 11 / 9])
    roots = [math.sqrt(32), 2, math.sqrt(29)]
    assert on_maps("activation{norm=l2}", tmp_path) == pytest.approx([3 * r / sum(roots) for r in roots])


def test_variance(tmp_path: Path) -> None:
    # E[a^2] - E[a]^2 of 8 values: 4 - 1.5^2, 0.5 - 0.5^2, 29/8 - (11/8)^2.
    variances = [1.75, 0.25, 29 / 8 - (11 / 8) ** 2]
    assert on_maps("variance", tmp_path) == pytest.approx([3 * v / sum(variances) for v in variances])


def test_wanda(tmp_path: Path) -> None:
    # Columns of w2 of norms 5, 1 and 2.
    products = [math.sqrt(32) * 5, 2 * 1, math.sqrt(29) * 2]
    assert on_maps("wanda", tmp_path, [[3, 1, 0], [4, 0, 2]]) == pytest.approx([3 * p / sum(products) for p in products])


def test_entropy_with_mean_and_variance(tmp_path: Path) -> None:
    # z = (x - mean)^2 of every map, before the Relu; H of its softmax, summed over the images.
    entropies = []
    for channel in range(3):
        total = 0.0
        for image in range(2):
            x = IMAGES[image, channel].reshape(-1).astype(float)
            p = np.exp((x - x.mean()) ** 2)
            p /= p.sum()
            total -= float((p * np.log(p)).sum())
        entropies.append(total)
    e = np.array(entropies)
    low, high = e.min(), e.max()
    assert on_maps("entropy", tmp_path) == pytest.approx(1 - (e - low) / (high - low))
    assert on_maps("entropy{normalize=mean-var,keep=high}", tmp_path) == pytest.approx((e - e.mean()) / e.var())


def test_entropy_luo_histogram() -> None:
    values = np.array([[0, 0, 5, 1e-9], [0, 1, 5, 0], [1, 2, 5, 0], [1, 3, 5, 4]], float)
    # Two bins: 0 0 | 1 1; 0 1 | 2 3; constant; three in the first, one in the last.
    last = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert histogram_entropy(values, 2) == pytest.approx([LN2, LN2, 0, last])
    assert histogram_entropy(values, 100) == pytest.approx([LN2, math.log(4), 0, last])


def test_entropy_luo(tmp_path: Path) -> None:
    # Means of the maps, image by image: 1 1 2 2; 1 2 3 4; 5 5 5 5.
    means = np.array([[1, 1, 5], [1, 2, 5], [2, 3, 5], [2, 4, 5]], np.float32)
    bumps = np.array([[-1, 1], [0.5, -0.5]])
    scores, result = scored(maps_net(), "entropy-luo", means[:, :, None, None] + bumps, tmp_path)
    assert scores[units_of(result, "w1", 0)] == pytest.approx([LN2, math.log(4), 0])
    # One image: every histogram is one bin.
    _, result = scored(maps_net(), "entropy-luo", IMAGES[:1], tmp_path)
    assert says_l1(result, "entropy-luo")


def test_chip_by_hand() -> None:
    # Orthogonal rows of norms 5, 1, 2: each loses its own. Two equal rows: sqrt 2 becomes 1.
    full, loss = independence(np.array([[3.0, 4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]]), np.eye(3, dtype=bool))
    assert full == pytest.approx(8) and loss == pytest.approx([5, 1, 2])
    full, loss = independence(np.array([[0.6, 0.8, 0], [0.6, 0.8, 0]]), np.eye(2, dtype=bool))
    assert full == pytest.approx(math.sqrt(2)) and loss == pytest.approx([math.sqrt(2) - 1] * 2)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_chip_is_what_singular_values_say(shape: tuple[int, int]) -> None:
    """Wide and tall matrices, units of one and of two channels."""
    maps = np.maximum(np.random.default_rng(1).standard_normal(shape), 0)
    owned = np.eye(shape[0], dtype=bool)
    owned[0, 3] = True
    full, loss = independence(maps, owned)
    assert full == pytest.approx(np.linalg.norm(maps, "nuc"))
    for rows, lost in zip(owned, loss, strict=True):
        left = maps.copy()
        left[rows] = 0
        assert lost == pytest.approx(np.linalg.norm(maps, "nuc") - np.linalg.norm(left, "nuc"))


def test_chip(tmp_path: Path) -> None:
    lost, whole = np.zeros(3), 0.0
    for image in IMAGES:
        maps = np.maximum(image, 0).reshape(3, 4)
        whole += np.linalg.norm(maps, "nuc")
        for i in range(3):
            left = maps.copy()
            left[i] = 0
            lost[i] += np.linalg.norm(maps, "nuc") - np.linalg.norm(left, "nuc")
    assert on_maps("chip", tmp_path) == pytest.approx(lost / lost.mean(), rel=1e-5)


# -- where maps are read -----------------------------------------------------------------------------------------------


def test_relus_that_never_clip_say_nothing(tmp_path: Path) -> None:
    scores, result = scored(maps_net([[1, 2, 3]]), "apoz", np.abs(IMAGES) + 1, tmp_path)
    assert says_l1(result, "apoz") and np.argsort(scores[units_of(result, "w1", 0)]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("spec", ["entropy", "hrank", "variance", "apoz", "wanda", "activation", "entropy-luo", "chip"])
def test_one_position_one_image(spec: str, tmp_path: Path) -> None:
    """HW = 1 and a single sample: maps, ranks, variances and histograms say nothing, magnitudes do."""
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[N, 3] y) { a = Gemm(x, w1)  r = Relu(a)  y = Gemm(r, w2) }""",
        w1=(4, 8), w2=(8, 3),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((1, 4))
    _, result = scored(model, spec, x, tmp_path)
    assert says_l1(result, spec) == (spec in ("entropy", "hrank", "variance", "entropy-luo"))


def test_behind_norm_and_activation(tmp_path: Path) -> None:
    """A BatchNormalization that turns signs, and SiLU as two nodes: each reading sees its own value."""
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 2, 2] x) => (float[N, 2, 2, 2] y) {
            a = Conv(x, w1)
            n = BatchNormalization(a, gamma, beta, mean, variance)
            g = Sigmoid(n)
            s = Mul(n, g)
            y = Conv(s, w2)
        }""",
        w1=np.eye(3, dtype=np.float32)[:, :, None, None], gamma=np.float32([-1, 2, 0.5]), beta=np.float32([0, 1, 0]),
        mean=np.float32([0, 0, 0]), variance=np.float32([1, 1, 4]), w2=(2, 3, 1, 1),
    )  # fmt: skip
    scores, result = scored(model, "entropy{reading=act}", IMAGES, tmp_path)
    values = Runner(result.state.model, outputs=["a", "n", "s"]).run({"x": IMAGES})
    for reading, name in (("conv", "a"), ("bn", "n"), ("act", "s")):
        scores, result = scored(model, f"entropy{{reading={reading}}}", IMAGES, tmp_path)
        e = np.zeros(3)
        for image in values[name].astype(float):
            for c in range(3):
                p = np.exp((image[c] - image[c].mean()) ** 2)
                p /= p.sum()
                e[c] -= (p * np.log(p)).sum()
        assert scores[units_of(result, "w1", 0)] == pytest.approx(1 - (e - e.min()) / (e.max() - e.min()), abs=1e-5)


def test_residual_trunk_is_read_by_both_its_consumers(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((3, 3, 4, 4)).astype(np.float32)
    scores, result = scored(trunk(), "activation", x, tmp_path)
    values = Runner(result.state.model, outputs=["r", "s"]).run({"x": x})
    wanted = np.zeros(4)
    for name in ("r", "s"):
        means = np.array([np.abs(values[name][:, c]).mean() for c in range(4)])
        wanted += means / means.mean() / 2
    assert scores[units_of(result, "w1", 0)] == pytest.approx(wanted, rel=1e-5)


def test_concat_gives_each_branch_its_columns(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((3, 3, 5, 5)).astype(np.float32)
    scores, result = scored(concat(), "wanda", x, tmp_path)
    seen = Runner(result.state.model, outputs=["c"]).run({"x": x})["c"]
    w3 = next(np.asarray(result.state.parameter(v)) for v in coupling_of(result).constants if v.name == "w3")
    products = np.array([np.linalg.norm(seen[:, i]) * np.linalg.norm(w3[:, i]) for i in range(5)])
    units = np.concatenate([units_of(result, "w1", 0), units_of(result, "w2", 0)])
    assert len(set(units.tolist())) == 5
    assert scores[units] == pytest.approx(products / products.mean(), rel=1e-5)


def test_wanda_of_grouped_and_depthwise_layers(tmp_path: Path) -> None:
    """A unit of the depthwise convolution is read by that and by the next; a channel of a group by the outputs of its group."""
    x = np.random.default_rng(2).standard_normal((2, 3, 5, 5)).astype(np.float32)
    scores, result = scored(grouped(), "wanda", x, tmp_path)
    coupling = coupling_of(result)
    seen = Runner(result.state.model, outputs=["r", "s", "t"]).run({"x": x})
    w = {v.name: np.asarray(result.state.parameter(v), float) for v in coupling.constants}
    columns = {
        "r": [np.linalg.norm(w["w2"][:3, i] if i < 2 else w["w2"][3:, i - 2]) for i in range(4)],
        "s": [np.linalg.norm(w["w3"][i]) for i in range(6)],
        "t": [np.linalg.norm(w["w4"][:, i]) for i in range(6)],
    }
    total, members = np.zeros(coupling.n_units), np.zeros(coupling.n_units)
    for name, norms in columns.items():
        products = np.array([np.linalg.norm(seen[name][:, i]) * norm for i, norm in enumerate(norms)])
        products /= products.mean()
        rows = coupling.rows(next(v for v in coupling.coupler.axes if v.name == name), 1)
        for unit in np.unique(rows[rows >= 0]):
            total[unit] += products[(rows == unit).any(axis=1)].mean()
            members[unit] += 1
    assert members.min() > 0
    assert scores == pytest.approx(total / members, rel=1e-5)


def test_wanda_of_transposed_convolutions_and_flattened_maps(tmp_path: Path) -> None:
    """Weights [in, out, k, k]; and a matrix product that reads each channel at four positions."""
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 1, 1] x) => (float[N, 5] y) {
            a = Conv(x, w1)
            t = ConvTranspose<strides=[2, 2]>(a, w2)
            f = Flatten(t)
            y = MatMul(f, w3)
        }""",
        w1=(6, 3, 1, 1), w2=(6, 4, 2, 2), w3=(16, 5),
    )  # fmt: skip
    x = np.random.default_rng(2).standard_normal((4, 3, 1, 1)).astype(np.float32)
    scores, result = scored(model, "wanda", x, tmp_path)
    w = {v.name: np.asarray(result.state.parameter(v), float) for v in coupling_of(result).constants}
    seen = Runner(result.state.model, outputs=["a", "f"]).run({"x": x})
    a = np.array([np.linalg.norm(seen["a"][:, i]) * np.linalg.norm(w["w2"][i]) for i in range(6)])
    f = np.array([np.linalg.norm(seen["f"][:, i]) * np.linalg.norm(w["w3"][i]) for i in range(16)])
    assert scores[units_of(result, "w1", 0)] == pytest.approx(a / a.mean(), rel=1e-5)
    assert scores[units_of(result, "w2", 1)] == pytest.approx((f / f.mean()).reshape(4, 4).mean(axis=1), rel=1e-5)


def test_as_maps_and_ranks_of_more_axes() -> None:
    values = np.arange(24.0).reshape(2, 2, 3, 2)
    assert as_maps(values, 3).shape == (2, 2, 6) and as_maps(values, 3)[0, 1].tolist() == [1, 3, 5, 7, 9, 11]
    assert as_maps(values, 0).shape == (1, 2, 12)
    cube = np.zeros((1, 2, 2, 2, 2))
    cube[0, 0, 0, 0, 0] = cube[0, 0, 1, 1, 1] = 1
    assert map_ranks(cube, 1).tolist() == [2, 0]


def test_moments_in_parts() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 7)) + 1e4
    moments = Moments()
    for part in np.split(x, [1, 3]):
        moments.add(part)
    assert moments.mean == pytest.approx(x.mean(axis=(0, 2))) and moments.variance() == pytest.approx(x.var(axis=(0, 2)))


def test_what_says_nothing() -> None:
    assert not tells_apart(np.zeros(3)) and not tells_apart(np.full(3, 1e9)) and not tells_apart(np.array([1, np.inf]))
    assert tells_apart(np.array([0, 1e-30]))


def test_options_are_checked() -> None:
    for spec, message in (("chip{images=0}", "images=0"), ("entropy-luo{bins=1}", "bins=1"), ("hrank{reading=relu}", "conv")):
        with pytest.raises(UsageError, match=message):
            scored(maps_net(), spec)
