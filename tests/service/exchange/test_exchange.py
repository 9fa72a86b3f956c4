import json

import httpx
import pytest
from sqlmodel import select

from enrich_service.core.errors import InvalidInput
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import reading, writing
from enrich_service.exchange import jsonl_export, jsonl_import, text_pairs
from enrich_service.exchange.schemas import GENERATION_FIELDS
from enrich_service.generations import reviews
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    ReviewAction,
)
from enrich_service.labels import service as labels
from enrich_service.prompts import service as prompts
from enrich_service.prompts.schemas import AliasPut, AliasRollback, PromptCreate, VersionCreate
from enrich_service.releases import service as releases
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource

LABELS = "n1 1 wood_duck\nn2 2 common_teal\n\nn3 3 mallard\n"
TEXTS = (
    "The wood duck has a glossy green crest, red eyes and white stripes on its chestnut breast.\n"
    ".\n"
    "The mallard has a bottle-green head, a yellow bill and a white ring around its neck.\n"
)


def test_the_papers_pair_becomes_labels_and_checked_texts(engine):
    with writing(engine) as session:
        done = text_pairs.import_pairs(
            session, "ducks", LABELS, TEXTS, context="a bird", author="li"
        )
        assert (done.generations, done.rejected) == (2, 1)
        assert done.problems[0].startswith("'common teal'")
        row, _ = releases.create(
            session, ReleaseCreate(label_set="ducks", name="r", allow_missing=True)
        )
        release = releases.parsed(row)
        assert [label.description is None for label in release.labels] == [False, True, False]
        assert {source.source for source in release.sources} == {"import"}
        assert release.labels[1].context == "a bird"
        # And out again.
        assert text_pairs.label2text(release) == LABELS.replace("\n\n", "\n")
        assert text_pairs.descriptions(release).split("\n")[0] == TEXTS.split("\n")[0]
        assert text_pairs.descriptions(release).count("\n") == 3


def test_unchecked_texts_are_taken_as_they_are(engine):
    with writing(engine) as session:
        faulty = TEXTS.replace("\n.\n", "\nError: 500\n")
        done = text_pairs.import_pairs(session, "ducks", LABELS, faulty, check_texts=False)
        assert (done.generations, done.rejected) == (3, 0)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("n1 1\n", None), "Line 1 of label2text.txt"),
        (("n1 one duck\n", None), "Line 1"),
        ((LABELS, "one\ntwo\n"), "3 labels and 2 lines"),
        (("n1 1 a\nn1 2 b\n", None), "key 'n1'"),
        (("", None), "at least one label"),
    ],
)
def test_a_pair_that_does_not_fit_leaves_nothing_behind(engine, pair, message):
    with pytest.raises(InvalidInput, match=message), writing(engine) as session:
        text_pairs.import_pairs(session, "ducks", *pair)
    with reading(engine) as session:
        assert labels.listing(session) == []


@pytest.mark.parametrize(
    "folder", ["bench/tiny-imagenet-ood", "paper/Flower102", "paper/tiered-ImageNet"]
)
def test_the_papers_real_files_come_in(shared, engine, folder):
    label2text = (shared / folder / "label2text.txt").read_text("utf-8")
    texts = (shared / folder / "chatgpt.txt").read_text("utf-8")
    with writing(engine) as session:
        done = text_pairs.import_pairs(session, "real", label2text, texts)
        assert done.generations + done.rejected == len(label2text.splitlines())
        assert done.generations > 0.9 * (done.generations + done.rejected)


def test_a_pair_is_uploaded_and_the_faulty_text_is_named(service):
    files = {"label2text": ("label2text.txt", LABELS), "descriptions": ("chatgpt.txt", TEXTS)}
    answer = service.post("/v1/import/pairs", data={"name": "up"}, files=files)
    assert answer.status_code == 201
    assert answer.json()["rejected"] == 1
    body = {"label_set": "up", "name": "up-1"}
    refused = service.post("/v1/releases", json=body)
    assert refused.status_code == 409
    assert "'common teal'" in refused.json()["detail"]
    made = service.post("/v1/releases", json=body | {"allow_missing": True}).json()
    written = service.get(f"/v1/releases/{made['id']}/chatgpt.txt")
    assert written.headers["content-type"].startswith("text/plain")
    assert written.text.splitlines()[0].startswith("The wood duck")
    assert service.get(f"/v1/releases/{made['id']}/label2text.txt").text.startswith("n1 1 wood_")


@pytest.fixture
def filled(engine):
    """A database with one of everything, texts with parents included."""
    with writing(engine) as session:
        text_pairs.import_pairs(session, "ducks", LABELS, TEXTS)
        text_pairs.import_pairs(session, "others", "x 1 heron\n", None)
        prompt, version = prompts.create(
            session,
            PromptCreate(
                name="mine",
                kind="description",
                user="{{ label }}",
                output_schema={"type": "object"},
                message="first",
            ),
        )
        prompts.create_version(
            session, prompt, VersionCreate(user="2", output_schema={"type": "object"})
        )
        prompts.move_alias(session, prompt, "production", AliasPut(version=1))
        label = labels.labels_of(session, labels.get(session, "ducks"))[1]
        made = Generation(
            source=GenerationSource.MODEL,
            status=GenerationStatus.ACCEPTED,
            kind="description",
            label_id=label.id,
            label_name=label.name,
            prompt_version_id=version.id,
            dedupe_key="k" * 64,
            requested_model="small",
            raw_reply='{"description": "ünïcode"}',
            parsed={"description": "ünïcode"},
            messages=[{"role": "user", "content": "common teal"}],
            cost_usd=0.25,
        )
        session.add(made)
        session.flush()
        session.add(
            Generation(
                source=GenerationSource.PERSON,
                status=GenerationStatus.ACCEPTED,
                kind="description",
                label_id=label.id,
                label_name=label.name,
                parent_id=made.id,
                parsed={"description": "by hand"},
                author="ada",
            )
        )
        reviews.review(session, [made.id], ReviewAction.APPROVE, author="eve")
        labels.set_confusable(session, labels.get(session, "ducks"), {"n1": ["n3"]})
        prompts.set_tags(session, prompt, ["short"])
        releases.create(session, ReleaseCreate(label_set="ducks", name="r1"))
    return engine


def exported(engine, label_set=None):
    with reading(engine) as session:
        return list(jsonl_export.export_jsonl(session, label_set))


def test_everything_goes_out_and_comes_in_elsewhere_the_same(filled, elsewhere):
    lines = exported(filled)
    with writing(elsewhere) as session:
        done = jsonl_import.import_jsonl(session, lines)
    assert done.label_sets == ["ducks", "others"]
    assert done.releases == ["r1"]
    with reading(filled) as here, reading(elsewhere) as there:
        assert releases.body(here, 1)[0] == releases.body(there, 1)[0]
        assert prompts.resolve(there, "mine", alias="production").number == 1
        edits = there.exec(select(Generation).where(Generation.author == "ada")).all()
        parent = there.get(Generation, edits[0].parent_id)
        assert (parent.requested_model, parent.cost_usd) == ("small", 0.25)
        assert parent.messages == [{"role": "user", "content": "common teal"}]
        assert [said.author for said in reviews.log_of(there, parent.id)] == ["eve"]
        ducks = labels.get(there, "ducks")
        assert labels.page(there, ducks).items[0].confusable == ["n3"]
        assert prompts.view(there, prompts.get(there, "mine")).tags == ["short"]
        # A release of the same sources there has the same hash as one here.
    with writing(filled) as here, writing(elsewhere) as there:
        sources = [ReleaseSource(prompt="mine", version=1)]
        hashes = {
            releases.create(one, ReleaseCreate(label_set="ducks", name="r2", sources=sources))[
                0
            ].hash
            for one in (here, there)
        }
        assert len(hashes) == 1


def test_importing_twice_adds_nothing(filled, elsewhere):
    lines = exported(filled)
    with writing(elsewhere) as session:
        jsonl_import.import_jsonl(session, lines)
    before = exported(elsewhere)
    with writing(elsewhere) as session:
        again = jsonl_import.import_jsonl(session, lines)
    assert (again.label_sets, again.prompt_versions, again.releases) == ([], [], [])
    assert (again.generations, again.rejected) == (0, 0)
    assert exported(elsewhere) == before
    with writing(filled) as session:  # nor does a service that takes in its own export
        assert jsonl_import.import_jsonl(session, lines).generations == 0
    assert exported(filled) == lines


@pytest.fixture
def moved(filled):
    """`mine` with two aliases that two people moved in turn, and archived.

    Of the prompts that every service has, one is archived and another's alias was moved.
    """
    with writing(filled) as session:
        mine = prompts.get(session, "mine")
        prompts.move_alias(
            session, mine, "production", AliasPut(version=2, reason="shorter", author="ada")
        )
        prompts.move_alias(session, mine, "canary", AliasPut(version=2, author="eve"))
        prompts.roll_back_alias(
            session, mine, "production", AliasRollback(reason="worse", author="eve")
        )
        prompts.move_alias(session, mine, "production", AliasPut(version=1, protected=True))
        prompts.set_archived(session, mine, True)
        prompts.set_archived(session, prompts.get(session, "attributes"), True)
        given = prompts.get(session, "visual-description")
        prompts.create_version(
            session, given, VersionCreate(user="3", output_schema={"type": "object"})
        )
        prompts.move_alias(
            session,
            given,
            "production",
            AliasPut(version=2, reason="ours", author="ada", protected=True),
        )
    return filled


def lines_of(lines, prompt, *records):
    """The lines of an export that speak of one prompt."""
    found = [(line, json.loads(line)) for line in lines]
    return [line for line, one in found if one.get("prompt") == prompt and one["record"] in records]


PROMPT_RECORDS = ("prompt_version", "archived", "alias_move", "alias")


def test_archived_prompts_and_every_move_of_an_alias_come_in_as_they_were(moved, elsewhere):
    lines = exported(moved)
    with writing(elsewhere) as session:
        jsonl_import.import_jsonl(session, lines)
        mine = prompts.get(session, "mine")
        log = prompts.alias_moves(session, mine, "production")
        assert [(one.from_version, one.to_version, one.author, one.reason) for one in log] == [
            (2, 1, "eve", "worse"),
            (1, 2, "ada", "shorter"),
            (None, 1, "", ""),
        ]
        assert mine.archived_at is not None
    there = exported(elsewhere)
    written = lines_of(lines, "mine", *PROMPT_RECORDS)
    assert len(written) == 2 + 1 + 4 + 2
    assert lines_of(there, "mine", *PROMPT_RECORDS) == written
    # What every service has was there already, delivered at another time.
    (archived,) = lines_of(lines, "attributes", "archived")
    assert lines_of(there, "attributes", "archived") == [archived]
    for record, count in (("alias_move", 2), ("alias", 1)):
        written = lines_of(lines, "visual-description", record)
        assert len(written) == count
        assert lines_of(there, "visual-description", record)[-1] == written[-1]
    for engine in (elsewhere, moved):
        before = exported(engine)
        with writing(engine) as session:
            jsonl_import.import_jsonl(session, lines)
        assert exported(engine) == before


def test_an_import_leaves_the_archive_and_the_log_of_what_is_in_use(moved, elsewhere):
    lines = exported(moved)
    with writing(elsewhere) as session:
        jsonl_import.import_jsonl(session, lines)
        mine = prompts.get(session, "mine")
        prompts.set_archived(session, mine, False)
        prompts.move_alias(
            session, mine, "canary", AliasPut(version=1, reason="safer", author="li")
        )
        given = prompts.get(session, "visual-description")
        prompts.roll_back_alias(
            session, given, "production", AliasRollback(reason="no", confirm=True)
        )
    before = exported(elsewhere)
    with writing(elsewhere) as session:
        jsonl_import.import_jsonl(session, lines)
    assert exported(elsewhere) == before


def test_moves_name_the_same_texts_where_versions_have_other_numbers(moved, elsewhere):
    with writing(elsewhere) as session:
        prompts.create(
            session,
            PromptCreate(
                name="mine", kind="description", user="0", output_schema={"type": "object"}
            ),
        )
        jsonl_import.import_jsonl(session, exported(moved))
        log = prompts.alias_moves(session, prompts.get(session, "mine"), "production")
        assert [(one.from_version, one.to_version) for one in log] == [(3, 2), (2, 3), (None, 2)]
        assert prompts.resolve(session, "mine", alias="canary").user == "2"


def test_an_older_export_without_archive_and_moves_comes_in(moved, elsewhere):
    newer = ('"record":"archived"', '"record":"alias_move"')
    lines = [line for line in exported(moved) if not any(one in line for one in newer)]
    with writing(elsewhere) as session:
        jsonl_import.import_jsonl(session, lines)
        mine = prompts.get(session, "mine")
        assert mine.archived_at is None
        assert prompts.view(session, mine).aliases[1].protected
        for alias, number in (("production", 1), ("canary", 2)):
            (move,) = prompts.alias_moves(session, mine, alias)
            assert (move.to_version, move.reason, move.author) == (number, "import", "")


def test_one_label_set_goes_out_alone(filled):
    records = [json.loads(line) for line in exported(filled, "others")]
    assert [one["name"] for one in records if one["record"] == "label_set"] == ["others"]
    assert not [one for one in records if one["record"] in ("generation", "release")]


def damaged(lines, kind, **changes):
    number = next(n for n, line in enumerate(lines) if f'"record":"{kind}"' in line)
    changed = json.loads(lines[number]) | changes
    return [*lines[:number], json.dumps(changed), *lines[number + 1 :]], number + 1


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("prompt_version", {"system": "changed"}, "does not match its content hash"),
        ("generation", {"status": "splendid"}, "status"),
        ("generation", {"parent_id": 999}, "precedes its parent"),
        ("generation", {"strange": 1}, "strange"),
        ("alias_move", {"version": 9}, "moves to version 9, which is not in the file"),
        ("review", {"generation": 999}, "a review is of generation 999"),
        ("label_set", {"labels": [{"name": ""}]}, "empty"),
        ("label_set", {"record": "nonsense"}, "unknown record 'nonsense'"),
        ("enrich-export", {"format": 2}, "format"),
    ],
)
def test_a_damaged_export_is_told_with_its_line_and_leaves_nothing(
    filled, elsewhere, kind, changes, message
):
    lines, number = damaged(exported(filled), kind, **changes)
    told = pytest.raises(InvalidInput, match=f"Line {number}: .*{message}")
    with told, writing(elsewhere) as session:
        jsonl_import.import_jsonl(session, lines)
    with reading(elsewhere) as session:
        assert labels.listing(session) == []


@pytest.mark.parametrize("lines", [[], ["{"], ["[]"], ['{"a": 1}'], ["[" * 5000]])
def test_what_is_no_export_is_refused(engine, lines):
    with pytest.raises(InvalidInput), writing(engine) as session:
        jsonl_import.import_jsonl(session, lines)


def test_an_export_goes_over_http_and_back(service, start_service, tmp_path):
    text = service.get("/v1/export")
    assert text.headers["content-type"].startswith("application/x-ndjson")
    with httpx.Client(base_url=start_service(Settings(data_dir=tmp_path))) as there:
        headers = {"content-type": "application/x-ndjson"}
        answer = there.post("/v1/import", content=text.content, headers=headers)
        assert answer.status_code == 200
        names = [one["name"] for one in service.get("/v1/label-sets").json()]
        assert [one["name"] for one in there.get("/v1/label-sets").json()] == names
        broken = there.post("/v1/import", content=b"\xff", headers=headers)
        assert broken.status_code == 422
    assert service.get("/v1/export?label_set=nix").status_code == 404


def test_an_export_holds_every_column_of_a_generation():
    ids = {"id", "parent_id", "label_id", "run_id", "prompt_version_id"}
    assert set(GENERATION_FIELDS) == Generation.model_fields.keys() - ids
