"""Few-shot: what is drawn, what finetuning takes in, and the command."""

import json

import pytest
import torch
from typer.testing import CliRunner

from distill.cli import console
from distill.cli.main import app
from distill.data.augment import apply_views
from distill.errors import DataError
from distill.evaluation.accuracy import predict
from distill.pipeline.few_shot import Support, finetune, sample_support
from distill.training import loop
from tests.distill.training.test_loop import make_config, make_data, make_student, run

KEYS = ("a", "b", "c")
TARGETS = torch.tensor([0, 1, 2] * 4)


def test_k_images_of_each_class_are_drawn_and_a_larger_k_adds_to_them():
    few, more = (sample_support(TARGETS, KEYS, k, seed=3) for k in (1, 3))

    assert TARGETS[few].tolist() == [0, 1, 2]
    assert TARGETS[more].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(more.tolist())) == 9
    assert set(few.tolist()) < set(more.tolist())


def test_the_seed_decides_what_is_drawn():
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
    """Data of two classes that are seen, and support of two that are not."""
    data = make_data(64)
    seen, held_out = data.targets < 2, data.seen_targets < 2
    support = Support(
        data.pixels[~seen][:6], data.targets[~seen][:6] - 2, data.teacher[~seen][:6], data.text[2:]
    )
    test = data.pixels[~seen][6:], data.targets[~seen][6:] - 2
    data = loop.TrainingData(
        pixels=data.pixels[seen],
        targets=data.targets[seen],
        teacher=data.teacher[seen],
        text=data.text[:2],
        seen_pixels=data.seen_pixels[held_out],
        seen_targets=data.seen_targets[held_out],
        seen_text=data.text[:2],
    )
    return data, support, test


def test_finetuning_takes_in_the_new_classes_and_leaves_the_student_as_it_was(new_classes):
    data, support, (pixels, targets) = new_classes
    config = make_config(epochs=8, learning_rate=5e-3)
    student = make_student(config)
    run(config, data, student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    learned, seen = finetune(config, student, data, support)

    def cosine_with_own_text(network):
        features = torch.nn.functional.normalize(network.encode(pixels), dim=1)
        return (features * support.text[targets]).sum(dim=1).mean().item()

    assert predict(learned.encode(pixels), support.text).equal(targets)
    assert cosine_with_own_text(learned) > 0.5 > cosine_with_own_text(student)
    assert seen == 100
    assert all(value.equal(before[name]) for name, value in student.state_dict().items())


def test_a_run_that_accumulated_batches_is_finetuned_with_a_step_a_batch(new_classes):
    data, support, _ = new_classes
    steps = []
    config = make_config(batch_size=8, accumulate=64, epochs=2)
    finetune(config, make_student(config), data, support, on_step=lambda *done: steps.append(done))
    assert steps == [(step, 8) for step in range(1, 9)]


@pytest.mark.parametrize("drawn", [1, 3, 6])
def test_at_most_half_of_each_batch_comes_from_the_support_and_nothing_twice(
    new_classes, drawn, monkeypatch
):
    data, support, _ = new_classes
    support = Support(
        support.pixels[:drawn], support.targets[:drawn], support.teacher[:drawn], support.text
    )
    batches = []

    def record_batch(pixels, params):
        batches.append([image.numpy().tobytes() for image in pixels])
        return apply_views(pixels, params)

    monkeypatch.setattr(loop, "apply_views", record_batch)
    config = make_config(batch_size=8)
    finetune(config, make_student(config), data, support)
    new = {image.numpy().tobytes() for image in support.pixels}

    assert len(batches) == 2 * ((32 + drawn) // 8)
    for batch in batches:
        assert len(batch) == len(set(batch)) == 8
        assert sum(image in new for image in batch) == min(4, drawn)


def command(folder, world, *words):
    arguments = ["few-shot", "--student", folder, "--data", world, "--cache", world / "cache"]
    arguments += ["--release", folder / "release.json", *words]
    return CliRunner().invoke(app, [str(word) for word in arguments])


def test_prototypes_are_measured_for_teacher_and_student_on_what_was_not_drawn(
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


def test_finetuning_is_measured_for_the_student_and_shown_as_a_table(charm_run, charm_world):
    done = command(charm_run, charm_world, "-k", 2, "--method", "finetune", "--seeds", 1)
    assert done.exit_code == 0, done.stderr
    assert "finetune, 15 unseen classes, 1 sample (epochs 5, learning_rate 0.002)" in done.stdout
    (row,) = (line for line in done.stdout.splitlines() if "student" in line)
    assert row.split("│")[2].strip() == "2" and row.split("│")[-3].strip() == "60"


def test_progress_is_printed_as_lines_where_there_is_no_terminal(
    charm_run, charm_world, monkeypatch
):
    monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.0)
    done = command(charm_run, charm_world, "-k", 2, "--method", "finetune", "--seeds", 1)
    assert done.exit_code == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "Few-shot: 1 of 1" in lines
    steps = [line for line in lines if line.startswith("Finetuning steps of this support: 1 of ")]
    assert len(steps) == 1
    assert any(line.startswith("Finetuning") and line.endswith(" left") for line in lines)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-k", 7), "k = 7 leaves nothing to test on: the class 'charm"),
        (("-k", 1, "--teacher", "nobody"), "open_clip knows no teacher 'nobody'"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(charm_run, charm_world, words, told):
    done = command(charm_run, charm_world, *words)
    assert done.exit_code == 1
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_a_run_that_did_not_finish_is_told(charm_world, charm_run, tmp_path):
    (tmp_path / "release.json").write_bytes((charm_run / "release.json").read_bytes())
    done = command(tmp_path, charm_world, "-k", 1)
    assert done.exit_code == 1 and "finish the run with --resume" in done.stderr


def test_a_teacher_that_the_student_did_not_learn_from_is_refused(
    charm_run, charm_world, tiny_teacher
):
    done = command(charm_run, charm_world, "-k", 1, "--teacher", tiny_teacher)
    assert done.exit_code == 1
    assert "the student gives 128 dimensions and the teacher" in done.stderr
