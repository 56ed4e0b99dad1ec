"""``graphprune demo detect``: pictures of every kind, a pair before them, the server, the page in a browser, and the command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from graphprune.demo import pictures as sources
from graphprune.demo.pair import Pair, look, some
from graphprune.demo.pictures import Folder, Pictures, Stream, drones, example, video
from graphprune.demo.server import Server
from graphprune.detection.feeding import feeder
from graphprune.detection.way import Asked, first_ways
from graphprune.errors import DataError, UsageError
from graphprune.inputs import InputSpec
from tests.command import call, fails
from tests.detector_nets import coco_folder, colour_detector
from tests.test_report_browser import browser  # noqa: F401 - a fixture is used by its name

GREYS = (10, 90, 170, 250)


def frames() -> list[Image.Image]:
    return [Image.new("RGB", (64, 48), (grey, grey, grey)) for grey in GREYS]


def gif(path: Path) -> Path:
    first, *rest = frames()
    first.save(path, save_all=True, append_images=rest, duration=50, loop=0)
    return path


def film(path: Path) -> Path:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install graphprune[video]")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames():
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def grey(pictures: Pictures, number: int) -> float | None:
    picture = pictures.at(number)
    return None if picture is None else float(np.asarray(picture).mean())


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("make", [lambda path: gif(path / "a.gif"), lambda path: film(path / "a.mp4")], ids=["gif", "film"])
def test_moving_pictures_in_any_order(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    found = video(make(tmp_path))
    assert found.rate in (20.0, 10.0) and found.count == 4
    for number in (0, 1, 1, 3, 2, 0):
        value = grey(found, number)
        assert value is not None and abs(value - GREYS[number]) < 6
    assert found.at(4) is None and found.at(99) is None
    assert grey(found, 0) is not None and found.count == 4


def test_the_end_of_a_stream_is_known_when_it_is_reached() -> None:
    begun = []

    def begin() -> Iterator[Any]:
        begun.append(1)
        yield from (lambda frame=frame: frame for frame in frames())

    stream = Stream("s", begin)
    assert stream.count is None and len(some(stream, 99)) == 4
    stream.at(4)
    assert stream.count == 4


def test_a_folder_is_read_by_name_and_below(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name, frame in zip(("b.png", "a.jpg", "inner/c.webp"), frames(), strict=False):
        frame.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = Folder(tmp_path)
    assert found.count == 3
    assert [round(grey(found, n) or 0, -1) for n in range(3)] == [90, 10, 170] and found.at(3) is None


def test_what_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.gif").write_bytes(b"GIF89a no more")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures are in it"):
        Folder(tmp_path / "empty")
    with pytest.raises(DataError, match="there is no such folder"):
        Folder(tmp_path / "none")
    with pytest.raises(DataError, match="there is no such file"):
        video(tmp_path / "none.mp4")
    with pytest.raises(DataError, match="cannot be read as a moving picture"):
        video(tmp_path / "bad.gif")
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'graphprune\[video\]'"):
        video(tmp_path / "bad.mp4")


def test_a_file_that_is_no_film(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install graphprune[video]")
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    with pytest.raises(DataError, match="cannot be read as a video"):
        video(tmp_path / "bad.mp4")


# ---------------------------------------------------------------------------------------------------------------- pair


def pair_of(source: Path, cut: Path | None, pictures: Pictures, folder: Path, **asked: Any) -> Pair:
    return Pair(source, cut, pictures, asked=Asked(**asked), threads=1, folder=folder, progress=lambda _what, _share: None)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A detector of coloured rectangles, and pictures of them, larger than its input and of another shape."""
    folder = tmp_path_factory.mktemp("colours")
    onnx.save(colour_detector(metadata={"names": "{0: 'red', 1: 'green', 2: 'blue'}"}), folder / "m.onnx")
    coco_folder(folder / "data", 6)
    return folder / "m.onnx", folder / "data" / "images"


def truths(images: Path) -> list[list[tuple[int, list[float]]]]:
    """What was drawn, by picture: class from 0, corners as shares."""
    noted = json.loads(next((images.parent / "annotations").glob("*.json")).read_text())
    out = []
    for image in sorted(noted["images"], key=lambda one: one["file_name"]):
        w, h = image["width"], image["height"]
        out.append([(a["category_id"] - 1, [a["bbox"][0] / w, a["bbox"][1] / h, (a["bbox"][0] + a["bbox"][2]) / w, (a["bbox"][1] + a["bbox"][3]) / h])
                    for a in noted["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")])  # fmt: skip
    return out


def test_a_pair_finds_what_was_drawn_where_it_was_drawn(colours: tuple[Path, Path], tmp_path: Path) -> None:
    model, images = colours
    pair = pair_of(model, model, Folder(images), tmp_path)
    about = pair.about()
    assert about["names"] == {0: "red", 1: "green", 2: "blue"} and about["count"] == 6 and not about["made_here"]
    assert about["models"][0] == about["models"][1] and about["models"][0]["macs"] > 0
    for number, drawn in enumerate(truths(images)):
        shown = pair.show(number, 0.25)
        assert shown is not None and shown["pairs"] == len(shown["sides"][0]["boxes"]) == len(drawn)
        assert shown["picture"].startswith("data:image/jpeg;base64,") and shown["count"] == 6
        for side in shown["sides"]:
            assert side["ms"] > 0 and {int(row[4]) for row in side["boxes"]} == {label for label, _ in drawn}
            for label, corners in drawn:
                row = next(row for row in side["boxes"] if row[4] == label)
                assert np.abs(np.subtract(row[:4], corners)).max() < 0.06
    assert pair.show(6, 0.25) is None


def test_another_way_is_tried_where_the_usual_one_finds_nothing(tmp_path: Path, colours: tuple[Path, Path]) -> None:
    """This one takes pixels of 0 to 255: fed with 0 to 1 it finds nothing."""
    onnx.save(colour_detector(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3), tmp_path / "bytes.onnx")
    pair = pair_of(tmp_path / "bytes.onnx", tmp_path / "bytes.onnx", Folder(colours[1]), tmp_path)
    assert "pixels as they are" in pair.eyes.words and "in which it finds anything" in pair.eyes.words
    stated = pair_of(tmp_path / "bytes.onnx", tmp_path / "bytes.onnx", Folder(colours[1]), tmp_path, pixels="byte", channels="rgb")
    assert "in which it finds anything" not in stated.eyes.words
    blind = pair_of(tmp_path / "bytes.onnx", tmp_path / "bytes.onnx", Folder(colours[1]), tmp_path, pixels="unit")
    assert "found nothing in 6 pictures in any of 2 ways: say how it is fed" in blind.eyes.words


def test_what_is_no_pair_is_refused(tmp_path: Path, colours: tuple[Path, Path]) -> None:
    model, images = colours
    onnx.save(colour_detector(96, 96), tmp_path / "larger.onnx")
    with pytest.raises(DataError, match=r"where MODEL takes .*is it cut from MODEL"):
        pair_of(model, tmp_path / "larger.onnx", Folder(images), tmp_path)
    onnx.save(colour_detector(form="rows"), tmp_path / "rows.onnx")
    named = onnx.load(tmp_path / "rows.onnx")
    if named.graph.output[0].name != onnx.load(model).graph.output[0].name:
        with pytest.raises(DataError, match="CUT has no output"):
            pair_of(model, tmp_path / "rows.onnx", Folder(images), tmp_path)
    digits = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"
    with pytest.raises(DataError, match="does not look like boxes"):
        pair_of(digits, None, Folder(images), tmp_path)


def test_without_a_cut_one_is_made_on_the_pictures(tmp_path: Path, colours: tuple[Path, Path]) -> None:
    pair = pair_of(colours[0], None, Folder(colours[1]), tmp_path)
    assert pair.made_here and pair.files[1].parent == tmp_path
    source, cut = pair.costs
    assert cut["macs"] < source["macs"]
    shown = pair.show(0, 0.25)
    assert shown is not None and shown["pairs"] == len(shown["sides"][0]["boxes"]) > 0


def test_the_shipped_pair_sees_nearly_the_same(tmp_path: Path) -> None:
    folder = example()
    pair = pair_of(folder / "drone.onnx", folder / "drone.small.onnx", drones(), tmp_path)
    source, cut = pair.costs
    assert 0.25 < cut["macs"] / source["macs"] < 0.35
    pairs = boxes = 0
    for number in range(0, 24, 2):
        shown = pair.show(number, 0.25)
        assert shown is not None
        pairs += shown["pairs"]
        boxes += sum(row[5] >= 0.25 for side in shown["sides"] for row in side["boxes"])
    assert boxes > 40 and 2 * pairs / boxes > 0.85


def test_look_takes_the_first_picture_of_a_feed_alone() -> None:
    """A model that insists on two pictures is given the same one twice, and one is shown."""
    from graphprune.backends.runtimes.onnx_runtime import OnnxRuntime
    from graphprune.calibration import input_specs
    from graphprune.frontends.onnx import load

    proto = colour_detector(batch=2)
    run = OnnxRuntime().load(proto.SerializeToString(), 1).outputs
    picture = Image.new("RGB", (64, 64))
    picture.paste((255, 0, 0), (10, 10, 40, 40))
    eyes = look(run, feeder(input_specs(load(proto).model), None), {}, [picture], Asked())
    feed, placed = eyes.feeder.feed([picture])
    boxes = eyes.found(run(feed), placed)
    assert len(boxes) == 1 and np.abs(boxes.corners[0] - [10, 10, 40, 40]).max() < 2


def test_grey_inputs_are_not_given_the_means_of_three_colours() -> None:
    grey_input = InputSpec("x", np.dtype(np.float32), (1, 1, 32, 32))
    ways = first_ways(feeder([grey_input], None), {}, Asked())
    assert len(ways) == 3 and {len(way.mean) for way in ways} == {1}
    assert ways[0].feed([Image.new("RGB", (40, 30))])[0]["x"].shape == (1, 1, 32, 32)
    with pytest.raises(DataError, match="of 3 channels was asked for"):
        first_ways(feeder([grey_input], None), {}, Asked(pixels="imagenet"))


# -------------------------------------------------------------------------------------------------------------- server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, colours: tuple[Path, Path]) -> Iterator[str]:
    """The shipped pair on the drawn clip, answering."""
    folder = example()
    pair = pair_of(folder / "drone.onnx", folder / "drone.small.onnx", drones(), tmp_path_factory.mktemp("served"))
    with Server(pair, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


def get(address: str) -> tuple[int, Any, Any]:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_the_server_answers(served: str) -> None:
    for name, kind in (("", "text/html"), ("demo.css", "text/css"), ("demo.js", "text/javascript")):
        status, headers, body = get(served + name)
        assert status == 200 and headers["Content-Type"].startswith(kind) and body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not re.search(rb"https?://", body), "the page works offline"
    about = json.loads(get(served + "about")[2])
    assert [model["name"] for model in about["models"]] == ["drone.onnx", "drone.small.onnx"] and about["names"] == {"0": "drone"}
    shown = json.loads(get(served + "picture?n=7&score=0.4")[2])
    assert shown["number"] == 7 and len(shown["sides"]) == 2
    assert json.loads(get(served + "picture?n=240")[2]) == {"end": True, "count": 240}


@pytest.mark.parametrize("asked", ["picture?n=-1", "picture?n=one", "picture?n=1&score=2", "picture?n=1&score=nan"])
def test_what_makes_no_sense_is_answered_with_what_does(served: str, asked: str) -> None:
    status, _, body = get(served + asked)
    assert status == 400 and json.loads(body)["error"]


def test_what_is_not_there(served: str) -> None:
    for path in ("none", "../pair.py", "demo.html"):
        assert get(served + path)[0] == 404


# ------------------------------------------------------------------------------------------------------------- browser


def wait(driver: Any, done: Callable[[], bool]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 60).until(lambda _: done())


def test_the_page_plays_pauses_and_steps(browser: Any, served: str) -> None:  # noqa: F811
    def one(css: str) -> Any:
        return browser.find_element("css selector", css)

    def number() -> int:
        return int(browser.execute_script("return document.body.dataset.number ?? -1"))

    def still() -> int:
        """The number once nothing is on its way any more."""
        wait(browser, lambda: not browser.execute_script("return state.busy"))
        return number()

    browser.get_log("browser")
    browser.get(served)
    wait(browser, lambda: number() >= 3)  # it plays by itself
    one("#play").click()
    assert one("#play").text == "Play"
    here = still()
    one("#step").click()
    wait(browser, lambda: number() == here + 1)
    one("#back").click()
    wait(browser, lambda: number() == here)

    # What is drawn is what the models find, on either side.
    for side in ("source", "cut"):
        assert one(f"#{side} .file").text in ("drone.onnx", "drone.small.onnx")
        assert float(one(f"#{side} .ms").text) > 0 and int(one(f"#{side} .fps").text) > 0
        drawn = browser.execute_script(
            "const c = document.querySelector(arguments[0]); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return new Set(Array.from({length: 4000}, (_, n) => d[4 * 37 * n])).size", f"#{side} canvas")  # fmt: skip
        assert drawn > 20
    assert re.fullmatch(r"\d+\.\d\d", one("#faster").text) and "(30 %)" in one("#cut .costs").text

    # A higher score shows fewer boxes, and the same picture.
    shown = browser.execute_script("return state.shown.sides.map(s => s.boxes.map(b => b[5]))")
    for least in (0.05, 0.95):
        browser.execute_script(
            "const s = document.querySelector('#score'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))", least)  # fmt: skip
        assert [int(one(f"#{side} .found").text) for side in ("source", "cut")] == [sum(v >= least for v in scores) for scores in shown]
    assert still() == here

    # Behind the last picture it begins anew.
    browser.execute_script("const w = document.querySelector('#where'); w.value = 239; w.dispatchEvent(new Event('input'))")
    wait(browser, lambda: number() == 239)
    one("#step").click()
    wait(browser, lambda: number() == 0)
    assert not one("#error").is_displayed()
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command_says_where_and_ends_when_told(colours: tuple[Path, Path], tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "graphprune", "demo", "detect", str(colours[0]), str(colours[0]), "--images", str(colours[1]), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as done:  # fmt: skip
        assert done.stdout is not None
        said = done.stdout.readline() + done.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert address is not None, said
        assert json.loads(get(address[0] + "about")[2])["count"] == 6
        done.send_signal(signal.SIGINT)
        assert done.wait(30) == 0
    assert not list(tmp_path.iterdir())


def test_what_the_command_refuses(colours: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = colours
    assert "say what" in fails("demo", "detect", model)
    assert "not both" in fails("demo", "detect", "--images", images, "--video", "a.gif")
    assert "does not exist" in fails("demo", "detect", tmp_path / "none.onnx", "--images", images)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port} is taken" in fails("demo", "detect", model, model, "--images", images, "--port", port)
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "a" / "b" / "c" / "pictures.py"))
    assert "the drone example is not installed here" in fails("demo", "detect")
    assert "demo" in call("--help").output


def test_a_wheel_would_hold_the_example() -> None:
    """The files that the package takes along are those that the demo looks for."""
    import tomllib

    root = Path(__file__).parents[1]
    taken = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {Path(target).name for target in taken.values()} == {"drone.onnx", "drone.small.onnx", "data.py"}
    assert all((root / name).is_file() and target.startswith("graphprune/demo/example/") for name, target in taken.items())
