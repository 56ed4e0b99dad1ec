"""Calibration data from files: folders of images, arrays, and what is refused of them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from graphprune.data import InputSpec, load
from graphprune.errors import DataError, UsageError
from graphprune.inputs import Array
from tests.input_specs import EXAMPLE, F32, I64, IMAGE, only, spec

# ---------------------------------------------------------------------------------------------- images


def save(path: Path, pixels: Array, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight one-colour images of several sizes, modes and formats in nested folders, one hidden file."""
    folder = tmp_path / "photos"
    for index, suffix in enumerate(["png", "JPG", "jpeg", "bmp", "webp", "tif", "gif", "png"]):
        pixels = np.full((40 + index, 60, 3), 30 * index, np.uint8)
        save(folder / f"d{index % 2}" / f"{index}.{suffix}", pixels)
    (folder / "._0.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("no image either")
    return folder


def test_folder_of_images(photos: Path) -> None:
    samples = load(photos, [IMAGE], n=100)
    values = [array.mean() for array in only(samples)]
    assert len(samples) == 8 and {array.shape for array in only(samples)} == {(1, 3, 32, 32)}
    mean, std = np.mean([0.485, 0.456, 0.406]), np.mean([0.229, 0.224, 0.225])
    # Sorted by path: d0/0, d0/2, ..., d1/7.
    expected = [(30 * index / 255 - mean) / std for index in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert np.allclose(values, expected, atol=0.1)
    assert "8 images from" in samples.description and "ImageNet" in samples.description


def test_choice_of_images_is_seeded_sorted_and_repeatable(photos: Path) -> None:
    def means(seed: int) -> list[float]:
        return [round(float(array.mean()), 4) for array in only(load(photos, [IMAGE], n=3, seed=seed, std=[1]))]

    assert means(0) == means(0) and len(means(0)) == 3
    assert len({tuple(means(seed)) for seed in range(6)}) > 1
    assert "3 of 8 images" in load(photos, [IMAGE], n=3).description


def test_exact_pixels_layouts_and_types(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    save(tmp_path / "a.png", pixels)
    (raw,) = only(load(tmp_path / "a.png", [spec("x", np.uint8, 1, 6, 8, 3)], n=1))
    assert np.array_equal(raw[0], pixels)
    (signed,) = only(load(tmp_path, [spec("x", np.int8, 1, 3, 6, 8)], n=1))
    assert np.array_equal(signed[0].transpose(1, 2, 0).astype(int), pixels.astype(int) - 128)
    (flat,) = only(load(tmp_path, [spec("x", F32, 1, 3, 6, 8)], n=1, mean=[0.1, 0.2, 0.3], std=[0.5]))
    assert np.allclose(flat[0].transpose(1, 2, 0), (pixels / 255 - [0.1, 0.2, 0.3]) / 0.5, atol=1e-6)
    (bytes_scale,) = only(load(tmp_path, [spec("x", F32, 1, 3, 6, 8)], n=1, mean=[127.5], std=[127.5]))
    assert np.allclose(bytes_scale[0].transpose(1, 2, 0), pixels / 127.5 - 1, atol=1e-6)
    (single,) = only(load(tmp_path, [spec("x", ml_dtypes.bfloat16, 3, 24, 16)], n=1))
    assert single.shape == (3, 24, 16) and single.dtype == ml_dtypes.bfloat16


def test_grey_and_four_channels(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    save(tmp_path / "a.png", grey)
    (one,) = only(load(tmp_path, [spec("x", F32, 1, 1, 8, 8)], n=1))
    assert np.allclose(one[0, 0], grey / 127.5 - 1, atol=1e-6)
    (four,) = only(load(tmp_path, [spec("x", np.uint8, 1, 4, 8, 8)], n=1))
    assert np.array_equal(four[0, 0], grey) and (four[0, 3] == 255).all()


def test_sixteen_bit_images_keep_their_range(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    save(tmp_path / "a.png", wide)
    (image,) = only(load(tmp_path, [spec("x", np.uint8, 1, 1, 8, 8)], n=1))
    assert np.abs(image[0, 0].astype(float) - wide / 257).max() <= 1


def test_resize_keeps_the_centre_and_the_aspect_ratio(tmp_path: Path) -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255
    save(tmp_path / "wide.png", pixels)
    (image,) = only(load(tmp_path, [spec("x", np.uint8, 1, 3, 20, 20)], n=1))
    assert image[0, :, :, 1:-1].min() == 255  # the black thirds left and right are cropped away


def test_upright_by_exif(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate a quarter turn clockwise
    save(tmp_path / "a.png", pixels, exif=exif)
    samples = load(tmp_path, [spec("x", np.uint8, 1, "h", "w", 3)], n=1)
    assert samples.shapes["x"] == (1, 64, 32, 3)
    (image,) = only(samples)
    assert image[0, :30].min() == 255 and image[0, 34:].max() == 0


@pytest.mark.parametrize(
    ("sizes", "given_spec", "shape"),
    [
        ([(100, 200)], spec("x", F32, 1, 3, None, None), (1, 3, 96, 192)),
        ([(1000, 2000)], spec("x", F32, 1, 3, "h", "w"), (1, 3, 320, 640)),
        ([(5, 5)], spec("x", F32, 1, 3, "h", "w"), (1, 3, 32, 32)),
        ([(48, 330)], spec("x", F32, None, 3, 48, None), (1, 3, 48, 320)),
        ([(64, 64), (64, 128), (64, 128)], spec("x", F32, None, "h", "w", 3), (1, 64, 128, 3)),
    ],
)
def test_dynamic_height_and_width(
    tmp_path: Path, sizes: list[tuple[int, int]], given_spec: InputSpec, shape: tuple[int, ...]
) -> None:
    for index, (height, width) in enumerate(sizes):
        save(tmp_path / f"{index}.png", np.zeros((height, width, 3), np.uint8))
    samples = load(tmp_path, [given_spec], n=9)
    assert samples.shapes == {"x": shape}
    assert {array.shape for array in only(samples)} == {shape}
    asked = tuple(size or 64 for size in (given_spec.size(axis) for axis in range(4)))
    assert load(tmp_path, [given_spec], n=9, shapes={"x": asked}).shapes == {"x": asked}


def test_batches_of_images_and_other_inputs(photos: Path) -> None:
    specs = [spec("image", F32, "n", 3, 32, 32), spec("im_shape", F32, "n", 2), spec("pixel_mask", I64, "n", 32, 32)]
    samples = load(photos, specs, n=8, batch=3)
    feeds = list(samples)
    assert [feed["image"].shape[0] for feed in feeds] == [3, 3, 2]
    assert [feed["im_shape"].tolist() for feed in feeds[-1:]] == [[[32, 32], [32, 32]]]
    assert feeds[0]["pixel_mask"].shape == (3, 32, 32)
    assert samples.description.endswith("'im_shape', 'pixel_mask' made up")
    static = load(photos, [spec("image", F32, 3, 3, 32, 32)], n=8)
    assert [array.shape[0] for array in only(static)] == [3, 3, 3]


def test_samples_can_be_sent_to_another_process(photos: Path) -> None:
    samples = load(photos, [IMAGE], n=2)
    again = pickle.loads(pickle.dumps(samples))
    assert all(np.array_equal(a, b) for a, b in zip(only(samples), only(again), strict=True))


@pytest.mark.parametrize(
    ("given_specs", "options", "error", "message"),
    [
        ([spec("ids", I64, 1, 8)], {}, DataError, r"no input of the model takes images.*'ids' int64\[1, 8\].*npz"),
        ([IMAGE, spec("y", F32, 1, 3, 8, 8)], {}, DataError, r"several inputs take images \('x', 'y'\)"),
        ([spec("x", F32, 1, 32, 32, 3)], {"layout": "NCHW"}, DataError, "has 32 on axis 1: try --layout NHWC"),
        ([spec("x", F32, 1, 32, 32, 3)], {"layout": "CHWN"}, UsageError, "NCHW or NHWC"),
        ([IMAGE], {"mean": [1, 2]}, UsageError, "--mean has 2 values.*3 channels: give 1 or 3"),
        ([IMAGE], {"std": [0.0]}, UsageError, "--std must be above 0"),
        ([IMAGE], {"mean": [float("nan")]}, UsageError, "finite"),
        ([spec("x", np.uint8, 1, 3, 8, 8)], {"mean": [0.5]}, UsageError, "pixels as they are"),
        ([spec("x", F32, 1, None, 8, 8)], {"shapes": {"x": (1, 7, 8, 8)}}, UsageError, "7 channels"),
        ([IMAGE], {"shapes": {"y": (1, 3, 8, 8)}}, UsageError, "no input is named 'y'"),
    ],
)
def test_images_that_do_not_fit(
    photos: Path, given_specs: list[InputSpec], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(photos, given_specs, n=4, **options)  # type: ignore[arg-type]


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("hello")
    with pytest.raises(DataError, match=r"bad\.png cannot be read as an image"):
        load(tmp_path, [IMAGE], n=4)
    save(tmp_path / "bad.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2])
    samples = load(tmp_path, [IMAGE], n=4)
    with pytest.raises(DataError, match=r"bad\.png cannot be read as an image"):
        list(samples)


# ---------------------------------------------------------------------------------------------- arrays


def test_npy_samples_single_sample_and_choice(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((10, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "a.npy", data)
    samples = load(tmp_path / "a.npy", [IMAGE], n=100, batch=4)
    assert np.array_equal(np.concatenate(only(samples)), data)
    assert [array.shape[0] for array in only(samples)] == [4, 4, 2] and samples.shapes == {"x": (4, 3, 32, 32)}
    some = np.concatenate(only(load(tmp_path / "a.npy", [IMAGE], n=3, seed=1)))
    rows = [int(np.flatnonzero((data == sample).all(axis=(1, 2, 3)))[0]) for sample in some]
    assert rows == sorted(set(rows)) and len(rows) == 3
    np.save(tmp_path / "a.npy", data[0])
    assert np.array_equal(only(load(tmp_path / "a.npy", [IMAGE], n=5))[0], data[:1])


def test_npz_by_name_and_what_it_need_not_hold(tmp_path: Path) -> None:
    specs = [spec("ids", I64, "batch", "seq"), spec("bias", F32, "batch", 4), spec("table", F32, 2, 5), spec("t", F32)]
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    table, bias = np.ones((2, 5)), np.arange(12.0).reshape(3, 4)
    np.savez(tmp_path / "a.npz", ids=ids, bias=bias, table=table, t=np.float32(2), label=np.zeros(3))
    samples = load(tmp_path / "a.npz", specs, n=9, batch=2)
    feeds = list(samples)
    assert len(samples) == 3 and len(feeds) == 2 and samples.shapes["ids"] == (2, 4)
    assert np.array_equal(np.concatenate([feed["ids"] for feed in feeds]), ids)
    assert feeds[0]["ids"].dtype == np.int64 and feeds[0]["bias"].dtype == np.float32
    assert all(np.array_equal(feed["table"], table) and feed["t"] == 2 for feed in feeds)
    assert set(feeds[0]) == {"ids", "bias", "table", "t"}


def test_unnamed_npz_for_one_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.ones((2, 3, 32, 32)))
    assert len(load(tmp_path / "a.npz", [IMAGE], n=9)) == 2


def test_folder_of_arrays(tmp_path: Path) -> None:
    data = np.arange(5 * 6, dtype=np.float32).reshape(5, 6)
    np.save(tmp_path / "a.npy", data[0])  # one sample
    np.save(tmp_path / "b.npy", data[1:4])
    np.savez_compressed(tmp_path / "c.npz", x=data[4:])
    samples = load(tmp_path, [spec("x", F32, "n", 6)], n=9)
    assert np.array_equal(np.concatenate(only(samples)), data)
    assert "3 files" in samples.description
    np.save(tmp_path / "d.npy", np.ones((2, 7), np.float32))
    with pytest.raises(DataError, match=r"d\.npy has another shape"):
        load(tmp_path, [spec("x", F32, "n", 6)], n=9)
    with pytest.raises(DataError, match=r"d\.npy has samples of \[7\], the files before it \[6\].*one size"):
        load(tmp_path, [spec("x", F32, "n", "m")], n=9)


def test_dynamic_axes_follow_the_data(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 40, 56), np.float32))
    dynamic = [spec("x", F32, "n", 3, "h", "w")]
    assert load(tmp_path / "a.npy", dynamic, n=9).shapes == {"x": (1, 3, 40, 56)}
    with pytest.raises(DataError, match="leave --shape out"):
        load(tmp_path / "a.npy", dynamic, n=9, shapes={"x": (1, 3, 64, 64)})


def test_example_data_fits_its_model() -> None:
    samples = load(EXAMPLE / "digits_calibration.npz", [spec("image", F32, "batch", 1, 8, 8)], n=64, batch=32)
    assert len(samples) == 64 and [array.shape for array in only(samples)] == [(32, 1, 8, 8)] * 2
    calibration = {image.tobytes() for image in np.load(EXAMPLE / "digits_calibration.npz")["image"]}
    test = {image.tobytes() for image in np.load(EXAMPLE / "digits_test.npz")["image"]}
    assert not calibration & test


@pytest.mark.parametrize(
    ("array", "given_spec", "message"),
    [
        (np.ones((4, 3, 16, 32)), IMAGE, r"another shape, \[4, 3, 16, 32\], input is 'x' float32\[batch, 3, 32, 32\]"),
        (np.ones((4, 32, 32, 3)), IMAGE, r"channels come last: write array.transpose\(0, 3, 1, 2\)"),
        (np.ones((4, 3, 32, 32)), spec("x", F32, 1, 32, 32, 3), r"channels come first: write array.transpose\(0, 2, 3, 1\)"),
        (np.ones((4, 1, 32, 32)), IMAGE, r"give \[samples, 3, 32, 32\] or one sample of \[3, 32, 32\]"),
        (np.ones((32, 32)), IMAGE, "has rank 2"),
        (np.ones((2, 2, 3, 32, 32)), IMAGE, "has rank 5"),
        (np.ones((0, 3, 32, 32)), IMAGE, "holds no samples"),
        (np.ones((2, 0)), spec("x", F32, "n", "m"), "is empty"),
        (np.ones((2, 4)), spec("x", I64, 1, 4), r"float64, which cannot be cast safely for input 'x' int64\[1, 4\]"),
        (np.ones((2, 4), complex), spec("x", F32, 1, 4), "complex128, which cannot be cast safely"),
        (np.array([["a"]]), spec("x", F32, 1, 1), "cannot be cast safely"),
        (np.ones((2, 4), np.int64), spec("x", bool, 1, 4), "cannot be cast safely"),
        (np.array([[1, {}]], dtype=object), spec("x", F32, 1, 2), "Python objects, which are not loaded"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_that_do_not_fit(tmp_path: Path, array: Array, given_spec: InputSpec, message: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    else:
        np.savez(path, x=array)
    with pytest.raises(DataError, match=message) as caught:
        load(path, [given_spec], n=4)
    assert f"a.{suffix}" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        (np.array([[1.0, np.nan]]), np.float32, "sample 0 of .*has NaN, for input 'x'"),
        (np.array([[1, 300]]), np.uint8, "from 1 to 300, which input 'x' uint8.*cannot hold"),
        (np.array([[-1, 3]]), np.uint8, "cannot hold"),
        (np.array([[2**63 + 5, 3]], dtype=np.uint64), np.int64, "cannot hold"),
        (np.array([[1.0, 1e6]]), np.float16, "cannot hold"),
        (np.array([[1, 9]]), ml_dtypes.int4, "cannot hold"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, array: Array, dtype: object, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    samples = load(tmp_path / "a.npy", [spec("x", dtype, 1, 2)], n=4)
    with pytest.raises(DataError, match=message):
        list(samples)


def test_infinities_and_safe_casts_pass(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[-np.inf, 1.0]]))
    (array,) = only(load(tmp_path / "a.npy", [spec("x", np.float16, 1, 2)], n=1))
    assert array.tolist() == [[-np.inf, 1.0]]  # an additive mask
    np.save(tmp_path / "a.npy", np.array([[True, False]]))
    (array,) = only(load(tmp_path / "a.npy", [spec("x", F32, 1, 2)], n=1))
    assert array.tolist() == [[1.0, 0.0]]


def test_npz_that_does_not_fit_the_inputs(tmp_path: Path) -> None:
    specs = [spec("a", F32, "n", 2), spec("b", F32, "n", 2)]
    np.savez(tmp_path / "a.npz", a=np.ones((2, 2)), c=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"no array for input 'b' float32\[n, 2\]; it holds a, c"):
        load(tmp_path / "a.npz", specs, n=1)
    np.savez(tmp_path / "a.npz", a=np.ones((2, 2)), b=np.ones((3, 2)))
    with pytest.raises(DataError, match="different numbers of samples for its inputs: 'a' 2, 'b' 3"):
        load(tmp_path / "a.npz", specs, n=1)
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match=r"one array, the model has 2 inputs \(a, b\)"):
        load(tmp_path / "a.npy", specs, n=1)


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere", [IMAGE], n=1)
    with pytest.raises(DataError, match="holds no data files: known are bmp, gif"):
        load(tmp_path, [IMAGE], n=1)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match="is not a data file"):
        load(tmp_path / "a.csv", [IMAGE], n=1)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, np.ones((4, 3, 32, 32), np.float32))
    else:
        np.savez(path, x=np.ones((4, 3, 32, 32), np.float32))
    whole = path.read_bytes()
    for broken in (b"", b"nonsense", whole[:20], whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=name):
            list(load(path, [IMAGE], n=1))


def test_damage_inside_an_archive_is_a_data_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x09\x00 no such version")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "a.npz", [IMAGE], n=1)


def test_image_options_are_refused_for_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 32, 32), np.float32))
    with pytest.raises(UsageError, match="are for images"):
        load(tmp_path / "a.npy", [IMAGE], n=1, mean=[0.5])
