from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open

from demo import make_teacher
from demo.make_teacher import Captioner, encode_text, held_out, known_by_name, training_looks
from demo.measure import recorded_descriptions, shuffled, teacher_accuracies
from demo.world import Charm, charms

TEACHER = Path(make_teacher.__file__).with_name("teacher")
MEBIBYTE = 1024 * 1024


def test_no_training_image_shows_shape_colour_and_pattern_of_an_unseen_class() -> None:
    subjects = training_looks(np.random.default_rng(0), wild=4000, per_class=2)
    cores = {(s.look if isinstance(s, Charm) else s).core for s in subjects}
    assert len(held_out()) == sum(not charm.seen for charm in charms())
    assert not cores & held_out()
    assert len(cores) > 500  # of 600: all that may be shown is met


def test_captions_never_name_an_unseen_class_nor_every_seen_one() -> None:
    rng = np.random.default_rng(0)
    write = Captioner(rng)
    captions = [write(s) for s in training_looks(rng, wild=3000, per_class=40)]
    epithet = {charm: charm.name.split()[0] for charm in charms()}
    written = {word for caption in captions for word in caption.split()}
    named = {charm for charm in charms() if epithet[charm] in written}
    assert named == set(known_by_name())
    assert all(charm.seen for charm in named)
    assert len(named) < sum(charm.seen for charm in charms())


def test_the_shipped_teacher_is_small_and_records_how_it_was_made() -> None:
    assert sum(file.stat().st_size for file in TEACHER.iterdir()) < 8 * MEBIBYTE
    assert "demo/make_teacher.py" in (TEACHER / "README.md").read_text(encoding="utf-8")
    with safe_open(TEACHER / "open_clip_model.safetensors", framework="pt") as weights:
        table = weights.get_tensor("token_embedding.weight")
    assert (table.abs().sum(1) == 0).float().mean() > 0.9  # what captions never used


@pytest.fixture(scope="module")
def accuracies() -> dict[str, dict[str, float]]:
    return teacher_accuracies(seed=5, images=12)


def test_the_shipped_teacher_gains_from_descriptions_on_seen_and_unseen_classes(accuracies) -> None:
    name, described = accuracies["name"], accuracies["name+description"]
    chance = 100 / sum(not charm.seen for charm in charms())
    assert described["unseen"] > 5 * chance
    assert described["unseen"] > name["unseen"] + 20
    assert described["seen"] > name["seen"] + 5


def test_descriptions_of_other_classes_do_harm_so_the_gain_is_no_given(accuracies) -> None:
    for split in ("seen", "unseen"):
        assert accuracies["shuffled"][split] < accuracies["name"][split]


def test_shuffling_gives_each_class_the_description_of_another() -> None:
    descriptions = recorded_descriptions()
    names = list(descriptions)
    dealt = shuffled(descriptions, names)
    assert sorted(dealt.values()) == sorted(descriptions.values())
    assert all(dealt[name] != descriptions[name] for name in names)


@torch.inference_mode()
def test_training_encodes_text_as_open_clip_does() -> None:
    model = open_clip.create_model(f"local-dir:{TEACHER}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{TEACHER}")(["a red star", "a photo of a vask ."])
    torch.testing.assert_close(encode_text(model, tokens), model.encode_text(tokens, True))
