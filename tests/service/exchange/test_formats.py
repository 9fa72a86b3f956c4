"""CSV, the JSON lists of other papers, and a release as a folder: out, in, and equal."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import col, select

from enrich_service.core import spreadsheet
from enrich_service.core.errors import Conflict, InvalidInput
from enrich_service.core.storage.database import reading, writing
from enrich_service.exchange import class_lists, csv_files, jsonl_export, jsonl_import, manifest
from enrich_service.generations import reviews
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    ReviewAction,
)
from enrich_service.labels import files
from enrich_service.labels import service as labels
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompts
from enrich_service.prompts.schemas import PromptCreate, PromptKind
from enrich_service.releases import service as releases
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource

NASTY = ['=HYPERLINK("x")', "+1", "-1", "@sum", "'=x", "''@x", "'quoted'", 'a "b", c', "ünïcode"]
TEXTS = {
    "description": {"description": '=cmd|"/c calc"!A1, with a green head'},
    "attributes": {"features": ["-red bill", "a green head"], "shape": "stocky"},
    "sentences": {"sentences": ["@ first.\nSecond line", "+ second, of \t two."]},
    "captions": {"captions": ["A photo of it."]},
}


def fill(engine):
    """Labels and texts of every kind that a spreadsheet would take for formulas; a release."""
    with writing(engine) as session:
        given = [LabelIn(key=f"n{n}", name=name) for n, name in enumerate(NASTY)]
        chosen = labels.create(session, "nasty", [*given, LabelIn(name="teal", context="-a bird")])
        for kind, parsed in TEXTS.items():
            _, version = prompts.create(
                session,
                PromptCreate(
                    name=f"my-{kind}", kind=kind, user="1", output_schema={"type": "object"}
                ),
            )
            for label in labels.labels_of(session, chosen):
                session.add(
                    Generation(
                        source=GenerationSource.MODEL,
                        status=GenerationStatus.ACCEPTED,
                        kind=kind,
                        label_id=label.id,
                        label_name=label.name,
                        label_context=label.context,
                        prompt_version_id=version.id,
                        requested_model="=small",
                        resolved_model="small-2026",
                        dedupe_key=f"{kind}-{label.key}",
                        raw_reply=json.dumps(parsed),
                        messages=[{"role": "user", "content": "=1"}],
                        parameters={"temperature": 0.5},
                        prompt_tokens=7,
                        cost_usd=0.125,
                        parsed=parsed,
                    )
                )
        row, _ = releases.create(
            session,
            ReleaseCreate(
                label_set="nasty",
                name="r1",
                sources=[ReleaseSource(prompt=f"my-{kind}", version=1) for kind in TEXTS],
            ),
        )
        return releases.parsed(row)


def cells(lines):
    return [cell for row in csv.reader(io.StringIO("".join(lines), newline="")) for cell in row]


def no_formula(found):
    return not [cell for cell in found if cell[:1] in tuple("=+-@\t\r")]


@given(st.text(alphabet=st.sampled_from("'=+-@\t\r\n\",aé "), max_size=8))
def test_every_cell_comes_back_equal_and_none_is_a_formula(text):
    assert spreadsheet.unescape_formula(spreadsheet.escape_formula(text)) == text
    written = "".join(spreadsheet.write(["a", "b"], [[text, "x"]]))
    assert no_formula(cells([written]))
    assert next(spreadsheet.read(written.encode(), ["a", "b"], []))["a"] == text


def test_labels_go_out_as_csv_and_come_in_as_they_were(engine):
    fill(engine)
    with writing(engine) as session:
        chosen = labels.get(session, "nasty")
        lines = list(labels.to_csv(session, chosen))
        assert no_formula(cells(lines))
        again = labels.create(session, "again", *files.from_table("".join(lines).encode()))
        assert [(one.key, one.name, one.context) for one in labels.labels_of(session, again)] == [
            (one.key, one.name, one.context) for one in labels.labels_of(session, chosen)
        ]


def test_a_release_goes_out_as_csv_and_has_the_same_hash_elsewhere(engine, elsewhere):
    release = fill(engine)
    lines = list(csv_files.release_csv(release))
    assert no_formula(cells(lines))
    with writing(elsewhere) as session:
        row, new = csv_files.import_release_csv(
            session, "".join(lines).encode(), name="r1", label_set="nasty"
        )
        assert (new, row.hash) == (True, release.hash)
        assert releases.parsed(row).labels == release.labels


def test_generations_go_out_as_csv_and_come_in_with_their_provenance(engine, elsewhere):
    release = fill(engine)
    with reading(engine) as session:
        lines = list(csv_files.generations_csv(session))
        assert no_formula(cells(lines))
        everything = list(jsonl_export.export_jsonl(session))
        before = [one.model_dump() for one in jsonl_export.generation_records(session)]
    data = "".join(lines).encode()
    with (
        pytest.raises(InvalidInput, match="Row 1 .*import the prompt first"),
        writing(elsewhere) as session,
    ):
        csv_files.import_generations_csv(session, data)
    with writing(elsewhere) as session:
        jsonl_import.import_jsonl(
            session, [line for line in everything if '"record":"gen' not in line]
        )
        assert csv_files.import_generations_csv(session, data).generations == len(before)
        assert csv_files.import_generations_csv(session, data).existing == len(before)
        assert [one.model_dump() for one in jsonl_export.generation_records(session)] == before
        row, _ = releases.create(
            session,
            ReleaseCreate(
                label_set="nasty",
                name="r2",
                sources=[ReleaseSource(prompt=f"my-{kind}", version=1) for kind in TEXTS],
            ),
        )
        assert row.hash == release.hash


def test_reviews_go_out_as_csv_without_formulas(engine):
    fill(engine)
    with writing(engine) as session:
        reviews.review(session, [1], ReviewAction.LOCK, reason="=1+1", author="@ada")
        (said,) = reviews.log_of(session, 1)
        labels.create(session, "others", [LabelIn(name="heron")])
    with reading(engine) as session:
        lines = list(csv_files.reviews_csv(session, "nasty"))
        assert no_formula(cells(lines))
        (row,) = spreadsheet.read("".join(lines).encode(), csv_files.REVIEW_COLUMNS, [])
        assert row == {
            "generation": "1",
            "kind": "description",
            "label_name": NASTY[0],
            "action": "lock",
            "reason": "=1+1",
            "author": "@ada",
            "at": said.at.isoformat(),
        }
        assert len(list(csv_files.reviews_csv(session, "others"))) == 1


def test_confusable_labels_go_out_as_csv_without_formulas(engine):
    keys = [f"{sign}{n}" for n, sign in enumerate("=+-@'")]
    with writing(engine) as session:
        chosen = labels.create(session, "x", [LabelIn(key=key, name=key) for key in keys])
        near = {keys[0]: [keys[2], keys[1]], keys[4]: [keys[3]]}
        labels.set_confusable(session, chosen, near)
        lines = list(csv_files.confusable_csv(session, "x"))
    assert no_formula(cells(lines))
    columns = csv_files.CONFUSABLE_COLUMNS
    rows = spreadsheet.read("".join(lines).encode(), columns, columns)
    pairs = [(key, other) for key, others in near.items() for other in others]
    assert [(row["key"], row["confusable"]) for row in rows] == pairs


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "not UTF-8"),
        (b"name\nx\n", "needs a first line"),
        (b"key,name,strange\n", "needs a first line"),
        (b"key,name\na\n", "Line 2"),
        (b"key,name,sentences\na,b,not json\n", "Row 1 .*not valid JSON"),
        (b"key,name,sentences\na,b,7\n", "Row 1 .*sentences"),
        (b"key,name\na,b\na,c\n", "key 'a' of label 1"),
        (b"key,name\n", "at least one label"),
    ],
)
def test_a_csv_file_that_is_no_release_is_told_and_leaves_nothing(engine, data, message):
    with pytest.raises(InvalidInput, match=message), writing(engine) as session:
        csv_files.import_release_csv(session, data, name="r", label_set="x")
    with reading(engine) as session:
        assert labels.listing(session) == []


LISTS = {
    "teal": ["a chestnut head with a green stripe", "a small grey body"],
    "mallard": ["a bottle-green head", "a yellow bill"],
    "heron": [],
}


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        (PromptKind.ATTRIBUTES, class_lists.descriptors),
        (PromptKind.SENTENCES, class_lists.sentences),
    ],
)
def test_lists_of_other_papers_come_in_and_go_out_as_they_were(engine, kind, write):
    lists = LISTS
    if kind is PromptKind.SENTENCES:
        lists = {
            name: [f"The {name} has {text}." for text in texts] for name, texts in LISTS.items()
        }
    with writing(engine) as session:
        read = class_lists.read(json.dumps(lists))
        done = class_lists.import_lists(session, read, label_set="ducks", kind=kind)
        assert (done.label_sets, done.generations, done.problems) == (["ducks"], 2, [])
        row, _ = releases.create(
            session, ReleaseCreate(label_set="ducks", name="r", allow_missing=True)
        )
        assert write(releases.parsed(row)) == lists
        # Into labels that are there already, a faulty list is kept and not released.
        read = {"heron": ["I'm sorry, but I cannot describe a heron."]}
        again = class_lists.import_lists(session, read, label_set="ducks", kind=kind)
        assert (again.label_sets, again.rejected) == ([], 1)


def test_attributes_go_out_behind_their_names_and_a_description_stands_for_sentences(engine):
    release = fill(engine)
    found = class_lists.descriptors(release)
    assert found["+1"] == ["-red bill", "a green head", "shape: stocky"]
    bare = release.model_copy(
        update={"labels": tuple(one.model_copy(update={"sentences": ()}) for one in release.labels)}
    )
    assert class_lists.sentences(bare)["+1"] == [TEXTS["description"]["description"]]


def test_two_labels_of_one_name_do_not_fit_into_lists_by_name(engine):
    with writing(engine) as session:
        cranes = [LabelIn(key="n1", name="crane"), LabelIn(key="n2", name="crane")]
        labels.create(session, "cranes", cranes)
        row, _ = releases.create(
            session, ReleaseCreate(label_set="cranes", name="r", allow_missing=True)
        )
        with pytest.raises(Conflict, match="Two labels .* 'crane'"):
            class_lists.descriptors(releases.parsed(row))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "not a JSON object"),
        ("{", "not a JSON object"),
        ('{"teal": "a text"}', ": teal: "),
        ('{"teal": [1]}', ": teal.0: "),
        ('{"teal": ["a"], "teal": ["b"]}', "two lists for 'teal'"),
        ("[" * 5000, "not a JSON object"),
    ],
)
def test_a_file_that_holds_no_lists_is_told(text, message):
    with pytest.raises(InvalidInput, match=message) as told:
        class_lists.read(text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"nix": ["a"], "neither": []}, r"no label called 'nix' \(and 1 more"),
        ({"teal": ["a\u202eb"]}, "bidi control"),
        ({"teal": ["a"] * 1001}, "at most 1000"),
    ],
)
def test_lists_that_do_not_fit_leave_nothing(engine, lists, message):
    with writing(engine) as session:
        labels.create(session, "ducks", [LabelIn(name="teal")])
    with pytest.raises(InvalidInput, match=message), writing(engine) as session:
        class_lists.import_lists(session, lists, label_set="ducks", kind=PromptKind.SENTENCES)
    with reading(engine) as session:
        assert session.exec(select(Generation.id)).all() == []


def test_a_folder_for_a_paper_brings_texts_and_prompts_elsewhere_with_the_same_hash(
    engine, elsewhere, tmp_path
):
    release = fill(engine)
    folder = tmp_path / "paper"
    with reading(engine) as session:
        found = manifest.write_folder(session, release, folder)
    assert found.hash == release.hash
    assert found.texts["description by model"] == len(release.labels)
    assert found.models[0].requested == "=small"
    assert {one.prompt for one in found.prompts} == {f"my-{kind}" for kind in TEXTS}
    assert set(found.files) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    with writing(elsewhere) as session:
        done = manifest.read_folder(session, folder)
        assert (done.releases, len(done.prompt_versions)) == (["r1"], 4)
        assert releases.body(session, releases.id_of(session, "r1"))[0] == release.hash
        assert prompts.resolve(session, "my-captions", version=1).user == "1"
        assert manifest.read_folder(session, folder).existing == 5
    with reading(engine) as session, pytest.raises(Conflict, match="is not empty"):
        manifest.write_folder(session, release, folder)


def test_a_folder_that_was_changed_is_refused(engine, elsewhere, tmp_path):
    release = fill(engine)
    with reading(engine) as session:
        manifest.write_folder(session, release, tmp_path / "paper")
    for name, message in (
        ("chatgpt.txt", "does not match its hash in manifest.json"),
        ("release.json", "does not match its hash in manifest.json"),
    ):
        path = tmp_path / "paper" / name
        kept = path.read_bytes()
        path.write_bytes(kept + b" ")
        with pytest.raises(InvalidInput, match=message), writing(elsewhere) as session:
            manifest.read_folder(session, tmp_path / "paper")
        path.write_bytes(kept)
    (tmp_path / "paper/sentences.json").unlink()
    with (
        pytest.raises(InvalidInput, match=r"Cannot read .*sentences\.json"),
        writing(elsewhere) as session,
    ):
        manifest.read_folder(session, tmp_path / "paper")
    with reading(elsewhere) as session:
        assert releases.listing(session) == []
        assert session.exec(select(Generation.id).order_by(col(Generation.id))).all() == []


def test_the_formats_are_served_and_taken_over_http(service):
    lists = {"teal": ["The teal has a green stripe."], "=duck": ["The =duck has a red bill."]}
    made = service.post("/v1/import/lists?label_set=http&kind=sentences", json=lists)
    assert (made.status_code, made.json()["generations"]) == (201, 2)
    body = {"label_set": "http", "name": "http-1"}
    release = service.post("/v1/releases", json=body).json()
    url = f"/v1/releases/{release['id']}"
    assert service.get(f"{url}/sentences.json").json() == lists
    assert service.get(f"{url}/descriptors.json").json() == {"teal": [], "=duck": []}
    assert service.get(f"{url}/manifest.json").json()["texts"] == {"sentences by import": 2}
    text = service.get(f"{url}/release.csv")
    assert text.headers["content-type"].startswith("text/csv")
    assert "'=duck" in text.text
    headers = {"content-type": "text/csv"}
    again = service.post(
        "/v1/import/release.csv?name=http-2&label_set=other", content=text.content, headers=headers
    )
    assert (again.status_code, again.json()["hash"]) == (201, release["hash"])
    names = service.get("/v1/label-sets/http/labels.csv").text
    assert names.splitlines()[0] == "key,name,context"
    rows = service.get("/v1/export/generations.csv?label_set=http")
    taken = service.post("/v1/import/generations.csv", content=rows.content, headers=headers)
    assert (taken.status_code, taken.json()["existing"]) == (200, 2)
    assert service.get("/v1/export/generations.csv?label_set=nix").status_code == 404
    said = service.get("/v1/export/reviews.csv?label_set=http")
    assert said.text.splitlines() == ["generation,kind,label_name,action,reason,author,at"]
    assert service.get("/v1/export/reviews.csv?label_set=nix").status_code == 404
    near = {"teal": ["=duck"]}
    service.put("/v1/label-sets/http/confusable", json={"confusable": near}).raise_for_status()
    pairs = service.get("/v1/label-sets/http/confusable.csv").text
    assert pairs.splitlines() == ["key,confusable", "teal,'=duck"]
