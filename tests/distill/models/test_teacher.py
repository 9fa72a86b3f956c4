import shutil

import open_clip
import pytest
import torch
from PIL import Image

from distill.errors import ModelError
from distill.models.teacher import load_teacher

TEXTS = [
    "a photo of a cat",
    "a photo of a very large dog with long ears . It has brown fur, and a bushy tail!",
    "x",
    "a photo of a cat",
]


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return load_teacher(tiny_teacher)


def test_a_teacher_describes_its_inputs_and_outputs(teacher):
    assert (teacher.dim, teacher.context_length, teacher.image_size) == (32, 77, 32)


def test_texts_are_encoded_as_open_clip_encodes_them(teacher, tiny_teacher):
    model, _, _ = open_clip.create_model_and_transforms(tiny_teacher)
    tokens = open_clip.get_tokenizer(tiny_teacher)(TEXTS)
    with torch.inference_mode():
        expected = model.eval().encode_text(tokens, normalize=True)
    assert torch.allclose(teacher.encode_text(TEXTS), expected, atol=1e-5)


def test_a_hugging_face_text_tower_gives_the_same_features_without_padding(shared_hub):
    name = "hf-hub:bench/lite0-minilm"
    teacher = load_teacher(name)
    model, _, _ = open_clip.create_model_and_transforms(name)
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(name)(TEXTS)
        expected = model.eval().encode_text(tokens, normalize=True)
    assert torch.allclose(teacher.encode_text(TEXTS), expected, atol=1e-5)


def test_tokens_are_counted_with_start_and_end(teacher):
    assert teacher.token_count("a photo") == 4
    assert teacher.token_count("word " * 100) == 102


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23@openai", "did you mean ViT-B-32"),
        ("ViT-B-32", "pretrained tags behind an '@': "),
        ("ViT-B-32@nonsense", "pretrained tags behind an '@': "),
        ("local-dir:/nowhere", "no file /nowhere/open_clip_config.json"),
    ],
)
def test_an_unknown_teacher_is_named_with_the_remedy(name, message):
    with pytest.raises(ModelError) as error:
        load_teacher(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_cut_off_mid_file_are_named(tiny_teacher_folder, tmp_path):
    shutil.copytree(tiny_teacher_folder, tmp_path / "t")
    weights = tmp_path / "t" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="damaged"):
        load_teacher(f"local-dir:{tmp_path / 't'}")


def test_a_configuration_that_is_no_json_is_named(tiny_teacher_folder, tmp_path):
    shutil.copytree(tiny_teacher_folder, tmp_path / "t")
    (tmp_path / "t" / "open_clip_config.json").write_text("{")
    with pytest.raises(ModelError, match="no open_clip configuration"):
        load_teacher(f"local-dir:{tmp_path / 't'}")


def test_crops_are_encoded_as_preprocessed_images(teacher):
    pixels = torch.randint(0, 256, (50, 70, 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.to(torch.uint8).numpy())
    expected = teacher.encode_image(teacher.preprocess(image)[None], normalize=False)
    found = teacher.encode_crops(teacher.crop(image)[None])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_strip_is_cropped_before_it_is_resized(teacher):
    """All of it in 32 pixels across would have more pixels than Pillow can count."""
    crop = teacher.crop(Image.new("RGB", (12_000_000, 1), (220, 30, 30)))
    assert crop.shape == (3, teacher.image_size, teacher.image_size)
    assert crop.flatten(1).unique(dim=1).tolist() == [[220], [30], [30]]


def test_a_teacher_computes_in_the_precision_that_is_asked_for(tiny_teacher):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact, reduced = (
        load_teacher(tiny_teacher, precision=precision).encode_image(images)
        for precision in ("float32", "bfloat16")
    )
    assert not torch.equal(exact, reduced)
    assert (exact * reduced).sum(dim=1).min() > 0.99
