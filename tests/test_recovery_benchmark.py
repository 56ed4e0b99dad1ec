"""The recovery benchmark's own parts: reading data sets, resumable results, tables, the peer's search."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.recovery import data, files, report, run


def write_idx(path: Path, array: np.ndarray, cut: int = 0) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
    raw = header + array.tobytes()
    path.write_bytes(gzip.compress(raw[: len(raw) - cut]))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, n in (("train", 6), ("t10k", 4)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28), np.uint8))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8))
    return tmp_path


def test_idx_files_are_read(fashion: Path) -> None:
    train, test = data.load(fashion)
    assert train.images.shape == (6, 1, 28, 28) and train.images.dtype == np.uint8
    assert test.labels.tolist() == [0, 1, 2, 3] and test.labels.dtype == np.int64
    raw = gzip.decompress((fashion / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert test.images.tobytes() == raw[16:]


def test_normalised_images_have_the_stated_statistics() -> None:
    images = np.full((2, 3, 4, 4), 255, np.uint8)
    mean, std = (np.asarray(x) for x in data.STATISTICS[3])
    got = data.Split(images, np.zeros(2, np.int64)).normalised(0, 1)
    assert got.shape == (1, 3, 4, 4) and got.dtype == np.float32
    np.testing.assert_allclose(got[0, :, 0, 0], (1 - mean) / std, rtol=1e-6)


def test_missing_data_say_which_package(tmp_path: Path) -> None:
    with pytest.raises(data.DatasetError, match="apt-get install dataset-fashion-mnist"):
        data.load(tmp_path)


def test_truncated_idx_file_is_refused(fashion: Path) -> None:
    write_idx(fashion / "train-images-idx3-ubyte.gz", np.zeros((6, 28, 28), np.uint8), cut=1)
    with pytest.raises(data.DatasetError, match=r"4703 bytes.*4704"):
        data.load(fashion)


def test_images_and_labels_must_be_as_many(fashion: Path) -> None:
    write_idx(fashion / "train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(data.DatasetError, match="6 train images but 5 labels"):
        data.load(fashion)


def test_cifar_folder_is_read_and_its_pickles_cannot_run_code(tmp_path: Path) -> None:
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = {"data": np.full((2, 3072), i, np.uint8), "labels": [i, 9]}
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    train, test = data.load(tmp_path)
    assert train.images.shape == (10, 3, 32, 32) and train.images[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert test.labels.tolist() == [5, 9]
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Path("x"), "labels": []}))
    with pytest.raises(data.DatasetError, match="pathlib"):
        data.load(tmp_path)


def test_notes_are_kept_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    files.note(path, "a", {"x": 1})
    files.note(path, "b", {"x": 2})
    files.note(path, "a", {"x": 3})
    assert json.loads(path.read_text()) == {"a": {"x": 3}, "b": {"x": 2}}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_random_is_averaged_over_seeds_and_refusals_are_left_out() -> None:
    results = {"resnet20/bn": {"accuracy": 0.9}}
    for seed, accuracy in ((0, 0.8), (1, 0.7)):
        results[run.Cell("resnet20", "bn", 0.5, "random", "ls", "global", seed).key] = {"accuracy": accuracy, "macs": 0.5}
    results[run.Cell("resnet20", "bn", 0.5, "random", "ls", "global", 2).key] = {"refused": "why"}
    point = report.ours(results, "resnet20", "bn", 0.5, "random", "ls", "global")
    assert point is not None and point.lost == pytest.approx(15)
    assert report.ours(results, "resnet20", "bn", 0.5, "random", "bn", "global") is None


def test_table_names_a_missed_budget() -> None:
    results = {"resnet20/bn": {"accuracy": 0.9}}
    results[run.Cell("resnet20", "bn", 0.5, "l1", "none", "global").key] = {"accuracy": 0.88, "macs": 0.504}
    peers = {"resnet20/uniform/0.5": {"macs": 0.58, "none": 0.5, "bn": 0.85}}
    text = report.by_recovery(results, peers, "l1", "global", "bn")
    assert "| resnet20 | 0.5 | 2.0 | - | - | - | 40.0 (at 0.58) | 5.0 (at 0.58) | - | - |" in text
    assert "0.65" not in text


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = {"resnet20/bn": {"accuracy": 0.9}}
    for budget in run.BUDGETS:
        results[run.Cell("resnet20", "bn", budget, "l1", "none", "global").key] = {"accuracy": 0.5, "macs": budget}
    report.plot(results, {}, "l1", "global", tmp_path / "img" / "plot.svg")
    assert "resnet20" in (tmp_path / "img" / "plot.svg").read_text()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "bn") for name in ("resnet20", "resnet56", "densenet22", "vgg16_slim", "mobilenetv2")),
        pytest.param("vgg16_slim", "folded", marks=pytest.mark.slow),
        pytest.param("densenet22", "folded", marks=pytest.mark.slow),
    ],
)
def test_exports_equal_torch_and_are_counted_alike(name: str, form: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from benchmarks.recovery.export import export
    from benchmarks.recovery.nets import build
    from benchmarks.recovery.torch_pruning_peer import conv_macs, model_macs, reestimate

    torch.manual_seed(0)
    net = build(name, 1, 10)
    images = torch.randn(32, 1, 28, 28)
    net = reestimate(net, images, passes=1, batch=16)
    with torch.no_grad():
        expected = net(images[:5]).numpy()
    export(net, form, tmp_path / "net.onnx", images[:2].numpy())
    np.testing.assert_allclose(files.logits(tmp_path / "net.onnx", images[:5].numpy()), expected, atol=1e-4)
    assert conv_macs(net, images[:1]) == model_macs(net, images[:2].numpy())


def test_reestimated_statistics_are_those_of_the_images() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.recovery.torch_pruning_peer import reestimate

    images = torch.randn(256, 3, 6, 6) * 2 + 5
    norm = reestimate(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), images, passes=2, batch=128)[0]
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var, images.var((0, 2, 3)), rtol=1e-2, atol=0)


def test_search_never_goes_below_the_budget_by_more_than_a_hundredth() -> None:
    pytest.importorskip("torch")
    from benchmarks.recovery.torch_pruning_peer import search

    stairs = search(lambda ratio: round((1 - ratio) * 16), lambda width: width * width, 128)  # type: ignore[arg-type,return-value]
    assert stairs == 12  # 11 * 11 = 121 is below 0.99 * 128


def test_training_that_was_stopped_ends_where_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.recovery import train

    rng = np.random.default_rng(0)
    split = data.Split(rng.integers(0, 256, (16, 1, 14, 14), np.uint8), np.arange(16) % 2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    train.train("resnet20", (split, split), 2, whole, batch=2, low_size=12)
    shuffle, calls = torch.randperm, []

    def stop_in_second_epoch(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return shuffle(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "randperm", stop_in_second_epoch)
        train.train("resnet20", (split, split), 2, stopped, batch=2, low_size=12)
    train.train("resnet20", (split, split), 2, stopped, batch=2, low_size=12)
    states = [torch.load(folder / "resnet20.pt", weights_only=True) for folder in (whole, stopped)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=0)
    train.train("resnet20", (split, split), 1, stopped, more=True, batch=2)
    assert files.read(stopped / "training.json")["resnet20"]["cycles"] == [2, 1]
    assert sorted(p.name for p in stopped.iterdir()) == ["resnet20.pt", "training.json"]


def test_shipped_networks_are_what_training_left_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    from benchmarks.recovery import pack
    from benchmarks.recovery.nets import build
    from benchmarks.recovery.train import restore

    torch.manual_seed(0)
    net = build("resnet20", 1, 10)
    torch.save(net.state_dict(), tmp_path / "resnet20.pt")
    monkeypatch.setattr(pack, "SHIPPED", tmp_path / "shipped")
    trained = restore("resnet20", tmp_path)
    assert not torch.equal(trained.classifier.weight, net.classifier.weight)  # rounded
    torch.testing.assert_close(trained.classifier.weight, net.classifier.weight, rtol=1e-3, atol=1e-6)

    (tmp_path / "shipped").mkdir()
    safetensors.save_file(pack.stored(net.state_dict()), tmp_path / "shipped" / "resnet20.safetensors")
    (tmp_path / "resnet20.pt").unlink()
    shipped = restore("resnet20", tmp_path)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, shipped.state_dict()[name]), name
    (tmp_path / "shipped" / "resnet20.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.recovery\.train resnet20"):
        restore("resnet20", tmp_path)


def test_every_network_of_the_tables_is_shipped() -> None:
    there = {path.stem for path in files.SHIPPED.glob("*.safetensors")}
    assert there == set(run.NETS)
    assert sum(path.stat().st_size for path in files.SHIPPED.iterdir()) < 12e6
