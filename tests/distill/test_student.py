import pytest
import torch

from distill.errors import ModelError
from distill.student import build_student, load_student, save_student


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_resnet", 32), ("resnet10t", 64), ("test_vit", 32), ("test_convnext", 48)],
)
def test_any_timm_model_gives_features_in_the_teachers_space(name, size):
    student = build_student(name, 24, image_size=size)
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    assert student.encode(pixels).shape == (3, 24)


def test_a_resnet_keeps_two_by_two_places_at_32_and_64_pixels():
    for size in (32, 64):
        backbone = build_student("resnet18", 8, image_size=size).eval().backbone
        with torch.inference_mode():
            assert backbone.forward_features(torch.zeros(1, 3, size, size)).shape[-2:] == (2, 2)


def test_large_images_keep_timms_own_stem():
    assert build_student("resnet18", 8, image_size=224).backbone.conv1.kernel_size == (7, 7)


def test_bytes_and_fractions_are_the_same_image():
    student = build_student("test_resnet", 8, image_size=32).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(student(pixels), student(pixels.float() / 255))


def test_an_unknown_student_is_named_with_near_matches():
    with pytest.raises(ModelError, match="no student 'resnet81': did you mean .*resnet"):
        build_student("resnet81", 8, image_size=32)


def test_pretrained_weights_out_of_reach_are_said_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot get pretrained weights for the student") as error:
        build_student("resnet18", 8, image_size=32, pretrained=True)
    assert "\n" not in str(error.value)


def test_a_student_survives_its_file(tmp_path):
    student = build_student("test_resnet", 8, image_size=32)
    path = tmp_path / "student.safetensors"
    save_student(student, path, name="test_resnet", dim=8, image_size=32, teacher="t")
    again, size = load_student(path)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert size == 32
    assert torch.equal(again.encode(pixels), student.encode(pixels))


def test_a_student_cut_off_mid_file_is_named(tmp_path):
    path = tmp_path / "student.safetensors"
    student = build_student("test_resnet", 8, image_size=32)
    save_student(student, path, name="test_resnet", dim=8, image_size=32, teacher="t")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cut off or no student: train it again"):
        load_student(path)
    with pytest.raises(ModelError, match="there is no student"):
        load_student(tmp_path / "nothing")
