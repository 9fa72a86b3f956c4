import os

import numpy as np
import pytest
from PIL import Image

from distill.data.pixels import load_pixels
from distill.data.splits import scan_split
from distill.errors import DataError


def test_pixels_are_the_resized_middle_square(image_folder, tmp_path):
    root = image_folder({"val": {"n1": 1}}, size=32)  # 40 × 32 pixels
    split = scan_split(root, "unseen")
    pixels = load_pixels(split, 32, tmp_path / "cache")
    image = np.asarray(Image.open(split.paths[0]).convert("RGB"))
    assert pixels.shape == (1, 3, 32, 32)
    assert np.array_equal(pixels[0].transpose(1, 2, 0), image[:, 4:36])


def test_pixels_are_decoded_once(image_folder, tmp_path):
    split = scan_split(image_folder({"val": {"n1": 3}}), "unseen")
    first = np.array(load_pixels(split, 16, tmp_path / "cache"))
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(bytes(cached.stat().st_size))  # a second decoding would undo this
    assert not load_pixels(split, 16, tmp_path / "cache").any()
    assert first.any()


def test_a_cache_of_the_wrong_length_is_rebuilt(image_folder, tmp_path):
    split = scan_split(image_folder({"val": {"n1": 3}}), "unseen")
    first = np.array(load_pixels(split, 16, tmp_path / "cache"))
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    assert np.array_equal(load_pixels(split, 16, tmp_path / "cache"), first)


def test_a_changed_image_is_decoded_again(image_folder, tmp_path):
    root = image_folder({"val": {"n1": 2}})
    first = np.array(load_pixels(scan_split(root, "unseen"), 16, tmp_path / "cache"))
    Image.new("RGB", (20, 20), "red").save(root / "val" / "n1" / "000.png")
    second = load_pixels(scan_split(root, "unseen"), 16, tmp_path / "cache")
    assert not np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_an_image_whose_name_is_not_utf8_is_decoded(image_folder, tmp_path):
    root = image_folder({"val": {"n1": 2}})
    before = np.array(load_pixels(scan_split(root, "unseen"), 16, tmp_path / "cache"))
    image = root / "val" / "n1" / "001.png"
    image.rename(image.with_name(os.fsdecode(b"caf\xe9.png")))
    after = load_pixels(scan_split(root, "unseen"), 16, tmp_path / "cache")
    assert np.array_equal(before, after)


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_an_unreadable_image_is_named_and_leaves_no_cache(image_folder, tmp_path, content):
    root = image_folder({"val": {"n1": 3}})
    bad = root / "val" / "n1" / "001.png"
    bad.write_bytes(bad.read_bytes()[:300] if content is None else content)
    with pytest.raises(DataError, match=r"cannot read the image .*001\.png .*replace it or remove"):
        load_pixels(scan_split(root, "unseen"), 16, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_all_unreadable_images_are_named_at_once(image_folder, tmp_path):
    root = image_folder({"val": {"n1": 3}})
    for name in ("000", "002"):
        (root / "val" / "n1" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read 2 images: .*000.png .*002.png .*or remove"):
        load_pixels(scan_split(root, "unseen"), 16, tmp_path / "cache")


def test_a_full_disk_is_named_and_leaves_no_cache(image_folder, tmp_path, small_disk):
    split = scan_split(image_folder({"val": {"n1": 40}}), "unseen")
    with pytest.raises(DataError, match=r"cannot write the pixel cache .*No space left.*free some"):
        load_pixels(split, 256, small_disk / "cache")
    assert list((small_disk / "cache").iterdir()) == []
