"""`distill predict`, as a user types it; a service and a language model are real local servers."""

import csv
import io
import json
import os
import re
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image
from typer.testing import CliRunner

from distill.cli.main import app
from distill.data.splits import scan_split
from distill.runtime import Classifier
from distill.runtime.photo_files import find_photos
from tests.llm_server import Answer, LlmServer

OKAPI = "a horse-like animal with striped legs"


def predict(folder, *arguments, stdin=None):
    words = ["predict", str(folder), *map(str, arguments)]
    return CliRunner().invoke(app, words, input=stdin, catch_exceptions=False)


def without_frames(tables):
    """The cells of the first column, each without its line breaks."""
    rows = [line.split("│")[1].strip() for line in tables.splitlines() if line.startswith("│")]
    return "".join(rows)


@pytest.fixture
def folder(exported_charms):
    return exported_charms.folder


@pytest.fixture
def photo(charm_world):
    return scan_split(charm_world, "unseen").paths[0]


def test_hidden_files_of_a_folder_are_no_photos(tmp_path, photo):
    for name in ("a.png", "._a.png", ".cache/b.png", "below/c.png", "__MACOSX/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / name)
    found = [photo.name for photo in find_photos([str(tmp_path)])]
    assert found == [str(tmp_path / "a.png"), str(tmp_path / "below" / "c.png")]


def test_photos_are_read_from_files_folders_patterns_and_standard_input(
    folder, photo, charm_world, monkeypatch
):
    first, second = scan_split(charm_world, "unseen").paths[:2]
    below = [path for path in sorted((charm_world / "val").rglob("*")) if path.is_file()]
    cases = {
        (str(first), str(second)): [first, second],
        (str(charm_world / "val"),): below,
        (f"{charm_world}/val/*/000.*",): [path for path in below if path.stem == "000"],
        (str(first.parent), str(first)): [path for path in below if path.parent == first.parent],
    }
    for arguments, expected in cases.items():
        assert [photo.name for photo in find_photos(arguments)] == list(map(str, expected))
    listed = predict(folder, "-", "--json", stdin=f"{first}\n{second}\n")
    assert [entry["photo"] for entry in json.loads(listed.stdout)["photos"]] == [
        str(first),
        str(second),
    ]
    piped = json.loads(predict(folder, "-", "--json", stdin=photo.read_bytes()).stdout)["photos"]
    named = json.loads(predict(folder, photo, "--json").stdout)["photos"]
    assert piped[0]["candidates"] == named[0]["candidates"]


def test_a_folder_or_pattern_without_photos_is_a_one_line_error(tmp_path, folder):
    for argument in (tmp_path, f"{tmp_path}/*.jpg"):
        result = predict(folder, argument)
        assert result.exit_code == 1
        assert re.fullmatch(r"distill: the (folder|pattern) .* has no image .*\n", result.stderr)
    neither = predict(folder, "-", stdin=b"\0\1\2")
    assert neither.exit_code == 1
    assert neither.stderr == (
        "distill: standard input is neither a photo nor a list of files, one per line\n"
    )


def test_a_person_sees_a_row_for_each_photo(folder, photo):
    result = predict(folder, photo, "--top", "2")
    assert result.exit_code == 0
    (prediction,) = Classifier.load(folder).classify([photo], top=2)
    assert prediction.best.name in result.stdout
    assert prediction.candidates[1].name in result.stdout


def test_a_program_gets_json_or_csv(folder, photo):
    (prediction,) = Classifier.load(folder).classify([photo], top=3)
    document = json.loads(predict(folder, photo, "--top", "3", "--json").stdout)
    assert document["unreadable"] == []
    assert [candidate["key"] for candidate in document["photos"][0]["candidates"]] == [
        candidate.key for candidate in prediction.candidates
    ]
    rows = list(csv.DictReader(io.StringIO(predict(folder, photo, "--top", "3", "--csv").stdout)))
    assert [(row["photo"], row["key"]) for row in rows] == [
        (str(photo), candidate.key) for candidate in prediction.candidates
    ]
    assert float(rows[0]["probability"]) == pytest.approx(prediction.best.probability, abs=1e-6)


def test_unreadable_photos_are_listed_at_the_end_and_do_not_stop_the_command(
    folder, photo, tmp_path
):
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:60])
    result = predict(folder, tmp_path / "broken.jpg", tmp_path / "gone.jpg", photo, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [entry["photo"] for entry in document["photos"]] == [str(photo)]
    assert len(document["unreadable"]) == 2
    assert [line.split(" (")[0] for line in result.stderr.splitlines()] == [
        f"distill: cannot read {tmp_path / name}" for name in ("broken.jpg", "gone.jpg")
    ]


def test_a_photo_with_too_many_pixels_stops_nothing(folder, photo, tmp_path):
    """200 megapixels of one colour are a PNG of 25 kB."""
    large = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(large)
    result = predict(folder, large, photo, "--json")
    assert result.exit_code == 1
    assert [entry["photo"] for entry in json.loads(result.stdout)["photos"]] == [str(photo)]
    assert result.stderr == f"distill: cannot read {large} (it has more than 178 megapixels)\n"
    piped = predict(folder, "-", stdin=large.read_bytes())
    assert piped.exit_code == 1
    assert piped.stderr == (
        "distill: cannot read standard input (it has more than 178 megapixels)\n"
    )


def test_a_contact_sheet_shows_every_photo_and_runs_nothing(folder, photo, tmp_path):
    odd = tmp_path / "<script>alert(1)<.png"
    odd.write_bytes(photo.read_bytes())
    result = predict(folder, photo, odd, "--html", tmp_path / "sheet.html", "--json")
    assert result.exit_code == 0
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<figure>") == page.count("data:image/jpeg;base64,") == 2
    assert "<script" not in page


def test_a_contact_sheet_that_cannot_be_written_stops_the_command_at_once(folder, photo, tmp_path):
    gone = tmp_path / "gone"
    cases = {tmp_path: "it is a folder", gone / "sheet.html": f"there is no folder {gone}"}
    for sheet, reason in cases.items():
        result = predict(folder, photo, "--html", sheet, "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"distill: cannot write {sheet} ({reason}): choose another --html\n"


def test_results_are_printed_even_if_the_contact_sheet_cannot_be_written(folder, photo):
    if not Path("/dev/full").exists():  # a device without space
        pytest.skip("this system has no /dev/full")
    result = predict(folder, photo, "--html", "/dev/full", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["photos"]) == 1
    assert result.stderr == "distill: cannot write /dev/full (No space left on device)\n"


def test_a_photo_name_that_is_not_utf8_is_shown_with_its_bytes_replaced(folder, photo, tmp_path):
    named = tmp_path / os.fsdecode(b"bad\xff.png")
    try:
        named.write_bytes(photo.read_bytes())
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    sheet = tmp_path / "sheet.html"
    result = predict(folder, named, "--csv", "--top", "1", "--html", sheet)
    assert result.exit_code == 0
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert row["photo"] == f"{tmp_path}/bad\N{REPLACEMENT CHARACTER}.png"
    assert "/bad\N{REPLACEMENT CHARACTER}.png</figcaption>" in sheet.read_text("utf-8")
    listed = predict(folder, "-", "--why", stdin=os.fsencode(named))
    assert listed.exit_code == 0
    assert "bad\N{REPLACEMENT CHARACTER}.png" in without_frames(listed.stdout)
    (entry,) = json.loads(predict(folder, named, "--json").stdout)["photos"]
    assert entry["photo"] == str(named)  # a program can open it
    gone = predict(folder, named.with_name(os.fsdecode(b"gone\xff.png")))
    assert "gone\N{REPLACEMENT CHARACTER}.png (it does not exist)" in gone.stderr


def test_long_paths_are_shown_in_full(folder, photo, tmp_path):
    deep = tmp_path / "/".join(["folder-" + "x" * 40] * 4)
    deep.mkdir(parents=True)
    paths = [deep / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(photo.read_bytes())
    result = predict(folder, deep, "--why")
    assert result.exit_code == 0
    shown = without_frames(result.stdout)
    assert [shown.count(str(path)) for path in paths] == [2, 2, 2]  # predictions and reasons


def test_a_class_is_added_by_its_text_and_kept_when_asked(classifier_folder, photo):
    added = ("--add", f"okapi={OKAPI}", "--top", "1000", "--json")
    document = json.loads(predict(classifier_folder, photo, *added).stdout)
    assert "okapi" in [candidate["name"] for candidate in document["photos"][0]["candidates"]]
    names = [entry.name for entry in Classifier.load(classifier_folder).classes]
    assert "okapi" not in names
    assert predict(classifier_folder, photo, *added, "--save").exit_code == 0
    kept = Classifier.load(classifier_folder).classes[-1]
    assert (kept.name, kept.texts) == ("okapi", (f"a photo of okapi . {OKAPI}",))
    again = predict(classifier_folder, photo, *added)
    assert again.exit_code == 1
    assert again.stderr == (
        "distill: the class 'okapi' exists already, as 'okapi': remove it first (--remove "
        "on the command line), or choose another name\n"
    )
    replaced = predict(
        classifier_folder, photo, "--remove", "Okapi", "--add", "okapi=a small giraffe", "--save"
    )
    assert replaced.exit_code == 0
    count = len(names) + 1
    assert replaced.stderr == f"removed: okapi\nsaved: {count} classes in {classifier_folder}\n"
    kept = Classifier.load(classifier_folder).classes[-1]
    assert (kept.name, kept.texts) == ("okapi", ("a photo of okapi . a small giraffe",))


def test_classes_are_removed_and_saved_without_photos(classifier_folder, photo):
    first, second, *others = [entry.name for entry in Classifier.load(classifier_folder).classes]
    removal = ("--remove", first, "--remove", second)
    (found,) = json.loads(
        predict(classifier_folder, photo, *removal, "--top", "1000", "--json").stdout
    )["photos"]
    assert {candidate["name"] for candidate in found["candidates"]} == set(others)
    assert predict(classifier_folder, *removal, "--save").exit_code == 0
    assert [entry.name for entry in Classifier.load(classifier_folder).classes] == others
    unknown = predict(classifier_folder, photo, *removal, "--save")
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith(f"distill: the classifier has no class {first!r}")
    assert unknown.stderr.count("\n") == 1


def test_nothing_is_saved_if_a_photo_does_not_exist(classifier_folder, photo, tmp_path):
    gone = tmp_path / "gone.png"
    added = ("--add", f"okapi={OKAPI}", "--save")
    cases = {
        (gone,): f"nothing was saved, because files do not exist: '{gone}'",
        (tmp_path / "*.png",): f"the pattern {tmp_path}/*.png has no image (",
        ("",): 'an argument for photos is empty: for the current folder, write "."\n',
    }
    for photos, message in cases.items():
        result = predict(classifier_folder, photo, *photos, *added)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"distill: {message}") and result.stderr.count("\n") == 1
    assert predict(classifier_folder, photo, *added).exit_code == 0  # it was not saved before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--save",), "nothing to save: give --add, --examples or --remove with --save"),
        (("--add", f"okapi={OKAPI}"), "no photos: name files, folders or patterns to classify"),
        (
            ("-", "--add", os.fsdecode(b"ok\xff=x")),
            '--add "ok\ufffd=x" is not UTF-8: type it again',
        ),
    ],
)
def test_options_that_do_not_fit_are_a_one_line_error(folder, photo, arguments, message):
    result = predict(folder, *arguments, stdin=photo.read_bytes())
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"distill: {message}\n"


def test_a_name_alone_needs_somebody_who_describes_it(folder, photo):
    result = predict(folder, photo, "--add", "okapi")
    assert result.exit_code == 1
    assert result.stderr == (
        "distill: the new class 'okapi' needs a description: give one, name an enrichment service "
        "with --service URL, or set OPENAI_API_KEY\n"
    )


def test_a_name_alone_is_described_by_the_language_model_of_the_environment(
    folder, photo, monkeypatch
):
    with LlmServer(key="secret", behave=lambda call: Answer(content=OKAPI)) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        monkeypatch.setenv("ENRICH_LLM_MODEL", "small")
        result = predict(folder, photo, "--add", "okapi", "--json")
        assert result.exit_code == 0, result.stderr
        assert result.stderr == f"added: a photo of okapi . {OKAPI}\n"
        (call,) = model.requests
        assert call.body["model"] == "small"
        assert "appearance and shape of okapi" in call.text
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        refused = predict(folder, photo, "--add", "okapi")
        assert refused.stderr == (
            f"distill: the language model at {model.url}/chat/completions rejects the API key: "
            "set OPENAI_API_KEY\n"
        )
        model.behave = lambda call: Answer(content=" ")
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        assert "returned no text for 'okapi'" in predict(folder, photo, "--add", "okapi").stderr
    assert "does not answer" in predict(folder, photo, "--add", "okapi").stderr


def test_a_name_alone_is_described_by_the_service_with_the_prompt_of_the_release(
    classifier_folder, photo, start_service, tmp_path
):
    pytest.importorskip("fastapi")
    from enrich_service.core.settings import Settings

    manifest = classifier_folder / "classifier.json"
    document = json.loads(manifest.read_text())
    with LlmServer() as model:
        url = start_service(Settings(data_dir=tmp_path / "service", llm_url=model.url))
        document["text"] |= {"prompt": "visual-description", "prompt_version": 1}
        manifest.write_text(json.dumps(document))
        result = predict(classifier_folder, photo, "--add", "okapi", "--service", url, "--json")
        assert result.exit_code == 0, result.stderr
        assert result.stderr.startswith("added: a photo of okapi . ")
        assert model.calls["okapi"] == 1
        document["text"] |= {"prompt_version": 9}
        manifest.write_text(json.dumps(document))
        other = predict(classifier_folder, photo, "--add", "okapi", "--service", url)
        assert other.exit_code == 1
        assert "distill: the service at" in other.stderr
        assert "answers 404" in other.stderr
        # Refused before a description is requested.
        name = Classifier.load(classifier_folder).classes[0].name
        assert (
            "exists already"
            in predict(classifier_folder, photo, "--add", name.upper(), "--service", url).stderr
        )
    assert model.calls.total() == 1


@pytest.mark.parametrize("body", ['{"ok": true}', '[{"status": "accepted"}]', "[]", "7"])
def test_a_response_that_is_no_description_is_a_one_line_error(folder, photo, body):
    class Other(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        result = predict(folder, photo, "--add", "okapi", "--service", url)
        server.shutdown()
    assert result.exit_code == 1
    assert result.stderr == (
        f"distill: {url}/v1/describe does not answer like an enrichment service: check the "
        "address of --service\n"
    )


def test_a_class_near_another_one_is_added_only_when_allowed(classifier_folder, photo):
    both = ("--add", f"okapi={OKAPI} and a tongue", "--add", f"okapis={OKAPI} and a tongue")
    refused = predict(classifier_folder, photo, *both)
    assert refused.exit_code == 1
    assert "is too similar to that of 'okapi'" in refused.stderr
    assert predict(classifier_folder, photo, *both, "--allow-near").exit_code == 0


def test_the_address_of_the_service_needs_a_scheme(folder, photo):
    result = predict(folder, photo, "--add", "okapi", "--service", "127.0.0.1:8000")
    assert result.exit_code == 1
    assert result.stderr == (
        "distill: the address of --service must begin with http:// or https://: "
        "'127.0.0.1:8000' does not\n"
    )


def test_another_path_than_the_classifier_folder_is_a_one_line_error(
    classifier_folder, photo, tmp_path
):
    file = classifier_folder / "classifier.json"
    assert predict(file, photo).stderr == (
        f"distill: {file} is not a folder: give the folder that contains classifier.json\n"
    )
    run = tmp_path / "run"
    run.mkdir()
    classifier_folder.rename(run / "classifier")
    assert predict(run, photo).stderr == (
        f"distill: {run} is not a classifier folder: its classifier is {run / 'classifier'}\n"
    )
