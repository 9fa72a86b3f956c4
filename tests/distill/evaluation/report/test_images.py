"""The images beside a report: a page can read the measured values from their pixels."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image

from distill.data.splits import scan_split
from distill.embeddings.text_bank import TextBank
from distill.errors import DataError
from distill.evaluation.diagnostics import text_plane
from distill.evaluation.report.images import (
    MAX_MAP_BYTES,
    SIDE,
    draw_similarity,
    draw_thumbnails,
    similarity_order,
)


def unit_rows(classes: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((classes, dim)) + 0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_every_cosine_can_be_read_from_its_pixel(tmp_path):
    rows = {"name": unit_rows(30), "name+description": unit_rows(30, seed=1)}
    matrices = {text: features @ features.T for text, features in rows.items()}
    names = [f"class {n}" for n in range(30)]
    found = draw_similarity(tmp_path, matrices, names)
    order = similarity_order(matrices["name"])
    assert found.classes == tuple(names[row] for row in order)
    assert [picture.text for picture in found.pictures] == ["name", "name+description"]
    for picture in found.pictures:
        pixels = np.asarray(Image.open(tmp_path / picture.file)).astype(float)
        read = picture.low + (picture.high - picture.low) * pixels / 255
        above = np.triu(np.ones((30, 30), dtype=bool), k=1)
        right = matrices[picture.text][np.ix_(order, order)]
        assert np.abs(read - right)[above].max() <= picture.step / 2 + 1e-6
        assert pixels[~above].max() == 0
        all_levels = (picture.high - picture.low) / 255
        assert picture.step == pytest.approx(all_levels)  # since there are few classes


def test_a_thousand_real_classes_fit_on_a_page_with_coarser_steps(tmp_path, shared):
    with np.load(shared / "bench" / "lvis1203-clip-vitb32-text.npz") as real:
        rows, names = real["name"][:1000].astype(np.float32), real["names"][:1000].tolist()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = draw_similarity(tmp_path, {"name": rows @ rows.T}, names)
    (picture,) = found.pictures
    assert (tmp_path / picture.file).stat().st_size <= MAX_MAP_BYTES
    pixels = np.asarray(Image.open(tmp_path / picture.file))
    assert pixels.shape == (1000, 1000)
    assert len(np.unique(pixels)) == round((picture.high - picture.low) / picture.step) + 1


def test_equal_texts_and_a_single_class_are_no_error(tmp_path):
    same = np.ones((3, 3), dtype=np.float32)
    assert draw_similarity(tmp_path, {"name": same}, ["a", "b", "c"]).pictures[0].low == 1.0
    assert draw_similarity(tmp_path, {"name": same[:1, :1]}, ["a"]) is None


def test_tiles_show_images_of_the_class_that_they_name(tmp_path, image_folder):
    root = image_folder({"train": {"a": 3, "b": 1, "c": 2}, "val_on_train": {"b": 1}})
    split = scan_split(root, "train")
    names = {"a": "first", "b": "second", "c": "third", "x": "unseen"}
    found = draw_thumbnails(tmp_path, split, names, ["b", "x", "a", "b"])
    assert found.tiles == ("second", "first", "first")
    sheet = np.asarray(Image.open(tmp_path / found.file)).astype(float)
    assert sheet.shape == (SIDE, found.columns * SIDE, 3)
    reds = [sheet[:, n * SIDE : (n + 1) * SIDE, 0].mean() for n in range(3)]
    assert reds == pytest.approx([110, 40, 40], abs=8)  # as image_folder paints them
    assert draw_thumbnails(tmp_path, split, names, ["x"]) is None


def test_an_image_that_is_gone_is_left_out(tmp_path, image_folder):
    root = image_folder({"train": {"a": 2, "b": 1}, "val_on_train": {"b": 1}})
    split = scan_split(root, "train")
    split.paths[0].unlink()
    found = draw_thumbnails(tmp_path, split, {"a": "a", "b": "b"}, ["a", "b"])
    assert found.tiles == ("a", "b")


def test_an_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "nothing").write_text("a file in the place of the folder")
    with pytest.raises(DataError, match="free some space or choose another folder"):
        draw_similarity(
            tmp_path / "nothing", {"name": np.eye(3, dtype=np.float32)}, ["a", "b", "c"]
        )


def bank(features: np.ndarray, strategy: str) -> TextBank:
    names = tuple(f"class {n}" for n in range(len(features)))
    unit = torch.nn.functional.normalize(torch.from_numpy(features).float(), dim=1)
    return TextBank(unit, names, names, strategy, "teacher", "hash")


def test_the_plane_has_maximal_variance_of_both_sides_around_their_means():
    before, after = bank(unit_rows(12, 6), "name"), bank(unit_rows(12, 6, 1), "name+description")
    found = text_plane(before, after, range(12))
    places = np.array(
        [entry.before for entry in found.classes] + [entry.after for entry in found.classes]
    )
    both = np.concatenate([bank_.features.double().numpy() for bank_ in (before, after)]).reshape(
        2, 12, 6
    )
    centred = (both - both.mean(axis=1, keepdims=True)).reshape(24, 6)
    values, axes = np.linalg.eigh(centred.T @ centred)  # another way to the same axes
    oracle = centred @ axes[:, [-1, -2]]
    assert np.abs(places) == pytest.approx(np.abs(oracle), abs=1e-4)
    assert found.explained == pytest.approx(values[-2:].sum() / values.sum())


def test_a_class_may_be_left_out_of_the_plane_and_two_classes_lie_on_a_line():
    before, after = bank(unit_rows(2, 6), "name"), bank(unit_rows(2, 6, 1), "name+description")
    whole = text_plane(before, after, range(2))
    assert text_plane(before, after, [1]).classes == whole.classes[1:]
    same = text_plane(before, before, range(2))
    assert [entry.before for entry in same.classes] == [entry.after for entry in same.classes]
    assert all(abs(entry.before[1]) < 1e-4 for entry in same.classes)
