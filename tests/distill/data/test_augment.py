"""Random views of a batch: what they may change, and what they may not."""

import pytest
import torch

from distill.data.augment import (
    JITTER,
    RATIO,
    SCALE,
    Jitter,
    Views,
    apply_views,
    fixed_views,
    sample_views,
)


def random_views(pixels, generator):
    return apply_views(pixels, sample_views(len(pixels), generator))


def generator(seed: int = 0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (16, 3, 24, 24), dtype=torch.uint8, generator=generator())


def test_views_are_floats_in_the_unit_interval_of_the_same_size(pixels):
    views = random_views(pixels, generator())

    assert views.shape == pixels.shape
    assert views.dtype == torch.float32
    assert views.min() >= 0 and views.max() <= 1


def test_one_seed_gives_one_set_of_views_and_another_seed_another(pixels):
    assert random_views(pixels, generator(1)).equal(random_views(pixels, generator(1)))
    assert not random_views(pixels, generator(1)).allclose(random_views(pixels, generator(2)))


def test_the_global_random_state_neither_matters_nor_changes(pixels):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = random_views(pixels, generator())
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(2)
    assert random_views(pixels, generator()).equal(first)


def test_equal_images_of_one_batch_get_different_views(pixels):
    views = random_views(pixels[:1].expand(8, -1, -1, -1), generator())

    assert all(not views[0].allclose(view) for view in views[1:])


def test_the_images_handed_in_stay_as_they_are(pixels):
    before = pixels.clone()
    random_views(pixels, generator())
    assert pixels.equal(before)


def test_crops_keep_the_stated_share_and_shape_and_stay_inside_the_image():
    views = Views.sample(20_000, generator())
    extent = views.extent.abs()

    assert (views.centre.abs() + extent).max() <= 1 + 1e-6
    area, ratio = extent.prod(dim=1), extent[:, 0] / extent[:, 1]
    assert area.max() <= SCALE[1] + 1e-6
    assert area.min() >= SCALE[0] * RATIO[0]  # a long crop may be cut at the image's edge
    assert (area >= SCALE[0] - 1e-6).double().mean() > 0.95
    assert ratio.min() >= RATIO[0] - 1e-6 and ratio.max() <= RATIO[1] + 1e-6
    assert (views.extent[:, 0] < 0).double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_whole_image_seen_straight_is_the_image_and_seen_mirrored_its_mirror(pixels):
    images = pixels.float() / 255
    whole = Views(torch.zeros(16, 2), torch.ones(16, 2))
    mirrored = Views(torch.zeros(16, 2), torch.tensor([[-1.0, 1.0]]).expand(16, 2))

    torch.testing.assert_close(whole.apply(images, 24), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored.apply(images, 24), images.flip(3), atol=1e-5, rtol=0)


def test_a_crop_at_pixel_borders_is_the_slice_of_the_image(pixels):
    images = pixels.float() / 255
    # The right half of the upper half: centre (0.5, −0.5), half the extent.
    quarter = Views(torch.tensor([[0.5, -0.5]]).expand(16, 2), torch.full((16, 2), 0.5))

    torch.testing.assert_close(quarter.apply(images, 12), images[:, :, :12, 12:], atol=1e-5, rtol=0)


def test_jitter_scales_brightness_and_contrast_of_an_image_as_a_whole():
    images = torch.full((4_000, 3, 2, 2), 0.5)
    images[:, :, 0] = 0.4  # mean 0.45
    seen = Jitter.sample(4_000, generator()).apply(images)
    mean = seen.mean(dim=(1, 2, 3)) / 0.45
    contrast = (seen[:, 0, 1, 0] - seen[:, 0, 0, 0]) / 0.1 / mean

    for scaled in (mean, contrast):
        assert scaled.min() >= 1 - JITTER - 1e-4 and scaled.max() <= 1 + JITTER + 1e-4
        assert scaled.min() < 1 - 0.9 * JITTER and scaled.max() > 1 + 0.9 * JITTER
    assert seen[:, 0].equal(seen[:, 1])  # a grey image stays grey


def test_what_was_drawn_can_be_kept_and_seen_again(pixels):
    params = sample_views(16, generator())

    assert params.shape == (16, 6)
    assert apply_views(pixels, params).equal(random_views(pixels, generator()))
    part = apply_views(pixels[3:5], params[3:5])
    assert part.allclose(apply_views(pixels, params)[3:5], atol=1e-6)


def test_a_larger_copy_of_an_image_gives_the_same_view():
    small = torch.randint(0, 256, (4, 3, 6, 6), generator=generator()).float()
    smooth = torch.nn.functional.interpolate(small, size=64, mode="bicubic").clamp(0, 255)
    large = torch.nn.functional.interpolate(smooth, size=128, mode="bilinear").clamp(0, 255)
    drawn = sample_views(4, generator())

    seen = apply_views(large.to(torch.uint8), drawn)
    reduced = torch.nn.functional.avg_pool2d(seen, 2)
    torch.testing.assert_close(
        reduced, apply_views(smooth.to(torch.uint8), drawn), atol=0.02, rtol=0
    )


def ramp(size: int = 32) -> torch.Tensor:
    """An image whose red is the place from left to right and whose green from top to bottom."""
    place = (torch.arange(size) + 0.5) / size
    return torch.stack([place.expand(size, size), place[:, None].expand(size, size)] * 2)[None, :3]


def middle(view: torch.Tensor) -> list[float]:
    return [round(float(value), 2) for value in view[0, :2].mean(dim=(1, 2))]


def test_the_whole_image_is_seen_as_it_is(pixels):
    (view,) = fixed_views(pixels, "whole")
    assert view.equal(pixels.float() / 255)


def test_the_centre_shows_seven_eighths_of_each_side():
    (view,) = fixed_views(ramp(), "centre")

    assert view.shape == ramp().shape
    assert middle(view) == [0.5, 0.5]
    width = view[0, 0, 0, -1] - view[0, 0, 0, 0]
    assert width == pytest.approx(7 / 8 * 31 / 32, abs=1e-3)


def test_ten_crops_are_the_centre_and_the_corners_each_also_mirrored():
    views = list(fixed_views(ramp().expand(3, -1, -1, -1), "ten-crop"))

    assert len(views) == 10
    assert {tuple(middle(view)) for view in views} == {
        (0.5, 0.5),
        *((x, y) for x in (0.44, 0.56) for y in (0.44, 0.56)),
    }
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        assert plain.shape == (3, 3, 32, 32)
        torch.testing.assert_close(mirrored, plain.flip(3))
    assert min(float(view.min()) for view in views) < 0.02  # up to the edge, and no further
    assert min(float(view.min()) for view in views) >= ramp().min() - 1e-6
