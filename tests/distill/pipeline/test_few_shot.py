"""Few-shot: what is drawn, what finetuning takes in, and the command."""

import json
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from distill.cli import console
from distill.cli.main import app
from distill.errors import DataError, UserError
from distill.evaluation.accuracy import predict
from distill.evaluation.report.training_report import read_report
from distill.models.student import FILE, load_student
from distill.pipeline.few_shot import sample_support
from distill.pipeline.finetune import EvaluationImages, Finetuner, Images
from distill.training.head import HeadImages, fit_head
from tests.distill.training.test_loop import make_config, make_data, make_student, run

KEYS = ("a", "b", "c")
TARGETS = torch.tensor([0, 1, 2] * 4)


def test_k_images_of_each_class_are_drawn_and_a_larger_k_adds_to_them():
    few, more = (sample_support(TARGETS, KEYS, k, seed=3) for k in (1, 3))

    assert TARGETS[few].tolist() == [0, 1, 2]
    assert TARGETS[more].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(more.tolist())) == 9
    assert set(few.tolist()) < set(more.tolist())


def test_the_sample_depends_on_the_seed():
    draws = [sample_support(TARGETS, KEYS, 2, seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_k_that_leaves_nothing_to_test_on_is_refused_with_the_largest_that_does():
    targets = torch.tensor([0] * 6 + [1] * 4 + [2] * 9)
    for k in (4, 5, 100):
        with pytest.raises(DataError, match=f"k = {k} leaves .*'b' has 4 images, choose k up to 3"):
            sample_support(targets, KEYS, k, seed=0)
    with pytest.raises(DataError, match="'c' has 1 image, add some"):
        sample_support(torch.tensor([0, 0, 1, 1, 2]), KEYS, 1, seed=0)
    with pytest.raises(DataError, match="k is 0: at least 1"):
        sample_support(targets, KEYS, 0, seed=0)


def test_a_class_without_image_is_named():
    with pytest.raises(DataError, match="the class 'b' has no image"):
        sample_support(torch.tensor([0, 0, 2, 2]), KEYS, 1, seed=0)


@pytest.fixture
def new_classes():
    """Images of two classes that are seen, and of two that are not."""
    data = make_data(64)
    seen = data.targets < 2

    def images(chosen, first):
        own = data.targets[chosen] - first
        text = data.text[first : first + 2]
        return Images(data.pixels[chosen], own, data.teacher[chosen], text)

    return data, images(seen, 0), images(~seen, 2)


def test_finetuning_takes_in_the_new_classes_and_leaves_the_student_as_it_was(new_classes):
    data, seen, unseen = new_classes
    config = make_config(epochs=8, learning_rate=5e-3)
    student = make_student(config)
    run(config, replace(data, rows=(data.targets < 2).nonzero()[:, 0]), student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    support = torch.arange(6)
    finetuner = Finetuner.prepare(config, student, seen, unseen, [support])
    head = finetuner.fit(support, seed=0)

    def cosine_with_own_text(features):
        features = torch.nn.functional.normalize(features, dim=1)
        return (features * unseen.text[unseen.targets])[6:].sum(dim=1).mean().item()

    encoded = EvaluationImages.encode(student, unseen.pixels, "whole")
    learned = encoded.through(head)
    assert encoded.through(student.projection).allclose(student.encode(unseen.pixels), atol=1e-5)
    assert predict(learned, unseen.text)[6:].equal(unseen.targets[6:])
    assert cosine_with_own_text(learned) > 0.5 > cosine_with_own_text(student.encode(unseen.pixels))
    assert all(value.equal(before[name]) for name, value in student.state_dict().items())


def test_ten_views_of_an_image_are_averaged_as_the_student_does(new_classes):
    _, _, unseen = new_classes
    student = make_student(make_config())
    views = EvaluationImages.encode(student, unseen.pixels, "ten-crop")
    expected = student.encode(unseen.pixels, "ten-crop")
    assert views.through(student.projection).allclose(expected, atol=1e-5)


@pytest.mark.parametrize("drawn", [1, 3, 6])
def test_at_most_half_of_each_batch_comes_from_the_support_and_nothing_twice(drawn):
    width, views, dim = 3, 2, 4
    head = torch.nn.Linear(width, dim)
    batches, steps = [], []
    head.register_forward_pre_hook(lambda _head, inputs: batches.append(inputs[0][:, 0].tolist()))

    def images(first, count):
        number = torch.arange(first, first + count).float()
        features = number[:, None, None].expand(-1, views, width)
        return HeadImages(features, torch.zeros(count).long(), torch.randn(count, dim))

    config = make_config(batch_size=8, accumulate=64, epochs=2)
    text = torch.nn.functional.normalize(torch.randn(2, dim), dim=1)
    fit_head(config, head, images(0, 32), images(100, drawn), text, on_step=steps.append)

    assert len(batches) == len(steps) == 2 * ((32 + drawn) // 8)
    assert [(step.done, step.epoch, step.images) for step in steps[:2]] == [(1, 1, 8), (2, 1, 16)]
    for batch in batches:
        assert len(batch) == len(set(batch)) == 8
        assert sum(number >= 100 for number in batch) == min(4, drawn)


def test_diverged_finetuning_is_reported(new_classes):
    _, seen, unseen = new_classes
    config = make_config()
    support = torch.arange(6)
    finetuner = Finetuner.prepare(config, make_student(config), seen, unseen, [support])
    too_fast = finetuner.config.model_copy(update={"optimiser": "sgd", "learning_rate": 1e38})
    finetuner = replace(finetuner, config=too_fast)
    with pytest.raises(UserError, match="finetuning diverged with a learning rate of"):
        finetuner.fit(support, seed=0)


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def command(folder, world, *words):
    cache = ("--cache", world / "cache", "--release", folder / "release.json")
    return invoke("few-shot", "--student", folder, "--data", world, *cache, *words)


def test_prototypes_of_teacher_and_student_are_measured_on_the_remaining_images(
    charm_run, charm_world
):
    done = command(charm_run, charm_world, "-k", 1, "-k", 5, "--seeds", 2, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)

    assert [(row["model"], row["k"]) for row in result["rows"]] == [
        ("teacher", 1), ("teacher", 5), ("student", 1), ("student", 5),
    ]  # fmt: skip
    assert [row["images"] for row in result["rows"]] == [15] * 4  # of 15 classes × 6
    settings = json.loads((charm_run / "report.json").read_bytes())["calibration"]
    assert result["settings"] == {"text_photos": settings["text_photos"]}
    assert (result["classes"], result["seeds"]) == (15, [0, 1])
    teacher = result["rows"][0]
    assert teacher["top1"] > 60  # measured: 80 on all images
    assert teacher["top1_deviation"] is not None and teacher["seen_top1"] is None
    assert teacher["photos_only_top1"] > 60
    assert teacher["text_only_top1"] == result["rows"][1]["text_only_top1"]  # the same images


@pytest.fixture(scope="module")
def finetuned(charm_run, charm_world):
    """The output of finetuning, and the folder of the student."""
    out = charm_world / "finetuned"
    words = ("-k", 1, "-k", 2, "--method", "finetune", "--seeds", 1, "--out", out)
    return command(charm_run, charm_world, *words), out


def test_finetuning_is_measured_for_the_student_and_shown_as_a_table(finetuned):
    done, _ = finetuned
    assert done.exit_code == 0, done.stderr
    assert "finetune, 15 unseen classes, 1 sample (epochs 10, learning_rate 0.04)" in done.stdout
    first, second = (line.split("│") for line in done.stdout.splitlines() if "student" in line)
    assert (first[2].strip(), second[2].strip()) == ("1", "2")
    assert first[-3].strip() == second[-3].strip() == "60"


def test_the_finetuned_student_is_evaluated_and_exported_like_any_other(
    finetuned, charm_run, charm_world
):
    done, out = finetuned
    assert "its report excludes the images that it was finetuned on" in done.stderr
    report = read_report(out)
    before = read_report(charm_run)
    unseen = [row for row in report.accuracies if row.split == "unseen"]
    assert {row.images for row in unseen} == {60}  # of 90, without 2 of each of 15 classes
    student, _ = load_student(out / FILE)
    old, _ = load_student(charm_run / FILE)
    changed = [
        name
        for name, value in student.state_dict().items()
        if not value.equal(old.state_dict()[name])
    ]
    assert changed == ["projection.weight", "projection.bias"]
    cache = ("--cache", charm_world / "cache")
    words = ("--teacher", before.config.teacher, "--data", charm_world, "--json", *cache)
    release = ("--release", out / "release.json")
    evaluated = invoke("evaluate", "--student", out, *release, *words)
    assert evaluated.exit_code == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["images"] == 90
    exported = invoke("export", out, "--out", out / "classifier", *cache)
    assert exported.exit_code == 0, exported.stderr


def test_a_student_is_saved_only_by_finetuning_and_over_no_other_run(charm_run, charm_world):
    refused = command(charm_run, charm_world, "-k", 1, "--out", charm_world / "other")
    assert refused.exit_code == 1 and "add --method finetune" in refused.stderr
    words = ("-k", 1, "--method", "finetune", "--out", charm_run)
    refused = command(charm_run, charm_world, *words)
    assert refused.exit_code == 1 and "holds a run already: choose another" in refused.stderr


def test_progress_is_printed_as_lines_where_there_is_no_terminal(
    charm_run, charm_world, monkeypatch
):
    monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.0)
    done = command(charm_run, charm_world, "-k", 2, "--method", "finetune", "--seeds", 2)
    assert done.exit_code == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Finetuning: ")]
    first, last = lines[0], lines[-1]
    assert re.match(r"Finetuning: 1 of \d+, trial 1 of 2, epoch 1 of 10, [\d,]+ images/s", first)
    assert re.search(r"trial 2 of 2, epoch 10 of 10, [\d,]+ images/s", last)
    assert any(line.endswith(" left") for line in lines)
    assert any(line.startswith("Encoding views: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-k", 7), "k = 7 leaves nothing to test on: the class 'charm"),
        (("-k", 1, "--teacher", "nobody"), "open_clip knows no teacher 'nobody'"),
    ],
)
def test_what_cannot_be_measured_is_a_one_line_error(charm_run, charm_world, words, message):
    done = command(charm_run, charm_world, *words)
    assert done.exit_code == 1
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_an_unfinished_run_is_reported(charm_world, charm_run, tmp_path):
    (tmp_path / "release.json").write_bytes((charm_run / "release.json").read_bytes())
    (tmp_path / "checkpoint.safetensors").touch()
    done = command(tmp_path, charm_world, "-k", 1)
    assert done.exit_code == 1 and "finish it with --resume" in done.stderr


def test_a_teacher_that_the_student_did_not_learn_from_is_refused(
    charm_run, charm_world, tiny_teacher
):
    done = command(charm_run, charm_world, "-k", 1, "--teacher", tiny_teacher)
    assert done.exit_code == 1
    assert "the student has 128 dimensions and the teacher" in done.stderr
