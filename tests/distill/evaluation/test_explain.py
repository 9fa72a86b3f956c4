"""Predictions by attribute: the scores follow the paper, and the command lists what fired."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from contract import Release, ReleaseLabel, release_hash
from distill.cli.main import app
from distill.embeddings.attributes import attributes_of
from distill.embeddings.text_bank import TextBank
from distill.errors import DataError, TextError
from distill.evaluation.accuracy import accuracy
from distill.evaluation.explain import AttributeTexts, encode_attributes, explain
from distill.evaluation.score_norm import ScoreNorm
from distill.models.teacher import load_teacher
from tests.distill.conftest import DEMO

GENERATOR = torch.Generator().manual_seed(0)
TEXTS = AttributeTexts(
    features=torch.nn.functional.normalize(torch.randn(6, 4, generator=GENERATOR), dim=1),
    bare=torch.nn.functional.normalize(torch.randn(6, 4, generator=GENERATOR), dim=1),
    owners=torch.tensor([0, 0, 0, 1, 2, 2]),
    attributes=("a1", "a2", "a3", "b1", "c1", "c2"),
    keys=("a", "b", "c"),
    names=("A", "B", "C"),
)
IMAGES = torch.randn(5, 4, generator=GENERATOR) * 3


def test_a_class_is_scored_by_the_mean_cosine_of_its_attributes():
    for image, found in zip(IMAGES.tolist(), explain(IMAGES, TEXTS, 3), strict=True):
        length = math.sqrt(sum(x * x for x in image))
        cosines: dict[str, float] = {}
        for name, row in zip(TEXTS.attributes, TEXTS.features.tolist(), strict=True):
            cosines[name] = sum(x * y for x, y in zip(image, row, strict=True)) / length
        expected = {}
        for key in TEXTS.keys:
            own = [value for name, value in cosines.items() if name[0] == key]
            expected[key] = sum(own) / len(own)

        ranked = sorted(TEXTS.keys, key=lambda key: -expected[key])
        assert [candidate.key for candidate in found] == ranked
        for candidate in found:
            assert candidate.score == pytest.approx(expected[candidate.key], abs=1e-6)
            assert {x.attribute for x in candidate.attributes} == {
                n for n in cosines if n[0] == candidate.key
            }
            for x in candidate.attributes:
                assert x.cosine == pytest.approx(cosines[x.attribute], abs=1e-6)
                assert (x.evidence, x.fired) == (None, None)
            shown = [x.cosine for x in candidate.attributes]
            assert shown == sorted(shown, reverse=True)


def test_an_attribute_fires_where_it_scores_clearly_higher_than_on_other_images():
    others = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    cosines = torch.nn.functional.normalize(others, dim=1) @ TEXTS.bare.T
    mean, deviation = cosines.mean(dim=0), cosines.std(dim=0, correction=0)
    for image, (best,) in enumerate(explain(others, TEXTS, 1, ScoreNorm.of(others))):
        for match in best.attributes:
            row = TEXTS.attributes.index(match.attribute)
            expected = (cosines[image, row] - mean[row]) / deviation[row]
            assert match.evidence == pytest.approx(expected.item(), abs=1e-3)
            assert match.fired == (match.evidence > 1.5)
    everywhere = [
        x.fired
        for classes in explain(others, TEXTS, 3, ScoreNorm.of(others))
        for candidate in classes
        for x in candidate.attributes
    ]
    assert 0 < sum(everywhere) / len(everywhere) < 0.15


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"attributes": {"colours": ("red", "blue")}, "description": "x"},
         ("colours: red", "colours: blue")),
        ({"description": "It has a red crest, long legs, and a bill. It swims."},
         ("It has a red crest", "long legs", "a bill", "It swims")),
        ({"description": "The fox typically has a bushy tail, and foxes are red."},
         ("a bushy tail", "foxes are red")),
        ({"sentences": ("A small bird.", "A small bird.")}, ("A small bird",)),
        ({}, ()),
    ],
)  # fmt: skip
def test_any_texts_of_a_class_can_explain_it(texts, expected):
    assert attributes_of(ReleaseLabel(key="n1", name="fox", **texts)) == expected


def test_no_more_classes_are_given_than_asked_for_or_than_there_are():
    assert [len(found) for found in explain(IMAGES, TEXTS, 2)] == [2] * 5
    assert [len(found) for found in explain(IMAGES, TEXTS, 9)] == [3] * 5


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(TextError, match="7 dimensions and the texts have 4"):
        explain(torch.ones(1, 7), TEXTS, 1)
    with pytest.raises(DataError, match="NaN"):
        explain(torch.full((1, 4), torch.nan), TEXTS, 1)


def test_the_demos_teacher_recognises_unseen_charms_by_their_attributes(charm_release, charm_world):
    """Among all 51 classes, so that chance is 2 %."""
    from distill.data.splits import scan_split
    from distill.embeddings.image_features import image_features

    teacher = load_teacher(f"local-dir:{DEMO / 'teacher'}")
    split = scan_split(charm_world, "unseen")
    features = image_features(teacher, split, cache=charm_world / "cache")
    texts = encode_attributes(teacher, charm_release)
    _, scores = texts.scores(features)
    place = {key: row for row, key in enumerate(texts.keys)}
    targets = torch.tensor([place[key] for key in split.keys])[split.targets]
    by_attribute = (scores.argmax(dim=1) == targets).double().mean().item() * 100
    # The mean feature of a class, not normalised, ranks as the mean cosine does.
    sums = torch.zeros(len(texts.keys), teacher.dim).index_add_(0, texts.owners, texts.features)
    means = sums / torch.bincount(texts.owners)[:, None]
    bank = TextBank(means, texts.keys, texts.names, "attributes", teacher.name, "")
    row = accuracy("teacher", "unseen", features, targets, texts.keys, bank)

    assert by_attribute == pytest.approx(row.top1, abs=1.2)  # an image or so, by rounding
    assert by_attribute > 20


def run(*words):
    return CliRunner().invoke(app, ["explain", *(str(word) for word in words)])


@pytest.fixture
def picture(charm_world):
    return next((charm_world / "val").glob("*/000.png"))


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_the_command_prints_classes_and_evidence_as_json(picture, charm_run, who):
    model = {"teacher": ("--teacher", f"local-dir:{DEMO / 'teacher'}")}.get(
        who, ("--student", charm_run)
    )
    release = ("--release", charm_run / "release.json")
    done = run(picture, picture, *model, *release, "--top", 2, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)

    assert result["model"] == who
    assert [image["image"] for image in result["images"]] == [str(picture)] * 2
    first, second = result["images"][0]["classes"]
    assert first["score"] >= second["score"]
    assert any(match["attribute"].startswith("colours: ") for match in first["attributes"])
    assert {match["fired"] for match in first["attributes"]} <= (
        {None} if who == "teacher" else {True, False}
    )


def test_the_command_shows_a_table_of_what_fired(picture, charm_run):
    done = run(picture, "--student", charm_run, "--release", charm_run / "release.json")
    assert done.exit_code == 0, done.stderr
    assert "attributes that fired" in done.stdout


def test_the_runs_own_texts_are_enough(picture, charm_run):
    done = run(picture, "--student", charm_run, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads((charm_run / "report.json").read_text())
    assert json.loads(done.stdout)["release_hash"] == report["release_hash"]


def test_a_release_with_descriptions_alone_explains_too(picture, charm_run, tmp_path):
    release = Release.model_validate_json((charm_run / "release.json").read_bytes())
    labels = tuple(label.model_copy(update={"attributes": {}}) for label in release.labels)
    bare = tmp_path / "descriptions.json"
    changed = {"labels": labels, "hash": release_hash(labels)}
    bare.write_text(release.model_copy(update=changed).model_dump_json())
    done = run(picture, "--student", charm_run, "--release", bare, "--json")
    assert done.exit_code == 0, done.stderr
    first = json.loads(done.stdout)["images"][0]["classes"][0]
    (label,) = (label for label in labels if label.key == first["key"])
    assert all(match["attribute"] in label.description for match in first["attributes"])


def test_only_some_classes_compete_if_asked(picture, charm_run):
    release = Release.model_validate_json((charm_run / "release.json").read_bytes())
    first, second = release.labels[0], release.labels[7]
    words = ("--class", first.key, "--class", second.name)
    done = run(picture, "--student", charm_run, *words, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["images"][0]["classes"]
    assert {candidate["key"] for candidate in found} == {first.key, second.key}


def test_the_runs_bias_is_taken_from_the_classes_it_was_trained_on(picture, charm_run, charm_world):
    report = json.loads((charm_run / "report.json").read_text())
    bias = report["calibration"]["seen_bias"]
    assert bias != 0
    done = run(picture, "--student", charm_run, "--top", 60, "--json")
    assert done.exit_code == 0, done.stderr
    trained = {path.name for path in (charm_world / "train").iterdir()}
    found = json.loads(done.stdout)["images"][0]["classes"]
    assert len(found) == 51
    for candidate in found:
        cosines = [x["cosine"] for x in candidate["attributes"]]
        mean = sum(cosines) / len(cosines)
        expected = mean - bias if candidate["key"] in trained else mean
        assert candidate["score"] == pytest.approx(expected, abs=1e-5)
    scores = [candidate["score"] for candidate in found]
    assert scores == sorted(scores, reverse=True)


def test_each_mistake_is_a_one_line_error(picture, charm_run, tmp_path):
    whole = ("--release", charm_run / "release.json")
    teacher = ("--teacher", f"local-dir:{DEMO / 'teacher'}")
    for words, message in (
        ((picture, *whole), "name a model: --student FOLDER of a training run, or --teacher NAME"),
        ((picture, *teacher), "give the classes: --release FILE"),
        ((picture, *teacher, *whole, "--class", "nothing"), "has no class 'nothing'"),
        ((tmp_path / "none.png", *teacher, *whole), "none.png (it does not exist)"),
        ((picture, "--student", tmp_path, *whole), "is not the folder of a training"),
    ):
        done = run(*words)
        assert done.exit_code == 1
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
