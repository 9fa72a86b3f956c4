import torch

from distill.augment import Views, augment


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PIXELS = torch.randint(0, 256, (64, 3, 32, 32), generator=generator(0), dtype=torch.uint8)


def test_the_generator_alone_decides_what_is_seen():
    assert torch.equal(augment(PIXELS, generator(1)), augment(PIXELS, generator(1)))
    assert not torch.equal(augment(PIXELS, generator(1)), augment(PIXELS, generator(2)))


def test_views_are_images_of_the_same_size_between_0_and_1():
    views = augment(PIXELS, generator(1))
    assert views.shape == PIXELS.shape
    assert views.min() >= 0 and views.max() <= 1


def test_the_whole_view_is_the_image_itself_and_a_negative_extent_mirrors_it():
    images = PIXELS.float() / 255
    whole = Views(torch.zeros(64, 2), torch.ones(64, 2))
    assert torch.allclose(whole.apply(images, 32), images, atol=1e-5)
    mirrored = Views(torch.zeros(64, 2), torch.tensor([[-1.0, 1.0]]).expand(64, 2))
    assert torch.allclose(mirrored.apply(images, 32), images.flip(3), atol=1e-5)


def test_crops_stay_inside_the_image_and_half_are_mirrored():
    views = Views.draw(4000, generator(3))
    assert ((views.centre.abs() + views.extent.abs()) <= 1 + 1e-6).all()
    assert 0.45 < (views.extent[:, 0] < 0).float().mean() < 0.55
    area = views.extent.abs().prod(dim=1)
    assert area.min() >= 0.3 and area.max() <= 1
