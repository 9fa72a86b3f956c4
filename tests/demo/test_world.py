import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.world import (
    COLOURS,
    GENERA,
    NEW_CLASS,
    SIZE,
    Look,
    charms,
    contact_sheet,
    render,
    render_clutter,
    write_world,
)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_does_not(tmp_path: Path) -> None:
    amounts = {"train": 1, "val_on_train": 1, "val": 1}
    for folder, seed in (("a", 0), ("again", 0), ("b", 1)):
        write_world(tmp_path / folder, seed=seed, **amounts)
    files = {
        folder: {p.relative_to(tmp_path / folder): p.read_bytes() for p in images}
        for folder in ("a", "again", "b")
        if (images := sorted((tmp_path / folder).rglob("*.png")))
    }
    assert files["a"] == files["again"]
    assert files["a"].keys() == files["b"].keys()
    assert not set(files["a"].values()) & set(files["b"].values())


def test_a_cluttered_table_is_the_same_by_seed_and_another_from_each_side() -> None:
    looks = [charm.look for charm in charms()[:3]]
    first, again, other = (render_clutter(looks, np.random.default_rng(s)) for s in (0, 0, 1))
    assert first.shape == (2, SIZE, SIZE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert render_clutter(looks[:1], np.random.default_rng(0), views=3).shape[0] == 3


def test_the_folders_have_the_papers_layout_and_every_label_is_named(tmp_path: Path) -> None:
    write_world(tmp_path, train=2, val_on_train=1, val=3)
    seen = {charm.key for charm in charms() if charm.seen}
    unseen = {charm.key for charm in charms() if not charm.seen}
    for split, keys, amount in (
        ("train", seen, 2),
        ("val_on_train", seen, 1),
        ("val", unseen, 3),
    ):
        folders = list((tmp_path / split).iterdir())
        assert {folder.name for folder in folders} == keys
        assert all(len(list(folder.glob("*.png"))) == amount for folder in folders)
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert {label["key"] for label in labels} == seen | unseen
    assert {key for label in labels for key in label} == {"key", "name", "context"}
    lines = (tmp_path / "label2text.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [label["key"] for label in labels]
    with Image.open(next((tmp_path / "train").rglob("*.png"))) as image:
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_no_two_classes_share_a_name_or_shape_colour_and_pattern() -> None:
    everyone = charms()
    assert len({charm.name for charm in everyone}) == len(everyone)
    assert len({charm.look.core for charm in everyone}) == len(everyone)


def test_the_new_class_is_no_part_of_the_world() -> None:
    assert NEW_CLASS.look.core not in {charm.look.core for charm in charms()}
    assert NEW_CLASS.key not in {charm.key for charm in charms()}
    assert NEW_CLASS.name.split()[0] not in {charm.name.split()[0] for charm in charms()}


@pytest.mark.parametrize("attribute", ["shape", "colour", "pattern", "part"])
def test_unseen_classes_are_new_combinations_of_values_that_seen_classes_show(
    attribute: str,
) -> None:
    def values(seen: bool) -> set[str]:
        return {getattr(c.look, attribute) for c in charms() if c.seen == seen}

    assert values(False) <= values(True)


def test_a_genus_has_several_unseen_classes_so_that_names_are_ambiguous() -> None:
    for genus in GENERA:
        kin = [c for c in charms() if not c.seen and c.name.endswith(f" {genus}")]
        assert len(kin) >= 3


def test_held_out_attributes_are_never_in_a_background() -> None:
    assert all(charm.look.pattern != "plain" for charm in charms() if not charm.seen)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_charm_has_its_described_colour(colour: str) -> None:
    rng = np.random.default_rng(0)
    look = Look("square", colour, "plain", None, "none")
    middle = np.mean([render(look, rng)[28:36, 28:36] for _ in range(20)], axis=(0, 1, 2))
    nearest = min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name]).sum())
    assert nearest == colour


def test_the_contact_sheet_shows_every_class() -> None:
    sheet = contact_sheet(columns=2, zoom=1)
    assert sheet.size == (2 * SIZE, len(charms()) * SIZE)
