"""How the OCR benchmark judges: CTC decoding and box matching, on small arrays made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from benchmarks.ppocr import run as harness
from benchmarks.ppocr.boxes import db_boxes, f1, iou, matched
from benchmarks.ppocr.decode import alphabet, ctc_greedy, edit_distance, rightness
from benchmarks.ppocr.lines import Lines, to_input


def one_hot(*rows: list[int]) -> np.ndarray:
    return np.eye(4)[np.array(rows)]


def test_ctc_merges_repeats_and_drops_blanks() -> None:
    scores = one_hot([1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0], [0, 3, 0, 3, 3, 1])
    assert ctc_greedy(scores, ["", "a", "b", " "]) == ["aab", "", "  a"]


def test_ctc_takes_the_best_class() -> None:
    scores = np.array([[[0.1, 0.2, 0.7, 0.0], [0.4, 0.3, 0.2, 0.1], [0.2, 0.5, 0.2, 0.1]]])
    assert ctc_greedy(scores, ["", "a", "b", " "]) == ["ba"]


def test_alphabet_is_that_of_the_metadata(tmp_path: Path) -> None:
    model = helper.make_model(parser.parse_graph("g (float[1] x) => (float[1] y) { y = Relu(x) }"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(ValueError, match="no entry 'character'"):
        alphabet(path)
    helper.set_model_props(model, {"character": "a\nb\n'"})
    onnx.save(model, path)
    assert alphabet(path) == ["", "a", "b", "'", " "]


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
)
def test_edit_distance(a: str, b: str, edits: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == edits


def test_rightness_counts_lines_and_characters() -> None:
    figures = rightness(["ab", "cd ", "xxxx"], ["ab", "cd", "yyyyyy"])
    assert figures == {"lines right": pytest.approx(1 / 3), "characters right": pytest.approx(1 - 7 / 10)}
    assert rightness(["much too long"], ["a"])["characters right"] == 0


def test_iou() -> None:
    a = np.array([[0.0, 0, 4, 4], [10, 10, 12, 12]])
    b = np.array([[2.0, 0, 6, 4], [0, 0, 4, 4], [12, 10, 14, 12]])
    assert np.allclose(iou(a, b), [[1 / 3, 1, 0], [0, 0, 0]])


def test_matching_is_one_to_one_and_as_large_as_can_be() -> None:
    """The first box fits both others, the second only one: a greedy match from the first would find one pair."""
    a = np.array([[0.0, 0, 10, 2], [0, 0, 9, 2]])
    b = np.array([[0.0, 0, 9, 2], [0, 0, 10, 2], [50, 50, 60, 60]])
    assert matched(a, b, least=0.85) == 2
    assert matched(a, b[:1]) == 1
    assert matched(a, np.zeros((0, 4))) == 0


def test_f1_is_over_all_pictures() -> None:
    one, other, none = np.array([[0.0, 0, 4, 4]]), np.array([[9.0, 9, 12, 12]]), np.zeros((0, 4))
    assert f1([one, one], [one, other]) == pytest.approx(0.5)
    assert f1([one, none], [one, one]) == pytest.approx(2 / 3)
    assert f1([none], [none]) == 1
    assert f1([none], [one]) == 0


def test_boxes_of_a_probability_map() -> None:
    """A region of 20 x 4 pixels, 21 x 5 when dilated, grows by 21 * 5 * 1.6 / 52; weak and tiny regions are dropped."""
    probability = np.zeros((40, 60))
    probability[10:14, 20:40] = 0.9
    probability[30, 50] = 0.9
    probability[30:35, 5:25] = 0.35
    grow = 21 * 5 * 1.6 / 52
    assert np.allclose(db_boxes(probability), [[20 - grow, 10 - grow, 41 + grow, 15 + grow]])
    assert db_boxes(np.zeros((8, 8))).shape == (0, 4)


def test_boxes_end_at_the_picture() -> None:
    probability = np.zeros((12, 30))
    probability[:6] = 1
    assert db_boxes(probability)[0, [0, 1, 2]].tolist() == [0, 0, 30]


def test_input_is_blue_first_scaled_and_padded() -> None:
    picture = np.zeros((48, 2, 3), np.uint8)
    picture[:, :, 0], picture[:, 1, 2] = 255, 51
    batch = to_input([picture], 4)
    assert batch.shape == (1, 3, 48, 4)
    assert batch.dtype == np.float32
    assert np.allclose(batch[0, :, 5], [[-1, -0.6, 0, 0], [-1, -1, 0, 0], [1, 1, 0, 0]])


def test_lines_round_trip_and_batches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, width, 3)).astype(np.uint8) for width in (50, 40, 70)]
    Lines(pictures, ["x", "yy", "zz z"]).save(tmp_path / "a" / "lines.npz")
    lines = Lines.load(tmp_path / "a" / "lines.npz")
    assert lines.texts == ["x", "yy", "zz z"]
    assert all(np.array_equal(a, b) for a, b in zip(lines.pictures, pictures, strict=True))
    batches = lines.batches(2)
    assert [indices.tolist() for indices, _ in batches] == [[1, 0], [2]]
    assert [feed.shape for _, feed in batches] == [(2, 3, 48, 50), (1, 3, 48, 70)]


def test_table_of_cells() -> None:
    source = {"model": "rec", "budget": 1, "criterion": "", "allocation": "", "recovery": "none", "samples": 0, "seed": 0,
              "quick": False, "macs": 1.0, "figures": {"lines right": 0.97, "characters right": 0.99}}  # fmt: skip
    cut = {**source, "budget": 0.8, "criterion": "l1", "allocation": "dp", "macs": 0.7999, "error": 3e-7, "seconds": 61.0}
    failed = {**cut, "criterion": "obs", "failed": "UsageError: no"}
    lines = harness.table([failed, {**cut, "recovery": "ls"}, cut, source]).splitlines()
    assert lines[4] == "| source | 1 | | | | 0.970 | 0.990 | | |"
    assert lines[5] == "| 0.8 | 0.800 | l1 | dp | none | 0.970 | 0.990 | 3e-07 | 61 |"
    assert lines[6].split(" | ")[4] == "ls"
    assert lines[-1] == "Failed: obs, dp, none at 0.8: UsageError: no"


def test_cells_have_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "CELLS", tmp_path)
    cells = [harness.Cell("rec", 0.8, "l1", "dp", recovery, seed=seed, quick=quick)
             for recovery in harness.RECOVERIES for seed in (0, 1) for quick in (False, True)]  # fmt: skip
    assert len({cell.path for cell in cells}) == len(cells)
    cells[0].path.write_text('{"failed": "Error"}')
    assert cells[0].load() is None
    cells[0].path.write_text('{"macs": 0.8}')
    assert cells[0].load() == {"macs": 0.8}
