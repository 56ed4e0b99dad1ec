"""What a demo looks at: a folder of pictures, an animated picture, a video, or the drones that the example draws."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from graphprune.errors import DataError, UsageError
from graphprune.images import IMAGE_SUFFIXES, decode

if TYPE_CHECKING:
    from PIL import Image

#: Pictures a second where nothing says.
RATE = 25.0
#: Pictures of the drawn clip.
CLIP = 240
#: Suffixes that Pillow reads as moving pictures, besides those of still ones.
ANIMATED = IMAGE_SUFFIXES | {".apng"}

#: Gives a picture when asked: one that is passed over need not be decoded to its end.
Later = Callable[[], "Image.Image"]


class Pictures(Protocol):
    """Pictures by number.

    Attributes
    ----------
    name
        What they come from.
    count
        How many there are; None until that is known.
    rate
        How many a second are meant to be seen.
    """

    name: str
    count: int | None
    rate: float

    def at(self, number: int) -> Image.Image | None:
        """A picture, RGB; None behind the last one."""


class Folder:
    """Image files of a folder and those below it, by name."""

    rate = 2.0

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"--images {path}: there is no such folder")
        self._files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
        if not self._files:
            raise DataError(f"--images {path}: no pictures are in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.name = str(path)
        self.count: int | None = len(self._files)

    def at(self, number: int) -> Image.Image | None:
        return decode(self._files[number], 3) if number < len(self._files) else None


class Stream:
    """Pictures that come one after the other: going back begins anew.

    Parameters
    ----------
    begin
        Gives all of them, from the first.
    """

    def __init__(self, name: str, begin: Callable[[], Iterator[Later]], rate: float = RATE, count: int | None = None) -> None:
        self.name, self.rate, self.count = name, rate, count
        self._begin = begin
        self._rest, self._next = begin(), 0
        self._last: Image.Image | None = None

    def at(self, number: int) -> Image.Image | None:
        if number == self._next - 1 and self._last is not None:
            return self._last
        if number < self._next:
            self._rest, self._next = self._begin(), 0
        for later in self._rest:
            self._next += 1
            if self._next > number:
                self._last = later().convert("RGB")
                return self._last
        # Only now is it known where they end, whatever was said before.
        self.count = self._next
        self._rest, self._next, self._last = self._begin(), 0, None
        return None


def video(path: Path) -> Stream:
    """A video file, or a moving picture that Pillow reads.

    Raises
    ------
    DataError
        It is not there, or cannot be read.
    UsageError
        It takes PyAV, which is not installed.
    """
    if not path.is_file():
        raise DataError(f"--video {path}: there is no such file")
    return _animation(path) if path.suffix.lower() in ANIMATED else _film(path)


def _animation(path: Path) -> Stream:
    from PIL import Image, ImageSequence

    def begin() -> Iterator[Later]:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield lambda frame=frame: frame.convert("RGB")  # type: ignore[misc]

    try:
        with Image.open(path) as image:
            count = int(getattr(image, "n_frames", 1))
            took = float(image.info.get("duration") or 0)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"--video {path} cannot be read as a moving picture: {error}") from error
    return Stream(str(path), begin, 1000 / took if took > 0 else RATE, count)


def _film(path: Path) -> Stream:
    try:
        import av
    except ImportError as error:
        raise UsageError(
            f"--video {path}: videos are read with PyAV: pip install 'graphprune[video]'. Animated GIF and WebP, and a folder of "
            "pictures (--images), are read without"
        ) from error

    def begin() -> Iterator[Later]:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_image

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"--video {path}: there are no pictures in it")
            stream = container.streams.video[0]
            rate, count = float(stream.average_rate or RATE), stream.frames or None
            next(container.decode(stream))
    except (av.FFmpegError, StopIteration) as error:
        raise DataError(f"--video {path} cannot be read as a video: {error}") from error
    return Stream(str(path), begin, rate, count)


def example() -> Path:
    """Folder of the drone example: in an installed package, or in the repository beside it.

    Raises
    ------
    UsageError
        Neither is there.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "example", here.parents[2] / "examples" / "drone"):
        if (folder / "drone.onnx").is_file():
            return folder
    raise UsageError("the drone example is not installed here: give MODEL and CUT, and --images DIR or --video FILE")


def drones() -> Stream:
    """Drones that fly, drawn by the example's own ``data.py``."""
    data = _module(example() / "data.py")

    def begin() -> Iterator[Later]:
        from PIL import Image

        for picture in data.clip(CLIP):
            yield lambda picture=picture: Image.fromarray(picture)  # type: ignore[misc]

    return Stream("drones, drawn", begin, count=CLIP)


def _module(path: Path) -> Any:
    """A Python file that is no part of the package, as a module."""
    name = f"graphprune_example_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]
