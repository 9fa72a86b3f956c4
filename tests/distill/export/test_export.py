"""A finished run becomes a classifier folder that gives the same numbers without torch."""

import json
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from contract import TextSource
from distill.cli.main import app
from distill.data.releases import release_from_pairs
from distill.data.splits import scan_split
from distill.embeddings.class_prompts import prompts_of
from distill.errors import ClassifierError, ModelError
from distill.evaluation.accuracy import predict
from distill.export.classifier_folder import export_run
from distill.export.finished_run import load_run
from distill.export.model_card import model_card
from distill.export.onnx import image_encoder, text_encoder
from distill.export.quantise import check_drop, recommend
from distill.export.tokenizer import tokenizer_json
from distill.export.verify import FormatRow, Speed, check_features, onnx_features
from distill.models.student import build_student
from distill.models.teacher import load_teacher
from distill.runtime import Classifier
from distill.runtime.manifest import INT8_ENCODER, MANIFEST
from distill.runtime.text_encoder import TextEncoder, open_session
from tests.distill.conftest import DEMO

pytestmark = pytest.mark.usefixtures("brief_timing")

# What a language model may write: quotes, entities, ligatures, other scripts, emoji, blanks.
ODD_TEXTS = (
    "naïve CAFÉ’s “quoted” &amp; it's  ﬁne, don't, 42nd 日本語 😀",
    "",
    "  two\n\tlines ",
    "a word of " + 300 * "x",
    "very " * 200 + "long",
)


def test_the_folder_has_every_file_of_its_manifest(exported_charms, finished_charm_run):
    manifest = json.loads((exported_charms.folder / "classifier.json").read_text())
    assert set(manifest["files"]) == {
        path.name for path in exported_charms.folder.iterdir() if path.name != "classifier.json"
    }
    assert [entry["key"] for entry in manifest["classes"]] == list(finished_charm_run.bank.keys)
    assert sum(entry["seen"] for entry in manifest["classes"]) == len(
        finished_charm_run.splits["seen"].keys
    )
    first = manifest["classes"][0]
    assert first["texts"] == list(
        prompts_of(finished_charm_run.release.labels[0], finished_charm_run.bank.strategy)
    )
    assert first["origin"] == f"release {finished_charm_run.release.hash}"
    card = (exported_charms.folder / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "onnxruntime"')
    assert "| ONNX Runtime |" in card
    assert finished_charm_run.release.hash in card


def test_the_python_code_of_the_model_card_runs(
    classifier_folder, charm_world, monkeypatch, capsys
):
    """Both ways, on a square photo, which is cropped by neither; also after a class is saved."""
    card = (classifier_folder / "README.md").read_text()
    photo = scan_split(charm_world, "seen").paths[0]
    with_package, with_onnxruntime = (
        block.replace("photo.jpg", str(photo))
        for block in re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.M)
    )
    monkeypatch.chdir(classifier_folder)
    exec(with_package, package := {})
    assert "Candidate(key=" in capsys.readouterr().out
    for classes in (51, 52):
        exec(with_onnxruntime, names := {})
        classifier = Classifier.load(".")
        expected = classifier.encode([photo])[0]
        assert names["features"][0] == pytest.approx(expected, abs=1e-5)
        assert names["cosines"] == pytest.approx(classifier.bank @ expected, abs=1e-5)
        assert f"'{classifier.classes[-1].name}': " in capsys.readouterr().out
        assert len(names["cosines"]) == classes
        package["classifier"].save()


def test_the_model_card_has_intervals_and_no_path_of_the_teacher(
    exported_charms, finished_charm_run
):
    card = (exported_charms.folder / "README.md").read_text()
    numbers = exported_charms.manifest.accuracies
    for split, images in (("seen", 72), ("unseen", 90)):
        top1 = numbers[f"joint_{split}"]
        interval = 1.96 * (top1 * (100 - top1) / images) ** 0.5
        row = f"| {split} images, all classes competing | {top1:.1f} ± {interval:.1f} | {images} |"
        assert row in card
    assert "the harmonic mean and AUSUC have none" in card
    assert "float32 student" not in card
    int8 = exported_charms.manifest.model_copy(update={"image_encoder": INT8_ENCODER})
    assert (
        'the rows "classes only" were measured with it, and all other figures of this section with '
        "the float32 student."
    ) in model_card(int8, finished_charm_run.report, (), exported_charms.rows)
    assert exported_charms.manifest.teacher.name == "local-dir:teacher"
    assert "`local-dir:teacher`" in card
    for file in ("README.md", "speed.svg", "classifier.json"):
        assert str(DEMO) not in (exported_charms.folder / file).read_text()


def test_the_model_card_states_the_cost_of_the_texts(exported_charms, finished_charm_run):
    text = {"key": "a", "field": "sentences"}
    by_model = TextSource(**text, source="model", requested_model="small")
    dated = by_model.model_copy(update={"resolved_model": "small-2026"})

    def line(*sources):
        manifest, report = exported_charms.manifest, finished_charm_run.report
        card = model_card(manifest, report, sources, exported_charms.rows)
        return re.findall("^- Texts written by: (.*)$", card, re.M)

    assert line() == []
    assert line(by_model, by_model) == ["`small`, 2 answers, cost unknown: `small` had no price."]
    paid = [dated.model_copy(update={"generation_id": i, "cost_usd": 0.21}) for i in (1, 2, 2)]
    assert line(*paid, dated, TextSource(**text, source="person")) == [
        "`small-2026`, 3 answers, for 0.420 USD without 1 whose cost is unknown (rejected answers "
        "not counted); a person, 1 answer."
    ]
    tiny = by_model.model_copy(update={"cost_usd": 0.0001})
    assert line(tiny, TextSource(**text, source="replay"), TextSource(**text, source="import")) == [
        "`small`, 1 answer, for less than 0.001 USD (rejected answers not counted); a model "
        "without a name, 1 answer read from a file; an import, 1 answer."
    ]


def test_onnx_gives_the_features_of_pytorch(exported_charms):
    eager, onnx, teacher = exported_charms.rows
    assert (eager.seen, eager.unseen) == (onnx.seen, onnx.unseen)
    assert exported_charms.feature_difference < 1e-4
    assert 1 - exported_charms.text_cosine < 1e-5
    assert teacher.unseen > 50


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_each_photo_is_classified_as_in_evaluation(
    split, exported_charms, finished_charm_run, charm_world
):
    """Read from its file, resized and cropped without torch."""
    photos = scan_split(charm_world, split)
    bank = finished_charm_run.bank.select(photos.keys)
    features = finished_charm_run.student.encode(finished_charm_run.pixels[split])
    expected = [photos.keys[row] for row in predict(features, bank.features).tolist()]
    classifier = Classifier.load(exported_charms.folder)
    found = classifier.classify(photos.paths, top=1, among=photos.keys)
    best = features @ bank.features.T
    ties = (best.topk(2).values.diff().abs() < 1e-5 * features.norm(dim=1, keepdim=True)).flatten()
    assert [p.best.key for p, tie in zip(found, ties, strict=True) if not tie] == [
        key for key, tie in zip(expected, ties, strict=True) if not tie
    ]
    assert sum(ties) < 3


@pytest.mark.parametrize("teacher", ["local-dir:demo/teacher", "hf-hub:bench/lite0-minilm"])
def test_tokens_are_those_of_open_clip(teacher, shared, shared_hub):
    """CLIP's byte pairs, and a tokenizer of Hugging Face."""
    model = load_teacher(teacher)
    lines = (shared / "bench/tiny-imagenet-ood/chatgpt.txt").read_text().splitlines()
    texts = [f"a photo of it . {text}" for text in (*lines, *ODD_TEXTS)]
    content, cleaning = tokenizer_json(model)
    encoder = TextEncoder(b"", content, context_length=model.context_length, cleaning=cleaning)
    assert encoder.tokens(texts).tolist() == model.tokenizer(texts).tolist()
    assert [encoder.token_count(text) for text in texts] == [
        model.token_count(text) for text in texts
    ]


def test_a_text_tower_of_hugging_face_gives_the_features_of_open_clip(shared, shared_hub):
    """On every text of a release that ChatGPT wrote."""
    model = load_teacher("hf-hub:bench/lite0-minilm")
    bench = shared / "bench/tiny-imagenet-ood"
    release = release_from_pairs(bench / "label2text.txt", bench / "chatgpt.txt")
    texts = [text for label in release.labels for text in prompts_of(label, "name+description")]
    content, cleaning = tokenizer_json(model)
    encoder = TextEncoder(
        text_encoder(model), content, context_length=model.context_length, cleaning=cleaning
    )
    cosines = (torch.from_numpy(encoder.encode(texts)) * model.encode_text(texts)).sum(dim=1)
    assert cosines.min() > 1 - 1e-5


def test_a_vit_with_ten_crops_gives_the_features_of_pytorch():
    student = build_student("test_vit", 8, image_size=32)
    student.test_views = "ten-crop"
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    found = onnx_features(open_session(image_encoder(student, 32)), pixels)
    torch.testing.assert_close(
        found, torch.nn.functional.normalize(student.encode(pixels), dim=1), atol=1e-5, rtol=0
    )


class Scaled(torch.nn.Module):
    """A backbone that treats a single image differently, which a graph cannot express."""

    def forward(self, images):
        return images.mean(dim=(2, 3)) * (len(images) > 1)


def test_a_student_that_cannot_be_traced_is_exported_another_way():
    student = build_student("test_resnet", 8, image_size=32)
    norm = torch.nn.RMSNorm(student.projection.in_features)  # unknown to torch's tracer
    student.backbone.global_pool = torch.nn.Sequential(student.backbone.global_pool, norm)
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    found = onnx_features(open_session(image_encoder(student, 32)), pixels)
    torch.testing.assert_close(
        found, torch.nn.functional.normalize(student.encode(pixels), dim=1), atol=1e-5, rtol=0
    )


def test_a_student_that_depends_on_the_number_of_images_is_refused(capfd):
    student = build_student("test_resnet", 8, image_size=32)
    student.backbone, student.projection = Scaled(), torch.nn.Linear(3, 8)
    with pytest.raises(ModelError, match=r"^cannot export the student to ONNX \("):
        image_encoder(student, 32)
    assert capfd.readouterr().out == ""


def test_a_model_with_different_features_is_refused():
    unit = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.manual_seed(0)), dim=1)
    assert check_features(3 * unit, unit, unit, "seen") < 1e-6
    with pytest.raises(ModelError, match=r"differs from PyTorch by .* on seen images"):
        check_features(unit, unit.roll(1, dims=0), unit, "seen")
    # Within the tolerance of a feature, and yet another class: two texts as near as that.
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0], [1.0, 1.0001]]), dim=1)
    nudged = torch.nn.functional.normalize(torch.tensor([[1.0, 0.99995]]), dim=1)
    check_features(near[1:], nudged, near, "unseen")  # a tie may go either way


def test_int8_a_baked_classifier_and_a_rival(
    charm_run, charm_world, exported_charms, finished_charm_run, tmp_path
):
    teacher, out = f"local-dir:{DEMO / 'teacher'}", tmp_path / "classifier"
    words = ["export", charm_run, "--out", out, "--cache", charm_world / "cache", "--bake"]
    words += ["--int8", "--max-drop", "100", "--rival", teacher]
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rows = {row[0]: row[1:] for row in map(cells, result.stdout.splitlines()) if len(row) == 6}
    assert [*rows][1:] == [
        "PyTorch eager",
        "ONNX Runtime",
        "ONNX Runtime, int8",
        "teacher",
        teacher,
    ]
    assert rows[teacher][-2:] == rows["teacher"][-2:]
    assert float(rows["ONNX Runtime, int8"][0]) < float(rows["ONNX Runtime"][0]) / 2
    assert re.search(r"int8 is (\d+\.\d times as fast|as fast as|slower here)", result.stderr)

    classifier = Classifier.load(out)
    baked = open_session((out / "classifier.onnx").read_bytes())
    pixels = finished_charm_run.pixels["unseen"]
    (probabilities,) = baked.run(None, {"pixels": pixels.numpy()})
    photos = finished_charm_run.splits["unseen"].paths
    for row, found in zip(
        probabilities, Classifier.load(exported_charms.folder).classify(photos), strict=True
    ):
        assert row.max() == pytest.approx(found.best.probability, abs=1e-4)
    classifier.add("okapi", "a horse-like animal with striped legs")
    classifier.save()
    assert not (out / "classifier.onnx").exists()  # it lacks the class okapi
    assert len(Classifier.load(out).classify(photos[:2], top=99)[0].candidates) == 52


def cells(line):
    """The columns of a line of a table, or nothing."""
    return [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]


def test_int8_that_loses_too_much_is_refused_and_slower_int8_is_not_used():
    before = FormatRow("ONNX Runtime", 4.0, Speed(2.0, 100.0), 80.0, 60.0)
    after = FormatRow("ONNX Runtime, int8", 1.0, Speed(1.0, 200.0), 80.5, 58.5)
    with pytest.raises(ModelError, match=r"^int8 loses 1.5 points of top-1 on unseen images, more"):
        check_drop(before, after, 1.0)
    check_drop(before, after, 1.5)
    points = "points of top-1: +0.5 seen, -1.5 unseen"
    assert recommend(before, after) == (
        True,
        f"int8 is 2.0 times as fast here and is used; {points}",
    )
    for ms, line in (
        (1.96, f"int8 is as fast as float32 here and is used; {points}"),
        (2.04, f"int8 is as fast as float32 here: float32 is used; {points}"),
        (4.0, f"int8 is slower here, 0.5 times as fast: float32 is used; {points}"),
    ):
        assert recommend(before, replace(after, speed=Speed(ms, 100.0))) == (ms < 2, line)


def test_a_rival_that_open_clip_does_not_know_is_a_one_line_error(charm_run, charm_world, tmp_path):
    words = ["export", charm_run, "--out", tmp_path / "x", "--cache", charm_world / "cache"]
    result = CliRunner().invoke(app, [str(word) for word in (*words, "--rival", "ViT-B-31@openai")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        "distill: --rival ViT-B-31@openai: open_clip knows no teacher 'ViT-B-31': did you mean"
    )


def test_an_export_replaces_a_classifier_and_nothing_else(finished_charm_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(
        ClassifierError, match="other files and no classifier: choose another folder"
    ):
        export_run(finished_charm_run, tmp_path, progress=lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_export_does_not_replace_classes_that_were_added(finished_charm_run, classifier_folder):
    classifier = Classifier.load(classifier_folder)
    classifier.add("grey kite", ["a grey kite with a long tail"], allow_near=True)
    classifier.save(classifier_folder)
    before = (classifier_folder / MANIFEST).read_bytes()
    message = r"1 class with .* that were added \('grey kite'\), .*: move it elsewhere"
    with pytest.raises(ClassifierError, match=message):
        export_run(finished_charm_run, classifier_folder, progress=lambda *_: None)
    assert (classifier_folder / MANIFEST).read_bytes() == before


def test_the_teacher_must_be_that_of_the_run(charm_run, charm_world, tiny_teacher):
    with pytest.raises(ModelError, match="differ from those used in the run"):
        load_run(
            charm_run,
            teacher=tiny_teacher,
            cache=charm_world / "cache",
            bar=lambda _: lambda *_: None,
        )


@pytest.mark.parametrize("more", [(), ("--look-alikes", "nofile.txt")])
def test_a_folder_without_a_finished_training_is_a_one_line_error(more, exported_charms, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "checkpoint.safetensors").touch()
    for folder, message in (
        ("nowhere", "nowhere is not the folder of a training: it has no report.json"),
        (exported_charms.folder, "is not the folder of a training: it has no report.json"),
        (unfinished, "is not finished (it has no report.json): finish it with --resume"),
    ):
        words = ["export", str(folder), "--out", str(tmp_path / "classifier"), *more]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1 and result.stderr.endswith(f"{message}\n")


def test_a_report_of_another_version_is_one_line(tmp_path):
    (tmp_path / "report.json").write_text('{"student": "resnet18"}')
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "is damaged or was written by another version (config: Field required)" in line
    assert "train the student again" in line
