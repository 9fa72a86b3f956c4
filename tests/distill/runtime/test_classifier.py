"""A classifier folder in use: photos in, classes out, and classes that come by a text alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distill.data.splits import scan_split
from distill.errors import ClassifierError, UnreadableImages
from distill.runtime import Classifier


@pytest.fixture(scope="module")
def classifier(exported_charms) -> Classifier:
    """Shared: tests that change classes load their own."""
    return Classifier.load(exported_charms.folder)


def test_importing_it_never_imports_torch():
    code = (
        "import sys, distill.runtime, distill.runtime.server.main, distill.cli.predict\n"
        "print({'torch', 'timm', 'open_clip', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


def test_importing_it_needs_no_web_framework():
    code = (
        "import sys, distill.runtime\nprint({'fastapi', 'starlette', 'uvicorn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


def test_telemetry_of_onnx_runtime_is_disabled():
    code = "import os, distill.runtime\nprint(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "1\n"


def test_a_prediction_names_the_likeliest_classes_in_order(classifier, charm_world):
    (prediction,) = classifier.classify(scan_split(charm_world, "seen").paths[:1], top=3)
    shown = [candidate.probability for candidate in prediction.candidates]
    assert shown == sorted(shown, reverse=True)
    assert len(shown) == 3
    everything = classifier.classify(scan_split(charm_world, "seen").paths[:1], top=10_000)[0]
    assert sum(candidate.probability for candidate in everything.candidates) == pytest.approx(1)
    assert everything.candidates[:3] == prediction.candidates


def test_a_photo_may_be_a_file_or_an_image(classifier, charm_world):
    path = scan_split(charm_world, "unseen").paths[0]
    with Image.open(path) as image:
        assert classifier.classify([path]) == classifier.classify([image])


def test_one_photo_needs_no_list(classifier, charm_world):
    path = scan_split(charm_world, "unseen").paths[0]
    expected = classifier.classify([path])
    assert classifier.classify(path) == classifier.classify(str(path)) == expected
    with Image.open(path) as image:
        assert classifier.classify(image) == expected


@pytest.mark.parametrize(
    "photo", [b"\xff\xd8", np.zeros((8, 8, 3), np.uint8), 3, None], ids=lambda x: type(x).__name__
)
def test_a_photo_of_another_type_is_a_clear_error(classifier, photo):
    message = rf"a photo must be a path or a Pillow image, not {type(photo).__name__}: open bytes"
    for photos in (photo, [photo]):
        with pytest.raises(TypeError, match=message):
            classifier.classify(photos)


def test_an_image_without_pixels_is_unreadable(classifier):
    for size in ((0, 0), (0, 5)):
        with pytest.raises(UnreadableImages, match=r"^cannot read the image of 0 × \d pixels \(it"):
            classifier.classify(Image.new("RGB", size))


def test_a_choice_of_no_classes_or_of_one_twice_is_refused(classifier, charm_world):
    photo, key = scan_split(charm_world, "seen").paths[0], classifier.classes[0].key
    for among in ([], [key, key]):
        with pytest.raises(ClassifierError, match="among must have at least one key, each once"):
            classifier.classify(photo, among=among)
    for top in (0, -1):
        with pytest.raises(ClassifierError, match=f"top must be at least 1, .*, not {top}"):
            classifier.classify(photo, top)


def test_a_rotated_photo_is_classified_as_its_upright_twin(classifier, charm_world, tmp_path):
    path = scan_split(charm_world, "unseen").paths[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        upright, *others = classifier.classify([path, tmp_path / "turned.png", turned])
    assert others == [upright, upright]


def test_batches_are_classified_like_single_photos(classifier, charm_world):
    paths = scan_split(charm_world, "unseen").paths[:40]  # more than a batch
    together = classifier.encode(paths)
    alone = np.concatenate([classifier.encode([path]) for path in paths])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_a_photo_that_cannot_be_read_is_named(classifier, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(UnreadableImages, match=r"broken\.jpg"):
        classifier.classify([tmp_path / "broken.jpg"])


def test_unseen_classes_added_singly_equal_those_of_the_release(
    classifier_folder, finished_charm_run, charm_world
):
    """The text encoder without torch, on each text of the release."""
    classifier = Classifier.load(classifier_folder)
    labels = {label.key: label for label in finished_charm_run.release.labels}
    unseen = scan_split(charm_world, "unseen")
    before = [x.best.key for x in classifier.classify(unseen.paths, among=unseen.keys)]
    for key in unseen.keys:
        classifier.remove(key)
    assert all(entry.seen for entry in classifier.classes)
    for key in unseen.keys:
        added = classifier.add(labels[key].name, labels[key].description, key=key)
        assert added.origin == "added"
    bank = finished_charm_run.bank.select(unseen.keys).features.numpy()
    assert (classifier.bank[-len(unseen.keys) :] * bank).sum(axis=1).min() > 1 - 1e-5
    assert [x.best.key for x in classifier.classify(unseen.paths, among=unseen.keys)] == before


def test_a_class_that_was_added_is_there_after_saving(classifier_folder, tmp_path, charm_world):
    classifier = Classifier.load(classifier_folder)
    removed = classifier.classes[0]
    classifier.remove(removed.name.upper())
    classifier.add("okapi", "a horse-like animal with striped legs")
    classifier.save()
    classifier.save(tmp_path / "copy")
    photos = scan_split(charm_world, "unseen").paths[:5]
    for folder in (classifier_folder, tmp_path / "copy"):
        again = Classifier.load(folder)
        assert again.classes == classifier.classes
        assert removed not in again.classes
        assert again.classify(photos) == classifier.classify(photos)
        assert len(list(folder.glob("text_bank*"))) == 1


def test_a_copy_has_classes_of_its_own(classifier):
    before = classifier.classes
    copy = classifier.copy()
    copy.add("okapi", "a horse-like animal with striped legs")
    copy.remove(before[0].key)
    assert classifier.classes == before
    assert len(classifier.bank) == len(before)
    assert [entry.name for entry in copy.classes[-2:]] == [before[-1].name, "okapi"]


def test_a_save_does_not_undo_that_of_another_program(classifier_folder):
    first, second = (Classifier.load(classifier_folder) for _ in range(2))
    first.add("okapi", "a horse-like animal with striped legs")
    first.save()
    second.add("tapir", "a pig-like animal with a short trunk")
    with pytest.raises(ClassifierError, match="another program has changed the classifier"):
        second.save()
    assert Classifier.load(classifier_folder).classes == first.classes


def test_a_kill_between_the_files_of_a_save_leaves_the_old_classifier(classifier_folder):
    """The manifest, which is replaced last, names the bank that belongs to it."""
    before = (classifier_folder / "classifier.json").read_bytes()
    old_bank = (classifier_folder / "text_bank.safetensors").read_bytes()
    classifier = Classifier.load(classifier_folder)
    classifier.add("okapi", "a horse-like animal with striped legs")
    classifier.save()
    (classifier_folder / "classifier.json").write_bytes(before)
    (classifier_folder / "text_bank.safetensors").write_bytes(old_bank)
    assert len(Classifier.load(classifier_folder).classes) == len(classifier.classes) - 1


def test_a_save_that_fails_while_it_writes_leaves_the_old_classifier(classifier_folder):
    """The same classes again, so that a save writes a text bank of the same name.

    The limit on the size of a file stands for a full disk.
    """
    Classifier.load(classifier_folder).save()
    code = (
        "import resource, signal, sys\n"
        "from distill.runtime import Classifier, ClassifierError\n"
        "classifier = Classifier.load(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    classifier.save()\n"
        "except ClassifierError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(classifier_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == (
        f"cannot write the classifier {classifier_folder} (File too large): free some space or "
        "choose another folder\n"
    )
    assert Classifier.load(classifier_folder).classes
    assert not list(classifier_folder.glob("*.partial"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (" ", "a text", "a new class needs a name"),
        ("okapi", "  ", "the text of the new class 'okapi' is empty"),
    ],
)
def test_a_class_needs_a_name_and_a_text(classifier, name, text, message):
    with pytest.raises(ClassifierError, match=message):
        classifier.add(name, text)


def test_a_class_comes_once_in_whatever_spelling(classifier):
    name = classifier.classes[0].name
    for spelling in (name, name.upper(), name.replace(" ", "_"), f" {name.replace(' ', '-')} "):
        with pytest.raises(ClassifierError, match=f"exists already, as {name!r}"):
            classifier.add(spelling, "something else altogether")


def test_classes_may_have_names_without_letters(classifier_folder):
    classifier = Classifier.load(classifier_folder)
    classifier.add("\N{GIRAFFE FACE}", "an animal with a long neck", allow_near=True)
    zebra = classifier.add("\N{ZEBRA FACE}", "a striped animal", allow_near=True)
    with pytest.raises(ClassifierError, match="exists already, as '\N{ZEBRA FACE}'"):
        classifier.add(" \N{ZEBRA FACE} ", "a striped animal", allow_near=True)
    assert classifier.remove("\N{ZEBRA FACE}") == zebra
    assert [entry.name for entry in classifier.classes][-1] == "\N{GIRAFFE FACE}"


def test_a_class_too_near_to_another_is_refused_and_its_neighbour_named(classifier_folder):
    classifier = Classifier.load(classifier_folder)
    text = "a horse-like animal with striped legs and a long dark tongue"
    classifier.add("okapi", text)
    with pytest.raises(ClassifierError, match=r"'okapis' is too similar to that of 'okapi' \(cos"):
        classifier.add("okapis", text)
    assert classifier.add("okapis", text, allow_near=True).name == "okapis"


def test_what_is_not_there_cannot_be_removed_or_asked_for(classifier, charm_world):
    with pytest.raises(ClassifierError, match="no class 'unicorn'"):
        classifier.remove("unicorn")
    with pytest.raises(ClassifierError, match="no class with the key 'unicorn'"):
        classifier.classify(scan_split(charm_world, "seen").paths[:1], among=["unicorn"])


def cut_off(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def change(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


FILES = ("image_encoder.onnx", "text_encoder.onnx", "tokenizer.json", "text_bank.safetensors")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "is truncated"),
        (change, "is not the file that was exported"),
        (lambda folder, name: (folder / name).unlink(), "has no file"),
    ],
)
def test_a_damaged_folder_is_refused(classifier_folder, name, damage, message):
    """A byte that was changed in the text encoder is found before it is used."""
    damage(classifier_folder, name)
    with pytest.raises(ClassifierError, match=message) as refused:
        Classifier.load(classifier_folder).prepare_texts()
    assert name in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_manifest_that_is_none_is_refused(classifier_folder, tmp_path):
    path = classifier_folder / "classifier.json"
    document = json.loads(path.read_text())
    cases = {
        "format version 2": json.dumps(document | {"version": 2}),
        "truncated or damaged": path.read_text()[:100],
        "not a classifier manifest": json.dumps(document | {"classes": 3}),
        "lists a file outside": json.dumps(
            document | {"files": document["files"] | {"../x": {"bytes": 0, "sha256": ""}}}
        ),
    }
    for message, content in cases.items():
        path.write_text(content)
        with pytest.raises(ClassifierError, match=message):
            Classifier.load(classifier_folder)
    with pytest.raises(ClassifierError, match="is not a classifier folder"):
        Classifier.load(tmp_path / "nowhere")
