"""Where things are: the three ONNX files of rapidocr-onnxruntime, matplotlib's fonts, and the sets made here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

VERSION = "1.4.4"
MODELS = {
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
}
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "ppocr"


class MissingFile(FileNotFoundError):
    """A file that these benchmarks need is not there; the message says how to get it."""


def _package(name: str, why: str) -> Path:
    # find_spec does not import the package: rapidocr would start ONNX Runtime and OpenCV.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise MissingFile(f"{name} is not installed, which {why}")
    return Path(spec.origin).parent


def model_path(model: str) -> Path:
    """Path of one of the three models.

    Parameters
    ----------
    model
        ``rec``, ``det`` or ``cls``.

    Raises
    ------
    MissingFile
        rapidocr-onnxruntime is not installed, or in another version, whose weights may be others.
    """
    wanted = f"rapidocr-onnxruntime=={VERSION}"
    folder = _package("rapidocr_onnxruntime", f"brings the models: pip install {wanted}") / "models"
    found = importlib.metadata.version("rapidocr-onnxruntime")
    if found != VERSION:
        raise MissingFile(f"rapidocr-onnxruntime {found} is installed, the figures are for: pip install {wanted}")
    path = folder / MODELS[model]
    if not path.is_file():
        raise MissingFile(f"{path} is not there: pip install --force-reinstall {wanted}")
    return path


def font_paths(names: tuple[str, ...]) -> list[Path]:
    """Paths of fonts that matplotlib ships, by file name without ``.ttf``."""
    folder = _package("matplotlib", "brings the fonts: pip install matplotlib") / "mpl-data" / "fonts" / "ttf"
    paths = [folder / f"{name}.ttf" for name in names]
    for path in paths:
        if not path.is_file():
            raise MissingFile(f"{path} is not there: pip install --force-reinstall matplotlib")
    return paths


def picture_paths(names: tuple[str, ...]) -> list[Path]:
    """Paths of pictures that scikit-image ships inside its package, by file name."""
    folder = _package("skimage", "brings the backgrounds: pip install scikit-image") / "data"
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise MissingFile(f"{path} is not there: pip install --force-reinstall 'scikit-image>=0.25'")
    return paths
