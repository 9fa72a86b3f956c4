import pytest
import torch
import torch.nn.functional as F

from distill.data.releases import shuffle_texts
from distill.embeddings.class_prompts import prompts_of
from distill.embeddings.text_bank import TextBank, build_text_bank
from distill.errors import Interrupted, TextError
from distill.models.teacher import TEXT_BATCH, load_teacher
from tests.distill.conftest import make_release

NAMES = {"n1": "red fox", "n2": "tree frog", "n3": "surf scoter"}
TEXTS = {
    "n1": "It has rusty fur and a bushy tail.",
    "n2": "It is small, green and sticky.",
    "n3": "A black duck with a white nape.",
}


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return load_teacher(tiny_teacher)


@pytest.fixture
def release():
    return make_release(NAMES, TEXTS)


def test_names_and_descriptions_follow_the_papers_templates(release):
    label = release.labels[0]
    assert prompts_of(label, "name") == ("a photo of red fox",)
    assert prompts_of(label, "name+description") == (
        "a photo of red fox . It has rusty fur and a bushy tail.",
    )


def test_an_ensemble_is_the_normalised_mean_over_all_texts(teacher, release):
    label = release.labels[0].model_copy(update={"sentences": ("Long ears.", "White chest.")})
    bank = build_text_bank(teacher, release.model_copy(update={"labels": (label,)}), "ensemble")
    texts = [f"a photo of red fox . {t}" for t in (TEXTS["n1"], "Long ears.", "White chest.")]
    expected = F.normalize(teacher.encode_text(texts).mean(0), dim=0)
    assert torch.allclose(bank.features[0], expected, atol=1e-6)


def test_attributes_are_one_prompt_for_each_value(release):
    label = release.labels[0].model_copy(
        update={"attributes": {"colours": ("rusty", "white"), "shape": ("slender",)}}
    )
    assert prompts_of(label, "attributes") == (
        "a photo of red fox . colours: rusty",
        "a photo of red fox . colours: white",
        "a photo of red fox . shape: slender",
    )


def test_a_text_longer_than_the_context_is_flagged_and_averaged_by_sentence(teacher):
    long = "It is green and has many spots. " * 20 + "It has a tail."
    release = make_release({"n1": "frog", "n2": "toad"}, {"n1": long, "n2": "It is brown."})
    bank = build_text_bank(teacher, release, "name+description")
    assert bank.flagged == ("n1",)
    sentences = ["a photo of frog . It is green and has many spots."] * 20
    parts = teacher.encode_text([*sentences, "a photo of frog . It has a tail."])
    assert torch.allclose(bank.features[0], F.normalize(parts.mean(0), dim=0), atol=1e-6)


def test_one_endless_sentence_is_still_encoded_to_its_last_word(teacher):
    words = {"n1": "spotted " * 150 + "blue", "n2": "spotted " * 150 + "red"}
    bank = build_text_bank(teacher, make_release({"n1": "a", "n2": "a"}, words), "name+description")
    assert not torch.equal(bank.features[0], bank.features[1])


def test_a_label_without_text_is_named_with_the_remedy(teacher):
    release = make_release(NAMES, {"n1": "It is red."})
    with pytest.raises(TextError, match=r"'n2' \(tree frog\) has no text .* enrich it"):
        build_text_bank(teacher, release, "name+description")


def test_a_class_outside_the_release_is_named(teacher, release):
    with pytest.raises(TextError, match="no label 'n9'"):
        build_text_bank(teacher, release, "name", keys=["n1", "n9"])


def test_a_bank_survives_its_file(teacher, release, tmp_path):
    bank = build_text_bank(teacher, release, "name+description")
    bank.save(tmp_path / "bank.safetensors")
    again = TextBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(again.features, bank.features)
    assert (again.keys, again.names, again.strategy) == (bank.keys, bank.names, bank.strategy)


def test_a_cut_off_bank_is_named(teacher, release, tmp_path):
    path = tmp_path / "bank.safetensors"
    build_text_bank(teacher, release, "name").save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TextError, match="damaged or not a text bank"):
        TextBank.load(path)


def test_a_damaged_cache_is_rebuilt(teacher, release, tmp_path):
    first = build_text_bank(teacher, release, "name", cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"nonsense")
    assert torch.equal(
        build_text_bank(teacher, release, "name", cache=tmp_path).features, first.features
    )
    assert file.stat().st_size > 100


def test_the_control_gives_every_label_the_texts_of_another(release):
    shuffled = shuffle_texts(release, seed=3)
    assert [label.name for label in shuffled.labels] == list(NAMES.values())
    assert sorted(label.description for label in shuffled.labels) == sorted(TEXTS.values())
    for before, after in zip(release.labels, shuffled.labels, strict=True):
        assert before.description != after.description
    assert shuffled.hash != release.hash


def test_a_bank_tells_its_progress_and_ends_when_that_raises(teacher, tmp_path):
    release = make_release({f"n{number}": f"fish {number}" for number in range(TEXT_BATCH + 9)})
    shown = []
    build_text_bank(
        teacher, release, "name", progress=lambda done, total: shown.append((done, total))
    )
    assert shown == [(TEXT_BATCH, TEXT_BATCH + 9), (TEXT_BATCH + 9, TEXT_BATCH + 9)]

    def stop(done, total):
        raise Interrupted

    with pytest.raises(Interrupted):
        build_text_bank(teacher, release, "name", cache=tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())
