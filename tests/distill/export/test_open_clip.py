"""A student in open_clip: the same classes, image by image, with nothing of this project."""

import json
import re

import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from contract import TrainConfig
from distill.cli.main import app
from distill.errors import ModelError
from distill.evaluation.accuracy import predict, score
from distill.export.classifier_folder import ExportOptions, export_run
from distill.export.finished_run import load_run
from distill.export.open_clip import loaded, open_clip_files
from distill.models.student import build_student
from distill.models.teacher import load_teacher
from distill.pipeline.job import run_job
from distill.runtime import Classifier
from tests.distill.conftest import DEMO


@pytest.fixture(scope="module")
def run(charm_world, charm_release):
    """A finished run whose student has a stem that open_clip supports."""
    config = TrainConfig(
        data=str(charm_world),
        teacher=f"local-dir:{DEMO / 'teacher'}",
        student="test_efficientnet",
        image_size=48,
        test_views="whole",
        text_strategy="attributes",  # several texts a class
        epochs=1,
        batch_size=36,
        export=False,
    )
    out, cache = charm_world / "open-clip-run", charm_world / "cache"
    run_job(
        config,
        charm_release,
        out,
        cache=cache,
        on_event=lambda *_: None,
        should_stop=lambda: False,
    )
    return out


def export(run, out, charm_world, *more):
    words = ["export", run, "--out", out, "--cache", charm_world / "cache", "--open-clip", *more]
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def run_code_of_the_docs(classifier, photo):
    """The variables after the code for open_clip on the page about classifiers."""
    page = (DEMO.parent / "docs" / "how-to" / "classifier.md").read_text()
    (code,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.M)
        if "import open_clip" in block
    )
    names = {}
    exec(code.replace("birds-classifier", str(classifier)).replace("photo.jpg", str(photo)), names)
    return names


def test_open_clip_gives_each_image_the_class_of_distill_evaluate(run, charm_world, tmp_path):
    out = tmp_path / "classifier"
    result = export(run, out, charm_world)
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if "│" in line}
    assert rows["open_clip"].split("│")[-3:] == rows["PyTorch eager"].split("│")[-3:]

    finished = load_run(run, cache=charm_world / "cache", bar=lambda _: lambda *_: None)
    names = run_code_of_the_docs(out, finished.splits["seen"].paths[0])
    model, text = names["model"], names["text"]
    torch.testing.assert_close(text, finished.bank.features, rtol=0, atol=1e-5)
    for name, split in finished.splits.items():
        rows = [finished.bank.keys.index(key) for key in split.keys]
        images = torch.stack([names["preprocess"](Image.open(path)) for path in split.paths])
        with torch.inference_mode():
            found = (model.encode_image(images, normalize=True) @ text[rows].T).argmax(dim=1)
        features = finished.student.encode(finished.pixels[name])
        expected = predict(features, finished.bank.select(split.keys).features)
        assert found.tolist() == expected.tolist()
    temperature = Classifier.load(out).manifest.calibration.temperature
    assert model.logit_scale.exp().item() == pytest.approx(1 / temperature, rel=1e-5)


def test_timm_loads_the_backbone_from_the_same_folder(run, charm_world, tmp_path):
    finished = load_run(run, cache=charm_world / "cache", bar=lambda _: lambda *_: None)
    student = finished.student
    files = open_clip_files(
        student, finished.teacher, name="test_efficientnet", image_size=48, temperature=0.05
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = finished.pixels["seen"][:4]
    images = (pixels.float() / 255 - student.mean) / student.std
    with torch.inference_mode():
        torch.testing.assert_close(
            model(images),
            student.encode_backbone(pixels, torch.arange(len(pixels))),
            rtol=0,
            atol=1e-5,
        )
    assert timm.data.resolve_model_data_config(model)["input_size"] == [3, 48, 48]


def test_where_the_student_sees_a_crop_the_row_and_a_note_say_so(run, charm_world, tmp_path):
    """open_clip resizes the whole image, and its row has the accuracy of that."""
    finished = load_run(run, cache=charm_world / "cache", bar=lambda _: lambda *_: None)
    finished.student.test_views = "centre"
    options = ExportOptions(open_clip=True)
    exported = export_run(finished, tmp_path / "x", options=options, progress=lambda *_: None)
    row = next(row for row in exported.rows if row.name == "open_clip")
    split = finished.splits["seen"]
    whole = finished.student.encode(finished.pixels["seen"], "whole")
    found = predict(whole, finished.bank.select(split.keys).features)
    assert row.seen == pytest.approx(score(found, split.targets, len(split.keys))[0])
    assert exported.remarks == (
        "open_clip encodes the whole image once, but the student was evaluated on centre views: "
        'train it with test_views = "whole" for equal numbers',
    )


def test_a_stem_that_open_clip_does_not_know_is_refused_first(charm_run, charm_world, tmp_path):
    result = export(charm_run, tmp_path / "classifier", charm_world)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "distill: --open-clip: open_clip cannot build this test_resnet, whose stem was adapted to "
        "small images: train it with pretrained = true or with weights, at an image_size above "
        "64, or train a student whose stem is never adapted, such as mobilenetv3_small_100"
    )
    assert not (tmp_path / "classifier").exists()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenetv3_small_050", 32),  # the width of its head is not that of its config
        ("test_resnet", 96),  # no adapted stem
        ("test_vit", 160),  # its own image size
        ("test_convnext", 64),
    ],
)
def test_a_text_tower_of_hugging_face_comes_with_its_tokenizer(name, size, shared, shared_hub):
    teacher = load_teacher("hf-hub:bench/lite0-minilm")
    student = build_student(name, teacher.dim, image_size=size)
    student(torch.rand(4, 3, size, size))  # statistics of batch norms
    files = open_clip_files(student, teacher, name=name, image_size=size, temperature=0.05)
    assert json.loads(files["open_clip_config.json"])["model_cfg"]["vision_cfg"]["image_size"] == (
        size
    )
    texts = ["a photo of a dog", "a bird with a red beak . it has long thin legs"]
    pixels = torch.randint(256, (3, 3, size, size), dtype=torch.uint8)
    with loaded(files) as model:
        torch.testing.assert_close(
            model.encode_text(texts), teacher.encode_text(texts), rtol=0, atol=1e-5
        )
        found = model.encode_crops(pixels)
    torch.testing.assert_close(found, student.encode(pixels, "whole"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [
        ("test_vit", {"image_size": 64}, r"which has img_size = 64.*train it at image_size = 160"),
        (
            "test_resnet",
            {"image_size": 96, "output_stride": 16},
            r"which has output_stride = 16: train it with output_stride = 32$",
        ),
    ],
)
def test_settings_that_open_clip_lacks_are_a_one_line_error(name, options, advice, tiny_teacher):
    student = build_student(name, 32, **options)
    with pytest.raises(ModelError, match=advice):
        open_clip_files(
            student,
            load_teacher(tiny_teacher),
            name=name,
            image_size=options["image_size"],
            temperature=0.05,
        )
