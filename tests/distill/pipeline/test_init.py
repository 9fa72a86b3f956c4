"""`distill init`, the learning rate by kind of student, and options that do not exist."""

import tomllib

import pytest

pytest.importorskip("torch")

from typer.testing import CliRunner

from contract import TrainConfig
from distill.cli.main import app
from distill.cli.train import read_config
from distill.errors import UserError


def init(tmp_path, *words):
    words = ("init", *words, "--out", tmp_path / "run.toml", "--cache", tmp_path / "cache")
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_configuration_fits_the_images_and_can_be_trained_with(image_folder, tmp_path):
    root = image_folder({"train": {"a": 30, "b": 20}}, size=100)
    made = init(tmp_path, root)
    assert made.exit_code == 0, made.output
    text = (tmp_path / "run.toml").read_text()
    assert "#   train: 40 images of 2 classes\n" in text
    assert "#   seen: 10 images of 2 classes, held out of training\n" in text
    assert "#   no unseen classes" in text
    config = read_config(tmp_path / "run.toml")
    assert (config.data, config.image_size, config.epochs) == (str(root), 64, 60)
    assert (config.batch_size, config.learning_rate, config.forecast) == (10, 0.02, True)
    again = init(tmp_path, root)
    assert again.exit_code == 1 and "run.toml exists already: remove it or choose" in again.stderr


def test_a_configuration_of_a_pretrained_transformer_has_a_tenth_of_the_rate(
    image_folder, tmp_path
):
    root = image_folder({"train": {"a": 3}, "val_on_train": {"a": 2}, "val": {"b": 2}})
    made = init(tmp_path, root, "--student", "vit_tiny_patch16_224", "--pretrained")
    assert made.exit_code == 0, made.output
    text = (tmp_path / "run.toml").read_text()
    assert tomllib.loads(text)["learning_rate"] == 0.002 and "no unseen" not in text
    assert tomllib.loads(text)["forecast"] is False


def test_a_student_that_timm_does_not_have_is_refused(image_folder, tmp_path):
    made = init(tmp_path, image_folder({"train": {"a": 3}}), "--student", "resnet5")
    assert made.exit_code == 1
    assert "timm knows no student 'resnet5': did you mean resnet50" in made.stderr
    assert not (tmp_path / "run.toml").exists()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("ViT-B-99@foo", "open_clip knows no teacher 'ViT-B-99': did you mean ViT-B-"),
        ("ViT-B-32@foo", "the teacher ViT-B-32 needs one of its pretrained tags behind an '@'"),
        ("local-dir:nowhere", "has no file nowhere/open_clip_config.json"),
    ],
)
def test_a_teacher_that_open_clip_does_not_have_is_refused(
    image_folder, tmp_path, teacher, message
):
    made = init(tmp_path, image_folder({"train": {"a": 3}}), "--teacher", teacher)
    assert made.exit_code == 1 and made.stderr.count("\n") == 1
    assert message in made.stderr
    assert not (tmp_path / "run.toml").exists()


def test_the_default_teacher_is_one_of_open_clip():
    """`distill init` does not check it."""
    from distill.cli.init import TEACHER
    from distill.models.teacher import parse_name

    assert "@".join(parse_name(TEACHER)) == TEACHER


def test_unreadable_images_are_skipped_unless_all_are(image_folder, tmp_path):
    root = image_folder({"train": {"a": 3, "b": 3}}, size=100)
    first, *others = sorted(root.rglob("*.png"))
    first.write_bytes(b"no image")
    made = init(tmp_path, root)
    assert made.exit_code == 0, made.output
    assert read_config(tmp_path / "run.toml").image_size == 64
    (tmp_path / "run.toml").unlink()
    for path in others:
        path.write_bytes(b"no image")
    made = init(tmp_path, root)
    assert made.exit_code == 1 and made.stderr.count("\n") == 1
    assert "cannot read 4 images:" in made.stderr
    assert not (tmp_path / "run.toml").exists()


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({}, 0.02),
        ({"optimiser": "adamw"}, 0.002),
        ({"optimiser": "sgd", "student": "mobilenetv3_small_100"}, 0.05),
        ({"student": "vit_small_patch16_224"}, 0.002),
        ({"student": "deit_tiny_patch16_224", "optimiser": "adamw"}, 0.0002),
        ({"pretrained": True}, 0.002),
        ({"weights": "a.safetensors"}, 0.002),
        ({"pretrained": True, "learning_rate": 0.5}, 0.5),
    ],
)
def test_the_learning_rate_follows_from_student_start_and_optimiser(fields, rate):
    config = TrainConfig(data="d", teacher="t", **fields)
    assert config.learning_rate == pytest.approx(rate)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learnig_rate = 1", "there is no option 'learnig_rate': did you mean 'learning_rate'?"),
        ("losses.cl = 1", "there is no option 'losses.cl': did you mean 'losses.cls'?"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest_known_one(tmp_path, line, message):
    path = tmp_path / "run.toml"
    path.write_text(f'data = "d"\nteacher = "t"\n{line}\n')
    with pytest.raises(UserError) as error:
        read_config(path)
    assert str(error.value) == f"{path}: {message}"
