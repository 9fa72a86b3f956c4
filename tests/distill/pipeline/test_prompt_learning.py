"""Prompt learning: the context learns, the tower does not, and the bank can be evaluated with."""

import json

import pytest
import torch
from typer.testing import CliRunner

from distill.cli.main import app
from distill.embeddings.text_bank import TextBank
from distill.errors import TextError
from distill.models.teacher import load_teacher
from distill.pipeline.prompt_learning import Settings, _Prompts, encode_learned, learn_context
from tests.distill.conftest import DEMO, make_release

LABELS = make_release(
    {"n1": "red fox", "n2": "tree frog", "n3": "surf scoter"},
    {"n1": "It is rusty.", "n2": "It is small and green.", "n3": "A black duck."},
).labels
CHARMS = f"local-dir:{DEMO / 'teacher'}"


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return load_teacher(tiny_teacher)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    centres = torch.randn(3, 32, generator=generator)
    return centres[targets] + 0.3 * torch.randn(60, 32, generator=generator), targets


def learn(teacher, images, **changes):
    options = {"tokens": 4, "described": False, "steps": 15, "seed": 0} | changes
    return learn_context(teacher, LABELS, *images, Settings(**options))


@pytest.mark.parametrize("described", [False, True])
def test_the_context_is_trained_and_the_text_tower_stays_frozen(teacher, images, described):
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    learned = learn(teacher, images, described=described)

    assert learned.context.shape == (4, 32)
    assert learned.loss_after < learned.loss_before - 0.01
    for name, value in teacher.model.state_dict().items():
        assert value.equal(before[name])
    assert not any(weight.requires_grad for weight in teacher.model.parameters())


def test_one_seed_gives_one_context_and_another_seed_another(teacher, images):
    first, again, other = (learn(teacher, images, steps=2, seed=seed) for seed in (0, 0, 1))
    assert first.context.equal(again.context)
    assert not first.context.equal(other.context)


def test_where_learning_begins_the_features_are_those_of_a_photo_of(teacher):
    generator = torch.Generator().manual_seed(0)
    start = _Prompts(teacher, LABELS, 3, described=True).start(generator)
    texts = [f"a photo of {label.name} . {label.description}" for label in LABELS]

    features = encode_learned(teacher, LABELS, start, described=True)
    torch.testing.assert_close(features, teacher.encode_text(texts), atol=1e-5, rtol=1e-4)


def test_the_gradient_is_that_of_finite_differences(teacher):
    context = _Prompts(teacher, LABELS, 2, described=False).start(torch.Generator().manual_seed(0))
    prompts = _Prompts(teacher, LABELS, 2, described=False)
    weights = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    context.requires_grad_()
    (prompts.encode(context) * weights).sum().backward()
    with torch.no_grad():
        for place in ((0, 0), (1, 7)):
            step = torch.zeros_like(context)
            step[place] = 1e-3
            up, down = ((prompts.encode(context + s) * weights).sum() for s in (step, -step))
            slope = (up - down).item() / 2e-3
            assert context.grad[place].item() == pytest.approx(slope, rel=0.05, abs=5e-3)


def test_a_description_longer_than_the_context_is_the_mean_of_its_sentences(teacher):
    sentences = ["It is green and has many spots."] * 20 + ["It has a tail."]
    labels = make_release({"n1": "frog"}, {"n1": " ".join(sentences)}).labels
    start = _Prompts(teacher, labels, 3, described=True).start(torch.Generator().manual_seed(0))
    features = encode_learned(teacher, labels, start, described=True)
    mean = teacher.encode_text([f"a photo of frog . {sentence}" for sentence in sentences]).mean(
        dim=0
    )
    expected = torch.nn.functional.normalize(mean, dim=0)
    torch.testing.assert_close(features[0], expected, atol=1e-5, rtol=1e-4)


def test_texts_are_encoded_as_before_when_learning_is_over(teacher, images):
    before = teacher.encode_text(["a photo of red fox"])
    learn(teacher, images, steps=1)
    assert teacher.encode_text(["a photo of red fox"]).equal(before)


def test_a_hugging_face_tower_takes_a_learned_context_too(shared_hub):
    teacher = load_teacher("hf-hub:bench/lite0-minilm")
    start = _Prompts(teacher, LABELS, 3, described=False).start(torch.Generator().manual_seed(0))
    features = encode_learned(teacher, LABELS, start, described=False)
    plain = teacher.encode_text([f"a photo of {label.name}" for label in LABELS])
    torch.testing.assert_close(features, plain, atol=1e-5, rtol=1e-4)


def test_a_name_that_does_not_fit_behind_the_context_is_refused(teacher, images):
    with pytest.raises(TextError, match=r"'n1' \(red fox\) with 76 learned tokens is longer"):
        learn(teacher, images, tokens=76)


def test_a_label_without_description_is_named(teacher, images):
    (label, *_) = make_release({"n1": "red fox"}).labels
    with pytest.raises(TextError, match=r"'n1' \(red fox\) has no description"):
        learn_context(teacher, [label], *images, Settings(2, described=True, steps=1, seed=0))


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def learned_bank(charm_world, charm_run, tmp_path_factory):
    """The output of the command, and the text bank that it wrote."""
    out = tmp_path_factory.mktemp("learned") / "bank.safetensors"
    done = run(
        "learn-prompt", "--data", charm_world, "--teacher", CHARMS, "--out", out,
        "--release", charm_run / "release.json", "--described", "--steps", 8,
        "--cache", charm_world / "cache", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), out


def test_on_the_demos_teacher_seen_accuracy_does_not_fall(learned_bank):
    result, _ = learned_bank
    rows = {(row["text"], row["split"]): row["top1"] for row in result["accuracies"]}
    assert result["loss_after"] < result["loss_before"]
    learned = rows["name+description, 4 learned", "seen"]
    assert learned >= rows["name+description", "seen"] - 100 / 72  # no more than one image
    assert rows["name+description, 4 learned", "unseen"] > 50


def test_the_bank_can_be_evaluated_with(learned_bank, charm_world, tiny_teacher):
    result, out = learned_bank
    options = ("--data", charm_world, "--text-bank", out, "--cache", charm_world / "cache")
    done = run("evaluate", *options, "--teacher", CHARMS, "--split", "seen", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == result["accuracies"][2]
    assert TextBank.load(out).learned == 4

    for words, message in (
        (("--teacher", tiny_teacher), f"was made with another teacher: give --teacher {CHARMS}"),
        (("--teacher", CHARMS, "--strategy", "name"), "give either --text-bank or a release"),
    ):
        done = run("evaluate", *options, *words)
        assert done.exit_code == 1
        assert message in done.stderr and done.stderr.count("\n") == 1
