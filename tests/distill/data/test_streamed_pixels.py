"""Pixels decoded when they are used: which ones, how far ahead, and when that is chosen."""

import dataclasses

import pytest
import torch

from distill.data.memory import memory_bytes
from distill.data.pixels import choose_pixels, load_pixels, open_pixels
from distill.data.read_ahead import AHEAD, decode_ahead
from distill.data.splits import Split, scan_split
from distill.data.streamed_pixels import (
    StreamedPixels,
    read_batches,
    read_in_order,
    select_rows,
)
from distill.errors import UnreadableImages

SIZE = 16


@pytest.fixture
def split(image_folder) -> Split:
    return scan_split(image_folder({"val": {"n1": 9, "n2": 8}}), "unseen")


def test_streamed_pixels_equal_the_cached_ones_in_any_order(split, tmp_path):
    cached = torch.from_numpy(load_pixels(split, SIZE, tmp_path / "cache"))
    streamed = open_pixels(split, SIZE, tmp_path / "none", "streamed")
    assert not (tmp_path / "none").exists()
    assert (len(streamed), streamed.shape) == (17, cached.shape)
    mask = torch.arange(17) % 3 == 0
    for rows in (torch.tensor([5, 0, 16, 5]), mask, slice(2, 4), slice(0, 0), torch.arange(17)):
        assert streamed[rows].equal(cached[rows])
    batches = torch.randperm(17).split(4)
    read = [list(read_batches(pixels, batches)) for pixels in (streamed, cached)]
    assert [len(batch) for batch in read[0]] == [4, 4, 4, 4, 1]
    assert all(batch.equal(other) for batch, other in zip(*read, strict=True))
    assert torch.cat(list(read_in_order(streamed, 5))).equal(cached)


def test_only_a_few_batches_are_decoded_ahead(split):
    decoded = []

    def decode(image):
        decoded.append(image)
        return torch.zeros(3, 1, 1, dtype=torch.uint8).numpy()

    batches = decode_ahead(([path] for path in 20 * split.paths), decode)
    next(batches)
    batches.close()  # waits for the threads
    assert 1 <= len(decoded) <= AHEAD + 1


def test_an_image_deleted_since_is_named(split):
    streamed = StreamedPixels(split.paths, SIZE)
    split.paths[3].unlink()
    split.paths[4].write_bytes(b"no image")
    with pytest.raises(UnreadableImages, match=r"cannot read 2 images: .*003.png .*004.png"):
        streamed[torch.tensor([1, 3, 4])]
    assert len(streamed[slice(0, 3)]) == 3


def test_chosen_images_are_decoded_when_they_are_used(split):
    streamed = StreamedPixels(split.paths, SIZE)
    expected = streamed[torch.tensor([1, 4])]
    chosen = select_rows(streamed, torch.arange(len(split)) % 3 == 1)
    assert chosen[slice(0, 2)].equal(expected)
    split.paths[1].unlink()
    with pytest.raises(UnreadableImages, match=r"001\.png"):
        chosen[slice(0, 2)]


def test_pixels_that_fit_are_cached_and_others_streamed(split, tmp_path):
    large = 1024
    choice = choose_pixels("auto", [split], SIZE, tmp_path)
    assert str(choice) == "pixels: cached (0.0 GB decoded)"
    count = memory_bytes() // (2 * 3 * large**2) + 1
    paths = (split.paths * (count // len(split) + 1))[:count]
    many = dataclasses.replace(split, paths=paths)
    choice = choose_pixels("auto", [many], large, tmp_path)
    assert choice.mode == "streamed" and "more than 50% of the memory" in choice.reason
    assert choose_pixels("cached", [many], large, tmp_path).mode == "cached"
    assert choose_pixels("streamed", [split], SIZE, tmp_path).mode == "streamed"


def test_what_is_cached_already_needs_no_more_disk(split, small_disk):
    size = 120  # more than half of the disk, which it fits on
    cache = small_disk / "new" / "cache"
    needed = len(split) * 3 * size**2
    choice = choose_pixels("auto", [split], size, cache)
    assert choice.mode == "streamed" and "more than 50% of the free disk" in choice.reason
    load_pixels(split, size, cache)
    assert sum(file.stat().st_size for file in cache.iterdir()) == needed
    assert choose_pixels("auto", [split], size, cache).mode == "cached"
