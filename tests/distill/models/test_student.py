"""Students: any timm model at any size that it can take, saved and loaded, and what is refused."""

import os

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from distill.data.augment import fixed_views
from distill.errors import DataError, ModelError
from distill.models.student import (
    MultiView,
    build_student,
    load_student,
    save_for_timm,
    save_student,
)


def positions(student, size):
    """Positions a side that reach the first stage of a ResNet."""
    stem = nn.Sequential(*list(student.backbone.children())[:4])
    with torch.inference_mode():
        return stem(torch.zeros(1, 3, size, size)).shape[-1]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", 32),
        ("test_vit", 32),
        ("test_vit", 50),
        ("test_efficientnet", 64),
        ("test_convnext", 48),
        ("mobilevit_xxs", 64),  # convolutions and attention
        ("levit_128s", 224),
        ("test_mambaout", 64),  # has more features than its config states
        ("resnet18", 64),
    ],
)
def test_a_student_gives_features_of_the_teachers_dimension(name, size):
    student = build_student(name, 24, image_size=size)
    features = student(torch.rand(2, 3, size, size))

    assert features.shape == (2, 24)
    assert features.isfinite().all()
    assert student.training


def test_a_student_normalises_images_as_its_network_was_made_for():
    student = build_student("test_resnet", 8, image_size=32).eval()
    config = timm.get_pretrained_cfg("test_resnet")
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std))

    with torch.inference_mode():
        expected = student.projection(student.backbone((images - mean) / std))
        torch.testing.assert_close(student(images), expected)


def test_bytes_and_fractions_of_the_same_image_give_the_same_features():
    student = build_student("test_resnet", 8, image_size=32).eval()
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)

    with torch.inference_mode():
        torch.testing.assert_close(student(pixels), student(pixels.float() / 255))
        torch.testing.assert_close(student.encode(pixels), student(pixels))


def test_encoding_many_images_is_the_same_as_encoding_each():
    student = build_student("test_resnet", 8, image_size=16)
    pixels = torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8)
    features = student.encode(pixels)

    assert features.shape == (300, 8)
    single = torch.cat([student.encode(pixels[place : place + 1]) for place in (0, 255, 256, 299)])
    torch.testing.assert_close(features[[0, 255, 256, 299]], single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("views", ["centre", "ten-crop"])
def test_of_several_test_views_the_unit_features_are_averaged(views):
    student = build_student("test_resnet", 8, image_size=32)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        whole = student.eval()(pixels)
        seen = [student(view) for view in fixed_views(pixels, views)]
    unit = sum(features_ / features_.norm(dim=1, keepdim=True) for features_ in seen) / len(seen)

    student.test_views = views
    found = student.encode(pixels)
    torch.testing.assert_close(found if len(seen) > 1 else normalize(found), unit)
    assert not found.allclose(whole, atol=1e-4)
    torch.testing.assert_close(student.encode(pixels, "whole"), whole)


def test_a_student_is_tested_again_as_it_was_tested(tmp_path):
    student = build_student("test_resnet", 8, image_size=32)
    student.test_views = "ten-crop"
    path = tmp_path / "student.safetensors"
    save_student(student, path, name="test_resnet", dim=8, image_size=32, teacher="any")

    assert load_student(path)[0].test_views == "ten-crop"
    content = path.read_bytes().replace(b'"ten-crop"', b'"six-crop"')
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a student: train it again"):
        load_student(path)


@pytest.mark.parametrize(("size", "expected"), [(224, 56), (96, 24), (64, 16), (32, 16)])
def test_a_resnets_stem_leaves_enough_of_a_small_image(size, expected):
    student = build_student("resnet18", 8, image_size=size)

    assert positions(student, size) == expected
    first = next(module for module in student.backbone.modules() if isinstance(module, nn.Conv2d))
    assert (first.kernel_size, first.stride) == (
        ((3, 3), (2, 2)) if size <= 64 else ((7, 7), (2, 2))
    )


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("test_vit", 160, 10),  # its own patches of 16 px leave enough
        ("test_vit", 64, 8),
        ("test_vit", 32, 8),
        ("test_vit", 50, 10),  # 5 px; 6 px would leave a border unseen
        ("vit_tiny_patch16_224", 16, 8),
    ],
)
def test_a_vit_sees_at_least_8_by_8_patches(name, size, grid):
    student = build_student(name, 8, image_size=size)
    assert student.backbone.patch_embed.grid_size == (grid, grid)


def test_weights_are_stored_channels_last():
    student = build_student("test_resnet", 8, image_size=32)
    kernels = [p for p in student.parameters() if p.ndim == 4 and p.shape[2] > 1]

    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def refusal(name, size=32, *, pretrained=False):
    with pytest.raises(ModelError) as error:
        build_student(name, 8, image_size=size, pretrained=pretrained)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_student_is_answered_with_names_near_to_it():
    assert "'resnet8'" in refusal("resnet8") and "resnet18" in refusal("resnet8")
    assert "'zzzz': see timm.list_models()" in refusal("zzzz")


def test_an_unknown_set_of_weights_is_answered_with_those_there_are():
    message = refusal("test_resnet.nowhere")
    assert "'test_resnet.nowhere'" in message and "test_resnet.r160_in1k" in message


def test_a_student_that_cannot_take_images_so_small_is_refused():
    message = refusal("vgg11", 16)
    assert "vgg11 cannot take images of 16 px: choose another image_size" in message


def test_a_model_that_nobody_trained_has_no_pretrained_weights():
    message = refusal("resnetv2_50d", pretrained=True)
    assert "no pretrained weights" in message and "pretrained = false" in message


def test_unavailable_pretrained_weights_are_reported_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    message = refusal("test_resnet", pretrained=True)
    assert "cannot get pretrained weights for the student test_resnet" in message
    assert "check the connection to the hub" in message and "pretrained = false" in message


@pytest.fixture
def saved(tmp_path):
    student = build_student("test_vit", 8, image_size=32).eval()
    path = tmp_path / "student.safetensors"
    save_student(student, path, name="test_vit", dim=8, image_size=32, teacher="teacher")
    return student, path


def test_a_saved_student_is_loaded_as_it_was(saved):
    student, path = saved
    loaded, size = load_student(path)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)

    assert size == 32
    assert loaded.encode(pixels).equal(student.encode(pixels))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "size", "more"),
    [
        ("test_efficientnet", 32, {}),
        ("test_vit", 32, {}),  # smaller patches
        ("test_vit", 64, {}),
        ("test_vit", 224, {}),
        ("resnet10t", 64, {}),
        ("resnet18", 64, {}),  # a deep stem
        ("test_resnet", 224, {"output_stride": 16}),
        ("mobilevit_xxs", 64, {}),  # convolutions and attention
        ("test_convnext", 224, {}),
    ],
)
def test_plain_timm_loads_the_student_and_gives_the_same_features(tmp_path, name, size, more):
    torch.manual_seed(0)
    student = build_student(name, 24, image_size=size, **more)
    student(torch.rand(4, 3, size, size))  # statistics of batch norms
    assert save_for_timm(student, tmp_path / "timm", name=name, image_size=size)

    model = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert list(config["input_size"]) == [3, size, size]
    assert list(config["mean"]) == pytest.approx(student.mean.flatten().tolist())
    images = torch.rand(3, 3, size, size)
    with torch.inference_mode():
        found = model((images - student.mean) / student.std)
        torch.testing.assert_close(found, student.eval()(images), rtol=1e-3, atol=1e-4)


def test_a_student_like_no_model_of_timm_is_refused_there(tmp_path):
    """At 32 px a ResNet has no pooling: with it, the same weights would classify wrongly."""
    student = build_student("test_resnet", 8, image_size=32)
    (tmp_path / "timm").mkdir()  # of an earlier training
    assert not save_for_timm(student, tmp_path / "timm", name="test_resnet", image_size=32)
    assert not (tmp_path / "timm").exists()
    plain = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(RuntimeError, match=r"Unexpected key.* \"maxpool.removed\""):
        plain.load_state_dict(student.backbone.state_dict())


def test_files_have_the_modes_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        student = build_student("test_vit", 8, image_size=32)
        path = tmp_path / "student.safetensors"
        save_student(student, path, name="test_vit", dim=8, image_size=32, teacher="teacher")
        save_for_timm(student, tmp_path / "timm", name="test_vit", image_size=32)
    finally:
        os.umask(before)
    files = {file.name: file for file in tmp_path.rglob("*") if file.is_file()}
    assert set(files) == {"student.safetensors", "config.json", "model.safetensors"}
    assert {file.stat().st_mode & 0o777 for file in files.values()} == {0o640}


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_student_cut_off_is_refused_with_its_path(saved, share):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(ModelError, match="damaged or not a student: train it again") as error:
        load_student(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_student_is_reported(tmp_path):
    with pytest.raises(ModelError, match="there is no student .*: train it first"):
        load_student(tmp_path / "student.safetensors")


def test_a_full_disk_is_reported_and_leaves_no_partial_file(small_disk):
    student = build_student("test_vit", 512, image_size=32)
    with pytest.raises(DataError, match="free some space") as error:
        save_student(
            student,
            small_disk / "student.safetensors",
            name="test_vit",
            dim=512,
            image_size=32,
            teacher="teacher",
        )
    assert "\n" not in str(error.value)
    assert list(small_disk.iterdir()) == []


def test_two_views_give_the_mean_of_their_projections_in_whatever_order():
    student = build_student("test_resnet", 8, image_size=32).eval()
    scenes = torch.randint(0, 256, (3, 2, 3, 32, 32), dtype=torch.uint8)
    model = MultiView(student)

    with torch.inference_mode():
        expected = (student(scenes[:, 0]) + student(scenes[:, 1])) / 2
        torch.testing.assert_close(model(scenes), expected)
        torch.testing.assert_close(model(scenes.flip(1)), expected)
        torch.testing.assert_close(model.encode(scenes), expected)
        torch.testing.assert_close(model(scenes[:, :1]), student(scenes[:, 0]))


def weights_file(folder, name="test_resnet", *, image_size=None, drop=(), **more):
    """A file as users have them: of a network with its classifier, made for its own image size."""
    torch.manual_seed(1)
    network = timm.create_model(name, **({"img_size": image_size} if image_size else {}))
    tensors = {key: value for key, value in network.state_dict().items() if key not in drop}
    path = folder / f"{name}.safetensors"
    save_file({**tensors, **more}, path)
    return path, network.state_dict()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout", "test_vit3"])
def test_a_student_starts_from_the_weights_in_a_file(tmp_path, name):
    path, found = weights_file(tmp_path, name)
    student = build_student(name, 8, image_size=64, weights=path)

    same = [
        key
        for key, value in student.backbone.state_dict().items()
        if value.shape == found[key].shape and torch.equal(value, found[key])
    ]
    assert len(same) >= len(student.backbone.state_dict()) - 1  # positions are fitted to the size
    assert student.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 8)


def test_a_student_that_kept_its_stem_is_saved_and_loaded_again(tmp_path):
    path, _ = weights_file(tmp_path, "resnet10t")
    for name in ("resnet10t", "resnet18"):
        path, found = weights_file(tmp_path, name)
        student = build_student(name, 8, image_size=64, weights=path)
        assert student.backbone.state_dict().keys() <= found.keys()
        out = tmp_path / "student.safetensors"
        save_student(student, out, name=name, dim=8, image_size=64, teacher="any")
        pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        torch.testing.assert_close(load_student(out)[0].encode(pixels), student.encode(pixels))


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "test_efficientnet"])
def test_a_smaller_output_stride_keeps_more_positions_and_is_saved_with_the_student(name, tmp_path):
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for stride in (32, 16, 8):
        student = build_student(name, 8, image_size=64, output_stride=stride).eval()
        with torch.inference_mode():
            grid = student.backbone.forward_features(pixels / 255).shape[-2:]
        assert grid == (64 // stride, 64 // stride)
        out = tmp_path / "student.safetensors"
        save_student(student, out, name=name, dim=8, image_size=64, teacher="any")
        torch.testing.assert_close(load_student(out)[0].encode(pixels), student.encode(pixels))


@pytest.mark.parametrize("name", ["test_vit", "vgg11"])
def test_a_student_that_can_have_no_other_output_stride_is_refused(name):
    with pytest.raises(ModelError, match="output stride of 16: leave output_stride at 32, or"):
        build_student(name, 8, image_size=64, output_stride=16)


def test_weights_of_another_network_are_refused_with_the_layers_that_differ(tmp_path):
    def refused(path):
        with pytest.raises(ModelError) as error:
            build_student("test_resnet", 8, image_size=64, weights=path)
        assert "\n" not in str(error.value)
        return str(error.value)

    lacking, _ = weights_file(tmp_path, drop={"conv1.0.weight", "bn1.weight"})
    assert "missing or unknown: bn1.weight, conv1.0.weight" in refused(lacking)
    unknown, _ = weights_file(tmp_path, extra=torch.zeros(2))
    assert "missing or unknown: extra" in refused(unknown)
    other, _ = weights_file(tmp_path, "test_vit")
    assert "do not fit the student test_resnet" in refused(other)
    reshaped, _ = weights_file(tmp_path, **{"bn1.weight": torch.zeros(3)})
    assert "do not fit the student test_resnet" in refused(reshaped)


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    pickled = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), pickled)
    for path in (pickled, tmp_path / "nowhere.safetensors"):
        with pytest.raises(ModelError, match="give a safetensors file"):
            build_student("test_resnet", 8, image_size=64, weights=path)
