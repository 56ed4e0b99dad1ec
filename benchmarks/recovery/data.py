"""Fashion-MNIST as Debian packages it, or a CIFAR-10 folder ("python version") that the user has."""

from __future__ import annotations

import gzip
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

#: Mean and standard deviation of each channel of the training images, in [0, 1].
STATISTICS = {1: ((0.2860,), (0.3530,)), 3: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))}


class DatasetError(Exception):
    """The data set is missing or not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """Images and labels.

    Attributes
    ----------
    images
        uint8[n, channels, height, width]
    labels
        int64[n], class numbers from 0
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def normalised(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Images ``start`` to ``stop`` as the networks take them: float32, zero mean and unit deviation."""
        return normalise(self.images[start:stop])


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8[n, channels, h, w] to float32 with the training set's channel means 0 and deviations 1."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in STATISTICS[images.shape[1]])
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def load(folder: str | Path | None = None) -> tuple[Split, Split]:
    """Training and test split.

    Parameters
    ----------
    folder
        A folder with Fashion-MNIST's four idx files (plain or .gz) or with CIFAR-10's ``data_batch_1`` .. ``5`` and
        ``test_batch``. Default: where Debian's package puts Fashion-MNIST.
    """
    path = Path(folder) if folder is not None else FASHION_MNIST
    if (path / "data_batch_1").is_file():
        return _cifar(path, [f"data_batch_{i}" for i in range(1, 6)]), _cifar(path, ["test_batch"])
    if not any(path.glob("train-images-idx3-ubyte*")):
        raise DatasetError(
            f"no data set in '{path}': there is neither 'train-images-idx3-ubyte.gz' nor 'data_batch_1'. "
            "For Fashion-MNIST run: apt-get install dataset-fashion-mnist. "
            "For CIFAR-10 give the unpacked folder 'cifar-10-batches-py'."
        )
    return _idx_split(path, "train"), _idx_split(path, "t10k")


def _idx_split(folder: Path, name: str) -> Split:
    images = _idx(folder, f"{name}-images-idx3-ubyte", 3)
    labels = _idx(folder, f"{name}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise DatasetError(f"'{folder}': {len(images)} {name} images but {len(labels)} labels")
    return Split(images[:, None], labels.astype(np.int64))


def _idx(folder: Path, name: str, rank: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes: two zero bytes, the type 8, the rank, the sizes (big-endian int32), the data."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise DatasetError(f"'{folder / name}.gz' is missing; run: apt-get install --reinstall dataset-fashion-mnist")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DatasetError(f"'{path}' cannot be read: {error}") from error
    start = 4 + 4 * rank
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, rank)):
        raise DatasetError(f"'{path}' is not an idx file of unsigned bytes with {rank} axes")
    shape = struct.unpack(f">{rank}i", raw[4:start])
    if len(raw) - start != int(np.prod(shape)):
        raise DatasetError(f"'{path}' holds {len(raw) - start} bytes where its header {shape} needs {np.prod(shape)}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _cifar(folder: Path, names: list[str]) -> Split:
    images, labels = [], []
    for name in names:
        if not (folder / name).is_file():
            raise DatasetError(f"'{folder / name}' is missing: unpack the whole of cifar-10-python.tar.gz")
        with (folder / name).open("rb") as file:
            batch = _PlainUnpickler(file, encoding="latin1").load()
        images.append(np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32))
        labels.append(np.asarray(batch["labels"], np.int64))
    return Split(np.concatenate(images), np.concatenate(labels))


class _PlainUnpickler(pickle.Unpickler):
    """CIFAR-10 comes as pickles, which can run code: only what rebuilds a numpy array is let through."""

    _ALLOWED = frozenset({("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> object:
        array = module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct"
        if array or (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        raise DatasetError(f"a CIFAR-10 file asks for {module}.{name}, which no CIFAR-10 file needs: not loaded")
