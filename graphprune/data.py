"""Calibration data: folders of images, ``.npy`` and ``.npz`` files, or samples made up for the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.arrays import Stored, stored_arrays
from graphprune.errors import DataError, UsageError
from graphprune.images import IMAGE_SUFFIXES, choose, image_samples
from graphprune.inputs import (
    Array,
    Feed,
    Hints,
    InputSpec,
    Samples,
    batched_inputs,
    int_range,
    is_float,
    is_int,
    list_shape,
    parse_shapes,
    resolve_shapes,
)
from graphprune.labels import KEY
from graphprune.synthetic import is_static_batch, synthetic

__all__ = ["Hints", "InputSpec", "Samples", "load", "parse_shapes", "resolve_shapes", "synthetic"]

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})


def load(
    path: str | Path,
    specs: Sequence[InputSpec],
    *,
    n: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    batch: int = 1,
    hints: Hints | None = None,
) -> Samples:
    """Samples for a model from files.

    Parameters
    ----------
    path
        A folder of images (searched recursively) or one image; a ``.npy`` file whose first axis counts
        samples, for a model with one input; a ``.npz`` file with one array per input, by name, others being
        left alone; or a folder of such files. Arrays are fed as they are, apart from a safe cast.
    specs
        The model's inputs.
    n
        Number of samples wanted; a seeded choice of the files, in sorted order, when there are more.
    mean, std
        Per channel, for pixels of 0..1 (or of 0..255, when any of them is above 2). Default: ImageNet's for
        3 channels, 0.5 for others. Inputs of 8-bit integers take pixels as they are.
    layout
        ``"NCHW"`` or ``"NHWC"``, where it cannot be read off the input's shape.
    shapes
        Input name to concrete shape, for dynamic axes. A dynamic height and width default to the median size
        of the images, their long side at most 640, in multiples of 32.
    seed
        Decides which files are chosen.
    batch
        Samples per feed where the model's batch axis is dynamic.
    hints
        For inputs beside the image, which are made up: see :func:`graphprune.synthetic.synthetic`.

    Raises
    ------
    DataError
        Data that does not fit the model: names the input, what it expects, what was found, what to do.
    UsageError
        Options that contradict each other or the model.
    """
    path = Path(path).expanduser()
    if n < 1 or seed < 0 or batch < 1:
        raise UsageError(f"samples and batch must be 1 or more and the seed 0 or more, not {n}, {batch} and {seed}")
    files, is_image = find_files(path)
    if is_image:
        return image_samples(
            path,
            files,
            specs,
            n=n,
            mean=mean,
            std=std,
            layout=layout,
            shapes=shapes,
            seed=seed,
            batch=batch,
            hints=hints,
        )
    if mean is not None or std is not None or layout is not None:
        raise UsageError(f"--mean, --std and --layout are for images; the arrays in {path} are fed as they are")
    return _array_samples(path, files, specs, n=n, shapes=shapes, seed=seed, batch=batch)


def find_files(path: Path) -> tuple[list[Path], bool]:
    """The data files at a path, sorted, and whether they are images (which win where a folder holds both)."""
    try:
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if not p.name.startswith(".") and p.is_file()]
        elif path.is_file():
            found = [path]
        elif path.exists():
            raise DataError(f"{path} is neither a file nor a folder")
        else:
            raise DataError(f"{path} does not exist: give a folder of images, a .npy or a .npz file")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    images = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [p for p in found if p.suffix.lower() in ARRAY_SUFFIXES]
    if not images and not arrays:
        kinds = ", ".join(sorted(s.lstrip(".") for s in IMAGE_SUFFIXES | ARRAY_SUFFIXES))
        what = "holds no data files" if path.is_dir() else "is not a data file"
        raise DataError(f"{path} {what}: known are {kinds}")
    return images or arrays, bool(images)


@dataclass(frozen=True)
class _File:
    """One data file: the array of every input, and how many samples they hold.

    ``single`` are the inputs whose array is one sample, without an axis that counts samples; ``labels`` an array of whole numbers
    that no input is fed from.
    """

    arrays: Mapping[str, Stored]
    single: frozenset[str]
    rows: int
    labels: Stored | None = None


@dataclass(frozen=True)
class _ArraySource:
    """Samples from array files: sample ``i`` is row ``chosen[i]`` of all files' rows, one after the other."""

    files: tuple[_File, ...]
    specs: tuple[InputSpec, ...]
    chosen: Array
    starts: Array
    #: Labels of arrays are numbers.
    classes: tuple[str, ...] = ()

    def _find(self, index: int) -> tuple[_File, int]:
        """The file that a sample is in, and its row there."""
        row = int(self.chosen[index])
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.files[at], row - int(self.starts[at])

    def label(self, index: int) -> Array | None:
        """A sample's row of the array of labels; None where its file has none."""
        file, row = self._find(index)
        return None if file.labels is None else np.asarray(file.labels.row(row))

    def sample(self, index: int) -> Feed:
        """Read, check and cast one sample."""
        file, row = self._find(index)
        feed = {}
        for spec in self.specs:
            stored = file.arrays[spec.name]
            value = stored.whole() if spec.name in file.single else stored.row(row)
            feed[spec.name] = _cast(value, spec, f"sample {row} of {stored}")
        return feed


def _cast(value: Array, spec: InputSpec, where: str) -> Array:
    """A sample in the input's type; NaN and values that the type cannot hold are errors."""
    if is_float(value.dtype) and np.isnan(value).any():
        raise DataError(f"{where} has NaN, for input {spec}: remove the sample or replace the values")
    if value.dtype == spec.dtype or spec.dtype.kind == "O":
        return value.astype(spec.dtype)
    with np.errstate(over="ignore"):
        cast = value.astype(spec.dtype)
    limits = int_range(spec.dtype)
    if limits is not None:
        # 4-bit types have no min and max of their own.
        wide = value if value.dtype.kind in "biu" else value.astype(np.int64)
        kept = limits[0] <= int(wide.min()) and int(wide.max()) <= limits[1]
    else:
        kept = not is_float(spec.dtype) or not np.isinf(cast).any() or bool(np.isinf(value).any())
    if not kept:
        low, high = value.min(), value.max()
        raise DataError(f"{where} has values from {low} to {high}, which input {spec} cannot hold: rescale them")
    return cast


def _rank_of_type(dtype: np.dtype[Any]) -> int:
    """Types in the order in which a cast is safe: bool, integers, floats, complex; -1 for others."""
    if dtype.kind == "b":
        return 0
    if is_int(dtype):
        return 1
    if is_float(dtype):
        return 2
    return 3 if dtype.kind == "c" else -1


def _check_type(stored: Stored, spec: InputSpec) -> None:
    if stored.dtype.hasobject:
        raise DataError(
            f"{stored} holds Python objects, which are not loaded, for input {spec}: save plain numbers, as in "
            "np.save(path, np.stack(list_of_arrays))"
        )
    source, target = _rank_of_type(stored.dtype), _rank_of_type(spec.dtype)
    if source == target == -1 and stored.dtype.kind in "UST":
        return
    if source == -1 or source > target:
        raise DataError(
            f"{stored} is {stored.dtype.name}, which cannot be cast safely for input {spec}: "
            f"convert it first, as in array.astype('{spec.dtype.name}')"
        )


def _rows(stored: Stored, spec: InputSpec, batched: bool) -> int | None:
    """Samples in an array, None for one sample without an axis that counts; errors where it does not fit."""
    sample = spec.shape[1:] if batched else spec.shape
    expected = InputSpec("", spec.dtype, sample)
    extra = len(stored.shape) - len(sample)
    found = stored.shape[1:] if extra == 1 else stored.shape
    fits = extra in (0, 1) and all(expected.size(i) in (None, size) for i, size in enumerate(found))
    if fits and 0 in found:
        raise DataError(f"{stored} is empty, {list_shape(stored.shape)}: input {spec} needs data")
    if fits:
        return stored.shape[0] if extra == 1 else None
    advice = f"give {list_shape(('samples', *sample))} or one sample of {list_shape(sample)}"
    if extra not in (0, 1):
        problem = f"has rank {len(stored.shape)}"
    else:
        problem = "has another shape"
        if len(found) == 3 and all(expected.size(i) in (None, found[j]) for i, j in enumerate((2, 0, 1))):
            advice = "its channels come last: write array.transpose(0, 3, 1, 2)"
        elif len(found) == 3 and all(expected.size(i) in (None, found[j]) for i, j in enumerate((1, 2, 0))):
            advice = "its channels come first: write array.transpose(0, 2, 3, 1)"
    raise DataError(f"{stored} {problem}, {list_shape(stored.shape)}, input is {spec}: {advice}")


def _match(path: Path, specs: Sequence[InputSpec], batched: frozenset[str]) -> _File:
    """Find and check the array of every input in one file."""
    found = stored_arrays(path)
    names = ", ".join(spec.name for spec in specs)
    if None in found and len(specs) > 1:
        raise DataError(
            f"{path} holds one array, the model has {len(specs)} inputs ({names}): "
            "give a .npz with one array per input, as in np.savez(path, NAME=array, ...)"
        )
    arrays: dict[str, Stored] = {}
    for spec in specs:
        stored = found.get(spec.name, found.get(None))
        if stored is None and len(specs) == len(found) == 1:
            stored = found.get("arr_0")  # what np.savez(path, array) calls it
        if stored is None:
            holds = ", ".join(map(str, found)) or "nothing"
            raise DataError(
                f"{path} has no array for input {spec}; it holds {holds}: save one array per input, under its name"
            )
        _check_type(stored, spec)
        arrays[spec.name] = stored
    counts = {spec.name: _rows(arrays[spec.name], spec, spec.name in batched) for spec in specs}
    rows = {name: count for name, count in counts.items() if count is not None}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"'{name}' {count}" for name, count in rows.items())
        raise DataError(f"{path} has different numbers of samples for its inputs: {listed}")
    if 0 in rows.values():
        raise DataError(f"{path} holds no samples: its first axis has size 0")
    single = frozenset(name for name, count in counts.items() if count is None)
    count = next(iter(rows.values()), 1)
    return _File(arrays, single, count, _labels(found.get(KEY), arrays, count))


def _labels(stored: Stored | None, arrays: Mapping[str, Stored], rows: int) -> Stored | None:
    """The array of labels, where there is one that is no input's."""
    if stored is None or KEY in arrays:
        return None
    if not is_int(stored.dtype) or not stored.shape or stored.shape[0] != rows:
        raise DataError(
            f"{stored} has shape {list_shape(stored.shape)} of {stored.dtype.name}: labels are whole numbers, one row for each of "
            f"the {rows} samples"
        )
    return stored


def _array_samples(
    path: Path,
    paths: Sequence[Path],
    specs: Sequence[InputSpec],
    *,
    n: int,
    shapes: Mapping[str, tuple[int, ...]] | None,
    seed: int,
    batch: int,
) -> Samples:
    """Samples from ``.npy`` and ``.npz`` files; dynamic axes take the sizes of the first file's arrays."""
    shapes = dict(shapes or {})
    size, batched = batched_inputs(specs, resolve_shapes(specs, shapes, batch=batch))
    files = tuple(_match(file, specs, batched) for file in paths)
    starts = np.cumsum([0, *(file.rows for file in files)])
    chosen = choose(int(starts[-1]), n, seed)
    wanted = _data_shapes(files, specs, shapes, batched, batch=min(size, len(chosen)))
    resolved = resolve_shapes(specs, wanted)
    static = is_static_batch(specs, batched)
    size = batched_inputs(specs, resolved)[0] if static or batched else 1
    source = _ArraySource(files, tuple(specs), chosen, starts)
    where = f"{path} ({len(files)} files)" if len(files) > 1 else f"{path}"
    of = f" of {starts[-1]}" if len(chosen) < starts[-1] else ""
    return Samples(
        source,
        len(chosen),
        resolved,
        batched=batched,
        batch=size,
        static=static,
        description=f"{len(chosen)}{of} samples from {where}",
    )


def _data_shapes(
    files: Sequence[_File],
    specs: Sequence[InputSpec],
    shapes: Mapping[str, tuple[int, ...]],
    batched: frozenset[str],
    *,
    batch: int,
) -> dict[str, tuple[int, ...]]:
    """Shape of every input as the data has it; all samples must agree, also with the shapes asked for."""
    wanted: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        for file in files:
            stored = file.arrays[spec.name]
            sample = stored.shape if spec.name in file.single else stored.shape[1:]
            asked = shapes.get(spec.name)
            if asked is not None and sample != (asked[1:] if spec.name in batched else asked):
                raise DataError(
                    f"{stored} has samples of {list_shape(sample)}, --shape asks for {list_shape(asked)} for "
                    f"input {spec}: leave --shape out, the sizes are taken from the data"
                )
            full = (spec.size(0) or batch, *sample) if spec.name in batched else sample
            seen = wanted.setdefault(spec.name, full)[len(full) - len(sample) :]
            if seen != sample:
                raise DataError(
                    f"{stored} has samples of {list_shape(sample)}, the files before it {list_shape(seen)}, "
                    f"for input {spec}: bring them to one size"
                )
    return wanted
