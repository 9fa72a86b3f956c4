"""What becomes of a classifier folder that several programs write, or that has other files."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distill.data.files.classifier_zip import zip_folder
from distill.errors import ClassifierChanged, ClassifierError
from distill.runtime import Classifier
from distill.runtime.manifest import check_folder
from distill.runtime.server.registry.cache import _check
from distill.runtime.write_folder import check_target

ADD_REPEATEDLY = """
import sys
from distill.errors import ClassifierChanged
from distill.runtime import Classifier
folder, writer = sys.argv[1:]
for number in range(12):
    classifier = Classifier.load(folder, threads=1)
    name = f"thing {writer} {number}"
    classifier.add(name, f"a thing of the kind {writer}, number {number}", allow_near=True)
    try:
        classifier.save()
    except ClassifierChanged:
        continue
    print(name, flush=True)
"""


def test_two_processes_that_save_lose_no_class_and_fail_no_load(classifier_folder):
    """A class whose save succeeded is in the folder; other saves were refused."""
    command = [sys.executable, "-c", ADD_REPEATEDLY, str(classifier_folder)]
    with (
        subprocess.Popen([*command, "a"], stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen([*command, "b"], stdout=subprocess.PIPE, text=True) as second,
    ):
        while first.poll() is None or second.poll() is None:
            check_folder(classifier_folder)
            Classifier.load(classifier_folder, threads=1)
        saved = [*first.communicate()[0].splitlines(), *second.communicate()[0].splitlines()]
    assert (first.returncode, second.returncode) == (0, 0)
    names = {entry.name for entry in Classifier.load(classifier_folder).classes}
    assert saved and set(saved) <= names
    assert {name for name in names if name.startswith("thing ")} == set(saved)
    assert len(list(classifier_folder.glob("text_bank*"))) == 1


def test_a_save_is_refused_even_if_the_text_bank_is_the_same(classifier_folder):
    """A class that comes again under another key has the same features."""
    text = "a horse-like animal with striped legs"
    classifier = Classifier.load(classifier_folder)
    classifier.add("okapi", text)
    classifier.save()
    first, second = (Classifier.load(classifier_folder) for _ in range(2))
    first.remove("okapi")
    first.add("okapi", text, key="o1")
    first.save()
    assert first.manifest.files == second.manifest.files
    second.remove(second.classes[0].key)
    with pytest.raises(ClassifierChanged):
        second.save()
    assert Classifier.load(classifier_folder).classes == first.classes


def test_a_save_into_a_folder_that_is_gone_is_refused(classifier_folder):
    classifier = Classifier.load(classifier_folder)
    classifier_folder.rename(classifier_folder.with_name("moved"))
    with pytest.raises(ClassifierChanged, match="another program has changed the classifier"):
        classifier.save()
    assert not classifier_folder.exists()


def test_the_lock_file_is_neither_packed_nor_in_the_way(classifier_folder, tmp_path):
    classifier = Classifier.load(classifier_folder)
    classifier.save()
    files = {path.name for path in classifier_folder.iterdir()}
    zip_folder(classifier_folder, tmp_path / "classifier.zip")
    with zipfile.ZipFile(tmp_path / "classifier.zip") as archive:
        _check(archive)
        assert files - set(archive.namelist()) == {".classifier.lock"}
    check_folder(classifier_folder)
    classifier.save(tmp_path / "copy")
    assert Classifier.load(tmp_path / "copy").save(classifier_folder) == classifier_folder
    assert Classifier.load(classifier_folder).classes == classifier.classes


@pytest.mark.parametrize("name", ["mynotes/photo.txt", "notes.txt", ".git/config"])
def test_a_classifier_is_not_replaced_beside_other_files(exported_charms, tmp_path, name):
    classifier = Classifier.load(exported_charms.folder)
    folder = classifier.save(tmp_path / "copy")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("do not lose me")
    entry = name.partition("/")[0]
    with pytest.raises(ClassifierError, match=rf"has other files .* \('{entry}'\)") as refused:
        Classifier.load(exported_charms.folder).save(folder)
    assert len(str(refused.value).splitlines()) == 1
    assert (folder / name).read_text() == "do not lose me"
    kept = Classifier.load(folder)
    kept.add("okapi", "a horse-like animal with striped legs")
    kept.save()  # in place, nothing else is touched
    assert (folder / name).read_text() == "do not lose me"


def test_what_an_export_and_killed_saves_leave_is_replaced(exported_charms, tmp_path):
    folder = Classifier.load(exported_charms.folder).save(tmp_path / "copy")
    (folder / "open_clip").mkdir()
    (folder / "open_clip" / "config.json").write_text("{}")
    stale = ("text_bank-0.safetensors", "classifier.json.0.partial", "classifier.onnx")
    for name in stale:
        (folder / name).write_bytes(b"")
    Classifier.load(exported_charms.folder).save(folder)
    assert not (folder / "open_clip").exists()
    assert not any((folder / name).exists() for name in stale)


def test_a_classifier_is_not_written_over_the_current_folder(
    exported_charms, tmp_path, monkeypatch
):
    (tmp_path / "here" / "below").mkdir(parents=True)
    for folder, target in ((tmp_path / "here", "."), (tmp_path / "here" / "below", ".")):
        monkeypatch.chdir(folder)
        with pytest.raises(ClassifierError) as refused:
            Classifier.load(exported_charms.folder).save(target)
        assert str(refused.value) == (
            f"{folder} is the current folder or one above it and cannot be replaced: choose a "
            f"folder in it, such as {folder}/classifier"
        )
        assert not list((tmp_path / "here").glob(".*"))
    saved = Classifier.load(exported_charms.folder).save("classifier")
    monkeypatch.chdir(saved)
    classifier = Classifier.load(".")
    classifier.add("okapi", "a horse-like animal with striped legs")
    classifier.save(".")  # its own folder
    assert Classifier.load(".").classes == classifier.classes


def test_a_mount_point_is_refused():
    """An export checks this before its slow part."""
    with pytest.raises(ClassifierError, match=r"^/proc is a mount point .*: choose a folder in it"):
        check_target(Path("/proc"))


def test_a_link_to_a_folder_stays_a_link(exported_charms, tmp_path):
    (tmp_path / "link").symlink_to("real")
    Classifier.load(exported_charms.folder).save(tmp_path / "real")
    classifier = Classifier.load(exported_charms.folder)
    classifier.add("okapi", "a horse-like animal with striped legs")
    classifier.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Classifier.load(tmp_path / "real").classes == classifier.classes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
