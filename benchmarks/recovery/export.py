"""Trained networks to ONNX, with batch norm kept and folded: ``python -m benchmarks.recovery.export resnet20``.

    NAME.bn.onnx       torchscript exporter, nothing folded: BatchNormalization nodes in inference mode
    NAME.folded.onnx   dynamo exporter, batch norm folded into the convolutions before it
    train_512.npz      ``input``: float32[512, c, h, w], normalised training images without labels (calibration)
    test.npz           ``input``: float32[n, c, h, w] and ``labels``: int64[n], the test split

Both files take any batch size, and each is run in ONNX Runtime on the test split and compared with torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.recovery.data import Split, load
from benchmarks.recovery.files import CACHE, CALIBRATION, FORMS, SHIPPED, logits, note
from benchmarks.recovery.nets import NETS
from benchmarks.recovery.train import restore

OPSET = 17
TOLERANCE = 1e-4


def export(net: nn.Module, form: str, path: Path, example: NDArray[np.float32]) -> None:
    """Write ``net``, in evaluation mode, with an open batch axis.

    Parameters
    ----------
    form
        ``bn`` or ``folded``.
    example
        float32[n, c, h, w], n > 1: the exporter takes an axis of size 1 for a constant.
    """
    net.eval()
    inputs = (torch.from_numpy(example),)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        if form == "bn":
            torch.onnx.export(
                net, inputs, path, dynamo=False, opset_version=OPSET, do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                **names,
            )  # fmt: skip
        else:
            torch.onnx.export(
                net, inputs, path, dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), external_data=False,
                verbose=False, **names,
            )  # fmt: skip


def export_checked(name: str, net: nn.Module, test: Split, folder: Path) -> dict[str, float]:
    """Write both forms of one network, prove that they equal torch on 500 images, and measure their accuracy."""
    images = test.normalised()
    with torch.inference_mode():
        expected = net(torch.from_numpy(images[:500])).numpy()
    found: dict[str, float] = {}
    for form in FORMS:
        path = folder / f"{name}.{form}.onnx"
        export(net, form, path, images[:2])
        ops = [node.op_type for node in onnx.load(path).graph.node]
        got = logits(path, images)
        error = float(np.abs(got[:500] - expected).max() / np.abs(expected).max())
        if error > TOLERANCE:
            path.unlink()
            raise RuntimeError(f"{path.name} differs from torch by {error:.1e} of the largest logit")
        found |= {
            f"{form}.accuracy": float((got.argmax(1) == test.labels).mean()), f"{form}.error": error,
            f"{form}.batch_norms": ops.count("BatchNormalization"), f"{form}.convs": ops.count("Conv"),
        }  # fmt: skip
    return found


def write_data(train: Split, test: Split, folder: Path) -> None:
    """The calibration images, drawn from the training split by a fixed seed, and the test split."""
    chosen = np.sort(np.random.default_rng(0).choice(len(train), CALIBRATION, replace=False))
    np.savez(folder / f"train_{CALIBRATION}.npz", input=Split(train.images[chosen], train.labels[chosen]).normalised())
    np.savez(folder / "test.npz", input=test.normalised(), labels=test.labels)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="*", help=f"any of {', '.join(NETS)}; default: all that are trained or shipped")
    parser.add_argument("--data", help="folder with Fashion-MNIST's idx files or CIFAR-10's batches")
    parser.add_argument("--copy-to", type=Path, help="a second folder for the files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    CACHE.mkdir(parents=True, exist_ok=True)
    train, test = load(options.data)
    write_data(train, test, CACHE)
    files = [CACHE / f"train_{CALIBRATION}.npz", CACHE / "test.npz"]
    there = [name for name in NETS if (CACHE / f"{name}.pt").is_file() or (SHIPPED / f"{name}.safetensors").is_file()]
    for name in options.net or there:
        found = export_checked(name, restore(name), test, CACHE)
        note(CACHE / "exports.json", name, found)
        print(name, json.dumps(found), flush=True)
        files += [CACHE / f"{name}.{form}.onnx" for form in FORMS]
    if options.copy_to is not None:
        options.copy_to.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy2(file, options.copy_to)


if __name__ == "__main__":
    main()
