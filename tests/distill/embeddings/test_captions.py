"""Captions of single images: which are found, what they become, and what is refused."""

import json

import pytest
import torch

from distill.data.splits import scan_split
from distill.embeddings.captions import caption_features, read_captions
from distill.errors import TextError
from distill.models.teacher import load_teacher


@pytest.fixture
def root(image_folder):
    return image_folder({"train": {"n1": 2, "n2": 1}, "val_on_train": {"n2": 1}, "val": {"n3": 1}})


def write(root, *lines):
    path = root / "captions.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return path


def line(image, caption):
    return {"image": image, "caption": caption}


def test_images_are_named_below_the_data_folder_or_below_train(root):
    path = write(
        root,
        line("train/n1/001.png", "a dog"),
        line("n2/000.png", "a cat"),
        line("val/n3/000.png", "of another split"),
        line("n2/000.png", "a cat, seen again"),
    )
    captions = read_captions(path, root, scan_split(root, "train"))
    assert captions == ((), ("a dog",), ("a cat", "a cat, seen again"))


def test_features_are_those_of_the_texts_and_zeros_where_there_is_none(tiny_teacher, tmp_path):
    teacher = load_teacher(tiny_teacher)
    texts = ((), ("a dog",), ("a cat", "a fish"))
    features = caption_features(teacher, texts, cache=tmp_path)
    encoded = teacher.encode_text(["a dog", "a cat", "a fish"])
    assert not features[0].any()
    torch.testing.assert_close(features[1], encoded[0])
    mean = torch.nn.functional.normalize(encoded[1] + encoded[2], dim=0)
    torch.testing.assert_close(features[2], mean)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])  # a damaged cache is made again
    assert caption_features(teacher, texts, cache=tmp_path).equal(features)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1: expected"),
        ('\n{"image": "n1/000.png"}\n', "line 2: expected"),
        ('{"image": "n9/000.png", "caption": "a dog"}', "no caption for any image in .*train:"),
        ("", "no caption for any image in .*train:"),
    ],
)
def test_a_file_that_cannot_be_meant_is_told_in_one_line(root, content, said):
    path = root / "captions.jsonl"
    path.write_text(content)
    with pytest.raises(TextError, match=said) as error:
        read_captions(path, root, scan_split(root, "train"))
    assert "\n" not in str(error.value)
